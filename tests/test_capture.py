"""torch.compile(backend="cnn_triton"): what is fused, and that it is right."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tn
from torch._dynamo.exc import BackendCompilerFailed

import cnn_triton
from capturing import Net, X, compare, compiled, fresh  # noqa: F401
from cnn_triton import captures, nn
from cnn_triton.kernels.matrix import activations


def summed(m, x):
    """A sum that grows in place."""
    y = m.conv(x)
    y += m.other(x)
    y += m.conv(-x)
    return F.relu(y)


def add_to_other(m, x):
    z = x * 2.0
    z += m.conv(x)
    return F.relu(z) + z


# What a kernel takes on: (forward, in training too?, patterns).
FUSED = {
    "relu": (lambda m, x: F.relu(m.conv(x)), {"conv2d + relu": 1}),
    "in place": (lambda m, x: m.act(m.conv(x)), {"conv2d + relu": 1}),
    "method": (lambda m, x: m.conv(x).relu(), {"conv2d + relu": 1}),
    "method in place": (lambda m, x: m.conv(x).clamp_(-0.1, 0.2), {"conv2d + clamp": 1}),
    "function": (lambda m, x: F.silu(F.conv2d(x, m.conv.weight, padding="same")), {"conv2d + silu": 1}),
    "gelu": (lambda m, x: F.gelu(m.conv(x), approximate="tanh"), {"conv2d + gelu_tanh": 1}),
    "leaky_relu": (lambda m, x: F.leaky_relu(m.conv(x), 0.2) * 1.0, {"conv2d + leaky_relu": 1}),
    "transposed": (lambda m, x: torch.tanh(m.back(x)), {"conv_transpose2d + tanh": 1}),
    "linear": (lambda m, x: m.linear(x).sigmoid(), {"linear + sigmoid": 1}),
    "linear, added": (lambda m, x: F.relu(m.linear(x) + x), {"linear + add + relu": 1}),
    "added": (lambda m, x: F.relu(m.conv(x) + x), {"conv2d + add + relu": 1}),
    "added, right": (lambda m, x: F.relu(torch.add(x, m.conv(x))), {"conv2d + add + relu": 1}),
    "added in place": (lambda m, x: F.relu(m.conv(x).add_(x)), {"conv2d + add + relu": 1}),
    "added in place to another": (summed, {"conv2d": 1, "conv2d + add": 1, "conv2d + add + relu": 1}),
    "pooled": (lambda m, x: m.pool(F.relu(m.conv(x))), {"conv2d + relu + max_pool2d": 1}),
    "added in place to another that has a reader": (add_to_other, {"conv2d + add": 1}),
    "averaged": (lambda m, x: F.avg_pool2d(F.relu(m.conv(x)), 2), {"conv2d + relu + avg_pool2d": 1}),
    "Identity and Dropout": (
        lambda m, x: F.relu(F.dropout(tn.Identity()(m.conv(x)), 0.5, training=False)), {"conv2d": 1},
    ),
    "two": (
        lambda m, x: F.relu(m.conv(x) + F.silu(m.other(x))), {"conv2d + add + relu": 1, "conv2d + silu": 1},
    ),
    "prelu": (lambda m, x: m.slopes(m.conv(x) + x), {"conv2d + add + prelu": 1}),
    "prelu, one slope": (lambda m, x: m.slope(m.linear(x)), {"linear + prelu": 1}),
    "prelu, transposed": (lambda m, x: m.back(x).prelu(m.slopes.weight), {"conv_transpose2d + prelu": 1}),
    "prelu of rows": (lambda m, x: F.prelu(m.conv1(x.flatten(2)), weight=m.slopes.weight), {"conv1d + prelu": 1}),
    "another normalisation in between": (
        lambda m, x: F.relu(m.conv(x) + F.layer_norm(x, (7,), m.linear.bias)), {"conv2d + add + relu": 1},
    ),
    "optional argument": (lambda m, x, mask=None: F.relu(m.conv(x)), {"conv2d + relu": 1}),
    "a layer of ours": (
        lambda m, x: F.relu(cnn_triton.functional.conv2d(x, m.conv.weight)), {"conv2d + relu": 1},
    ),
}  # fmt: skip
IN_EVAL = {
    "norm": (lambda m, x: m.norm(m.conv(x)), {"conv2d + batch_norm": 1}),
    "norm, added, relu": (lambda m, x: m.act(m.norm(m.conv(x)) + x), {"conv2d + batch_norm + add + relu": 1}),
    "norm, not affine": (lambda m, x: m.act(m.alone(m.conv(x))), {"conv2d + batch_norm + relu": 1}),
    "norm of rows": (lambda m, x: F.silu(m.rows(m.conv1(x.flatten(2)))), {"conv1d + batch_norm + silu": 1}),
    "norm of features": (
        lambda m, x: m.features(m.linear(x.flatten(0, 2))).relu(),
        {"linear + batch_norm + relu": 1},
    ),
    "norm, transposed": (lambda m, x: F.silu(m.norm(m.back(x))), {"conv_transpose2d + batch_norm + silu": 1}),
    "norm, pooled": (lambda m, x: m.pool(m.act(m.norm(m.conv(x)))), {"conv2d + batch_norm + relu + max_pool2d": 1}),
    "norm, added, prelu": (lambda m, x: m.slopes(m.norm(m.conv(x)) + x), {"conv2d + batch_norm + add + prelu": 1}),
    "both branches": (
        lambda m, x: m.act(m.norm(m.conv(x)) + m.alone(m.other(x))),
        {"conv2d + batch_norm + add + relu": 1, "conv2d + batch_norm": 1},
    ),
}
IN_TRAINING = {
    "norm": (lambda m, x: m.norm(m.conv(x)), {"conv2d + batch_norm": 1}),
    "norm, relu": (lambda m, x: m.act(m.norm(m.conv(x))), {"conv2d + batch_norm + relu": 1}),
    "norm, prelu": (lambda m, x: m.slopes(m.norm(m.conv(x))), {"conv2d + batch_norm + prelu": 1}),
    "norm, added": (lambda m, x: m.act(m.norm(m.conv(x)) + x), {"conv2d + batch_norm + add + relu": 1}),
    "norm, added, sigmoid": (
        lambda m, x: torch.sigmoid(x + m.norm(m.conv(x))),
        {"conv2d + batch_norm + add + sigmoid": 1},
    ),
    "norm, added, silu": (lambda m, x: F.silu(x + m.norm(m.conv(x))), {"conv2d + batch_norm + add": 1}),
    "both branches": (
        lambda m, x: m.act(m.norm(m.conv(x)) + m.alone(m.other(x))),
        {"conv2d + batch_norm + add + relu": 1, "conv2d + batch_norm": 1},
    ),
    "shared norm": (
        lambda m, x: F.relu(m.norm(m.conv(x))) + F.relu(m.norm(m.other(x))),
        {"conv2d + batch_norm + relu": 2},
    ),
}
CASES = [
    *((name, False, *case) for name, case in (FUSED | IN_EVAL).items()),
    *((name, True, *case) for name, case in (FUSED | IN_TRAINING).items()),
]


@pytest.mark.cover
@pytest.mark.parametrize(("name", "train", "forward", "patterns"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_fused(name, train, forward, patterns, device):
    compare(lambda: Net(forward, device), torch.randn(X, device=device), train=train, patterns=patterns)


POOLS = {
    "its windows overlap": [tn.MaxPool2d(3, 2, 1), lambda y: F.avg_pool2d(y, 2, 1), tn.AvgPool2d(3, 2)],
    "its windows leave gaps": [tn.MaxPool2d(2, 3), lambda y: F.max_pool2d(y, 2, stride=(2, 3))],
    "it pads": [tn.MaxPool2d(2, padding=1), lambda y: F.avg_pool2d(y, 2, padding=(0, 1))],
    "its windows have holes": [tn.MaxPool2d(2, dilation=2), lambda y: F.max_pool2d(y, 2, dilation=[1, 2])],
    "it keeps ragged edges": [tn.MaxPool2d(2, ceil_mode=True), lambda y: F.avg_pool2d(y, 4, ceil_mode=True)],
    "it has a divisor of its own": [tn.AvgPool2d(2, divisor_override=3)],
    "": [tn.AvgPool2d(3), tn.MaxPool2d((3, 2)), lambda y: F.max_pool2d(y, [2, 3], padding=0),
         lambda y: F.avg_pool2d(y, 2, (2, 2), (0, 0), False, False)],
}  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize(
    ("why", "pool"), [pytest.param(why, pool, id=f"{why} {i}") for why in POOLS for i, pool in enumerate(POOLS[why])]
)
def test_pools(why, pool, device):
    """A pool whose windows don't lie side by side is a kernel of its own, and that is said."""
    compare(lambda: Net(lambda m, x: pool(F.relu(m.conv(x))), device), torch.randn(X, device=device))
    (fused,) = captures.fused
    assert fused.apart.endswith(f"_pool2d is left: {why}") if why else str(fused).endswith("_pool2d")
    assert bool(fused.apart) == bool(why)


# Every activation that the backend knows, by the functions of its row, or by more ways to write it.
WRITTEN = {
    **{word: row.functions for word, row in (activations.ACTIVATIONS | activations.ALIASES).items() if word != "none"},
    "relu": (F.relu, torch.relu, torch.Tensor.relu), "relu6": (F.relu6,), "hardswish": (F.hardswish,),
    "leaky_relu": (lambda y: F.leaky_relu(y, negative_slope=0.2),), "hardsigmoid": (F.hardsigmoid,),
    "hardtanh": (lambda y: F.hardtanh(y, -0.2, max_val=0.4),), "mish": (F.mish, lambda y: F.mish(y, inplace=True)),
    "gelu": (F.gelu,), "gelu_tanh": (lambda y: F.gelu(y, approximate="tanh"),), "silu": (F.silu,),
    "sigmoid": (F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid_), "tanh": (F.tanh, torch.tanh, torch.Tensor.tanh),
    "clamp": (lambda y: torch.clamp(y, -0.3, 0.5), lambda y: y.clamp(max=0.1), lambda y: y.clamp_(0)),
    "elu": (lambda y: F.elu(y, 0.7), lambda y: F.elu(y, inplace=True)), "selu": (F.selu, torch.selu_),
    "softplus": (F.softplus, lambda y: F.softplus(y, 2.0, threshold=3.0)), "softsign": (F.softsign,),
    "log_sigmoid": (F.logsigmoid,),
}  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize("word", WRITTEN)
def test_activations(word, device):
    assert {*activations.words()} - {"none"} == set(WRITTEN)
    for act in WRITTEN[word]:
        torch._dynamo.reset()
        captures.clear()
        forward = lambda m, x, act=act: act(m.conv(x)) * 1.0  # noqa: E731
        compare(lambda f=forward: Net(f, device), torch.randn(X, device=device), patterns={f"conv2d + {word}": 1})


@pytest.mark.parametrize("rest", ["aot_eager", "eager"])
def test_rest(rest, device):
    compare(
        lambda: Net(lambda m, x: F.relu(m.norm(m.conv(x)) + x) * 2, device), torch.randn(X, device=device),
        options={"rest": rest}, patterns={"conv2d + batch_norm + add + relu": 1},
    )  # fmt: skip


def test_bad_options(device):
    model = Net(lambda m, x: m.conv(x), device)
    with pytest.raises(Exception, match="options must be"):
        compiled(model, options={"fast": True})(torch.randn(X, device=device))
    with pytest.raises(BackendCompilerFailed, match=r"options\['rest'\] must be a backend of .*, but got 'fast'"):
        compiled(model, options={"rest": "fast"})(torch.randn(X, device=device))


@pytest.mark.parametrize("kind", ["original", "ours", "converted"])
def test_models(kind, device):
    """A network of PyTorch's layers, of ours, and converted."""
    of = nn if kind == "ours" else tn
    layers = [
        of.Conv2d(3, 8, 3, padding=1),
        tn.BatchNorm2d(8),
        tn.ReLU(),
        of.MaxPool2d(2),
        of.Conv2d(8, 4, 1),
        tn.GELU(),
    ]

    def make():
        model = tn.Sequential(*copy.deepcopy(layers), tn.Flatten(), of.Linear(4 * 9, 5)).to(device)
        if kind == "converted":
            cnn_triton.convert(model)
        return model

    compare(make, torch.randn(2, 3, 6, 6, device=device))
    if kind != "converted":
        assert dict(captures.patterns) == {
            "conv2d + batch_norm + relu + max_pool2d": 1, "conv2d + gelu": 1, "linear": 1,
        }  # fmt: skip

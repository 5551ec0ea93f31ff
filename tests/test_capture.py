"""torch.compile(backend="cnn_triton"): what is fused, that it is right, and when it must not be."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tn

import cnn_triton
from cnn_triton import captures, nn
from cnn_triton.kernels.matrix import activations

X = (2, 4, 6, 7)


@pytest.fixture(autouse=True)
def fresh():
    """Each test sees its own captures."""
    torch._dynamo.reset()
    captures.clear()


def compiled(function, **more):
    return torch.compile(function, backend="cnn_triton", fullgraph=True, **more)


class Net(tn.Module):
    """A module of some layers, and a forward given as a function of it and the images."""

    def __init__(self, forward, device, channels=4):
        super().__init__()
        self.conv, self.other = (tn.Conv2d(4, channels, 3, padding=1) for _ in range(2))
        self.back = tn.ConvTranspose2d(4, channels, 3, padding=1)
        self.norm, self.alone = tn.BatchNorm2d(channels), tn.BatchNorm2d(channels, affine=False)
        self.act, self.pool, self.linear = tn.ReLU(inplace=True), tn.MaxPool2d(2), tn.Linear(7, 7)
        self.conv1, self.rows, self.features = tn.Conv1d(4, 4, 3), tn.BatchNorm1d(4), tn.BatchNorm1d(7)
        self.slopes, self.slope = tn.PReLU(channels, init=0.3), tn.PReLU()
        self.steps = forward
        for norm in (self.norm, self.alone, self.rows, self.features):
            tn.init.normal_(norm.running_mean, 0, 0.1)
            tn.init.uniform_(norm.running_var, 0.5, 1.5)
        self.to(device)

    def forward(self, x):
        return self.steps(self, x)


def compare(make, *inputs, train=False, patterns=None, grads=True, close=2e-4, **more):
    """A module, compiled and not: outputs, gradients, buffers, what became of the inputs; what was fused."""
    theirs, ours = make(), make()
    ours.load_state_dict(theirs.state_dict())

    def results(model, run):
        model.train(train)
        given = [x.detach().clone().requires_grad_(grads) for x in inputs]
        changed = [x * 1.0 for x in given]  # no leaves, so that they may be changed in place
        with torch.set_grad_enabled(grads):
            y = run(*changed)
        leaves = [*given, *model.parameters()]
        found = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) if grads else ()
        return [y, *changed, *model.buffers(), *(g for g in found if g is not None)]

    with cnn_triton.backend("aten"):
        right = results(theirs, theirs)
    before = sum(cnn_triton.launches().values())
    for their, our in zip(right, results(ours, compiled(ours, **more)), strict=True):
        torch.testing.assert_close(our, their, rtol=close, atol=close)
    assert captures.graphs > 0
    assert sum(cnn_triton.launches().values()) > before
    if patterns is not None:
        assert dict(captures.patterns) == patterns, str(captures)
    return ours


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


def between(change):
    """A residual that is changed after it was added, before the kernel that would read it."""

    def forward(m, x):
        y = m.conv(-x) + x
        change(m, x)
        return F.relu(y) + x

    return forward


def norm_read(m, x):
    y = m.norm(m.conv(x))
    seen = m.norm.running_mean.clone()
    return F.relu(y) + seen[:, None, None]


def added_changed(m, x):
    y = F.silu(m.norm(m.conv(-x)) + x)
    x.mul_(2.0)
    return y + x


def weight_changed(m, x):
    w = m.conv.weight.detach() * 1.0
    y = F.conv2d(x, w, padding=1)
    w.mul_(2.0)
    return F.relu(y) + w.sum()


def view_changed(m, x):
    y = m.conv(-x) + x
    x.view(-1)[3:9].zero_()
    return F.relu(y)


def two_readers(m, x):
    y = m.conv(x)
    return F.relu(y) + y


def add_to_view(m, x):
    y = m.conv(x)
    z = y[:, :2]
    y += m.other(x)
    return F.relu(y)[:, :2] + z


def add_to_input(m, x):
    x += m.conv(x * 2.0)
    return F.relu(x)


def reshaped(m, x):
    r = x[None] * 1.0
    y = m.conv(x) + r
    r.squeeze_(0)
    return y[0] + r


def autocast(m, x):
    y = m.conv(x)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        z = m.other(x)
    return F.relu(y) + z.float()


def grad_mode(m, x):
    y = m.conv(x)
    with torch.no_grad():
        y = F.relu(y)
    return y + x


# What must stay as it is: (forward, training, patterns).
APART = {
    "residual changed": (between(lambda m, x: x.mul_(3.0)), False, {"conv2d + add": 1}),
    "residual changed by out=": (between(lambda m, x: torch.neg(x, out=x)), False, {"conv2d + add": 1}),
    **{
        f"residual changed by {name}": (
            between(lambda m, x, name=name: getattr(x, f"__{name}__")(2.0)),
            False,
            {"conv2d + add": 1},
        )
        for name in ("iadd", "isub", "imul", "itruediv")
    },
    "residual set": (between(lambda m, x: x.__setitem__((0, 0), 5.0)), False, {"conv2d + add": 1}),
    "residual changed by inplace=": (between(lambda m, x: F.relu(x, inplace=True)), False, {"conv2d + add": 1}),
    "residual changed after it all": (added_changed, True, {"conv2d + batch_norm + add": 1}),
    "a view changed": (view_changed, False, {"conv2d + add": 1}),
    "weight changed": (weight_changed, False, {"conv2d": 1}),
    "statistics read": (norm_read, True, {"conv2d + batch_norm": 1}),
    "two readers": (two_readers, False, {"conv2d": 1}),
    "twice by one": (lambda m, x: F.relu(m.conv(x) + x).add(x) + (lambda y: y + y)(m.other(x)), False, None),
    "adds to what has a view": (add_to_view, False, {"conv2d": 2}),
    "adds to an input": (add_to_input, False, {"conv2d": 1}),
    "scaled": (lambda m, x: F.relu(torch.add(m.conv(x), x, alpha=2)), False, {"conv2d": 1}),
    "another rank, until later": (reshaped, False, {"conv2d": 1}),
    "broadcast": (lambda m, x: F.relu(m.conv(x) + x[:1]), False, {"conv2d": 1}),
    "a number": (lambda m, x: F.relu(m.conv(x) + 1.0), False, {"conv2d": 1}),
    "another dtype": (lambda m, x: F.relu(m.conv(x) + x.double()).float(), False, {"conv2d": 1}),
    "activation first": (lambda m, x: F.relu(m.conv(x)) + x, False, {"conv2d + relu": 1}),
    "norm of another dimension": (
        lambda m, x: m.rows(F.linear(x.flatten(2), m.linear.weight.new_ones(3, 42))),
        False,
        {"linear": 1},
    ),
    "slopes of another dimension": (lambda m, x: m.slopes(m.linear(x)), False, {"linear": 1}),
    "norm, added, prelu": (
        lambda m, x: m.slopes(m.norm(m.conv(x)) + x),
        True,
        {"conv2d + batch_norm + add": 1},
    ),
    "norm after": (lambda m, x: m.norm(F.relu(m.conv(x))), False, {"conv2d + relu": 1}),
    "overlapping pool": (lambda m, x: F.max_pool2d(F.relu(m.conv(x)), 3, 2), False, {"conv2d + relu": 1}),
    "across autocast": (autocast, False, None),
    "across no_grad": (grad_mode, False, {"conv2d": 1}),
}


@pytest.mark.cover
@pytest.mark.parametrize("name", APART)
def test_apart(name, device):
    forward, train, patterns = APART[name]
    grads = name not in ("weight changed", "residual changed by out=")  # which eager autograd refuses
    close = 2.0**-6 if name == "across autocast" else 2e-4  # bfloat16's last two bits
    make, x = lambda: Net(forward, device), torch.randn(X, device=device)
    compare(make, x, train=train, patterns=patterns, grads=grads, close=close)


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


def program(draw):
    """The source of a random function of module m and images x: layers, activations, sums, views, changes in place."""
    lines, names = ["def forward(m, x):"], ["x"]
    for i in range(draw.randint(4, 10)):
        a, b = draw.choice(names), draw.choice(names)
        line = draw.choice([
            f"v{i} = m.conv({a})", f"v{i} = m.conv({a})", f"v{i} = m.other({a})", f"v{i} = m.norm(m.conv({a}))",
            f"v{i} = m.norm({a})", f"v{i} = F.relu({a})", f"v{i} = F.relu({a}, inplace=True)", f"v{i} = {a} + {b}",
            f"v{i} = {a}; v{i} += {b}", f"v{i} = {a}.add_({b})", f"v{i} = F.leaky_relu({a}, 0.1)",
            f"v{i} = F.hardtanh({a}, -0.5, 0.5)", f"v{i} = F.silu({a})", f"v{i} = {a}.flatten(1).view_as({b})",
            f"v{i} = {a}; v{i}[:, 1:3].mul_(0.5)", f"v{i} = torch.sigmoid({a})", f"v{i} = F.relu6(m.conv({a}))",
            f"v{i} = {a}.transpose(0, 1).transpose(0, 1)", f"v{i} = F.dropout({a}, 0.5, False)",
            f"v{i} = F.relu(m.norm(m.other({a})) + {b})",
        ])  # fmt: skip
        lines.append(f"    {line}")
        names = [*names[-3:], f"v{i}"]
    lines.append(f"    return {' + '.join(names)}")
    return "\n".join(lines)


def outcome(run, model, x):
    """Output, gradients, buffers and the input of a call; or the type of the error that PyTorch raises."""
    given = x.detach().clone().requires_grad_()
    mine = given * 1.0
    try:
        y = run(mine)
        grads = torch.autograd.grad(y.square().sum(), [given, *model.parameters()], allow_unused=True)
    except RuntimeError:
        return None
    return [y, mine, *model.buffers(), *grads]


@pytest.mark.cover
@pytest.mark.parametrize("number", range(60))
def test_random_programs(number, device):
    """Whatever is written, the captured graph does what Python does."""
    draw = random.Random(random.random())  # of this test's seed
    theirs, x = None, torch.randn(X, device=device)
    while theirs is None:  # some programs change what autograd has kept
        source, train = program(draw), draw.random() < 0.5
        space = {"F": F, "torch": torch}
        exec(source, space)
        model = Net(space["forward"], device).train(train)
        twin = copy.deepcopy(model)
        with cnn_triton.backend("aten"):
            theirs = outcome(model, model, x)
    ours = outcome(compiled(twin), twin, x)
    assert captures.graphs > 0
    assert ours is not None, f"eager runs, the captured graph fails:\n{source}\n{captures}"
    for their, our in zip(theirs, ours, strict=True):
        if their is not None:
            torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-3, msg=lambda m: f"{m}\n{source}\n{captures}")


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


@pytest.mark.parametrize("train", [False, True])
def test_output_changed_by_its_user(train, device):
    """An output that PyTorch lets its user change in place in training is not kept by a kernel."""
    words = (
        lambda y: F.leaky_relu(y, 0.1), F.relu6, F.hardtanh, lambda y: F.relu6(y, True),
        lambda y: F.hardtanh(y, inplace=True),
    )  # fmt: skip
    for act in words:
        theirs = Net(lambda m, x, act=act: act(m.conv(x)), device).train(train)
        ours, x = copy.deepcopy(theirs), torch.randn(X, device=device)
        grads = []
        for model, run in ((theirs, theirs), (ours, compiled(ours))):
            y = run(x)
            y += x
            grads.append(torch.autograd.grad(y.sum(), model.conv.weight)[0])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert "may be changed in place" in str(captures)


@pytest.mark.parametrize("kind", ["a view", "detached"])
def test_inputs_that_share_memory(kind, device):
    """Captured with inputs that don't, a graph is right where they do: Dynamo doesn't look at that."""

    class Changes(tn.Module):
        def __init__(self):
            super().__init__()
            self.conv = tn.Conv2d(4, 4, 3)

        def forward(self, x, other):
            y = self.conv(x)
            other.add_(1.0)
            return F.relu(y)

    model = Changes().to(device).eval()
    run = compiled(model)
    with torch.no_grad():
        run(torch.randn(X, device=device), torch.randn(X, device=device))
        for call in (run, model):
            x = torch.arange(2.0 * 4 * 6 * 7, device=device).sin().view(X)
            y = call(x, x.view(X) if kind == "a view" else x.detach())
            right = F.relu(F.conv2d(torch.arange(2.0 * 4 * 6 * 7, device=device).sin().view(X), *model.parameters()))
            torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)


def test_where_no_kernel_runs(device):
    """The captured graph as it was, chosen at each call."""
    model = Net(lambda m, x: F.relu(m.conv(x)), device).eval()
    run, x = compiled(model), torch.randn(X, device=device)
    with torch.no_grad():
        with cnn_triton.backend("aten"):
            assert torch.equal(run(x), model(x))
            before = cnn_triton.launches()
            run(x)
            assert cnn_triton.launches() == before
        run(x)
        assert cnn_triton.launches()["conv2d"] == before.get("conv2d", 0) + 1
    assert captures.graphs == 1


@pytest.mark.cover
def test_double_backward(device):
    model = Net(lambda m, x: F.silu(m.conv(x) + x), device).double()
    run = compiled(model)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradgradcheck(run, (x,))
    assert captures.patterns["conv2d + add + silu"] > 0


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


def test_changing_sizes(device):
    """Batches and sizes that change take few captures, and are right."""
    model = Net(lambda m, x: F.relu(m.norm(m.conv(x))), device).eval()
    run = torch.compile(model, backend="cnn_triton")
    with torch.no_grad():
        for n, h, w in ((2, 6, 7), (3, 6, 7), (4, 6, 7), (7, 6, 7), (2, 8, 9), (5, 11, 7), (1, 6, 7)):
            x = torch.randn(n, 4, h, w, device=device)
            with cnn_triton.backend("aten"):
                right = model(x)
            torch.testing.assert_close(run(x), right, rtol=1e-4, atol=1e-4)
    assert 0 < captures.graphs <= 4
    assert set(captures.patterns) == {"conv2d + batch_norm + relu"}


def test_modes_are_captured_anew(device):
    """Training and eval mode, another activation: PyTorch notices each."""
    model = Net(lambda m, x: m.act(m.norm(m.conv(x))), device)
    run, x = compiled(model), torch.randn(X, device=device)

    def same():
        twin = copy.deepcopy(model)
        with cnn_triton.backend("aten"):
            right = twin(x)
        torch.testing.assert_close(run(x), right, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean)

    for _ in range(2):
        model.train()
        same()
        model.eval()
        same()
    model.act = tn.SiLU()
    same()


def test_report(device):
    class Block(tn.Module):
        def __init__(self):
            super().__init__()
            self.layers = tn.Sequential(tn.Conv2d(4, 4, 3, padding=1), tn.BatchNorm2d(4), tn.ReLU())

        def forward(self, x):
            return self.layers[2](self.layers[1](self.layers[0](x)) + x)

    last = (tn.Conv2d(4, 4, 1), tn.ReLU(), tn.MaxPool2d(3, 1), tn.Conv2d(4, 4, 1), tn.ReLU(), tn.MaxPool2d(3, 1))
    model = tn.Sequential(Block(), Block(), *last).to(device)
    compiled(model)(torch.randn(X, device=device))
    lines = str(captures).splitlines()
    assert lines[0] == "1 graph captured"
    assert "  conv2d + batch_norm + add + relu: 2" in lines
    assert "  conv2d + relu: 2" in lines
    assert "  max_pool2d is left: its windows overlap: 2 (2, 5)" in lines
    captures.clear()
    assert str(captures) == "0 graphs captured"


def test_other_dtypes_are_left(device):
    """Integers and complex numbers go to PyTorch."""
    run = compiled(lambda x, w: F.conv2d(x, w).abs())
    x = torch.randn(1, 2, 4, 4, dtype=torch.complex64, device=device)
    torch.testing.assert_close(run(x, x[:, :, :2, :2]), F.conv2d(x, x[:, :, :2, :2]).abs())
    assert captures.graphs == 1
    assert not captures.fused


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

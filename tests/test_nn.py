"""The modules: torch.nn's constructors, state_dict and initial weights; the same results, through training."""

import copy
import inspect
import io
import pickle

import pytest
import torch

import cnn_triton
from checks import assert_accurate, kernels_only
from cnn_triton import nn
from module_pairs import each, pair, run


@each
def test_module(ours, theirs, args, options, shape, device):
    mine, right = pair(ours, theirs, args, options)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert list(mine.state_dict()) == list(right.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), right.parameters(), strict=True))
    assert isinstance(mine, theirs)
    mine, right = mine.to(device), right.to(device)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    with kernels_only():
        got = run(mine, x, False)
    for a, b in zip(got, run(right, x, "ReLU" in ours.__name__), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each
def test_copies(ours, theirs, args, options, shape):
    mine, right = pair(ours, theirs, args, options)
    x = torch.randn(shape, dtype=torch.float64)
    expected = mine(x)
    assert ours.__name__ in repr(mine)
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(copied(x), expected)
    buffer = io.BytesIO()
    torch.save(right.state_dict(), buffer)
    buffer.seek(0)
    fresh = ours(*args, **options).double()
    fresh.load_state_dict(torch.load(buffer), strict=True)
    assert torch.equal(fresh(x), expected)
    right.load_state_dict(fresh.state_dict(), strict=True)


def sequence(*layers):
    return lambda *args, **options: torch.nn.Sequential(torch.nn.Conv2d(*args, **options), *layers)


SEVERAL = [  # ours, its own arguments, PyTorch's layers, arguments of the first of them, input
    (nn.ConvReLUMaxPool2d, {}, sequence(torch.nn.ReLU(), torch.nn.MaxPool2d(2)), (3, 4, 3), {}, (2, 3, 7, 6)),
    (
        nn.ConvReLUMaxPool2d, {"pool_size": (3, 2)}, sequence(torch.nn.ReLU(), torch.nn.MaxPool2d((3, 2))),
        (2, 4, 3), {"padding": "same", "padding_mode": "reflect", "groups": 2, "bias": False}, (2, 2, 7, 6),
    ),
    (
        nn.ConvReLUAvgPool2d, {"pool_size": 3}, sequence(torch.nn.ReLU(), torch.nn.AvgPool2d(3)),
        (3, 4, 3, 1, 1), {"padding_mode": "circular"}, (3, 7, 6),
    ),
    (nn.ConvAct2d, {}, sequence(torch.nn.ReLU()), (3, 4, 3), {}, (2, 3, 5, 6)),
    (nn.ConvAct2d, {"activation": None}, sequence(), (3, 4, 3), {"stride": 2}, (3, 5, 6)),
    (
        nn.ConvAct2d, {"activation": ("leaky_relu", 0.2)}, sequence(torch.nn.LeakyReLU(0.2)),
        (3, 4, (2, 3)), {"padding": 1, "padding_mode": "replicate", "bias": False}, (2, 3, 5, 6),
    ),
    (nn.ConvBatchNorm2d, {}, sequence(torch.nn.BatchNorm2d(4)), (3, 4, 3), {"bias": False}, (2, 3, 5, 6)),
    (
        nn.ConvBatchNorm2d, {"momentum": None, "eps": 1e-3, "activation": "gelu"},
        sequence(torch.nn.BatchNorm2d(4, 1e-3, None), torch.nn.GELU()), (3, 4, 3), {"padding": 1}, (2, 3, 5, 6),
    ),
    (
        nn.ConvBatchNorm2d, {"affine": False, "track_running_stats": False, "activation": ("clamp", -0.5, 1)},
        sequence(torch.nn.BatchNorm2d(4, affine=False, track_running_stats=False), torch.nn.Hardtanh(-0.5, 1)),
        (3, 4, 3), {}, (2, 3, 5, 6),
    ),
    (
        nn.LinearAct, {"activation": "gelu_tanh"},
        lambda *args, **options: torch.nn.Sequential(torch.nn.Linear(*args, **options), torch.nn.GELU("tanh")),
        (6, 4), {"bias": False}, (2, 3, 6),
    ),
]  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize(
    ("ours", "own", "theirs", "args", "options", "shape"), SEVERAL, ids=[f"{m[0].__name__}-{m[1]}" for m in SEVERAL]
)
def test_several_layers(ours, own, theirs, args, options, shape, device):
    """As PyTorch's layers one after the other: weights, results, gradients and buffers, in both modes; and copies."""
    modules = []
    for make in (lambda: ours(*args, **own, **options), lambda: theirs(*args, **options)):
        torch.manual_seed(3)
        modules.append(make().double().to(device))
    mine, right = modules
    names = [name if ours is nn.ConvBatchNorm2d else name.removeprefix("0.") for name in right.state_dict()]
    assert list(mine.state_dict()) == names
    for mode in (True, True, False):
        mine.train(mode), right.train(mode)
        x = torch.randn(shape, dtype=torch.float64, device=device)
        with kernels_only():
            got = run(mine, x, False)
        torch.testing.assert_close(got, run(right, x, False), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(list(mine.state_dict().values()), list(right.state_dict().values()))
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(copied(x), mine(x))
    assert all(f"{name}={value!r}" in repr(mine) for name, value in own.items() if name in ("pool_size", "activation"))


def test_residual(device):
    for layer, shape in ((nn.ConvAct2d(3, 3, 3, padding=1, activation="silu"), (2, 3, 4, 5)),
                         (nn.LinearAct(6, 6, activation="silu"), (2, 6))):  # fmt: skip
        layer = layer.to(device).double()
        x = torch.randn(shape, dtype=torch.float64, device=device)
        with kernels_only():
            y = layer(x, x)
        layer.activation = None
        torch.testing.assert_close(y, torch.nn.functional.silu(layer(x) + x))


@pytest.mark.parametrize("make", [
    lambda act: nn.ConvAct2d(1, 1, 1, activation=act), lambda act: nn.LinearAct(1, 1, activation=act),
    lambda act: nn.ConvBatchNorm2d(1, 1, 1, activation=act),
])  # fmt: skip
def test_bad_activation(make):
    with pytest.raises(ValueError, match="activation must be one of"):
        make("swish")
    with pytest.raises(TypeError, match="must be a number"):
        make(("leaky_relu", "0.1"))


def test_bad_pool_size():
    with pytest.raises(RuntimeError, match="pool_size must be at least 1"):
        nn.ConvReLUMaxPool2d(1, 1, 1, pool_size=0)


def test_layers_of_a_norm(device):
    """They may be hooked, frozen and replaced, as in a Sequential."""
    layer = nn.ConvBatchNorm2d(1, 2, 3, activation="relu").to(device).double()
    plain = torch.nn.Sequential(*copy.deepcopy(layer), torch.nn.ReLU())
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64, device=device)
    seen = []
    handle = layer[1].register_forward_hook(lambda module, given, y: seen.append(y))
    torch.testing.assert_close(layer(x), plain(x))
    assert len(seen) == 1
    handle.remove()
    for model in (layer, plain):
        model[1].eval()
    torch.testing.assert_close(layer(x), plain(x))
    for model in (layer, plain):
        setattr(model, "1", torch.nn.InstanceNorm2d(2))
    torch.testing.assert_close(layer(x), plain(x))


def test_device_and_dtype():
    layer = nn.Conv2d(2, 3, 3, device="meta", dtype=torch.bfloat16)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.bfloat16


def test_return_indices(device):
    x = torch.randn(2, 3, 6, 6, device=device)
    y, at = nn.MaxPool2d(2, return_indices=True)(x)
    right, places = torch.nn.MaxPool2d(2, return_indices=True)(x)
    assert torch.equal(y, right)
    assert torch.equal(at, places)


@pytest.mark.parametrize("dims", [1, 2])
def test_unpool(dims, device):
    """What a pooling kept, back at its place, in the size that it came from."""
    x = torch.randn((2, 3, 7, 9)[: dims + 2], device=device)
    made = {"kernel_size": 3, "stride": 2, "padding": 1}
    results = []
    for kind in (nn, torch.nn):
        y, at = getattr(kind, f"MaxPool{dims}d")(**made, return_indices=True)(x)
        unpool = getattr(kind, f"MaxUnpool{dims}d")(**made)
        results.append((unpool(y, at), unpool(y, at, output_size=x.shape)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_transposed_output_size(device):
    """The sizes that a strided convolution may come from."""
    x = torch.randn(2, 3, 4, 5, device=device)
    mine, right = pair(nn.ConvTranspose2d, torch.nn.ConvTranspose2d, (3, 2, 3), {"stride": 3})
    for size in ((12, 15), (2, 2, 14, 17)):
        y = mine.to(device)(x.double(), output_size=size)
        torch.testing.assert_close(y, right.to(device)(x.double(), output_size=size))
    with pytest.raises(ValueError, match="output size"):
        mine(x.double(), output_size=(15, 18))


LAZY = {
    "LazyConv2d": ((5, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 3, 6, 7)),
    "LazyConvReLU2d": ((5, 3), {}, (2, 3, 6, 7)),
    "LazyConv1d": ((5, 3), {"bias": False}, (2, 3, 7)),
    "LazyConvTranspose2d": ((5, 3), {"stride": 2}, (2, 3, 4, 5)),
    "LazyConvTranspose1d": ((5, 3), {}, (2, 3, 5)),
    "LazyLinear": ((5,), {}, (2, 3)),
    "LazyLinearReLU": ((5,), {"bias": False}, (2, 3)),
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy(name, device):
    """The first call, which still runs a lazy module's method, runs a kernel; then the module is an ordinary one."""
    args, options, shape = LAZY[name]
    module = getattr(nn, name)(*args, **options).to(device)
    assert isinstance(module, getattr(torch.nn, name.replace("ReLU", "")))
    assert inspect.signature(type(module)) == inspect.signature(getattr(torch.nn, name.replace("ReLU", "")))
    x = torch.randn(shape, device=device)
    with kernels_only():
        first = module(x)
    assert type(module) is getattr(nn, name.removeprefix("Lazy"))
    assert module.weight.shape[0 if "Transpose" in name else 1] == 3
    assert torch.equal(module(x), first)


def network(kind):
    relu = [] if kind is nn else [torch.nn.ReLU()]
    return torch.nn.Sequential(
        (nn.ConvReLU2d if kind is nn else torch.nn.Conv2d)(1, 4, 3, padding=1),
        *relu,
        kind.MaxPool2d(2),
        (nn.ConvReLU2d if kind is nn else torch.nn.Conv2d)(4, 6, 3),
        *relu,
        kind.AvgPool2d(2),
        torch.nn.Flatten(),
        kind.Linear(6, 3),
    )


def test_training_step(device):
    """A few steps of SGD lead to PyTorch's weights."""
    trained = []
    for kind in (nn, torch.nn):
        torch.manual_seed(0)
        model = network(kind).to(device, torch.float64, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(8, 1, 8, 8, dtype=torch.float64).to(device)
        target = torch.arange(8, device=device) % 3
        for _ in range(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        trained.append([p.detach() for p in model.parameters()])
    for mine, right in zip(*trained, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


def test_compiles_without_a_break(device):
    """torch.compile traces the modules, forward and backward, as one graph."""
    model = network(nn).to(device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 1, 8, 8, device=device)
    before = cnn_triton.launches()  # no dispatch mode here: the compiler does not trace under one
    y = compiled(x)
    grads = torch.autograd.grad(y.sum(), list(model.parameters()))
    after = cnn_triton.launches()
    for name in ("conv2d", "conv2d_weight_grad", "max_pool2d_input_grad", "avg_pool2d", "linear"):
        assert after.get(name, 0) > before.get(name, 0), f"no kernel of {name} ran"
    assert_accurate(y, model(x), model(x).double())
    for mine, right in zip(grads, torch.autograd.grad(model(x).sum(), list(model.parameters())), strict=True):
        assert torch.equal(mine, right)

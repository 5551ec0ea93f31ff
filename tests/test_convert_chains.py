"""Layers that become one kernel: activations, normalisations and pools after products; when they don't."""

import ast
import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import cnn_triton
from checks import kernels_only
from cnn_triton.kernels.base.precision import ERROR_EPS, ERROR_RATIO
from cnn_triton.kernels.matrix import activations
from converting import agree, image, patterns, ran, settle, stages


@pytest.mark.parametrize("word", [word for word, row in activations.ACTIVATIONS.items() if row.saves == "output"])
def test_what_pytorch_saves(word):
    """The table says so where PyTorch keeps the input of an activation for which our kernels keep the output: the
    output may be changed in place then."""
    row = activations.ACTIVATIONS[word]
    y = row.reference(torch.randn(8, requires_grad=True), *row.numbers.usual)
    y.mul_(1)
    if row.torch_saves == "input":
        y.sum().backward()
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_fusion_names_no_activation():
    """What it does with an activation is in the table's rows; ReLU alone has kernels with pools."""
    for path in (Path(cnn_triton.__file__).parent / "fusion").glob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & set(activations.words()) - {"relu"}, path


class Reader(torch.nn.Module):
    """The convolution's output has a second reader."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return self.relu(y) + y


def test_a_second_reader(device):
    model = Reader().to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    agree(model, twin, image(device))
    assert patterns(report) == {"conv2d": 1}
    assert "  relu is left: something else also reads its input: 1 (conv)" in str(report).splitlines()


class Adds(torch.nn.Module):
    """Changes its input in place, as the caller then sees."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x):
        x += 1
        return F.relu(self.conv(x))


def test_changes_in_place(device):
    model = Adds().to(device).double()
    report = cnn_triton.convert(model)
    x = image(device)
    before = x.clone()
    model(x)
    assert torch.equal(x, before + 1)
    assert patterns(report) == {"conv2d + relu": 1}


@pytest.mark.cover
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_chains_compile(training, device):
    """One graph; another one where a number of an activation changes."""
    model, twin = stages(device)
    model.train(training), twin.train(training)
    cnn_triton.convert(model)
    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    for slope in (0.2, 0.3, 0.4, -0.1):
        model[5].negative_slope = twin[5].negative_slope = slope
        x = image(device)
        torch.testing.assert_close(call(x), twin(x))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d(2), torch.nn.AvgPool2d((2, 3), count_include_pad=False)], ids=str)
def test_chains(pool, device):
    model, twin = stages(device, pool)
    report = cnn_triton.convert(model)
    x = image(device)
    agree(model, twin, x)
    word = "max_pool2d" if isinstance(pool, torch.nn.MaxPool2d) else "avg_pool2d"
    assert patterns(report) == {
        "conv2d + batch_norm + relu": 1, f"conv2d + batch_norm + relu + {word}": 1, "conv2d + leaky_relu": 1,
        "linear + hardtanh": 1,
    }  # fmt: skip
    assert ran(model.eval(), x) == {"conv2d_pool": 1, "conv2d": 1, "linear": 1}
    launches = ran(model.train(), x)
    assert launches.pop("conv2d_moments") >= 1  # how often the moments are joined depends on the chip
    assert launches == {"batch_norm": 1, word: 1, "conv2d": 1, "linear": 1}
    cnn_triton.revert(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    assert torch.equal(model(x), twin.train()(x))


ACTIVATIONS = [
    torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.LeakyReLU(0.1), torch.nn.Hardtanh(-0.4, 0.6), torch.nn.GELU(),
    torch.nn.GELU("tanh"), torch.nn.SiLU(), torch.nn.Sigmoid(), torch.nn.Tanh(), torch.nn.Hardswish(),
    torch.nn.Hardsigmoid(), torch.nn.Mish(), torch.nn.ELU(0.7), torch.nn.SELU(), torch.nn.Softplus(2.0, 3.0),
    torch.nn.Softsign(), torch.nn.LogSigmoid(), torch.nn.PReLU(init=0.3),
]  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_activations(act, device):
    """After a convolution, after its normalisation, and after a linear layer."""
    layers = [torch.nn.Conv2d(1, 4, 3), act, torch.nn.Conv2d(4, 3, 3), torch.nn.BatchNorm2d(3), act, torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(48, 3), act).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    agree(model, twin, image(device))
    with torch.no_grad():
        model.eval()(image(device))
    found = patterns(report)
    assert len(found) >= 3
    assert sum(count for pattern, count in found.items() if len(pattern.split(" + ")) > 1) >= 3
    assert ran(model.eval(), image(device)) == {"conv2d": 2, "linear": 1}


NORMS = [
    {}, {"momentum": None}, {"momentum": 0.3, "eps": 1e-2}, {"affine": False}, {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]  # fmt: skip


@pytest.mark.parametrize("options", NORMS, ids=str)
def test_norms(options, device):
    """After some steps of training weights and buffers are the original's; then with the normalisation frozen, too."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4, **options), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
    )
    model = model.to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]
    for step in range(5):
        x = image(device)
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            each[1].train(step < 3)
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **close)
    assert model.state_dict().keys() == twin.state_dict().keys()
    agree(model, twin, image(device))
    model.load_state_dict(twin.state_dict(), strict=True)
    pooled = [] if "track_running_stats" in options else ["conv2d + batch_norm + relu + max_pool2d"]
    broken = ["conv2d"] if options.get("momentum", 1) is None else []  # it asks a tensor for its value, in training
    whole = ["conv2d + batch_norm + relu"] if not broken else []
    assert sorted(patterns(report)) == [*broken, *whole, *pooled]


def test_norms_that_refuse(device):
    """What PyTorch's normalisation refuses: one value per channel in training; images without a batch."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).to(device).double()
    cnn_triton.convert(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(image(device, 3)[:1])
    for mode in (True, False):
        with pytest.raises(ValueError, match="expected 4D input"):
            model.train(mode)(image(device)[0])


class VGG16(torch.nn.Module):
    """VGG-16 with few channels, of torch.nn's layers."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width, depth in ((2, 2), (3, 2), (4, 3), (4, 3), (5, 3)):
            for _ in range(depth):
                layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
                channels = width
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(inplace=True), torch.nn.Linear(6, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def run(model, x):
    """Logits, and every parameter's gradient of the loss."""
    logits = model(x)
    loss = F.cross_entropy(logits, torch.arange(len(x), device=x.device))
    return [logits, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.cover
def test_vgg16(device):
    """Every ReLU, and every pool, is in a convolution's kernel."""
    model = settle(VGG16()).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=device)
    assert ran(model, x) == {"conv2d": 8, "conv2d_pool": 5, "linear": 2}
    assert patterns(report) == {
        "conv2d + relu": 8, "conv2d + relu + max_pool2d": 5, "linear + relu": 1, "linear": 1
    }  # fmt: skip
    assert not report.captures.apart
    with kernels_only("conv2d", "conv2d_pool", "linear"):
        ours = run(model, x)
    assert all(each.any() for each in ours)
    for a, b in zip(ours, run(twin, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Between(torch.nn.Module):
    """Changes the convolution's input before the activation follows."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        x = F.relu(x, inplace=True)
        return self.act(y) + x


def test_input_changes_in_place(device):
    """The convolution reads what it read before."""
    model, x = Between().to(device).double(), image(device)
    with torch.no_grad():
        right = model(x.clone())
        report = cnn_triton.convert(model)
        torch.testing.assert_close(model(x.clone()), right)
    assert patterns(report) == {"conv2d": 1}


def test_running_statistics(device):
    """An empty batch leaves them alone; their change is none that autograd counts, as PyTorch's is none."""
    model, twin = (
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU()) for _ in "ab"
    )
    twin.load_state_dict(model.state_dict())
    cnn_triton.convert(model)
    for each in (model, twin):
        each.to(device)
        y = each.eval()(image(device).float())
        each.train()(image(device).float())
        y.sum().backward()
    kept = model[1].running_mean.clone()
    model(torch.randn(0, 1, 5, 5, device=device))
    assert torch.equal(model[1].running_mean, kept)
    assert model[1].num_batches_tracked == 2
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 3, 5, 5, device=device))
    assert model[1].num_batches_tracked == 2


def test_wide_gradients(device):
    """Of float16 convolutions with a float32 normalisation after them: no overflow where the scale is small."""
    norm = torch.nn.BatchNorm2d(4)
    norm.running_var.fill_(400)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), norm, torch.nn.ReLU()).eval().to(device)
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    x, grads = torch.rand(2, 4, 16, 16, device=device) * 10, []
    for each, dtype in ((model, torch.float16), (twin, torch.float16), (copy.deepcopy(twin).double(), None)):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            y = each(x if dtype else x.double())
        grads.append(torch.autograd.grad(y, list(each.parameters()), torch.full_like(y, 30)))
    for mine, theirs, exact in zip(*grads, strict=True):
        # Both have float16's errors, in float32 tensors.
        error = (mine - exact).abs().max()
        assert error <= ERROR_RATIO * (theirs - exact).abs().max() + ERROR_EPS * 2.0**-10 * exact.abs().max()

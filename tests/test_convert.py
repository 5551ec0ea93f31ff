"""convert and revert: the same results, state and behaviour; nothing that can't be vouched for is fused, or lost."""

import copy
import io
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint

import cnn_triton
from checks import assert_accurate, kernels_only
from clients import LARGE, SMALL, resnet, tensor
from cnn_triton import nn
from cnn_triton.kernels.precision import ERROR_EPS, ERROR_RATIO, PRECISION

SWITCH = [1]


class Net(torch.nn.Module):
    """What a model may have: one ReLU in several places, functions, a branch on an attribute, dropout, a residual."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.conv2, self.bn2 = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv3, self.fc, self.fc2 = torch.nn.Conv2d(4, 6, 1), torch.nn.Linear(24, 5), torch.nn.Linear(5, 3)
        self.p, self.down = 0.0, None

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        y = F.relu(self.conv3(self.relu(y)))
        y = F.max_pool2d(y, 2)
        if self.down is not None:
            y = self.down(y)
        y = F.dropout(y, self.p, training=self.training)
        y = F.adaptive_avg_pool2d(y, 2)
        return self.fc2(F.relu(self.fc(torch.flatten(y, 1))))


def settle(model):
    """Statistics and scales of batch normalisations as after some training, not as they start."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, torch.nn.Conv2d):  # signals that keep their size through the layers
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def net(device):
    """A model and its twin, float64."""
    model = settle(Net()).to(device, torch.float64)
    return model, copy.deepcopy(model)


def image(device, size=8):
    return torch.randn(2, 1, size, size, dtype=torch.float64, device=device)


def outcome(report, name):
    return next((layer.outcome, layer.why) for layer in report.layers if layer.name == name)


def agree(ours, theirs, x):
    """Results, gradients and buffers, in both modes."""
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((a, ours), (b, theirs))]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


def fused_classes(model):
    return [module for module in model.modules() if "_original" in vars(type(module))]


# Models of others


def run(model, x):
    """Logits, and every parameter's gradient of the loss."""
    logits = tensor(model(x))
    loss = F.cross_entropy(logits, torch.arange(len(x), device=x.device))
    return [logits, *torch.autograd.grad(loss, list(model.parameters()))]


def errors(values, exact):
    """The logits' largest error, the largest of the gradients' relative errors, and that of all gradients as one
    vector; each relative to the exact values' largest. (Of a hundred small tensors' errors, each a few roundings deep
    in the network, some are large by luck alone.)"""
    every = [(v.double() - e, e.abs().max()) for v, e in zip(values, exact, strict=True)]
    assert all(error.isfinite().all() for error, _ in every)
    (logits, scale), *grads = every
    largest = max(scale for _, scale in grads)
    # A bias before a normalisation has the gradient 0, and rounding errors.
    relative = max(error.abs().max() / scale for error, scale in grads if scale > 1e-9 * largest)
    return logits.abs().max() / scale, relative, sum(error.square().sum() for error, _ in grads).sqrt() / largest


def assert_close_to_exact(draws):
    """Over draws of (ours, the original's, exact values): our errors are at most ERROR_RATIO times the original's."""
    mine, theirs = (
        torch.tensor([errors(draw[i], draw[2]) for draw in draws]).sum(0) for i in (0, 1)
    )  # fmt: skip
    epsilon = len(draws) * ERROR_EPS * PRECISION[draws[0][0][0].dtype].eps
    assert (mine <= ERROR_RATIO * theirs + epsilon).all(), f"logits, gradients, as one: {mine}, PyTorch's {theirs}"


CLIENTS = [
    *(pytest.param(build, marks=() if build is resnet else pytest.mark.cover) for build in SMALL), *LARGE
]  # fmt: skip


@pytest.mark.parametrize("build", CLIENTS, ids=lambda build: build.__name__)
def test_client(build, device):
    """Converted: logits and gradients in train and eval mode; its state loads into the original; reverted: the same
    bits."""
    model, size = build()
    settle(model).to(device)
    original, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    kinds = [type(module) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    report = cnn_triton.convert(model)
    assert report.count("swapped") + report.count("fused") > 5
    convs = {name for name, module in original.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert convs <= {layer.name for layer in report.layers if layer.outcome != "left"}
    # In training, normalisations by the statistics of four images multiply rounding errors: draws even luck out.
    for mode, count in ((False, 1), (True, 3)):
        for each in (model, original, wide):
            each.train(mode)
            for module in each.modules():  # what is dropped would not be the same in all three
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        before, draws = cnn_triton.launches(), []
        for _ in range(count):
            x = torch.randn(4, 3, size, size, device=device)
            draws.append((run(model, x), run(original, x), run(wide, x.double())))
        launched = {name: count - before.get(name, 0) for name, count in cnn_triton.launches().items()}
        for names in (
            ("conv2d", "conv2d_saving", "conv2d_moments", "conv2d_pool"),
            ("conv2d_weight_grad", "conv2d_pool_grad"),
        ):
            assert sum(launched.get(name, 0) for name in names) >= count * len(convs)
        assert_close_to_exact(draws)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    original.load_state_dict(torch.load(file), strict=True)
    model.load_state_dict(state, strict=True)
    cnn_triton.revert(model)
    original.load_state_dict(state, strict=True)
    assert [type(module) for module in model.modules()] == kinds
    model.eval(), original.eval()
    assert torch.equal(tensor(model(x)), tensor(original(x)))


# One by one


def test_results_and_report(device):
    model, twin = net(device)
    report = cnn_triton.convert(model)
    assert outcome(report, "conv1") == ("fused", "with bn1 and relu")
    assert outcome(report, "bn2") == ("fused", "into conv2")
    assert outcome(report, "conv3") == ("fused", "with a relu and a max_pool2d")
    assert outcome(report, "fc") == ("fused", "with a relu")
    assert outcome(report, "fc2") == ("swapped", "")
    assert outcome(report, "(model)") == ("swapped", "its calls of adaptive_avg_pool2d")
    assert str(report).splitlines()[0].split() == ["name", "kind", "outcome", "why"]
    assert str(report).splitlines()[-1] == "2 swapped, 7 fused, 0 left"
    agree(model, twin, image(device))


def test_fused_is_one_kernel(device):
    """In eval mode the normalisation and ReLU are in the convolution's kernel; in training its kernel sums the
    statistics, and a second one normalises."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).to(device)
    cnn_triton.convert(model.double())
    with kernels_only("conv2d"), torch.no_grad():  # no aten ReLU either
        model.eval()(image(device))
    with kernels_only("conv2d_moments", "batch_norm"), torch.no_grad():
        model.train()(image(device))


def test_state_and_identity(device):
    """Parameters, their names, ties, requires_grad, modes, hooks and modules themselves stay; so does state_dict."""
    model, twin = net(device)
    model.fc2.weight.requires_grad_(False)
    model.tied = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False, device=device, dtype=torch.float64)
    model.tied.weight = model.conv2.weight
    model.bn1.eval()
    seen = []
    model.conv3.register_forward_hook(lambda *args: seen.append("conv3"))
    before = [(name, id(module), module.training) for name, module in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)]
    attributes = [set(vars(module)) for module in model.modules()]
    report = cnn_triton.convert(model)
    assert outcome(report, "conv3") == ("swapped", "not fused with a relu: one of them has a hook")
    assert [(name, id(module), module.training) for name, module in model.named_modules()] == before
    assert [(n, id(p), p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)] == parameters
    assert model.tied.weight is model.conv2.weight
    x = image(device)
    model(x)
    assert seen == ["conv3"]
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "tied" not in k}, strict=True)
    cnn_triton.revert(model)
    assert all(type(module).__module__ == "torch.nn.modules." + type(module).__module__.split(".")[-1]
               for module in model.children())  # fmt: skip
    assert type(model) is Net
    assert [set(vars(module)) for module in model.modules()] == attributes
    model.bn1.train(), twin.train()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "tied" not in k}, strict=True)
    assert torch.equal(model(x), twin(x))


@pytest.mark.cover
@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "conv3", "fc"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_after_conversion(name, kind, device):
    """Each sees what it would see in the original."""
    seen = []
    models = net(device)
    cnn_triton.convert(models[0])
    x = image(device)
    for model in models:
        model.eval()
        if kind == "full_backward":
            model.relu.inplace = False  # PyTorch's own condition
        found = []

        def hook(module, *given, found=found):
            tensors = [t for each in given for t in (each if isinstance(each, tuple) else (each,)) if t is not None]
            found.append([t.detach().clone() for t in tensors])

        getattr(model.get_submodule(name), f"register_{kind}_hook")(hook)
        model(x).square().sum().backward()
        seen.append(found)
    assert seen[0]
    torch.testing.assert_close(*seen)


def test_attributes_that_change(device):
    """What a trace relies on is compared at every call."""
    model, twin = net(device)
    cnn_triton.convert(model)
    x = image(device)
    for each in (model, twin):
        each.down = torch.nn.AvgPool2d(2)
    agree(model, twin, x)
    for each in (model, twin):
        each.down = None
        each.p = 1.0
    agree(model, twin, x)
    for each in (model, twin):
        each.p = 0.0
        each.relu = torch.nn.Identity()
        each.bn2 = torch.nn.Identity()
    agree(model, twin, x)


def test_a_longer_sequential(device):
    """Layers that are appended, inserted or replaced later run."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    for each in (model, twin):
        each.append(torch.nn.Softmax(1))
        each[1] = torch.nn.Sigmoid()
    agree(model, twin, image(device))


class Reads(torch.nn.Module):
    """A convolution and a ReLU, whose forward does something that a trace can't repeat."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls, self.scales = torch.nn.Conv2d(1, 2, 3), 0, [1.0]
        self.kept = None

    def act(self, y):
        return F.relu(y)


class Counts(Reads):
    """Sets an attribute."""

    def forward(self, x):
        self.calls += 1
        return self.act(self.conv(x)) * self.calls


class Keeps(Reads):
    """Keeps its features."""

    def forward(self, x):
        self.kept = self.conv(x)
        return self.act(self.kept)


class Scales(Reads):
    """Reads a list."""

    def forward(self, x):
        return self.act(self.conv(x)) * self.scales[0]


class Global(Reads):
    """Reads a global list."""

    def forward(self, x):
        return self.act(self.conv(x)) * SWITCH[0]


class Random(Reads):
    """Draws a number."""

    def forward(self, x):
        return self.act(self.conv(x)) * random.random()


class Noise(Reads):
    """Draws a tensor."""

    def forward(self, x):
        return self.act(self.conv(x)) + torch.rand(1).item()


class Typed(Reads):
    """Asks for its input's type."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if isinstance(y, torch.Tensor) else y


class Prints(Reads):
    """Has an effect."""

    def forward(self, x):
        print("called")
        return self.act(self.conv(x))


class Branches(Reads):
    """Branches on values."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if y.sum() > 0 else y


class Optional(Reads):
    """Takes an argument that a caller may leave out."""

    def forward(self, x, more=None):
        y = self.act(self.conv(x))
        return y if more is None else y + more


class NoGrad(Reads):
    """Asks how it is called."""

    def forward(self, x):
        y = self.conv(x)
        return self.act(y) if torch.is_grad_enabled() else y


class Nested(Reads):
    """Does it in a function that it calls."""

    def forward(self, x):
        return self.scale(self.conv(x))

    def scale(self, y):
        return self.act(y) * SWITCH[0]


class Computed(Reads):
    """Reads a property."""

    @property
    def scale(self):
        return SWITCH[0]

    def forward(self, x):
        return self.act(self.conv(x)) * self.scale


class Doubled(torch.nn.Conv2d):
    """A layer that is called in its own way."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Called(Reads):
    """Has such a layer."""

    def __init__(self):
        super().__init__()
        self.doubled = Doubled(1, 2, 3)

    def forward(self, x):
        return self.act(self.conv(x)) + self.doubled(x)


class Contexts(Reads):
    """Switches something."""

    def forward(self, x):
        with torch.no_grad():
            return self.act(self.conv(x))


class Checkpoints(Reads):
    """Keeps less than a trace would."""

    def forward(self, x):
        return self.act(checkpoint(self.conv, x, use_reentrant=False))


REFUSED = {
    Computed: "it reads self.scale, which is computed", Called: "doubled has a __call__ of its own",
    Contexts: "it calls", Checkpoints: "it calls",
    Counts: "it sets self.calls", Keeps: "it sets self.kept", Scales: "it reads self.scales, a list",
    Global: "it reads SWITCH, a global variable", Random: "it calls random", Noise: "it calls rand of nothing",
    Typed: "it asks for the type of its input", Prints: "it calls print", Branches: "control flow",
    Optional: "its forward takes more, which a caller may leave out", NoGrad: "is_grad_enabled",
    Nested: "it reads SWITCH, a global variable",
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_a_trace_cannot_repeat(kind, device, capsys):
    """It is left as it is, and said; its layer is swapped all the same."""
    model = kind().to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    assert capsys.readouterr().out == ""
    assert outcome(report, "conv") == ("swapped", "")
    how, why = outcome(report, "(model)")
    assert how == "left"
    assert REFUSED[kind] in why
    assert type(model) is kind
    assert set(vars(model)) == set(vars(twin))
    assert model.calls == 0
    x = image(device)
    for each in (model, twin):
        random.seed(3)
        torch.manual_seed(3)
        each.result = each(x)
    torch.testing.assert_close(model.result, twin.result)


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
    assert outcome(report, "conv") == ("swapped", "not fused with relu: something else reads its output too")
    agree(model, twin, image(device))


class Flags(Reads):
    """Reads a constant of its class."""

    SCALE = 2.0

    def forward(self, x):
        return self.act(self.conv(x)) * self.SCALE


def test_constants_of_a_class(device, monkeypatch):
    model = Flags().to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    assert fused_classes(model) == [model]
    agree(model, twin, image(device))
    monkeypatch.setattr(Flags, "SCALE", 3.0)
    agree(model, twin, image(device))


def test_hooks_of_all_modules(device):
    """A hook on every module that there is sees what it would see in the original."""
    seen = []
    models = net(device)
    cnn_triton.convert(models[0])
    x = image(device)
    for model in models:
        found = []
        handle = register_module_forward_hook(lambda module, x, y, found=found: found.append(y.detach().clone()))
        try:
            model.eval()(x)
        finally:
            handle.remove()
        seen.append(found)
    assert len(seen[0]) == len(seen[1])
    torch.testing.assert_close(*seen)


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
    cnn_triton.convert(model)
    assert fused_classes(model) == [model]
    x = image(device)
    before = x.clone()
    model(x)
    assert torch.equal(x, before + 1)


def test_layers_that_are_not_swapped(device):
    class Standardised(torch.nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = torch.nn.ModuleDict({
        "subclass": Standardised(1, 2, 3), "replaced": torch.nn.Conv2d(1, 2, 3), "complex": torch.nn.Conv2d(1, 2, 3),
        "norm": torch.nn.LayerNorm(3), "attention": torch.nn.MultiheadAttention(4, 2), "ours": nn.Conv2d(1, 2, 3),
    }).to(device)  # fmt: skip
    model["replaced"].forward = lambda x: x
    model["complex"].to(torch.complex64)
    report = cnn_triton.convert(model)
    assert outcome(report, "subclass") == (
        "left", "Standardised is a subclass of Conv2d, whose forward may do something else"
    )  # fmt: skip
    assert outcome(report, "replaced") == ("left", "its forward was replaced")
    assert outcome(report, "complex") == ("left", "no kernel takes torch.complex64")
    assert outcome(report, "norm") == ("left", "no kernel of this library's")
    assert outcome(report, "attention.out_proj")[0] == "left"
    assert outcome(report, "ours") == ("swapped", "already was this library's")
    cnn_triton.revert(model)
    assert type(model["ours"]) is nn.Conv2d
    assert type(model["complex"]) is torch.nn.Conv2d


class Twice(nn.Conv2d):
    """A subclass of ours that does more."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_of_ours_is_not_fused(device):
    model = torch.nn.Sequential(
        Twice(1, 3, 3), torch.nn.ReLU(), nn.ConvReLU2d(3, 2, 1), torch.nn.ReLU(), nn.ConvAct2d(2, 2, 1)
    )
    model = model.extend([torch.nn.MaxPool2d(2), nn.ConvBatchNorm2d(2, 3, 2)]).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    assert [layer.name for layer in report.layers if layer.outcome == "fused"] == ["6.1"]
    agree(model, twin, image(device))


def test_twice_and_back(device):
    model, twin = net(device)
    first = cnn_triton.convert(model)
    assert cnn_triton.convert(model) == first
    agree(model, twin, image(device))
    for _ in range(2):
        cnn_triton.revert(model)
    assert [type(a) for a in model.modules()] == [type(b) for b in twin.modules()]


def test_copies(device):
    """Deep copies and pickles are converted, too, and can be reverted."""
    model, twin = net(device)
    cnn_triton.convert(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(fused_classes(copied)) == 1
        agree(copied, copy.deepcopy(twin), image(device))
        cnn_triton.revert(copied)
        assert type(copied) is Net
        assert torch.equal(copied.eval()(x := image(device)), copy.deepcopy(copied)(x))


@pytest.mark.cover
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles(training, device):
    """One graph, and no second one for another batch."""
    model, twin = net(device)
    model.train(training), twin.train(training)
    cnn_triton.convert(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for batch in (11, 3, 5):
        x = torch.randn(batch, 1, 8, 8, dtype=torch.float64, device=device)
        torch.testing.assert_close(call(x), twin(x))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3  # the first call may take two, by what the compiler finds out about floats


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


def test_exports(device):
    model, twin = net(device)
    cnn_triton.convert(model.eval())
    x = image(device)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, device=device)
    torch.testing.assert_close(exported.module()(x), twin.eval()(x))


def test_autocast(device):
    """The folded normalisation keeps its precision: it is computed before the cast."""
    model, twin = (m.float() for m in net(device))
    cnn_triton.convert(model.eval())
    x = image(device).float()
    exact = copy.deepcopy(twin).double().eval()(x.double())
    with torch.autocast(device.type, torch.bfloat16):
        ours, theirs = model(x), twin.eval()(x)
    assert ours.dtype == theirs.dtype
    assert_accurate(ours, theirs, exact)


def test_parametrized(device):
    """Conversion and parametrization in either order; each can be undone."""
    x = image(device)
    for first in (True, False):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU()).to(device).double()
        if first:
            parametrizations.weight_norm(model[0])
            twin = copy.deepcopy(model)
        cnn_triton.convert(model)
        if not first:
            parametrizations.weight_norm(model[0])
            twin = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU()).to(device).double()
            parametrizations.weight_norm(twin[0])
            twin.load_state_dict(model.state_dict())
        with kernels_only("conv2d"):
            y = model(x)
        torch.testing.assert_close(y, twin(x))
        agree(model, twin, x)
        cnn_triton.revert(model)
        assert torch.equal(model(x), twin(x))
        remove_parametrizations(model[0], "weight")
        assert type(model[0]) is torch.nn.Conv2d


def test_lazy(device):
    model = torch.nn.Sequential(torch.nn.LazyConv2d(3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    cnn_triton.convert(model.to(device))
    x = image(device).float()
    before = cnn_triton.launches()
    model(x)
    ran = cnn_triton.launches()
    assert all(ran[name] > before.get(name, 0) for name in ("conv2d", "linear"))
    assert type(model[0]) is nn.Conv2d
    cnn_triton.revert(model)
    assert [type(m) for m in model][::3] == [torch.nn.Conv2d, torch.nn.Linear]


# Chains


def stages(device, pool=None):
    """Two convolutions with all that can follow them, and a linear layer; and their twin, float64."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), pool or torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 3, 2, bias=False), torch.nn.LeakyReLU(0.2), torch.nn.Flatten(), torch.nn.LazyLinear(3),
        torch.nn.Hardtanh(-0.5, 0.7),
    )  # fmt: skip
    model(torch.randn(2, 1, 8, 8))
    model = settle(model).to(device, torch.float64)
    return model, copy.deepcopy(model)


def ran(model, x):
    """The kernels of a forward pass, by operator."""
    before = cnn_triton.launches()
    with torch.no_grad():
        model(x)
    after = cnn_triton.launches()
    return {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("pool", [torch.nn.MaxPool2d(2), torch.nn.AvgPool2d((2, 3), count_include_pad=False)], ids=str)
def test_chains(pool, device):
    model, twin = stages(device, pool)
    report = cnn_triton.convert(model)
    assert [outcome(report, str(i)) for i in range(9)] == [
        ("fused", "with 1 and 2, and in eval mode 3"), ("fused", "into 0"), ("fused", "into 0"),
        ("fused", "into 0 in eval mode"), ("fused", "with 5"), ("fused", "into 4"),
        ("left", "no kernel of this library's"), ("fused", "with 8"), ("fused", "into 7"),
    ]  # fmt: skip
    x = image(device)
    agree(model, twin, x)
    assert ran(model.eval(), x) == {"conv2d_pool": 1, "conv2d": 1, "linear": 1}
    alone = "max_pool2d" if isinstance(pool, torch.nn.MaxPool2d) else "avg_pool2d"
    launches = ran(model.train(), x)
    assert launches.pop("conv2d_moments") >= 1  # how often the moments are joined depends on the chip
    assert launches == {"batch_norm": 1, alone: 1, "conv2d": 1, "linear": 1}
    cnn_triton.revert(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    assert torch.equal(model(x), twin.train()(x))


ACTIVATIONS = [
    torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.LeakyReLU(0.1), torch.nn.Hardtanh(-0.4, 0.6), torch.nn.GELU(),
    torch.nn.GELU("tanh"), torch.nn.SiLU(), torch.nn.Sigmoid(), torch.nn.Tanh(), torch.nn.Hardswish(),
    torch.nn.Hardsigmoid(), torch.nn.Mish(), torch.nn.ELU(0.7), torch.nn.SELU(), torch.nn.Softplus(2.0, 3.0),
    torch.nn.Softsign(), torch.nn.LogSigmoid(),
]  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_activations(act, device, monkeypatch):
    """After a convolution, after its normalisation, and after a linear layer; the modules themselves never run."""
    layers = [torch.nn.Conv2d(1, 4, 3), act, torch.nn.Conv2d(4, 3, 3), torch.nn.BatchNorm2d(3), act, torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(48, 3), act).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    assert outcome(report, "1") == ("fused", "into 0; into 2; into 6")
    agree(model, twin, image(device))
    monkeypatch.setattr(type(act), "forward", None)
    assert ran(model.eval(), image(device)) == {"conv2d": 2, "linear": 1}
    assert model.train()(image(device)).isfinite().all()


class Functions(torch.nn.Module):
    """A convolution, a function, a linear layer and the function."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.fc, self.act = torch.nn.Conv2d(1, 3, 3), torch.nn.Linear(108, 4), act
        self.slope = 0.3

    def forward(self, x):
        return self.act(self.fc(self.act(self.conv(x), self).flatten(1)), self)


FUNCTIONS = {
    "a relu": (
        lambda y, m: F.relu(y, inplace=True), lambda y, m: torch.relu(y), lambda y, m: y.relu(), lambda y, m: y.relu_(),
    ),
    "a relu6": (lambda y, m: F.relu6(y),),
    "a leaky_relu": (lambda y, m: F.leaky_relu(y), lambda y, m: F.leaky_relu(y, negative_slope=m.slope)),
    "a hardtanh": (lambda y, m: F.hardtanh(y), lambda y, m: F.hardtanh(y, -0.2, max_val=0.4)),
    "a clamp": (
        lambda y, m: torch.clamp(y, -0.3, 0.5), lambda y, m: y.clamp(max=m.slope), lambda y, m: y.clamp_(0),
    ),
    "a gelu": (lambda y, m: F.gelu(y),),
    "a gelu_tanh": (lambda y, m: F.gelu(y, approximate="tanh"),),
    "a silu": (lambda y, m: F.silu(y),),
    "a sigmoid": (lambda y, m: torch.sigmoid(y), lambda y, m: F.sigmoid(y)),
    "a tanh": (lambda y, m: y.tanh(), lambda y, m: F.tanh(y)),
}  # fmt: skip


@pytest.mark.cover
@pytest.mark.parametrize(
    ("said", "act"),
    [pytest.param(said, act, id=f"{said} {i}") for said in FUNCTIONS for i, act in enumerate(FUNCTIONS[said])],
)
def test_functions(said, act, device):
    model = Functions(act).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    assert outcome(report, "conv") == outcome(report, "fc") == ("fused", f"with {said}")
    agree(model, twin, image(device))
    model.slope = twin.slope = 0.2
    agree(model, twin, image(device))


@pytest.mark.parametrize(
    "act",
    [lambda y, m: F.leaky_relu(y, -0.5), lambda y, m: y.clamp(y.mean(), y.amax()), lambda y, m: F.relu(input=y),
     lambda y, m: F.elu(y), lambda y, m: F.hardtanh(y, 0.5, 0.5)],
)  # fmt: skip
def test_functions_that_are_not_fused(act, device):
    model = Functions(act).to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    agree(model, twin, image(device))


POOLS = {
    "its windows overlap": [torch.nn.MaxPool2d(3, 2, 1), lambda y: F.avg_pool2d(y, 2, 1), torch.nn.AvgPool2d(3, 2)],
    "its windows leave gaps": [torch.nn.MaxPool2d(2, 3), lambda y: F.max_pool2d(y, 2, stride=(2, 3))],
    "it pads": [torch.nn.MaxPool2d(2, padding=1), lambda y: F.avg_pool2d(y, 2, padding=(0, 1))],
    "its windows have holes": [torch.nn.MaxPool2d(2, dilation=2), lambda y: F.max_pool2d(y, 2, dilation=[1, 2])],
    "it keeps ragged edges": [torch.nn.MaxPool2d(2, ceil_mode=True), lambda y: F.avg_pool2d(y, 4, ceil_mode=True)],
    "it has a divisor of its own": [torch.nn.AvgPool2d(2, divisor_override=3)],
    "": [torch.nn.AvgPool2d(3), torch.nn.MaxPool2d((3, 2)), lambda y: F.max_pool2d(y, [2, 3], padding=0),
         lambda y: F.avg_pool2d(y, 2, (2, 2), (0, 0), False, False)],
}  # fmt: skip


class Pooled(torch.nn.Module):
    """A convolution, ReLU and a pool, module or function."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = torch.nn.Conv2d(1, 3, 3, padding=1), pool

    def forward(self, x):
        return self.pool(F.relu(self.conv(x)))


@pytest.mark.cover
@pytest.mark.parametrize(
    ("why", "pool"), [pytest.param(why, pool, id=f"{why} {i}") for why in POOLS for i, pool in enumerate(POOLS[why])]
)
def test_pools(why, pool, device):
    """A pool whose windows don't lie side by side is a kernel of its own, and that is said."""
    model = Pooled(pool).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    name = "pool" if isinstance(pool, torch.nn.Module) else "a max_pool2d"
    name = "an avg_pool2d" if outcome(report, "conv")[1].count("avg") else name
    expected = f"with a relu; not fused with {name}: {why}" if why else f"with a relu and {name}"
    assert outcome(report, "conv") == ("fused", expected)
    x = image(device, 9)
    with kernels_only(*(["conv2d_pool"] if not why else ["conv2d"])):
        model(x)
    agree(model, twin, x)


def test_only_relu_before_a_pool(device):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.MaxPool2d(2)).to(device).double()
    model.extend([torch.nn.Conv2d(3, 2, 1, device=device, dtype=torch.float64), torch.nn.AvgPool2d(2)])
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    assert [outcome(report, name) for name in "0234"] == [
        ("fused", "with 1"), ("swapped", ""), ("swapped", ""), ("swapped", "")
    ]  # fmt: skip
    agree(model, twin, image(device))


CHANGES = {
    "slope": lambda m: setattr(m[5], "negative_slope", 0.6),
    "negative slope": lambda m: setattr(m[5], "negative_slope", -0.6),
    "bounds": lambda m: setattr(m[8], "max_val", 0.1),
    "kernel": lambda m: setattr(m[3], "kernel_size", 1),
    "windows": lambda m: (setattr(m[3], "kernel_size", 3), setattr(m[3], "stride", 3)),
    "padding": lambda m: setattr(m[3], "padding", 1),
    "activation": lambda m: m.__setitem__(5, torch.nn.GELU("tanh")),
    "unknown activation": lambda m: m.__setitem__(5, torch.nn.ELU()),
    "activation before a pool": lambda m: m.__setitem__(2, torch.nn.SiLU()),
    "pool": lambda m: m.__setitem__(3, torch.nn.AvgPool2d(2)),
    "no pool": lambda m: m.__setitem__(3, torch.nn.MaxPool2d(2, 2, 1)),
    "norm": lambda m: m.__setitem__(1, torch.nn.InstanceNorm2d(4)),
    "forward": lambda m: setattr(m[5], "forward", torch.square),
    "eps": lambda m: setattr(m[1], "eps", 0.3),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.cover
@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_conversion(change, device):
    """Modules are read at every call."""
    model, twin = stages(device, torch.nn.MaxPool2d(2, 2))
    if change in ("kernel", "windows", "padding", "no pool"):  # other sizes
        model, twin = model[:6], twin[:6]
    cnn_triton.convert(model)
    for each in (model, twin):
        CHANGES[change](each)
    agree(model, twin, image(device))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.cover
@pytest.mark.parametrize("name", "0123458")
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_in_chains(name, kind, device):
    """A hook that came after conversion sees what it would see in the original, and its module's results are the
    same; removed, all is one kernel again."""
    models, seen = stages(device), []
    cnn_triton.convert(models[0])
    x = image(device)
    for model in models:
        found = []

        def hook(module, *given, found=found):
            tensors = [t for each in given for t in (each if isinstance(each, tuple) else (each,)) if t is not None]
            found.append([t.detach().clone() for t in tensors])

        handle = getattr(model.get_submodule(name), f"register_{kind}_hook")(hook)
        for mode in (True, False):
            model.train(mode)(x).square().sum().backward()
        handle.remove()
        seen.append(found)
    assert len(seen[0]) == 2
    torch.testing.assert_close(*seen)
    assert ran(models[0], x) == {"conv2d_pool": 1, "conv2d": 1, "linear": 1}


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
    pooled = "" if "track_running_stats" in options else ", and in eval mode 3"
    assert outcome(report, "0") == ("fused", "with 1 and 2" + pooled)
    assert outcome(report, "3")[0] == ("fused" if pooled else "swapped")
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


@pytest.mark.cover
def test_vgg16(device):
    """Every ReLU, and every pool, is in a convolution's kernel."""
    model = settle(VGG16()).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    convs = [layer.why for layer in report.layers if layer.kind == "Conv2d"]
    assert [len(why.split(" and ")) for why in convs] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2]
    assert report.count("fused") == 13 * 2 + 5 + 2
    assert report.count("left") == 0
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=device)
    assert ran(model, x) == {"conv2d": 8, "conv2d_pool": 5, "linear": 2}
    with kernels_only("conv2d", "conv2d_pool", "linear"):
        ours = run(model, x)
    assert all(each.any() for each in ours)
    for a, b in zip(ours, run(twin, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_layer_alone(device):
    layer = torch.nn.Conv2d(1, 2, 3).to(device)
    report = cnn_triton.convert(layer)
    assert [tuple(row) for row in report.layers] == [("(model)", "Conv2d", "swapped", "")]
    assert type(layer) is nn.Conv2d
    cnn_triton.revert(layer)
    assert type(layer) is torch.nn.Conv2d


@pytest.mark.parametrize("call", [cnn_triton.convert, cnn_triton.revert])
def test_bad_input(call):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got list"):
        call([torch.nn.ReLU()])


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
    """The convolution reads what it read before: it is called where it was."""
    model, x = Between().to(device).double(), image(device)
    with torch.no_grad():
        right = model(x.clone())
        assert outcome(cnn_triton.convert(model), "conv")[0] == "fused"
        torch.testing.assert_close(model(x.clone()), right)


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

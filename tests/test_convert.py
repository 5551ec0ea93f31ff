"""convert and revert: the same results, state and behaviour, whatever a model does, and whoever else follows it."""

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
from cnn_triton import nn
from cnn_triton.kernels.base.precision import ERROR_EPS, ERROR_RATIO

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


def patterns(report):
    """What was captured of a model, and that something was."""
    assert report.captures.graphs > 0, str(report)
    return dict(report.captures.patterns)


def agree(ours, theirs, x):
    """Results, gradients and buffers, in both modes."""
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((a, ours), (b, theirs))]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


def test_results_and_report(device):
    model, twin = net(device)
    report = cnn_triton.convert(model)
    assert str(report).splitlines() == [
        "5 layers swapped: Conv2d 3, Linear 2",
        "what is fused is known after the first call, or of convert(model, example)",
    ]  # fmt: skip
    agree(model, twin, image(device))
    assert patterns(report) == {
        "conv2d + batch_norm + relu": 1, "conv2d + batch_norm": 1, "conv2d + relu + max_pool2d": 1,
        "linear + relu": 1, "linear": 1,
    }  # fmt: skip
    assert report.captures.graphs == 2
    assert "2 graphs captured" in str(report)
    assert "  add is left: the other tensor has another shape or dtype: 1 (conv2)" in str(report).splitlines()


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
    cnn_triton.convert(model)
    assert type(model) is Net
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
    assert [set(vars(module)) for module in model.modules()] == attributes
    model.bn1.train(), twin.train()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "tied" not in k}, strict=True)
    assert torch.equal(model(x), twin(x))


@pytest.mark.cover
@pytest.mark.parametrize("name", ["conv1", "bn1", "relu", "conv3", "fc"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_that_come_and_go(name, kind, device):
    """Between two calls: each sees what it would see in the original, and then no more."""
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

        model(x).square().sum().backward()
        handle = getattr(model.get_submodule(name), f"register_{kind}_hook")(hook)
        model(x).square().sum().backward()
        handle.remove()
        model(x).square().sum().backward()
        seen.append(found)
    assert seen[0]
    torch.testing.assert_close(*seen)


def test_attributes_that_change(device):
    """What was captured relied on them."""
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
    """A convolution and a ReLU, whose forward does something beside."""

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


class Catches(Reads):
    """Handles an error."""

    def forward(self, x):
        y = self.act(self.conv(x))
        try:
            return y + self.missing
        except AttributeError:
            return y


class Looks(Reads):
    """Asks whether it has something."""

    def forward(self, x):
        y = self.act(self.conv(x))
        return y if getattr(self, "shift", None) is None else y + self.shift


PROGRAMS = (
    Computed, Called, Contexts, Checkpoints, Counts, Keeps, Scales, Global, Random, Noise, Typed, Prints, Branches,
    Optional, NoGrad, Nested, Catches, Looks,
)  # fmt: skip


@pytest.mark.parametrize("kind", PROGRAMS, ids=lambda kind: kind.__name__)
def test_what_a_forward_may_do(kind, device, capsys):
    """Whatever it does besides, it does as before, and once a call."""
    model = kind().to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    results, said = [], []
    for each in (model, twin):
        random.seed(3)
        torch.manual_seed(3)
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64, device=device)
        results.append([each(x), each(x), each.kept, each.calls])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    torch.testing.assert_close(*results)
    assert report.captures.graphs > 0
    assert not report.call.failure
    left = kind in (Keeps, NoGrad, Random, Noise, Prints, Branches, Checkpoints)  # whose graphs break, or read it twice
    assert left or patterns(report)["conv2d + relu"] > 0


ATTRIBUTES = {
    "appears": lambda m: setattr(m, "shift", 0.5),
    "vanishes": lambda m: (setattr(m, "shift", 2.0), m(X8), delattr(m, "shift")),
    "becomes None": lambda m: (setattr(m, "shift", 2.0), m(X8), setattr(m, "shift", None)),
    "a method": lambda m: setattr(m, "act", torch.sigmoid),
    "a forward": lambda m: setattr(m, "forward", lambda x: m.conv(x).exp()),
    "a layer's forward": lambda m: setattr(m.conv, "forward", torch.square),
    "a layer": lambda m: setattr(m, "conv", torch.nn.Conv2d(1, 1, 1).to(m.conv.weight)),
    "a class": lambda m: setattr(m, "__class__", Scales),
}  # fmt: skip
X8 = torch.zeros(1, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("change", ATTRIBUTES)
def test_what_changes_after_conversion(change, device):
    model = Looks().to(device).double()
    cnn_triton.convert(model)
    x = image(device)
    model(x)
    torch.manual_seed(1)
    ATTRIBUTES[change](model)
    y = model(x)
    twin = copy.deepcopy(model)
    cnn_triton.revert(twin)
    if change == "a forward":
        twin.forward = lambda x: twin.conv(x).exp()
    torch.testing.assert_close(y, twin(x))


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
    assert "  relu is left: something else reads what it is given, too: 1 (conv)" in str(report).splitlines()


class Flags(Reads):
    """Reads a constant of its class."""

    SCALE = 2.0

    def forward(self, x):
        return self.act(self.conv(x)) * self.SCALE


def test_constants_of_a_class(device, monkeypatch):
    model = Flags().to(device).double()
    twin = copy.deepcopy(model)
    cnn_triton.convert(model)
    agree(model, twin, image(device))
    monkeypatch.setattr(Flags, "SCALE", 3.0)
    agree(model, twin, image(device))


def test_hooks_of_all_modules(device):
    """A hook on every module that there is sees what it would see in the original, modules come and gone, too."""
    seen = []
    models = net(device)
    cnn_triton.convert(models[0])
    x = image(device)
    models[0].eval()(x)  # captured without
    for model in models:
        found = []
        handle = register_module_forward_hook(lambda module, x, y, found=found: found.append(y.detach().clone()))
        try:
            model.eval()(x)
        finally:
            handle.remove()
        model(x)
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
    report = cnn_triton.convert(model)
    x = image(device)
    before = x.clone()
    model(x)
    assert torch.equal(x, before + 1)
    assert patterns(report) == {"conv2d + relu": 1}


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
    assert [tuple(layer) for layer in report.layers] == [
        ("subclass", "Standardised", "left", "a subclass of Conv2d, whose forward may do something else"),
        ("replaced", "Conv2d", "left", "its forward was replaced"),
        ("complex", "Conv2d", "left", "no kernel takes torch.complex64"),
        ("attention.out_proj", "NonDynamicallyQuantizableLinear", "left",
         "a subclass of Linear, whose forward may do something else"),
        ("ours", "Conv2d", "swapped", ""),
    ]  # fmt: skip
    assert "  replaced (Conv2d) is left: its forward was replaced" in str(report).splitlines()
    cnn_triton.revert(model)
    assert type(model["ours"]) is nn.Conv2d
    assert type(model["complex"]) is torch.nn.Conv2d


class Twice(nn.Conv2d):
    """A subclass of ours that does more."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_of_ours(device):
    """A subclass of ours runs as it is written; a layer with an activation of its own has that in its kernel."""
    model = torch.nn.Sequential(
        Twice(1, 3, 3), torch.nn.ReLU(), nn.ConvReLU2d(3, 2, 1), torch.nn.ReLU(), nn.ConvAct2d(2, 2, 1)
    )
    model = model.extend([torch.nn.MaxPool2d(2), nn.ConvBatchNorm2d(2, 3, 2)]).to(device).double()
    twin = copy.deepcopy(model)
    report = cnn_triton.convert(model)
    agree(model, twin, image(device))
    assert patterns(report) == {"conv2d": 1}


def test_twice_and_back(device):
    model, twin = net(device)
    first = cnn_triton.convert(model)
    assert cnn_triton.convert(model).layers == first.layers
    assert cnn_triton.convert(model).call is first.call
    agree(model, twin, image(device))
    for _ in range(2):
        cnn_triton.revert(model)
    assert [type(a) for a in model.modules()] == [type(b) for b in twin.modules()]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "of a parent", "average", "EMA"])
def test_copies(way, device):
    """They are converted, capture for themselves, and can be reverted; the original goes on."""
    model, twin = net(device)
    report, x = cnn_triton.convert(model), image(device)
    model.eval()(x)
    if way == "deepcopy":
        copied = copy.deepcopy(model)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    elif way == "of a parent":
        copied = copy.deepcopy(torch.nn.Sequential(model))[0]
    else:
        more = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)} if way == "EMA" else {}
        averaged = torch.optim.swa_utils.AveragedModel(model, **more)
        averaged.update_parameters(model)
        copied = averaged.module
    call = vars(copied)["_compiled_call_impl"]
    assert call is not report.call
    agree(copied, copy.deepcopy(twin), x)
    assert call.captures.patterns["conv2d + batch_norm + relu"] == 1
    graphs = report.captures.graphs
    torch.testing.assert_close(model.eval()(x), twin.eval()(x))
    assert report.captures.graphs == graphs
    cnn_triton.revert(copied)
    assert vars(copied).keys() == vars(twin).keys()
    assert torch.equal(copied.eval()(x), copy.deepcopy(copied)(x))


class Ring(torch.nn.Module):
    """Knows itself, has a hook that is its own method, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.conv, self.own, self.seen = torch.nn.Conv2d(1, 2, 3), [self], []
        self.conv.register_forward_hook(self.look)

    def look(self, module, args, output):
        self.seen.append(tuple(output.shape))

    def forward(self, x):
        return F.relu(self.own[0].conv(x))


def test_copies_of_what_knows_itself(device):
    model = Ring().to(device).double()
    cnn_triton.convert(model)
    x = image(device)
    model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.own[0] is copied
        copied.conv.weight.data.mul_(2)
        copied.conv.bias.data.zero_()
        torch.testing.assert_close(copied(x), F.relu(F.conv2d(x, 2 * model.conv.weight)))
        assert len(copied.seen) == 2
    assert len(model.seen) == 1


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

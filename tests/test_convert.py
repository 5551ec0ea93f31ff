"""convert and revert: the same results, parameters and state, of layers, copies and whole models."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations

import cnn_triton
from checks import assert_accurate, kernels_only
from cnn_triton import nn
from converting import Net, agree, image, net, patterns


def test_results_and_report(device):
    model, twin = net(device)
    report = cnn_triton.convert(model)
    assert str(report).splitlines() == [
        "5 layers swapped: Conv2d 3, Linear 2",
        "captures come with the first call, or with convert(model, example)",
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

"""A converted model whose call can't be captured, or not as a whole: its errors, and its results."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tn

import cnn_triton
from cnn_triton.fusion import backend, compiled
from converted import PATTERNS, images, make, same


class Fails(tn.Module):
    """Raises what it is told to."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.error, self.calls = tn.Conv2d(3, 4, 3), error, 0

    def forward(self, x):
        self.calls += 1
        y = F.relu(self.conv(x))
        if x.shape[0] == 1:
            raise self.error
        return y


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("wrong"), StopIteration(), torch.OutOfMemoryError("much")])
def test_errors_of_the_model(error, device):
    """They keep their types, happen once, and the next call is captured as ever."""
    model = Fails(error).to(device).double()
    report, x = cnn_triton.convert(model), images(device)
    for _ in range(2):
        with pytest.raises(type(error)):
            model(x[:1])
    assert model.calls == 2
    torch.testing.assert_close(model(x), F.relu(F.conv2d(x, model.conv.weight, model.conv.bias)))
    assert not report.call.failure
    assert report.captures.patterns["conv2d + relu"] == 1


def test_errors_of_operators(device):
    """PyTorch's own types and words, as of the original."""
    model, report, twin = make(device, training=True)
    x = images(device)
    for wrong in (x[:, :2], x[0], x.float(), x[:, :, :2], x[:1, :, :3, :3], None, [x]):
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            twin(wrong)
        with pytest.raises(theirs.type):
            model(wrong)
    assert model[1].num_batches_tracked == twin[1].num_batches_tracked
    assert not report.call.failure
    torch.testing.assert_close(model(x), twin(x))
    assert PATTERNS.items() <= dict(report.captures.patterns).items()


@pytest.mark.parametrize(
    "where", ["cnn_triton.fusion.backend.fuse", "torch._dynamo.symbolic_convert.InstructionTranslator.run"]
)
def test_a_crash_of_the_capture(where, device, monkeypatch):
    """The layers run, from then on, and the report says why."""
    model, report, twin = make(device)
    x, tries = images(device), []

    def crash(*args):
        tries.append(1)
        raise AssertionError("a defect")

    monkeypatch.setattr(where, crash)
    before = cnn_triton.launches().get("conv2d", 0)
    for _ in range(3):
        torch.testing.assert_close(model(x), twin(x))
    assert cnn_triton.launches()["conv2d"] == before + 6
    assert len(tries) == 1
    assert "not captured, the layers run one by one: AssertionError: a defect" in str(report)


class Breaks(tn.Module):
    """Does what Dynamo breaks a graph at, between two layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.seen = layers, []

    def forward(self, x):
        x = self.layers[:3](x)
        self.seen.append(x.sum().item())
        torch._dynamo.graph_break()
        return self.layers[3:](x)


def test_graph_breaks(device):
    """Around a break all is fused, as far as that goes; names are those of the model."""
    model, _, twin = make(device)
    cnn_triton.revert(model)
    model, twin = Breaks(model), Breaks(twin)
    report, x = cnn_triton.convert(model), images(device)
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(model.seen, twin.seen)
    assert report.captures.graphs == 2
    same(report)
    assert [each.module for each in report.captures.fused] == ["layers.0", "layers.3"]


def test_errors_after_a_graph_break(device, monkeypatch):
    """What has run is not run again: an operator's error comes as PyTorch's own, a crash of the capture as it is."""
    layers = (tn.Conv2d(3, 4, 3), tn.ReLU(), tn.Identity(), tn.BatchNorm2d(4))
    model = Breaks(tn.Sequential(*layers)).to(device).double()
    cnn_triton.convert(model)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(images(device)[:1, :, :3, :3])
    assert len(model.seen) == 1
    assert model(images(device)).isfinite().all()
    assert len(model.seen) == 2
    model.eval()
    fuse = backend.fuse

    def crash(module, names):
        if any(node.target is F.batch_norm for node in module.graph.nodes):
            raise AssertionError("a defect")
        return fuse(module, names)

    monkeypatch.setattr("cnn_triton.fusion.backend.fuse", crash)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="a defect"):
        model(images(device))
    assert len(model.seen) == 3


class Force(tn.Module):
    """Differentiates on its way."""

    def __init__(self):
        super().__init__()
        self.linear = tn.Linear(3, 4)

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = torch.tanh(self.linear(x)).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_gradients_within(device):
    """Dynamo keeps out of backward passes that run in what it follows."""
    model = Force().to(device).double()
    twin, x = copy.deepcopy(model), torch.randn(5, 3, dtype=torch.float64, device=device)
    report = cnn_triton.convert(model)
    for _ in range(2):
        y, right = model(x), twin(x)
        torch.testing.assert_close(y, right)
        grads = [
            torch.autograd.grad(each.square().sum(), m.linear.weight)[0] for each, m in ((y, model), (right, twin))
        ]
        torch.testing.assert_close(*grads)
    assert report.captures.graphs > 0


class Tagged(tn.Module):
    """Reads an attribute that is another at each call."""

    def __init__(self):
        super().__init__()
        self.conv, self.tag = tn.Conv2d(3, 4, 1), ""

    def forward(self, x):
        return F.relu(self.conv(x)) * (1 if self.tag != "zz" else 2)


def test_captures_end(device, monkeypatch):
    """At the limit the layers run, rather than another capture at each call."""
    monkeypatch.setattr("cnn_triton.fusion.compiled._GRAPHS", 3)
    settings = torch._dynamo.config._make_closure_patcher(skip_nnmodule_hook_guards=True, recompile_limit=3)
    monkeypatch.setitem(compiled._settings, False, settings)
    model = Tagged().to(device).double()
    report, x = cnn_triton.convert(model), images(device)
    right = F.relu(model.conv(x))
    for i in range(12):
        model.tag = str(i)
        torch.testing.assert_close(model(x), right)
    assert report.captures.graphs == 3


def test_forward_of_the_class(device, monkeypatch):
    """Another one, put there later, runs."""
    model = Tagged().to(device).double()
    cnn_triton.convert(model)
    x = images(device)
    model(x)
    monkeypatch.setattr(Tagged, "forward", lambda self, x: self.conv(x).sin())
    torch.testing.assert_close(model(x), model.conv(x).sin())


def test_dynamo_is_off(device):
    """The layers run."""
    model, report, twin = make(device)
    x = images(device)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(model(x), twin(x))
    assert report.captures.graphs == 0
    torch.testing.assert_close(model(x), twin(x))
    same(report)

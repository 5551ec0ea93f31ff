"""Calls of what the backend captured: sizes, modes and dtypes that change, its report, second gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn as tn
from torch.utils.checkpoint import checkpoint

import cnn_triton
from capturing import Net, X, compiled, fresh  # noqa: F401
from cnn_triton import captures


@pytest.mark.parametrize("first", ["aten", "auto"])
@pytest.mark.parametrize("rest", ["eager", "aot_eager"])
def test_where_no_kernel_runs(rest, first, device):
    """The captured graph as it was, chosen at each call, whatever compiles the rest and whatever was captured first."""
    model = Net(lambda m, x: F.relu(m.conv(x)), device).eval()
    run, x = compiled(model, options={"rest": rest}), torch.randn(X, device=device)
    with torch.no_grad():
        with cnn_triton.backend(first):
            run(x)
        for _ in range(2):
            with cnn_triton.backend("aten"):
                before = cnn_triton.launches()
                assert torch.equal(run(x), model(x))
                assert cnn_triton.launches() == before
            run(x)
            assert cnn_triton.launches()["conv2d"] == before.get("conv2d", 0) + 1
    assert captures.graphs == 1


@pytest.mark.parametrize("first", ["aten", "auto"])
def test_checkpoint_where_another_graph_was_compiled(first, device):
    """A checkpoint in the graph that the other backend has not compiled: random numbers and statistics as PyTorch's."""

    def forward(m, x):
        return checkpoint(lambda x: F.dropout(m.norm(m.conv(x)), 0.5), x, use_reentrant=False)

    twin = Net(forward, device).train()
    model = Net(forward, device).train()
    model.load_state_dict(twin.state_dict())
    run, x = compiled(model, options={"rest": "aot_eager"}), torch.randn(X, device=device)
    with cnn_triton.backend(first):
        compiled_first = run(x)
        assert compiled_first.shape == twin(x).shape
    with cnn_triton.backend("auto" if first == "aten" else "aten"):
        gradients = []
        for each in (run, twin):
            torch.manual_seed(0)
            weight = (model if each is run else twin).conv.weight
            gradients += torch.autograd.grad(each(x).square().sum(), weight)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.cover
def test_double_backward(device):
    model = Net(lambda m, x: F.silu(m.conv(x) + x), device).double()
    run = compiled(model)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradgradcheck(run, (x,))
    assert captures.patterns["conv2d + add + silu"] > 0


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

"""Modules compiled with the backend cnn_triton beside themselves uncompiled, and what was fused of them."""

import pytest
import torch
from torch import nn as tn

import cnn_triton
from cnn_triton import captures

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

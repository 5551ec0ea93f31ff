"""A small network, converted, beside its twin, and what is captured of it."""

import copy

import torch
from torch import nn as tn

import cnn_triton

X = (2, 3, 6, 7)
PATTERNS = {"conv2d + batch_norm + relu": 1, "conv2d + silu": 1}


def make(device, training=False):
    """A network, converted, what was said of it, and its twin, float64."""
    torch.manual_seed(torch.initial_seed())
    model = tn.Sequential(tn.Conv2d(3, 4, 3), tn.BatchNorm2d(4), tn.ReLU(), tn.Conv2d(4, 2, 1), tn.SiLU())
    model = model.to(device).double().train(training)
    tn.init.normal_(model[1].running_mean)
    twin = copy.deepcopy(model)
    return model, cnn_triton.convert(model), twin


def images(device):
    return torch.randn(X, dtype=torch.float64, device=device)


class Parent(tn.Module):
    """Has a model as a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) * 2


def same(report):
    """Assert that all of it is captured as one would have it."""
    assert dict(report.captures.patterns) == PATTERNS, str(report)

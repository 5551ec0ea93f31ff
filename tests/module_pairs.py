"""Modules of ours beside PyTorch's, from the same seed, and what they compute."""

import pytest
import torch

from cnn_triton import nn

MODULES = [  # ours, PyTorch's, constructor's arguments, input
    (nn.Conv2d, torch.nn.Conv2d, (3, 5, 3), {"padding": 1}, (2, 3, 6, 7)),
    (nn.Conv2d, torch.nn.Conv2d, (4, 6, (3, 2)), {"stride": 2, "groups": 2, "bias": False}, (2, 4, 9, 8)),
    (nn.Conv2d, torch.nn.Conv2d, (2, 3, 3), {"padding": "same", "padding_mode": "reflect"}, (1, 2, 6, 6)),
    (nn.Conv2d, torch.nn.Conv2d, (2, 3, 3), {"padding": (1, 2), "padding_mode": "replicate"}, (1, 2, 6, 6)),
    (nn.Conv2d, torch.nn.Conv2d, (2, 3, 3), {"padding": 2, "padding_mode": "circular"}, (1, 2, 6, 6)),
    (nn.ConvReLU2d, torch.nn.Conv2d, (3, 5, 3), {"padding": "same", "dilation": 2}, (2, 3, 6, 7)),
    (nn.Linear, torch.nn.Linear, (6, 4), {}, (5, 6)),
    (nn.LinearReLU, torch.nn.Linear, (6, 4), {"bias": False}, (2, 3, 6)),
    (nn.Conv1d, torch.nn.Conv1d, (3, 5, 3), {"padding": "same", "padding_mode": "circular"}, (2, 3, 7)),
    (nn.ConvTranspose2d, torch.nn.ConvTranspose2d, (4, 6, 3, 2, 1), {"output_padding": 1, "groups": 2}, (2, 4, 4, 5)),
    (nn.ConvTranspose1d, torch.nn.ConvTranspose1d, (3, 5, 3), {"stride": 2, "dilation": 2}, (2, 3, 7)),
    (nn.MaxPool2d, torch.nn.MaxPool2d, (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 6, 7)),
    (nn.MaxPool1d, torch.nn.MaxPool1d, (3,), {"dilation": 2}, (2, 3, 9)),
    (nn.AvgPool2d, torch.nn.AvgPool2d, (2,), {"count_include_pad": False}, (2, 3, 6, 7)),
    (nn.AvgPool1d, torch.nn.AvgPool1d, (3,), {"stride": 2, "padding": 1}, (2, 3, 9)),
    (nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool2d, (1,), {}, (2, 3, 6, 7)),
    (nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool1d, (4,), {}, (2, 3, 9)),
    (nn.AdaptiveMaxPool2d, torch.nn.AdaptiveMaxPool2d, ((3, None),), {}, (2, 3, 5, 6)),
    (nn.AdaptiveMaxPool1d, torch.nn.AdaptiveMaxPool1d, (4,), {}, (2, 3, 9)),
]
each = pytest.mark.parametrize(
    ("ours", "theirs", "args", "options", "shape"),
    MODULES,
    ids=[f"{m[0].__name__}-{'-'.join(map(str, m[3].values()))}" for m in MODULES],
)


def pair(ours, theirs, args, options):
    """Ours and PyTorch's, made from the same seed, in float64; PyTorch's followed by ReLU where ours is fused."""
    modules = []
    for kind in (ours, theirs):
        torch.manual_seed(3)
        modules.append(kind(*args, **options).double())
    return modules


def run(module, x, relu):
    x = x.detach().requires_grad_()
    y = module(x)
    y = y.relu() if relu else y
    return (y, *torch.autograd.grad(y.square().sum(), (x, *module.parameters())))

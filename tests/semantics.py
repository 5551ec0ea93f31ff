"""Every public function beside PyTorch's, on a small image or row: results and gradients of both."""

import functools

import pytest
import torch
import torch.nn.functional as F

from cnn_triton import functional

NAN, INF = float("nan"), float("inf")


def unpooling(function):
    """max_unpool1d or max_unpool2d where every two values have one place."""

    def unpool(x):
        size = x.shape[-1] * (x.shape[-2] if function.__name__.endswith("2d") else 1)
        places = torch.arange(size, device=x.device) // 2 * 3
        return function(x, places.view(x.shape[-2:] if size > x.shape[-1] else -1).expand(x.shape), 2)

    return unpool


def padded(mode):
    """conv2d with this padding mode: ours, and PyTorch's of a padded copy."""
    return (
        lambda x, w, b: functional.conv2d(x, w, b, 2, (1, 2), padding_mode=mode),
        lambda x, w, b: F.conv2d(F.pad(x, (2, 2, 1, 1), mode), w, b, 2),
        CONV,
        (),
    )


CONV, ROW = ((2, 3, 6, 7), (4, 3, 3, 3), (4,)), ((2, 3, 9), (4, 3, 3), (4,))
BACK, BACK_ROW = ((2, 3, 4, 5), (3, 4, 3, 3), (4,)), ((2, 3, 5), (3, 4, 3), (4,))
PAIRS = {  # ours, PyTorch's, the tensors' shapes, other arguments
    "conv2d": (functional.conv2d, F.conv2d, CONV, (1, 1)),
    "conv2d_relu": (functional.conv2d_relu, lambda *a: F.conv2d(*a).relu(), CONV, (1, 1)),
    "conv2d leaky_relu": (
        functools.partial(functional.conv2d, activation=("leaky_relu", 0.25)),
        lambda *a: F.leaky_relu(F.conv2d(*a), 0.25),
        CONV,
        (1, 1),
    ),
    "conv2d_relu_max_pool2d": (
        functional.conv2d_relu_max_pool2d,
        lambda *a: F.max_pool2d(F.conv2d(*a).relu(), 2),
        CONV,
        (1, 1),
    ),
    "conv2d_relu_avg_pool2d": (
        functional.conv2d_relu_avg_pool2d,
        lambda *a: F.avg_pool2d(F.conv2d(*a).relu(), 2),
        CONV,
        (1, 1),
    ),
    "conv2d reflect": padded("reflect"),
    "conv2d replicate": padded("replicate"),
    "conv2d circular": padded("circular"),
    "conv1d": (functional.conv1d, F.conv1d, ROW, (2, 1)),
    "conv_transpose2d": (functional.conv_transpose2d, F.conv_transpose2d, BACK, (2, 1, (1, 0))),
    "conv_transpose1d": (functional.conv_transpose1d, F.conv_transpose1d, BACK_ROW, (2, 1, 1)),
    "linear": (functional.linear, F.linear, ((5, 6), (4, 6), (4,)), ()),
    "linear_relu": (functional.linear_relu, lambda *a: F.linear(*a).relu(), ((5, 6), (4, 6), (4,)), ()),
    "max_pool2d": (functional.max_pool2d, F.max_pool2d, ((2, 3, 6, 7),), (3, 2, 1)),
    "max_pool1d": (functional.max_pool1d, F.max_pool1d, ((2, 3, 9),), (3, 2, 1)),
    "avg_pool2d": (functional.avg_pool2d, F.avg_pool2d, ((2, 3, 6, 7),), (3, 2, 1)),
    "avg_pool1d": (functional.avg_pool1d, F.avg_pool1d, ((2, 3, 9),), (3, 2, 1)),
    "adaptive_avg_pool2d": (functional.adaptive_avg_pool2d, F.adaptive_avg_pool2d, ((2, 3, 6, 7),), ((4, 1),)),
    "adaptive_avg_pool1d": (functional.adaptive_avg_pool1d, F.adaptive_avg_pool1d, ((2, 3, 9),), (4,)),
    "adaptive_max_pool2d": (functional.adaptive_max_pool2d, F.adaptive_max_pool2d, ((2, 3, 6, 7),), ((4, 3),)),
    "adaptive_max_pool1d": (functional.adaptive_max_pool1d, F.adaptive_max_pool1d, ((2, 3, 9),), (4,)),
    "max_unpool2d": (unpooling(functional.max_unpool2d), unpooling(F.max_unpool2d), ((2, 3, 4, 5),), ()),
    "max_unpool1d": (unpooling(functional.max_unpool1d), unpooling(F.max_unpool1d), ((2, 3, 6),), ()),
}


every = pytest.mark.parametrize("name", PAIRS)


def draw(name, device, dtype=torch.float64):
    """Leaves on a grid that float64 sums exactly."""
    return [(torch.randn(s) * 1024).round().div(1024).to(device, dtype).requires_grad_() for s in PAIRS[name][2]]


def both(name, tensors, extra=None):
    """(ours, PyTorch's) results and gradients, for the same incoming gradient."""
    ours, theirs, _, rest = PAIRS[name]
    rest = rest if extra is None else extra
    results = []
    for function in (ours, theirs):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves, *rest)
        results.append((y, torch.autograd.grad(y.square().sum() if y.numel() else y.sum(), leaves)))
    return results

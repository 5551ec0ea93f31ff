"""The operators as differentiable calls, by the names that the layers call them by."""

from collections.abc import Callable
from typing import Any

import torch

from ..kernels.matrix import activations
from ..kernels.matrix.epilogue import SLOPE
from ..kernels.pool.max_pool2d import MAX_POOL2D
from ..ops import operator
from .blocks import BatchNorm, Conv2dMoments, Conv2dPool
from .function import apply, asked, differentiable
from .pools import AvgPool2d, MaxPool2d, MaxUnpool2d
from .products import (
    Conv2d,
    Conv2dSaving,
    ConvTranspose2d,
    ConvTranspose2dSaving,
    Linear,
    LinearSaving,
    LocallyConnected2d,
    LocallyConnected2dSaving,
    Product,
)

_max_pool2d = operator(MAX_POOL2D)


def _product(plain: type[Product], saving: type[Product]) -> Callable[..., Any]:
    """A product as the layers call it: where its activation's derivative needs x, the function that saves it."""

    def call(*args):
        if not asked(args):
            return plain.forward(*args)
        if args[SLOPE] is not None or activations.of(args[-1]).saves == "input":
            return apply(saving, *args)[0]
        return apply(plain, *args)

    return torch.compiler.allow_in_graph(call)


conv2d = _product(Conv2d, Conv2dSaving)
conv_transpose2d = _product(ConvTranspose2d, ConvTranspose2dSaving)
locally_connected2d = _product(LocallyConnected2d, LocallyConnected2dSaving)
linear = _product(Linear, LinearSaving)
conv2d_pool = differentiable(Conv2dPool)
conv2d_moments = differentiable(Conv2dMoments)
batch_norm = differentiable(BatchNorm)
max_pool2d = differentiable(MaxPool2d, lambda *args: _max_pool2d(*args[:3], False, *args[3:]))
max_unpool2d = differentiable(MaxUnpool2d)
avg_pool2d = differentiable(AvgPool2d)

"""The operators as differentiable calls, by the names that the layers call them by."""

from collections.abc import Callable
from typing import Any

import torch

from ..kernels.matrix import activations
from ..kernels.pool.max_pool2d import MAX_POOL2D
from ..ops import operator
from .blocks import BatchNorm, Conv2dMoments, Conv2dPool
from .function import apply, differentiable, named, needs_grad
from .pools import AvgPool2d, MaxPool2d, MaxUnpool2d
from .product import Product
from .products import (
    Conv2d,
    Conv2dWithPreactivation,
    ConvTranspose2d,
    ConvTranspose2dWithPreactivation,
    Linear,
    LinearWithPreactivation,
    LocallyConnected2d,
    LocallyConnected2dWithPreactivation,
)  # fmt: skip


def _product(plain: type[Product], with_preactivation: type[Product]) -> Callable[..., Any]:
    """Return a product as the layers call it: with the preactivation kept where the activation's derivative needs
    it."""
    run = operator(plain.OP)

    def call(*args: Any) -> Any:
        if not needs_grad(args):
            return run(*args)
        given = named(plain, args)
        if given.slope is not None or activations.of(given.activation).saves == "input":
            return apply(with_preactivation, *args)[0]
        return apply(plain, *args)

    return torch.compiler.allow_in_graph(call)  # type: ignore[no-any-return]


conv2d = _product(Conv2d, Conv2dWithPreactivation)
conv_transpose2d = _product(ConvTranspose2d, ConvTranspose2dWithPreactivation)
locally_connected2d = _product(LocallyConnected2d, LocallyConnected2dWithPreactivation)
linear = _product(Linear, LinearWithPreactivation)
conv2d_pool = differentiable(Conv2dPool)
conv2d_moments = differentiable(Conv2dMoments)
batch_norm = differentiable(BatchNorm)
max_unpool2d = differentiable(MaxUnpool2d)
avg_pool2d = differentiable(AvgPool2d)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def max_pool2d(input: torch.Tensor, output_size: Any, window: Any, indices: bool) -> Any:
    """Return (maximum, winning tap, winning pixel) of each window: the taps for derivatives alone."""
    if needs_grad((input,)):
        return apply(MaxPool2d, input, output_size, window, True, indices)
    return operator(MAX_POOL2D)(input, output_size, window, False, indices)

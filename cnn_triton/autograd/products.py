"""Convolution, transposed convolution, locally connected and linear layer, and their gradients."""

from typing import Any, NamedTuple

import torch

from ..kernels.core.tensors import channels_last
from ..kernels.matrix import conv2d as conv
from ..kernels.matrix import locally_connected2d as local
from ..kernels.matrix.linear import LINEAR, LINEAR_INPUT_GRAD, LINEAR_WEIGHT_GRAD, LINEAR_WITH_PREACTIVATION, as_images
from .function import Args, apply
from .product import InputGrad, Product, WeightGrad, with_preactivation


class Conv2d(Product):
    """y = act(scale · conv(x, w) + b + residual)."""

    OP = conv.CONV2D

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        return apply(Conv2d, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, *, needs_input: bool,
        needs_weight: bool, accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        dx = dw = None
        if needs_input:
            dx = apply(Conv2dInputGrad, grad, weight, input.shape, *rest, channels_last(input))
        if needs_weight:
            dw = apply(Conv2dWeightGrad, grad, input, weight.shape, *rest, channels_last(weight), accumulate_dtype)
        return dx, dw


class Transposed(NamedTuple):
    """The arguments of a transposed convolution except its operands and activation."""

    output_size: Any
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    channels_last: bool


class ConvTranspose2d(Product):
    """y = act(scale · transposed conv(x, w) + b + residual)."""

    OP = conv.CONV_TRANSPOSE2D

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        return apply(Conv2dInputGrad, input, weight, *rest[:-1], "zeros", rest[-1])

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, *, needs_input: bool,
        needs_weight: bool, accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        _, *window, _ = Transposed(*rest)
        window, dx, dw = [*window, "zeros"], None, None
        if needs_input:
            dx = Conv2d.bare(grad, weight, window)
        if needs_weight:
            dw = apply(Conv2dWeightGrad, input, grad, weight.shape, *window, channels_last(weight), accumulate_dtype)
        return dx, dw

    @classmethod
    def columns(cls, scale: torch.Tensor, weight: torch.Tensor, rest: Args) -> torch.Tensor:
        groups = Transposed(*rest).groups
        each = scale.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
        return each.reshape(weight.shape[0], -1, 1, 1)

    @classmethod
    def by_column(cls, values: torch.Tensor, rest: Args) -> torch.Tensor:
        return values.view(Transposed(*rest).groups, -1, *values.shape[1:]).sum((1, 3, 4)).reshape(-1)


class LocallyConnected2d(Product):
    """y = act(scale · locally connected product of x and w + b + residual); b by column, or by pixel and column."""

    OP = local.LOCALLY_CONNECTED2D

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        return apply(LocallyConnected2d, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, *, needs_input: bool,
        needs_weight: bool, accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        dx = dw = None
        if needs_input:
            dx = apply(LocallyConnected2dInputGrad, grad, weight, input.shape, *rest, channels_last(input))
        if needs_weight:
            dw = apply(LocallyConnected2dWeightGrad, grad, input, weight.shape, *rest, accumulate_dtype)
        return dx, dw

    @classmethod
    def columns(cls, scale: torch.Tensor, weight: torch.Tensor, rest: Args) -> torch.Tensor:
        return scale.view(-1, 1, 1, 1)

    @classmethod
    def by_column(cls, values: torch.Tensor, rest: Args) -> torch.Tensor:
        return values.sum((0, 1, 3, 4, 5))

    @classmethod
    def broadcast(cls, vector: torch.Tensor) -> torch.Tensor:
        return vector.permute(2, 0, 1) if vector.dim() == 3 else super().broadcast(vector)

    @classmethod
    def through(cls, grad: torch.Tensor, saved: Any, slope: Any, activation: str, bias_shape: Any) -> Any:
        if bias_shape is None or len(bias_shape) == 1:
            return super().through(grad, saved, slope, activation, bias_shape)
        if 0 in grad.shape:
            dz, _, dslope = super().through(grad, saved, slope, activation, None)
            return dz, grad.new_zeros(bias_shape), dslope
        n, k, p, q = grad.shape

        def one_pixel(images: torch.Tensor) -> torch.Tensor:
            """Return images of one pixel, with a column for each column of each pixel."""
            return images.permute(0, 2, 3, 1).reshape(n, p * q * k, 1, 1)

        saved, slopes = None if saved is None else one_pixel(saved), None if slope is None else slope.repeat(p * q)
        dz, db, dslope = super().through(one_pixel(grad), saved, slopes, activation, bias_shape)
        dslope = None if slope is None else dslope.view(p * q, k).sum(0)
        return dz.reshape(n, p, q, k).permute(0, 3, 1, 2), db.view(bias_shape), dslope


class Linear(Product):
    """y = act(scale · x · wᵀ + b + residual), for rows x."""

    OP = LINEAR

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        return apply(Linear, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, *, needs_input: bool,
        needs_weight: bool, accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        dx = apply(LinearInputGrad, grad, weight, *rest) if needs_input else None
        return dx, apply(LinearWeightGrad, grad, input, *rest, accumulate_dtype) if needs_weight else None

    @classmethod
    def broadcast(cls, vector: torch.Tensor) -> torch.Tensor:
        return vector

    @classmethod
    def through(cls, grad: torch.Tensor, saved: Any, slope: Any, activation: str, bias_shape: Any) -> Any:
        saved = None if saved is None else as_images(saved)
        dz, db, dslope = super().through(as_images(grad), saved, slope, activation, bias_shape)
        return dz[:, :, 0, 0], db, dslope


class Conv2dInputGrad(InputGrad):
    """A convolution's."""

    OP, PRODUCT = conv.CONV2D_INPUT_GRAD, Conv2d


class Conv2dWeightGrad(WeightGrad):
    """A convolution's."""

    OP, PRODUCT = conv.CONV2D_WEIGHT_GRAD, Conv2d


class LocallyConnected2dInputGrad(InputGrad):
    """A locally connected layer's."""

    OP, PRODUCT = local.LOCALLY_CONNECTED2D_INPUT_GRAD, LocallyConnected2d


class LocallyConnected2dWeightGrad(WeightGrad):
    """A locally connected layer's."""

    OP, PRODUCT = local.LOCALLY_CONNECTED2D_WEIGHT_GRAD, LocallyConnected2d


class LinearInputGrad(InputGrad):
    """A linear layer's: dx = dy · w."""

    OP, PRODUCT = LINEAR_INPUT_GRAD, Linear


class LinearWeightGrad(WeightGrad):
    """A linear layer's: dw = dyᵀ · x."""

    OP, PRODUCT = LINEAR_WEIGHT_GRAD, Linear


Conv2dWithPreactivation = with_preactivation(Conv2d, conv.CONV2D_WITH_PREACTIVATION)
ConvTranspose2dWithPreactivation = with_preactivation(ConvTranspose2d, conv.CONV_TRANSPOSE2D_WITH_PREACTIVATION)
LocallyConnected2dWithPreactivation = with_preactivation(
    LocallyConnected2d, local.LOCALLY_CONNECTED2D_WITH_PREACTIVATION
)
LinearWithPreactivation = with_preactivation(Linear, LINEAR_WITH_PREACTIVATION)

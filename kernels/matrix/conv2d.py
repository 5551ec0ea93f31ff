"""2-D convolution with an epilogue, its input gradient and its weight gradient, as implicit matrix products.

    y[n,k,p,q] = epilogue( Σ_{c,r,s} x[n, c, p·stride − pad + r·dilation, ...] · w[k,c,r,s] )      epilogue.py

As a product of matrices that are never formed, with (n,p,q) = pixel and (r,s,c) = term:

    forward:          Y[pixel, k]    = X̂[pixel, term] · Ŵ[term, k]        X̂: what taps read, 0 outside
    input gradient:   dX[pixel, c]   = Ĝ[pixel, (r,s,k)] · Ŵ'[(r,s,k), c]  the same along another Walk
    weight gradient:  dW[k, term]    = Gᵀ[k, pixel] · X̂[pixel, term]       the reduction is over pixels

The weight is read as the matrix [K, R·S·C]: a channels_last weight is one already, others are copied. Where each pixel
is a product of its own (1 x 1, stride 1) the images are one row of pixels, a plain product of matrices.

What taps read outside of the images is 0, or what the window's padding mode shows there. A transposed convolution is
the input gradient, with an epilogue.

The kernels differ in how they fetch the operands' tiles; paths.py has them in order. All but direct.py's share one main
loop, loop.py.
Source: implicit GEMM, as in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", arXiv:1410.0759.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, conv_precision
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..window.arguments import same_shape
from ..window.convolution import Window, conv_shape
from .epilogue import BY_COLUMN, OPERANDS, Epilogue, check_epilogue, completed, with_preactivation
from .padding import unpad
from .paths import path_of
from .problem import Problem, WeightProblem


def _pad(input: torch.Tensor, padding: Sequence[int], padding_mode: str) -> torch.Tensor:
    """Return the images with their padding; negative padding takes pixels away."""
    top, bottom, left, right = padding
    return F.pad(input, (left, right, top, bottom), "constant" if padding_mode == "zeros" else padding_mode)


def conv2d_fake(
    input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
):
    check_tensors(input=input, weight=weight)
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    shape = conv_shape(input.shape, weight.shape, bias if bias is None else bias.shape, window, groups)
    check_epilogue(bias, scale, residual, slope, input, shape, weight.shape[0])
    return new(shape, input, channels_last(input, weight))


def conv2d_launch(
    y, input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation,
    preactivation=None,
):  # fmt: skip
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode).of_outputs(y.shape[2:])
    epilogue = Epilogue(bias, scale, residual, slope, activation, preactivation)
    problem = Problem(input, weight, y, window, groups, False, conv_precision(input.dtype), epilogue)
    path_of(problem).forward(problem)


def conv2d_aten(
    input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
):
    padded = _pad(input, padding, padding_mode)
    product = lambda bias: F.conv2d(padded, weight, bias, stride, 0, dilation, groups)  # noqa: E731
    return completed(product, bias, scale, residual, slope, activation)


def _check_grad(grad, weight, input_size, stride, padding, dilation, groups, padding_mode):
    check_tensors(grad=grad, weight=weight)
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    same_shape("grad", grad.shape, conv_shape(input_size, weight.shape, None, window, groups))


def input_grad_fake(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
    _check_grad(grad, weight, input_size, stride, padding, dilation, groups, padding_mode)
    return new(input_size, grad, channels_last)


def input_grad_launch(
    dx, grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last,
    pooled=None,
):  # fmt: skip
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    padded = dx
    if padding_mode != "zeros":
        padded = new((*input_size[:2], *window.padded(input_size[2:])), dx, channels_last, accumulator(dx.dtype))
    inner = window if padded is dx else window.unpadded
    _transposed(grad, weight, padded, inner, groups, Epilogue(), pooled)
    if padded is not dx:
        unpad(padded, dx, window)


def _transposed(x, weight, y, window, groups, epilogue, pooled=None):
    window = window if pooled else window.of_outputs(x.shape[2:])
    problem = Problem(x, weight, y, window, groups, True, conv_precision(x.dtype), epilogue, pooled=pooled)
    path_of(problem).forward(problem)


def input_grad_aten(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    size = (*input_size[:2], *window.padded(input_size[2:]))
    dx = torch.nn.grad.conv2d_input(size, weight, grad, stride, 0, dilation, groups)
    if padding_mode == "zeros":
        return _pad(dx, [-pad for pad in padding], "zeros")
    for dim, pads in ((2, padding[:2]), (3, padding[2:])):
        pixel = torch.arange(input_size[dim], dtype=torch.float64, device=dx.device)
        source = F.pad(pixel[None, None], tuple(pads), padding_mode)[0, 0].long()
        shape = (*dx.shape[:dim], input_size[dim], *dx.shape[dim + 1 :])
        dx = dx.new_zeros(shape).index_add_(dim, source, dx)
    return dx


def transpose_fake(
    input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
    activation,
):  # fmt: skip
    _check_grad(input, weight, output_size, stride, padding, dilation, groups, "zeros")
    check_epilogue(bias, scale, residual, slope, input, output_size, output_size[1])
    return new(output_size, input, channels_last)


def transpose_launch(
    y, input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
    activation, preactivation=None,
):  # fmt: skip
    window = Window.of(weight.shape[2:], stride, padding, dilation)
    _transposed(input, weight, y, window, groups, Epilogue(bias, scale, residual, slope, activation, preactivation))


def transpose_aten(
    input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
    activation,
):  # fmt: skip

    def product(bias):
        y = input_grad_aten(input, weight, output_size, stride, padding, dilation, groups, "zeros", channels_last)
        return y if bias is None else y + bias[:, None, None]

    return completed(product, bias, scale, residual, slope, activation)


def weight_grad_fake(
    grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, accumulate_dtype=False
):
    check_tensors(grad=grad, input=input)
    window = Window.of(weight_size[2:], stride, padding, dilation, padding_mode)
    same_shape("grad", grad.shape, conv_shape(input.shape, weight_size, None, window, groups))
    return new(weight_size, grad, channels_last, accumulator(grad.dtype) if accumulate_dtype else None)


def weight_grad_launch(
    dw, grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last,
    accumulate_dtype=False, pooled=None,
):  # fmt: skip
    matrix = dw if dw.is_contiguous(memory_format=torch.channels_last) else new(weight_size, dw, True)
    window = Window.of(weight_size[2:], stride, padding, dilation, padding_mode)
    window = window if pooled else window.of_outputs(grad.shape[2:])
    problem = WeightProblem(grad, input, matrix, window, groups, conv_precision(grad.dtype), pooled)
    path_of(problem).weight_grad(problem)
    if matrix is not dw:
        dw.copy_(matrix)


def weight_grad_aten(
    grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, accumulate_dtype=False
):
    padded = _pad(input, padding, padding_mode)
    return torch.nn.grad.conv2d_weight(padded, weight_size, grad, stride, 0, dilation, groups)


def _flops(pixels_by_outputs: int, weight_size: Sequence[int]) -> int:
    return 2 * pixels_by_outputs * math.prod(weight_size[1:])


def _seen(input: torch.Tensor, taps: Sequence[int], image: Sequence[int]) -> int:
    """Return the bytes of the input that windows read: not all, where strides are wider than windows."""
    n, c, h, w = input.shape
    return n * c * min(h, taps[0] * image[0]) * min(w, taps[1] * image[1]) * input.element_size()


def _bytes(input: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    y = conv2d_fake(input, weight, *rest)
    return _seen(input, weight.shape[2:], y.shape[2:]) + nbytes(weight, *rest[:4], y)


WINDOW = "int[2] stride, int[4] padding, int[2] dilation, int groups, str padding_mode"

CONV2D = Op(
    name="conv2d",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, {WINDOW}, str activation) -> Tensor",
    fake=conv2d_fake,
    launcher=conv2d_launch,
    aten=conv2d_aten,
    flops=lambda input, weight, *args: _flops(conv2d_fake(input, weight, *args).numel(), weight.shape),
    bytes=_bytes,
    vmap=(
        VmapRule({"input": 0, "residual": 0}, (0,)),
        VmapRule({**BY_COLUMN, "input": 1, "weight": 0, "groups": 0}, (1,)),
    ),
    product=True,
)
CONV2D_WITH_PREACTIVATION = with_preactivation(CONV2D)

CONV2D_INPUT_GRAD = Op(
    name="conv2d_input_grad",
    schema=f"(Tensor grad, Tensor weight, SymInt[4] input_size, {WINDOW}, bool channels_last) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, *args: _flops(grad.numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
    vmap=(
        VmapRule({"grad": 0, "input_size": 0}, (0,)),
        VmapRule({"grad": 1, "weight": 0, "input_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)

CONV_TRANSPOSE2D = Op(
    name="conv_transpose2d",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, SymInt[4] output_size, int[2] stride, int[4] padding, "
    "int[2] dilation, int groups, bool channels_last, str activation) -> Tensor",
    fake=transpose_fake,
    launcher=transpose_launch,
    aten=transpose_aten,
    flops=lambda input, weight, *args: _flops(input.numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:6], transpose_fake(*args)),
    vmap=(
        VmapRule({"input": 0, "residual": 0, "output_size": 0}, (0,)),
        VmapRule({**BY_COLUMN, "input": 1, "weight": 0, "output_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)
CONV_TRANSPOSE2D_WITH_PREACTIVATION = with_preactivation(CONV_TRANSPOSE2D)

CONV2D_WEIGHT_GRAD = Op(
    name="conv2d_weight_grad",
    schema=f"(Tensor grad, Tensor input, SymInt[4] weight_size, {WINDOW}, bool channels_last, "
    "bool accumulate_dtype=False) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, weight_size, *args: _flops(grad.numel(), weight_size),
    bytes=lambda grad, input, weight_size, *args: (
        _seen(input, weight_size[2:], grad.shape[2:]) + nbytes(grad, weight_grad_fake(grad, input, weight_size, *args))
    ),
    vmap=(VmapRule({"grad": 1, "input": 1, "weight_size": 0, "groups": 0}, (0,)),),
    product=True,
)

"""2-D locally connected layer, a convolution in which each output pixel has weights of its own; and its gradients.

    y[n,k,p,q] = epilogue( Σ_{c,r,s} x[n, c, p·stride − pad + r·dilation, ...] · w[p,q,k,r,s,c] )      epilogue.py

Kernels: per_pixel.py. The weight is [P, Q, K, R, S, C/groups], the last fastest in memory: a pixel's matrix is one
piece. Forward and weight gradient read and write rows of adjacent terms of it, the input gradient pieces of adjacent
channels. A weight serves each image once, so that below some 200 images the time is that of reading the
weights, which happens once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, conv_precision
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..window.arguments import same_shape
from ..window.convolution import Window, conv_shape
from . import per_pixel
from .epilogue import BY_COLUMN, OPERANDS, Epilogue, check_epilogue, completed, with_preactivation
from .per_pixel import PerPixelProblem, PerPixelWeightProblem


def local_shape(input: Sequence[int], weight: Sequence[int], window: Window, groups: int) -> tuple[int, int, int, int]:
    """Return the output shape (N, K, P, Q). Errors: RuntimeError naming the argument that doesn't fit."""
    if min(weight[3:5]) < 1 or groups < 1 or weight[2] % groups:
        raise RuntimeError(
            "weight must be 6-D (P, Q, K, R, S, C/groups), with K a multiple of groups and R and S at least 1, but got "
            f"{tuple(weight)} with groups={groups}"
        )
    if len(input) == 4 and input[1] != weight[5] * groups:
        raise RuntimeError(
            f"input has {input[1]} channels, but weight of shape {tuple(weight)} with groups={groups} expects "
            f"{weight[5] * groups}"
        )
    shape = conv_shape(input, (weight[2], weight[5], *weight[3:5]), None, window, groups)
    if tuple(weight[:2]) != shape[2:]:
        raise RuntimeError(
            f"weight must be for the {shape[2]} x {shape[3]} windows in an input of shape {tuple(input)}, but got "
            f"one for {weight[0]} x {weight[1]}"
        )
    return shape


def local_fake(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation):
    check_tensors(input=input, weight=weight)
    if weight.dim() != 6:
        raise RuntimeError(
            f"weight must be 6-D (P, Q, K, R, S, C/groups), a matrix per output pixel, but got {tuple(weight.shape)}"
        )
    shape = local_shape(input.shape, weight.shape, Window.of(weight.shape[3:5], stride, padding, dilation), groups)
    check_epilogue(bias, scale, residual, slope, input, shape, weight.shape[2], tuple(weight.shape[:2]))
    return new(shape, input, channels_last(input))


def local_launch(
    y, input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation, preactivation=None
):  # fmt: skip
    window = Window.of(weight.shape[3:5], stride, padding, dilation).of_outputs(y.shape[2:])
    epilogue = Epilogue(bias, scale, residual, slope, activation, preactivation)
    precision = conv_precision(input.dtype)
    per_pixel.forward(PerPixelProblem(input, weight, y, window, groups, False, precision, epilogue))


def _windows(input, size, stride, padding, dilation, groups):
    """Return the pixels of each window, [N, groups, C/groups, P, Q, R, S]; a view of the padded images."""
    top, bottom, left, right = padding
    x = F.pad(input, (left, right, top, bottom))
    for direction in (0, 1):
        span = dilation[direction] * (size[direction] - 1) + 1
        x = x.unfold(2 + direction, span, stride[direction])
    return x[..., :: dilation[0], :: dilation[1]].unflatten(1, (groups, input.shape[1] // groups))


def _matrices(weight, groups):
    """[P, Q, groups, K/groups, R, S, C/groups]"""
    return weight.unflatten(2, (groups, weight.shape[2] // groups))


def local_aten(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation):
    def product(bias):
        windows = _windows(input, weight.shape[3:5], stride, padding, dilation, groups)
        y = torch.einsum("ngcpqrs,pqgkrsc->ngkpq", windows, _matrices(weight, groups)).flatten(1, 2)
        return y if bias is None else y + bias[:, None, None]

    bias_images = None
    if bias is not None and bias.dim() == 3:  # a bias for each pixel, which all images share
        bias, bias_images = None, bias.permute(2, 0, 1).expand(input.shape[0], -1, -1, -1)
    if input.shape[1] == 0:  # there is no output then, see window.convolution.conv_shape
        empty = completed(product, bias, scale, bias_images, slope, activation)[:, :0]
        return empty if residual is None else empty + residual
    addend = residual if bias_images is None else bias_images if residual is None else bias_images + residual
    return completed(product, bias, scale, addend, slope, activation)


def _check_grad(grad, weight_size, input_size, stride, padding, dilation, groups):
    window = Window.of(weight_size[3:5], stride, padding, dilation)
    same_shape("grad", grad.shape, local_shape(input_size, weight_size, window, groups))


def input_grad_fake(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    check_tensors(grad=grad, weight=weight)
    _check_grad(grad, weight.shape, input_size, stride, padding, dilation, groups)
    return new(input_size, grad, channels_last)


def input_grad_launch(dx, grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    window = Window.of(weight.shape[3:5], stride, padding, dilation).of_outputs(grad.shape[2:])
    per_pixel.forward(PerPixelProblem(grad, weight, dx, window, groups, True, conv_precision(grad.dtype)))


def input_grad_aten(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    size, window = tuple(weight.shape[3:5]), Window.of(weight.shape[3:5], stride, padding, dilation)
    images = grad.unflatten(1, (groups, grad.shape[1] // groups))
    each = torch.einsum("ngkpq,pqgkrsc->ngcrspq", images, _matrices(weight, groups)).flatten(1, 4).flatten(2)
    if each.numel() == 0:
        return grad.new_zeros(input_size)
    dx = F.fold(each, window.padded(input_size[2:]), size, dilation, 0, stride)
    top, bottom, left, right = padding
    return F.pad(dx, (-left, -right, -top, -bottom))


def weight_grad_fake(grad, input, weight_size, stride, padding, dilation, groups, accumulate_dtype=False):
    check_tensors(grad=grad, input=input)
    _check_grad(grad, weight_size, input.shape, stride, padding, dilation, groups)
    return new(weight_size, grad, dtype=accumulator(grad.dtype) if accumulate_dtype else None)


def weight_grad_launch(
    dw, grad, input, weight_size, stride, padding, dilation, groups, accumulate_dtype=False
):  # fmt: skip
    window = Window.of(weight_size[3:5], stride, padding, dilation).of_outputs(grad.shape[2:])
    per_pixel.weight_grad(PerPixelWeightProblem(grad, input, dw, window, groups, conv_precision(input.dtype)))


def weight_grad_aten(grad, input, weight_size, stride, padding, dilation, groups, accumulate_dtype=False):
    if grad.numel() == 0:
        return grad.new_zeros(weight_size)
    windows = _windows(input, weight_size[3:5], stride, padding, dilation, groups)
    images = grad.unflatten(1, (groups, grad.shape[1] // groups))
    return torch.einsum("ngkpq,ngcpqrs->pqgkrsc", images, windows).flatten(2, 3)


_WINDOW = "int[2] stride, int[4] padding, int[2] dilation, int groups"

LOCALLY_CONNECTED2D = Op(
    name="locally_connected2d",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, {_WINDOW}, str activation) -> Tensor",
    fake=local_fake,
    launcher=local_launch,
    aten=local_aten,
    flops=lambda input, weight, *args: 2 * input.shape[0] * weight.numel(),
    bytes=lambda *args: nbytes(*args[:6], local_fake(*args)),
    vmap=(
        VmapRule({"input": 0, "residual": 0}, (0,)),
        VmapRule({**BY_COLUMN, "input": 1, "weight": 2, "bias": -2, "groups": 0}, (1,)),
    ),
    product=True,
)
LOCALLY_CONNECTED2D_WITH_PREACTIVATION = with_preactivation(LOCALLY_CONNECTED2D)

LOCALLY_CONNECTED2D_INPUT_GRAD = Op(
    name="locally_connected2d_input_grad",
    schema=f"(Tensor grad, Tensor weight, SymInt[4] input_size, {_WINDOW}, bool channels_last) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, *args: 2 * grad.shape[0] * weight.numel(),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
    vmap=(
        VmapRule({"grad": 0, "input_size": 0}, (0,)),
        VmapRule({"grad": 1, "weight": 2, "input_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)

LOCALLY_CONNECTED2D_WEIGHT_GRAD = Op(
    name="locally_connected2d_weight_grad",
    schema=f"(Tensor grad, Tensor input, SymInt[6] weight_size, {_WINDOW}, bool accumulate_dtype=False) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, *args: 2 * input.shape[0] * weight_grad_fake(grad, input, *args).numel(),
    bytes=lambda *args: nbytes(*args[:2], weight_grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "input": 1, "weight_size": 2, "groups": 0}, (2,)),),
    product=True,
)

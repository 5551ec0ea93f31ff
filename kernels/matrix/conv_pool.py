"""Convolution, ReLU and pooling in one kernel, and its gradients, without the images between them.

    x[n,k,h,w] = scale[k] · conv[n,k,h,w] + b[k]          conv2d.py
    y, code    = ReLU and pooling of x                    pool_code.py

A tap of the pooling is a convolution by itself, whose stride is the convolution's times the window's side: a kernel
goes through them one after the other and keeps the largest, or the sum, in registers. Of windows of two or four pixels
it computes all at once where it can (tma_pool.py).

    for each tile of the result:                                  pooled pixels x columns
        for each tap t of the pooling:
            x = epilogue(the convolution at tap t)                loop.main_loop
            (y, code) = (y, code) with x                          pool_code.pool_step
        store y and code

The gradient of x is dy (of an average dy / taps) where the code says so, else 0. The convolution's gradients can read
it so, from dy and the code, or `materialized`, from images that one pass stores, which also sums the bias' gradient. A
window of one tap reads each element once, and is bound by memory: materialized, it would be several times the traffic.
A larger window reads each once for every tap: to compute it each time takes more instructions than the product itself,
so it is materialized.
"""

import math

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, conv_precision
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..window.arguments import same_shape
from ..window.convolution import Window, conv_shape
from ..window.pooling import check_images
from . import conv2d
from .activation_grad import bias_grad_fake
from .conv2d import conv2d_aten
from .epilogue import Epilogue, check_epilogue
from .paths import path_of
from .pool_code import Pooled, in_same_strides, input_grad_aten, new_code, spread
from .problem import Problem


def full_size(input, weight, stride, padding, dilation, groups, padding_mode):
    """Return the size of the images that are pooled."""
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    return conv_shape(input.shape, weight.shape, None, window, groups)


def conv2d_pool_fake(input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average):
    """Return (y [N, K, P, Q], code [bytes, N, K, P, Q]), both pooled."""
    check_tensors(input=input, weight=weight)
    shape = full_size(input, weight, stride, padding, dilation, groups, padding_mode)
    check_epilogue(bias, scale, None, None, input, shape, weight.shape[0])
    check_images(shape)
    pooled = tuple(size // k for size, k in zip(shape[2:], pool, strict=True))
    if min(pooled) < 1:
        raise RuntimeError(
            f"pool_size {tuple(pool)} doesn't fit into the convolution's output of {shape[2]} x {shape[3]} pixels"
        )
    y = new((*shape[:2], *pooled), input, channels_last(input, weight))
    return y, new_code(y, pool, average)


def conv2d_pool_launch(
    results, input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average
):  # fmt: skip
    y, code = results
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    pooling = Pooled.of(code, pool, average, input.dtype)
    precision, epilogue = conv_precision(input.dtype), Epilogue(bias, scale)
    problem = Problem(input, weight, y, window, groups, False, precision, epilogue, pool=pooling)
    path_of(problem).forward(problem)


def conv2d_pool_aten(input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average):
    x = conv2d_aten(input, weight, bias, scale, None, None, stride, padding, dilation, groups, padding_mode, "relu")
    pool = tuple(pool)
    if average:
        whole = x[:, :, : x.shape[2] // pool[0] * pool[0], : x.shape[3] // pool[1] * pool[1]]
        opens = ~(whole.unflatten(3, (-1, pool[1])).unflatten(2, (-1, pool[0])) <= 0)
        taps = opens.permute(3, 5, 0, 1, 2, 4).flatten(0, 1)  # [taps, N, K, P, Q]
        taps = F.pad(taps, (0, 0) * 4 + (0, -len(taps) % 8)).unflatten(0, (-1, 8))
        bits = torch.arange(8, device=x.device)[:, None, None, None, None]
        return F.avg_pool2d(x, pool), (taps.long() << bits).sum(1)
    y, index = F.max_pool2d(x, pool, return_indices=True)
    tap = index // x.shape[3] % pool[0] * pool[1] + index % x.shape[3] % pool[1]
    return y, torch.where(y <= 0, math.prod(pool), tap)[None]


def grad_fake(
    grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, needs_input,
    needs_weight, materialized, accumulate_dtype=False,
):  # fmt: skip
    """Return (dx, dw, dbias); dx or dw is empty along its first dimension unless needs_input or needs_weight.
    materialized: True to store the gradient of the images before pooling, None to decide by the window."""
    check_tensors(grad=grad, input=input, weight=weight)
    shape = full_size(input, weight, stride, padding, dilation, groups, padding_mode)
    same_shape("grad", grad.shape, (*shape[:2], *(size // k for size, k in zip(shape[2:], pool, strict=True))))
    same_shape("code", code.shape[1:], grad.shape)
    kind = accumulator(weight.dtype) if accumulate_dtype else weight.dtype
    dx = new((input.shape[0] * needs_input, *input.shape[1:]), input, channels_last(input))
    dw = new((weight.shape[0] * needs_weight, *weight.shape[1:]), weight, channels_last(weight), kind)
    return dx, dw, bias_grad_fake(grad)


def grad_launch(
    results, grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, needs_input,
    needs_weight, materialized, accumulate_dtype=False,
):  # fmt: skip
    dx, dw, dbias = results
    how = (stride, padding, dilation, groups, padding_mode)
    full = None
    if materialized is None:
        materialized = math.prod(weight.shape[2:]) > 1
    # Triton can't compile float64 products of operands computed from bytes.
    if materialized or input.dtype == torch.float64:
        full = new(full_size(input, weight, *how), grad, channels_last(grad))
    spread(dbias, full, grad, code, pool, average)
    pooled = None
    if full is None:
        grad, code = in_same_strides(grad, code)
        pooled = Pooled.of(code, pool, average, input.dtype)
    else:
        grad = full
    if needs_input:
        conv2d.input_grad_launch(dx, grad, weight, input.shape, *how, channels_last(input), pooled)
    if needs_weight:
        conv2d.weight_grad_launch(dw, grad, input, weight.shape, *how, channels_last(weight), accumulate_dtype, pooled)


def grad_aten(
    grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, needs_input,
    needs_weight, materialized, accumulate_dtype=False,
):  # fmt: skip
    how = (stride, padding, dilation, groups, padding_mode)
    full, dbias = input_grad_aten(grad, code, full_size(input, weight, *how), pool, average, False)
    dx = conv2d.input_grad_aten(full, weight, input.shape, *how, False) if needs_input else None
    dw = conv2d.weight_grad_aten(full, input, weight.shape, *how, False) if needs_weight else None
    return dx, dw, dbias


def _flops(input, weight, *how) -> int:
    n, _, p, q = full_size(input, weight, *how)
    return 2 * n * p * q * weight.numel()


def _grad_flops(
    grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, needs_input,
    needs_weight, *_
) -> int:  # fmt: skip
    return _flops(input, weight, stride, padding, dilation, groups, padding_mode) * (needs_input + needs_weight)


_POOL = "int[2] pool, bool average"

CONV2D_POOL = Op(
    name="conv2d_pool",
    schema=f"(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, {conv2d.WINDOW}, {_POOL}) -> (Tensor, Tensor)",
    fake=conv2d_pool_fake,
    launcher=conv2d_pool_launch,
    aten=conv2d_pool_aten,
    flops=lambda input, weight, bias, scale, *args: _flops(input, weight, *args[:5]),
    bytes=lambda *args: nbytes(*args[:4], *conv2d_pool_fake(*args)),
    vmap=(
        VmapRule({"input": 0}, (0, 1)),
        VmapRule({"input": 1, "weight": 0, "bias": 0, "scale": 0, "groups": 0}, (1, 2)),
    ),
    product=True,
)

CONV2D_POOL_GRAD = Op(
    name="conv2d_pool_grad",
    schema=f"(Tensor grad, Tensor code, Tensor input, Tensor weight, {conv2d.WINDOW}, {_POOL}, bool needs_input, "
    "bool needs_weight, bool? materialized, bool accumulate_dtype=False) -> (Tensor, Tensor, Tensor)",
    fake=grad_fake,
    launcher=grad_launch,
    aten=grad_aten,
    flops=_grad_flops,
    bytes=lambda *args: nbytes(*args[:4], *grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "code": 2, "input": 1, "weight": 0, "groups": 0}, (1, 0, 0)),),
    product=True,
)

"""2-D locally connected layer, a convolution in which each output pixel has weights of its own; and its gradients.

    y[n,k,p,q] = epilogue( Σ_{c,r,s} x[n, c, p·stride − pad + r·dilation, ...] · w[p,q,k,r,s,c] )      epilogue.py

So each pixel is a product of matrices over the batch, with (r,s,c) = term:

    forward:          Y[n, k]     = X̂[n, term] · Ŵ[term, k]            for each (p,q); X̂: what taps read, 0 outside
    input gradient:   dX[n, c]    = Ĝ[n, (r,s,k)] · Ŵ'[(r,s,k), c]     for each (h,w), along a walk (geometry.Walk):
                                                                       every tap has its weights at the pixel it reads
    weight gradient:  dW[k, term] = Gᵀ[k, n] · X̂[n, term]              for each (p,q): the reduction is over the batch

    for each pixel, group, and tile of its result:                one program
        acc = Σ over steps of A(step) · B(step)                   device.main_loop, of tiles as in conv2d_gather.py
        store epilogue(acc)

The weight is [P, Q, K, R, S, C/groups], the last fastest in memory: a pixel's matrix is one piece, of which forward and
weight gradient read and write rows of adjacent terms, and the input gradient pieces of adjacent channels. A weight
serves each image once, so that below some 200 images the time is that of reading the weights, which happens once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator, conv_dot
from ..core import chips
from ..core.device import (
    HOP,
    REACH,
    STEP,
    STRIDE,
    as_tf32,
    main_loop,
    offsets,
    phase_of,
    program_tile,
    tap_of,
    tap_steps,
)
from ..core.op import Fold, Op, channels_last, check_tensors, index_type, launch, nbytes, new, nhwc, tl_type
from ..tiles import model, pick, shapes
from ..window import convolution
from ..window.convolution import cdiv
from .epilogue import BY_COLUMN, OPERANDS, Epilogue, check_epilogue, completed, finish, saving
from .gather import grad_terms, weight_terms, window_pixels, window_terms


@device_function
def placed_terms(operand, step, META: tl.constexpr):
    """B of the input gradient: this step's terms, of the weights at the pixels that taps read, for fixed columns."""
    w, strides, column, exists, first, taps, channels, at, size = operand
    PRECISION: tl.constexpr = META[0]
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    PACKED: tl.constexpr = META[4]
    S: tl.constexpr = META[5]
    r, s, c, has = tap_of(step, channels, taps, PACKED, K)
    p, q = at[0] + r * DOWN[REACH], at[1] + s * ACROSS[REACH]
    has = has & (p >= 0) & (q >= 0) & (p < size[0]) & (q < size[1])
    place = tl.where(has, p * size[1] + q, 0).to(column.dtype)
    tap = (first[0] + r * DOWN[HOP]) * S + first[1] + s * ACROSS[HOP]
    term = place * strides[4] + tap * strides[1] + c * strides[0]
    mask = has[:, None] & exists[None, :]
    return as_tf32(tl.load(w + term[:, None] + column[None, :] * strides[2], mask=mask, other=0.0), PRECISION)


@triton.jit
def placed_kernel(
    x, w, y, epilogue, x_strides, w_strides, y_strides, x_size, y_size, channels, columns, groups,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, S: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS_EACH: tl.constexpr,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y[n, column] of one pixel = epilogue(Σ_term x̂ · w), for a tile of M images x N columns of one group."""
    rows, across = tl.cdiv(y_size[0], M), tl.cdiv(columns, N)
    place = tl.program_id(0) // (rows * across * groups)
    group = tl.program_id(0) // (rows * across) % groups
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)
    p, q = (place // y_size[2]).to(INDEX), (place % y_size[2]).to(INDEX)
    first_r, count_r, h, some_r = phase_of(p % DOWN[STEP], DOWN)
    first_s, count_s, v, some_s = phase_of(q % ACROSS[STEP], ACROSS)
    at = (p // DOWN[STEP] * DOWN[STRIDE] + h, q // ACROSS[STEP] * ACROSS[STRIDE] + v)

    n = row.to(INDEX) * M + tl.arange(0, M)  # [M]
    exists = n < y_size[0]
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    has = k < columns

    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, PACKED, S, TRANSPOSED, "zeros", None)
    taps = (count_r, count_s)
    x += group.to(INDEX) * channels * x_strides[3]
    w += group.to(INDEX) * w_strides[3]
    here = tl.zeros([M], INDEX)
    A = (x, None, x_strides, x_size, (n, here + at[0], here + at[1]), exists, taps, channels)
    acc = tl.zeros([M, N], ACC)
    steps = tap_steps(channels, taps, PACKED, K) * some_r * some_s
    if TRANSPOSED:
        B = (w, w_strides, k, has, (first_r, first_s), taps, channels, at, x_size)
        acc = main_loop(acc, window_terms, A, placed_terms, B, 0, steps, META)
    else:
        B = (w + place.to(INDEX) * w_strides[4], w_strides, k, has, (first_r, first_s), taps, channels)
        acc = main_loop(acc, window_terms, A, weight_terms, B, 0, steps, META)

    k += group * columns
    bias, scale, residual, slope, before, moments, every = epilogue
    if BIAS_EACH:
        bias += place.to(INDEX) * groups * columns
    follows = (bias, scale, residual, slope, before, moments, every)
    acc = finish(acc, follows, row, k, has, (n, p, q), exists, y_strides, ACTIVATION, NUMBERS, INDEX)
    tl.store(y + offsets((n, p, q), k, y_strides), acc.to(y.dtype.element_ty), mask=exists[:, None] & has[None, :])


@triton.jit
def placed_weight_grad_kernel(
    grad, x, dw, grad_strides, x_strides, size, x_size, outputs, channels, groups,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dw[k, term] of one pixel = Σ over the batch of grad · x̂, for a tile of M outputs x N terms of one group."""
    _, count_r, first_h, _ = phase_of(0, DOWN)
    _, count_s, first_w, _ = phase_of(0, ACROSS)
    taps = (count_r, count_s)
    rows, across = tl.cdiv(outputs, M), tap_steps(channels, taps, PACKED, N)
    place = tl.program_id(0) // (rows * across * groups)
    group = tl.program_id(0) // (rows * across) % groups
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)
    p, q = (place // size[2]).to(INDEX), (place % size[2]).to(INDEX)

    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    has_k = k < outputs
    r, s, c, has = tap_of(column, channels, taps, PACKED, N)  # [N]
    c = c.to(INDEX)

    META: tl.constexpr = (PRECISION, K, DOWN, ACROSS, "zeros", None)
    batch = (size[0], 1, 1)  # seen from this pixel, each image is one
    grad += group.to(INDEX) * outputs * grad_strides[3] + p * grad_strides[1] + q * grad_strides[2]
    x += group.to(INDEX) * channels * x_strides[3]
    a = (grad, None, grad_strides, batch, k, has_k)
    h, v = first_h + p * DOWN[STRIDE] + r * DOWN[REACH], first_w + q * ACROSS[STRIDE] + s * ACROSS[REACH]
    b = (x, x_strides, x_size, batch, h, v, c, has)
    acc = main_loop(tl.zeros([M, N], ACC), grad_terms, a, window_pixels, b, 0, tl.cdiv(size[0], K), META)

    k += (place * groups + group).to(INDEX) * outputs
    term = (r * count_s + s) * channels + c
    dw += k[:, None] * (count_r * count_s * channels) + term[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=has_k[:, None] & has[None, :])


def window_of(size: Sequence[int], stride: Any, padding: Any, dilation: Any) -> convolution.Window:
    """The window of a weight of this size."""
    return convolution.Window((size[3], size[4]), tuple(stride), tuple(padding), tuple(dilation))


def product(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, window: convolution.Window, groups: int, transposed: bool,
    epilogue: Epilogue,
) -> None:  # fmt: skip
    """y = epilogue(locally connected product of x and weight), forward or transposed (the input gradient)."""
    if y.numel() == 0:
        return
    window = window.of_outputs((x if transposed else y).shape[2:])
    every, inputs = weight.shape[2], weight.shape[5]
    outputs, terms = every // groups, window.taps * inputs
    channels, columns = (outputs, inputs) if transposed else (inputs, outputs)
    walks = window.walks(transposed)
    weight = weight.contiguous()
    size = (y.shape[0], *y.shape[2:])
    chip = chips.chip_name()
    dot = model.precision_on(chip, conv_dot(x.dtype))
    places = size[1] * size[2] * groups
    phases = walks[0].step * walks[1].step
    problem = shapes.Product(
        (size[0], 1, 1), columns, channels, cdiv(window.taps, phases), 1, places,
        extra_registers="epilogue" if epilogue.extra_registers else "", per_pixel_weights=True,
    )  # fmt: skip
    tile = pick.product(problem, shapes.arithmetic(x.dtype, dot), chip)
    strides = (terms if transposed else 1, inputs, 1 if transposed else terms, outputs * terms, every * terms)
    bias_each = epilogue.bias is not None and epilogue.bias.dim() == 3
    launch(
        placed_kernel, cdiv(size[0], tile.m) * cdiv(columns, tile.n) * places, x, weight, y, epilogue.terms(y, None),
        nhwc(x), strides, nhwc(y), tuple(x.shape[2:]), size, channels, columns, groups,
        DOWN=walks[0].constants(), ACROSS=walks[1].constants(), S=window.size[1], TRANSPOSED=transposed,
        BIAS_EACH=bias_each, **epilogue.constants, PRECISION=dot, INDEX=index_type(x, weight, y),
        ACC=tl_type(accumulator(x.dtype)), M=tile.m, N=tile.n, K=tile.k, PACKED=tile.packed, **tile.options,
    )  # fmt: skip


def local_shape(
    input: Sequence[int], weight: Sequence[int], window: convolution.Window, groups: int
) -> tuple[int, int, int, int]:
    """Output shape (N, K, P, Q). Errors: RuntimeError naming the argument that doesn't fit."""
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
    shape = convolution.conv_shape(input, (weight[2], weight[5], *weight[3:5]), None, window, groups)
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
    shape = local_shape(input.shape, weight.shape, window_of(weight.shape, stride, padding, dilation), groups)
    check_epilogue(bias, scale, residual, slope, input, shape, weight.shape[2], tuple(weight.shape[:2]))
    return new(shape, input, channels_last(input))


def local_launch(
    y, input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation, before=None
):  # fmt: skip
    window = window_of(weight.shape, stride, padding, dilation)
    product(input, weight, y, window, groups, False, Epilogue(bias, scale, residual, slope, activation, before))


def _windows(input, size, stride, padding, dilation, groups):
    """What each window reads, [N, groups, C/groups, P, Q, R, S]; a view of the padded images."""
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

    each = None
    if bias is not None and bias.dim() == 3:  # what all images have beside them
        bias, each = None, bias.permute(2, 0, 1).expand(input.shape[0], -1, -1, -1)
    if input.shape[1] == 0:  # there is no output then, see geometry.conv_shape
        empty = completed(product, bias, scale, each, slope, activation)[:, :0]
        return empty if residual is None else empty + residual
    beside = residual if each is None else each if residual is None else each + residual
    return completed(product, bias, scale, beside, slope, activation)


def _check_grad(grad, weight_size, input_size, stride, padding, dilation, groups):
    window = window_of(weight_size, stride, padding, dilation)
    convolution.same_shape("grad", grad.shape, local_shape(input_size, weight_size, window, groups))


def input_grad_fake(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    check_tensors(grad=grad, weight=weight)
    _check_grad(grad, weight.shape, input_size, stride, padding, dilation, groups)
    return new(input_size, grad, channels_last)


def input_grad_launch(dx, grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    product(grad, weight, dx, window_of(weight.shape, stride, padding, dilation), groups, True, Epilogue())


def input_grad_aten(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    size, window = tuple(weight.shape[3:5]), window_of(weight.shape, stride, padding, dilation)
    images = grad.unflatten(1, (groups, grad.shape[1] // groups))
    each = torch.einsum("ngkpq,pqgkrsc->ngcrspq", images, _matrices(weight, groups)).flatten(1, 4).flatten(2)
    if each.numel() == 0:
        return grad.new_zeros(input_size)
    dx = F.fold(each, window.padded(input_size[2:]), size, dilation, 0, stride)
    top, bottom, left, right = padding
    return F.pad(dx, (-left, -right, -top, -bottom))


def weight_grad_fake(grad, input, weight_size, stride, padding, dilation, groups, wide=False):
    check_tensors(grad=grad, input=input)
    _check_grad(grad, weight_size, input.shape, stride, padding, dilation, groups)
    return new(weight_size, grad, dtype=accumulator(grad.dtype) if wide else None)


def weight_grad_launch(dw, grad, input, weight_size, stride, padding, dilation, groups, wide=False):
    if dw.numel() == 0:
        return
    window = window_of(weight_size, stride, padding, dilation).of_outputs(grad.shape[2:])
    walks = window.walks(False)
    outputs, channels = dw.shape[2] // groups, dw.shape[5]
    size = (grad.shape[0], *grad.shape[2:])
    places = size[1] * size[2] * groups
    chip = chips.chip_name()
    dot = model.precision_on(chip, conv_dot(input.dtype))
    problem = shapes.WeightGrad((size[0], 1, 1), outputs, channels, window.taps, places, per_pixel_weights=True)
    tile = pick.weight_grad(problem, shapes.arithmetic(input.dtype, dot), chip)
    across = cdiv(window.taps * channels, tile.n) if tile.packed else window.taps * cdiv(channels, tile.n)
    launch(
        placed_weight_grad_kernel, cdiv(outputs, tile.m) * across * places, grad, input, dw, nhwc(grad), nhwc(input),
        size, tuple(input.shape[2:]), outputs, channels, groups,
        DOWN=walks[0].constants(), ACROSS=walks[1].constants(), PRECISION=dot, INDEX=index_type(grad, input, dw),
        ACC=tl_type(accumulator(input.dtype)), M=tile.m, N=tile.n, K=tile.k, PACKED=tile.packed,
        **tile.options,
    )  # fmt: skip


def weight_grad_aten(grad, input, weight_size, stride, padding, dilation, groups, wide=False):
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
    folds=(
        Fold({"input": 0, "residual": 0}, (0,)),
        Fold({**BY_COLUMN, "input": 1, "weight": 2, "bias": -2, "groups": 0}, (1,)),
    ),
    product=True,
)
LOCALLY_CONNECTED2D_SAVING = saving(LOCALLY_CONNECTED2D)

LOCALLY_CONNECTED2D_INPUT_GRAD = Op(
    name="locally_connected2d_input_grad",
    schema=f"(Tensor grad, Tensor weight, SymInt[4] input_size, {_WINDOW}, bool channels_last) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, *args: 2 * grad.shape[0] * weight.numel(),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
    folds=(
        Fold({"grad": 0, "input_size": 0}, (0,)),
        Fold({"grad": 1, "weight": 2, "input_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)

LOCALLY_CONNECTED2D_WEIGHT_GRAD = Op(
    name="locally_connected2d_weight_grad",
    schema=f"(Tensor grad, Tensor input, SymInt[6] weight_size, {_WINDOW}, bool wide=False) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, *args: 2 * input.shape[0] * weight_grad_fake(grad, input, *args).numel(),
    bytes=lambda *args: nbytes(*args[:2], weight_grad_fake(*args)),
    folds=(Fold({"grad": 1, "input": 1, "weight_size": 2, "groups": 0}, (2,)),),
    product=True,
)

"""2-D convolution with bias and activation, its input gradient and its weight gradient, as implicit matrix products.

    y[n,k,p,q] = act( b[k] + Σ_{c,r,s} x[n, c, p·stride − pad + r·dilation, ...] · w[k,c,r,s] )

As a product of matrices that are never formed, with (n,p,q) = pixel and (r,s,c) = term:

    forward:          Y[pixel, k]    = X̂[pixel, term] · Ŵ[term, k]        X̂: what taps read, 0 outside
    input gradient:   dX[pixel, c]   = Ĝ[pixel, (r,s,k)] · Ŵ'[(r,s,k), c]  the forward, taps running backwards
    weight gradient:  dW[k, term]    = Gᵀ[k, pixel] · X̂[pixel, term]       the reduction is over pixels

    for each tile of the result:                                  one program
        acc = 0
        for each step of the reduction:                           device.main_loop
            acc += A(step) · B(step)                              tiles gathered as they are needed
        store epilogue(acc)

The weight is read as the matrix [K, R·S·C]: a channels_last weight is one already, others are copied.
Groups are independent products, side by side in the grid.
Source: implicit GEMM, as in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", arXiv:1410.0759.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from . import geometry, tiles
from .device import as_tf32, gather, main_loop, offsets, pixel, program_tile, tap_of, tap_steps
from .epilogue import ACTIVATIONS, sum_parts
from .lang import device_function, tl, triton
from .op import Op, channels_last, check_tensors, index_type, launch, nbytes, new, nhwc, tl_type
from .precision import accumulator, conv_dot


@device_function
def window_terms(operand, step, META: tl.constexpr):
    """A of the forward: what this step's terms read, for fixed pixels. [M, K]"""
    x, strides, size, at, exists, channels = operand
    r, s, _, c, has = tap_of(step, channels, META[1], META[3], META[4])
    return gather(x, strides, size, at, exists, r, s, c, has, META[1], META[2])


@device_function
def weight_terms(operand, step, META: tl.constexpr):
    """B of the forward: this step's terms of the weight, for fixed columns. [K, N]"""
    w, strides, column, exists, channels = operand
    _, _, tap, c, has = tap_of(step, channels, META[1], META[3], META[4])
    term = (tap * strides[1] + c * strides[0]).to(column.dtype)
    mask = has[:, None] & exists[None, :]
    tile = tl.load(w + term[:, None] + column[None, :] * strides[2], mask=mask, other=0.0)
    return as_tf32(tile, META[0]) if META[2] else tile


@triton.jit
def conv_kernel(
    x, w, bias, y, x_strides, w_strides, y_strides, x_size, y_size, channels, columns,
    WINDOW: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """y[pixel, column] = act(bias + Σ_term x̂ · w), for a tile of M pixels x N columns of one group."""
    batch, height, width = y_size
    rows = tl.cdiv(batch * height * width, M)
    across = tl.cdiv(columns, N)
    group = tl.program_id(0) // (rows * across)
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)

    index = row.to(INDEX) * M + tl.arange(0, M)  # [M]
    at = pixel(index, height, width)
    exists = at[0] < batch
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    has = k < columns

    META: tl.constexpr = (PRECISION, WINDOW, TRANSPOSED, PACKED, K)
    x += group.to(INDEX) * channels * x_strides[3]
    w += group.to(INDEX) * w_strides[3]
    a = (x, x_strides, x_size, at, exists, channels)
    b = (w, w_strides, k, has, channels)
    acc = tl.zeros([M, N], ACC)
    steps = tap_steps(channels, WINDOW, PACKED, K)
    acc = main_loop(acc, window_terms, a, weight_terms, b, 0, steps, META)

    k += group * columns
    if bias is not None:
        acc += tl.load(bias + k, mask=has, other=0.0).to(ACC)[None, :]
    y += offsets(at, k, y_strides)
    tl.store(y, ACTIVATION(acc).to(y.dtype.element_ty), mask=exists[:, None] & has[None, :])


@device_function
def grad_terms(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's pixels. [M, K]"""
    grad, strides, size, column, has = operand
    index = step * META[4] + tl.arange(0, META[4])  # [K]
    at = pixel(index.to(column.dtype), size[1], size[2])
    mask = (at[0] < size[0])[None, :] & has[:, None]
    rows = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
    tile = tl.load(grad + rows[None, :] + column[:, None] * strides[3], mask=mask, other=0.0)
    return as_tf32(tile, META[0])


@device_function
def window_pixels(operand, step, META: tl.constexpr):
    """B of the weight gradient: what fixed terms read, for this step's pixels. [K, N]"""
    x, strides, x_size, size, r, s, c, has = operand
    index = step * META[4] + tl.arange(0, META[4])  # [K]
    at = pixel(index.to(c.dtype), size[1], size[2])
    tile = gather(x, strides, x_size, at, at[0] < size[0], r, s, c, has, META[1], META[2])
    return as_tf32(tile, META[0])


@triton.jit
def weight_grad_kernel(
    grad, x, dw, grad_strides, x_strides, size, x_size, outputs, channels, groups, split,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """dw[part, k, term] = Σ over the part's pixels of grad · x̂, for a tile of M outputs x N terms of one group."""
    rows = tl.cdiv(outputs, M)
    across = tap_steps(channels, WINDOW, PACKED, N)
    part = tl.program_id(0) // (rows * across * groups)
    group = tl.program_id(0) // (rows * across) % groups
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)

    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    has_k = k < outputs
    r, s, tap, c, has = tap_of(column, channels, WINDOW, PACKED, N)  # [N]
    c = c.to(INDEX)

    steps = tl.cdiv(size[0] * size[1] * size[2], K)
    chunk = tl.cdiv(steps, split)
    META: tl.constexpr = (PRECISION, WINDOW, False, PACKED, K)
    grad += group.to(INDEX) * outputs * grad_strides[3]
    x += group.to(INDEX) * channels * x_strides[3]
    a = (grad, grad_strides, size, k, has_k)
    b = (x, x_strides, x_size, size, r, s, c, has)
    acc = tl.zeros([M, N], ACC)
    last = tl.minimum((part + 1) * chunk, steps)
    acc = main_loop(acc, grad_terms, a, window_pixels, b, part * chunk, last, META)

    terms = WINDOW[0][0] * WINDOW[0][1] * channels
    k += (part * groups + group).to(INDEX) * outputs
    dw += k[:, None] * terms + (tap * channels + c)[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=has_k[:, None] & has[None, :])


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight with the memory of the matrix [K, R·S·C/groups]; copied unless it is channels_last already."""
    return weight.contiguous(memory_format=torch.channels_last)


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, window: geometry.Window,
    groups: int, transposed: bool, activation: str, dot: str,
) -> None:  # fmt: skip
    """y = act(window product of x and weight + bias), forward or with the taps running backwards (transposed)."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    terms = window.taps * inputs
    channels, columns = (outputs, inputs) if transposed else (inputs, outputs)
    batch, _, height, width = y.shape
    chip = tiles.chip_name()
    dot = tiles.dot_on(chip, dot)
    kind = tiles.arithmetic(y.dtype, dot)
    tile = tiles.pick_matrix(batch * height * width, columns, channels, window.taps, kind, chip, groups)
    programs = triton.cdiv(batch * height * width, tile.m) * triton.cdiv(columns, tile.n) * groups
    launch(
        conv_kernel, programs, x, matrix(weight), bias, y, nhwc(x),
        (terms if transposed else 1, inputs, 1 if transposed else terms, outputs * terms), nhwc(y),
        tuple(x.shape[2:]), (batch, height, width), channels, columns,
        WINDOW=window.constants(), TRANSPOSED=transposed, ACTIVATION=ACTIVATIONS[activation].forward,
        PRECISION=dot, INDEX=index_type(x, weight, y), ACC=tl_type(accumulator(y.dtype)),
        M=tile.m, N=tile.n, K=tile.k, PACKED=tile.packed, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def weight_product(
    grad: torch.Tensor, x: torch.Tensor, dw: torch.Tensor, window: geometry.Window, groups: int, dot: str
) -> None:
    """dw = Σ over pixels of grad · x̂, with the memory of the matrix [K, R·S·C/groups]; split sums meet in a
    workspace and are added in order."""
    outputs, channels = dw.shape[0] // groups, dw.shape[1]
    batch, _, height, width = grad.shape
    terms, pixels = window.taps * channels, batch * height * width
    chip = tiles.chip_name()
    dot = tiles.dot_on(chip, dot)
    kind = tiles.arithmetic(x.dtype, dot)
    tile = tiles.pick_weight_grad(outputs, channels, window.taps, pixels, kind, chip, groups)
    parts = dw if tile.split == 1 else new((tile.split, dw.numel()), dw, dtype=accumulator(dw.dtype))
    across = triton.cdiv(terms, tile.n) if tile.packed else window.taps * triton.cdiv(channels, tile.n)
    programs = triton.cdiv(outputs, tile.m) * across * groups * tile.split
    launch(
        weight_grad_kernel, programs, grad, x, parts, nhwc(grad), nhwc(x), (batch, height, width),
        tuple(x.shape[2:]), outputs, channels, groups, tile.split,
        WINDOW=window.constants(), PRECISION=dot, INDEX=index_type(grad, x, parts),
        ACC=tl_type(accumulator(x.dtype)), M=tile.m, N=tile.n, K=tile.k, PACKED=tile.packed,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if parts is not dw:
        sum_parts(parts, dw)


def _window(size: Sequence[int], stride: Any, padding: Any, dilation: Any) -> geometry.Window:
    return geometry.Window((size[2], size[3]), tuple(stride), tuple(padding), tuple(dilation))


def conv2d_fake(input, weight, bias, stride, padding, dilation, groups, activation):
    check_tensors(input=input, weight=weight, bias=bias)
    window = _window(weight.shape, stride, padding, dilation)
    shape = geometry.conv_shape(input.shape, weight.shape, bias if bias is None else bias.shape, window, groups)
    return new(shape, input, channels_last(input, weight))


def conv2d_launch(y, input, weight, bias, stride, padding, dilation, groups, activation):
    window = _window(weight.shape, stride, padding, dilation)
    product(input, weight, bias, y, window, groups, False, activation, conv_dot(input.dtype))


def conv2d_aten(input, weight, bias, stride, padding, dilation, groups, activation):
    top, bottom, left, right = padding
    padded = F.pad(input, (left, right, top, bottom))
    return ACTIVATIONS[activation].reference(F.conv2d(padded, weight, bias, stride, 0, dilation, groups))


def input_grad_fake(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    check_tensors(grad=grad, weight=weight)
    window = _window(weight.shape, stride, padding, dilation)
    expected = geometry.conv_shape(input_size, weight.shape, None, window, groups)
    geometry.same_shape("grad", grad.shape, expected)
    return new(input_size, grad, channels_last)


def input_grad_launch(dx, grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    window = _window(weight.shape, stride, padding, dilation)
    product(grad, weight, None, dx, window, groups, True, "none", conv_dot(grad.dtype))


def input_grad_aten(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
    n, c, h, w = input_size
    top, bottom, left, right = padding
    size = (n, c, h + top + bottom, w + left + right)
    padded = torch.nn.grad.conv2d_input(size, weight, grad, stride, 0, dilation, groups)
    return padded[:, :, top : top + h, left : left + w]


def weight_grad_fake(grad, input, weight_size, stride, padding, dilation, groups, channels_last):
    check_tensors(grad=grad, input=input)
    window = _window(weight_size, stride, padding, dilation)
    geometry.same_shape("grad", grad.shape, geometry.conv_shape(input.shape, weight_size, None, window, groups))
    return new(weight_size, grad, channels_last)


def weight_grad_launch(dw, grad, input, weight_size, stride, padding, dilation, groups, channels_last):
    matrix = dw if dw.is_contiguous(memory_format=torch.channels_last) else new(weight_size, dw, True)
    window = _window(weight_size, stride, padding, dilation)
    weight_product(grad, input, matrix, window, groups, conv_dot(grad.dtype))
    if matrix is not dw:
        dw.copy_(matrix)


def weight_grad_aten(grad, input, weight_size, stride, padding, dilation, groups, channels_last):
    top, bottom, left, right = padding
    padded = F.pad(input, (left, right, top, bottom))
    return torch.nn.grad.conv2d_weight(padded, weight_size, grad, stride, 0, dilation, groups)


def _flops(pixels_by_outputs: int, weight_size: Sequence[int]) -> int:
    return 2 * pixels_by_outputs * math.prod(weight_size[1:])


_WINDOW = "int[2] stride, int[4] padding, int[2] dilation, int groups"

CONV2D = Op(
    name="conv2d",
    schema=f"(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}, str activation) -> Tensor",
    fake=conv2d_fake,
    launcher=conv2d_launch,
    aten=conv2d_aten,
    flops=lambda input, weight, *args: _flops(conv2d_fake(input, weight, *args).numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:3], conv2d_fake(*args)),
)

CONV2D_INPUT_GRAD = Op(
    name="conv2d_input_grad",
    schema=f"(Tensor grad, Tensor weight, SymInt[4] input_size, {_WINDOW}, bool channels_last) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, *args: _flops(grad.numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
)

CONV2D_WEIGHT_GRAD = Op(
    name="conv2d_weight_grad",
    schema=f"(Tensor grad, Tensor input, SymInt[4] weight_size, {_WINDOW}, bool channels_last) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, weight_size, *args: _flops(grad.numel(), weight_size),
    bytes=lambda *args: nbytes(*args[:2], weight_grad_fake(*args)),
)

"""Products with tiles gathered by pointers: on any chip, for any strides, sizes and groups.

    forward, input gradient:  Y[pixel, k] = X̂[pixel, term] · Ŵ[term, k]
    weight gradient:          dW[k, term] = Gᵀ[k, pixel] · X̂[pixel, term]      G may be read through a pooling's code

    for each tile of the result:                                  one program
        acc = 0
        for each step of the reduction:                           loop.main_loop
            acc += A(step) · B(step)                              each thread works out addresses and masks
        store epilogue(acc)

Groups are independent products, side by side in the grid; so are the phases of an input gradient
(window.convolution.Walk). With few channels (a first layer's one or three) taps and channels are one flat reduction,
packed into full steps.
"""

import math
from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core.images import Images, Pixel, Size, offsets, pixel
from ..core.op import launch
from ..core.tensors import index_type, tl_type
from ..streaming.sums import sum_parts
from ..window.convolution import Phase
from ..window.layout import cdiv
from .epilogue import finish
from .loop import as_tf32, main_loop, offset_inside, phase_of, program_tile, source_index, tap_of, tap_steps
from .meta import Code, Meta, Results, Terms, Weight
from .pool_code import gather_open, pool_start, pool_step, store_byte, store_pooled
from .problem import (
    Path,
    Problem,
    WeightProblem,
    matrix,
    new_moments,
    new_parts,
    weight_strides,
)  # fmt: skip


class WindowOperand(NamedTuple):
    """X̂ of fixed pixels: what the taps of a phase read from pixels `at` on."""

    x: Images
    code: Any
    at: Pixel
    mask: Any
    down: Phase
    across: Phase
    channels: Any


class WeightOperand(NamedTuple):
    """Ŵ of fixed columns: the weights of a phase's taps."""

    w: Weight
    column: Any
    mask: Any
    down: Phase
    across: Phase
    channels: Any


class GradOperand(NamedTuple):
    """Gᵀ of fixed columns."""

    grad: Images
    code: Any
    column: Any
    mask: Any


class PixelsOperand(NamedTuple):
    """X̂ of fixed terms, which read (h, w) away from the results' pixels."""

    x: Images
    size: Any
    h: Any
    w: Any
    terms: Terms


@device_function
def gather(x, at, pixel_mask, h, w, c, c_mask, PADDING: tl.constexpr):
    """Return the tile [pixels, terms] of what lies (h, w) away from pixels `at` in channels c; outside of the images
    what the padding shows there, 0 if nothing."""
    h = source_index(at.h[:, None] + h[None, :], x.size.h, PADDING)  # [pixels, terms or 1]
    w = source_index(at.w[:, None] + w[None, :], x.size.w, PADDING)
    inside = (h >= 0) & (w >= 0) & (h < x.size.h) & (w < x.size.w) & pixel_mask[:, None]
    image = at.n[:, None] * x.strides.n + offset_inside(h, w, x.strides, inside)
    return tl.load(x.data + image + c[None, :] * x.strides.c, mask=inside & c_mask[None, :], other=0.0)


@device_function
def window_terms(operand, step, META: tl.constexpr):
    """A of the forward: what this step's terms read, for fixed pixels. [M, K]"""
    K: tl.constexpr = META.k
    PACKED: tl.constexpr = META.packed
    PADDING: tl.constexpr = META.padding_mode
    GRAD_POOL: tl.constexpr = META.grad_pool
    terms = tap_of(step, operand.channels, operand.down.count, operand.across.count, PACKED, K)
    h, w = terms.r * META.down.input_step, terms.s * META.across.input_step
    if GRAD_POOL is None:
        return gather(operand.x, operand.at, operand.mask, h, w, terms.c, terms.mask, PADDING)
    else:
        return gather_open(operand.x, operand.code, operand.at, operand.mask, h, w, terms.c, terms.mask, GRAD_POOL)


@device_function
def weight_terms(operand, step, META: tl.constexpr):
    """B of the forward: this step's terms of the weight, for fixed columns. [K, N]"""
    K: tl.constexpr = META.k
    PACKED: tl.constexpr = META.packed
    PRECISION: tl.constexpr = META.precision
    w, strides = operand.w.data, operand.w.strides
    terms = tap_of(step, operand.channels, operand.down.count, operand.across.count, PACKED, K)
    row = operand.down.first + terms.r * META.down.weight_step
    tap = row * META.taps.columns + operand.across.first + terms.s * META.across.weight_step
    term = (tap * strides.tap + terms.c * strides.channel).to(operand.column.dtype)
    mask = terms.mask[:, None] & operand.mask[None, :]
    tile = tl.load(w + term[:, None] + operand.column[None, :] * strides.column, mask=mask, other=0.0)
    return as_tf32(tile, PRECISION) if META.transposed else tile


@triton.jit
def conv_kernel(x, code, w, y, epilogue, channels, columns, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """y[pixel, column] = epilogue(Σ_term x̂ · w), for a tile of M pixels of one phase x N columns of one group."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    PHASES: tl.constexpr = DOWN.result_step * ACROSS.result_step
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    PACKED: tl.constexpr = META.packed
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    batch, height, width = y.size.n, tl.cdiv(y.size.h, DOWN.result_step), tl.cdiv(y.size.w, ACROSS.result_step)
    row_tiles = tl.cdiv(batch * height * width, M)
    column_tiles = tl.cdiv(columns, N)
    group = tl.program_id(0) // (row_tiles * column_tiles * PHASES)
    phase = tl.program_id(0) // (row_tiles * column_tiles) % PHASES
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    a, b = phase // ACROSS.result_step, phase % ACROSS.result_step
    down, across = phase_of(a, DOWN), phase_of(b, ACROSS)

    at = pixel(row.to(INDEX) * M + tl.arange(0, M), height, width)  # [M]
    p, q = a + at.h * DOWN.result_step, b + at.w * ACROSS.result_step
    pixel_mask = (at.n < batch) & (p < y.size.h) & (q < y.size.w)
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    k_mask = k < columns

    first = group.to(INDEX) * channels * x.strides.c
    x = Images(x.data + first, x.strides, x.size)
    if META.grad_pool is not None:
        code = Code(code.data + first, code.strides, code.plane)
    w = Weight(w.data + group.to(INDEX) * w.strides.group, w.strides)
    reads = Pixel(at.n, at.h * DOWN.stride + down.offset, at.w * ACROSS.stride + across.offset)
    A = WindowOperand(x, code, reads, pixel_mask, down, across, channels)
    B = WeightOperand(w, k, k_mask, down, across, channels)
    acc = tl.zeros([M, N], ACC)
    steps = tap_steps(channels, down.count, across.count, PACKED, K) * down.nonempty * across.nonempty
    acc = main_loop(acc, window_terms, A, weight_terms, B, 0, steps, META)

    k += group * columns
    results = Results(row, Pixel(at.n, p, q), pixel_mask, k, k_mask)
    acc = finish(acc, epilogue, results, y.strides, ACTIVATION, INDEX)
    to = y.data + offsets(results.at, k, y.strides)
    tl.store(to, acc.to(y.data.dtype.element_ty), mask=pixel_mask[:, None] & k_mask[None, :])


@triton.jit
def conv_pool_kernel(x, w, y, code, epilogue, channels, columns, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """(y, code)[pixel, column] = pooling (pool_code.py) of epilogue(Σ_term x̂ · w), for a tile of M pooled pixels x N
    columns of one group. A tap of the pooling is a convolution by its stride, `shift` pixels from its neighbour's."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    POOL: tl.constexpr = META.pool
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    KIND: tl.constexpr = y.data.dtype.element_ty
    PACKED: tl.constexpr = META.packed
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    row_tiles = tl.cdiv(y.size.n * y.size.h * y.size.w, M)
    column_tiles = tl.cdiv(columns, N)
    group = tl.program_id(0) // (row_tiles * column_tiles)
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)
    at = pixel(row.to(INDEX) * M + tl.arange(0, M), y.size.h, y.size.w)  # [M]
    pixel_mask = at.n < y.size.n
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    k_mask = k < columns

    steps = tap_steps(channels, down.count, across.count, PACKED, K)
    x = Images(x.data + group.to(INDEX) * channels * x.strides.c, x.strides, x.size)
    w = Weight(w.data + group.to(INDEX) * w.strides.group, w.strides)
    B = WeightOperand(w, k, k_mask, down, across, channels)
    k += group * columns
    results = Results(row, at, pixel_mask, k, k_mask)
    to = offsets(at, k, y.strides)
    mask = pixel_mask[:, None] & k_mask[None, :]
    pooled, won = pool_start(M, N, POOL, ACC)
    for t in range(POOL.rows * POOL.columns):
        i = at.h * DOWN.stride + t // POOL.columns * META.shift[0]
        j = at.w * ACROSS.stride + t % POOL.columns * META.shift[1]
        A = WindowOperand(x, None, Pixel(at.n, i + down.offset, j + across.offset), pixel_mask, down, across, channels)
        acc = main_loop(tl.zeros([M, N], ACC), window_terms, A, weight_terms, B, 0, steps, META)
        acc = finish(acc, epilogue, results, y.strides, ACTIVATION, INDEX)
        pooled, won = pool_step(pooled, won, acc, t, KIND, POOL)
        store_byte(code, to, won, t, mask, POOL)
    store_pooled(y.data, code, to, pooled, won, mask, POOL)


@device_function
def grad_terms(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's pixels. [M, K]"""
    K: tl.constexpr = META.k
    GRAD_POOL: tl.constexpr = META.grad_pool
    PRECISION: tl.constexpr = META.precision
    grad = operand.grad
    index = step * K + tl.arange(0, K)  # [K]
    at = pixel(index.to(operand.column.dtype), grad.size.h, grad.size.w)
    if GRAD_POOL is None:
        mask = (at.n < grad.size.n)[None, :] & operand.mask[:, None]
        rows = at.n * grad.strides.n + at.h * grad.strides.h + at.w * grad.strides.w
        to = grad.data + rows[None, :] + operand.column[:, None] * grad.strides.c
        tile = tl.load(to, mask=mask, other=0.0)
    else:
        here = tl.zeros([1], tl.int32)
        size = Size(grad.size.n, grad.size.h // GRAD_POOL.rows, grad.size.w // GRAD_POOL.columns)
        pooled = Images(grad.data, grad.strides, size)
        mask = at.n < grad.size.n
        tile = gather_open(pooled, operand.code, at, mask, here, here, operand.column, operand.mask, GRAD_POOL).T
    return as_tf32(tile, PRECISION)


@device_function
def window_pixels(operand, step, META: tl.constexpr):
    """B of the weight gradient: what fixed terms read, for this step's pixels. [K, N]"""
    K: tl.constexpr = META.k
    PADDING: tl.constexpr = META.padding_mode
    PRECISION: tl.constexpr = META.precision
    terms, size = operand.terms, operand.size
    at = pixel((step * K + tl.arange(0, K)).to(terms.c.dtype), size.h, size.w)  # [K]
    reads = Pixel(at.n, at.h * META.down.stride, at.w * META.across.stride)
    tile = gather(operand.x, reads, at.n < size.n, operand.h, operand.w, terms.c, terms.mask, PADDING)
    return as_tf32(tile, PRECISION)


@triton.jit(do_not_specialize=["groups", "parts"])
def weight_grad_kernel(grad, code, x, dw, outputs, channels, groups, parts, META: tl.constexpr):
    """dw[part, k, term] = Σ over the part's pixels of grad · x̂, for a tile of M outputs x N terms of one group."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    PACKED: tl.constexpr = META.packed
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)
    row_tiles = tl.cdiv(outputs, M)
    column_tiles = tap_steps(channels, down.count, across.count, PACKED, N)
    part = tl.program_id(0) // (row_tiles * column_tiles * groups)
    group = tl.program_id(0) // (row_tiles * column_tiles) % groups
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)

    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    k_mask = k < outputs
    terms = tap_of(column, channels, down.count, across.count, PACKED, N)  # [N]
    terms = Terms(terms.r, terms.s, terms.c.to(INDEX), terms.mask)

    steps = tl.cdiv(grad.size.n * grad.size.h * grad.size.w, K)
    chunk = tl.cdiv(steps, parts)
    first = group.to(INDEX) * outputs * grad.strides.c
    grad = Images(grad.data + first, grad.strides, grad.size)
    if META.grad_pool is not None:
        code = Code(code.data + first, code.strides, code.plane)
    x = Images(x.data + group.to(INDEX) * channels * x.strides.c, x.strides, x.size)
    h, w = down.offset + terms.r * DOWN.input_step, across.offset + terms.s * ACROSS.input_step
    A = GradOperand(grad, code, k, k_mask)
    B = PixelsOperand(x, grad.size, h, w, terms)
    acc = tl.zeros([M, N], ACC)
    end = tl.minimum((part + 1) * chunk, steps)
    acc = main_loop(acc, grad_terms, A, window_pixels, B, part * chunk, end, META)

    k += (part * groups + group).to(INDEX) * outputs
    term = (terms.r * across.count + terms.s) * channels + terms.c
    dw += k[:, None] * (down.count * across.count * channels) + term[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=k_mask[:, None] & terms.mask[None, :])


def forward(problem: Problem) -> torch.Tensor | None:
    """Launch a product; see Path."""
    it, at = problem, problem.picked
    tile, data, y = at.tile, matrix(it.weight), it.y
    pooling = it.pool or it.pooled
    code = pooling and pooling.code
    moments = new_moments(it, at.row_tiles)
    meta = Meta.of(
        it.walks, it.window.size, at.precision, tile, transposed=it.transposed, padding_mode=it.window.padding_mode,
        pool=it.pool and it.pool.pool, shift=it.window.stride if it.pool else (1, 1),
        grad_pool=it.pooled and it.pooled.pool, accumulator=tl_type(accumulator(y.dtype)),
        index=index_type(it.x, data, y, code and code.data),
    )  # fmt: skip
    programs = at.row_tiles * cdiv(it.columns, tile.n) * it.groups * math.prod(it.walks.result_steps)
    weight = Weight(data, weight_strides(it))
    kernel, operands = conv_kernel, (at.x, code, weight, at.y)
    if it.pool:
        kernel, operands = conv_pool_kernel, (at.x, weight, at.y, code)
    launch(
        kernel, programs, *operands, it.epilogue.operands(y, moments), it.channels, it.columns,
        ACTIVATION=it.epilogue.on_device(it.y.dtype), META=meta, **tile.options,
    )  # fmt: skip
    return moments


def weight_grad(problem: WeightProblem) -> None:
    """Launch a weight gradient; see Path."""
    it, at = problem, problem.picked
    tile, code = at.tile, it.pooled.code if it.pooled else None
    parts = new_parts(it, tile.parts)
    meta = Meta.of(
        it.window.walks(False), it.window.size, at.precision, tile, padding_mode=it.window.padding_mode,
        grad_pool=it.pooled and it.pooled.pool, accumulator=tl_type(accumulator(it.x.dtype)),
        index=index_type(it.grad, it.x, parts, code and code.data),
    )  # fmt: skip
    outputs, channels = it.dw.shape[0] // it.groups, it.dw.shape[1]
    launch(
        weight_grad_kernel, at.programs, at.grad, code, at.x, parts, outputs, channels, it.groups, tile.parts,
        META=meta, **tile.options,
    )  # fmt: skip
    if parts is not it.dw:
        sum_parts(parts, it.dw)


PATH = Path(lambda problem: True, forward, weight_grad)

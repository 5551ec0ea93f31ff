"""Products in many narrow groups, as batches of matrix products: a tile takes several groups at once.

    forward, input gradient:  Y[g, pixel, k] = X̂[g, pixel, term] · Ŵ[g, term, k]     term = (r,s,c), c of few channels
    weight gradient:          dW[g, k, term] = Gᵀ[g, k, pixel] · X̂[g, pixel, term]

    for each tile of G groups, M pixels, N columns:               one program
        acc[g] = 0 for each of its groups
        for each step of the reduction:                           loop.main_loop, of three-dimensional tiles
            acc[g] += A(step)[g] · B(step)[g]
        store epilogue(acc), groups side by side

What a group of a few channels lacks to fill a line of memory, its neighbours in the tile give; and taps and channels
are one flat reduction, so that no step is padded with channels that there are not. Their number is compiled for.
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Pixel, offsets, pixel
from ..core.op import launch
from ..core.tensors import index_type, tl_type
from ..streaming.sums import sum_parts
from ..tiles import pick, shapes
from ..tiles.model import precision_on
from ..window.convolution import Phase
from ..window.layout import cdiv
from .epilogue import finish
from .loop import as_tf32, main_loop, offset_inside, phase_of, program_tile, source_index
from .meta import Meta, Results, Terms, Weight
from .problem import Path, Problem, WeightProblem, matrix, new_moments, new_parts, weight_strides


class Groups(NamedTuple):
    """A tile's groups g [G], and which of them exist."""

    g: Any
    mask: Any


class WindowOperand(NamedTuple):
    """X̂ of fixed pixels in a tile's groups: what the taps of a phase read from pixels `at` on."""

    x: Images
    at: Pixel
    mask: Any
    groups: Groups
    down: Phase
    across: Phase


class WeightOperand(NamedTuple):
    """Ŵ of fixed columns of a tile's groups: the weights of a phase's taps."""

    w: Weight
    groups: Groups
    column: Any
    mask: Any
    down: Phase
    across: Phase


class GradOperand(NamedTuple):
    """Gᵀ of fixed columns of a tile's groups, which have `outputs` each."""

    grad: Images
    groups: Groups
    column: Any
    mask: Any
    outputs: Any


class PixelsOperand(NamedTuple):
    """X̂ of fixed terms of a tile's groups, which read (h, w) away from the results' pixels."""

    x: Images
    size: Any
    h: Any
    w: Any
    terms: Terms
    groups: Groups


@device_function
def term_of(step, down, across, CHANNELS: tl.constexpr, TERMS: tl.constexpr):
    """Return a step's terms [TERMS] along the taps of a phase."""
    term = step * TERMS + tl.arange(0, TERMS)
    tap = term // CHANNELS
    return Terms(tap // across.count, tap % across.count, term % CHANNELS, tap < down.count * across.count)


@device_function
def gather_groups(x, at, pixel_mask, h, w, terms, groups, META: tl.constexpr):
    """Return what lies (h, w) away from pixels `at` in the terms' channels of groups. [G, pixels, terms]"""
    PADDING: tl.constexpr = META.padding_mode
    h = source_index(at.h[:, None] + h[None, :], x.size.h, PADDING)  # [pixels, terms]
    w = source_index(at.w[:, None] + w[None, :], x.size.w, PADDING)
    inside = (h >= 0) & (w >= 0) & (h < x.size.h) & (w < x.size.w) & pixel_mask[:, None] & terms.mask[None, :]
    image = at.n[:, None] * x.strides.n + offset_inside(h, w, x.strides, inside) + terms.c[None, :] * x.strides.c
    to = (groups.g * META.channels * x.strides.c)[:, None, None] + image[None, :, :]
    return tl.load(x.data + to, mask=groups.mask[:, None, None] & inside[None, :, :], other=0.0)


@device_function
def group_terms(operand, step, META: tl.constexpr):
    """A of the forward: what this step's terms read, for fixed pixels. [G, M, K]"""
    K: tl.constexpr = META.k
    CHANNELS: tl.constexpr = META.channels
    terms = term_of(step, operand.down, operand.across, CHANNELS, K)
    h, w = terms.r * META.down.input_step, terms.s * META.across.input_step
    return gather_groups(operand.x, operand.at, operand.mask, h, w, terms, operand.groups, META)


@device_function
def group_weights(operand, step, META: tl.constexpr):
    """B of the forward: this step's terms of the weight, for fixed columns. [G, K, N]"""
    K: tl.constexpr = META.k
    CHANNELS: tl.constexpr = META.channels
    PRECISION: tl.constexpr = META.precision
    strides, groups = operand.w.strides, operand.groups
    terms = term_of(step, operand.down, operand.across, CHANNELS, K)
    row = operand.down.first + terms.r * META.down.weight_step
    tap = row * META.taps.columns + operand.across.first + terms.s * META.across.weight_step
    term = (tap * strides.tap + terms.c * strides.channel).to(operand.column.dtype)
    to = (groups.g * strides.group)[:, None, None] + term[None, :, None]
    to += (operand.column * strides.column)[None, None, :]
    mask = groups.mask[:, None, None] & terms.mask[None, :, None] & operand.mask[None, None, :]
    tile = tl.load(operand.w.data + to, mask=mask, other=0.0)
    return as_tf32(tile, PRECISION) if META.transposed else tile


@triton.jit
def grouped_kernel(x, w, y, epilogue, channels, columns, groups, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """y[pixel, column] = epilogue(Σ_term x̂ · w), for a tile of M pixels of a phase x N columns of each of G groups."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    G: tl.constexpr = META.groups
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    height, width = tl.cdiv(y.size.h, DOWN.result_step), tl.cdiv(y.size.w, ACROSS.result_step)
    row_tiles, column_tiles, blocks = tl.cdiv(y.size.n * height * width, M), tl.cdiv(columns, N), tl.cdiv(groups, G)
    phase = tl.program_id(0) // (row_tiles * column_tiles * blocks)
    program = tl.program_id(0) % (row_tiles * column_tiles * blocks)
    row, column = program_tile(program, row_tiles, column_tiles * blocks)
    a, b = phase // ACROSS.result_step, phase % ACROSS.result_step
    down, across = phase_of(a, DOWN), phase_of(b, ACROSS)

    at = pixel(row.to(INDEX) * M + tl.arange(0, M), height, width)  # [M]
    p, q = a + at.h * DOWN.result_step, b + at.w * ACROSS.result_step
    pixel_mask = (at.n < y.size.n) & (p < y.size.h) & (q < y.size.w)
    g = (column // column_tiles * G + tl.arange(0, G)).to(INDEX)  # [G]
    k = (column % column_tiles * N + tl.arange(0, N)).to(INDEX)  # [N]
    tile_groups, k_mask = Groups(g, g < groups), k < columns

    reads = Pixel(at.n, at.h * DOWN.stride + down.offset, at.w * ACROSS.stride + across.offset)
    A = WindowOperand(x, reads, pixel_mask, tile_groups, down, across)
    B = WeightOperand(w, tile_groups, k, k_mask, down, across)
    # Channels are not the constant here, or LLVM would unroll the loop.
    steps = tl.cdiv(down.count * across.count * channels, K) * down.nonempty * across.nonempty
    acc = main_loop(tl.zeros([G, M, N], ACC), group_terms, A, group_weights, B, 0, steps, META)

    acc = acc.permute(1, 0, 2).reshape(M, G * N)
    k = (g[:, None] * columns + k[None, :]).reshape(G * N)
    k_mask = (tile_groups.mask[:, None] & k_mask[None, :]).reshape(G * N)
    results = Results(row, Pixel(at.n, p, q), pixel_mask, k, k_mask)
    acc = finish(acc, epilogue, results, y.strides, ACTIVATION, INDEX)
    to = y.data + offsets(results.at, k, y.strides)
    tl.store(to, acc.to(y.data.dtype.element_ty), mask=pixel_mask[:, None] & k_mask[None, :])


@device_function
def group_grads(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's pixels. [G, M, K]"""
    K: tl.constexpr = META.k
    PRECISION: tl.constexpr = META.precision
    grad, groups, k = operand.grad, operand.groups, operand.column
    at = pixel((step * K + tl.arange(0, K)).to(k.dtype), grad.size.h, grad.size.w)
    rows = at.n * grad.strides.n + at.h * grad.strides.h + at.w * grad.strides.w
    columns = (groups.g * operand.outputs)[:, None] + k[None, :]
    mask = (groups.mask[:, None] & operand.mask[None, :])[:, :, None] & (at.n < grad.size.n)[None, None, :]
    to = grad.data + (columns * grad.strides.c)[:, :, None] + rows[None, None, :]
    return as_tf32(tl.load(to, mask=mask, other=0.0), PRECISION)


@device_function
def group_pixels(operand, step, META: tl.constexpr):
    """B of the weight gradient: what fixed terms read, for this step's pixels. [G, K, N]"""
    K: tl.constexpr = META.k
    PRECISION: tl.constexpr = META.precision
    terms, size = operand.terms, operand.size
    at = pixel((step * K + tl.arange(0, K)).to(terms.c.dtype), size.h, size.w)
    from_pixels = Pixel(at.n, at.h * META.down.stride, at.w * META.across.stride)
    tile = gather_groups(operand.x, from_pixels, at.n < size.n, operand.h, operand.w, terms, operand.groups, META)
    return as_tf32(tile, PRECISION)


@triton.jit(do_not_specialize=["groups", "parts"])
def grouped_weight_grad_kernel(grad, x, dw, outputs, groups, parts, META: tl.constexpr):
    """dw[part, k, term] = Σ over a part's pixels of grad · x̂, for a tile of M outputs x N terms of each of G groups."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    CHANNELS: tl.constexpr = META.channels
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    G: tl.constexpr = META.groups
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)
    count = down.count * across.count * CHANNELS
    row_tiles, column_tiles, blocks = tl.cdiv(outputs, M), tl.cdiv(count, N), tl.cdiv(groups, G)
    part = tl.program_id(0) // (row_tiles * column_tiles * blocks)
    block = tl.program_id(0) // (row_tiles * column_tiles) % blocks
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)

    g = (block * G + tl.arange(0, G)).to(INDEX)  # [G]
    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    tile_groups, k_mask = Groups(g, g < groups), k < outputs
    terms = term_of(column, down, across, CHANNELS, N)  # [N]
    terms = Terms(terms.r, terms.s, terms.c.to(INDEX), terms.mask)

    steps = tl.cdiv(grad.size.n * grad.size.h * grad.size.w, K)
    chunk = tl.cdiv(steps, parts)
    A = GradOperand(grad, tile_groups, k, k_mask, outputs)
    h, w = down.offset + terms.r * DOWN.input_step, across.offset + terms.s * ACROSS.input_step
    B = PixelsOperand(x, grad.size, h, w, terms, tile_groups)
    end = tl.minimum((part + 1) * chunk, steps)
    acc = main_loop(tl.zeros([G, M, N], ACC), group_grads, A, group_pixels, B, part * chunk, end, META)

    k = (part.to(INDEX) * groups + g)[:, None] * outputs + k[None, :]
    dw += k[:, :, None] * count + ((terms.r * across.count + terms.s) * CHANNELS + terms.c)[None, None, :]
    mask = (tile_groups.mask[:, None] & k_mask[None, :])[:, :, None] & terms.mask[None, None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=mask)


def serves(problem: Problem | WeightProblem) -> bool:
    """True if there are several groups, some of whose sides are narrow."""
    outputs, channels = problem.weight_size[:2]
    narrow = min(outputs // problem.groups, channels) <= shapes.NARROW
    return not problem.is_pooled and problem.groups > 1 and narrow


def forward(problem: Problem) -> torch.Tensor | None:
    """Launch a product; see Path."""
    it, chip, weight = problem, chips.chip_name(), matrix(problem.weight)
    walks, precision = it.window.walks(it.transposed), precision_on(chip, it.precision)
    x, y = Images.of(it.x), Images.of(it.y)
    phases = walks.down.result_step * walks.across.result_step
    pixels = y.size.n * cdiv(y.size.h, walks.down.result_step) * cdiv(y.size.w, walks.across.result_step)
    term_count = cdiv(it.window.taps * it.channels, phases)
    wanted = shapes.Grouped(it.groups, pixels, it.columns, term_count, bool(it.extra_registers))
    tile = pick.grouped(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    row_tiles = cdiv(pixels, tile.m)
    moments = new_moments(it, row_tiles)
    meta = Meta.of(
        walks, it.window.size, precision, tile, transposed=it.transposed, padding_mode=it.window.padding_mode,
        channels=it.channels, accumulator=tl_type(accumulator(it.y.dtype)), index=index_type(it.x, weight, it.y),
    )  # fmt: skip
    programs = row_tiles * cdiv(it.columns, tile.n) * cdiv(it.groups, tile.groups) * phases
    launch(
        grouped_kernel, programs, x, Weight(weight, weight_strides(it)), y, it.epilogue.operands(it.y, moments),
        it.channels, it.columns, it.groups, ACTIVATION=it.epilogue.on_device(it.y.dtype), META=meta, **tile.options,
    )  # fmt: skip
    return moments


def weight_grad(problem: WeightProblem) -> None:
    """Launch a weight gradient; see Path."""
    it, chip, grad = problem, chips.chip_name(), Images.of(problem.grad)
    outputs, channels = it.dw.shape[0] // it.groups, it.dw.shape[1]
    term_count, precision = it.window.taps * channels, precision_on(chip, it.precision)
    wanted = shapes.Grouped(it.groups, outputs, term_count, grad.size.n * grad.size.h * grad.size.w, may_split=True)
    tile = pick.grouped(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    parts = new_parts(it, tile.parts)
    meta = Meta.of(
        it.window.walks(False), it.window.size, precision, tile, padding_mode=it.window.padding_mode,
        channels=channels, accumulator=tl_type(accumulator(it.x.dtype)), index=index_type(it.grad, it.x, parts),
    )  # fmt: skip
    programs = cdiv(outputs, tile.m) * cdiv(term_count, tile.n) * cdiv(it.groups, tile.groups) * tile.parts
    launch(
        grouped_weight_grad_kernel, programs, grad, Images.of(it.x), parts, outputs, it.groups, tile.parts, META=meta,
        **tile.options,
    )  # fmt: skip
    if parts is not it.dw:
        sum_parts(parts, it.dw)


PATH = Path(serves, forward, weight_grad)

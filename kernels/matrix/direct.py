"""Products without matrix instructions: depthwise convolution, in which each group has one input channel.

    forward:          y[k] = epilogue( Σ_{r,s} x̂[c] · w[k,r,s] )          c = ⌊k / E⌋, E outputs a group; at each pixel
    input gradient:   dx[c] = Σ over c's E outputs k, Σ_{r,s} of ĝ[k] · w[k,r,s]     along another Walk
    weight gradient:  dw[k,r,s] = Σ over pixels of g[k] · x̂[c]

Each value of x serves a window of results. The kernel is bound by memory if repeated loads hit the caches and are few:
a program computes a strip of several rows at once and loads each pixel once for each column of the window.

    for each strip of pixels, some rows high, and channels:           one program
        sums_t = 0 for each of its rows t
        for each column s of the window:
            for each row h that rows of the strip read:
                v = x[h, s]                                           one load, of adjacent channels
                sums_t += v · w[r, s] for each t whose tap r reads h
        store epilogue(sums_t) for each t

The weight gradient is the same with sums for taps instead of rows. Windows too high to unroll, and the phases of
strided input gradients, which share little, are taken tap by tap.
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Pixel, assume_aligned, offsets, pixel
from ..core.op import launch
from ..core.tensors import alignment, index_type, tl_type
from ..streaming.strips import Block
from ..streaming.sums import sum_block, sum_pixels
from ..tiles import pick
from ..tiles.model import register_options
from ..tiles.shapes import UNROLLED
from ..window.convolution import Walk, Walks
from ..window.layout import cdiv
from .epilogue import finish
from .loop import phase_of, source_index
from .meta import Results, Taps, Weight
from .problem import Path, Problem, WeightProblem, new_moments


class DirectMeta(NamedTuple):
    """The constants that a direct kernel is compiled for. A kernel first names what it takes of it.

    down, across, taps, padding_mode, transposed, aligned: as in meta.Meta
    outputs:      of a group
    rows:         of a strip; above 1 only if all rows of taps are taken at once
    taps_at_once: rows and columns of taps that a program takes at once
    """

    down: Walk
    across: Walk
    taps: Taps
    padding_mode: str
    outputs: int
    aligned: int
    rows: int
    taps_at_once: Taps
    transposed: bool = False


class TapStrides(NamedTuple):
    """Elements from a column, a row of taps, and a tap of a weight to the next."""

    column: Any
    row: Any
    tap: Any


@triton.constexpr_function
def served(h, rows, taps, stride, input_step):
    """True if a tap of one of the rows reads the h-th row after the strip's first."""
    return any(t * stride + r * input_step == h for t in range(rows) for r in range(taps))


@triton.constexpr_function
def first_read(taps, input_step):
    """Return the first row that a strip's rows read, its own first being 0."""
    return min(0, (taps - 1) * input_step)


@triton.constexpr_function
def end_read(rows, taps, stride, input_step):
    """Return the last row that they read, + 1."""
    return (rows - 1) * stride + max(0, (taps - 1) * input_step) + 1


@device_function
def read(x, strides, n, h, w, c, mask, PADDING: tl.constexpr):
    """Return what stands at pixels (n, h, w) [PIXELS] in channels c; outside of the images what the padding shows
    there."""
    h, w = source_index(h, x.size.h, PADDING), source_index(w, x.size.w, PADDING)
    inside = (h >= 0) & (w >= 0) & (h < x.size.h) & (w < x.size.w)
    return tl.load(x.data + offsets(Pixel(n, h, w), c, strides), mask=inside[:, None] & mask, other=0.0)


@triton.jit
def direct_kernel(x, w, y, epilogue, columns, ACTIVATION: tl.constexpr, META: tl.constexpr, BLOCK: tl.constexpr):
    """y[pixel, column] = epilogue(Σ_tap x̂ · w), for a strip of one phase: PIXELS, ROWS high, x CHANNELS."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    DOWN_STRIDE: tl.constexpr = DOWN.stride
    DOWN_STEP: tl.constexpr = DOWN.input_step
    PHASES: tl.constexpr = DOWN.result_step * ACROSS.result_step
    OUTPUTS: tl.constexpr = META.outputs
    TRANSPOSED: tl.constexpr = META.transposed
    PADDING: tl.constexpr = META.padding_mode
    ALIGNED: tl.constexpr = META.aligned
    ROWS: tl.constexpr = META.rows
    TAPS: tl.constexpr = META.taps_at_once.rows
    ACC: tl.constexpr = BLOCK.accumulator
    INDEX: tl.constexpr = BLOCK.index
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    x_strides, y_strides = assume_aligned(x.strides, ALIGNED), assume_aligned(y.strides, ALIGNED)
    w_row, w_tap = w.strides.row // ALIGNED * ALIGNED, w.strides.tap // ALIGNED * ALIGNED
    columns = columns // ALIGNED * ALIGNED
    channel_blocks = tl.cdiv(columns, CHANNELS)
    phase = tl.program_id(0) // channel_blocks % PHASES
    tile = tl.program_id(0) // channel_blocks // PHASES
    down, across = phase_of(phase // ACROSS.result_step, DOWN), phase_of(phase % ACROSS.result_step, ACROSS)
    height, width = tl.cdiv(tl.cdiv(y.size.h, DOWN.result_step), ROWS), tl.cdiv(y.size.w, ACROSS.result_step)
    at = pixel(tl.cast(tile, INDEX) * PIXELS + tl.arange(0, PIXELS), height, width)  # [PIXELS]
    k = (tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)  # [CHANNELS]
    k_mask = k < columns
    mask = (at.n < y.size.n)[:, None] & k_mask[None, :]
    i = at.h * ROWS
    FIRST: tl.constexpr = first_read(TAPS, DOWN_STEP)
    END: tl.constexpr = end_read(ROWS, TAPS, DOWN_STRIDE, DOWN_STEP)
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros([PIXELS, CHANNELS], ACC),)
    for s in range(across.count * across.nonempty):
        column = at.w * ACROSS.stride + across.offset + s * ACROSS.input_step
        for r in range(0, down.count * down.nonempty, TAPS):
            row = i * DOWN_STRIDE + down.offset + r * DOWN_STEP
            for e in tl.static_range(OUTPUTS if TRANSPOSED else 1):
                c = k * OUTPUTS + e if TRANSPOSED else k // OUTPUTS
                weights = ()
                for t in tl.static_range(TAPS):
                    tap = (down.first + (r + t) * DOWN.weight_step) * w_row
                    tap += (across.first + s * ACROSS.weight_step) * w_tap
                    weight = tl.load(w.data + (c if TRANSPOSED else k) * w.strides.column + tap, mask=k_mask, other=0.0)
                    weights = weights + (weight.to(ACC)[None, :],)
                for h in tl.static_range(FIRST, END):
                    if served(h, ROWS, TAPS, DOWN_STRIDE, DOWN_STEP):
                        v = read(x, x_strides, at.n, row + h, column, c, mask, PADDING).to(ACC)
                        sums = add(sums, v, weights, h, DOWN_STRIDE, DOWN_STEP, ROWS, TAPS)

    q = phase % ACROSS.result_step + at.w * ACROSS.result_step
    for t in tl.static_range(ROWS):
        p = phase // ACROSS.result_step + (i + t) * DOWN.result_step
        pixel_mask = (at.n < y.size.n) & (p < y.size.h) & (q < y.size.w)
        results = Results(tile * ROWS + t, Pixel(at.n, p, q), pixel_mask, k, k_mask)
        acc = finish(sums[t], epilogue, results, y_strides, ACTIVATION, INDEX)
        to = y.data + offsets(results.at, k, y_strides)
        tl.store(to, acc.to(y.data.dtype.element_ty), mask=pixel_mask[:, None] & k_mask[None, :])


@device_function
def add(
    sums,
    v,
    weights,
    H: tl.constexpr,
    STRIDE: tl.constexpr,
    INPUT_STEP: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Return the rows' sums and what v, the H-th row that they read, adds to each."""
    every = ()
    for t in tl.static_range(ROWS):
        total = sums[t]
        for r in tl.static_range(TAPS):
            if t * STRIDE + r * INPUT_STEP == H:
                total += v * weights[r]
        every = every + (total,)
    return every


@triton.jit
def direct_weight_grad_kernel(
    grad, x, dw_strides, dw_size, parts, columns, chunk, META: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """parts[program, k, tap] = Σ over the program's strips of grad · x̂, for CHANNELS and a block of taps. grad: its
    size is that of strips, ROWS high."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    DOWN_STRIDE: tl.constexpr = DOWN.stride
    DOWN_STEP: tl.constexpr = DOWN.input_step
    PADDING: tl.constexpr = META.padding_mode
    ALIGNED: tl.constexpr = META.aligned
    ROWS: tl.constexpr = META.rows
    TAPS: tl.constexpr = META.taps_at_once.rows
    ACROSS_TAPS: tl.constexpr = META.taps_at_once.columns
    BLOCKS_ACROSS: tl.constexpr = META.taps.columns // ACROSS_TAPS
    TAP_BLOCKS: tl.constexpr = (META.taps.rows // TAPS) * BLOCKS_ACROSS
    INDEX: tl.constexpr = BLOCK.index
    ACC: tl.constexpr = BLOCK.accumulator
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    grad_strides, x_strides = assume_aligned(grad.strides, ALIGNED), assume_aligned(x.strides, ALIGNED)
    columns = columns // ALIGNED * ALIGNED
    tap_block, rest = tl.program_id(0) % TAP_BLOCKS, tl.program_id(0) // TAP_BLOCKS
    channel_blocks = tl.cdiv(columns, CHANNELS)
    part = rest // channel_blocks
    k = (rest % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)  # [CHANNELS]
    k_mask = k < columns
    first_r, first_s = tap_block // BLOCKS_ACROSS * TAPS, tap_block % BLOCKS_ACROSS * ACROSS_TAPS
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)

    FIRST: tl.constexpr = first_read(TAPS, DOWN_STEP)
    END: tl.constexpr = end_read(ROWS, TAPS, DOWN_STRIDE, DOWN_STEP)
    sums = ()
    for _ in tl.static_range(TAPS * ACROSS_TAPS):
        sums = sums + (tl.zeros([PIXELS, CHANNELS], ACC),)
    for step in range(part * chunk, (part + 1) * chunk):
        at = pixel(tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS), grad.size.h, grad.size.w)
        mask = (at.n < grad.size.n)[:, None] & k_mask[None, :]
        i = at.h * ROWS
        grads = ()
        for t in tl.static_range(ROWS):
            to = grad.data + offsets(Pixel(at.n, i + t, at.w), k, grad_strides)
            grads = grads + (tl.load(to, mask=mask, other=0.0).to(ACC),)
        row = i * DOWN_STRIDE + down.offset + first_r * DOWN_STEP
        for s in tl.static_range(ACROSS_TAPS):
            column = at.w * ACROSS.stride + across.offset + (first_s + s) * ACROSS.input_step
            for h in tl.static_range(FIRST, END):
                if served(h, ROWS, TAPS, DOWN_STRIDE, DOWN_STEP):
                    v = read(x, x_strides, at.n, row + h, column, k // META.outputs, mask, PADDING).to(ACC)
                    sums = add_taps(sums, v, grads, h, s, DOWN_STRIDE, DOWN_STEP, ROWS, TAPS)

    parts += part.to(INDEX) * dw_size
    for s in tl.static_range(ACROSS_TAPS):
        for r in tl.static_range(TAPS):
            to = parts + k * dw_strides.column + (first_r + r) * dw_strides.row
            to += (first_s + s) * dw_strides.tap
            tl.store(to, sum_block(sums[s * TAPS + r], BLOCK).to(parts.dtype.element_ty), mask=k_mask)


@device_function
def add_taps(
    sums, v, grads, H: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, INPUT_STEP: tl.constexpr,
    ROWS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Return the taps' sums and what v, the H-th row that the strip reads in column S, adds to each."""
    every = ()
    for i in tl.static_range(len(sums)):
        total = sums[i]
        for t in tl.static_range(ROWS):
            if i // TAPS == S and t * STRIDE + i % TAPS * INPUT_STEP == H:
                total += v * grads[t]
        every = every + (total,)
    return every


def serves(problem: Problem | WeightProblem) -> bool:
    """True if a group has one channel and at most four outputs."""
    outputs, channels = problem.weight_size[:2]
    return not problem.is_pooled and channels == 1 and outputs <= 4 * problem.groups


def taps_first(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight with adjacent outputs in memory, a tap after the other; copied unless it has them."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def _strides(weight: torch.Tensor) -> TapStrides:
    column, _, row, tap = weight.stride()
    return TapStrides(column, row, tap)


def forward(problem: Problem) -> torch.Tensor | None:
    """Launch a product; see Path."""
    it, weight, chip = problem, taps_first(problem.weight), chips.chip_name()
    walks, y = it.window.walks(it.transposed), Images.of(it.y)
    columns = it.y.shape[1]
    height, width = cdiv(y.size.h, walks.down.result_step), cdiv(y.size.w, walks.across.result_step)
    several = it.transposed and weight.shape[0] > it.groups  # a weight for each output: too many for several rows
    whole = walks.result_steps == (1, 1) and it.window.size[0] <= UNROLLED and not several
    rows = pick.rows(height, it.moments) if whole else 1
    pixels = y.size.n * cdiv(height, rows) * width
    shape = pick.strip_shape(pixels, columns, it.x.stride(1) == it.y.stride(1) == 1, chip, True)
    strips = cdiv(pixels, shape.pixels)
    moments = new_moments(it, strips * rows)
    meta = _meta(
        walks, problem, weight, rows, Taps(it.window.size[0] if whole else 1, 1), transposed=it.transposed,
        aligned=alignment(columns, it.x, it.y),
    )  # fmt: skip
    index = index_type(it.x, weight, it.y)
    block = Block(shape.pixels, shape.channels, tl_type(accumulator(it.y.dtype)), index)
    launch(
        direct_kernel, strips * cdiv(columns, shape.channels) * walks.down.result_step * walks.across.result_step,
        Images.of(it.x), Weight(weight, _strides(weight)), y, it.epilogue.operands(it.y, moments), columns,
        ACTIVATION=it.epilogue.on_device(y.data.dtype), META=meta, BLOCK=block, num_warps=shape.warps,
        **register_options(chip),
    )  # fmt: skip
    return moments


def weight_grad(problem: WeightProblem) -> None:
    """Launch a weight gradient, contiguous but for the order of its dimensions; see Path."""
    it, (r, s) = problem, problem.window.size
    taps = Taps(r, s) if r * s <= 9 else Taps(r, 1) if r <= UNROLLED else Taps(1, 1)
    # Whole rows: the 0 of one that isn't there would be NaN beside an infinity. Two: the sums take most registers.
    rows = pick.rows(it.grad.shape[2], True, 2) if taps.rows == r else 1
    columns = it.grad.shape[1]
    meta = _meta(it.window.walks(False), it, it.dw, rows, taps, aligned=alignment(columns, it.grad, it.x))
    grad = Images.of(it.grad)
    strips = grad._replace(size=grad.size._replace(h=grad.size.h // rows))
    sum_pixels(
        direct_weight_grad_kernel, it.dw, it.grad, strips, Images.of(it.x), _strides(it.dw), it.dw.numel(),
        index=index_type(it.grad, it.x), rows=rows, blocks=(r // taps.rows) * (s // taps.columns), META=meta,
        **register_options(chips.chip_name()),
    )  # fmt: skip


def _meta(
    walks: Walks, problem: Problem | WeightProblem, weight: torch.Tensor, rows: int, taps_at_once: Taps, **others: Any
) -> DirectMeta:
    window, outputs = problem.window, weight.shape[0] // problem.groups
    return DirectMeta(
        *walks, Taps(*window.size), window.padding_mode, outputs, rows=rows, taps_at_once=taps_at_once, **others
    )  # fmt: skip


PATH = Path(serves, forward, weight_grad)

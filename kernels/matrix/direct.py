"""conv2d's products without matrix instructions: depthwise convolution, in which each group has one input channel.

    forward:          y[k] = epilogue( Σ_{r,s} x̂[c] · w[k,r,s] )          c = k / E, at each pixel
    input gradient:   dx[c] = Σ over c's E outputs k, Σ_{r,s} of ĝ[k] · w[k,r,s]     along another walk (geometry.Walk)
    weight gradient:  dw[k,r,s] = Σ over pixels of g[k] · x̂[c]

Each value serves a window of results, so the time is that of memory as long as it is loaded often from nowhere but the
caches, and there seldom: a program computes a strip of rows at once, and loads each pixel that they read only as often
as the window has columns.

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

from typing import Any

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.device import HOP, REACH, STEP, STRIDE, known, offsets, phase_of, pixel, shown, sum_rows
from ..core.op import index_type, launch, new, nhwc, tl_type, unit
from ..tiles import model, pick, shapes
from ..window import convolution
from ..window.convolution import cdiv
from .epilogue import Epilogue, finish, sum_pixels


@triton.constexpr_function
def served(h, rows, taps, stride, reach):
    """Does a tap of one of the rows read the h-th row after the strip's first?"""
    return any(t * stride + r * reach == h for t in range(rows) for r in range(taps))


@triton.constexpr_function
def first_read(taps, reach):
    """The first row that a strip's rows read, its own first being 0."""
    return min(0, (taps - 1) * reach)


@triton.constexpr_function
def end_read(rows, taps, stride, reach):
    """The last row that they read, + 1."""
    return (rows - 1) * stride + max(0, (taps - 1) * reach) + 1


@device_function
def read(x, strides, size, n, h, w, c, exists, PADDING: tl.constexpr):
    """What stands at pixels (n, h, w) [PIXELS] in channels c; outside of the images what the padding shows there."""
    h, w = shown(h, size[0], PADDING), shown(w, size[1], PADDING)
    inside = (h >= 0) & (w >= 0) & (h < size[0]) & (w < size[1])
    return tl.load(x + offsets((n, h, w), c, strides), mask=inside[:, None] & exists, other=0.0)


@triton.jit
def direct_kernel(
    x, w, y, epilogue, x_strides, w_strides, y_strides, x_size, y_size, columns,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, OUTPUTS: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, PADDING: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y[pixel, column] = epilogue(Σ_tap x̂ · w), for a strip of one phase: PIXELS, each with ROWS under it, x CHANNELS.
    TAPS of the window's rows are taken at once; ROWS above 1 need all."""
    PHASES: tl.constexpr = DOWN[STEP] * ACROSS[STEP]
    x_strides, y_strides, columns = known(x_strides, UNIT), known(y_strides, UNIT), columns // UNIT * UNIT
    w_strides = (w_strides[0], w_strides[1] // UNIT * UNIT, w_strides[2] // UNIT * UNIT)
    blocks = tl.cdiv(columns, CHANNELS)
    phase, tile = tl.program_id(0) // blocks % PHASES, tl.program_id(0) // blocks // PHASES
    first_r, count_r, above, some_r = phase_of(phase // ACROSS[STEP], DOWN)
    first_s, count_s, left, some_s = phase_of(phase % ACROSS[STEP], ACROSS)
    high, wide = tl.cdiv(tl.cdiv(y_size[1], DOWN[STEP]), ROWS), tl.cdiv(y_size[2], ACROSS[STEP])
    n, i, j = pixel(tl.cast(tile, INDEX) * PIXELS + tl.arange(0, PIXELS), high, wide)  # [PIXELS]
    k = (tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)  # [CHANNELS]
    has = k < columns
    exists = (n < y_size[0])[:, None] & has[None, :]
    i *= ROWS

    FIRST: tl.constexpr = first_read(TAPS, DOWN[REACH])
    END: tl.constexpr = end_read(ROWS, TAPS, DOWN[STRIDE], DOWN[REACH])
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros([PIXELS, CHANNELS], ACC),)
    for s in range(count_s * some_s):
        column = j * ACROSS[STRIDE] + left + s * ACROSS[REACH]
        for r in range(0, count_r * some_r, TAPS):
            row = i * DOWN[STRIDE] + above + r * DOWN[REACH]
            for e in tl.static_range(OUTPUTS if TRANSPOSED else 1):
                c = k * OUTPUTS + e if TRANSPOSED else k // OUTPUTS
                weights = ()
                for t in tl.static_range(TAPS):
                    tap = (first_r + (r + t) * DOWN[HOP]) * w_strides[1] + (first_s + s * ACROSS[HOP]) * w_strides[2]
                    weight = tl.load(w + (c if TRANSPOSED else k) * w_strides[0] + tap, mask=has, other=0.0)
                    weights = weights + (weight.to(ACC)[None, :],)
                for h in tl.static_range(FIRST, END):
                    if served(h, ROWS, TAPS, DOWN[STRIDE], DOWN[REACH]):
                        v = read(x, x_strides, x_size, n, row + h, column, c, exists, PADDING).to(ACC)
                        sums = add(sums, v, weights, h, DOWN[STRIDE], DOWN[REACH], ROWS, TAPS)

    q = phase % ACROSS[STEP] + j * ACROSS[STEP]
    for t in tl.static_range(ROWS):
        p = phase // ACROSS[STEP] + (i + t) * DOWN[STEP]
        there = (n < y_size[0]) & (p < y_size[1]) & (q < y_size[2])
        acc = finish(
            sums[t], epilogue, tile * ROWS + t, k, has, (n, p, q), there, y_strides, ACTIVATION, NUMBERS, INDEX
        )  # fmt: skip
        to = y + offsets((n, p, q), k, y_strides)
        tl.store(to, acc.to(y.dtype.element_ty), mask=there[:, None] & has[None, :])


@device_function
def add(
    sums, v, weights, H: tl.constexpr, STRIDE: tl.constexpr, REACH: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr
):
    """The rows' sums and what v, the H-th row that they read, adds to each."""
    every = ()
    for t in tl.static_range(ROWS):
        total = sums[t]
        for r in tl.static_range(TAPS):
            if t * STRIDE + r * REACH == H:
                total += v * weights[r]
        every = every + (total,)
    return every


@triton.jit
def direct_weight_grad_kernel(
    grad, x, grad_strides, x_strides, x_size, dw_strides, dw_size, parts, size, columns, chunk,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, R: tl.constexpr, S: tl.constexpr, OUTPUTS: tl.constexpr,
    PADDING: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, ACROSS_TAPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """parts[program, k, tap] = Σ over the program's strips of grad · x̂, for CHANNELS and TAPS x ACROSS_TAPS taps."""
    BLOCKS: tl.constexpr = (R // TAPS) * (S // ACROSS_TAPS)
    grad_strides, x_strides, columns = known(grad_strides, UNIT), known(x_strides, UNIT), columns // UNIT * UNIT
    block, rest = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    blocks = tl.cdiv(columns, CHANNELS)
    part = rest // blocks
    k = (rest % blocks * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)  # [CHANNELS]
    has = k < columns
    first_r, first_s = block // (S // ACROSS_TAPS) * TAPS, block % (S // ACROSS_TAPS) * ACROSS_TAPS
    _, _, above, _ = phase_of(0, DOWN)
    _, _, left, _ = phase_of(0, ACROSS)

    FIRST: tl.constexpr = first_read(TAPS, DOWN[REACH])
    END: tl.constexpr = end_read(ROWS, TAPS, DOWN[STRIDE], DOWN[REACH])
    sums = ()
    for _ in tl.static_range(TAPS * ACROSS_TAPS):
        sums = sums + (tl.zeros([PIXELS, CHANNELS], ACC),)
    for step in range(part * chunk, (part + 1) * chunk):
        n, i, j = pixel(tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS), size[1], size[2])
        exists = (n < size[0])[:, None] & has[None, :]
        i *= ROWS
        grads = ()
        for t in tl.static_range(ROWS):
            g = tl.load(grad + offsets((n, i + t, j), k, grad_strides), mask=exists, other=0.0)
            grads = grads + (g.to(ACC),)
        row = i * DOWN[STRIDE] + above + first_r * DOWN[REACH]
        for s in tl.static_range(ACROSS_TAPS):
            column = j * ACROSS[STRIDE] + left + (first_s + s) * ACROSS[REACH]
            for h in tl.static_range(FIRST, END):
                if served(h, ROWS, TAPS, DOWN[STRIDE], DOWN[REACH]):
                    v = read(x, x_strides, x_size, n, row + h, column, k // OUTPUTS, exists, PADDING).to(ACC)
                    sums = add_taps(sums, v, grads, h, s, DOWN[STRIDE], DOWN[REACH], ROWS, TAPS)

    parts += part.to(INDEX) * dw_size
    for s in tl.static_range(ACROSS_TAPS):
        for r in tl.static_range(TAPS):
            to = parts + k * dw_strides[0] + (first_r + r) * dw_strides[1] + (first_s + s) * dw_strides[2]
            tl.store(to, sum_rows(sums[s * TAPS + r]).to(parts.dtype.element_ty), mask=has)


@device_function
def add_taps(
    sums, v, grads, H: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, REACH: tl.constexpr,
    ROWS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The taps' sums and what v, the H-th row that the strip reads in column S, adds to each."""
    every = ()
    for i in tl.static_range(len(sums)):
        total = sums[i]
        for t in tl.static_range(ROWS):
            if i // TAPS == S and t * STRIDE + i % TAPS * REACH == H:
                total += v * grads[t]
        every = every + (total,)
    return every


def is_direct(weight_size: Any, groups: int) -> bool:
    """Is a convolution with such a weight computed here: one channel a group, and at most four outputs?"""
    return weight_size[1] == 1 and weight_size[0] <= 4 * groups


def taps_first(weight: torch.Tensor) -> torch.Tensor:
    """The weight with adjacent outputs in memory, a tap after the other; copied unless it has them."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def direct_product(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, window: convolution.Window, groups: int, transposed: bool,
    epilogue: Epilogue, moments: bool,
) -> torch.Tensor | None:  # fmt: skip
    """conv2d.product, where `is_direct`."""
    weight = taps_first(weight)
    walks = window.walks(transposed)
    (batch, columns, *image), chip = y.shape, chips.chip_name()
    steps = (walks[0].step, walks[1].step)
    high, wide = (cdiv(size, step) for size, step in zip(image, steps, strict=True))
    several = transposed and weight.shape[0] > groups  # a weight for each output: too many to hold for several rows
    whole = steps == (1, 1) and window.size[0] <= shapes.UNROLLED and not several
    rows = pick.rows(high, moments) if whole else 1
    pixels = batch * cdiv(high, rows) * wide
    strip = pick.strip(pixels, columns, x.stride(1) == y.stride(1) == 1, chip, True)
    strips = cdiv(pixels, strip.pixels)
    parts = new((strips * rows, 3, columns), y, dtype=accumulator(y.dtype)) if moments else None
    k, _, r, s = weight.stride()
    launch(
        direct_kernel, strips * cdiv(columns, strip.channels) * steps[0] * steps[1], x, weight, y,
        epilogue.terms(y, parts), nhwc(x), (k, r, s), nhwc(y), tuple(x.shape[2:]), (batch, *image), columns,
        DOWN=walks[0].constants(), ACROSS=walks[1].constants(), OUTPUTS=weight.shape[0] // groups,
        TRANSPOSED=transposed, **epilogue.constants, PADDING=window.padding_mode, ACC=tl_type(accumulator(y.dtype)),
        INDEX=index_type(x, weight, y), UNIT=unit(columns, x, y), ROWS=rows, TAPS=window.size[0] if whole else 1,
        PIXELS=strip.pixels, CHANNELS=strip.channels, num_warps=strip.warps, **model.register_options(chip),
    )  # fmt: skip
    return parts


def direct_weight_product(
    grad: torch.Tensor, x: torch.Tensor, dw: torch.Tensor, window: convolution.Window, groups: int
) -> None:
    """conv2d.weight_product, where `is_direct`; dw contiguous but for the order of its dimensions."""
    walks = window.walks(False)
    (r, s), most = window.size, shapes.UNROLLED
    taps = (r, s) if r * s <= 9 else (r, 1) if r <= most else (1, 1)
    # Whole rows: the 0 of one that isn't there would be NaN beside an infinity. Two: the sums take most registers.
    rows = pick.rows(grad.shape[2], True, 2) if taps[0] == r else 1
    k, _, down, across = dw.stride()
    sum_pixels(
        direct_weight_grad_kernel, dw, grad, grad, x, nhwc(grad), nhwc(x), tuple(x.shape[2:]), (k, down, across),
        dw.numel(), rows=rows, blocks=(r // taps[0]) * (s // taps[1]), DOWN=walks[0].constants(),
        ACROSS=walks[1].constants(), R=r, S=s, OUTPUTS=dw.shape[0] // groups, PADDING=window.padding_mode,
        UNIT=unit(grad.shape[1], grad, x), ROWS=rows,
        TAPS=taps[0], ACROSS_TAPS=taps[1], INDEX=index_type(grad, x), **model.register_options(chips.chip_name()),
    )  # fmt: skip

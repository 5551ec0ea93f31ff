"""Products whose operands the chip fetches in boxes of images by itself: the tensor memory accelerator (TMA).

A tile's pixels are a box of batch x rows x columns. A descriptor of the channels_last images fetches the box that a tap
reads, 64 channels or so at a time, straight into shared memory; what lies outside the images arrives as 0, which is the
padding. No thread computes an address, and both operands of the matrix instructions stay in shared memory:

    forward, input gradient:  Yᵀ[k, box] = Ŵ[k, term] · X̂ᵀ[term, box]     the images are the right operand
    weight gradient:          dW[k, c]   = Gᵀ[k, box] · X̂[box, c]         for one tap, or for three that share Gᵀ;
                                                                          the reduction is over boxes

    build the descriptors                                         once a program
    for each of the program's tiles of the result:                persistent: as many programs as run at a time
        acc = 0
        for each step of the reduction:                           loop.main_loop
            acc += A(step) · B(step)                              two fetches; boxes_loop in the weight gradient
        store the box of epilogue(acc)                            while the next tile begins

A stride needs no gather: pixels whose coordinates have the same remainders modulo the stride are images too, and the
descriptor has a dimension for the remainders.
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..core.images import Size, Strides, assume_aligned
from ..core.op import launch
from ..core.tensors import alignment, index_type
from ..streaming.sums import sum_parts
from ..window.convolution import Phase
from .boxes import box_at, box_count, box_descriptor, box_pixels, next_box, split
from .epilogue import finish
from .loop import as_tf32, dot, main_loop, phase_of, program_tile, tap_steps
from .meta import Meta, Results
from .problem import (
    Path,
    Problem,
    WeightProblem,
    matrix,
    new_moments,
    new_parts,
)  # fmt: skip


class WeightBoxes(NamedTuple):
    """Ŵ of fixed columns: a descriptor of the weight's matrix, and the taps of a phase."""

    descriptor: Any
    column: Any
    down: Phase
    across: Phase
    channels: Any
    columns: Any


class ImageBoxes(NamedTuple):
    """X̂ of a fixed box: a descriptor of the images, the box's first pixel (n, p, q), and where its first tap reads."""

    descriptor: Any
    n: Any
    p: Any
    q: Any
    h: Any
    w: Any
    taps_down: Any
    taps_across: Any
    channels: Any


class ReducedBoxes(NamedTuple):
    """Boxes of all images, one a step: how far from the step's pixel (h, w), and in which columns, to fetch."""

    descriptor: Any
    h: Any
    w: Any
    column: Any


@device_function
def weight_box(operand, step, META: tl.constexpr):
    """A: the weight of this step's tap and channels, for fixed columns. [N, K]"""
    K: tl.constexpr = META.k
    PRECISION: tl.constexpr = META.precision
    down, across = operand.down, operand.across
    tap, c = step % (down.count * across.count), step // (down.count * across.count) * K
    row = down.first + tap // across.count * META.down.weight_step
    tap = row * META.taps.columns + across.first + tap % across.count * META.across.weight_step
    if META.transposed:
        return as_tf32(operand.descriptor.load([c, tap * operand.columns + operand.column]).T, PRECISION)
    else:
        return operand.descriptor.load([operand.column, tap * operand.channels + c])


@device_function
def window_box(operand, step, META: tl.constexpr):
    """B: what this step's tap and channels read, for a fixed box of M pixels. [K, M]"""
    K: tl.constexpr = META.k
    M: tl.constexpr = META.m
    DOWN: tl.constexpr = META.down.stride
    ACROSS: tl.constexpr = META.across.stride
    taps = operand.taps_down * operand.taps_across
    tap, c = step % taps, step // taps * K
    h, a = split(operand.h + tap // operand.taps_across * META.down.input_step, DOWN)
    w, b = split(operand.w + tap % operand.taps_across * META.across.input_step, ACROSS)
    at = [operand.n, operand.p + h, a, operand.q + w, b * operand.channels + c]
    return operand.descriptor.load(at).reshape(M, K).T


@triton.jit(do_not_specialize=["channels"])
def conv_tma_kernel(x, w, y, epilogue, channels, columns, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """y[box, column] = epilogue(Σ_term x̂ · w), for tiles of a box of pixels of one phase x N columns."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    RESULT_STEPS: tl.constexpr = (DOWN.result_step, ACROSS.result_step)
    STRIDES: tl.constexpr = (DOWN.stride, ACROSS.stride)
    ALIGNED: tl.constexpr = META.aligned
    BOX: tl.constexpr = META.box
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    y_strides, columns = assume_aligned(y.strides, ALIGNED), columns // ALIGNED * ALIGNED
    images = box_descriptor(x.data, x.size, x.strides, channels, BOX, K, STRIDES)
    y_boxes = box_descriptor(y.data, y.size, y_strides, columns, BOX, N, RESULT_STEPS)
    term_count = META.taps.rows * META.taps.columns * (columns if META.transposed else channels)
    if META.transposed:
        weights = tl.make_tensor_descriptor(w, [channels, term_count], [term_count, 1], [K, N])
    else:
        weights = tl.make_tensor_descriptor(w, [columns, term_count], [term_count, 1], [N, K])

    size = Size(y.size.n, y.size.h // RESULT_STEPS[0], y.size.w // RESULT_STEPS[1])
    row_tiles = box_count(size, BOX)
    column_tiles = tl.cdiv(columns, N)
    programs = row_tiles * column_tiles * RESULT_STEPS[0] * RESULT_STEPS[1]
    for program in range(tl.program_id(0), programs, tl.num_programs(0)):
        row, column = program_tile(program % (row_tiles * column_tiles), row_tiles, column_tiles)
        column *= N
        first = box_at(row, size, BOX)
        a = program // (row_tiles * column_tiles) // RESULT_STEPS[1]
        b = program // (row_tiles * column_tiles) % RESULT_STEPS[1]
        down, across = phase_of(a, DOWN), phase_of(b, ACROSS)
        A = WeightBoxes(weights, column, down, across, channels, columns)
        B = ImageBoxes(
            images, first.n, first.h, first.w, down.offset, across.offset, down.count, across.count, channels
        )  # fmt: skip
        acc = tl.zeros([N, M], tl.float32)
        steps = tap_steps(channels, down.count, across.count, False, K) * down.nonempty * across.nonempty
        acc = main_loop(acc, weight_box, A, window_box, B, 0, steps, META)

        k = column + tl.arange(0, N)
        at = box_pixels(first, a, b, BOX, RESULT_STEPS)
        pixel_mask = (at.n < y.size.n) & (at.h < y.size.h) & (at.w < y.size.w)
        results = Results(row, at, pixel_mask, k, k < columns)
        acc = finish(acc.T, epilogue, results, y_strides, ACTIVATION, tl.int64)
        result = acc.to(y.data.dtype.element_ty).reshape(BOX[0], BOX[1], 1, BOX[2], N)
        y_boxes.store([first.n, first.h, a, first.w, b * columns + column], result)


@device_function
def grad_box(operand, at, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for the box at pixel `at`. [M, K]"""
    PRECISION: tl.constexpr = META.precision
    M: tl.constexpr = META.m
    K: tl.constexpr = META.k
    return as_tf32(operand.descriptor.load([at.n, at.h, 0, at.w, operand.column]).reshape(K, M).T, PRECISION)


@device_function
def tap_box(operand, at, META: tl.constexpr):
    """B of the weight gradient: what one tap reads for the box at pixel `at`. [K, N]"""
    PRECISION: tl.constexpr = META.precision
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    to = [at.n, at.h + operand.h, 0, at.w + operand.w, operand.column]
    return as_tf32(operand.descriptor.load(to).reshape(K, N), PRECISION)


@device_function
def tap_images(x, grad, tap, c, channels, META: tl.constexpr):
    """Return the boxes of what a tap reads, in channels from c on.

    A tap has images of its own: every stride-th pixel that it reads. They end where the tap's last window does, since
    what lies behind meets no gradient, but would not be harmless if it were infinite."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    DOWN_STRIDE: tl.constexpr = DOWN.stride
    ACROSS_STRIDE: tl.constexpr = ACROSS.stride
    S: tl.constexpr = META.taps.columns
    ONE: tl.constexpr = (1, 1)
    BOX: tl.constexpr = META.box
    N: tl.constexpr = META.n
    h, a = split(DOWN.phases[0].offset + tap // S * DOWN.input_step, DOWN_STRIDE)
    w, b = split(ACROSS.phases[0].offset + tap % S * ACROSS.input_step, ACROSS_STRIDE)
    height = tl.minimum(tl.cdiv(x.size.h - a, DOWN_STRIDE), grad.size.h + h)
    width = tl.minimum(tl.cdiv(x.size.w - b, ACROSS_STRIDE), grad.size.w + w)
    strides = Strides(x.strides.n, x.strides.h * DOWN_STRIDE, x.strides.w * ACROSS_STRIDE, 1)
    data = x.data + a * x.strides.h + b * x.strides.w
    images = box_descriptor(data, Size(x.size.n, height, width), strides, channels, BOX, N, ONE)
    return ReducedBoxes(images, h, w, c)


@device_function
def boxes_loop(a, b, size, first, end, META: tl.constexpr):
    """Return the main loop's sums for each of the right operands b, one or three, over boxes first <= box < end: the
    left operand's tile serves them all."""
    PRECISION: tl.constexpr = META.precision
    BOX: tl.constexpr = META.box
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    at = box_at(first, size, BOX)
    left = tl.zeros([M, N], tl.float32)
    if META.tile_taps == 1:
        for _ in range(first, end):
            left = dot(grad_box(a, at, META), tap_box(b[0], at, META), left, PRECISION)
            at = next_box(at, size, BOX)
        return (left,)
    else:
        middle, right = left, left
        for _ in range(first, end):
            tile = grad_box(a, at, META)
            left = dot(tile, tap_box(b[0], at, META), left, PRECISION)
            middle = dot(tile, tap_box(b[1], at, META), middle, PRECISION)
            right = dot(tile, tap_box(b[2], at, META), right, PRECISION)
            at = next_box(at, size, BOX)
        return left, middle, right


@triton.jit(do_not_specialize=["outputs", "parts"])
def weight_grad_tma_kernel(grad, x, dw, outputs, channels, parts, META: tl.constexpr):
    """dw[part, k, tap, c] = Σ over the part's boxes of grad · x̂, for a tile of M outputs x N channels of one tap, or of
    three neighbouring taps."""
    TAPS: tl.constexpr = META.taps.rows * META.taps.columns
    TILE_TAPS: tl.constexpr = META.tile_taps
    ONE: tl.constexpr = (1, 1)
    INDEX: tl.constexpr = META.index
    BOX: tl.constexpr = META.box
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    channels = channels // META.aligned * META.aligned
    row_tiles = tl.cdiv(outputs, M)
    column_tiles = tl.cdiv(channels, N) * (TAPS // TILE_TAPS)
    part = tl.program_id(0) // (row_tiles * column_tiles)
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    k, c = row * M, column // (TAPS // TILE_TAPS) * N
    tap = column % (TAPS // TILE_TAPS) * TILE_TAPS

    grads = box_descriptor(grad.data, grad.size, grad.strides, outputs, BOX, M, ONE)
    A = ReducedBoxes(grads, 0, 0, k)
    B = tap_images(x, grad, tap, c, channels, META)
    if TILE_TAPS == 1:
        every = (B,)
    else:
        every = (B, tap_images(x, grad, tap + 1, c, channels, META), tap_images(x, grad, tap + 2, c, channels, META))
    steps = box_count(grad.size, BOX)
    chunk = tl.cdiv(steps, parts)
    acc = boxes_loop(A, every, grad.size, part * chunk, tl.minimum((part + 1) * chunk, steps), META)

    k += tl.arange(0, M)
    c += tl.arange(0, N)
    dw += (part.to(INDEX) * outputs + k)[:, None] * (TAPS * channels) + (tap * channels + c)[None, :]
    mask = (k < outputs)[:, None] & (c < channels)[None, :]
    for t in tl.static_range(TILE_TAPS):
        tl.store(dw + t * channels, acc[t].to(dw.dtype.element_ty), mask=mask)


def serves(problem: Problem | WeightProblem) -> bool:
    """True if the tile that is picked is one of boxes."""
    return problem.picked.tile.box is not None


def forward(problem: Problem) -> torch.Tensor | None:
    """Launch a product; see Path."""
    it, at = problem, problem.picked
    tile, weight = at.tile, matrix(it.weight)
    moments = new_moments(it, at.row_tiles)
    meta = Meta.of(
        it.walks, it.window.size, at.precision, tile, transposed=it.transposed, aligned=alignment(it.columns, it.y),
    )  # fmt: skip
    launch(
        conv_tma_kernel, tile.programs, at.x, weight, at.y, it.epilogue.operands(it.y, moments), it.channels,
        it.columns, ACTIVATION=it.epilogue.on_device(it.y.dtype), META=meta, **tile.options,
    )  # fmt: skip
    return moments


def weight_grad(problem: WeightProblem) -> None:
    """Launch a weight gradient; see Path."""
    it, at = problem, problem.picked
    tile, (outputs, channels) = at.tile, it.dw.shape[:2]
    parts = new_parts(it, tile.parts)
    meta = Meta.of(
        it.window.walks(False), it.window.size, at.precision, tile, aligned=alignment(channels, it.x),
        index=index_type(it.grad, it.x, parts),
    )  # fmt: skip
    launch(
        weight_grad_tma_kernel, at.programs, at.grad, at.x, parts, outputs, channels, tile.parts, META=meta,
        **tile.options,
    )  # fmt: skip
    if parts is not it.dw:
        sum_parts(parts, it.dw)


PATH = Path(serves, forward, weight_grad)

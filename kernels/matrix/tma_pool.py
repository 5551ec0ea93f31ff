"""A convolution in boxes (tma.py), with the ReLU and pooling of pool_code.py that follow it.

    for each of the program's tiles of the result:                a box of pooled pixels x columns
        at once:                                                  windows of two or four taps
            x = epilogue(the convolution at all their taps)       one box
            (y, code) = pooling of x's windows                    split from the sums' registers
        in turn:                                                  any other windows
            for each tap t of the pooling:
                x = epilogue(the convolution at tap t)            a box of every window's tap t, by its stride
                (y, code) = (y, code) with x
        store y and code

At once, every box and every weight is fetched once. The sums are [columns, pixels], of which a thread of a matrix
instruction holds two neighbouring pixels, and those eight, sixteen ... on, but not those of the box's other half: all
taps of a window, if the box has eight columns or more, and several rows of windows (tiles.pick).
"""

import math

from ..base.lang import device_function, interpreted, tl, triton
from ..core.images import Pixel, assume_aligned, offsets
from ..core.op import launch
from ..core.tensors import alignment, index_type
from .boxes import box_at, box_count, box_descriptor, box_pixels
from .epilogue import finish
from .loop import main_loop, phase_of, program_tile, tap_steps
from .meta import Meta, Results
from .pool_code import nan_key, pool_start, pool_step, store_byte, store_pooled, tap_key
from .problem import Path, Problem, WeightProblem, matrix
from .tma import ImageBoxes, WeightBoxes, weight_box, window_box


@device_function
def convolution_at(images, weights, column, first, shift, channels, columns, META: tl.constexpr):
    """Return the sums [N, M] of the box that begins at pixel `first`, `shift` input pixels on."""
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)
    h, w = down.offset + shift[0], across.offset + shift[1]
    A = WeightBoxes(weights, column, down, across, channels, columns)
    B = ImageBoxes(images, first.n, first.h, first.w, h, w, down.count, across.count, channels)
    steps = tap_steps(channels, down.count, across.count, False, K)
    return main_loop(tl.zeros([N, M], tl.float32), weight_box, A, window_box, B, 0, steps, META)


@device_function
def window_taps(x, BOX: tl.constexpr, POOL: tl.constexpr):
    """Return the two or four taps of the windows that tile a box of BOX of them, for values x [pixels, columns]."""
    PIXELS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    N: tl.constexpr = x.shape[1]
    x = x.reshape(BOX[0] * BOX[1], POOL.rows, BOX[2], POOL.columns, N).permute(0, 2, 4, 1, 3)
    if POOL.rows * POOL.columns == 2:
        return tl.split(x.reshape(PIXELS, N, 2))
    else:
        even, odd = tl.split(x.reshape(PIXELS, N, 2, 2))
        even, odd = tl.split(even), tl.split(odd)
        return even[0], odd[0], even[1], odd[1]


@device_function
def pool_windows(x, BOX: tl.constexpr, KIND: tl.constexpr, POOL: tl.constexpr):
    """Return (y, code) of the windows that tile a box of BOX of them, for values x [pixels, columns], which are rounded
    to dtype KIND."""
    PIXELS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    TAPS: tl.constexpr = POOL.rows * POOL.columns
    taps = window_taps(x, BOX, POOL)
    y, code = pool_start(PIXELS, x.shape[1], POOL, x.dtype)
    if POOL.how == "key" and not interpreted():
        # NaN that chips round has a key above all numbers'. It is rare: the last one is found afterwards.
        for t in tl.static_range(TAPS):
            y = tl.maximum(y, tap_key(taps[t].to(KIND), t, POOL))
        if tl.max(y) >= 0x7C010000:  # above infinity in float16; in bfloat16 also some large numbers'
            for t in tl.static_range(TAPS):
                y = tl.where(taps[t] != taps[t], nan_key(t, POOL), y)
    else:
        for t in tl.static_range(TAPS):
            y, code = pool_step(y, code, taps[t], t, KIND, POOL)
    return y, code


@triton.jit(do_not_specialize=["channels"])
def conv_pool_tma_kernel(x, w, y, code, epilogue, channels, columns, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """(y, code)[box, column] = pooling of epilogue(Σ_term x̂ · w), for tiles of a box of pooled pixels x N columns."""
    STRIDES: tl.constexpr = (META.down.stride, META.across.stride)
    ALIGNED: tl.constexpr = META.aligned
    ONE: tl.constexpr = (1, 1)
    NOWHERE: tl.constexpr = (0, 0)
    POOL: tl.constexpr = META.pool
    INDEX: tl.constexpr = META.index
    KIND: tl.constexpr = y.data.dtype.element_ty
    BOX: tl.constexpr = META.box
    PIXELS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    AT_ONCE: tl.constexpr = META.m > PIXELS
    ROWS: tl.constexpr = POOL.rows if AT_ONCE else 1
    COLUMNS: tl.constexpr = POOL.columns if AT_ONCE else 1
    READ: tl.constexpr = (BOX[0], BOX[1] * ROWS, BOX[2] * COLUMNS)
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    y_strides, columns = assume_aligned(y.strides, ALIGNED), columns // ALIGNED * ALIGNED
    images = box_descriptor(x.data, x.size, x.strides, channels, READ, K, STRIDES)
    term_count = META.taps.rows * META.taps.columns * channels
    weights = tl.make_tensor_descriptor(w, [columns, term_count], [term_count, 1], [N, K])
    row_tiles = box_count(y.size, BOX)
    column_tiles = tl.cdiv(columns, N)
    for program in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row, column = program_tile(program, row_tiles, column_tiles)
        column *= N
        first = box_at(row, y.size, BOX)
        reads = Pixel(first.n, first.h * ROWS, first.w * COLUMNS)
        k = (column + tl.arange(0, N)).to(INDEX)
        at = box_pixels(first, 0, 0, BOX, ONE)
        pixel_mask = (at.n < y.size.n) & (at.h < y.size.h) & (at.w < y.size.w)
        results = Results(row, at, pixel_mask, k, k < columns)
        to = offsets(Pixel(at.n.to(INDEX), at.h, at.w), k, y_strides)
        mask = pixel_mask[:, None] & results.k_mask[None, :]
        if AT_ONCE:
            acc = convolution_at(images, weights, column, reads, NOWHERE, channels, columns, META)
            acc = finish(acc.T, epilogue, results, y_strides, ACTIVATION, INDEX)
            pooled, won = pool_windows(acc, BOX, KIND, POOL)
            store_byte(code, to, won, POOL.rows * POOL.columns - 1, mask, POOL)
        else:
            pooled, won = pool_start(PIXELS, N, POOL, tl.float32)
            for t in range(POOL.rows * POOL.columns):
                shift = (t // POOL.columns * META.shift[0], t % POOL.columns * META.shift[1])
                acc = convolution_at(images, weights, column, reads, shift, channels, columns, META)
                acc = finish(acc.T, epilogue, results, y_strides, ACTIVATION, INDEX)
                pooled, won = pool_step(pooled, won, acc, t, KIND, POOL)
                store_byte(code, to, won, t, mask, POOL)
        store_pooled(y.data, code, to, pooled, won, mask, POOL)


def serves(problem: Problem | WeightProblem) -> bool:
    """True if a pooling follows, and the tile that is picked is one of boxes."""
    return isinstance(problem, Problem) and problem.pool is not None and problem.picked.tile.box is not None


def forward(problem: Problem) -> None:
    """Launch a product; see Path."""
    it, at = problem, problem.picked
    tile, weight = at.tile, matrix(it.weight)
    assert it.pool is not None
    code, y = it.pool.code, it.y
    at_once = math.prod(tile.box) < tile.m
    meta = Meta.of(
        it.window.walks(False) if at_once else it.walks, it.window.size, at.precision, tile,
        aligned=alignment(it.columns, y), pool=it.pool.pool, shift=it.window.stride,
        index=index_type(it.x, weight, code.data),
    )  # fmt: skip
    launch(
        conv_pool_tma_kernel, tile.programs, at.x, weight, at.y, code, it.epilogue.operands(y), it.channels, it.columns,
        ACTIVATION=it.epilogue.on_device(it.y.dtype), META=meta, **tile.options,
    )  # fmt: skip


def _no_weight_grad(problem: WeightProblem) -> None:
    raise AssertionError("a pooling follows products alone")


PATH = Path(serves, forward, _no_weight_grad)

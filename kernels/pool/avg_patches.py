"""Averages of patches of windows, and their gradients: the kernels of avg_pool2d.py for small sliding windows; and what
all averages are divided by."""

from typing import NamedTuple

from ..base.lang import device_function, tl, triton
from .patches import (
    block_of,
    first_window,
    known,
    last_window,
    load_row,
    offsets_of,
    place_of,
    store_row,
)


class Counted(NamedTuple):
    """The divisor of an average: True if padding counts, and the divisor that overrides all, if there is one."""

    padding: bool
    divisor: int | None


@device_function
def extent(p, size, results, AXIS: tl.constexpr, PADDING: tl.constexpr):
    """Return how many pixels of the image, or with PADDING of the padded image, window p takes."""
    if AXIS.stride == 0:
        return ((p + 1) * size + results - 1) // results - p * size // results
    else:
        h = p * AXIS.stride - AXIS.pad
        last = tl.minimum(h + AXIS.size, size + AXIS.pad)
        if not PADDING:
            h, last = tl.maximum(h, 0), tl.minimum(last, size)
        return (last - h).to(tl.int64)


@device_function
def divisor(p, q, image, results, DOWN: tl.constexpr, ACROSS: tl.constexpr, COUNTED: tl.constexpr):
    """Return what the sum of window (p, q) of the results is divided by."""
    PADDING: tl.constexpr = COUNTED.padding
    if COUNTED.divisor is not None:
        return tl.full(p.shape, COUNTED.divisor, tl.int64)
    else:
        return extent(p, image.h, results.h, DOWN, PADDING) * extent(q, image.w, results.w, ACROSS, PADDING)


@device_function
def averaged(total, p, q, image, results, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """Return a block of sums over windows (p, q) of PATCHES, or of whole windows, divided. Results of 16 bits hide that
    the reciprocals of a window's height and width are rounded."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    PADDING: tl.constexpr = COUNTED.padding
    EXACT: tl.constexpr = PATCHES.itemsize > 2
    PLANES: tl.constexpr = len(total.shape) == 1
    ACC: tl.constexpr = PATCHES.accumulator
    if COUNTED.divisor is not None:
        return total / COUNTED.divisor if EXACT else total * (1.0 / COUNTED.divisor)
    else:  # of windows that there are not: 1
        high = tl.maximum(extent(p, image.h, results.h, DOWN, PADDING), 1).to(ACC)
        wide = tl.maximum(extent(q, image.w, results.w, ACROSS, PADDING), 1).to(ACC)
        if EXACT:
            return total / block_of(high * wide, PLANES)
        else:
            return total * block_of(1.0 / high * (1.0 / wide), PLANES)


@triton.jit
def avg_patches_kernel(x, y, channels, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """The same as avg_kernel, in patches: the sum of each row of a window, shared by the windows above each other, then
    the sum of its rows."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    HIGH: tl.constexpr = DOWN.size
    WIDE: tl.constexpr = ACROSS.size
    ROWS: tl.constexpr = PATCHES.rows
    COLUMNS: tl.constexpr = PATCHES.columns
    PLANES: tl.constexpr = PATCHES.planes
    READS: tl.constexpr = PATCHES.reads
    WRITES: tl.constexpr = PATCHES.writes
    ALIGNED: tl.constexpr = PATCHES.aligned
    ACC: tl.constexpr = PATCHES.accumulator
    END: tl.constexpr = (COLUMNS - 1) * ACROSS.stride + WIDE - ACROSS.pad
    x, y = known(x, ALIGNED, READS, PLANES), known(y, ALIGNED, WRITES, PLANES)
    place = place_of(y.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * ROWS, place.w * COLUMNS
    h, w = p * DOWN.stride, q * ACROSS.stride
    start = x.data + offsets_of(place, h, w, x.strides, PLANES)
    to = y.data + offsets_of(place, p, q, y.strides, PLANES)
    sums = ()  # of each row that is read, in each column of windows
    for i in tl.static_range((ROWS - 1) * DOWN.stride + HIGH):
        row = load_row(x, place, start, h, w, 0.0, ACC, i - DOWN.pad, -ACROSS.pad, END, READS, PLANES)
        for j in tl.static_range(COLUMNS):
            total = row[j * ACROSS.stride]
            for s in tl.static_range(1, WIDE):
                total += row[j * ACROSS.stride + s]
            sums = sums + (total,)
        for t in tl.static_range(ROWS):
            if t * DOWN.stride + HIGH - 1 == i:
                results = ()
                for j in tl.static_range(COLUMNS):
                    total = sums[t * DOWN.stride * COLUMNS + j]
                    for r in tl.static_range(1, HIGH):
                        total += sums[(t * DOWN.stride + r) * COLUMNS + j]
                    results = results + (averaged(total, p + t, q + j, x.size, y.size, COUNTED, PATCHES),)
                store_row(y, place, to, p, q, results, t, WRITES, PLANES)


@triton.jit
def avg_grad_patches_kernel(grad, dx, channels, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """The same as avg_grad_kernel, in patches: each window is loaded once; in each row of windows the sums over those
    that can contain a pixel, shared by the pixels above each other, then the sum over rows."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    ROWS: tl.constexpr = PATCHES.rows * DOWN.stride
    COLUMNS: tl.constexpr = PATCHES.columns * ACROSS.stride
    PLANES: tl.constexpr = PATCHES.planes
    READS: tl.constexpr = PATCHES.reads
    WRITES: tl.constexpr = PATCHES.writes
    ALIGNED: tl.constexpr = PATCHES.aligned
    ACC: tl.constexpr = PATCHES.accumulator
    FIRST_P: tl.constexpr = first_window(0, DOWN)
    FIRST_Q: tl.constexpr = first_window(0, ACROSS)
    END: tl.constexpr = last_window(COLUMNS - 1, ACROSS) + 1
    grad, dx = known(grad, ALIGNED, READS, PLANES), known(dx, ALIGNED, WRITES, PLANES)
    place = place_of(dx.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * PATCHES.rows, place.w * PATCHES.columns
    h, w = place.h * ROWS, place.w * COLUMNS
    start = grad.data + offsets_of(place, p, q, grad.strides, PLANES)
    to = dx.data + offsets_of(place, h, w, dx.strides, PLANES)
    sums = ()  # of each row of windows, in each column of pixels
    for i in tl.static_range(FIRST_P, last_window(ROWS - 1, DOWN) + 1):
        row, shares = load_row(grad, place, start, p, q, 0.0, ACC, i, FIRST_Q, END, READS, PLANES), ()
        for j in tl.static_range(FIRST_Q, END):
            share = averaged(row[j - FIRST_Q], p + i, q + j, dx.size, grad.size, COUNTED, PATCHES)
            shares = shares + (share,)
        for b in tl.static_range(COLUMNS):
            sums = sums + (sum_of(shares, first_window(b, ACROSS) - FIRST_Q, last_window(b, ACROSS) - FIRST_Q + 1, 1),)
        for a in tl.static_range(ROWS):
            if last_window(a, DOWN) == i:
                pixels = ()
                for b in tl.static_range(COLUMNS):
                    total = sum_of(
                        sums, (first_window(a, DOWN) - FIRST_P) * COLUMNS + b, (i - FIRST_P + 1) * COLUMNS, COLUMNS
                    )  # fmt: skip
                    pixels = pixels + (total,)
                store_row(dx, place, to, h, w, pixels, a, WRITES, PLANES)


@device_function
def sum_of(blocks, FIRST: tl.constexpr, END: tl.constexpr, STEP: tl.constexpr):
    """Return Σ of every STEP-th block from FIRST up to, but not, END."""
    total = blocks[FIRST]
    for i in tl.static_range(FIRST + STEP, END, STEP):
        total += blocks[i]
    return total

"""Maximum pooling (max_pool2d.py) in patches of windows (patches.py), and its gradient, which serve most pools.

    for each patch of windows:                                            one thread, for one or several channels
        for each row of pixels that its windows read:
            load the row, −∞ outside
            for each column of windows: the best pixel of the row, and its column in the window
            for each row of windows that ends here: the best of its rows' bests; store it, and which tap it is

    for each patch of pixels:
        for each row of windows that contain any of them:
            load the row's gradients and winners, 0 outside
            for each row of pixels that they contain:
                add the gradients of the windows that contain the pixel, where the winner is the tap that reads it
            store the rows of pixels that are in no further row of windows

Which windows contain a pixel, and by which tap they read it, is known when the kernel is compiled, since a patch begins
with a whole window. A window's best is found row after row, as its taps are numbered, so that of equal values the first
wins, and of NaN the last. Windows that overlap share what they have in common: its best, and the loads.
"""

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


@device_function
def best_of(value, tap, later, later_tap):
    """Return the larger of two values, and its tap: the later of two NaN, else the earlier of two equal ones.

    NaN is above nothing, but not below anything either: `later` loses where it is at most value, or at most ∞ where
    value is NaN, and NaN never is."""
    loses = later <= tl.minimum(value, float("inf"))  # which is ∞ of NaN
    return tl.where(loses, value, later), tl.where(loses, tap, later_tap)


@device_function
def best_of_run(values, taps, FIRST: tl.constexpr, END: tl.constexpr, STEP: tl.constexpr):
    """Return the best of values FIRST, FIRST + STEP ... below END, and its tap."""
    best, tap = values[FIRST], taps[FIRST]
    for i in tl.static_range(FIRST + STEP, END, STEP):
        best, tap = best_of(best, tap, values[i], taps[i])
    return best, tap


@device_function
def best_of_window(values, taps, FIRST: tl.constexpr, STEP: tl.constexpr, NUMBER: tl.constexpr, AXIS: tl.constexpr):
    """Return the best of a window's values along an axis, and its tap. values[FIRST] is its first; the next is STEP
    further. Windows 0 and 1, 2 and 3 ... share what both contain, of which the compiler finds the best once."""
    SIZE: tl.constexpr = AXIS.size
    SPLIT: tl.constexpr = SIZE - AXIS.stride if NUMBER % 2 == 1 else AXIS.stride
    END: tl.constexpr = FIRST + SIZE * STEP
    MIDDLE: tl.constexpr = FIRST + SPLIT * STEP
    if SPLIT == 0 or SPLIT == SIZE:
        return best_of_run(values, taps, FIRST, END, STEP)
    else:
        best, tap = best_of_run(values, taps, FIRST, MIDDLE, STEP)
        later, later_tap = best_of_run(values, taps, MIDDLE, END, STEP)
        return best_of(best, tap, later, later_tap)


@device_function
def best_of_rows(bests, taps, p, q, T: tl.constexpr, J: tl.constexpr, PATCHES: tl.constexpr):
    """Return the best of window (T, J) of patches, and its tap, from those of each row, whose taps are numbered as if
    they were window (0, 0)'s. p, q: the patch's place in the image.

    A tap outside, −∞, wins only where all that is inside is −∞, too: then it is tap 0, and the first tap inside won."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    COLUMNS: tl.constexpr = PATCHES.columns
    FIRST: tl.constexpr = T * DOWN.stride * COLUMNS + J
    best, tap = best_of_window(bests, taps, FIRST, COLUMNS, T, DOWN)
    tap -= T * DOWN.stride * ACROSS.size + J * ACROSS.stride
    if T * DOWN.stride < DOWN.pad or J * ACROSS.stride < ACROSS.pad:
        above = tl.maximum(DOWN.pad - (p + T) * DOWN.stride, 0)
        left = tl.maximum(ACROSS.pad - (q + J) * ACROSS.stride, 0)
        tap = tl.maximum(tap, block_of((above * ACROSS.size + left).to(tl.int32), PATCHES.planes))
    return best, tap


@triton.jit
def max_patches_kernel(x, y, winner, indices, channels, PATCHES: tl.constexpr):
    """The same as max_kernel, in patches: the best of each row of a window, shared by the windows above each other,
    then the best of its rows."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    ROWS: tl.constexpr = PATCHES.rows
    COLUMNS: tl.constexpr = PATCHES.columns
    PLANES: tl.constexpr = PATCHES.planes
    READS: tl.constexpr = PATCHES.reads
    WRITES: tl.constexpr = PATCHES.writes
    ALIGNED: tl.constexpr = PATCHES.aligned
    ACC: tl.constexpr = PATCHES.accumulator
    END: tl.constexpr = (COLUMNS - 1) * ACROSS.stride + ACROSS.size - ACROSS.pad
    x, y = known(x, ALIGNED, READS, PLANES), known(y, ALIGNED, WRITES, PLANES)
    place = place_of(y.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * ROWS, place.w * COLUMNS
    h, w = p * DOWN.stride, q * ACROSS.stride
    start = x.data + offsets_of(place, h, w, x.strides, PLANES)
    to = offsets_of(place, p, q, y.strides, PLANES)
    bests, taps = (), ()  # of each row that is read, in each column of windows
    for i in tl.static_range((ROWS - 1) * DOWN.stride + DOWN.size):
        row = load_row(
            x, place, start, h, w, float("-inf"), ACC, i - DOWN.pad, -ACROSS.pad, END, READS, PLANES
        )  # fmt: skip
        numbers = ()
        for s in tl.static_range(len(row)):
            numbers = numbers + (tl.full(row[0].shape, i * ACROSS.size + s, tl.int32),)
        for j in tl.static_range(COLUMNS):
            best, tap = best_of_window(row, numbers, j * ACROSS.stride, 1, j, ACROSS)
            bests, taps = bests + (best,), taps + (tap,)
        for t in tl.static_range(ROWS):
            if t * DOWN.stride + DOWN.size - 1 == i:
                values, winners, pixels = (), (), ()
                for j in tl.static_range(COLUMNS):
                    best, tap = best_of_rows(bests, taps, p, q, t, j, PATCHES)
                    values, winners = values + (best,), winners + (tap,)
                    if indices is not None:
                        r, s = tap // ACROSS.size, tap % ACROSS.size
                        row_of = block_of(h, PLANES) + (t * DOWN.stride - DOWN.pad) + r
                        column_of = block_of(w, PLANES) + (j * ACROSS.stride - ACROSS.pad) + s
                        pixels = pixels + (row_of.to(tl.int64) * x.size.w + column_of,)
                store_row(y, place, y.data + to, p, q, values, t, WRITES, PLANES)
                if winner is not None:
                    store_row(y, place, winner + to, p, q, winners, t, WRITES, PLANES)
                if indices is not None:
                    store_row(y, place, indices + to, p, q, pixels, t, WRITES, PLANES)


@triton.jit
def max_grad_patches_kernel(grad, winner, dx, channels, PATCHES: tl.constexpr):
    """The same as max_grad_kernel, in patches: each window is loaded once, and each pixel visits those that can contain
    it."""
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
    FIRST: tl.constexpr = first_window(0, ACROSS)
    END: tl.constexpr = last_window(COLUMNS - 1, ACROSS) + 1
    grad, winner = known(grad, ALIGNED, READS, PLANES), known(winner, ALIGNED, READS, PLANES)
    dx = known(dx, ALIGNED, WRITES, PLANES)
    place = place_of(dx.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * PATCHES.rows, place.w * PATCHES.columns
    h, w = place.h * ROWS, place.w * COLUMNS
    start = grad.data + offsets_of(place, p, q, grad.strides, PLANES)
    won_start = winner.data + offsets_of(place, p, q, winner.strides, PLANES)
    to = dx.data + offsets_of(place, h, w, dx.strides, PLANES)
    sums = ()  # of each row of pixels that a row of windows has met
    for i in tl.static_range(FIRST_P, last_window(ROWS - 1, DOWN) + 1):
        grads = load_row(grad, place, start, p, q, 0.0, ACC, i, FIRST, END, READS, PLANES)
        winners = load_row(winner, place, won_start, p, q, 0, tl.int32, i, FIRST, END, READS, PLANES)
        before, sums = sums, ()
        for a in tl.static_range(ROWS):
            if first_window(a, DOWN) <= i:
                pixels = before[a] if a < len(before) else ()
                if i <= last_window(a, DOWN):
                    pixels = with_won(pixels, grads, winners, i, a, PATCHES)
                sums = sums + (pixels,)
                if i == last_window(a, DOWN):
                    store_row(dx, place, to, h, w, pixels, a, WRITES, PLANES)


@device_function
def with_won(pixels, grads, winners, I: tl.constexpr, A: tl.constexpr, PATCHES: tl.constexpr):
    """Return the sums of a row's pixels, none yet or one for each, plus the gradients of row I of windows that they
    won."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    FIRST: tl.constexpr = first_window(0, ACROSS)
    found = ()
    for b in tl.static_range(PATCHES.columns * ACROSS.stride):
        acc = pixels[b] if len(pixels) > 0 else None
        for j in tl.static_range(last_window(b, ACROSS), first_window(b, ACROSS) - 1, -1):
            tap = (A + DOWN.pad - I * DOWN.stride) * ACROSS.size + b + ACROSS.pad - j * ACROSS.stride
            won = winners[j - FIRST] == tap
            value = grads[j - FIRST]
            acc = tl.where(won, value, 0.0) if acc is None else tl.where(won, acc + value, acc)
        found = found + (acc,)
    return found

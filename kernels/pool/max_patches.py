"""Maximum pooling (max_pool2d.py) in patches of windows (patches.py), and its gradient, which serve most pools.

    for each patch of windows:                                            one thread, for one or several channels
        for each row of pixels that its windows read:
            load the row, −∞ outside
            for each column of windows: the best pixel of the row, and its column in the window
            for each row of windows that ends here: the best of its rows' bests; store it, and which tap it is

    for each patch of pixels:
        for each row of windows that contain any of them:
            load the row's gradients and winners, 0 outside
            for each row of pixels that is in no further row of windows:
                store Σ gradient over the windows that contain the pixel, where the winner is the tap that reads it

Which windows contain a pixel, and by which tap they read it, is known when the kernel is compiled, since a patch begins
with a whole window. A window's best is found row after row, as its taps are numbered, so that of equal values the first
wins, and of NaN the last.
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
    """Return the larger of two values, and its tap: the later of two NaN, else the earlier of two equal ones."""
    wins = (later > value) | (later != later)
    return tl.where(wins, later, value), tl.where(wins, later_tap, tap)


@device_function
def best_of_rows(bests, taps, p, q, T: tl.constexpr, J: tl.constexpr, PATCHES: tl.constexpr):
    """Return the best of window (T, J) of patches, and its tap, from those of each row. p, q: its place in the image.

    A tap outside, −∞, wins only where all that is inside is −∞, too: then it is tap 0, and the first tap inside won."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    COLUMNS: tl.constexpr = PATCHES.columns
    HIGH: tl.constexpr = DOWN.size
    FIRST: tl.constexpr = T * DOWN.stride * COLUMNS + J
    best, tap = bests[FIRST], taps[FIRST]
    for r in tl.static_range(1, HIGH):
        best, tap = best_of(best, tap, bests[FIRST + r * COLUMNS], taps[FIRST + r * COLUMNS] + r * ACROSS.size)
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
    WIDE: tl.constexpr = ACROSS.size
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
        for j in tl.static_range(COLUMNS):
            best, tap = row[j * ACROSS.stride], tl.zeros(row[0].shape, tl.int32)
            for s in tl.static_range(1, WIDE):
                best, tap = best_of(best, tap, row[j * ACROSS.stride + s], s)
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
    grads, winners = (), ()  # of each row of windows
    for i in tl.static_range(FIRST_P, last_window(ROWS - 1, DOWN) + 1):
        grads = grads + (load_row(grad, place, start, p, q, 0.0, ACC, i, FIRST, END, READS, PLANES),)
        winners = winners + (load_row(winner, place, won_start, p, q, 0, tl.int32, i, FIRST, END, READS, PLANES),)
        for a in tl.static_range(ROWS):
            if last_window(a, DOWN) == i:
                pixels = ()
                for b in tl.static_range(COLUMNS):
                    pixels = pixels + (sum_of_won(grads, winners, a, b, PATCHES),)
                store_row(dx, place, to, h, w, pixels, a, WRITES, PLANES)


@device_function
def sum_of_won(grads, winners, A: tl.constexpr, B: tl.constexpr, PATCHES: tl.constexpr):
    """Return Σ grad over the windows that pixel (A, B) of patches won."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    FIRST_P: tl.constexpr = first_window(0, DOWN)
    FIRST_Q: tl.constexpr = first_window(0, ACROSS)
    acc = None
    for i in tl.static_range(last_window(A, DOWN), first_window(A, DOWN) - 1, -1):
        for j in tl.static_range(last_window(B, ACROSS), first_window(B, ACROSS) - 1, -1):
            tap = (A + DOWN.pad - i * DOWN.stride) * ACROSS.size + B + ACROSS.pad - j * ACROSS.stride
            won = winners[i - FIRST_P][j - FIRST_Q] == tap
            value = tl.where(won, grads[i - FIRST_P][j - FIRST_Q], 0.0)
            acc = value if acc is None else acc + value
    return acc

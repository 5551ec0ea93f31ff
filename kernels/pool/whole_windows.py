"""Whole windows: where windows are large, the threads that have one take its taps side by side.

A program has a block [windows, channels] of results. In each step it takes `taps` taps of every window, numbered along
its rows: a block [windows, taps, channels] of pixels, of which a thread has adjacent channels or adjacent pixels.

    for each step: total [windows, taps, channels] += x at the step's taps; 0 outside
    y = Σ over taps of total

Windows of whole rows are windows of one row, since the rows of an image lie one after the other. So a window that is
the whole image is read in memory's order.
"""

from math import gcd
from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Size, Strides
from ..core.op import launch
from ..core.tensors import alignment, tl_type
from ..tiles import pick
from ..window.layout import cdiv
from ..window.pooling import Axes, Axis
from .patches import as_planes
from .windows import reads

UNROLLED = 64  # steps of a loop that is unrolled whole; of a longer one 8 are


class Windows(NamedTuple):
    """The constants that a kernel of whole windows is compiled for. A kernel first names what it takes of it.

    down, across: the windows' directions
    inside:       True if no window hangs over the image, and all have the same size
    pixels, taps, channels: of a block: results, taps of each in a step, channels
    steps, unroll: steps that a window takes, and how many of them the loop unrolls
    vector:       how many pixels of a row are adjacent and aligned; 1 where channels are
    aligned:      the number that divides strides and sizes of channels; see core.tensors.alignment
    itemsize:     bytes of an element
    accumulator, index: the dtypes of sums and of offsets
    """

    down: Axis
    across: Axis
    inside: bool
    pixels: int
    taps: int
    channels: int
    steps: int
    unroll: int
    vector: int
    aligned: int
    itemsize: int
    accumulator: Any
    index: Any


@device_function
def step_of(step, s, images, results, WINDOWS: tl.constexpr):
    """Return pointers to a step's pixels in images, and the mask of those that there are. [windows, taps, channels]
    s: the program's strip of the results, which have a size."""
    DOWN: tl.constexpr = WINDOWS.down
    ACROSS: tl.constexpr = WINDOWS.across
    HIGH: tl.constexpr = DOWN.size
    WIDE: tl.constexpr = ACROSS.size
    TAPS: tl.constexpr = WINDOWS.taps
    INSIDE: tl.constexpr = WINDOWS.inside
    INDEX: tl.constexpr = WINDOWS.index
    size, strides = images.size, images.strides
    each, first = tl.arange(0, TAPS), tl.cast(step, INDEX) * TAPS
    t = first + each
    h, _ = reads(s.at.h, 0, size.h, results.h, DOWN)
    w, _ = reads(s.at.w, 0, size.w, results.w, ACROSS)
    start = images.data + (s.at.n * strides.n + h * strides.h + w * strides.w)[:, None]
    if HIGH == 1:  # the steps are evenly apart: all pointers are one and a constant
        down, across = tl.zeros_like(t), t
        to = (start + (each * strides.w)[None, :])[:, :, None] + (s.c * strides.c)[None, None, :] + first * strides.w
    else:
        down, across = t // WIDE, t % WIDE
        to = (start + (down * strides.h + across * strides.w)[None, :])[:, :, None] + (s.c * strides.c)[None, None, :]
    mask = (t < HIGH * WIDE)[None, :]
    if not INSIDE:
        row = within(s.at.h[:, None], h[:, None], down[None, :], size.h, results.h, DOWN)
        mask = mask & row & within(s.at.w[:, None], w[:, None], across[None, :], size.w, results.w, ACROSS)
    return to, mask[:, :, None] & s.mask[:, None, :]


@device_function
def within(p, h, r, size, results, AXIS: tl.constexpr):
    """True where tap r of window p, which begins at pixel h, reads a pixel."""
    if AXIS.stride == 0:
        return r < ((p + 1) * size + results - 1) // results - h
    else:
        return (h + r >= 0) & (h + r < size)


def in_rows(each: Axes, images: Images, results: Images) -> tuple[Axes, Images, Images]:
    """Return windows, images and results; windows of whole rows as windows of one row."""
    (n, height, width), (_, high, wide), (down, across) = images.size, results.size, each
    spans = across.size == width and across.pad == 0 and across.stride > 0 and wide == 1 and width > 1
    if not spans or down.stride == 0 or down.dilation != 1 or images.strides.h != width * images.strides.w:
        return each, images, results
    row = Axis(down.size * width, down.stride * width, down.pad * width, 1, down.covers)
    strides = results.strides._replace(w=results.strides.h)
    images = images._replace(size=Size(n, 1, height * width))
    return Axes(Axis(1, 1, 0, 1, 1), row), images, Images(results.data, strides, Size(n, 1, high))


def _vector(across: Axis, images: Images) -> int:
    """Return how many pixels of a row can be accessed at once, where windows of a direction begin."""
    strides: Strides = images.strides
    apart = [it for it, size in zip(strides[:2], images.size[:2], strict=True) if size > 1] + [strides.c]
    if strides.w != 1 or across.stride == 0:
        return 1
    data = images.data
    return gcd(16 // data.element_size(), across.size, across.stride, across.pad, data.storage_offset(), *apart)


def shape_of(
    windows: int, channels: int, taps: int, adjacent: bool, together: bool, vector: int, itemsize: int
) -> tuple[int, int, int, int]:  # fmt: skip
    """Return the windows, taps and channels of a block, and its warps. `together`: threads may share a window. Those of
    a warp do, so that they add without shared memory; with few windows those of all warps, so that more programs
    run."""
    chip = chips.chip_name()
    strip = pick.strip_shape(windows, channels, adjacent, chip)
    across, side = 1, 1
    if adjacent:
        across = min(strip.channels, 128 // itemsize)
        side = 4 if together else 1
    elif together:
        side = vector * min(8, 1 << (cdiv(taps, 8 * vector) - 1).bit_length())
    pixels = max(1, strip.pixels * strip.channels // (across * side))
    enough = chips.CHIPS[chip].multiprocessors if chip != "interpreter" else 0
    while together and pixels > 1 and 2 * side < taps and cdiv(windows, pixels) * cdiv(channels, across) < enough // 2:
        pixels, side = pixels // 2, side * 2
    return pixels, side, across, strip.warps


def launch_windows(
    kernel: Any, images: torch.Tensor, results: torch.Tensor, each: Axes, index: Any, **constants: Any
) -> None:  # fmt: skip
    """Launch kernel(images, results, channels, **constants, WINDOWS) on blocks of results."""
    channels, itemsize = images.shape[1], images.element_size()
    each, x, y = in_rows(each, Images.of(images), Images.of(results))
    inside = all(
        axis.stride > 0 and axis.pad == 0 and (p - 1) * axis.stride + axis.size <= h
        for axis, h, p in zip(each, x.size[1:], y.size[1:], strict=True)
    )
    adjacent = images.stride(1) == 1 and channels > 1
    if not adjacent and all(t.stride(0) == channels * t.stride(1) for t in (images, results)):
        x, y, channels = as_planes(x, channels), as_planes(y, channels), 1
    together = inside and each.taps > 16
    vector = 1 if adjacent or not together else _vector(each.across, x)
    windows = y.size.n * y.size.h * y.size.w
    pixels, taps, across, warps = shape_of(windows, channels, each.taps, adjacent, together, vector, itemsize)
    steps, aligned = cdiv(each.taps, taps), alignment(channels, images, results) if adjacent else 1
    what = Windows(
        *each, inside, pixels, taps, across, steps, steps if steps <= UNROLLED else 8, vector, aligned, itemsize,
        tl_type(accumulator(images.dtype)), index,
    )  # fmt: skip
    programs = cdiv(windows, pixels) * cdiv(channels, across)
    launch(kernel, programs, x, y, channels, **constants, WINDOWS=what, num_warps=warps)

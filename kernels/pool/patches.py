"""Patches of windows: a thread takes several windows side by side, so that they share loads, addresses and partial
results.

A patch is `rows` x `columns` windows, which slide, have no dilation, at most MOST pixels in a row, and no gaps between.

    forward:    the patch is of results; it reads a halo of (rows − 1)·stride + size rows of pixels, as many columns
    gradient:   the patch is of rows·stride x columns·stride pixels; it reads the windows that contain any of them

A program has a block of patches, and a value of a patch is a block of them all, in one of two layouts:

    channels adjacent in memory:   [patches, channels], a thread loads adjacent channels of a pixel
    pixels of a row adjacent:      [patches], each of one channel; a thread loads adjacent pixels [patches, vector] and
                                   takes them apart in registers

So a row of a patch is a tuple of blocks, and arithmetic does not know the layout.
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Pixel, Strides, assume_aligned, offsets, pixel
from ..core.op import launch
from ..core.tensors import alignment, index_type, tl_type
from ..tiles import pick
from ..tiles.model import register_options
from ..window.layout import cdiv
from ..window.pooling import Axes, Axis

FEWEST = 256  # threads that each multiprocessor should have; patches are lower where it would have fewer
MOST = 5  # rows and columns of a window: all are unrolled


class Patches(NamedTuple):
    """The constants that a kernel of patches is compiled for. A kernel first names what it takes of it.

    down, across:  the windows' directions
    rows, columns: windows of a patch
    planes:        True if pixels of a row are adjacent, False if channels are
    reads, writes: how many of a row of what is loaded and stored are adjacent and aligned; 1 unless planes
    aligned:       the number that divides strides and sizes of channels; see core.tensors.alignment
    patches, channels: of a program
    itemsize: bytes of what is stored
    accumulator, index: the dtypes of sums and of offsets
    """

    down: Axis
    across: Axis
    rows: int
    columns: int
    planes: bool
    reads: int
    writes: int
    aligned: int
    patches: int
    channels: int
    itemsize: int
    accumulator: Any
    index: Any


class Place(NamedTuple):
    """A program's patches: image n, row h and column w of the grid of patches, channel c; which of them exist; and,
    where a block has several channels, which of these."""

    n: Any
    h: Any
    w: Any
    c: Any
    exists: Any
    c_mask: Any


@device_function
def place_of(size, channels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PATCHES: tl.constexpr):
    """Return this program's patches, HEIGHT x WIDTH pixels each, of images of a size."""
    BLOCK: tl.constexpr = PATCHES.patches
    CHANNELS: tl.constexpr = PATCHES.channels
    INDEX: tl.constexpr = PATCHES.index
    ALIGNED: tl.constexpr = PATCHES.aligned
    down, across = tl.cdiv(size.h, HEIGHT), tl.cdiv(size.w, WIDTH)
    if PATCHES.planes:
        at = pixel(tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK), down, across)
        n = at.n // channels
        exists = n < size.n
        return Place(n, at.h, at.w, at.n - n * channels, exists, exists)
    else:
        channels = channels // ALIGNED * ALIGNED
        blocks = tl.cdiv(channels, CHANNELS)
        at = pixel((tl.program_id(0) // blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK), down, across)
        c = (tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
        return Place(at.n, at.h, at.w, c, at.n < size.n, c < channels)


@device_function
def known(images, ALIGNED: tl.constexpr, VECTOR: tl.constexpr, PLANES: tl.constexpr):
    """Return images whose strides and sizes tell the compiler what divides them."""
    size, strides = images.size, images.strides
    if PLANES:
        if VECTOR == 1:
            return images
        else:
            n, h, c = strides.n // VECTOR * VECTOR, strides.h // VECTOR * VECTOR, strides.c // VECTOR * VECTOR
            return Images(images.data, Strides(n, h, strides.w, c), size)
    else:
        return Images(images.data, assume_aligned(strides, ALIGNED), size)


@device_function
def offsets_of(place, h, w, strides, PLANES: tl.constexpr):
    """Return the offsets of pixels (h, w) in the patches' images and channels."""
    if PLANES:
        return place.n * strides.n + place.c * strides.c + h * strides.h + w * strides.w
    else:
        return offsets(Pixel(place.n, h, w), place.c, strides)


@device_function
def masked(place, inside, PLANES: tl.constexpr):
    """Return the mask of a block, of which patches this is inside."""
    if PLANES:
        return inside
    else:
        return inside[:, None] & place.c_mask[None, :]


@device_function
def block_of(each, PLANES: tl.constexpr):
    """Return what each patch has [patches] as a block, which may have several channels."""
    if PLANES:
        return each
    else:
        return each[:, None]


@triton.constexpr_function
def first_window(pixel, axis):
    """Return the first window that can contain a pixel, along an axis: of those numbered from the patch's first."""
    return -((axis.size - 1 - axis.pad - pixel) // axis.stride)


@triton.constexpr_function
def last_window(pixel, axis):
    """Return the last window that can contain a pixel."""
    return (pixel + axis.pad) // axis.stride


@device_function
def within(i, size, OFFSET: tl.constexpr):
    """True where i + OFFSET is in 0 … size − 1, for i that are not negative."""
    if OFFSET < 0:
        return (i + OFFSET >= 0) & (i + OFFSET < size)
    else:
        return i + OFFSET < size


@triton.constexpr_function
def first_of(first, group):
    """Return the first of a row's columns, from `first`, that is in a group."""
    return max(first, group)


@triton.constexpr_function
def alone(first, end, group, vector):
    """True if a single one of the columns first … end − 1 is in a group of `vector`."""
    return min(end, group + vector) - max(first, group) == 1


@device_function
def widened(block, TO: tl.constexpr):
    """Return a block in dtype TO, which is float32 for bfloat16: the same bits above 16 zeros. As integers they take
    fewer instructions."""
    if block.dtype == tl.bfloat16:
        return (block.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return block.to(TO)


@device_function
def load_row(
    images, place, start, h, w, other, TO: tl.constexpr, H: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr,
    VECTOR: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Return row h + H of images, columns w + FIRST up to, but not, w + END, a block of dtype TO each; `other` outside.
    start: pointers to (h, w), which are not negative; h, w: [patches]."""
    start += tl.cast(H, w.dtype) * images.strides.h
    row = place.exists & within(h, images.size.h, H)
    found = ()
    for group in tl.static_range(FIRST // VECTOR * VECTOR, END, VECTOR):
        if alone(FIRST, END, group, VECTOR):
            mask = masked(place, row & within(w, images.size.w, first_of(FIRST, group)), PLANES)
            at = start + tl.cast(first_of(FIRST, group), w.dtype) * images.strides.w
            found = found + (widened(tl.load(at, mask=mask, other=other), TO),)
        else:
            mask = row & within(w, images.size.w, group)  # of a whole group: its size divides that of a row
            at = start[:, None] + (group + tl.arange(0, VECTOR))[None, :]
            each = apart(widened(tl.load(at, mask=mask[:, None], other=other), TO), VECTOR)
            for i in tl.static_range(VECTOR):
                if group + i >= FIRST and group + i < END:
                    found = found + (each[i],)
    return found


@device_function
def apart(block, VECTOR: tl.constexpr):
    """Return the columns of a block [patches, VECTOR], which a thread has side by side, each as [patches]."""
    if VECTOR == 2:
        a, b = tl.split(block)
        return (a, b)
    elif VECTOR == 4:
        even, odd = tl.split(tl.reshape(block, [block.shape[0], 2, 2]))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return (a, b, c, d)
    else:
        even, odd = tl.split(tl.reshape(block, [block.shape[0], 4, 2]))
        a, c, e, g = apart(even, 4)
        b, d, f, h = apart(odd, 4)
        return (a, b, c, d, e, f, g, h)


@device_function
def store_row(
    images, place, start, h, w, row, H: tl.constexpr, VECTOR: tl.constexpr, PLANES: tl.constexpr
):  # fmt: skip
    """Store a tuple of blocks in row h + H of images, in columns w and on. start, h, w: as in
    load_row."""
    TO: tl.constexpr = start.dtype.element_ty
    start += tl.cast(H, w.dtype) * images.strides.h
    exists = place.exists & within(h, images.size.h, H)
    for group in tl.static_range(0, len(row), VECTOR):
        inside = exists & within(w, images.size.w, group)
        if VECTOR == 1:
            at = start + tl.cast(group, w.dtype) * images.strides.w
            tl.store(at, row[group].to(TO), mask=masked(place, inside, PLANES))
        else:
            at = start[:, None] + (group + tl.arange(0, VECTOR))[None, :]
            tl.store(at, together(row, group, VECTOR).to(TO), mask=inside[:, None])


@device_function
def together(row, FIRST: tl.constexpr, VECTOR: tl.constexpr):
    """Return columns FIRST and on as one block [patches, VECTOR]: `apart` reversed."""
    if VECTOR == 2:
        return tl.join(row[FIRST], row[FIRST + 1])
    else:
        HALF: tl.constexpr = VECTOR // 2
        pairs = ()
        for i in tl.static_range(HALF):
            pairs = pairs + (tl.join(row[FIRST + i], row[FIRST + HALF + i]),)  # [patches, 2]
        if VECTOR == 4:
            block = tl.join(pairs[0], pairs[1])
        else:
            block = tl.join(tl.join(pairs[0], pairs[2]), tl.join(pairs[1], pairs[3]))
        return tl.reshape(block, [block.shape[0], VECTOR])


def serves(each: Axes, backward: bool = False) -> bool:
    """True if windows are served: sliding, without dilation, so that each contains a pixel of the image, and small;
    `backward`: and a pixel is in few, which a thread holds all of."""
    return all(
        axis.dilation == 1 and 0 < axis.stride <= axis.size <= MOST and not (backward and axis.covers > 3)
        for axis in each
    )


def _vector(columns: int, *tensors: torch.Tensor) -> int:
    """Return how many pixels of a row can be accessed at once, where this many belong to a patch: a power of two."""
    most = max(1, 16 // max(t.element_size() for t in tensors))
    vector = min(columns & -columns, most)
    for tensor in tensors:
        n, c, h, w = tensor.stride()
        sizes = (n, c, h, tensor.shape[3], tensor.storage_offset())
        vector = 1 if w != 1 else min([vector, *(size & -size for size in sizes if size)])
    return vector


def _share(size: int, most: int) -> int:
    """Return how many rows or columns a patch has, at most `most`, so that the last patch lacks few."""
    return cdiv(size, cdiv(size, most))


def shape_of(
    windows: tuple[int, int], each: Axes, planes: bool, backward: bool, aligned: bool, most: int
) -> tuple[int, int]:
    """Return the rows and columns of windows of a patch, of so many in all. The more there are, the more is shared, and
    the more registers it takes, columns above all. Of planes a patch is about as wide as the widest load; where rows
    are not aligned it is narrow, so that threads side by side access pixels that are near each other.

    most: rows of windows; of pixels if backward"""
    (high, wide), (down, across) = windows, each
    rows = _share(high, max(1, most // down.stride) if backward else most)
    if planes and aligned:
        return rows, 8 if across.stride == 1 else 4
    if planes:
        return rows, max(1, 4 // across.stride)
    narrow = across.stride > 1 if backward else across.size > 3
    return rows, _share(wide, 1 if narrow else 2)


def as_planes(images: Any, channels: int) -> Any:
    """Return images of one channel each, if this is one of images whose planes are evenly apart."""
    if not isinstance(images, Images):
        return images
    size, strides = images.size, images.strides
    return Images(images.data, strides._replace(n=strides.c), size._replace(n=size.n * channels))


def launch_patches(
    kernel: Any, over: torch.Tensor, reads: tuple[torch.Tensor, ...], each: Axes, backward: bool, *args: Any,
    **constants: Any,
) -> None:  # fmt: skip
    """Launch kernel(*args, channels, **constants, PATCHES) on patches of `over`, which is stored. reads: the tensors
    that are loaded; backward: True if patches are of pixels."""
    batch, channels, height, width = over.shape
    chip, planes, itemsize = chips.chip_name(), over.stride(1) != 1 or channels == 1, over.element_size()
    down, stride = each.down.stride, each.across.stride
    windows = (cdiv(height, down), cdiv(width, stride)) if backward else (height, width)
    wide_loads = _vector(4, over if backward else reads[0]) > 1
    for most in (8, 4, 2):
        rows, columns = shape_of(windows, each, planes, backward, wide_loads, most)
        high, wide, read = (rows * down, columns * stride, columns) if backward else (rows, columns, columns * stride)
        grid = batch * cdiv(height, high) * cdiv(width, wide)
        threads = grid * (channels if planes else cdiv(channels * itemsize, 16))
        if threads >= FEWEST * chips.CHIPS[chip].multiprocessors:
            break
    shape = pick.patch_shape(grid, channels, planes, itemsize, chip)
    if planes:
        programs, vectors, aligned = (
            cdiv(grid * channels, shape.pixels),
            (_vector(read, *reads), _vector(wide, over)),
            1,
        )
        if all(t.stride(0) == channels * t.stride(1) for t in (*reads, over)):
            args, channels = tuple(as_planes(each, channels) for each in args), 1
    else:
        programs = cdiv(grid, shape.pixels) * cdiv(channels, shape.channels)
        vectors, aligned = (1, 1), alignment(channels, *reads, over)
    patches = Patches(
        *each, rows, columns, planes, *vectors, aligned, shape.pixels, shape.channels, itemsize,
        tl_type(accumulator(over.dtype)), index_type(*reads, over),
    )  # fmt: skip
    options = {"num_warps": shape.warps, **register_options(chip)}
    launch(kernel, programs, *args, channels, **constants, PATCHES=patches, **options)

"""Images as kernels take them: memory, strides and size by name, the same on the host and on the device.

Shape tags: a trailing comment gives each block's shape.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl


class Strides(NamedTuple):
    """Elements from an image, a row, a pixel, a channel to the next."""

    n: Any
    h: Any
    w: Any
    c: Any


class Pixel(NamedTuple):
    """Pixels of a batch: image n, row h, column w."""

    n: Any
    h: Any
    w: Any


class Size(NamedTuple):
    """Number of images, their rows and columns."""

    n: Any
    h: Any
    w: Any


class Images(NamedTuple):
    """A batch of images. data: the tensor; in a kernel, the pointer to its first element."""

    data: Any
    strides: Strides
    size: Size

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Images":
        """Return a tensor (N, C, H, W) as images."""
        strides, (batch, _, height, width) = tensor.stride(), tensor.shape
        return cls(tensor, Strides(strides[0], strides[2], strides[3], strides[1]), Size(batch, height, width))


def merged(*images: Images) -> tuple[Images, ...]:
    """Return images of one size with fewer dimensions, for kernels to divide less: as images of one pixel, if in each
    all pixels are evenly spaced; else as images of one row, if all pixels of an image are."""
    n, h, w = images[0].size
    rows = [_joint(h, w, it.strides.h, it.strides.w) for it in images]
    if None in rows:
        return images
    whole = [_joint(n, h * w, it.strides.n, row) for it, row in zip(images, rows, strict=True)]
    if None in whole:
        size, steps = Size(n, 1, h * w), [(it.strides.n, row) for it, row in zip(images, rows, strict=True)]
    else:
        size, steps = Size(n * h * w, 1, 1), [(step, step) for step in whole]
    return tuple(
        Images(it.data, Strides(far, near, near, it.strides.c), size)
        for it, (far, near) in zip(images, steps, strict=True)
    )


def _joint(outer: int, inner: int, outer_stride: int, inner_stride: int) -> int | None:
    """Return the stride of two dimensions as one, by their sizes and strides; None if they don't make one."""
    if inner == 1:
        return outer_stride
    return inner_stride if outer == 1 or outer_stride == inner * inner_stride else None


def vector(images: Sequence[Images], channels: int, across: bool) -> tuple[int, int]:
    """Return the elements, of 16 bytes at most, that a thread can load at once from each of these images: of adjacent
    channels, or unless `across` of adjacent pixels of a row; and the number that the compiler must be told, 1 if it
    knows by itself."""
    strides = [stride for it in images for stride, size in zip(it.strides[:2], it.size[:2], strict=True) if size > 1]
    if across and all(it.strides.c == 1 for it in images):
        apart = [channels, *strides, *(it.strides.w for it in images if it.size.w > 1)]
    elif not across and all(it.strides.w == 1 < it.size.w for it in images):
        apart = [stride for it in images for stride in (it.size.w, it.strides.c)] + strides
    else:
        return 1, 1
    elements = math.gcd(16 // images[0].data.element_size(), *apart)
    return elements, 1 if all(number % 16 == 0 for number in apart) else elements


@device_function
def pixel(index, height, width):
    """Return the pixels of flat indices into images of height x width."""
    row = index // width
    return Pixel(row // height, row % height, index - row * width)


@device_function
def offsets(at, c, strides):
    """Return the offsets of channels c at pixels `at`. [pixels, channels]"""
    rows = at.n * strides.n + at.h * strides.h + at.w * strides.w
    return rows[:, None] + c[None, :] * strides.c


@device_function
def offsets_each(n, h, w, c, strides):
    """Return the offsets of channels c at pixels (n, h, w), with h and w [pixels, channels]."""
    return (n * strides.n)[:, None] + h * strides.h + w * strides.w + (c * strides.c)[None, :]


@device_function
def assume_aligned(strides, ALIGNED: tl.constexpr):
    """Return strides whose rows and pixels are multiples of ALIGNED, in a form that tells the compiler so; it knows by
    itself of 16 alone."""
    if ALIGNED == 1:
        return strides
    return Strides(
        strides.n // ALIGNED * ALIGNED, strides.h // ALIGNED * ALIGNED, strides.w // ALIGNED * ALIGNED, strides.c
    )


@device_function
def in_vectors(images, BLOCK: tl.constexpr):
    """Return images that threads load `aligned` elements of at once (see `vector`), in a form that tells the compiler
    so: channels, or with blocks of one channel pixels of a row."""
    ALIGNED: tl.constexpr = BLOCK.aligned
    if ALIGNED == 1:
        return images
    elif BLOCK.channels > 1:
        return Images(images.data, assume_aligned(images.strides, ALIGNED), images.size)
    else:
        s, size = images.strides, images.size
        strides = Strides(s.n // ALIGNED * ALIGNED, s.h // ALIGNED * ALIGNED, s.w, s.c // ALIGNED * ALIGNED)
        return Images(images.data, strides, Size(size.n, size.h, size.w // ALIGNED * ALIGNED))

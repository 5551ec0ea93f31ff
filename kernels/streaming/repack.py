"""Images in another layout: contiguous ones as channels_last, and back.

    y[n, h, w, c] = x[n, h, w, c]            a tile of pixels of a row x channels at a time

A tile is loaded along what is adjacent in x, passes through shared memory, and is stored along what is adjacent in y.
Where the pixels of an image are evenly spaced in both, they are one row.
"""

import torch

from ..base.lang import tl, triton
from ..core.images import Images, Size, Strides
from ..core.op import launch
from ..core.tensors import index_type, new
from ..window.layout import cdiv, row_stride
from .strips import Block


@triton.jit
def repack_kernel(x, y, channels, BLOCK: tl.constexpr):
    """y = x, for a tile of pixels of one row x channels."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    INDEX: tl.constexpr = BLOCK.index
    across, along = tl.cdiv(channels, CHANNELS), tl.cdiv(x.size.w, PIXELS)
    row = tl.program_id(0) // (across * along)
    n, h = (row // x.size.h).to(INDEX), (row % x.size.h).to(INDEX)
    w = (tl.program_id(0) // across % along * PIXELS + tl.arange(0, PIXELS)).to(INDEX)[:, None]
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)[None, :]
    mask = (w < x.size.w) & (c < channels)
    from_x = x.data + (n * x.strides.n + h * x.strides.h) + (w * x.strides.w + c * x.strides.c)
    to_y = y.data + (n * y.strides.n + h * y.strides.h) + (w * y.strides.w + c * y.strides.c)
    tl.store(to_y, tl.load(from_x, mask=mask), mask=mask)


def repack(x: torch.Tensor, y: torch.Tensor) -> None:
    """y = x."""
    images = Images.of(x), Images.of(y)
    rows = [row_stride(each.size[1:], each.strides[1:3]) for each in images]
    if None not in rows:
        size = Size(x.shape[0], 1, x.shape[2] * x.shape[3])
        images = tuple(
            Images(each.data, Strides(each.strides.n, 0, row, each.strides.c), size)
            for each, row in zip(images, rows, strict=True)
        )
    n, h, w = images[0].size
    block = Block(64, 64, None, index_type(x, y))
    programs = n * h * cdiv(w, block.pixels) * cdiv(x.shape[1], block.channels)
    if programs:
        launch(repack_kernel, programs, *images, x.shape[1], BLOCK=block, num_warps=4)


def channels_are_apart(images: torch.Tensor) -> bool:
    """True if a pixel's channels are not adjacent."""
    return images.stride(1) != 1


def packed(images: torch.Tensor) -> torch.Tensor:
    """Return images with adjacent channels."""
    if not channels_are_apart(images):
        return images
    copy = new(images.shape, images, channels_last=True)
    repack(images, copy)
    return copy

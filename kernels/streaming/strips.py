"""Kernels that go once over all elements of a batch of images: each program takes a strip of pixels x channels."""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Pixel, pixel
from ..core.op import launch
from ..core.tensors import tl_type
from ..tiles import pick
from ..window.layout import cdiv


class Block(NamedTuple):
    """The constants that a streaming kernel is compiled for: the pixels and channels of a program, the dtype of sums,
    and the integer that offsets are computed in."""

    pixels: int
    channels: int
    accumulator: Any
    index: Any


class Strip(NamedTuple):
    """A program's pixels `at` [pixels], channels c [channels], and which of them exist, `mask` [pixels, channels]."""

    at: Pixel
    c: Any
    mask: Any


@device_function
def strip(size, channels, BLOCK: tl.constexpr):
    """Return this program's strip of images of a size."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    INDEX: tl.constexpr = BLOCK.index
    across = tl.cdiv(channels, CHANNELS)
    index = (tl.program_id(0) // across).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    at = pixel(index, size.h, size.w)
    return Strip(at, c, (at.n < size.n)[:, None] & (c < channels)[None, :])


def stream(kernel: Any, over: torch.Tensor, *args: Any, index: Any, **constants: Any) -> None:
    """Launch kernel(*args, channels of `over`, **constants, BLOCK), each program on a strip of `over`."""
    batch, channels, height, width = over.shape
    pixels = batch * height * width
    shape = pick.strip_shape(pixels, channels, over.stride(1) == 1, chips.chip_name())
    block = Block(shape.pixels, shape.channels, tl_type(accumulator(over.dtype)), index)
    programs = cdiv(pixels, shape.pixels) * cdiv(channels, shape.channels)
    launch(kernel, programs, *args, channels, **constants, BLOCK=block, num_warps=shape.warps)

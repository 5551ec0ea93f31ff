"""Kernels that go once over all elements of a batch of images: each program takes a strip of pixels x channels, or,
where what it loads once serves several, a chunk of strips."""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Pixel, pixel, vector
from ..core.op import launch
from ..core.tensors import tl_type
from ..tiles import pick
from ..tiles.shapes import StripShape
from ..window.layout import cdiv


class Block(NamedTuple):
    """The constants that a streaming kernel is compiled for.

    pixels, channels: of a strip
    accumulator:      the dtype of sums
    index:            the integer that offsets are computed in
    rows:             of a block of sums over pixels: fewer than pixels where a thread has several of one channel
    warps:            among which rows are divided, each with adjacent ones; 1 if that isn't known
    aligned:          as in images.in_vectors
    """

    pixels: int
    channels: int
    accumulator: Any
    index: Any
    rows: int = 0
    warps: int = 1
    aligned: int = 1


class Strip(NamedTuple):
    """A program's pixels `at` [pixels], channels c [channels], and which of them exist, `mask` [pixels, channels]."""

    at: Pixel
    c: Any
    mask: Any


class Part(NamedTuple):
    """A program's part of the pixels, by its number, and its channels c; those of c_mask exist. [channels]"""

    number: Any
    c: Any
    c_mask: Any


class Step(NamedTuple):
    """A step's pixels `at` [pixels], and which elements exist, `mask` [pixels, channels]."""

    at: Pixel
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


@device_function
def part_of(channels, BLOCK: tl.constexpr):
    """Return this program's part."""
    CHANNELS: tl.constexpr = BLOCK.channels
    INDEX: tl.constexpr = BLOCK.index
    across = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    if CHANNELS > 1:
        channels = channels // BLOCK.aligned * BLOCK.aligned
    return Part(tl.program_id(0) // across, c, c < channels)


@device_function
def step_of(step, size, part, BLOCK: tl.constexpr):
    """Return a step of a part, over images of a size."""
    PIXELS: tl.constexpr = BLOCK.pixels
    INDEX: tl.constexpr = BLOCK.index
    at = pixel(tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS), size.h, size.w)
    return Step(at, (at.n < size.n)[:, None] & part.c_mask[None, :])


def stream(kernel: Any, over: torch.Tensor, *args: Any, index: Any, **constants: Any) -> None:
    """Launch kernel(*args, channels of `over`, **constants, BLOCK), each program on a strip of `over`."""
    batch, channels, height, width = over.shape
    pixels = batch * height * width
    shape = pick.strip_shape(pixels, channels, over.stride(1) == 1, chips.chip_name())
    block = Block(shape.pixels, shape.channels, tl_type(accumulator(over.dtype)), index)
    programs = cdiv(pixels, shape.pixels) * cdiv(channels, shape.channels)
    launch(kernel, programs, *args, channels, **constants, BLOCK=block, num_warps=shape.warps)


class Chunks(NamedTuple):
    """Strips in chunks: programs for each block of channels, each with `chunk` strips; `across` blocks of channels."""

    block: Block
    shape: StripShape
    across: int
    programs: int
    chunk: int


def chunks(
    over: torch.Tensor, args: tuple[Any, ...], index: Any, rows: int = 1, blocks: int = 1, high: int = 1
) -> Chunks:
    """Return the chunks of `over`, whose programs fill the chip, for a kernel of args; of pixels that stand for `rows`
    pixels each, with `blocks` programs for each. high: a thread may have so many vectors of 16 bytes."""
    batch, channels, height, width = over.shape
    chip, pixels, adjacent = chips.chip_name(), batch * (height // rows) * width, over.stride(1) == 1
    shape = pick.strip_shape(pixels, channels, adjacent, chip)
    across = cdiv(channels, shape.channels) * blocks
    shape = pick.high_strip(shape, pixels, across, max(1, high * 2 // over.element_size()), chip)
    steps = cdiv(pixels, shape.pixels)
    chunk = _even(steps, across, chips.CHIPS[chip].multiprocessors)
    elements, aligned = vector([it for it in args if isinstance(it, Images)], channels, shape.channels > 1)
    held, warps = pick.rows_of_sums(shape, elements, over.element_size(), chip)
    dtype = tl_type(accumulator(over.dtype))
    block = Block(shape.pixels, shape.channels, dtype, index, held, warps, aligned)
    return Chunks(block, shape, across, cdiv(steps, chunk), chunk)


def _even(steps: int, across: int, multiprocessors: int) -> int:
    """Return the strips of a program of `steps` for each of `across` blocks: of four to eight programs for a
    multiprocessor those with which the busiest has the fewest strips."""
    most, least = (cdiv(steps, max(1, min(steps, each * multiprocessors // across))) for each in (4, 8))
    return min(range(most, least - 1, -1), key=lambda chunk: cdiv(cdiv(steps, chunk) * across, multiprocessors) * chunk)


def stream_chunks(
    kernel: Any, over: torch.Tensor, *args: Any, index: Any, high: int = 1, **constants: Any
) -> None:  # fmt: skip
    """Launch kernel(*args, channels of `over`, chunk, **constants, BLOCK), each program on a chunk of strips. high: as
    in `chunks`."""
    if over.numel() == 0:
        return
    each = chunks(over, args, index, high=high)
    launch(
        kernel, each.programs * each.across, *args, over.shape[1], each.chunk, **constants, BLOCK=each.block,
        num_warps=each.shape.warps,
    )  # fmt: skip

"""Sums over pixels and over rows, in a fixed order: deterministic, without atomics.

parts[program, i] = Σ over the program's pixels            a kernel of the caller's, by `sum_pixels`
total[i]          = Σ_program parts[program, i]            sum_kernel
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, interpreted, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Pixel, pixel
from ..core.op import launch
from ..core.tensors import index_type, new, tl_type
from ..tiles import pick
from ..window.layout import cdiv
from .strips import Block


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
def sum_rows(x):
    """Return Σ over the rows of a block, as a tree; in the interpreter, which would add row after row, in float64."""
    if interpreted():
        total = x.to(tl.float64)
        while total.shape[0] > 1:
            total = tl.sum(total.reshape(2, total.shape[0] // 2, total.shape[1]), axis=0)
        return total.reshape(total.shape[1]).to(x.dtype)
    else:
        return tl.sum(x, axis=0)


@device_function
def part_of(channels, BLOCK: tl.constexpr):
    """Return this program's part."""
    CHANNELS: tl.constexpr = BLOCK.channels
    INDEX: tl.constexpr = BLOCK.index
    across = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    return Part(tl.program_id(0) // across, c, c < channels)


@device_function
def step_of(step, size, part, BLOCK: tl.constexpr):
    """Return a step of a part, over images of a size."""
    PIXELS: tl.constexpr = BLOCK.pixels
    INDEX: tl.constexpr = BLOCK.index
    at = pixel(tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS), size.h, size.w)
    return Step(at, (at.n < size.n)[:, None] & part.c_mask[None, :])


@device_function
def store_sums(parts, part, first, second, channels, INDEX: tl.constexpr):
    """Store the sums over pixels of two blocks [pixels, channels] in the part's row of parts [part, 2, channels]."""
    to = parts + part.number.to(INDEX) * 2 * channels + part.c
    tl.store(to, sum_rows(first).to(parts.dtype.element_ty), mask=part.c_mask)
    tl.store(to + channels, sum_rows(second).to(parts.dtype.element_ty), mask=part.c_mask)


@triton.jit
def sum_kernel(parts, total, rows, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """total[i] = Σ_row parts[row, i], in a fixed order: the second stage of every split sum."""
    i = tl.program_id(0).to(INDEX) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([COLUMNS], parts.dtype.element_ty)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (i < size)[None, :]
        acc += sum_rows(tl.load(parts + row[:, None].to(INDEX) * size + i[None, :], mask=mask, other=0.0))
    tl.store(total + i, acc.to(total.dtype.element_ty), mask=i < size)


def sum_parts(parts: torch.Tensor, total: torch.Tensor) -> None:
    """total = Σ_row parts[row, :], rows added in a fixed order; total's elements in the order of its memory."""
    size = total.numel()
    columns = pick.sum_columns(size, chips.chip_name())
    launch(
        sum_kernel, cdiv(size, columns), parts, total, parts.shape[0], size,
        ROWS=16, COLUMNS=columns, INDEX=index_type(parts), num_warps=4,
    )  # fmt: skip


def sum_pixels(
    kernel: Any, totals: torch.Tensor, over: torch.Tensor, *args: Any, index: Any, rows: int = 1, blocks: int = 1,
    **constants: Any,
) -> None:  # fmt: skip
    """Launch kernel(*args, parts, channels of `over`, chunk, **constants, BLOCK), each program on a chunk of strips of
    pixels of `over`; totals [sums x channels] are the sums of what each program stores in its row of parts. A program's
    pixel may stand for `rows` pixels, a divisor of the height; and there may be several `blocks` of sums, each with
    programs of its own."""
    if over.numel() == 0:
        totals.zero_()
        return
    batch, channels, height, width = over.shape
    chip, pixels = chips.chip_name(), batch * (height // rows) * width
    shape = pick.strip_shape(pixels, channels, over.stride(1) == 1, chip)
    across = cdiv(channels, shape.channels) * blocks
    steps = cdiv(pixels, shape.pixels)
    chunk = cdiv(steps, max(1, min(steps, 4 * chips.CHIPS[chip].multiprocessors // across)))
    programs = cdiv(steps, chunk)
    parts = totals if programs == 1 else new((programs, totals.numel()), over, dtype=accumulator(over.dtype))
    block = Block(shape.pixels, shape.channels, tl_type(accumulator(over.dtype)), index)
    launch(
        kernel, programs * across, *args, parts, channels, chunk, **constants, BLOCK=block, num_warps=shape.warps
    )  # fmt: skip
    if parts is not totals:
        sum_parts(parts, totals)

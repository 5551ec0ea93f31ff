"""Sums over pixels and over rows, in a fixed order: deterministic, without atomics.

parts[program, i] = Σ over the program's pixels            a kernel of the caller's, by `sum_pixels`
total[i]          = Σ_program parts[program, i]            sum_kernel
"""

from typing import Any

import torch

from ..base.lang import device_function, interpreted, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.op import launch
from ..core.tensors import index_type, new, tl_type
from ..tiles import pick
from ..tiles.shapes import StripShape
from ..window.layout import cdiv
from .strips import Block, chunks


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
def held(x, BLOCK: tl.constexpr):
    """Return the sums [rows, channels] over the pixels of a block x [pixels, channels] that each thread has."""
    ROWS: tl.constexpr = BLOCK.rows
    SHARES: tl.constexpr = x.shape[0] // ROWS
    if SHARES == 1:
        return x
    else:
        return tl.sum(tl.reshape(x, [SHARES, ROWS, x.shape[1]]), axis=0)


@device_function
def sum_held(x, BLOCK: tl.constexpr):
    """Return Σ over the rows of a block of sums [rows, channels].

    Triton's sum across warps stores the channels of one thread at strides that share banks. So: within warps first;
    then split [channels, 2, 2], which takes both halves to one thread.
    """
    WARPS: tl.constexpr = BLOCK.warps
    if interpreted() or WARPS != 4:
        return sum_rows(x)
    else:
        COLUMNS: tl.constexpr = x.shape[1]
        x = tl.sum(tl.reshape(x, [WARPS, x.shape[0] // WARPS, COLUMNS]), axis=1)
        even, odd = tl.split(tl.reshape(tl.permute(x, (1, 0)), [COLUMNS, 2, 2]))
        even, odd = tl.split(even + odd)
        return even + odd


@device_function
def sum_block(x, BLOCK: tl.constexpr):
    """Return Σ over the pixels of a block x [pixels, channels]."""
    return sum_held(held(x, BLOCK), BLOCK)


@device_function
def store_sums(parts, part, first, second, channels, BLOCK: tl.constexpr):
    """Store the sums over rows of two blocks of sums in the part's row of parts [part, 2, channels]."""
    to = parts + part.number.to(BLOCK.index) * 2 * channels + part.c
    tl.store(to, sum_held(first, BLOCK).to(parts.dtype.element_ty), mask=part.c_mask)
    tl.store(to + channels, sum_held(second, BLOCK).to(parts.dtype.element_ty), mask=part.c_mask)


@triton.jit
def sum_kernel(parts, total, rows, size, BLOCK: tl.constexpr):
    """total[i] = Σ_row parts[row, i], in a fixed order: the second stage of every split sum."""
    ROWS: tl.constexpr = BLOCK.pixels
    COLUMNS: tl.constexpr = BLOCK.channels
    HELD: tl.constexpr = BLOCK.rows
    INDEX: tl.constexpr = BLOCK.index
    i = tl.program_id(0).to(INDEX) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([HELD, COLUMNS], parts.dtype.element_ty)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (i < size)[None, :]
        acc += held(tl.load(parts + row[:, None].to(INDEX) * size + i[None, :], mask=mask, other=0.0), BLOCK)
    tl.store(total + i, sum_held(acc, BLOCK).to(total.dtype.element_ty), mask=i < size)


def block_of(parts: torch.Tensor, columns: int, shape: StripShape) -> Block:
    """Return the constants of a kernel that sums over rows of parts, shape's `pixels` at once."""
    size = parts.element_size()
    rows, warps = pick.rows_of_sums(shape, 16 // size if columns % 16 == 0 else 1, size, chips.chip_name())
    return Block(shape.pixels, shape.channels, tl_type(parts.dtype), index_type(parts), rows, warps)


def sum_parts(parts: torch.Tensor, total: torch.Tensor) -> None:
    """total = Σ_row parts[row, :], rows added in a fixed order; total's elements in the order of its memory."""
    rows, size = parts.shape[0], total.numel()
    shape = pick.sum_shape(rows, size, chips.chip_name())
    block = block_of(parts, size, shape)
    launch(sum_kernel, cdiv(size, shape.channels), parts, total, rows, size, BLOCK=block, num_warps=shape.warps)


def sum_pixels(
    kernel: Any, totals: torch.Tensor, over: torch.Tensor, *args: Any, index: Any, rows: int = 1, blocks: int = 1,
    high: int = 1, **constants: Any,
) -> None:  # fmt: skip
    """Launch kernel(*args, parts, channels of `over`, chunk, **constants, BLOCK), each program on a chunk of strips of
    pixels of `over`; totals [sums x channels] are the sums of what each program stores in its row of parts. A program's
    pixel may stand for `rows` pixels, a divisor of the height; and there may be several `blocks` of sums, each with
    programs of its own. high: as in `chunks`."""
    if over.numel() == 0:
        totals.zero_()
        return
    each = chunks(over, args, index, rows, blocks, high)
    whole = each.programs == 1
    parts = totals if whole else new((each.programs, totals.numel()), over, dtype=accumulator(over.dtype))
    launch(
        kernel, each.programs * each.across, *args, parts, over.shape[1], each.chunk, **constants, BLOCK=each.block,
        num_warps=each.shape.warps,
    )  # fmt: skip
    if not whole:
        sum_parts(parts, totals)

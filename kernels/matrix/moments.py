"""Moments of a product's columns, joined in a fixed order, which loses nothing to a mean far from 0.

    n = Σ nᵢ        mean = Σ nᵢ·meanᵢ / n        m = Σ mᵢ + Σ nᵢ·(meanᵢ − mean)²        var = m / n

Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import torch

from ..base.lang import device_function, tl, triton
from ..core import chips
from ..core.op import launch
from ..core.tensors import new
from ..streaming.sums import block_of, sum_block
from ..tiles import pick
from ..tiles.shapes import StripShape
from ..window.layout import cdiv


@triton.jit
def join_kernel(moments, out, rows, columns, chunk, BLOCK: tl.constexpr):
    """out[part] = the joint moments of the part's chunk of rows, for a block's columns."""
    ROWS: tl.constexpr = BLOCK.pixels
    COLUMNS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    INDEX: tl.constexpr = BLOCK.index
    across = tl.cdiv(columns, COLUMNS)
    part = tl.program_id(0) // across
    k = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    k_mask = k < columns
    count = tl.zeros([COLUMNS], ACC)
    mean = tl.zeros([COLUMNS], ACC)
    m = tl.zeros([COLUMNS], ACC)
    for first in range(part * chunk, tl.minimum((part + 1) * chunk, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < tl.minimum((part + 1) * chunk, rows))[:, None] & k_mask[None, :]
        at = moments + row[:, None].to(INDEX) * 3 * columns + k[None, :]
        counts = tl.load(at, mask=mask, other=0.0)
        means = tl.load(at + columns, mask=mask, other=0.0)
        ms = tl.load(at + 2 * columns, mask=mask, other=0.0)
        chunk_count = sum_block(counts, BLOCK)
        chunk_mean = sum_block(counts * means, BLOCK) / tl.maximum(chunk_count, 1.0)  # masked columns count 0
        off = means - chunk_mean[None, :]
        count, mean, m = join(count, mean, m, chunk_count, chunk_mean, sum_block(ms + counts * off * off, BLOCK))
    to = out + part.to(INDEX) * 3 * columns + k
    tl.store(to, count, mask=k_mask)
    tl.store(to + columns, mean, mask=k_mask)
    tl.store(to + 2 * columns, m, mask=k_mask)


@device_function
def join(count, mean, m, counts, means, ms):
    """Return the joint (count, mean, m) of two sets."""
    total = tl.maximum(count + counts, 1.0)
    off = means - mean
    joint_m = m + ms + off * off * (count * counts / total)
    return count + counts, mean + off * (counts / total), joint_m


_ROWS = 32  # that a program of join_kernel takes at once
_CHUNK = 128  # rows of a program; one program joins the rest once at most twice as many are left


def joined(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean, var) by column of tiles' moments [tiles, 3, columns]."""
    rows, _, columns = moments.shape
    shape = StripShape(_ROWS, pick.sum_columns(columns, chips.chip_name()))
    while rows > 1:
        chunk = _CHUNK if rows > 2 * _CHUNK else rows
        parts = cdiv(rows, chunk)
        out = new((parts, 3, columns), moments)
        launch(
            join_kernel, parts * cdiv(columns, shape.channels), moments, out, rows, columns, chunk,
            BLOCK=block_of(moments, columns, shape), num_warps=shape.warps,
        )  # fmt: skip
        moments, rows = out, parts
    return moments[0, 1], moments[0, 2] / moments[0, 0]

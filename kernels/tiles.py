"""Which tile a kernel runs with: candidates, one validity function, and a choice from problem and chip.

A matrix tile computes `m` x `n` outputs and reduces `k` terms a step. `pick_matrix` takes the candidate with the
least estimated time: waves of programs over the multiprocessors, times the work of a tile, over the rate that
the tile's shape can reach. The choice depends on its arguments alone, so every process picks the same tile.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import torch

from .lang import INTERPRETING, triton


class Tile(NamedTuple):
    """A kernel's block sizes. `packed`: the taps and channels of a window are one flat reduction (few channels).
    `split`: in how many parts the reduction is cut, summed in order by a second kernel."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 2
    packed: bool = False
    split: int = 1


class Chip(NamedTuple):
    """What tiles need to know of a chip. `shared`: bytes of shared memory that one program may take."""

    multiprocessors: int
    shared: int
    tf32: bool = True  # has matrix instructions for float32 operands


CHIPS = {
    "sm_80": Chip(108, 163 << 10),  # A100
    "sm_89": Chip(128, 99 << 10),  # RTX 4090, L40
    "sm_90": Chip(132, 227 << 10),  # H100, H200
    "sm_100": Chip(148, 227 << 10),  # B200
    "sm_120": Chip(170, 99 << 10),  # RTX 5090
    "gfx942": Chip(304, 64 << 10),  # MI300X
    "gfx": Chip(256, 64 << 10, tf32=False),  # any other AMD chip
    "interpreter": Chip(1, 1 << 30),
}
ELSEWHERE = "sm_89"  # an NVIDIA chip that is not in the table is treated as the most modest that is

# Arithmetic of a product: bytes per operand element, and (m, n, warps) of its tiles.
_SHAPES = {
    "half": (2, [(128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (128, 32, 4), (64, 32, 4)]),
    "tf32": (4, [(128, 128, 8), (128, 64, 8), (64, 128, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4)]),
    "float": (4, [(64, 64, 8), (64, 32, 4), (32, 32, 4)]),
    "double": (8, [(64, 64, 8), (32, 32, 4)]),
}  # fmt: skip
ARITHMETIC = tuple(_SHAPES)
_PACK_BELOW = 16  # channels; a dot's reduction is at least this long
_INTERPRETED_ELEMENTS = 1 << 19  # the interpreter's cost is per program: few, large tiles


def chip_name() -> str:
    """The chip that kernels run on, as in CHIPS; "interpreter" in Triton's interpreter."""
    if INTERPRETING:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    if target.backend == "cuda":
        name = f"sm_{target.arch}"
        return name if name in CHIPS else ELSEWHERE
    name = target.arch.split(":")[0]
    return name if name in CHIPS else "gfx"


def arithmetic(dtype: torch.dtype, dot: str) -> str:
    """A row of the tiles' table, for a dtype and its dots ("tf32" or "ieee")."""
    return {8: "double", 4: "tf32" if dot == "tf32" else "float"}.get(dtype.itemsize, "half")


def _power(value: int, least: int, most: int) -> int:
    """The smallest power of two that holds `value`, within [least, most]."""
    return min(max(1 << max(value - 1, 0).bit_length(), least), most)


def valid(tile: Tile, itemsize: int, chip: str) -> bool:
    """Does the tile fit the chip: operands of all stages in shared memory, sums within half of the registers?"""
    operands = tile.stages * (tile.m + tile.n) * tile.k * itemsize
    sums = tile.m * tile.n * max(itemsize, 4) // (tile.warps * 32)
    return operands <= CHIPS[chip].shared and (chip == "interpreter" or sums <= 512)


@cache
def matrix_tiles(kind: str, chip: str, packed: bool, short: int = 0) -> tuple[Tile, ...]:
    """Every tile that `pick_matrix` chooses from. `short`: a power of two below which no k need go (0: none)."""
    tiles = []
    itemsize, shapes = _SHAPES[kind]
    for m, n, warps in shapes:
        k = 128 // itemsize  # a row of an operand is one 128-byte line
        k = min(k, short) if short else k
        for stages in (4, 3, 2):
            tile = Tile(m, n, k, warps, stages, packed)
            if valid(tile, itemsize, chip):
                tiles.append(tile)
                break
    return tuple(tiles)


@lru_cache(maxsize=4096)
def pick_matrix(m: int, n: int, channels: int, taps: int, kind: str, chip: str, groups: int = 1) -> Tile:
    """The tile of a product of m x n outputs that reduces taps x channels terms, in each of `groups`."""
    if chip == "interpreter":
        k = _power(taps * channels, 16, 1024)
        n = _power(n, 16, 256)
        return Tile(_power(m, 16, max(_INTERPRETED_ELEMENTS // max(k, n), 16)), n, k, packed=True)
    packed = channels < _PACK_BELOW
    short = _power(taps * channels if packed else channels, 16, 64)
    return min(matrix_tiles(kind, chip, packed, short), key=lambda tile: _time(tile, m, n, groups, CHIPS[chip]))


def _time(tile: Tile, m: int, n: int, groups: int, chip: Chip) -> float:
    """Estimated time of a product, in arbitrary units: see the head of this file."""
    programs = -(-m // tile.m) * -(-n // tile.n) * groups
    waves = max(programs / chip.multiprocessors, 1.0)
    waves = waves if waves > 8 else float(-(-programs // chip.multiprocessors))
    # A tile reads m + n values for m·n products: small tiles wait for memory.
    return waves * (tile.m * tile.n + 48 * (tile.m + tile.n))


@lru_cache(maxsize=4096)
def pick_weight_grad(k: int, columns: int, channels: int, pixels: int, kind: str, chip: str, groups: int) -> Tile:
    """The tile of a weight gradient: k x columns (taps x channels) outputs, each a sum over all pixels; where the
    outputs are too few to fill the chip, the sum is split."""
    if chip == "interpreter":
        n = _power(columns, 16, 256)
        m = _power(k, 16, 256)
        return Tile(m, n, _power(pixels, 16, max(_INTERPRETED_ELEMENTS // max(m, n), 16)), packed=True)
    packed = channels < _PACK_BELOW
    width = columns if packed else channels
    narrow = [t for t in matrix_tiles(kind, chip, packed) if t.n <= _power(width, 32, 256)]
    if not packed:
        columns = columns // channels * -(-channels // 32) * 32
    tile = min(narrow, key=lambda tile: _time(tile, k, columns, groups, CHIPS[chip]))
    programs = -(-k // tile.m) * -(-columns // tile.n) * groups
    steps = -(-pixels // tile.k)
    split = max(1, min(2 * CHIPS[chip].multiprocessors // programs, steps // 8, 64))
    return tile._replace(split=split)


def pick_sum(size: int, chip: str) -> int:
    """Columns per program of an ordered sum over rows."""
    return _power(size, 16, 1 << 14 if chip == "interpreter" else 128)


class Strip(NamedTuple):
    """Block of a kernel that streams: `pixels` x `channels` elements."""

    pixels: int
    channels: int
    warps: int = 4


_STRIPS = ((1024, 1), (256, 4), (32, 32), (16, 64), (8, 128))


def strips(chip: str) -> tuple[Strip, ...]:
    """Every block that `pick_strip` chooses from on this chip."""
    if chip == "interpreter":
        return (Strip(4096, 16), Strip(1024, 64), Strip(16384, 1))
    return tuple(Strip(p, c) for p, c in _STRIPS)


@lru_cache(maxsize=4096)
def pick_strip(channels: int, channels_last: bool, chip: str) -> Strip:
    """The block of a streaming kernel: along the channels where they are adjacent in memory, else along pixels."""
    fits = [s for s in strips(chip) if s.channels <= (_power(channels, 1, 1 << 20) if channels_last else 1)]
    return max(fits, key=lambda s: s.channels)

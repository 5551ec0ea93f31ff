"""Which tile a kernel runs with: candidates, one validity function, and a choice from problem and chip.

A matrix tile computes `m` x `n` outputs and reduces `k` terms a step. `pick_matrix` takes the candidate with the
least estimated time: waves of programs over the multiprocessors, times the work of a tile, over the rate that
the tile's shape can reach. The choice depends on its arguments alone, so every process picks the same tile.
"""

from functools import cache, lru_cache
from itertools import product
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
    """What tiles need to know of a chip. `shared`: bytes of shared memory that one program may take; `sums`: how many
    32-bit sums a thread may hold: more where matrix instructions read their operands from shared memory."""

    multiprocessors: int
    shared: int
    sums: int = 64
    lanes: int = 32  # threads of a warp
    tf32: bool = True  # has matrix instructions for float32 operands


CHIPS = {
    "sm_80": Chip(108, 163 << 10),  # A100
    "sm_89": Chip(128, 99 << 10),  # RTX 4090, L40
    "sm_90": Chip(132, 227 << 10, sums=128),  # H100, H200
    "sm_100": Chip(148, 227 << 10, sums=128),  # B200
    "sm_120": Chip(170, 99 << 10),  # RTX 5090
    "gfx942": Chip(304, 64 << 10, sums=32, lanes=64),  # MI300X
    "gfx": Chip(256, 64 << 10, sums=32, lanes=64, tf32=False),  # any other AMD chip
    "interpreter": Chip(1, 1 << 30),
}
ELSEWHERE = "sm_89"  # an NVIDIA chip that is not in the table is treated as the most modest that is

# Arithmetic of a product: bytes per operand element, and (m, n, warps) of its tiles. "float" is full float32.
_HALF = ((128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (64, 32, 4))
_SHAPES = {
    "half": (2, _HALF),
    "tf32": (4, ((128, 128, 8), (128, 64, 8), (64, 128, 8), (64, 64, 8), (32, 32, 4))),
    "float": (4, ((64, 64, 8), (32, 32, 4))),
    "double": (8, ((64, 64, 8), (32, 32, 4))),
}
ARITHMETIC = tuple(_SHAPES)
STEPS = (32, 64)  # the most terms a step, for few channels and for more; a whole step is a 128-byte line
DEPTHS = (3, 4)  # the most stages, for reductions of up to two steps and for longer ones
_PACK_BELOW = 32  # channels: below, a tap a step would leave much of a reduction step empty
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


def dot_on(chip: str, dot: str) -> str:
    """How the chip rounds float32 dots that may use TF32: full float32 where it has no instruction for it."""
    return dot if CHIPS[chip].tf32 else "ieee"


def valid(tile: Tile, itemsize: int, chip: str) -> bool:
    """Does the tile fit the chip: the operands of all stages in shared memory, a thread's sums in its registers, and
    16 bytes of each operand for every thread to load?"""
    _, shared, most_sums, lanes, _ = CHIPS[chip]
    operands = tile.stages * (tile.m + tile.n) * tile.k * itemsize
    sums = tile.m * tile.n * max(itemsize, 4) // 4 // (tile.warps * lanes)
    loads = min(tile.m, tile.n) * tile.k * itemsize // (tile.warps * lanes)
    return operands <= shared and sums <= most_sums and loads >= 16


@cache
def matrix_tiles(kind: str, chip: str, packed: bool, longest: int = 64, deepest: int = 4) -> tuple[Tile, ...]:
    """The tiles that the picks choose from: `longest` terms a step and `deepest` stages at most."""
    itemsize, shapes = _SHAPES[kind]
    k = min(128 // itemsize, longest)
    tiles = (Tile(m, n, k, warps, stages, packed) for m, n, warps in shapes for stages in range(2, deepest + 1))
    fitting = (tile for tile in tiles if valid(tile, itemsize, chip))
    return tuple({(tile.m, tile.n): tile for tile in fitting}.values())  # of each shape, the one of most stages


def every_matrix_tile(kind: str, chip: str) -> tuple[Tile, ...]:
    """Every tile that `pick_matrix` can return on this chip."""
    choices = product(((False, STEPS[0]), (False, STEPS[1]), (True, STEPS[1])), DEPTHS)
    return tuple(dict.fromkeys(t for form, depth in choices for t in matrix_tiles(kind, chip, *form, depth)))


def every_weight_grad_tile(kind: str, chip: str) -> tuple[Tile, ...]:
    """Every tile that `pick_weight_grad` can return on this chip, but for its split."""
    return matrix_tiles(kind, chip, False) + matrix_tiles(kind, chip, True)


@lru_cache(maxsize=4096)
def pick_matrix(m: int, n: int, channels: int, taps: int, kind: str, chip: str, groups: int = 1) -> Tile:
    """The tile of a product of m x n outputs that reduces taps x channels terms, in each of `groups`."""
    if chip == "interpreter":
        packed = channels < 8
        k, n = _power(taps * channels if packed else channels, 16, 128), _power(n, 16, 256)
        return Tile(_power(m, 16, _INTERPRETED_ELEMENTS // max(k, n)), n, k, packed=packed)
    packed = channels < _PACK_BELOW
    longest = STEPS[1] if packed else _power(channels, *STEPS)
    steps = -(-taps * channels // longest) if packed else taps * -(-channels // longest)

    def time(tile: Tile) -> float:
        programs = -(-m // tile.m) * -(-n // tile.n) * groups
        return -(-programs // CHIPS[chip].multiprocessors) * _work(tile)

    return min(matrix_tiles(kind, chip, packed, longest, DEPTHS[steps > 2]), key=time)


def _work(tile: Tile) -> int:
    """Estimated time of one step of a tile: its m·n products, and waiting for its m + n operands; the weight makes a
    128 x 128 tile wait for two fifths of its time, a 64 x 64 tile for three fifths."""
    return tile.m * tile.n + 48 * (tile.m + tile.n)


@lru_cache(maxsize=4096)
def pick_weight_grad(k: int, channels: int, taps: int, pixels: int, kind: str, chip: str, groups: int = 1) -> Tile:
    """The tile of a weight gradient: k x (taps x channels) outputs in each of `groups`, each a sum over all pixels.
    The sum is split until the programs fill the chip twice, in parts of eight steps at least."""
    if chip == "interpreter":
        return Tile(_power(k, 16, 256), _power(taps * channels, 16, 256), _power(pixels, 16, 1024), packed=True)
    packed = channels < _PACK_BELOW

    def programs(tile: Tile) -> int:
        across = -(-taps * channels // tile.n) if packed else taps * -(-channels // tile.n)
        return -(-k // tile.m) * across * groups

    tile = min(matrix_tiles(kind, chip, packed), key=lambda tile: programs(tile) * _work(tile))
    parts = min(2 * CHIPS[chip].multiprocessors // programs(tile), -(-pixels // tile.k) // 8)
    return tile._replace(split=max(1, parts))


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
    return tuple(Strip(p * CHIPS[chip].lanes // 32, c) for p, c in _STRIPS)


@lru_cache(maxsize=4096)
def pick_strip(channels: int, adjacent: bool, chip: str) -> Strip:
    """The block of a streaming kernel: along the channels where they are adjacent in memory, else along pixels."""
    most = _power(channels, 1, 1 << 20) if adjacent else 1
    return max((strip for strip in strips(chip) if strip.channels <= most), key=lambda strip: strip.channels)

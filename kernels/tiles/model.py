"""A model of the chip: does a tile fit, how many run at once, how long do they take.

A tile computes m x n outputs and reduces k terms a step. Its time is estimated in clocks of one multiprocessor, which
runs up to `resident` programs at once:

    work      = 2·m·n·k / rate                          one step's arithmetic, at the rate of the matrix instructions
    fill      = (m + n)·k·bytes / chip.fill + gather    one step's operands from the L2 cache, and the instructions
                                                        that gather them (none by TMA)
    store     = m·n·bytes / (chip.fill / 2)             the result on its way out
    throughput: r programs together take r · (steps · max(work, fill) + store), however well they overlap
    latency:    none takes less than start + steps · max(work, fill, latency / (stages − 1)) + store
    wave(r)   = max(throughput, latency)
    time      = full waves · wave(resident) + wave(the last wave's programs per multiprocessor)

A weight gradient takes no less than memory needs to read its operands once and to write its parts; and then, if there
are several parts, what it takes to read them again.

So large tiles win by fewer operand bytes per product, until their waves leave multiprocessors idle or their last box of
pixels is mostly empty; deep pipelines win where the latency shows; two programs at once hide each other's start and
end. bench/tune.py says on a GPU how far that leads.
"""

from functools import cache, lru_cache
from typing import NamedTuple

from ..core.chips import CHIPS
from .shapes import AT_ONCE, BYTES, CODE, EXTRA_REGISTERS, SHAPES, Box, Tile

TENSOR_MEMORY = ("sm_100", "sm_103")  # chips whose matrix instructions sum there
_GATHER = 2  # clocks in which a warp gathers 16 bytes a thread: eight instructions, at four warps a clock


def has_tma(arithmetic: str, chip: str) -> bool:
    """True if the chip can fetch boxes for products of this arithmetic: its matrix instructions take no others."""
    return CHIPS[chip].tma and arithmetic in SHAPES["tma"]


def precision_on(chip: str, precision: str) -> str:
    """Return the precision of float32 dots that may use TF32 on a chip: "ieee" where it has no instruction for it."""
    return precision if CHIPS[chip].rates.tf32 else "ieee"


def shared_memory(tile: Tile, itemsize: int, chip: str, tma: bool, extra_registers: str = "") -> int:
    """Return an upper bound of a tile's shared memory, in bytes: the operands of its stages, and where TMA stores the
    product, a box on its way out. AMD's compiler keeps a stage in registers, and transposes results for an epilogue;
    chips that multiply asynchronously have barriers. A gradient that is read through a code has both, for all stages
    but the one that is multiplied, and what comes of the two."""
    spec, left, right = CHIPS[chip], tile.m * tile.k, tile.columns * tile.k
    plain = (tile.stages - spec.amd) * (left + right) * itemsize
    if tma:
        return plain + tile.m * tile.columns * itemsize + 1024
    if spec.amd and extra_registers in ("epilogue", "moments"):
        plain = max(plain, tile.m * tile.n * max(itemsize, 4))
    if extra_registers in CODE:
        read, kept = tile.stages - 1, tile.stages - 1 + spec.tma
        coded = read * left * (itemsize + CODE[extra_registers])
        plain = max(plain, coded + kept * right * itemsize + left * itemsize)
    return plain + 64 * spec.tma


def _sums(tile: Tile, itemsize: int, chip: str) -> int:
    """Return the registers that a thread's sums take."""
    return tile.m * tile.columns * max(itemsize, 4) // 4 // (tile.warps * CHIPS[chip].lanes)


def valid(tile: Tile, itemsize: int, chip: str, tma: bool, extra_registers: str = "") -> bool:
    """True if the tile fits the chip: its operands in shared memory, a thread's sums in its registers, and, where
    threads load the operands, 16 bytes of each for every thread."""
    spec = CHIPS[chip]
    loads = min(tile.m, tile.n) * tile.k * itemsize // (tile.warps * spec.lanes)
    limits = EXTRA_REGISTERS[extra_registers]
    most = min(spec.sums, limits.tma if tma else limits.gathered)
    if extra_registers and extra_registers not in CODE and spec.tma and not tma:
        most = min(most, 32)  # what gathers for the matrix instructions of these chips takes more registers
    if extra_registers == "moments" and (chip in TENSOR_MEMORY or itemsize > 2):
        most = min(most, 64)  # sums are copied from there into registers; with TF32 some compilers spill
    held = _sums(tile, itemsize, chip) <= most
    return held and shared_memory(tile, itemsize, chip, tma, extra_registers) <= spec.shared and (tma or loads >= 16)


def resident(tile: Tile, itemsize: int, chip: str, tma: bool, extra_registers: str = "") -> int:
    """Return how many programs of a tile a multiprocessor is expected to hold at once, by shared memory and registers:
    a thread's sums, and what it needs to store boxes, to gather, or also to hold operands of matrix instructions."""
    spec = CHIPS[chip]
    threads = tile.warps * spec.lanes
    each = 1.5 if extra_registers in AT_ONCE.values() else {"number": 2, "two numbers": 3}.get(extra_registers, 1)
    registers = int(_sums(tile, itemsize, chip) * each) + (40 if tma else 64 if spec.tma else 96)
    shared = shared_memory(tile, itemsize, chip, tma, extra_registers)
    by_memory = (spec.shared + spec.reserved) // (shared + spec.reserved)
    return max(1, min(by_memory, spec.registers // (threads * registers), 8))


def most_registers(chip: str) -> int:
    """Return the limit of registers per thread to compile with: 255 on NVIDIA, whose compiler otherwise spills some to
    fit one more program; 0, no limit, on AMD."""
    return 0 if CHIPS[chip].amd else 255


def register_options(chip: str) -> dict[str, int]:
    """Return {"maxnreg": most_registers(chip)}, or {} for no limit: an option of launches that have no tile."""
    return {"maxnreg": most_registers(chip)} if most_registers(chip) else {}


class Candidate(NamedTuple):
    """A tile, how many programs of it a multiprocessor (`resident`) and the chip (`slots`) hold, and its model's
    constants in clocks: a step's of a busy multiprocessor and of a program alone, its start, its store."""

    tile: Tile
    resident: int
    slots: int
    busy: float
    alone: float
    start: float
    store: float


def estimate(candidate: Candidate, programs: int, steps: float) -> float:
    """Return the clocks that programs of this number of steps are expected to take."""
    busy = steps * candidate.busy + candidate.store
    alone = candidate.start + steps * candidate.alone + candidate.store
    time, rest = 0.0, programs
    if programs >= candidate.slots:
        full, rest = divmod(programs, candidate.slots)
        together = candidate.resident * busy
        time = full * (together if together > alone else alone)
    if rest:
        together = -(-rest * candidate.resident // candidate.slots) * busy
        time += together if together > alone else alone
    return time


def moving(elements: float, size: int, chip: str) -> float:
    """Return the clocks that memory takes to move elements of a size in bytes."""
    return elements * size / (CHIPS[chip].multiprocessors * CHIPS[chip].memory)


def numbers_of_parts(candidate: Candidate, tiles: int, steps: int, chip: str) -> list[int]:
    """Return the numbers of parts that the sums of a weight gradient may be cut into: a few, or as many as fill a
    quarter, half or all of the chip's multiprocessors with one program each, or all with what they hold, once or twice.
    A part has eight steps, but the last one may have fewer; none is empty."""
    whole, slots = CHIPS[chip].multiprocessors, candidate.slots
    filling = {programs // tiles for programs in (whole // 4, whole // 2, whole, slots, 2 * slots)}
    numbers = {min(max(1, parts), max(1, steps // 8)) for parts in filling.union(range(1, 9))}
    return sorted({-(-max(1, steps) // -(-max(1, steps) // parts)) for parts in numbers})


def tile_of(
    way: str, arithmetic: str, chip: str, m: int, n: int, k: int, warps: int, stages: int, extra: str = ""
) -> Tile:  # fmt: skip
    """Return a tile of one of the ways of SHAPES; with all registers where threads gather operands of matrix
    instructions, hold more than their sums, or store these themselves."""
    needs_registers = (way != "tma" or extra) and arithmetic in ("half", "tf32")
    registers = most_registers(chip) if needs_registers else 0
    taps = 3 if way.endswith("three taps") else 1
    return Tile(m, n, k, warps, stages, way.endswith("packed"), registers=registers, taps=taps)


@cache
def sides(way: str, arithmetic: str, chip: str, extra_registers: str) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of tiles for a way that operands are fetched. On chips with tensor memory Triton 3.7 multiplies
    gradients that are read through a code by TF32, even where full float32 is asked for, if a tile has 64 rows."""
    every = SHAPES[way][arithmetic]
    rounded = arithmetic == "float" and extra_registers in CODE and chip in TENSOR_MEMORY
    return tuple(each for each in every if not rounded or each[0] < 64)


def boxed_ways(taps: int) -> tuple[str, ...]:
    """Return the ways of a weight gradient's boxes, for a window of some taps."""
    return ("tma weight gradient", "tma three taps") if taps % 3 == 0 else ("tma weight gradient",)


def candidates(arithmetic: str, chip: str, way: str, k: int, extra_registers: str = "") -> tuple[Candidate, ...]:
    """Return the tiles of k terms a step that the picks choose from, by the way the operands are fetched. Of each shape
    it is the deepest pipeline that a multiprocessor holds two of, if it holds two; by TMA also the deepest of all."""
    spec, itemsize = CHIPS[chip], BYTES[arithmetic]
    rate = getattr(spec.rates, arithmetic)
    found = {}
    tma = way.startswith("tma")
    for m, n, warps in sides(way, arithmetic, chip, extra_registers):
        for stages in range(2, 5):
            tile = tile_of(way, arithmetic, chip, m, n, k, warps, stages, extra_registers)
            if not valid(tile, itemsize, chip, tma, extra_registers):
                continue
            held = resident(tile, itemsize, chip, tma, extra_registers)
            if held < 2 and not tma and (m, n, 2) in found:
                continue
            size = (m + tile.columns) * k * itemsize
            gather = 0 if tma else _GATHER * size / 16 / spec.lanes
            busy = max(2 * m * tile.columns * k / rate, size / spec.fill + gather)
            alone = max(busy, spec.latency / (stages - 1))
            store = m * tile.columns * itemsize / (spec.fill / 2)
            slots = spec.multiprocessors * held
            found[m, n, min(held, 2)] = Candidate(tile, held, slots, busy, alone, spec.start, store)
    return tuple(found.values())


def steps_of(arithmetic: str) -> tuple[int, int]:
    """Return the terms of a step: a 128-byte line; of 16-bit elements also half of one, for boxes that must take whole
    steps."""
    line = 128 // BYTES[arithmetic]
    return line, line // 2 if arithmetic == "half" else line


def tma_step(channels: int, arithmetic: str, whole: bool) -> int:
    """Return the channels of a step of boxes; 0 if they don't divide as they must."""
    line, half = steps_of(arithmetic)
    if not whole or channels % line == 0:
        return line
    return half if channels % half == 0 else 0


def _power_that_divides(size: int, most: int) -> int:
    return min(size & -size, most)


@lru_cache(maxsize=4096)
def box_of(pixels: int, images: Box, narrowest: int = 1, widest: int = 1 << 20) -> tuple[Box, int]:
    """Return the box of this number of pixels (a power of two) that tiles images of size (n, p, q) with the fewest
    boxes, and their number. narrowest, widest: the least and the most columns of a box."""
    n, p, q = images
    columns = max(_power_that_divides(q, min(pixels, widest)), narrowest)
    rows = _power_that_divides(p, pixels // columns)
    batch = pixels // (rows * columns)
    if n % batch == q % columns == 0:
        return (batch, rows, columns), n // batch * (p // rows) * (q // columns)  # nothing of a box is empty
    least, best = n * p * q + 1, (1, 1, pixels)
    across = min(pixels, widest)
    while across >= narrowest:
        rows, every = pixels // across, -(-q // across)
        down = rows
        while down:
            count = -(-n // (rows // down)) * -(-p // down) * every
            if count < least:
                least, best = count, (rows // down, down, across)
            down //= 2
        across //= 2
    return best, least

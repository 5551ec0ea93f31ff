"""Which tile a kernel runs with: candidates by one validity function, ranked by a model of the chip.

A tile computes m x n outputs and reduces k terms a step. Its time is estimated in clocks of one multiprocessor, which
runs up to `resident` programs at once:

    work      = 2·m·n·k / rate          one step's arithmetic, at the rate of the matrix instructions
    fill      = (m + n)·k·bytes / fill  one step's operands, from the L2 cache; and the instructions that gather them
    throughput: r programs together take r · (steps · max(work, fill) + store), however well they overlap
    latency:    none takes less than start + steps · max(work, fill, latency / (stages − 1)) + store
    wave(r)   = max(throughput, latency)
    time      = full waves · wave(resident) + wave(the last wave's programs per multiprocessor)

So large tiles win by fewer operand bytes per product, until their waves leave multiprocessors idle or their last box of
pixels is mostly empty; deep pipelines win where the latency shows; two programs at once hide each other's start and
end. The choice depends on its arguments alone, so every process picks the same tile.
bench/tune.py says on a GPU how far that leads.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch

from .chips import CHIPS
from .chips import chip_name as chip_name  # launchers ask here for the chip and its tile
from .plan import deciding

Box = tuple[int, int, int]  # batch, rows, columns


class Tile(NamedTuple):
    """A kernel's block sizes. `packed`: the taps and channels of a window are one flat reduction (few channels).
    `parts`: in how many the reduction is cut, summed in order by a second kernel. `box`: its pixels are a box that the
    chip fetches by itself; else they are gathered. `programs`: how many run at once, each for several tiles; 0: one
    program a tile. `registers`: the most that a thread may take; 0: as many as the compiler thinks best. `groups`: as
    many products side by side."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 2
    packed: bool = False
    parts: int = 1
    box: Box | None = None
    programs: int = 0
    registers: int = 0
    groups: int = 1

    @property
    def options(self) -> dict[str, int]:
        """What of it is for Triton's compiler."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | {"maxnreg": self.registers} if self.registers else options


# Arithmetic of a product: bytes per operand element. "float" is full float32.
_BYTES = {"half": 2, "tf32": 4, "float": 4, "double": 8}
ARITHMETIC = tuple(_BYTES)
# (m, n, warps) of the tiles, by how the operands come: gathered, packed (gathered, few channels), placed (gathered, a
# pixel has weights of its own: m is images, or in a weight gradient k is), boxes of a product (n is the matrix
# instructions' first direction there, 64 for each four warps), boxes of a weight gradient.
_SMALL = ((64, 64, 8), (32, 32, 4))
_PLACED = {
    "half": ((128, 64, 4), (64, 64, 4), (32, 64, 4), (16, 64, 2)),
    "tf32": ((64, 64, 4), (32, 64, 4), (16, 64, 4)),
    "float": ((64, 64, 8), (32, 32, 4), (16, 32, 4)),
    "double": ((32, 32, 4), (16, 32, 4)),
}
_SHAPES: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "gathered": {
        "half": ((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (64, 32, 4)),
        "tf32": ((128, 128, 8), (128, 64, 8), (64, 128, 8), *_SMALL),
        "float": _SMALL,
        "double": _SMALL,
    },
    "packed": {"half": ((128, 64, 8), (64, 64, 8), (64, 32, 4)), "tf32": _SMALL, "float": _SMALL, "double": _SMALL},
    "placed": _PLACED,
    "placed packed": _PLACED,
    "boxes": {
        "half": ((256, 128, 8), (128, 256, 8), (128, 128, 8), (256, 64, 4), (128, 64, 4), (64, 128, 8), (64, 64, 4)),
        "tf32": ((256, 128, 8), (128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4)),
    },
    "weight boxes": dict.fromkeys(("half", "tf32"), ((128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4))),
}
# What a thread may hold beside its sums, and how many sums then, at most, gathered and in boxes (but see Chip.sums):
# what an epilogue loads, stores or computes; what is pooled, in a number or two for each sum. A gradient that is read
# through a pooling's code, of so many bytes for each element, takes shared memory instead.
BESIDE = {"": (1 << 10, 1 << 10), "epilogue": (1 << 10, 64), "number": (32, 64), "two numbers": (16, 32)}
CODE = {f"code, {size} B": size for size in (1, 2, 4)}
BESIDE |= dict.fromkeys(CODE, BESIDE[""])
_GATHER = 2  # clocks in which a warp gathers 16 bytes a thread: eight instructions, at four warps a clock
_PACK_UP_TO = 32  # channels: a tap a step would leave half of a step empty
_INTERPRETED_ELEMENTS = 1 << 19  # the interpreter's cost is per program: few, large tiles


class Product(NamedTuple):
    """What the tile of a convolution or of its input gradient depends on: `images` (n, p, q) of a phase of the result,
    `columns` outputs, and a reduction of taps x channels, in each of `groups`. `boxes`: the operands can be fetched in
    boxes; `whole`: only if a step's channels (and, with phases, a tile's columns) don't reach over their end.
    `beside`: what a thread holds beside its sums, a word of BESIDE. `placed`: each pixel has weights of its own, so the
    images are one pixel's, its place one of the groups."""

    images: Box
    columns: int
    channels: int
    taps: int
    phases: int = 1
    groups: int = 1
    boxes: bool = False
    whole: bool = False
    beside: str = ""
    placed: bool = False


class WeightGrad(NamedTuple):
    """What the tile of a weight gradient depends on: outputs x (taps x channels) results in each of `groups`, each a
    sum over all pixels of `images` (n, p, q). `boxes`: the operands can be fetched in boxes. `placed`, `beside`: as in
    Product."""

    images: Box
    outputs: int
    channels: int
    taps: int
    groups: int = 1
    boxes: bool = False
    placed: bool = False
    beside: str = ""


def arithmetic(dtype: torch.dtype, dot: str) -> str:
    """A row of the tiles' table, for a dtype and its dots ("tf32" or "ieee")."""
    return {8: "double", 4: "tf32" if dot == "tf32" else "float"}.get(dtype.itemsize, "half")


def boxable(kind: str, chip: str) -> bool:
    """Can the chip fetch boxes for products of this arithmetic? Its matrix instructions take no others from there."""
    return CHIPS[chip].boxes and kind in _SHAPES["boxes"]


def dot_on(chip: str, dot: str) -> str:
    """How the chip rounds float32 dots that may use TF32: full float32 where it has no instruction for it."""
    return dot if CHIPS[chip].rates[1] else "ieee"


def _power(value: int, least: int, most: int) -> int:
    """The smallest power of two that holds `value`, within [least, most]."""
    return min(max(1 << max(value - 1, 0).bit_length(), least), most)


def shared(tile: Tile, itemsize: int, chip: str, boxes: bool, beside: str = "") -> int:
    """Shared memory of a tile, at most: the operands of its stages, and where a product of boxes is stored, a box on
    its way out. AMD's compiler keeps a stage in registers, and turns results round for an epilogue; chips that multiply
    asynchronously have barriers. Of a gradient that is read through a code: both, for all stages but the one that is
    multiplied, and what comes of the two."""
    at, left, right = CHIPS[chip], tile.m * tile.k, tile.n * tile.k
    plain = (tile.stages - at.amd) * (left + right) * itemsize
    if boxes:
        return plain + tile.m * tile.n * itemsize + 1024
    if at.amd and beside == "epilogue":
        plain = max(plain, tile.m * tile.n * max(itemsize, 4))
    if beside in CODE:
        read, kept = tile.stages - 1, tile.stages - 1 + at.boxes
        plain = max(plain, read * left * (itemsize + CODE[beside]) + kept * right * itemsize + left * itemsize)
    return plain + 64 * at.boxes


def _sums(tile: Tile, itemsize: int, chip: str) -> int:
    """Registers that a thread's sums take."""
    return tile.m * tile.n * max(itemsize, 4) // 4 // (tile.warps * CHIPS[chip].lanes)


def valid(tile: Tile, itemsize: int, chip: str, boxes: bool, beside: str = "") -> bool:
    """Does the tile fit the chip: its operands in shared memory, a thread's sums in its registers, and, where threads
    load the operands, 16 bytes of each for every thread?"""
    at = CHIPS[chip]
    loads = min(tile.m, tile.n) * tile.k * itemsize // (tile.warps * at.lanes)
    most = min(at.sums, BESIDE[beside][boxes])
    if beside and beside not in CODE and at.boxes and not boxes:
        most = min(most, 32)  # what gathers for the matrix instructions of these chips takes more registers
    held = _sums(tile, itemsize, chip) <= most
    return held and shared(tile, itemsize, chip, boxes, beside) <= at.shared and (boxes or loads >= 16)


def resident(tile: Tile, itemsize: int, chip: str, boxes: bool, beside: str = "") -> int:
    """How many programs of a tile a multiprocessor is expected to hold at once, by shared memory and registers: a
    thread's sums, and what it needs to store boxes, to gather, or also to hold operands of matrix instructions."""
    at = CHIPS[chip]
    threads = tile.warps * at.lanes
    each = {"number": 2, "two numbers": 3}.get(beside, 1)
    registers = _sums(tile, itemsize, chip) * each + (40 if boxes else 64 if at.boxes else 96)
    by_memory = (at.shared + at.reserved) // (shared(tile, itemsize, chip, boxes, beside) + at.reserved)
    return max(1, min(by_memory, at.registers // (threads * registers), 8))


def room(chip: str) -> int:
    """Registers that a thread may take, for NVIDIA's compiler, which would rather spill a few than hold a program less,
    unless it is told; 0 for AMD's, which is not."""
    return 0 if CHIPS[chip].amd else 255


def roomy(chip: str) -> dict[str, int]:
    """The same as an option of a launch that has no tile."""
    return {"maxnreg": room(chip)} if room(chip) else {}


class Candidate(NamedTuple):
    """A tile, how many of it a multiprocessor holds, and its model's constants in clocks: see above."""

    tile: Tile
    m: int
    n: int
    resident: int
    slots: int
    busy: float
    alone: float
    start: float
    store: float


def estimate(candidate: Candidate, programs: int, steps: float) -> float:
    """Clocks that this many programs of so many steps are expected to take."""
    _, _, _, held, slots, busy, alone, start, store = candidate
    busy = steps * busy + store
    alone = start + steps * alone + store
    time, rest = 0.0, programs
    if programs >= slots:
        full, rest = divmod(programs, slots)
        together = held * busy
        time = full * (together if together > alone else alone)
    if rest:
        together = -(-rest * held // slots) * busy
        time += together if together > alone else alone
    return time


def _tile(way: str, kind: str, chip: str, m: int, n: int, k: int, warps: int, stages: int, beside: str = "") -> Tile:
    """A tile of one of the ways that operands come; with room where threads gather operands of matrix instructions,
    hold more than their sums, or store these themselves."""
    crowded = (way != "boxes" or beside) and kind in ("half", "tf32")
    return Tile(m, n, k, warps, stages, way.endswith("packed"), registers=room(chip) if crowded else 0)


@cache
def candidates(kind: str, chip: str, way: str, k: int, beside: str = "") -> tuple[Candidate, ...]:
    """The tiles of k terms a step that the picks choose from, by the way the operands come. Of each shape it is the
    deepest pipeline of which a multiprocessor holds two, if it holds two; of boxes also the deepest of all."""
    at, itemsize = CHIPS[chip], _BYTES[kind]
    rate = at.rates[ARITHMETIC.index(kind)]
    found = {}
    boxes = "boxes" in way
    for m, n, warps in _SHAPES[way][kind]:
        for stages in range(2, 5):
            tile = _tile(way, kind, chip, m, n, k, warps, stages, beside)
            if not valid(tile, itemsize, chip, boxes, beside):
                continue
            held = resident(tile, itemsize, chip, boxes, beside)
            if held < 2 and not boxes and (m, n, 2) in found:
                continue
            size = (m + n) * k * itemsize
            gather = 0 if boxes else _GATHER * size / 16 / at.lanes
            busy = max(2 * m * n * k / rate, size / at.fill + gather)
            alone = max(busy, at.latency / (stages - 1))
            store = m * n * itemsize / (at.fill / 2)
            slots = at.multiprocessors * held
            found[m, n, min(held, 2)] = Candidate(tile, m, n, held, slots, busy, alone, at.start, store)
    return tuple(found.values())


def steps_of(kind: str) -> tuple[int, int]:
    """Terms a step: a 128-byte line; of 16-bit elements also half of one, for boxes that must take whole steps."""
    line = 128 // _BYTES[kind]
    return line, line // 2 if kind == "half" else line


def _ways(placed: bool) -> tuple[str, str]:
    """The ways that operands come in when threads load them: channels in steps of their own, or packed."""
    return ("placed", "placed packed") if placed else ("gathered", "packed")


def _box_step(channels: int, kind: str, whole: bool) -> int:
    """Channels a step of boxes; 0 if they don't divide as they must."""
    line, half = steps_of(kind)
    if not whole or channels % line == 0:
        return line
    return half if channels % half == 0 else 0


def _halves(size: int, most: int) -> int:
    """The largest power of two that divides `size`, at most `most`."""
    return min(size & -size, most)


@lru_cache(maxsize=4096)
def box_of(pixels: int, images: Box) -> tuple[Box, int]:
    """The box of so many pixels (a power of two) of which the fewest tile images of size (n, p, q), and how many."""
    n, p, q = images
    columns = _halves(q, pixels)
    rows = _halves(p, pixels // columns)
    batch = pixels // (rows * columns)
    if n % batch == 0:
        return (batch, rows, columns), n // batch * (p // rows) * (q // columns)  # nothing of a box is empty
    least, best = n * p * q + 1, (1, 1, pixels)
    across = pixels
    while across:
        rows, every = pixels // across, -(-q // across)
        down = rows
        while down:
            count = -(-n // (rows // down)) * -(-p // down) * every
            if count < least:
                least, best = count, (rows // down, down, across)
            down //= 2
        across //= 2
    return best, least


# Tiles that a GPU has shown to be better than the model's, by (chip, arithmetic, problem): bench/tune.py prints rows.
TUNED: dict[tuple[str, str, Product | WeightGrad], Tile] = {}


@lru_cache(maxsize=4096)
def pick_product(product: Product, kind: str, chip: str) -> Tile:
    """The tile of a convolution or of its input gradient."""
    if (chip, kind, product) in TUNED:
        return TUNED[chip, kind, product]
    images, columns, channels, taps, phases, groups, boxes, whole, beside, placed = product
    pixels = images[0] * images[1] * images[2]
    if chip == "interpreter":
        packed = channels < 8
        k, n = _power(taps * channels if packed else channels, 16, 128), _power(columns, 16, 256)
        return Tile(_power(pixels, 16, _INTERPRETED_ELEMENTS // max(k, n)), n, k, packed=packed)
    best, least = None, float("inf")
    k = _box_step(channels, kind, whole) if boxes and boxable(kind, chip) else 0
    if k:
        steps = taps * -(-channels // k) / phases
        for candidate in candidates(kind, chip, "boxes", k, beside):
            m, n = candidate[1:3]
            if phases > 1 and columns % n:
                continue
            box, count = box_of(m, images)
            tiles = count * -(-columns // n) * phases
            time = estimate(candidate, tiles, steps)
            if time < least:
                best, least = (candidate, box, tiles), time
    k, packed = steps_of(kind)[0], channels <= _PACK_UP_TO
    steps = (-(-taps * channels // k) if packed else taps * -(-channels // k)) / phases
    for candidate in candidates(kind, chip, _ways(placed)[packed], k, beside):
        m, n = candidate[1:3]
        time = estimate(candidate, -(-pixels // m) * -(-columns // n) * phases * groups, steps)
        if time < least:
            best, least = (candidate, None, 0), time
    assert best is not None
    candidate, box, tiles = best
    return candidate.tile._replace(box=box, programs=min(tiles, candidate.slots))


@lru_cache(maxsize=4096)
def pick_weight_grad(problem: WeightGrad, kind: str, chip: str) -> Tile:
    """The tile of a weight gradient, and in how many parts its sum is cut: until the chip is full once, or twice where
    once would leave much of it idle; in parts of eight steps at least."""
    if (chip, kind, problem) in TUNED:
        return TUNED[chip, kind, problem]
    images, outputs, channels, taps, groups, boxes, placed, beside = problem
    pixels = images[0] * images[1] * images[2]
    if chip == "interpreter":
        return Tile(_power(outputs, 16, 256), _power(taps * channels, 16, 256), _power(pixels, 16, 1024), packed=True)
    at, k, packed = CHIPS[chip], steps_of(kind)[0], channels <= _PACK_UP_TO
    summing = 2 * 4 / (at.multiprocessors * at.fill / 2)
    ways: list[tuple[str, int, Box | None]] = []
    if boxes and boxable(kind, chip):
        box, steps = box_of(k, images)
        ways.append(("weight boxes", steps, box))
    if not ways or min(outputs, channels) < 64:  # tiles of boxes are no narrower
        ways.append((_ways(placed)[packed], -(-pixels // k), None))
    best, least = None, float("inf")
    for way, steps, box in ways:
        flat = way.endswith("packed")
        for candidate in candidates(kind, chip, way, k, beside):
            m, n = candidate[1:3]
            tiles = -(-outputs // m) * groups * (-(-taps * channels // n) if flat else taps * -(-channels // n))
            slots = candidate.slots
            parts = slots // tiles if slots >= 4 * tiles else 2 * slots // tiles
            parts = 1 if placed else max(1, min(parts, steps // 8))
            time = estimate(candidate, tiles * parts, -(-steps // parts))
            if parts > 1:  # the parts are written, read again and summed
                time += at.start + parts * outputs * taps * channels * groups * summing
            if time < least:
                best, least = (candidate.tile, box, parts), time
    assert best is not None
    tile, box, parts = best
    return tile._replace(box=box, parts=parts)


@contextlib.contextmanager
def picking(choose: Callable[[Tile, Product | WeightGrad, str, str], Tile]) -> Iterator[None]:
    """Within: launchers are given what `choose(pick, problem, arithmetic, chip)` returns, instead of the pick."""
    global pick_product, pick_weight_grad
    before = pick_product, pick_weight_grad

    def instead(pick: Any) -> Any:
        return lambda problem, kind, chip: choose(pick(problem, kind, chip), problem, kind, chip)

    try:
        with deciding():
            pick_product, pick_weight_grad = map(instead, before)
            yield
    finally:
        pick_product, pick_weight_grad = before


def serving(problem: Product | WeightGrad, kind: str, chip: str) -> Iterator[Tile]:
    """Every valid tile that can serve a problem, whatever the model thinks of it: for bench/tune.py to time."""
    images, columns, channels, *_ = problem
    line, product = steps_of(kind)[0], isinstance(problem, Product)
    pixels = images[0] * images[1] * images[2]
    beside = problem.beside
    ways = [(way, line) for way in _ways(problem.placed)]
    if problem.boxes and boxable(kind, chip):
        k = _box_step(channels, kind, problem.whole) if isinstance(problem, Product) else line
        ways += [("boxes" if product else "weight boxes", k)] if k else []
    for way, k in ways:
        boxes = "boxes" in way
        for m, n, warps in _SHAPES[way][kind]:
            box, count = box_of(m if product else k, images) if boxes else (None, -(-pixels // k))
            for stages in range(2, 5):
                tile = _tile(way, kind, chip, m, n, k, warps, stages, beside)._replace(box=box)
                if not valid(tile, _BYTES[kind], chip, boxes, beside):
                    continue
                if isinstance(problem, WeightGrad) and not problem.placed:
                    yield from (tile._replace(parts=1 << i) for i in range(8) if i == 0 or 1 << i <= count // 8)
                elif not boxes:
                    yield tile
                elif problem.phases == 1 or columns % n == 0:
                    slots = CHIPS[chip].multiprocessors * resident(tile, _BYTES[kind], chip, boxes, beside)
                    yield tile._replace(programs=min(count * -(-columns // n) * problem.phases, slots))


def count(problem: Product, tile: Tile) -> int:
    """How many of the tile's boxes a product has: its programs take them in turns."""
    return box_of(tile.m, problem.images)[1] * -(-problem.columns // tile.n) * problem.phases


def every_tile(kind: str, chip: str, weight_grad: bool, beside: str = "", placed: bool = False) -> tuple[Tile, ...]:
    """Every tile that `pick_weight_grad` or else `pick_product` can return on this chip, with this beside the sums, but
    for the boxes' sides (their pixels in one row stand for all), the parts and the number of programs."""
    line, half = steps_of(kind)
    forms = [(way, line) for way in _ways(placed)]
    if boxable(kind, chip) and not placed:
        forms += [("weight boxes", line)] if weight_grad else [("boxes", line), ("boxes", half)]
    found = [each.tile for way, k in forms if "boxes" not in way for each in candidates(kind, chip, way, k, beside)]
    for way, k in forms[2:]:
        pixels = "k" if weight_grad else "m"
        every = [candidate.tile for candidate in candidates(kind, chip, way, k, beside)]
        found += [tile._replace(box=(1, 1, getattr(tile, pixels))) for tile in every]
    return tuple(dict.fromkeys(found))


NARROW = 32  # channels or outputs of a group, at most, of which a tile takes several groups


class Grouped(NamedTuple):
    """What the tile of a product in many narrow groups depends on: rows x columns results in each of `groups`, each a
    sum of so many `terms`; `crowded`: there is more to hold than the sums; `parts`: the sums may be cut."""

    groups: int
    rows: int
    columns: int
    terms: int
    crowded: bool = False
    parts: bool = False


def every_grouped(kind: str, chip: str) -> tuple[Tile, ...]:
    """Every tile that `pick_grouped` can return on this chip, but for the parts."""
    each = [(g, m, 16 * (4 // g)) for g in (4, 2) for m in (64, 32)] + [(2, m, 16) for m in (64, 32)]
    each += [(g, 16 * (4 // g), 64) for g in (4, 2)] + [(2, 16, 64)]
    return tuple(_grouped(kind, chip, *sides) for sides in each)


def _grouped(kind: str, chip: str, groups: int, m: int, n: int) -> Tile:
    """The tile of these sides: 64 columns, or in a weight gradient rows, of all groups together, where there are as
    many; for full precision, which has no matrix instructions, fewer sums."""
    fast = kind in ("half", "tf32")
    k, stages = (32, 3 if kind == "half" and not CHIPS[chip].amd else 2) if fast else (16, 2)
    m, n = (m, n) if fast else (min(m, 32), min(n, 32))
    return Tile(m, n, k, 4, stages, registers=room(chip) if fast else 0, groups=groups)


@lru_cache(maxsize=4096)
def pick_grouped(problem: Grouped, kind: str, chip: str) -> Tile:
    """The tile of a product in many narrow groups."""
    groups, rows, columns, terms, crowded, cut = problem
    if chip == "interpreter":
        g, n, k = _power(groups, 1, 16), _power(columns, 16, 64), _power(terms, 16, 128)
        return Tile(_power(rows, 16, max(16, _INTERPRETED_ELEMENTS // (8 * g * max(n, k)))), n, k, groups=g)
    narrow = _power(rows if cut else columns, 16, NARROW)
    g = min(64 // narrow, _power(groups, 2, 4))
    tile = _grouped(kind, chip, g, narrow, 64) if cut else _grouped(kind, chip, g, 32 if crowded else 64, narrow)
    if not cut:
        return tile
    count = -(-rows // tile.m) * -(-columns // tile.n) * -(-groups // g)
    parts = min(4 * CHIPS[chip].multiprocessors // count, -(-terms // tile.k) // 8)
    return tile._replace(parts=max(1, parts))


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
        return (Strip(64, 8), Strip(256, 64), Strip(4096, 16), Strip(16384, 1))
    return tuple(Strip(p * CHIPS[chip].lanes // 32, c) for p, c in _STRIPS)


@lru_cache(maxsize=4096)
def pick_strip(pixels: int, channels: int, adjacent: bool, chip: str, vectors: bool = False) -> Strip:
    """The block of a streaming kernel: along the channels where they are adjacent in memory, many that there are, else
    along pixels. `vectors`: it also loads one over the channels, which the compiler does where it is used if the block
    has fewer channels than threads, else passes through shared memory. In the interpreter, where a program costs as
    much as some thousand elements, the blocks of the least cost."""
    if chip == "interpreter":
        return min(
            strips(chip),
            key=lambda s: -(-pixels // s.pixels) * -(-channels // s.channels) * (s.pixels * s.channels + 4096),
        )
    most = _power(channels, 1, 1 << 20) if adjacent else 1
    fit = [strip for strip in strips(chip) if min(32, most) <= strip.channels <= most]
    fit = [strip for strip in fit if not vectors or strip.channels < strip.warps * CHIPS[chip].lanes]
    fit = fit or [max((strip for strip in strips(chip) if strip.channels <= most), key=lambda strip: strip.channels)]
    return min(fit, key=lambda strip: (-(-channels // strip.channels) * strip.channels, -strip.channels))


UNROLLED = 7  # rows of a window, at most, that a direct kernel takes at once


def pick_rows(height: int, whole: bool = False, most: int = 4) -> int:
    """Rows of a strip that a direct kernel computes at once, at most 4; if `whole`, no strip may have fewer."""
    return next(rows for rows in (4, 2, 1) if rows <= min(height, most) and not (whole and height % rows))

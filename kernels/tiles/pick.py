"""The pick of a kernel's tile: the candidate of least time by the model (model.py).

The choice depends on its arguments alone, so every process picks the same tile. `overriding` changes it, for those who
time other tiles.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from ..core.chips import CHIPS
from ..core.replay import deciding
from .model import (
    box_of,
    boxed_ways,
    candidates,
    estimate,
    has_tma,
    most_registers,
    moving,
    numbers_of_parts,
    resident,
    sides,
    steps_of,
    tile_of,
    tma_step,
    valid,
)
from .shapes import (
    AT_ONCE,
    BYTES,
    INTERPRETED_ELEMENTS,
    INTERPRETED_STRIPS,
    NARROW,
    PACK_UP_TO,
    STRIPS,
    Box,
    Grouped,
    Product,
    StripShape,
    Tile,
    WeightGrad,
)

# Tiles that a GPU has shown to be better than the model's, by (chip, arithmetic, problem): bench/tune.py prints rows.
TUNED: dict[tuple[str, str, Product | WeightGrad], Tile] = {}

Choose = Callable[[Tile, Any, str, str], Tile]
_choose: contextvars.ContextVar[Choose | None] = contextvars.ContextVar("choose", default=None)


@contextlib.contextmanager
def overriding(choose: Choose) -> Iterator[None]:
    """Within, in this thread: launchers get what `choose(pick, problem, arithmetic, chip)` returns, instead of what
    `product` and `weight_grad` pick."""
    token = _choose.set(choose)
    try:
        with deciding():
            yield
    finally:
        _choose.reset(token)


def product(problem: Product, arithmetic: str, chip: str) -> Tile:
    """Return the tile of a convolution or of its input gradient."""
    return _chosen(_product(problem, arithmetic, chip), problem, arithmetic, chip)


def weight_grad(problem: WeightGrad, arithmetic: str, chip: str) -> Tile:
    """Return the tile of a weight gradient."""
    return _chosen(_weight_grad(problem, arithmetic, chip), problem, arithmetic, chip)


def _chosen(pick: Tile, problem: Product | WeightGrad, arithmetic: str, chip: str) -> Tile:
    choose = _choose.get()
    return pick if choose is None else choose(pick, problem, arithmetic, chip)


def _power(value: int, least: int, most: int) -> int:
    """Return the smallest power of two that holds `value`, within [least, most]."""
    return min(max(1 << max(value - 1, 0).bit_length(), least), most)


def _gathered_ways(per_pixel_weights: bool) -> tuple[str, str]:
    """Return the ways of operands that threads load: channels in steps of their own, or packed."""
    way = "per pixel" if per_pixel_weights else "gathered"
    return way, f"{way} packed"


def _extra_of_boxes(problem: Product | WeightGrad) -> str:
    """Return what a thread holds besides its sums where operands are fetched in boxes."""
    at_once = isinstance(problem, Product) and problem.at_once > 1
    return AT_ONCE[problem.extra_registers] if at_once else problem.extra_registers


def _box(problem: Product, m: int) -> tuple[Box, int]:
    """Return the box of the images' pixels that a tile of m pixels computes, and the number of boxes. Windows that are
    pooled at once are in boxes of eight of their pixels in a row, and two windows in a column, at least, so that a
    thread holds all taps of each."""
    pixels, (rows, columns) = m // problem.at_once, problem.pooled
    if problem.at_once == 1 or rows == 1:
        return box_of(pixels, problem.images)
    return box_of(pixels, problem.images, 8 // columns, pixels // 2)


@lru_cache(maxsize=4096)
def _product(problem: Product, arithmetic: str, chip: str) -> Tile:
    if (chip, arithmetic, problem) in TUNED:
        return TUNED[chip, arithmetic, problem]
    channels, columns, taps, phases = problem.channels, problem.columns, problem.taps, problem.phases
    n, p, q = problem.images
    pixels, extra = n * p * q, problem.extra_registers
    if chip == "interpreter":
        packed = channels < 8
        k, side = _power(taps * channels if packed else channels, 16, 128), _power(columns, 16, 256)
        return Tile(_power(pixels, 16, INTERPRETED_ELEMENTS // max(k, side)), side, k, packed=packed)
    best, least = None, float("inf")
    k = tma_step(channels, arithmetic, problem.whole) if problem.tma and has_tma(arithmetic, chip) else 0
    if k:
        steps = taps // problem.at_once * -(-channels // k) / phases
        for candidate in candidates(arithmetic, chip, "tma", k, _extra_of_boxes(problem)):
            if phases > 1 and columns % candidate.tile.n:
                continue
            box, count = _box(problem, candidate.tile.m)
            tiles = count * -(-columns // candidate.tile.n) * phases
            time = estimate(candidate, tiles, steps)
            if time < least:
                best, least = (candidate, box, tiles), time
    k, packed = steps_of(arithmetic)[0], channels <= PACK_UP_TO
    steps = (-(-taps * channels // k) if packed else taps * -(-channels // k)) / phases
    for candidate in candidates(arithmetic, chip, _gathered_ways(problem.per_pixel_weights)[packed], k, extra):
        tiles = -(-pixels // candidate.tile.m) * -(-columns // candidate.tile.n) * phases * problem.groups
        time = estimate(candidate, tiles, steps)
        if time < least:
            best, least = (candidate, None, 0), time
    assert best is not None
    candidate, box, tiles = best
    return candidate.tile._replace(box=box, programs=min(tiles, candidate.slots))


@lru_cache(maxsize=4096)
def _weight_grad(problem: WeightGrad, arithmetic: str, chip: str) -> Tile:
    """Return the tile, and the parts that its sum is cut into. Of those that memory bounds alike the one that is done
    sooner."""
    if (chip, arithmetic, problem) in TUNED:
        return TUNED[chip, arithmetic, problem]
    n, p, q = problem.images
    pixels, terms = n * p * q, problem.taps * problem.channels
    if chip == "interpreter":
        return Tile(_power(problem.outputs, 16, 256), _power(terms, 16, 256), _power(pixels, 16, 1024), packed=True)
    spec, k, packed = CHIPS[chip], steps_of(arithmetic)[0], problem.channels <= PACK_UP_TO
    results, operands = problem.outputs * terms, pixels * (problem.outputs + problem.channels)
    reading = moving(problem.groups * operands, BYTES[arithmetic], chip)
    ways: list[tuple[str, int, Box | None]] = []
    if problem.tma and has_tma(arithmetic, chip):
        box, steps = box_of(k, problem.images)
        ways += [(way, steps, box) for way in boxed_ways(problem.taps)]
    if not ways or min(problem.outputs, problem.channels) < 64:  # tiles of boxes are no narrower
        ways.append((_gathered_ways(problem.per_pixel_weights)[packed], -(-pixels // k), None))
    best, least = None, (float("inf"), 0.0)
    for way, steps, box in ways:
        flat = way.endswith("packed")
        for candidate in candidates(arithmetic, chip, way, k, problem.extra_registers):
            tile = candidate.tile
            across = -(-terms // tile.n) if flat else problem.taps // tile.taps * -(-problem.channels // tile.n)
            tiles = -(-problem.outputs // tile.m) * problem.groups * across
            for parts in (1,) if problem.per_pixel_weights else numbers_of_parts(candidate, tiles, steps, chip):
                size = max(4, BYTES[arithmetic]) if parts > 1 else BYTES[arithmetic]
                writing = moving(problem.groups * parts * results, size, chip)
                working = estimate(candidate, tiles * parts, -(-steps // parts))
                time = max(reading + writing, working)
                if parts > 1:  # the parts are read again and summed
                    time += spec.start + writing
                if (time, working) < least:
                    best, least = (tile, box, parts), (time, working)
    assert best is not None
    tile, box, parts = best
    return tile._replace(box=box, parts=parts)


def serving(problem: Product | WeightGrad, arithmetic: str, chip: str) -> Iterator[Tile]:
    """Yield every valid tile that can serve a problem, whatever the model thinks of it: for bench/tune.py to time."""
    line = steps_of(arithmetic)[0]
    n, p, q = problem.images
    ways = [(way, line) for way in _gathered_ways(problem.per_pixel_weights)]
    if problem.tma and has_tma(arithmetic, chip):
        if isinstance(problem, WeightGrad):
            ways += [(way, line) for way in boxed_ways(problem.taps)]
        elif k := tma_step(problem.channels, arithmetic, problem.whole):
            ways.append(("tma", k))
    for way, k in ways:
        tma = way.startswith("tma")
        extra = _extra_of_boxes(problem) if tma else problem.extra_registers
        for rows, columns, warps in sides(way, arithmetic, chip, extra):
            box, count = None, -(-n * p * q // k)
            if tma:
                box, count = box_of(k, problem.images) if isinstance(problem, WeightGrad) else _box(problem, rows)
            for stages in range(2, 5):
                tile = tile_of(way, arithmetic, chip, rows, columns, k, warps, stages, extra)._replace(box=box)
                if not valid(tile, BYTES[arithmetic], chip, tma, extra):
                    continue
                if isinstance(problem, WeightGrad):
                    most = 1 if problem.per_pixel_weights else 8
                    yield from (tile._replace(parts=1 << i) for i in range(most) if i == 0 or 1 << i <= count // 8)
                elif not tma:
                    yield tile
                elif problem.phases == 1 or problem.columns % columns == 0:
                    slots = CHIPS[chip].multiprocessors * resident(tile, BYTES[arithmetic], chip, tma, extra)
                    yield tile._replace(programs=min(tile_count(problem, tile), slots))


def tile_count(problem: Product, tile: Tile) -> int:
    """Return the number of tiles of a product whose pixels are in boxes: its programs take them in turns."""
    return _box(problem, tile.m)[1] * -(-problem.columns // tile.n) * problem.phases


def every_tile(
    arithmetic: str, chip: str, weight_grad: bool, extra_registers: str = "", per_pixel_weights: bool = False
) -> tuple[Tile, ...]:
    """Return every tile that `weight_grad` or else `product` can pick on this chip, with these extra registers, but for
    the boxes' sides (their pixels in one row stand for all; in two, of windows of four taps), the parts and the
    number of programs."""
    line, half = steps_of(arithmetic)
    forms = [(way, line) for way in _gathered_ways(per_pixel_weights)]
    found = [each.tile for way, k in forms for each in candidates(arithmetic, chip, way, k, extra_registers)]
    if has_tma(arithmetic, chip) and not per_pixel_weights:
        boxes = [(way, line) for way in boxed_ways(3)] if weight_grad else [("tma", line), ("tma", half)]
        for way, k in boxes:
            for each in candidates(arithmetic, chip, way, k, extra_registers):
                side = each.tile.k if weight_grad else each.tile.m
                box = (1, 2, side // 8) if extra_registers in AT_ONCE.values() else (1, 1, side)
                found.append(each.tile._replace(box=box))
    return tuple(dict.fromkeys(found))


def every_grouped(arithmetic: str, chip: str) -> tuple[Tile, ...]:
    """Return every tile that `grouped` can pick on this chip, but for the parts."""
    each = [(g, m, 16 * (4 // g)) for g in (4, 2) for m in (64, 32)] + [(2, m, 16) for m in (64, 32)]
    each += [(g, 16 * (4 // g), 64) for g in (4, 2)] + [(2, 16, 64)]
    return tuple(_grouped_tile(arithmetic, chip, *sides) for sides in each)


def _grouped_tile(arithmetic: str, chip: str, groups: int, m: int, n: int) -> Tile:
    """Return the tile with these sides: up to 64 columns (in a weight gradient: rows) over all its groups; smaller
    sides without matrix instructions."""
    fast = arithmetic in ("half", "tf32")
    k, stages = (32, 3 if arithmetic == "half" and not CHIPS[chip].amd else 2) if fast else (16, 2)
    m, n = (m, n) if fast else (min(m, 32), min(n, 32))
    return Tile(m, n, k, 4, stages, registers=most_registers(chip) if fast else 0, groups=groups)


@lru_cache(maxsize=4096)
def grouped(problem: Grouped, arithmetic: str, chip: str) -> Tile:
    """Return the tile of a product in many narrow groups."""
    if chip == "interpreter":
        g, n, k = _power(problem.groups, 1, 16), _power(problem.columns, 16, 64), _power(problem.terms, 16, 128)
        rows = _power(problem.rows, 16, max(16, INTERPRETED_ELEMENTS // (8 * g * max(n, k))))
        return Tile(rows, n, k, groups=g)
    narrow = _power(problem.rows if problem.may_split else problem.columns, 16, NARROW)
    g = min(64 // narrow, _power(problem.groups, 2, 4))
    if not problem.may_split:
        return _grouped_tile(arithmetic, chip, g, 32 if problem.has_epilogue else 64, narrow)
    tile = _grouped_tile(arithmetic, chip, g, narrow, 64)
    count = -(-problem.rows // tile.m) * -(-problem.columns // tile.n) * -(-problem.groups // g)
    parts = min(4 * CHIPS[chip].multiprocessors // count, -(-problem.terms // tile.k) // 8)
    return tile._replace(parts=max(1, parts))


def sum_columns(size: int, chip: str) -> int:
    """Return the columns per program of an ordered sum over rows."""
    return _power(size, 16, 1 << 14 if chip == "interpreter" else 128)


def sum_shape(rows: int, size: int, chip: str) -> StripShape:
    """Return the block of an ordered sum over rows, in `pixels`, of `size` columns: where they are many, a warp's own
    columns, so that nothing is exchanged; else narrow, and so high that all rows are soon under way."""
    if chip == "interpreter":
        return StripShape(16, _power(size, 16, 1 << 14))
    if rows <= 8 or size >= 128 * CHIPS[chip].multiprocessors:
        return StripShape(8, 128, 1)
    return StripShape(_power(rows, 16, 128), 16)


def high_strip(shape: StripShape, pixels: int, across: int, most: int, chip: str) -> StripShape:
    """Return a strip of up to `most` times as many pixels, so that more loads are under way, if there are then still
    programs for most of the chip; `across`: programs for each strip."""
    enough = CHIPS[chip].multiprocessors // 2 if chip != "interpreter" else 0
    while most > 1 and (not enough or pixels // (most * shape.pixels) * across < enough):
        most //= 2
    return shape._replace(pixels=most * shape.pixels)


def rows_of_sums(shape: StripShape, vector: int, size: int, chip: str) -> tuple[int, int]:
    """Return the rows that the sums over a strip's pixels are kept in, and the warps among which they are divided:
    those that are loaded at once, by threads with vectors of adjacent channels, whose elements have a size in bytes.
    Where these are fewer than 16 bytes, the compiler divides a strip otherwise."""
    across = CHIPS[chip].lanes * vector // shape.channels if chip != "interpreter" and vector * size == 16 else 0
    rows = across * shape.warps
    return (rows, shape.warps) if 0 < rows <= shape.pixels and shape.channels > 1 else (shape.pixels, 1)


def strip_shapes(chip: str) -> tuple[StripShape, ...]:
    """Return every shape that `strip_shape` chooses from on this chip."""
    if chip == "interpreter":
        return INTERPRETED_STRIPS
    return tuple(StripShape(p * CHIPS[chip].lanes // 32, c) for p, c in STRIPS)


@lru_cache(maxsize=4096)
def strip_shape(pixels: int, channels: int, adjacent: bool, chip: str, vectors: bool = False) -> StripShape:
    """Return the block sizes of a streaming kernel: along the channels where they are adjacent in memory, up to their
    number, else along pixels. `vectors`: it also loads one over the channels, which the compiler does where it is used
    if the block has fewer channels than threads, else through shared memory. In the interpreter, where a program costs
    as much as some thousand elements, the block of the least cost."""
    if chip == "interpreter":
        return min(
            strip_shapes(chip),
            key=lambda s: -(-pixels // s.pixels) * -(-channels // s.channels) * (s.pixels * s.channels + 4096),
        )
    most = _power(channels, 1, 1 << 20) if adjacent else 1
    fit = [shape for shape in strip_shapes(chip) if min(32, most) <= shape.channels <= most]
    fit = [shape for shape in fit if not vectors or shape.channels < shape.warps * CHIPS[chip].lanes]
    fit = fit or [max((s for s in strip_shapes(chip) if s.channels <= most), key=lambda shape: shape.channels)]
    return min(fit, key=lambda shape: (-(-channels // shape.channels) * shape.channels, -shape.channels))


@lru_cache(maxsize=4096)
def patch_shape(patches: int, channels: int, planes: bool, itemsize: int, chip: str) -> StripShape:
    """Return the block sizes of a kernel whose threads take patches of pixels, each in adjacent channels of 16 bytes;
    or, of `planes`, each in one channel."""
    if chip == "interpreter":
        return (
            StripShape(_power(patches * channels, 64, 1 << 14), 1)
            if planes
            else strip_shape(patches, channels, True, chip)
        )
    if planes:
        return StripShape(4 * CHIPS[chip].lanes, 1)
    shape = strip_shape(patches, channels, True, chip)
    return shape._replace(pixels=max(1, shape.pixels * 2 // itemsize))


def rows(height: int, whole: bool = False, most: int = 4) -> int:
    """Return the rows of a strip that a direct kernel computes at once, at most 4; if `whole`, no strip may have
    fewer."""
    return next(rows for rows in (4, 2, 1) if rows <= min(height, most) and not (whole and height % rows))

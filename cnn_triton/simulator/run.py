"""Launches: fills in the engine's state, runs it, and reads what it found and counted."""

import ctypes
import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .build import library
from .counters import Counters, Launch
from .decoder import HANDLERS, Operation, Program
from .findings import Report, Span, error_of, finding_of
from .instructions import decode
from .ptx import Place

__all__ = ["Checks", "SimulationError", "launch"]

_REPORTS = 256  # MAX_REPORTS in engine/engine.h
# Operations by what they move, and between which memories.
_OF_SHARED = [HANDLERS[name] for name in ("ld_shared", "st_shared", "atom_shared", "ldmatrix", "stmatrix")]
_BY_TMA = [HANDLERS[name] for name in ("tma_load", "tma_store")]
_Integers = np.ndarray[Any, np.dtype[np.int64]]


class SimulationError(RuntimeError):
    """A kernel that cannot go on: a deadlock, a trap, or more operations than the limit."""


LIMIT = 10**8
"""Operations that a block may take: a minute or two."""


class Checks(NamedTuple):
    """What launches are checked for beside their results.

    races:  of warps in shared memory, and between threads and the copy engine
    blocks: that access the same bytes of global memory
    order:  0 all warps at once, 1 warp by warp, 2 from the last warp
    limit:  operations of a block
    sample: so many blocks of a launch at most, spread over the grid; 0: all
    """

    races: bool = False
    blocks: bool = False
    order: int = 0
    limit: int = LIMIT
    sample: int = 0


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Report(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_int32, "kind line thread block"), *_fields(ctypes.c_uint64, "address extra"),
        ("times", ctypes.c_int64),
    ]  # fmt: skip


class _Engine(ctypes.Structure):
    """The first part of Engine in engine/engine.h: the launch, and the results."""

    _fields_ = [
        *_fields(ctypes.c_int32, "threads warps operations shared flags order"),
        *_fields(ctypes.c_void_p, "ops pool registers"), ("register_bytes", ctypes.c_int64),
        ("parameters", ctypes.c_void_p), *_fields(ctypes.c_int32 * 3, "grid block_registers"),
        ("ranges", ctypes.c_void_p), ("range_count", ctypes.c_int32),
        *_fields(ctypes.c_void_p, "counts sectors traffic"),
        ("limit", ctypes.c_int64), *_fields(ctypes.c_void_p, "cross cross_at"),
        *_fields(ctypes.c_int32, "blocks step granule error error_line error_thread error_block"),
        ("executed", ctypes.c_int64), ("report_count", ctypes.c_int32),
        ("reports", _Report * _REPORTS),
    ]  # fmt: skip


def _aligned(size: int, alignment: int, value: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return so many bytes of a value, from an address that is a multiple of the alignment."""
    held = np.full(size + alignment, value, dtype=np.uint8)
    shift = -held.ctypes.data % alignment
    return held[shift : shift + size]


class _Loaded:
    """A program with its register file, ready to launch."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operations = np.array(program.operations, dtype=np.int32)
        self.pool = np.array(program.pool or [0], dtype=np.int32)
        self.registers = _aligned(64 * program.units, 64, 0xA5)
        self.parameters = _aligned(program.parameter_bytes + 128, 128, 0)
        for place, size, value in program.constants:
            self._fill(place, size, value)
        for place, offset in program.parameters_at:
            self._fill(place, 8, self.parameters.ctypes.data + offset)
        threads = program.kernel.threads
        lanes = np.arange(threads) % 32
        known: dict[str, Any] = {"%tid.x": np.arange(threads), "%laneid": lanes, "%warpid": np.arange(threads) // 32}
        known |= {"%ntid.x": threads, "%lanemask_lt": (1 << lanes) - 1}
        for name in program.special:  # of the others there is one: one block in a cluster, one row of threads
            self.special(name, known.get(name, int(name.startswith(("%n", "%cluster_n")))))
        narrow = any(re.search(r"\.shared\S*\.[bus]8\b", each.opcode) for each in program.statements.values())
        self.granule = 1 if narrow else 2

    def _fill(self, place: int, size: int, value: Any) -> None:
        held = self.registers[64 * place :][: self.program.kernel.threads * size]
        held.view(f"u{size}")[:] = value

    def special(self, name: str, value: Any) -> None:
        """Fill a special register, if the program reads it."""
        if name in self.program.special:
            self._fill(self.program.special[name], 4, value)

    def runs(self, counts: _Integers) -> dict[int, int]:
        """Return how often warps ran each line of the text."""
        return dict(zip(self.operations[:, Operation._fields.index("line")].tolist(), counts.tolist(), strict=True))

    def sums(self, counts: _Integers, traffic: _Integers) -> tuple[Counter[str], dict[Place | None, Counters]]:
        """Return the instructions by opcode, and the counters by line of Python."""
        every = self.program.statements.get
        statements = [every(line) for line in self.operations[:, Operation._fields.index("line")].tolist()]
        instructions: Counter[str] = Counter()
        for statement, number in zip(statements, counts.tolist(), strict=True):
            if statement and number:
                instructions[statement.opcode] += number
        handlers = self.operations[:, 0]
        parts, fewest, size = traffic.T
        in_shared, by_tma = np.isin(handlers, _OF_SHARED), np.isin(handlers, _BY_TMA)
        of_global = [np.where(in_shared, 0, each) for each in (size, parts, fewest)]
        of_shared = [np.where(in_shared, each, 0) for each in (size, parts, fewest)]
        figures = np.stack([counts, *of_global, *of_shared, np.where(by_tma, size, 0)], 1)
        places = [statement.place if statement else None for statement in statements]
        numbers = {place: i for i, place in enumerate(dict.fromkeys(places))}
        added = np.zeros((len(numbers), figures.shape[1]), dtype=np.int64)
        np.add.at(added, [numbers[place] for place in places], figures)
        lines = {place: Counters(*row) for place, row in zip(numbers, added.tolist(), strict=True) if any(row)}
        return instructions, lines

    def pass_parameters(self, values: Sequence[bytes]) -> None:
        """Write the parameters' bytes; those of scratch memory come last, and not every kernel has them."""
        for parameter, value in zip(self.program.kernel.parameters, values, strict=False):
            if len(value) != parameter.bytes:
                raise ValueError(f"{parameter.name} has {parameter.bytes} bytes, not {len(value)}")
            self.parameters[parameter.offset :][: len(value)] = np.frombuffer(value, dtype=np.uint8)


@functools.lru_cache(256)
def _loaded(key: str, text: str) -> _Loaded:
    return _Loaded(decode(text))


def launch(
    text: str,
    grid: tuple[int, int, int],
    parameters: Sequence[bytes],
    spans: Sequence[Span],
    shared: int,
    checks: Checks,
) -> tuple[Launch, bool]:
    """Run a kernel on every block of a grid. Return what it did, and whether it could not go on: the first finding says
    why.

    text:       PTX
    parameters: the bytes of each
    spans:      what may be accessed in global memory
    shared:     bytes of shared memory that the launch sizes

    Errors: Unsupported for an instruction that is not known."""
    loaded = _loaded(hashlib.sha256(text.encode()).hexdigest(), text)
    program, engine = loaded.program, library()
    loaded.pass_parameters(parameters)
    for axis, count in zip("xyz", grid, strict=True):
        loaded.special(f"%nctaid.{axis}", count)
    begin = loaded.parameters.ctypes.data
    spans = [
        *(each for each in spans if each.end > each.begin),
        Span(begin, begin + program.parameter_bytes, "parameters"),
    ]
    ranges = np.array([each[:2] for each in spans], dtype=np.uint64)
    counts = np.zeros(len(program.operations), dtype=np.int64)
    sectors, traffic = np.zeros(len(spans), dtype=np.int64), np.zeros((len(program.operations), 3), dtype=np.int64)
    c = _Engine.from_buffer(ctypes.create_string_buffer(engine.engine_size()))
    c.threads, c.warps, c.operations = program.kernel.threads, program.kernel.threads // 32, len(program.operations)
    c.shared, c.granule = shared + program.shared, loaded.granule
    c.flags, c.order, c.limit = checks.races | checks.blocks << 1, checks.order, checks.limit
    c.ops, c.pool, c.registers = loaded.operations.ctypes.data, loaded.pool.ctypes.data, loaded.registers.ctypes.data
    c.register_bytes, c.parameters = loaded.registers.nbytes, begin
    c.grid[:], c.block_registers[:] = grid, [program.special.get(f"%ctaid.{axis}", -1) for axis in "xyz"]
    c.ranges, c.range_count = ranges.ctypes.data, len(spans)
    c.counts, c.sectors, c.traffic = counts.ctypes.data, sectors.ctypes.data, traffic.ctypes.data
    if checks.blocks:
        sizes = [each.end - each.begin for each in spans]
        starts, by = np.array([0, *np.cumsum(sizes)[:-1]], dtype=np.int64), np.zeros(2 * sum(sizes), dtype=np.uint32)
        c.cross, c.cross_at = by.ctypes.data, starts.ctypes.data
    blocks = grid[0] * grid[1] * grid[2]
    c.blocks, c.step = _sampled(blocks, checks.sample)
    engine.simulate(ctypes.byref(c))
    found = [finding_of(_report(c.reports[i]), program, spans) for i in range(c.report_count)]
    if c.error:
        found.insert(0, error_of(c.error, c.error_line, c.error_thread, c.error_block, program))
    times = blocks / c.blocks
    counts = _scaled(counts, times)
    instructions, lines = loaded.sums(counts, _scaled(traffic, times))
    touched = [
        min(each.end - each.begin, 32 * number) for each, number in zip(spans, _scaled(sectors, times), strict=True)
    ]
    runs = loaded.runs(counts)
    return Launch(program.kernel.name, grid, instructions, lines, runs, found, int(sum(touched))), bool(c.error)


def _sampled(blocks: int, sample: int) -> tuple[int, int]:
    """Return how many blocks run, and the step from each to the next, modulo all: it spreads them over the grid."""
    if not 0 < sample < blocks:
        return blocks, 1
    step = max(int(0.618 * blocks), 1)
    while math.gcd(step, blocks) > 1:
        step += 1
    return sample, step


def _scaled(numbers: _Integers, times: float) -> _Integers:
    return numbers if times == 1 else (numbers * times).round().astype(np.int64)


def _report(report: _Report) -> Report:
    return Report(*(getattr(report, name) for name in Report._fields))

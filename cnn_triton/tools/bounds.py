"""Bounds: the least time of a launch on a board, by what its code does: instructions, memory, products, shared memory.

    instructions     machine code, line by line, times how often the simulator runs the line
    memory           bytes that the launch must read and write once
    products         FLOP of the matrix instructions that run
    shared memory    wavefronts of shared memory and of the first cache

Each over the board's rate, at an efficiency that well-made kernels reach. The longest is the bound. Latency, the second
cache, the order in which the assembler issues, and how launches overlap are not known here.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

from ..kernels.compiler import sass
from ..kernels.core.chips import BOARDS, CHIPS, Board
from ..simulator import Launch
from ..simulator.ptx import Place, Statement, parse
from .calls import DTYPES
from .inspection import CompiledLaunch, OperatorCall
from .listing import listings

__all__ = ["EFFICIENCY", "Bound", "Times", "boards_of", "bound", "ideal", "machine_instructions"]


class Times(NamedTuple):
    """Least times in microseconds."""

    instructions: float
    memory: float
    products: float
    shared: float

    @property
    def longest(self) -> float:
        """The bound."""
        return max(self)

    @property
    def name(self) -> str:
        """What the bound is."""
        return max(zip(self, self._fields, strict=True))[1].replace("shared", "shared memory")


EFFICIENCY = Times(instructions=0.6, memory=0.9, products=0.85, shared=0.6)
"""Parts of the rates that kernels reach: of the issue rate; of the bandwidth; of dense products; of wavefronts."""


class Bound(NamedTuple):
    """A launch's work, and its least times on a board.

    instructions: of warps, of machine code
    bytes:        read and written at least once
    flops:        of matrix instructions
    wavefronts:   of shared memory and of the first cache
    """

    kernel: str
    board: Board
    instructions: int
    bytes: int
    flops: int
    wavefronts: int
    times: Times


def _clock(board: Board) -> float:
    """Return a board's clock in GHz, by which its multiprocessors reach the rate of its datasheet."""
    chip = CHIPS[board.chip]
    return 1e3 * board.rates.half / (chip.multiprocessors * chip.rates.half)


def bound(launch: CompiledLaunch, texts: dict[str, Any], board: Board) -> Bound:
    """Return the bound of a launch that ran, of its texts (aot.recording). Errors: ValueError if it did not run."""
    if launch.ran is None:
        raise ValueError(f"{launch.code.kernel} was compiled only; bounds need it to run in the simulator")
    done, chip = launch.ran.launch, CHIPS[board.chip]
    counters, flops = done.counters, _flops(launch, texts["ptx"])
    instructions = machine_instructions(done, board.chip, texts)
    wavefronts = counters.wavefronts + (counters.sectors - counters.tma_bytes // 32 + 3) // 4
    # Whole blocks are spread over the multiprocessors; the fullest of them takes longest.
    uneven = math.ceil(launch.code.grid / chip.multiprocessors) * chip.multiprocessors / launch.code.grid
    clocks = _clock(board) * 1e3 * chip.multiprocessors / uneven  # of all multiprocessors, in a microsecond
    products = sum(count / (getattr(board.rates, kind) * 1e6) for kind, count in flops.items()) * uneven
    least = Times(instructions / (4 * clocks), done.touched / (board.bandwidth * 1e3), products, wavefronts / clocks)
    times = Times(*(time / part for time, part in zip(least, EFFICIENCY, strict=True)))
    return Bound(done.kernel, board, instructions, done.touched, sum(flops.values()), wavefronts, times)


def ideal(operator: OperatorCall, dtype: str, board: Board) -> float | None:
    """Return the least time of an operator whatever computes it, in microseconds: of its arithmetic and its compulsory
    traffic, at the same efficiencies; None where they aren't known."""
    if operator.bytes is None:
        return None
    moving = operator.bytes / (board.bandwidth * 1e3) / EFFICIENCY.memory
    if not operator.product or operator.flops is None:
        return moving
    kind = DTYPES[dtype].kind
    rate = getattr(board.rates, kind) or board.rates.float
    return max(moving, operator.flops / (rate * 1e6) / EFFICIENCY.products)


def machine_instructions(done: Launch, chip: str, texts: dict[str, Any]) -> int:
    """Return the instructions of machine code that a launch's warps run: each line's, times the mean of how often its
    instructions of PTX ran. What the assembler moves out of a loop counts where it was written; where it unrolls a
    loop, each copy of the body counts as often as the body runs, which is too much."""
    statements: Counter[Place | None] = Counter()
    for each in parse(texts["ptx"]).body:
        if isinstance(each, Statement):
            statements[each.place] += 1
    ran = {place: counters.instructions for place, counters in done.lines.items()}
    mean = sum(ran.values()) / max(sum(statements[place] for place in ran), 1)
    total = 0.0
    for line in listings(chip, texts)["SASS"]:
        if line.places and not re.search(r"\*/\s+NOP", line.text):
            place = Place(*line.places[0])
            total += ran.get(place, 0) / statements[place] if statements[place] else mean
    return round(total)


_SHAPE = re.compile(r"(?:wgmma\.mma_async|mma)\..*\.m(\d+)n(\d+)k(\d+)\.(.*)")
_KINDS = {"tf32": "tf32", "f64": "double"}


def _flops(launch: CompiledLaunch, ptx: str) -> Counter[str]:
    """Return the FLOP of the matrix instructions that a launch runs, by kind of arithmetic (core.chips.Rates)."""
    found: Counter[str] = Counter()
    for opcode, count in launch.ran.launch.instructions.items() if launch.ran else ():
        if shape := _SHAPE.match(opcode):
            m, n, k = map(int, shape.groups()[:3])
            kind = next((_KINDS[each] for each in shape[4].split(".") if each in _KINDS), "half")
            found[kind] += 2 * m * n * k * count // (4 if opcode.startswith("wgmma") else 1)
        elif opcode.startswith("tcgen05.mma"):
            found["tf32" if "kind::tf32" in opcode else "half"] += sass.tcgen05_flops(ptx) * count
    return found


def boards_of(chip: str) -> list[Board]:
    """Return the boards that have a chip."""
    return [board for board in BOARDS if board.chip == chip]

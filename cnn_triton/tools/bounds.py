"""Bounds: the least time of a launch on a board, by what its code does: instructions, memory, products, shared memory.

    instructions     machine code, line by line, times how often the simulator runs the line
    memory           bytes that the launch must read and write once
    products         FLOP of the matrix instructions that run
    shared memory    wavefronts of shared memory and of the first cache

Each over the board's rate, at an efficiency that well-made kernels reach. The longest is the bound. Latency, the second
cache, the order in which the assembler issues, and how launches overlap are not known here.

AMD's code cannot be simulated. How often its lines run is counted in code for sm_80 of the same kernels with the same
tiles; its instructions are those of the vector units, beside which all others issue; its wavefronts are not known.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..kernels.compiler import aot, sass
from ..kernels.compiler.sass import Step
from ..kernels.core.chips import BOARDS, CHIPS, Board, assuming
from ..simulator import Launch
from ..simulator.ptx import Kernel, Place, Statement, parse
from .calls import DTYPES, Call
from .execution import execute_call, with_runs
from .inspection import CompiledLaunch, OperatorCall, inspect_call
from .listing import Line, listings

__all__ = ["EFFICIENCY", "Bound", "Times", "boards_of", "bound", "bounds_of", "executed", "ideal"]


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


def bounds_of(call: Call, board: Board, sample: int = 0) -> list[tuple[OperatorCall, list[Bound]]]:
    """Return the operators of a call on a board, each with the bounds of its launches. sample: as in execute_call."""
    texts: aot.Texts = {}
    ran_texts: aot.Texts = {}
    operators = inspect_call(call, board.chip, texts)
    amd = CHIPS[board.chip].amd
    with assuming(board.chip):
        simulated = "sm_80" if amd else board.chip
        ran = inspect_call(call, simulated, ran_texts) if amd else operators
        ran = with_runs(ran, execute_call(call, simulated, sample=sample))
    found = []
    for operator, twin in zip(operators, ran, strict=True):
        bounds = []
        for launch, done in zip(operator.launches, twin.launches, strict=True):
            ptx = ran_texts[done.code.source]["ptx"] if amd else None
            bounds.append(bound(launch._replace(ran=done.ran), texts[launch.code.source], board, ptx))
        found.append((operator, bounds))
    return found


def bound(launch: CompiledLaunch, texts: dict[str, Any], board: Board, ptx: str | None = None) -> Bound:
    """Return the bound of a launch that ran, of its texts (aot.recording). ptx: what ran, if not the launch's own.
    Errors: ValueError if it did not run."""
    if launch.ran is None:
        raise ValueError(f"{launch.code.kernel} was compiled only; bounds need it to run in the simulator")
    done, chip = launch.ran.launch, CHIPS[board.chip]
    counters = done.counters
    code = list(executed(done, board.chip, texts, ptx))
    if chip.amd:
        vector = sum(runs for name, runs in code if name.startswith("v_") and not sass.is_matrix(name))
        instructions, wavefronts, flops = round(vector), 0, _flops_of_amd(code)
    else:
        instructions, flops = round(sum(runs for _, runs in code)), _flops(launch, texts["ptx"])
        wavefronts = counters.wavefronts + (counters.sectors - counters.tma_bytes // 32 + 3) // 4
    # Whole blocks are spread over the multiprocessors; the fullest of them takes longest.
    uneven = math.ceil(launch.code.grid / chip.multiprocessors) * chip.multiprocessors / launch.code.grid
    clocks = _clock(board) * 1e3 * chip.multiprocessors / uneven  # of all multiprocessors, in a microsecond
    products = sum(count / (getattr(board.rates, kind) * 1e6) for kind, count in flops.items() if count) * uneven
    least = Times(
        instructions / (chip.issues * clocks), done.touched / (board.bandwidth * 1e3), products, wavefronts / clocks
    )
    slowed = Times(*(time / part for time, part in zip(least, EFFICIENCY, strict=True)))
    return Bound(done.kernel, board, instructions, done.touched, sum(flops.values()), wavefronts, slowed)


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


class _Code(NamedTuple):
    """An instruction: its name, the place that it is from, how many loops it is in, how often warps ran it."""

    name: str
    place: Place | None
    depth: int
    ran: float = 0


def executed(done: Launch, chip: str, texts: dict[str, Any], ptx: str | None = None) -> Iterator[tuple[str, float]]:
    """Yield the names of a launch's machine instructions, each with how often warps run it, by the PTX that ran.

    That is the mean of the PTX of the same line of Python inside as many loops; where there is none, since the compiler
    moved the instruction out of a loop, of all PTX inside as many loops. Where a compiler unrolls a loop or takes turns
    out of it, the copies share the runs, by what must run as often in both: accesses to global memory and products of
    matrices on NVIDIA's chips, the FLOP of the latter on AMD's."""
    weight = _once if chip.startswith("sm_") else sass.flops
    weight_of_ptx = _once if chip.startswith("sm_") else _flops_of_ptx
    known = _ptx(parse(ptx or texts["ptx"]), done.runs)
    *_, listing = listings(chip, texts).values()
    code = _machine(listing)
    deepest = max(each.depth for each in known)
    by_line, by_depth = defaultdict(list), defaultdict(list)
    for each in known:
        by_line[each.place, each.depth].append(each.ran)
        by_depth[each.depth].append(each.ran)
    outside = 0.0  # what the copies outside of a loop do of its work
    for depth in range(deepest + 1):
        here = [each for each in code if min(each.depth, deepest) == depth]
        usual = sum(by_depth[depth]) / max(len(by_depth[depth]), 1)
        must = usual * sum(weight_of_ptx(each.name) for each in known if each.depth == depth)
        does = usual * sum(weight(each.name) for each in here)
        in_a_loop = depth > 0 and must > 0 and does > 0
        part = min(max(must - outside, 0) / does, 1) if in_a_loop else 1
        outside = 0 if in_a_loop else max(outside + does - must, 0)
        for each in here:
            runs = by_line.get((each.place, depth))
            yield each.name, part * (sum(runs) / len(runs) if runs else usual)


_ONCE = re.compile(
    r"(?:ld|st)\.global|cp\.async\.c|mma\.sync|wgmma\.mma_async|tcgen05\.mma\.|(?:LDG|STG|LDGSTS|\w*MMA)\b"
)


def _once(name: str) -> int:
    """Return 1 if the assembler makes one instruction of this one, else 0."""
    return bool(_ONCE.match(name))


def _flops_of_ptx(name: str) -> float:
    """Return the FLOP of a matrix instruction that one warp issues, or its part of a warp group's."""
    shape = _SHAPE.match(name)
    return 2 * math.prod(map(int, shape.groups()[:3])) / (4 if name.startswith("wgmma") else 1) if shape else 0


def _ptx(kernel: Kernel, runs: dict[int, int]) -> list[_Code]:
    """Return the instructions of PTX."""
    labels: dict[str, int] = {}
    statements: list[Statement] = []
    for item in kernel.body:
        if isinstance(item, str):
            labels[item] = len(statements)
        else:
            statements.append(item)
    steps = [
        Step(
            each.opcode,
            (labels[each.operands[0]],) if each.opcode.startswith("bra") else (),
            bool(each.predicate) or each.opcode not in ("bra", "bra.uni", "ret", "exit", "trap"),
        )
        for each in statements
    ]
    return [
        _Code(each.opcode, each.place, depth, runs.get(each.line, 0))
        for each, depth in zip(statements, sass.depths(steps), strict=True)
    ]


def _machine(listing: list[Line]) -> list[_Code]:
    """Return the instructions of machine code."""
    lines = [each for each in listing if sass.is_instruction(each.text)]
    steps = sass.listed(each.text for each in listing)
    return [
        _Code(step.name, Place(*line.places[0]) if line.places else None, depth)
        for line, step, depth in zip(lines, steps, sass.depths(steps), strict=True)
        if step.name not in ("NOP", "s_nop")
    ]


_SHAPE = re.compile(r"(?:wgmma\.mma_async|mma)\..*\.m(\d+)n(\d+)k(\d+)\.(.*)")
_KINDS = {"tf32": "tf32", "f64": "double"}


def _flops(launch: CompiledLaunch, ptx: str) -> Counter[str]:
    """Return the FLOP of the matrix instructions that a launch runs, by kind of arithmetic (core.chips.Rates)."""
    found: Counter[str] = Counter()
    for opcode, count in launch.ran.launch.instructions.items() if launch.ran else ():
        if shape := _SHAPE.match(opcode):
            kind = next((_KINDS[each] for each in shape[4].split(".") if each in _KINDS), "half")
            found[kind] += round(_flops_of_ptx(opcode) * count)
        elif opcode.startswith("tcgen05.mma"):
            found["tf32" if "kind::tf32" in opcode else "half"] += sass.tcgen05_flops(ptx) * count
    return found


_AMD_KINDS = {"xf32": "tf32", "f64": "double", "f32": "float"}


def _flops_of_amd(code: list[tuple[str, float]]) -> Counter[str]:
    """Return the FLOP of AMD's matrix instructions, by kind of arithmetic."""
    found: Counter[str] = Counter()
    for name, runs in code:
        if sass.is_matrix(name):
            found[_AMD_KINDS.get(name.rpartition("_")[2], "half")] += round(runs * sass.flops(name))
    return found


def boards_of(chip: str) -> list[Board]:
    """Return the boards that have a chip."""
    return [board for board in BOARDS if board.chip == chip]

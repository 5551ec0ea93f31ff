"""What is wrong with a launch, in words, with its place in the Python source."""

from typing import NamedTuple

from .decoder import SHARED_BASE, Program
from .ptx import Place

__all__ = ["Finding", "Report", "Span", "error_of", "finding_of"]

_KINDS = {
    1: "load outside of every allocation",
    2: "store outside of every allocation",
    3: "misaligned access",
    4: "access outside of the block's shared memory, or to an mbarrier that is none",
    5: "race: reads what another warp wrote, with no barrier between them",
    6: "race: overwrites what another warp reads, with no barrier between them",
    7: "race: two warps write, with no barrier between them",
    8: "the copy engine or the tensor cores access what threads did, with no fence.proxy.async between them",
    9: "bad tensor map",
    10: "tensor map used with no fence.proxy.tensormap acquire since it was written",
    11: "asynchronous operation under way at the kernel's end",
    12: "two blocks access the same bytes, and one of them writes",
    13: "registers that a wgmma or a tcgen05.ld under way writes are touched",
    14: "threads of a warp diverge at an instruction that all of them must execute together",
    15: "tensor memory",
    16: "accesses what an asynchronous copy has yet to write: it was not waited for",
    17: "reads shared memory that nothing has written",
    18: "overwrites what an asynchronous operation under way reads",
    19: "reads registers that a tcgen05.ld has yet to write: it was not waited for",
}
_NOTES = {13}  # what the assembler makes right, at some cost
_ERRORS = {1: "deadlock", 2: "unsupported descriptor", 3: "trap", 4: "limit of operations or of mbarriers exceeded"}
_MAPS = {1: "its rank", 2: "side of the box", 3: "type or interleave", 4: "base that is no multiple of 16 bytes",
         5: "size that is 0 or negative", 6: "stride that is no multiple of 16 bytes, or too large",
         7: "element stride", 8: "bytes of the box's inner side"}  # fmt: skip
_CROSS = {1: "reads what another wrote", 2: "writes what another wrote", 3: "writes what another read"}
_TENSOR_MEMORY = {1: "no room for so many columns", 2: "columns that are not allocated",
                  3: "lanes of another warp", 4: "not freed at the kernel's end",
                  5: "column that warps access with no barrier between them",
                  6: "column with loads or stores that were not waited for"}  # fmt: skip
_UNDER_WAY = {0: "store by TMA", 1: "load by TMA", 2: "product", 3: "copy"}


class Report(NamedTuple):
    """A finding as the engine has it (Report in engine/engine.h)."""

    kind: int
    line: int
    thread: int
    block: int
    address: int
    extra: int
    times: int


class Span(NamedTuple):
    """What may be accessed in global memory: addresses from begin to end, and whose they are."""

    begin: int
    end: int
    name: str


class Finding(NamedTuple):
    """Something wrong with a launch.

    kernel:        its name
    kind, details: in words
    place:         the line of Python, None where the compiler does not say
    line, text:    of PTX
    thread, block: that did it first; the block by its number
    times:         how often
    is_note:       True for what costs time but is not wrong
    """

    kernel: str
    kind: str
    details: str
    place: Place | None
    line: int
    text: str
    thread: int
    block: int
    times: int = 1
    is_note: bool = False

    def __str__(self) -> str:
        details = f" ({self.details})" if self.details else ""
        at = f"at {self.place}, PTX line {self.line}: {self.text}" if self.line else "at the kernel's end"
        times = f", {self.times} times" if self.times > 1 else ""
        return f"{self.kernel}: {self.kind}{details} {at} [thread {self.thread} of block {self.block}{times}]"


def _near(address: int, spans: list[Span]) -> str:
    """Return an address in words, from the nearest allocation."""
    span = min(spans, key=lambda each: max(each.begin - address, address - each.end + 1, 0))
    return f"{span.name} + {address - span.begin} (of {span.end - span.begin} bytes)"


def _details(report: Report, program: Program, spans: list[Span]) -> str:
    address, extra = report.address, report.extra
    match report.kind:
        case 1 | 2:
            return f"{extra} bytes at {_near(address, spans)}"
        case 3:
            return f"{extra} bytes at {address:#x}"
        case 5 | 6 | 7 | 8 | 16 | 17 | 18:
            other = program.statements.get(extra)
            also = f"; the other: {other.place}, PTX line {extra}: {other}" if other else ""
            return f"shared memory {address - SHARED_BASE:#x}{also}"
        case 9 if extra == 5:
            return f"{_MAPS[extra]}: {address & 0xFFFFFFFF}, dimension {address >> 32} from the last"
        case 9:
            return f"{_MAPS[extra]}: {address}"
        case 11:
            return _UNDER_WAY[extra]
        case 12:
            return f"{_CROSS[extra]}: {_near(address, spans)}"
        case 15:
            return f"{_TENSOR_MEMORY[extra]}: {address}"
        case _:
            return f"{address:#x}, {extra}"


def finding_of(report: Report, program: Program, spans: list[Span]) -> Finding:
    """Return a report in words."""
    found = _at(program, report.line, report.thread, report.block)
    details = _details(report, program, spans)
    return found._replace(
        kind=_KINDS[report.kind], details=details, times=report.times, is_note=report.kind in _NOTES
    )  # fmt: skip


def error_of(error: int, line: int, thread: int, block: int, program: Program) -> Finding:
    """Return why a kernel could not go on."""
    return _at(program, line, thread, block)._replace(kind=_ERRORS[error])


def _at(program: Program, line: int, thread: int, block: int) -> Finding:
    statement = program.statements.get(line)
    text = str(statement)[:160] if statement else ""
    return Finding(program.kernel.name, "", "", statement.place if statement else None, line, text, thread, block)

"""What launches did to the machine, in numbers, by line of Python."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from .findings import Finding
from .ptx import Place

__all__ = ["Counters", "Launch", "LineCounters", "Lines", "counters_by_line"]


@dataclass(frozen=True)
class Counters:
    """Numbers of one line, of a launch, or of several.

    instructions:     that warps executed
    global_bytes:     that threads and the copy engine moved to and from global memory
    sectors:          of 32 bytes, that their requests touched in global memory
    fewest_sectors:   that requests for as many bytes need
    shared_bytes:     that threads moved to and from shared memory
    wavefronts:       of shared memory: in each, each of 32 banks serves one word
    fewest_wavefronts: without any bank conflict
    tma_bytes:        of global_bytes, those by TMA
    """

    instructions: int = 0
    global_bytes: int = 0
    sectors: int = 0
    fewest_sectors: int = 0
    shared_bytes: int = 0
    wavefronts: int = 0
    fewest_wavefronts: int = 0
    tma_bytes: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def lost(self) -> int:
        """Sectors and wavefronts beyond the fewest: accesses that are not coalesced, and bank conflicts."""
        return self.sectors - self.fewest_sectors + self.wavefronts - self.fewest_wavefronts


class LineCounters(NamedTuple):
    """The counters of a line of Python in a kernel; place: None for what the compiler adds."""

    kernel: str
    place: Place | None
    counters: Counters


class Launch(NamedTuple):
    """What a launch did.

    kernel, grid: its name, and the numbers of blocks
    instructions: of warps, by opcode
    lines:        counters by line of Python
    runs:         of warps, by line of the PTX
    findings:     what is wrong
    touched:      bytes of global memory that it reads or writes at least once, at most each argument's
    """

    kernel: str
    grid: tuple[int, int, int]
    instructions: Counter[str]
    lines: dict[Place | None, Counters]
    runs: dict[int, int]
    findings: list[Finding]
    touched: int

    @property
    def counters(self) -> Counters:
        """The counters of all lines."""
        return sum(self.lines.values(), Counters())


class Lines(list[LineCounters]):
    """Lines, those that lose most first: by sectors and wavefronts beyond the fewest, then by instructions."""

    def __str__(self) -> str:
        head = ("line", "instructions", "global bytes", "by TMA", "sectors", "fewest", "shared bytes", "wavefronts",
                "fewest")  # fmt: skip
        rows = [head, *(_row(each) for each in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = (" ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
        return "\n".join(text.rstrip() for text in texts)


def _row(line: LineCounters) -> tuple[str, ...]:
    c = line.counters
    figures = (c.instructions, c.global_bytes, c.tma_bytes, c.sectors, c.fewest_sectors, c.shared_bytes, c.wavefronts,
               c.fewest_wavefronts)  # fmt: skip
    return f"{line.kernel} {line.place or '(the compiler)'}", *(f"{each:,}" if each else "" for each in figures)


def counters_by_line(launches: Iterable[Launch]) -> Lines:
    """Return the lines of launches, each kernel's launches together."""
    sums: dict[tuple[str, Place | None], Counters] = {}
    for launch in launches:
        for place, counters in launch.lines.items():
            key = launch.kernel, place
            sums[key] = sums.get(key, Counters()) + counters
    lines = (LineCounters(*key, counters) for key, counters in sums.items())
    return Lines(sorted(lines, key=lambda each: (-each.counters.lost, -each.counters.instructions)))

"""What `cnn-triton inspect --run` adds: results beside PyTorch's, what is wrong, and counters by line of Python."""

import linecache

from ..kernels.compiler.aot import Texts
from ..simulator import Counters, LineCounters, counters_by_line
from ..tools.bounds import EFFICIENCY, boards_of, bound, ideal
from ..tools.execution import Execution
from ..tools.inspection import CompiledLaunch
from .inspect_tables import Found, PlainTable

__all__ = ["Executions", "bounds_table", "findings", "is_right", "run_tables", "said_of_lines"]

Executions = dict[str, list[Execution]]
"""What a call ran, by chip."""
_WORST = 16  # lines in a table
_RATES = ("the issue rate", "the bandwidth", "the rate of products", "shared memory's rate")


def is_right(executions: Executions) -> bool:
    """True if no result is wrong, and nothing was found."""
    every = [execution for some in executions.values() for execution in some]
    wrong = [each for each in every if each.comparison is not None and not each.comparison.is_right]
    return not wrong and not findings(executions, notes=False)


def findings(executions: Executions, notes: bool = True) -> list[str]:
    """Return in words what is wrong, and what only costs time."""
    return [
        f"{'note' if found.is_note else 'finding'} on {chip}: {found}"
        for chip, some in executions.items()
        for execution in some
        for launch in execution.launches
        for found in launch.findings
        if notes or not found.is_note
    ]


def run_tables(executions: Executions) -> list[PlainTable]:
    """Return the table of results, and for each chip that of the lines that lose most."""
    if not executions:
        return []
    head = ["operator", "chip", "result", "error", "PyTorch's", "integers that differ"]
    rows = [[each.name, chip, *_verdict(each)] for chip, some in executions.items() for each in some]
    title = "Run in the simulator (error: the largest against float64, as a part of the largest value)"
    return [PlainTable(title, head, rows), *(_lines(chip, some) for chip, some in executions.items())]


def bounds_table(found: Found, texts: dict[str, Texts], dtype: str) -> list[PlainTable]:
    """Return the table of the launches' least times on the boards that have the chips; none if nothing ran."""
    head = [
        "operator",
        "kernel",
        "board",
        "instructions",
        "memory",
        "products",
        "shared memory",
        "bound",
        "of the ideal",
    ]
    rows = []
    for chip, operators in found.items():
        for operator in operators:
            for launch in (each for each in operator.launches if each.ran):
                for board in boards_of(chip):
                    least = bound(launch, texts[chip][launch.code.source], board).times
                    best = ideal(operator, dtype, board)
                    share = f"{least.longest / best:.2f}x" if best else ""
                    rows.append([operator.name, launch.code.kernel, board.name, *(f"{time:.3g}" for time in least),
                                 least.name, share])  # fmt: skip
    parts = ", ".join(f"{100 * part:.0f} % of {what}" for part, what in zip(EFFICIENCY, _RATES, strict=True))
    return [PlainTable(f"Least times in microseconds, at {parts}", head, rows)] if rows else []


def _verdict(execution: Execution) -> list[str]:
    compared = execution.comparison
    if compared is None:
        return ["not compared: give --reference", "", "", ""]
    integers = f"{compared.differing:,} of {compared.integers:,}" if compared.integers else ""
    return [
        "right" if compared.is_right else "WRONG",
        f"{compared.error:.2g}",
        f"{compared.pytorch_error:.2g}",
        integers,
    ]


def _lines(chip: str, executions: list[Execution]) -> PlainTable:
    lines = counters_by_line(launch for execution in executions for launch in execution.launches)
    head = ["kernel", "line", "source", "warp instructions", "sectors", "of the fewest", "wavefronts", "of the fewest",
            "MB by TMA"]  # fmt: skip
    rest = f", {_WORST} of {len(lines)}" if len(lines) > _WORST else ""
    title = f"Lines on {chip}, those that lose most sectors and wavefronts first{rest}"
    return PlainTable(title, head, [_line(each) for each in lines[:_WORST]])


def _line(line: LineCounters) -> list[str]:
    c, place = line.counters, line.place
    source = linecache.getline(place.file, place.line).strip() if place else "what the compiler adds"
    return [
        line.kernel, str(place or ""), source[:60], f"{c.instructions:,}", *_share(c.sectors, c.fewest_sectors),
        *_share(c.wavefronts, c.fewest_wavefronts), f"{c.tma_bytes / 1e6:.3g}" if c.tma_bytes else "",
    ]  # fmt: skip


def said_of_lines(launch: CompiledLaunch) -> dict[tuple[str, int], str]:
    """Return what each line of the source did, in words; empty if the launch did not run."""
    lines = launch.ran.launch.lines.items() if launch.ran else ()
    return {(place.file, place.line): _words(counters) for place, counters in lines if place}


def _words(c: Counters) -> str:
    said = [f"{c.instructions:,} warp instructions", f"{c.global_bytes:,} bytes of global memory"]
    for number, fewest, name in ((c.sectors, c.fewest_sectors, "sectors"),
                                 (c.wavefronts, c.fewest_wavefronts, "wavefronts of shared memory")):  # fmt: skip
        said += [f"{number:,} {name}, {number / fewest:.2f} times the fewest"] if fewest else []
    return ", ".join(said)


def _share(number: int, fewest: int) -> list[str]:
    return [f"{number:,}", f"{number / fewest:.2f}x"] if fewest else ["", ""]

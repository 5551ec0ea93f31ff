"""The tables that `cnn-triton inspect` shows: figures of launches, a roofline, candidate tiles; and notes on them."""

import re
from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ..kernels.core.chips import BOARDS, CHIPS
from ..tools.calls import Call
from ..tools.candidates import tile_name
from ..tools.inspection import Choice, CompiledLaunch, OperatorCall
from ..tools.limits import roofs, waves

__all__ = [
    "FIGURES", "SORTS", "Found", "PlainTable", "launch_tables", "notes_on", "order", "roofline_table", "tile_table",
]  # fmt: skip

Found = dict[str, list[OperatorCall]]
"""The operators of a call by chip."""


class PlainTable(NamedTuple):
    """A table of texts, for the terminal and for a page."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left")
        for i, name in enumerate(self.head):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def _in_loop(launch: CompiledLaunch) -> str:
    """Return the number of the main loop's matrix instructions, and the first of them."""
    code = launch.code
    return f"{code.loop_matrix} x {code.instruction}" if code.loop_matrix else "0"


def _narrowest(launch: CompiledLaunch) -> str:
    """Return the bytes of the main loop's narrowest load."""
    code = launch.code
    return "tma" if code.tma and code.load_bytes == 16 else str(code.load_bytes or "")


def _counted(number: str, fewest: str = "") -> Callable[[CompiledLaunch], str]:
    """Return what says a counter of a launch that ran, and how many times the fewest it is."""

    def say(launch: CompiledLaunch) -> str:
        if launch.ran is None:
            return ""
        counters = launch.ran.launch.counters
        value, least = getattr(counters, number), getattr(counters, fewest) if fewest else 0
        return f"{value:,}{f' ({value / least:.2f}x)' if least else ''}" if value else "0"

    return say


def _a_unit(unit: str, number: int) -> Callable[[CompiledLaunch], str]:
    """Return what says the warp instructions that a launch ran for so many FLOPs or bytes of its operator."""

    def say(launch: CompiledLaunch) -> str:
        whole = launch.ran and getattr(launch.ran, unit)
        return f"{launch.ran.launch.counters.instructions * number / whole:,.4g}" if launch.ran and whole else ""

    return say


# The figures of a launch, by the name that the table has for each.
FIGURES: dict[str, Callable[[CompiledLaunch], str]] = {
    "tile": lambda launch: tile_name(launch.choice.tile) if launch.choice else "",
    "programs": lambda launch: f"{launch.code.grid:,}",
    "waves": waves,
    "warps": lambda launch: str(launch.code.warps),
    "registers a thread": lambda launch: str(launch.code.registers),
    "spills (bytes; AMD: registers)": lambda launch: str(launch.code.spills),
    "shared memory, bytes": lambda launch: f"{launch.code.shared:,}",
    "blocks resident": lambda launch: "unknown" if launch.code.resident is None else str(launch.code.resident),
    "limited by": lambda launch: launch.code.limit or "",
    "matrix instructions": lambda launch: str(launch.code.matrix),
    "loads": lambda launch: launch.code.load_widths or "none",
    "stores": lambda launch: launch.code.store_widths or "none",
    "figures below are of": lambda launch: "the main loop" if launch.code.looped else "the whole kernel",
    "matrix instructions there": _in_loop,
    "narrowest load, bytes": _narrowest,
    "instructions": lambda launch: str(launch.code.instructions),
    "instructions per 1000 FLOP": lambda launch: str(launch.code.per_flop or ""),
    "run: warp instructions": _counted("instructions"),
    "run: for 1000 FLOP of the operator": _a_unit("flops", 1000),
    "run: for 1000 bytes that it must move": _a_unit("bytes", 1000),
    "run: bytes to and from global memory": _counted("global_bytes"),
    "run: of these by TMA": _counted("tma_bytes"),
    "run: sectors (of the fewest)": _counted("sectors", "fewest_sectors"),
    "run: shared memory's wavefronts (of the fewest)": _counted("wavefronts", "fewest_wavefronts"),
}
# The figures in the table of tiles, by the names that --sort takes.
SORTS = {
    "registers": "registers a thread",
    "spills": "spills (bytes; AMD: registers)",
    "shared": "shared memory, bytes",
    "resident": "blocks resident",
    "limit": "limited by",
    "matrix": "matrix instructions there",
    "loads": "loads",
    "stores": "stores",
    "narrowest": "narrowest load, bytes",
    "per_flop": "instructions per 1000 FLOP",
    "programs": "programs",
    "waves": "waves",
}


def launch_tables(found: Found) -> list[PlainTable]:
    """Return a table for each launch, with a column for each chip that has it."""
    tables: dict[str, dict[str, CompiledLaunch]] = {}
    for chip, operators in found.items():
        seen: list[str] = []
        for operator in operators:
            for launch in operator.launches:
                title = f"{operator.name}: {launch.code.kernel}"
                seen.append(title)
                number = f" ({seen.count(title)})" if seen.count(title) > 1 else ""
                tables.setdefault(title + number, {})[chip] = launch
    shown = []
    for title, columns in tables.items():
        rows = [[name, *(say(launch) for launch in columns.values())] for name, say in FIGURES.items()]
        shown.append(PlainTable(title, ["", *columns], [row for row in rows if any(row[1:])]))
    return shown


def roofline_table(call: Call, found: Found) -> PlainTable:
    """Return the table of each operator's least time on the boards that have these chips, by their datasheets."""
    head = ["operator", "GFLOP", "MB", "FLOP per byte", "board", "chip", "TFLOP/s", "GB/s", "us at least", "bound by"]
    rows: list[list[str]] = []
    for operator in next(iter(found.values())):
        flops, moved = operator.flops, operator.bytes
        own = [
            operator.name,
            "" if flops is None else f"{flops / 1e9:.4g}",
            "" if moved is None else f"{moved / 1e6:.4g}",
            "" if flops is None or not moved else f"{flops / moved:.3g}",
        ]
        for board, rate, least, bound in roofs(operator, call.dtype, found):
            shown = "" if flops is None else f"{rate:g}"
            rows.append([*own, board.name, board.chip, shown, f"{board.bandwidth:g}", f"{least:.3g}", bound])
    return PlainTable("Roofline, by datasheets", head, rows)


def tile_table(operator: OperatorCall, of: list[tuple[Choice, CompiledLaunch]], sort: str | None) -> PlainTable:
    """Return the table of every candidate's figures, the pick first unless they are sorted."""
    head = ["tile", *SORTS]
    rows = []
    for i, (choice, launch) in enumerate(of):
        name = tile_name(choice.tile) + (" (picked)" if i == 0 else "")
        rows.append([name, *(FIGURES[figure](launch) for figure in SORTS.values())])
    if sort is not None:
        rows.sort(key=lambda row: order(row[head.index(sort)]))
    return PlainTable(f"Every tile that could serve {operator.name} on {of[0][0].chip}", head, rows)


def order(text: str) -> tuple[float, str]:
    """Return the sort key of a figure: a tile's size, the number of waves, or the number that it begins with; words
    come after all numbers."""
    if sides := re.match(r"(\d+)x(\d+)x(\d+)", text):
        m, n, k = map(int, sides.groups())
        return m * n + k / 1e6, text
    if share := re.match(r"(?:([\d,]+) waves? and )?(<?)(\d+)% of", text):
        whole = float((share[1] or "0").replace(",", ""))
        return whole + (int(share[3]) - bool(share[2]) / 2) / 100, text
    number = re.match(r"[\d,]*\.?\d+", text)
    return (float(number[0].replace(",", "")) if number else float("inf")), text


def notes_on(call: Call, found: Found) -> list[str]:
    """Return notes: instructions that a chip lacks, and the sources of the boards' rates."""
    notes = []
    for chip, operators in found.items():
        products = [each for operator in operators if operator.product for each in operator.launches if each.choice]
        if call.dtype == "tf32" and products and not CHIPS[chip].rates.tf32:
            notes.append(f"{chip} has no TF32 instruction: float32 is multiplied in full precision")
        plain = sorted({each.code.kernel for each in products if not each.code.matrix})
        if plain:
            without = ", ".join(plain)
            notes.append(f"{chip}: no matrix instruction in {without}: {call.dtype} runs by fused multiply-adds")
    boards = "; ".join(f"{board.name}: {board.source}" for board in BOARDS if board.chip in found)
    ran = any(launch.ran for operators in found.values() for each in operators for launch in each.launches)
    how = "run on a CPU, instruction by instruction" if ran else "nothing was run"
    return [*notes, f"dense rates of {boards}", f"compiled ahead of time; {how}, and no time here was measured"]

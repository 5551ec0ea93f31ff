"""What `cnn-triton inspect` does: compiles a call for chips, and shows what came out."""

import difflib
import json as json_text
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .inspection import DTYPES, Call, Operator, call_of, candidates, inspect_call, roofs, tile_name, waves
from .jobs import fail
from .kernels import aot
from .kernels.aot import Code
from .kernels.chips import BOARDS, CHIPS
from .listing import listings, sources
from .pages import render
from .runs import replace

__all__ = ["TARGETS", "inspect_op"]

TARGETS = tuple(name for name in CHIPS if name[-1].isdigit())
_TEXTS = ("ttir", "ttgir", "llir", "ptx", "amdgcn")


class _Plain(NamedTuple):
    """A table, for the terminal and for a page."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def show(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left")
        for i, name in enumerate(self.head):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def inspect_op(
    name: str, words: list[str], *, targets: list[str], dtype: str, layout: str, gradients: bool, operator: str | None,
    tile: str | None, every_tile: bool, sort: str | None, dump: Path | None, html: Path | None, json: Path | None,
) -> None:  # fmt: skip
    """Compiles a call for the targets, and shows its figures; writes what has a file."""
    chips = list(
        dict.fromkeys(TARGETS if "all" in targets else [_known("--target", each, TARGETS) for each in targets])
    )
    dtype = _known("--dtype", dtype, DTYPES)
    layout = _known("--layout", layout, ("channels_last", "contiguous"))
    if every_tile and len(chips) > 1:
        fail("--tiles: one chip at a time; name one with --target, as in --target sm_90")
    if sort is not None:
        _known("--sort", sort, ("tile", *_SHORT))
        if not every_tile:
            fail(f"--sort {sort}: it sorts the table of --tiles; give that, too")
    texts: dict[str, aot.Texts] = {chip: {} for chip in chips}
    try:
        how = {"dtype": dtype, "channels_last": layout == "channels_last", "gradients": gradients}
        call = call_of(name, words, **how)
        found = {chip: _wanted(call, inspect_call(call, chip, texts[chip]), operator) for chip in chips}
        tables = []
        if tile is not None or every_tile:
            for chip in chips:
                progress = (lambda every: _progress(every, chip)) if every_tile else iter  # noqa: B023
                of = candidates(call, _with_tiles(found[chip]), chip, tile, texts[chip], progress)
                if every_tile:
                    tables.append(_tiles_table(of, chip, sort))
                else:
                    found[chip] = [of[0][1]]
    except (ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
        fail(f"{name}: {error}" if name not in str(error) else error)
    if not any(found.values()):
        fail(f"{name}: it launched no kernel")
    tables = [*_figures(found), _roofline(call, found), *tables]
    console = Console(width=None if Console().is_terminal else 200)
    print(call)
    for table in tables:
        table.show(console)
    notes = _notes(call, chips)
    for note in notes:
        print(f"note: {note}")
    if dump is not None:
        _dump(dump, found, texts)
    if html is not None:
        _write(html, _page(str(call), found, texts, tables, notes))
    if json is not None:
        _write(json, _json(call, found).encode())


def _known(option: str, given: str, names: Iterable[str]) -> str:
    names = list(names)
    if given not in names:
        near = difflib.get_close_matches(given, names, 3, 0.4) or names
        fail(f"{option} {given}: unknown; did you mean {' or '.join(near)}?")
    return given


def _wanted(call: Call, operators: list[Operator], name: str | None) -> list[Operator]:
    """The operator of this name, or all."""
    if name is None:
        return operators
    names = list(dict.fromkeys(each.name for each in operators))
    if name not in names:
        more = "" if call.gradients else "; with --gradients there are those of the backward pass, too"
        raise ValueError(f"--operator {name}: the call runs {', '.join(names)}{more}")
    return [each for each in operators if each.name == name]


def _with_tiles(operators: list[Operator]) -> Operator:
    """The first operator that has a choice of tiles."""
    return next((each for each in operators if each.asked), operators[0])


def _progress(every: list[Any], chip: str) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(every, f"tiles for {chip}", console=console, transient=True, disable=not console.is_terminal)


# What is said of a code, by the figure's name: of the operator and its kernel.
_FIGURES: dict[str, Callable[[Operator, Code], str]] = {
    "tile": lambda operator, code: tile_name(operator.asked[-1][0]) if operator.asked else "",
    "programs": lambda operator, code: f"{code.grid:,}",
    "waves": lambda operator, code: waves(operator, code),
    "warps": lambda operator, code: str(code.warps),
    "registers a thread": lambda operator, code: str(code.registers),
    "spills, bytes": lambda operator, code: str(code.spills),
    "shared memory, bytes": lambda operator, code: f"{code.shared:,}",
    "blocks resident": lambda operator, code: "unknown" if code.resident is None else str(code.resident),
    "limited by": lambda operator, code: code.limit or "",
    "matrix instructions": lambda operator, code: str(code.matrix),
    "in the main loop": lambda operator, code: f"{code.loop_matrix} x {code.instruction}" if code.loop_matrix else "0",
    "loads": lambda operator, code: code.load_widths or "none",
    "narrowest in the loop, bytes": lambda operator, code: str(code.load_bytes or ""),
    "stores": lambda operator, code: code.store_widths or "none",
    "loop's instructions": lambda operator, code: str(code.instructions),
    "instructions per 1000 FLOP": lambda operator, code: str(code.per_flop or ""),
}
_SHORT = {
    "registers": "registers a thread", "spills": "spills, bytes", "shared": "shared memory, bytes",
    "resident": "blocks resident", "limit": "limited by", "matrix": "in the main loop",
    "load_bytes": "narrowest in the loop, bytes", "per_flop": "instructions per 1000 FLOP", "waves": "waves",
}  # fmt: skip


def _figures(found: dict[str, list[Operator]]) -> list[_Plain]:
    """A table for each launch, a column for each chip; chips that launch other kernels are apart."""
    tables: dict[tuple[Any, ...], dict[str, tuple[Operator, Code]]] = {}
    for chip, operators in found.items():
        seen: list[tuple[str, str]] = []
        for operator in operators:
            for code in operator.codes:
                what = (operator.name, code.kernel)
                tables.setdefault((*what, seen.count(what)), {})[chip] = (operator, code)
                seen.append(what)
    shown = []
    for (operator, kernel, _), columns in tables.items():
        rows = [[name, *(say(*each) for each in columns.values())] for name, say in _FIGURES.items()]
        rows = [row for row in rows if any(row[1:])]
        shown.append(_Plain(f"{operator}: {kernel}", ["", *columns], rows))
    return shown


def _roofline(call: Call, found: dict[str, list[Operator]]) -> _Plain:
    """Each operator's least time on the boards that have these chips, by their datasheets."""
    head = ["operator", "GFLOP", "MB", "FLOP per byte", "board", "chip", "TFLOP/s", "GB/s", "us at least", "bound by"]
    rows: list[list[str]] = []
    for operator in next(iter(found.values())):
        gflop = "" if operator.flops is None else f"{operator.flops / 1e9:.4g}"
        intensity = "" if operator.flops is None else f"{operator.flops / operator.bytes:.3g}"
        for j, (board, rate, least, bound) in enumerate(roofs(operator, call.dtype, list(found))):
            own = [operator.name, gflop, f"{operator.bytes / 1e6:.4g}", intensity] if j == 0 else [""] * 4
            rate_shown = f"{rate:g}" if operator.flops is not None else ""
            rows.append([*own, board.name, board.chip, rate_shown, f"{board.bandwidth:g}", f"{least:.3g}", bound])
    return _Plain("Roofline, by datasheets", head, rows)


def _tiles_table(of: list[tuple[Any, Operator]], chip: str, sort: str | None) -> _Plain:
    """Every candidate's figures, the pick first unless they are sorted."""
    head = ["tile", *_SHORT]
    rows = []
    for i, (tile, operator) in enumerate(of):
        code = max(operator.codes, key=lambda code: code.loop_matrix or 0)
        name = tile_name(tile) + (" (picked)" if i == 0 else "")
        rows.append([name, *(_FIGURES[figure](operator, code) for figure in _SHORT.values())])
    if sort is not None:
        column = head.index(sort)
        rows.sort(key=lambda row: _number(row[column]))
    return _Plain(f"Every tile that could serve {of[0][1].name} on {chip}", head, rows)


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text.replace(",", "").split(" ")[0] or "inf"), text
    except ValueError:
        return float("inf"), text


def _notes(call: Call, chips: list[str]) -> list[str]:
    notes = [
        f"{chip} has no TF32 instruction: float32 is multiplied in full precision"
        for chip in chips
        if call.dtype == "tf32" and not CHIPS[chip].rates[1]
    ]
    boards = "; ".join(f"{board.name}: {board.source}" for board in BOARDS if board.chip in chips)
    return [
        *notes,
        f"dense rates of {boards}",
        "compiled ahead of time; nothing was run, and no time here was measured",
    ]


def _names(found: dict[str, list[Operator]]) -> Iterable[tuple[str, str, Operator, Code]]:
    """(name, chip, operator, code) of every launch; names are distinct, in order."""
    for chip, operators in found.items():
        number = 0
        for operator in operators:
            for code in operator.codes:
                number += 1
                yield f"{number} {operator.name} {code.kernel}", chip, operator, code


def _dump(folder: Path, found: dict[str, list[Operator]], texts: dict[str, aot.Texts]) -> None:
    """Every text of every kernel, in a folder for each chip."""
    for name, chip, _, code in _names(found):
        own = folder / chip
        own.mkdir(parents=True, exist_ok=True)
        made = texts[chip][code.source]
        each = {kind: str(made[kind]) for kind in _TEXTS if kind in made}
        if chip.startswith("sm_"):
            each["sass"] = aot.disassembled(chip, made)
        for kind, text in each.items():
            replace(own / f"{name.replace(' ', '-')}.{kind}", text.encode())
    print(f"written: {folder}")


def _page(
    title: str, found: dict[str, list[Operator]], texts: dict[str, aot.Texts], tables: list[_Plain], notes: list[str]
) -> bytes:
    kernels = []
    for name, chip, _, code in _names(found):
        made = texts[chip][code.source]
        listed = listings(chip, made)
        first = next((line.places[-1][0] for lines in listed.values() for line in lines if line.places), "")
        files = sources(list(listed.values()), first)
        numbers = {file.path: i for i, file in enumerate(files)}
        at = {
            (path, row): f"{numbers[path]}:{row}"
            for lines in listed.values()
            for line in lines
            for path, row in line.places
            if path in numbers
        }
        kernels.append({
            "name": f"{chip}: {name}",
            "sources": files,
            "places": at,
            "listings": {
                form: [
                    {"text": line.text, "at": " ".join(at[place] for place in line.places if place in at)}
                    for line in lines
                ]
                for form, lines in listed.items()
            },
        })  # fmt: skip
    return render("inspect.html", title=title, kernels=kernels, tables=tables, notes=notes)


def _json(call: Call, found: dict[str, list[Operator]]) -> str:
    figures = {
        chip: [
            {
                "operator": operator.name,
                "flops": operator.flops,
                "bytes": operator.bytes,
                "tile": tile_name(operator.asked[-1][0]) if operator.asked else None,
                "kernels": [code._asdict() | {"waves": waves(operator, code)} for code in operator.codes],
                "roofline, microseconds": {
                    roof.board.name: roof.microseconds for roof in roofs(operator, call.dtype, [chip])
                },
            }
            for operator in operators
        ]
        for chip, operators in found.items()
    }
    return json_text.dumps({"call": str(call), "chips": figures}, indent=1) + "\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)
    print(f"written: {path}", file=sys.stdout)

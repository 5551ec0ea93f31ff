"""What `cnn-triton inspect` does: compiles a call for chips, and shows what came out."""

import json as json_text
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..classifier.runs import replace
from ..kernels.compiler import aot
from ..kernels.core.chips import BOARDS, CHIPS, NAMES
from ..pages import render
from ..tools.inspection import (
    DTYPES,
    Call,
    Choice,
    Launch,
    Operator,
    call_of,
    candidates,
    chosen,
    inspect_call,
    nearest,
    roofs,
    tile_name,
    waves,
)
from ..tools.listing import listings, sources
from .jobs import fail

__all__ = ["inspect_op"]

_BOARDS = {board.name.lower().replace(" ", ""): board.chip for board in BOARDS}
_TEXTS = ("ttir", "ttgir", "llir", "ptx", "amdgcn")

Found = dict[str, list[Operator]]  # by chip


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
    dtype = _known("--dtype", dtype, DTYPES)
    layout = _known("--layout", layout, ("channels_last", "contiguous"))
    chips = [_known("--target", each.lower(), ("all", *NAMES, *_BOARDS)) for each in targets]
    chips = list(NAMES) if "all" in chips else list(dict.fromkeys(_BOARDS.get(chip, chip) for chip in chips))
    if every_tile and (len(chips) > 1 or tile is not None):
        fail("--tiles: of one chip at a time, and without --tile; name it with --target, as in --target sm_90")
    if sort is not None:
        _known("--sort", sort, ("tile", *_SHORT))
        if not every_tile:
            fail(f"--sort {sort}: it sorts the table of --tiles; give that, too")
    for option, path in (("--html", html), ("--json", json)):
        if path is not None and path.is_dir():
            fail(f"{option} {path}: a folder is there; name a file")
    texts: dict[str, aot.Texts] = {chip: {} for chip in chips}
    found: Found = {}
    tables: list[_Plain] = []
    try:
        how = {"dtype": dtype, "channels_last": layout == "channels_last", "gradients": gradients}
        call = call_of(name, words, **how)
        for chip in chips:
            found[chip] = _wanted(call, inspect_call(call, chip, texts[chip]), operator)
            if tile is not None:
                instead = chosen(_with_tiles(found[chip]), tile)
                found[chip] = _wanted(call, inspect_call(call, chip, texts[chip], instead), operator)
            if every_tile:
                of = _with_tiles(found[chip])
                tables.append(_tiles_table(of, candidates(call, of, texts[chip], _progress), sort))
    except Exception as error:  # the user's function may raise anything
        plain = type(error) in (ValueError, TypeError, RuntimeError, NotImplementedError)
        said = str(error) if plain else f"{type(error).__name__}: {error}"
        fail(said if name in said else f"{name}: {said}")
    if not any(each.launches for operators in found.values() for each in operators):
        fail(f"{name}: it launches no kernel on such tensors")
    tables = [*_figures(found), _roofline(call, found), *tables]
    console = Console(width=None if Console().is_terminal else 320)
    print(call)
    for table in tables:
        table.show(console)
    notes = _notes(call, found)
    for note in notes:
        print(f"note: {note}")
    if dump is not None:
        _dump(dump, found, texts)
    if html is not None:
        _write(html, _page(str(call), found, texts, tables, notes))
    if json is not None:
        _write(json, _json(call, found, tables, notes).encode())


def _known(option: str, given: str, names: Iterable[str]) -> str:
    if given not in names:
        fail(f"{option} {given}: unknown; {nearest(given, names)}")
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
    if not operators:
        raise ValueError("it runs no operator")
    return next((each for each in operators if each.choice), operators[0])


def _progress(every: list[Any]) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(every, "compiling", console=console, transient=True, disable=not console.is_terminal)


def _in_loop(launch: Launch) -> str:
    code = launch.code
    return f"{code.loop_matrix} x {code.instruction}" if code.loop_matrix else "0"


def _narrowest(launch: Launch) -> str:
    code = launch.code
    return "box" if code.tma and code.load_bytes == 16 else str(code.load_bytes or "")


# What is said of a launch, by the figure's name.
_FIGURES: dict[str, Callable[[Launch], str]] = {
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
}
# Those of the table of tiles, by the names that sort it.
_SHORT = {
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


def _figures(found: Found) -> list[_Plain]:
    """A table for each launch, a column for each chip; chips that launch other kernels are apart."""
    tables: dict[str, dict[str, Launch]] = {}
    for chip, operators in found.items():
        seen: list[str] = []
        for operator in operators:
            for launch in operator.launches:
                what = f"{operator.name}: {launch.code.kernel}"
                seen.append(what)
                number = f" ({seen.count(what)})" if seen.count(what) > 1 else ""
                tables.setdefault(what + number, {})[chip] = launch
    shown = []
    for title, columns in tables.items():
        rows = [[name, *(say(launch) for launch in columns.values())] for name, say in _FIGURES.items()]
        shown.append(_Plain(title, ["", *columns], [row for row in rows if any(row[1:])]))
    return shown


def _roofline(call: Call, found: Found) -> _Plain:
    """Each operator's least time on the boards that have these chips, by their datasheets."""
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
    return _Plain("Roofline, by datasheets", head, rows)


def _tiles_table(operator: Operator, of: list[tuple[Choice, Launch]], sort: str | None) -> _Plain:
    """Every candidate's figures, the pick first unless they are sorted."""
    head = ["tile", *_SHORT]
    rows = []
    for i, (choice, launch) in enumerate(of):
        name = tile_name(choice.tile) + (" (picked)" if i == 0 else "")
        rows.append([name, *(_FIGURES[figure](launch) for figure in _SHORT.values())])
    if sort is not None:
        rows.sort(key=lambda row: order(row[head.index(sort)]))
    return _Plain(f"Every tile that could serve {operator.name} on {of[0][0].chip}", head, rows)


def order(text: str) -> tuple[float, str]:
    """What a figure is sorted by: tiles by their size, waves by their number, others by the number that they begin
    with, or as words behind all numbers."""
    if sides := re.match(r"(\d+)x(\d+)x(\d+)", text):
        m, n, k = map(int, sides.groups())
        return m * n + k / 1e6, text
    if share := re.match(r"(?:([\d,]+) waves? and )?(<?)(\d+)% of", text):
        whole = float((share[1] or "0").replace(",", ""))
        return whole + (int(share[3]) - bool(share[2]) / 2) / 100, text
    number = re.match(r"[\d,]*\.?\d+", text)
    return (float(number[0].replace(",", "")) if number else float("inf")), text


def _notes(call: Call, found: Found) -> list[str]:
    """What a chip has no instruction for, and where the rates are from."""
    notes = []
    for chip, operators in found.items():
        products = [each for operator in operators if operator.product for each in operator.launches if each.choice]
        if call.dtype == "tf32" and products and not CHIPS[chip].rates[1]:
            notes.append(f"{chip} has no TF32 instruction: float32 is multiplied in full precision")
        plain = sorted({each.code.kernel for each in products if not each.code.matrix})
        if plain:
            notes.append(f"{chip}: no matrix instruction in {', '.join(plain)}: {call.dtype} goes by multiply-adds")
    boards = "; ".join(f"{board.name}: {board.source}" for board in BOARDS if board.chip in found)
    return [
        *notes,
        f"dense rates of {boards}",
        "compiled ahead of time; nothing was run, and no time here was measured",
    ]


def _names(found: Found) -> Iterator[tuple[str, str, str]]:
    """(name, chip, source) of every launch's code; names are distinct, in order."""
    for chip, operators in found.items():
        every = [(operator.name, launch.code) for operator in operators for launch in operator.launches]
        for number, (operator, code) in enumerate(every, 1):
            yield f"{number} {operator} {code.kernel}", chip, code.source


def _dump(folder: Path, found: Found, texts: dict[str, aot.Texts]) -> None:
    """Every text of every kernel, in a folder for each chip."""
    for name, chip, source in _names(found):
        own = folder / chip
        own.mkdir(parents=True, exist_ok=True)
        made = texts[chip][source]
        each = {kind: str(made[kind]) for kind in _TEXTS if kind in made}
        if chip.startswith("sm_"):
            each["sass"] = aot.disassembled(chip, made)
        for kind, text in each.items():
            replace(own / f"{name.replace(' ', '-')}.{kind}", text.encode())
    print(f"written: {folder}")


def _page(
    title: str, found: Found, texts: dict[str, aot.Texts], tables: list[_Plain], notes: list[str]
) -> bytes:  # fmt: skip
    """The page: tables, and each kernel's source beside its listings, whose lines name the places they are from."""
    kernels = []
    for name, chip, source in _names(found):
        listed = listings(chip, texts[chip][source])
        places = [line.places for lines in listed.values() for line in lines if line.places]
        files = sources(list(listed.values()), places[0][-1][0] if places else "")
        numbers = {file.path: i for i, file in enumerate(files)}
        at = {p: f"{numbers[p[0]]}:{p[1]}" for chain in places for p in chain if p[0] in numbers}
        shown = {
            form: [{"text": line.text, "at": " ".join(at[p] for p in line.places if p in at)} for line in lines]
            for form, lines in listed.items()
        }
        kernels.append({"name": f"{chip}: {name}", "sources": files, "places": at, "listings": shown})
    sortable = [
        {"title": t.title, "head": t.head, "rows": [[(cell, order(cell)[0]) for cell in row] for row in t.rows]}
        for t in tables
    ]
    return render("inspect.html", title=title, kernels=kernels, tables=sortable, notes=notes)


def _json(call: Call, found: Found, tables: list[_Plain], notes: list[str]) -> str:
    figures = {
        chip: [
            {
                "operator": operator.name,
                "flops": operator.flops,
                "bytes": operator.bytes,
                "kernels": [
                    launch.code._asdict() | {"tile": _FIGURES["tile"](launch), "waves": waves(launch)}
                    for launch in operator.launches
                ],
                "roofline, microseconds": {
                    roof.board.name: roof.microseconds for roof in roofs(operator, call.dtype, [chip])
                },
            }
            for operator in operators
        ]
        for chip, operators in found.items()
    }
    said = {"call": str(call), "chips": figures, "tables": [table._asdict() for table in tables], "notes": notes}
    return json_text.dumps(said, indent=1) + "\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, content)
    print(f"written: {path}")

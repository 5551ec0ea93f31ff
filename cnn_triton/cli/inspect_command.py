"""`cnn-triton inspect`: compiles a call for chips, and shows the figures of its code."""

import json as json_text
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import track

from ..files import replace
from ..kernels.compiler.aot import Texts
from ..kernels.compiler.figures import disassembled
from ..kernels.core.chips import BOARDS, NAMES
from ..pages import render
from ..tools.calls import DTYPES, Call, call_of, function_of, nearest
from ..tools.candidates import candidates, chosen
from ..tools.execution import execute_call, with_runs
from ..tools.inspection import CompiledLaunch, OperatorCall, inspect_call
from ..tools.limits import roofs, waves
from ..tools.listing import listings, sources
from .inspect_run import Executions, bounds_table, findings, is_right, run_tables, said_of_lines
from .inspect_tables import (
    FIGURES,
    SORTS,
    Found,
    PlainTable,
    launch_tables,
    notes_on,
    order,
    roofline_table,
    tile_table,
)
from .jobs import fail, write_file

__all__ = ["inspect_op"]

_BOARDS = {board.name.lower().replace(" ", ""): board.chip for board in BOARDS}
_TEXTS = ("ttir", "ttgir", "llir", "ptx", "amdgcn")


def inspect_op(
    name: str, words: list[str], *, targets: list[str], dtype: str, layout: str, gradients: bool, operator: str | None,
    tile: str | None, every_tile: bool, sort: str | None, run: bool, reference: str | None, dump: Path | None,
    html: Path | None, json: Path | None,
) -> None:  # fmt: skip
    """Compile a call for the targets, run it if wanted, show its figures, and write the files that were asked for."""
    dtype = _one_of("--dtype", dtype, DTYPES)
    layout = _one_of("--layout", layout, ("channels_last", "contiguous"))
    chips = _chips(targets, run)
    if reference is not None and not run:
        fail(f"--reference {reference}: is for --run; give that option, too")
    if every_tile and (len(chips) > 1 or tile is not None):
        fail("--tiles: works on one chip at a time, and without --tile; name the chip, for example --target sm_90")
    if sort is not None:
        _one_of("--sort", sort, ("tile", *SORTS))
        if not every_tile:
            fail(f"--sort {sort}: sorts the table of --tiles; give that option, too")
    for option, path in (("--html", html), ("--json", json)):
        if path is not None and path.is_dir():
            fail(f"{option} {path}: a folder is there; name a file")
    texts: dict[str, Texts] = {chip: {} for chip in chips}
    found: Found = {}
    executions: Executions = {}
    tables: list[PlainTable] = []
    try:
        how = {"dtype": dtype, "channels_last": layout == "channels_last", "gradients": gradients}
        call = call_of(name, words, **how)
        right = None if reference is None else function_of(reference)
        for chip in chips:
            found[chip], instead = _wanted(call, inspect_call(call, chip, texts[chip]), operator), None
            if tile is not None:
                instead = chosen(_with_tiles(found[chip]), tile)
                found[chip] = _wanted(call, inspect_call(call, chip, texts[chip], instead), operator)
            if run and chip.startswith("sm_"):
                executions[chip] = execute_call(call, chip, instead, right)
                found[chip] = with_runs(found[chip], executions[chip])
            if every_tile:
                of = _with_tiles(found[chip])
                tables.append(tile_table(of, candidates(call, of, texts[chip], _progress), sort))
    except Exception as error:  # the user's function may raise anything
        plain = type(error) in (ValueError, TypeError, RuntimeError, NotImplementedError)
        said = str(error) if plain else f"{type(error).__name__}: {error}"
        fail(said if name in said else f"{name}: {said}")
    if not any(each.launches for operators in found.values() for each in operators):
        fail(f"{name}: it launches no kernel on these tensors")
    ran = [*run_tables(executions), *bounds_table(found, texts, dtype)]
    tables = [*launch_tables(found), *ran, roofline_table(call, found), *tables]
    notes = [*findings(executions), *(f"note: {each}" for each in notes_on(call, found))]
    _show(call, tables, notes)
    if dump is not None:
        _dump(dump, found, texts)
    if html is not None:
        write_file(html, _page(str(call), found, texts, tables, notes))
    if json is not None:
        write_file(json, _json(call, found, tables, notes).encode())
    if not is_right(executions):
        raise typer.Exit(1)


def _show(call: Call, tables: list[PlainTable], notes: list[str]) -> None:
    console = Console(width=None if Console().is_terminal else 320)
    print(call)
    for table in tables:
        table.show(console)
    print("\n".join(notes))


def _chips(targets: list[str], run: bool) -> list[str]:
    """Return the chips of these names or boards; fail if one is unknown, or must be simulated and none can."""
    chips = [_one_of("--target", each.lower(), ("all", *NAMES, *_BOARDS)) for each in targets]
    chips = list(NAMES) if "all" in chips else list(dict.fromkeys(_BOARDS.get(chip, chip) for chip in chips))
    if run and not any(chip.startswith("sm_") for chip in chips):
        fail(f"--run: {', '.join(chips)} can't be simulated, NVIDIA's chips can; name one, for example --target sm_90")
    return chips


def _one_of(option: str, given: str, names: Iterable[str]) -> str:
    """Return the word that an option was given; fail if it is none of the names."""
    if given not in names:
        fail(f"{option} {given}: unknown; {nearest(given, names)}")
    return given


def _wanted(call: Call, operators: list[OperatorCall], name: str | None) -> list[OperatorCall]:
    """Return the operators of this name; without a name all. Errors: ValueError."""
    if name is None:
        return operators
    names = list(dict.fromkeys(each.name for each in operators))
    if name not in names:
        more = "" if call.gradients else "; with --gradients also the operators of the backward pass"
        raise ValueError(f"--operator {name}: the call runs {', '.join(names)}{more}")
    return [each for each in operators if each.name == name]


def _with_tiles(operators: list[OperatorCall]) -> OperatorCall:
    """Return the first operator that has a choice of tiles, else the first. Errors: ValueError without any."""
    if not operators:
        raise ValueError("it runs no operator")
    return next((each for each in operators if each.choice), operators[0])


def _progress(every: list[Any]) -> Iterable[Any]:
    """Yield the elements; a progress bar shows on a terminal."""
    console = Console(stderr=True)
    return track(every, "compiling", console=console, transient=True, disable=not console.is_terminal)


def _names(found: Found) -> Iterator[tuple[str, str, CompiledLaunch]]:
    """Yield (name, chip, launch) of every launch, in order; names are distinct."""
    for chip, operators in found.items():
        every = [(operator.name, launch) for operator in operators for launch in operator.launches]
        for number, (operator, launch) in enumerate(every, 1):
            yield f"{number} {operator} {launch.code.kernel}", chip, launch


def _dump(folder: Path, found: Found, texts: dict[str, Texts]) -> None:
    """Write every text of every kernel, in a folder for each chip."""
    for name, chip, launch in _names(found):
        own = folder / chip
        own.mkdir(parents=True, exist_ok=True)
        made = texts[chip][launch.code.source]
        each = {kind: str(made[kind]) for kind in _TEXTS if kind in made}
        if chip.startswith("sm_"):
            each["sass"] = disassembled(chip, made)
        for kind, text in each.items():
            replace(own / f"{name.replace(' ', '-')}.{kind}", text.encode())
    print(f"written: {folder}")


def _page(
    title: str, found: Found, texts: dict[str, Texts], tables: list[PlainTable], notes: list[str]
) -> bytes:  # fmt: skip
    """Return the page: tables, and each kernel's source beside its listings, whose lines name their places in it."""
    kernels = []
    for name, chip, launch in _names(found):
        listed = listings(chip, texts[chip][launch.code.source])
        places = [line.places for lines in listed.values() for line in lines if line.places]
        files = sources(list(listed.values()), places[0][-1][0] if places else "")
        numbers = {file.path: i for i, file in enumerate(files)}
        at = {p: f"{numbers[p[0]]}:{p[1]}" for chain in places for p in chain if p[0] in numbers}
        shown = {
            form: [{"text": line.text, "at": " ".join(at[p] for p in line.places if p in at)} for line in lines]
            for form, lines in listed.items()
        }
        counted = said_of_lines(launch)
        kernels.append(
            {"name": f"{chip}: {name}", "sources": files, "places": at, "listings": shown, "counted": counted}
        )
    sortable = [
        {"title": t.title, "head": t.head, "rows": [[(cell, order(cell)[0]) for cell in row] for row in t.rows]}
        for t in tables
    ]
    return render("inspect.html", title=title, kernels=kernels, tables=sortable, notes=notes)


def _json(call: Call, found: Found, tables: list[PlainTable], notes: list[str]) -> str:
    """Return all figures as JSON."""
    figures = {
        chip: [
            {
                "operator": operator.name,
                "flops": operator.flops,
                "bytes": operator.bytes,
                "kernels": [
                    launch.code._asdict()
                    | {"tile": FIGURES["tile"](launch), "waves": waves(launch)}
                    | ({"counters": vars(launch.ran.launch.counters)} if launch.ran else {})
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

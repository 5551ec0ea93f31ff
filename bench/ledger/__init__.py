"""The ledger of code quality: what each layer's launches compile to, on every chip, with the pinned Triton.

    python -m bench.ledger show CHIP [WORDS]    a table of the layers that have these words, to read
    python -m bench.ledger check [CHIP...]      is all that is launched in it, and does a sample compile to the same?
    python -m bench.ledger write [--reason R]   compiles what it doesn't know; figures that got worse need a reason

README.md: what the tables come to, by chip, arithmetic and pass. launches-CHIP.csv: a row for each layer and pass; for
each arithmetic the codes of the kernels launched, and the reason why a figure got worse, if one ever did.
kernels-CHIP.csv: a row for each code, with its figures (see compiler.figures.Code). A code is a hash of all
that determines a kernel but the compiler. What is in them must be clean: nothing spills, and products have matrix
instructions.

Without a GPU: ahead of time, as launched.
"""

import csv
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.compiler.figures import Code
from cnn_triton.kernels.core.chips import COMPILED
from cnn_triton.kernels.core.op import Op

from ..calls import ARITHMETICS, PASSES, calls
from ..layers import LAYERS

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CHIPS = COMPILED

Row = dict[str, str]
Cell = tuple[str, str, str]  # layer, pass, arithmetic
FIGURES = ("registers", "spills", "shared", "resident", "limit", "looped", "loop_matrix", "instruction", "tma")
FIGURES += ("load_bytes", "instructions", "per_flop")
HIGHER = ("registers", "spills", "shared", "per_flop")  # is worse
LOWER = ("resident", "load_bytes")


class Ledger(NamedTuple):
    """One chip's tables: the codes and the reason of each cell, and each code's figures."""

    codes: dict[Cell, tuple[str, ...]]
    reasons: dict[Cell, str]
    kernels: dict[str, Row]


def read(chip: str, folder: Path = FOLDER) -> Ledger:
    """A chip's tables; empty ones if there are none."""
    codes, reasons = {}, {}
    for row in _rows(folder / f"launches-{chip}.csv"):
        for arithmetic in ARITHMETICS:
            cell = (row["layer"], row["pass"], arithmetic)
            codes[cell] = tuple(row[arithmetic].split())
            if row[f"{arithmetic} reason"]:
                reasons[cell] = row[f"{arithmetic} reason"]
    kernels = {row["code"]: row for row in _rows(folder / f"kernels-{chip}.csv")}
    return Ledger(codes, reasons, kernels)


def _rows(path: Path) -> list[Row]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def _replace(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text.getvalue())
    part.replace(path)


def save_kernels(chip: str, kernels: dict[str, Row], folder: Path = FOLDER) -> None:
    """The table of kernels, replaced in one step."""
    if kernels:
        _replace(folder / f"kernels-{chip}.csv", [row for _, row in sorted(kernels.items())])


def save(chip: str, ledger: Ledger, folder: Path = FOLDER) -> None:
    """Both tables, each replaced in one step; kernels that no layer launches any more are dropped."""
    table = []
    for layer, what in dict.fromkeys(cell[:2] for cell in ledger.codes):
        row = {"layer": layer, "pass": what}
        for arithmetic in ARITHMETICS:
            cell = (layer, what, arithmetic)
            row |= {arithmetic: " ".join(ledger.codes[cell]), f"{arithmetic} reason": ledger.reasons.get(cell, "")}
        table.append(row)
    used = {code for codes in ledger.codes.values() for code in codes}
    _replace(folder / f"launches-{chip}.csv", table)
    save_kernels(chip, {code: row for code, row in ledger.kernels.items() if code in used}, folder)


def every_call() -> Iterator[tuple[Cell, Op, tuple[Any, ...]]]:
    """(cell, operator, arguments) of all layers, passes and arithmetics."""
    for arithmetic, (dtype, _) in ARITHMETICS.items():
        for layer in LAYERS:
            for what, (op, args) in zip(PASSES, calls(layer, dtype), strict=True):
                yield (layer.name, what, arithmetic), op, args


def codes_of(call: tuple[Cell, Op, tuple[Any, ...]], chip: str) -> list[str]:
    """The codes of what a call launches, uncompiled."""
    (_, _, arithmetic), op, args = call
    with float32_precision(ARITHMETICS[arithmetic][1]):
        return [code.source for code in aot.compile_op(op, args, chip, compile=False)]


def row(code: Code, version: str) -> Row:
    """A code's figures as a row of text."""
    figures = code._asdict()
    known = {name: "" if figures[name] is None else str(figures[name]) for name in FIGURES}
    return {"code": code.source, "triton": version, "kernel": code.kernel, "options": code.options, **known}


def compile_new(chip: str, known: Iterable[str], new: bool = True, sample: int = 0, seed: int = 0) -> dict[str, Any]:
    """Every cell's codes, and, compiled here with this process's Triton, the rows of those that aren't known, if `new`
    ones are wanted, and of a seeded sample of the known ones."""
    import triton

    every = [(call, codes_of(call, chip)) for call in every_call()]
    known, codes = set(known), {code for _, codes in every for code in codes}
    wanted = set(random.Random(f"{seed} {chip}").sample(sorted(codes & known), min(sample, len(codes & known))))
    wanted |= codes - known if new else set()
    todo, left = [], set(wanted)
    for call, each in every:
        if left & set(each):
            todo.append(call)
            left -= set(each)
    rows: dict[str, Row] = {}
    for batch in (todo[i : i + 32] for i in range(0, len(todo), 32)):  # a disassembler takes long to start
        with aot.recording(chip) as compiled:
            for (_, _, arithmetic), op, args in batch:
                with float32_precision(ARITHMETICS[arithmetic][1]):
                    op.launch(*args)
        rows |= {code.source: row(code, triton.__version__) for code in compiled}
    return {
        "triton": triton.__version__,
        "cells": {"|".join(cell): codes for (cell, _, _), codes in every},
        "rows": [rows[code] for code in sorted(wanted)],
    }


def child(chip: str, **request: Any) -> subprocess.Popen[str]:
    """A process that does `compile_new`."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    code = "import json, sys, bench.ledger as l; print(json.dumps(l.compile_new(**json.load(sys.stdin))))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        text=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps({"chip": chip, **request}))
    process.stdin.close()
    return process


def result(process: subprocess.Popen[str]) -> tuple[str, dict[Cell, tuple[str, ...]], list[Row]]:
    """(version of Triton, codes by cell, rows) of a child process."""
    assert process.stdout
    text = process.stdout.read()
    if process.wait():
        raise RuntimeError(f"the compiling process ended with {process.returncode}")
    said = json.loads(text.splitlines()[-1])
    cells = {tuple(name.split("|")): tuple(codes) for name, codes in said["cells"].items()}
    return said["triton"], cells, said["rows"]


def worse(old: Row, new: Row) -> list[str]:
    """In which figures a kernel got worse than another, with both: "registers 90, was 88"."""

    def number(row: Row, name: str) -> float:
        return float(row[name] or 0)

    found = [name for name in HIGHER if number(new, name) > number(old, name)]
    found += [name for name in LOWER if number(new, name) < number(old, name)]
    # As many products by other means are not worse in number; fewer boxes or no matrix instructions are.
    found += [name for name in ("tma", "loop_matrix") if number(old, name) and not number(new, name)]
    return [f"{name} {new[name]}, was {old[name]}" for name in found]


def compare(ledger: Ledger, cells: dict[Cell, tuple[str, ...]], rows: list[Row]) -> tuple[dict[Cell, str], list[str]]:
    """What got worse, by cell, where a launch's code is another than the ledger's; and which of the same codes compiled
    to other figures than the ledger's. Figures of another Triton say nothing."""
    kernels = {row["code"]: row for row in rows}
    other = [
        f"{code}, {row['kernel']}: {name} {row[name]}, the ledger has {ledger.kernels[code][name]}"
        for code, row in kernels.items()
        if code in ledger.kernels and ledger.kernels[code]["triton"] == row["triton"]
        for name in FIGURES
        if row[name] != ledger.kernels[code][name]
    ]
    found = {}
    for cell, codes in cells.items():
        before = ledger.codes.get(cell, ())
        for old, new in zip(before, codes, strict=False):
            was, now = ledger.kernels.get(old), kernels.get(new) or ledger.kernels.get(new)
            if old != new and was and now and was["triton"] == now["triton"] and (got := worse(was, now)):
                found[cell] = "; ".join(got)
    return found, other


# Matrix instructions: of a warpgroup, of a whole block, AMD's; elsewhere, and in small gathered tiles, of a warp.
INSTRUCTIONS = {"sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma"}


def unclean(chip: str, arithmetic: str, row: Row) -> str:
    """What is wrong with a kernel, whatever the Triton: "" if it is clean. In bf16, fp16 and TF32 nothing spills, and a
    product's main loop has the chip's matrix instructions; a depthwise convolution loads 16 bytes at a time."""
    if arithmetic == "fp32" or row["kernel"] == "sum_kernel":
        return ""
    if row["spills"] != "0":
        return f"{row['spills']} spills"
    if row["kernel"].startswith("direct"):
        return "" if int(row["load_bytes"]) >= 16 else f"loads of {row['load_bytes']} bytes"
    best = INSTRUCTIONS.get(chip, "HMMA")
    if not int(row["loop_matrix"]) or not row["instruction"].startswith(
        best if "tma" in row["kernel"] else (best, "HMMA")
    ):
        return f"no matrix instructions in its loop but {row['instruction'] or 'none'}"
    return ""

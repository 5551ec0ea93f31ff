"""Runs the benchmarks and writes raw JSON and a table: python -m bench.run --out FOLDER [--minutes M] [--only WORD].

With --resume it goes on with what an earlier run in that folder left out, so that a long list can be run in parts.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from .measure import ceilings, clock_for, measure, memory_returned, prepare
from .problems import COMPILED, PARTS, first, problems
from .report import environment, means, table

Report = dict[str, Any]


def write(report: Report, out: Path, part: str = "") -> None:
    """Both files, each replaced in one step: a run that is stopped leaves what it had."""
    report["means"] = means(report["rows"])
    files = (f"{part or 'bench'}.json", f"{part}.md" if part else "results.md")
    for name, text in zip(files, (json.dumps(report, indent=1) + "\n", table(report)), strict=True):
        (out / f"{name}.part").write_text(text)
        (out / f"{name}.part").replace(out / name)


def earlier(out: Path, where: dict[str, str], part: str = "") -> Report | None:
    """The run that this folder holds; errors: ValueError if it had another chip, commit or version of anything."""
    kept = out / f"{part or 'bench'}.json"
    if not kept.exists():
        return None
    found: Report = json.loads(kept.read_text())
    then = found["environment"]
    other = [name for name in sorted({*then, *where} - {"date"}) if then.get(name) != where.get(name)]
    if other:
        raise ValueError(f"the run in {out} can't be resumed, for it had another {', '.join(other)}")
    return found | {"environment": where}


def planned(
    names: list[str], compiled: tuple[str, ...], rows: list[dict[str, Any]], eager: bool = True
) -> dict[str, tuple[str, bool, float]]:
    """What is to be done that these rows haven't, in order: problem, whether with torch.compile, and the part of the
    time that must be left to begin it; without `eager` torch.compile's alone."""
    tried = {row["problem"]: row["torch.compile tried"] for row in rows}
    second = {f"{name}, with torch.compile": name for name in compiled if name in names and not tried.get(name)}
    spare = 0.35 if second else 0.1
    before = {name: (name, False, spare) for name in names if eager and name not in tried}
    return before | {what: (name, True, 0.1) for what, name in second.items()}


def bench(
    out: Path,
    minutes: float,
    only: str = "",
    rounds: int = 30,
    batch: int = 128,
    compiled: tuple[str, ...] = COMPILED,
    resume: bool = False,
    part: str = "",
    only_first: bool = False,
    eager: bool = True,
) -> Report:
    """Measures what fits into the time; both files are there after every row. torch.compile comes second, since it
    takes long and may fail: its rows replace those without it. A resumed run keeps its rows and its ceilings.
    `only_first`: of `problems.first` alone; without `eager`: torch.compile's rows alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.perf_counter() + 60 * minutes
    prepare(device)
    out.mkdir(parents=True, exist_ok=True)
    clock, where = clock_for(device), environment(device)
    report = (earlier(out, where, part) if resume else None) or {
        "environment": where, "ceilings": ceilings(clock, device), "rows": [], "failed": {}, "left out": [],
    }  # fmt: skip
    limits = report["ceilings"]
    every = problems(device, batch, part)
    chosen = {name: make for name, make in every.items() if only in name and (first(name) or not only_first)}
    passes = planned(list(chosen), compiled, report["rows"], eager)
    report["left out"] = [what for what in report["left out"] if what.partition(":")[0] not in passes]
    write(report, out, part)
    for what, (name, compile, spare) in passes.items():
        if time.perf_counter() > end - spare * 60 * minutes:
            report["left out"].append(what)
            continue
        torch.manual_seed(0)
        begun = time.perf_counter()
        report["failed"].pop(what, None)
        try:
            with memory_returned(device):
                row = measure(name, chosen[name](), clock, limits, rounds, compile=compile)
        except torch.OutOfMemoryError:
            report["left out"].append(f"{what}: more than this GPU's memory")
        except Exception as reason:  # one problem's failure must not cost the others, and is in the report
            report["failed"][what] = f"{type(reason).__name__}: {reason}"[:1000]
        else:
            row["seconds"], row["torch.compile tried"] = time.perf_counter() - begun, compile
            keep = [r for r in report["rows"] if r["problem"] != name]
            place = next((i for i, r in enumerate(report["rows"]) if r["problem"] == name), len(keep))
            report["rows"] = [*keep[:place], row, *keep[place:]]
            report["left out"] = [left for left in report["left out"] if left != name]
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", flush=True)
        write(report, out, part)
    write(report, out, part)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and results.md")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", default=[""], help="of the problems; each has its own files"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="of the demo's shapes, without a GPU")
    parser.add_argument("--resume", action="store_true", help="go on with the run that the folder holds")
    parser.add_argument("--first", action="store_true", help="only the problems that say the most")
    parser.add_argument("--compile", choices=("also", "no", "only"), default="also", help="rows with torch.compile")
    options = parser.parse_args()
    end, well = time.perf_counter() + 60 * options.minutes, True
    for part in options.part:
        try:
            report = bench(
                options.out, (end - time.perf_counter()) / 60, options.only, options.rounds, options.batch,
                compiled=() if options.compile == "no" else COMPILED, resume=options.resume, part=part,
                only_first=options.first, eager=options.compile != "only",
            )  # fmt: skip
        except ValueError as reason:
            parser.error(str(reason))
        print(table(report))
        print(part, *(f"{what}: {len(report[what])};" for what in ("rows", "failed", "left out")))
        well = well and bool(report["rows"]) and not report["failed"]
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs the benchmarks and writes raw JSON and a table: python -m bench.run --out FOLDER [--minutes M] [--only WORD]."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from .measure import ceilings, clock_for, measure, memory_returned, prepare
from .problems import COMPILED, problems
from .report import environment, table

Report = dict[str, Any]


def write(report: Report, out: Path) -> None:
    """Both files, each replaced in one step: a run that is stopped leaves what it had."""
    for name, text in (("bench.json", json.dumps(report, indent=1) + "\n"), ("results.md", table(report))):
        (out / f"{name}.part").write_text(text)
        (out / f"{name}.part").replace(out / name)


def bench(
    out: Path, minutes: float, only: str = "", rounds: int = 30, batch: int = 128, compiled: tuple[str, ...] = COMPILED
) -> Report:
    """Measures what fits into the time; both files are there after every row. torch.compile comes second, since it
    takes long and may fail: its rows replace those without it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.perf_counter() + 60 * minutes
    prepare(device)
    out.mkdir(parents=True, exist_ok=True)
    clock = clock_for(device)
    limits = ceilings(clock, device)
    report: Report = {"environment": environment(device), "ceilings": limits, "rows": [], "failed": {}, "left out": []}
    write(report, out)
    chosen = {name: make for name, make in problems(device, batch).items() if only in name}
    passes = [(name, False, 0.35) for name in chosen] + [(name, True, 0.1) for name in chosen if name in compiled]
    for name, compile, spare in passes:
        what = f"{name}, with torch.compile" if compile else name
        if time.perf_counter() > end - spare * 60 * minutes:
            report["left out"].append(what)
            continue
        torch.manual_seed(0)
        begun = time.perf_counter()
        try:
            with memory_returned(device):
                row = measure(name, chosen[name](), clock, limits, rounds, compile=compile)
        except Exception as reason:  # one problem's failure must not cost the others, and is in the report
            report["failed"][what] = f"{type(reason).__name__}: {reason}"[:1000]
        else:
            row["seconds"] = time.perf_counter() - begun
            keep = [r for r in report["rows"] if r["problem"] != name]
            place = next((i for i, r in enumerate(report["rows"]) if r["problem"] == name), len(keep))
            report["rows"] = [*keep[:place], row, *keep[place:]]
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", flush=True)
        write(report, out)
    write(report, out)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and results.md")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="of the demo's shapes, without a GPU")
    options = parser.parse_args()
    report = bench(options.out, options.minutes, options.only, options.rounds, options.batch)
    print(table(report))
    return 1 if report["failed"] or not report["rows"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs the benchmarks and writes raw JSON and a table: python -m bench.run --out FOLDER [--minutes M] [--only WORD]."""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the interpreter's small steps are slower on several threads

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from .measure import ceilings, environment, measure, table
from .problems import problems

# torch.compile tunes each of its kernels for tens of seconds: only these are worth the wait.
COMPILED = ("conv2d_relu resnet50 3x3 64 bfloat16", "max_pool2d vgg16 2x2 bfloat16", "training step")


def bench(out: Path, minutes: float, only: str, rounds: int) -> dict:
    """Measures what fits into the time; the report is on disk after every row."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    end = time.perf_counter() + 60 * minutes
    report = {"environment": environment(device), "ceilings": ceilings(device), "rows": []}
    out.mkdir(parents=True, exist_ok=True)
    for label, make in problems(device).items():
        if only not in label:
            continue
        if time.perf_counter() > end:
            report.setdefault("left out for want of time", []).append(label)
            continue
        torch.manual_seed(0)
        tuned = device.type == "cuda" and label.startswith(COMPILED)
        try:
            row = measure(make(), device, rounds, compile=tuned)
        except Exception as error:  # one problem's failure must not cost the others, and is in the report
            report.setdefault("failed", {})[label] = f"{type(error).__name__}: {error}"
            continue
        report["rows"].append({"label": label, **row})
        (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "results.md").write_text(table(report))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for bench.json and results.md")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    report = bench(options.out, options.minutes, options.only, options.rounds)
    print(table(report))
    for label, reason in report.get("failed", {}).items():
        print(f"failed: {label}: {reason}")
    return 1 if report.get("failed") else 0


if __name__ == "__main__":
    raise SystemExit(main())

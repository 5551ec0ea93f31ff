"""On a machine with a CUDA GPU: native tests, memory checker, benchmarks, into one folder: python -m bench.gpu."""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from . import problems

ROOT = Path(__file__).parents[1]
TESTS = [
    f"tests/test_{name}.py" for name in ("ops", "plan", "gradients", "tiles", "semantics", "nn", "warmup", "ecosystem")
]
ONCE = ("host", "memory")  # benchmarks that take seconds
NEEDS = {"tests/test_cli.py": ("typer", "rich", "sklearn", "safetensors", "PIL")}
# In this order, each with its share of the time that is left; tune, a search of tiles, runs only if it is named.
PARTS = {
    "tests": 0.3, "sanitizer": 0.15, "host": 0.1, "memory": 0.1, "model": 0.35, "conv": 0.5, "block": 0.3, "pool": 0.4,
    "local": 0.4, "linear": 1.0,
}  # fmt: skip


def stop(process: subprocess.Popen) -> None:
    """Ends a part and all it started: first as Ctrl-C does, so that it can say what it has."""
    for number, seconds in ((signal.SIGINT, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def part(name: str, command: list[str], out: Path, minutes: float, **variables: str) -> str:
    """Runs a part with its output in a log, and says how it ended; a part out of time leaves what it had."""
    print(f"{name}: {' '.join(command)}", flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONUNBUFFERED": "1", **variables}
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment,
            start_new_session=True, preexec_fn=_heed_interrupts,
        )  # fmt: skip
        try:
            ended = f"exit {process.wait(60 * minutes)}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {minutes:.2g} minutes"
        finally:
            stop(process)
    lines = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()
    last = next((line for line in reversed(lines) if line.strip("= !|")), "no output")
    ended = f"{ended}; {last.strip('= !')[:200]}" if name not in problems.PARTS else ended
    print(f"{name}: {ended}", flush=True)
    return ended


def commands(out: Path, minutes: float, resume: bool = False) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What each part runs, and with which environment variables."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    extra = [file for file, modules in NEEDS.items() if all(map(importlib.util.find_spec, modules))]
    native = [*pytest, "-q", "-n", str(min(8, os.cpu_count() or 1)), *TESTS, *extra, "--cover", "0.3"]
    # Every operator once, by its name in the log; PyTorch's cache would hide what is out of bounds within its blocks.
    checked = [*pytest, "-v", "tests/test_ops.py", "-k", "same_bits_twice"]
    memcheck = [shutil.which("compute-sanitizer") or "", "--tool", "memcheck", "--error-exitcode", "1", *checked]
    bench = [sys.executable, "-m", "bench.run", "--out", str(out), "--minutes", f"{minutes:.3g}"]
    again = ["--resume"] if resume else []
    single = {name: [sys.executable, "-m", f"bench.{name}", "--out", str(out / f"{name}.json")] for name in ONCE}
    tune = [sys.executable, "-m", "bench.tune", "--out", str(out), "--minutes", f"{minutes:.3g}"]
    return {
        "tests": (native, {}),
        "sanitizer": (memcheck, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
        **{name: ([*bench, "--part", name, *again], {}) for name in problems.PARTS},
        **{name: (command, {}) for name, command in single.items()},
        "tune": ([*tune, *again], {}),
    }


def run_parts(chosen: tuple[str, ...], out: Path, minutes: float, resume: bool = False) -> dict[str, str]:
    """How each part ended, each in its share of the time that is left, the checker in a minute at most."""
    end, ended = time.monotonic() + 60 * minutes, {}
    for name in chosen:
        left = (end - time.monotonic()) / 60
        share = left if name == chosen[-1] else left * PARTS[name]
        limit = min(share, 1.0) if name == "sanitizer" else share
        command, variables = commands(out, 0.85 * limit, resume)[name]
        if command[0]:
            ended[name] = part(name, command, out, limit, **variables)
        else:
            ended[name] = "skipped: no compute-sanitizer on the PATH"
            print(f"{name}: {ended[name]}", flush=True)
    return ended


def summary(ended: dict[str, str], out: Path) -> None:
    """Adds how the parts ended, of earlier calls too, to the table."""
    kept = out / "parts.json"
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    every = json.loads(kept.read_text()) if kept.exists() else {}
    every |= {name: f"{how} ({today})" for name, how in ended.items()}
    kept.write_text(json.dumps(every, indent=1) + "\n")
    results = out / "results.md"
    text = results.read_text().split("\n## Parts\n")[0] if results.exists() else "# Results\n"
    results.write_text(text + "\n## Parts\n\n" + "".join(f"- {name}: {how}\n" for name, how in every.items()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "tune"], help="one part alone; tune, a search of tiles, only so")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together")
    parser.add_argument("--resume", action="store_true", help="the benchmarks go on with the folder's earlier run")
    parser.add_argument("--out", type=Path, help="folder; bench/results/<gpu> unless given")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no CUDA GPU is here; `make bench` times the interpreter instead", file=sys.stderr)
        return 2
    try:
        importlib.import_module("cnn_triton.kernels")
    except ImportError as reason:
        print(f"error: {reason}; first: pip install --no-deps --no-build-isolation -e .", file=sys.stderr)
        return 2
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = (options.out or ROOT / "bench" / "results" / gpu).resolve()
    out.mkdir(parents=True, exist_ok=True)
    ended = run_parts((options.part,) if options.part else tuple(PARTS), out, options.minutes, options.resume)
    summary(ended, out)
    print(f"written to {out}")
    return 0 if all(how.startswith(("exit 0", "skipped")) for how in ended.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

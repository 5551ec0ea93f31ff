"""On a machine with a CUDA GPU: tests and benchmarks, most valuable first, into one folder and archive: make gpu.

Nine minutes in all, each step in its own limit and with its own log; rows are on disk as they come, and the archive
after every step, so that a run that is stopped leaves what it had. --rehearse runs the same steps small and without a
GPU, in Triton's interpreter.
"""

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
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import prepared, problems

ROOT = Path(__file__).parents[1]
MINUTES = 9
CORES = os.cpu_count() or 1
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        *("ops", "plan", "gradients", "tiles", "strips", "tile_picks", "semantics", "layouts", "dispatch", "nn"),
        *("locally_connected", "capture", "capture_apart", "capture_calls", "warmup"),
        *("ecosystem", "torch_func", "torch_compile"),
    )
]
if all(map(importlib.util.find_spec, ("typer", "rich", "sklearn", "safetensors", "PIL"))):
    TESTS.append("tests/test_cli.py")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v")
SANITIZER = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1")
Command = Callable[[Path, float], list[str]]  # of the results' folder, and the minutes there are


class Step(NamedTuple):
    """What runs, as a command, with these variables in its environment; `small`: words that make it a rehearsal's.
    seconds: that it may take of MINUTES in all; of what runs only where it is named, 0: it gets all of them."""

    seconds: int
    command: Command
    small: tuple[str, ...] = ()
    variables: dict[str, str] = {}  # noqa: RUF012


def _words(*words: str) -> Command:
    return lambda out, minutes: [*words]


def _timed(module: str, *words: str) -> Command:
    """A benchmark that keeps to its minutes."""
    return lambda out, minutes: [
        *(sys.executable, "-m", f"bench.{module}", "--out", str(out), "--minutes", f"{minutes:.3g}"), *words,
    ]  # fmt: skip


def _brief(module: str) -> Command:
    """One that takes seconds."""
    return lambda out, minutes: [sys.executable, "-m", f"bench.{module}", "--out", str(out / f"{module}.json")]


_SMALL = ("--batch", "4", "--rounds", "1")
_FIRST = ("--first", "--compile", "no")
_TINY = ("--only", "fc 84-10", "--chip", "sm_90", "--batch", "1")
_FEW = ("--most", "4", "-n", "0", "-k", "max_pool2d and not grad")
# Every operator, by its name in the log: is it right, the same each time, and as PyTorch's own checks want it?
_ONCE = ("tests/test_ops.py", "-k", "opcheck or same_bits_twice or tf32", "-n", str(CORES))
_CHECKED = ("tests/test_ops.py", "-k", "same_bits_twice and (max_pool2d or conv2d or linear) and not grad")
STEPS = {
    "operators": Step(45, _words(*PYTEST, *_ONCE), _FEW),
    "host": Step(15, _brief("host"), ("--rounds", "2")),
    "headline": Step(150, _timed("run", "--part", "conv", *_FIRST), _SMALL),
    "tiles": Step(80, _timed("tune", "--first"), _TINY),
    "tests": Step(85, _words(*PYTEST, *TESTS, "-n", str(CORES), "--cover", "0.1"), _FEW),
    "networks": Step(40, _timed("run", "--part", "model", *_FIRST), _SMALL),
    "others": Step(45, _timed("run", "--part", "pool", "block", "local", *_FIRST), _SMALL),
    "compile": Step(45, _timed("run", "--part", "conv", "--first", "--compile", "only", "--resume"), _SMALL),
    # PyTorch's cache would hide what is out of bounds within its blocks.
    "sanitizer": Step(25, _words(*SANITIZER, *PYTEST, *_CHECKED), _FEW, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
}
ALONE = {part: Step(0, _timed("run", "--part", part), _SMALL) for part in problems.PARTS} | {
    "memory": Step(0, _brief("memory"), ("--batch", "1")),
    "tune": Step(0, _timed("tune"), _TINY),
}


def stop(process: subprocess.Popen) -> None:
    """Ends a step and all it started: first as Ctrl-C does, so that it can say what it has."""
    for number, seconds in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
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


def run(name: str, command: list[str], out: Path, seconds: float, **variables: str) -> str:
    """Runs a step with its output in a log, and says how it ended; one out of time leaves what it had."""
    print(f"{name}: {' '.join(command)}", flush=True)
    if shutil.which(command[0]) is None:
        return f"skipped: no {command[0]} on the PATH"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONUNBUFFERED": "1", **variables}
    begun, kept = time.monotonic(), out / f"{name}.log"
    with kept.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment,
            start_new_session=True, preexec_fn=_heed_interrupts,
        )  # fmt: skip
        try:
            ended = f"exit {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = "stopped, out of time"
        finally:
            stop(process)
    lines = kept.read_text(errors="replace").strip().splitlines()
    last = next((line.strip("= !") for line in reversed(lines) if line.strip("= !|-")), "no output")
    return f"{ended}, {time.monotonic() - begun:.0f} s; {last[:200]}"


def chosen(part: str | None, minutes: float) -> dict[str, tuple[Step, float]]:
    """The steps of a run, with the seconds that each may take."""
    if part is None:
        return {name: (step, step.seconds * minutes / MINUTES) for name, step in STEPS.items()}
    return {part: ((ALONE | STEPS)[part], 60 * minutes)}


def summary(ended: dict[str, str], out: Path) -> None:
    """Adds how the steps ended, of earlier calls too, to the table."""
    kept = out / "parts.json"
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    every = json.loads(kept.read_text()) if kept.exists() else {}
    every |= {name: f"{how} ({today})" for name, how in ended.items()}
    kept.write_text(json.dumps(every, indent=1) + "\n")
    results = out / "results.md"
    text = results.read_text().split("\n## Parts\n")[0] if results.exists() else "# Results\n"
    results.write_text(text + "\n## Parts\n\n" + "".join(f"- {name}: {how}\n" for name, how in every.items()))


def pack(out: Path, archive: Path) -> None:
    """The folder as one file, replaced in one step."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.part")
    with tarfile.open(part, "w:gz") as file:
        file.add(out, arcname=out.name)
    part.replace(archive)


def run_steps(
    steps: dict[str, tuple[Step, float]], out: Path, archive: Path, end: float, small: bool, *more: str
) -> bool:
    """Runs the steps until `end`; the archive has each as soon as it ended. Did all end well?"""
    well = True
    for name, (step, seconds) in steps.items():
        seconds = max(1.0, min(seconds, end - time.monotonic()))
        command = [*step.command(out, 0.85 * seconds / 60), *(step.small if small else ()), *more]
        how = "interrupted"
        try:
            how = run(name, command, out, seconds, **step.variables)
        finally:
            print(f"{name}: {how}", flush=True)
            summary({name: how}, out)
            pack(out, archive)
        well = well and how.startswith(("exit 0", "skipped"))
    return well


def _end(number: int, frame: Any) -> None:
    """As an interrupt does."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*STEPS, *ALONE], help="one step, or one part of the benchmarks, alone")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for all steps together; {MINUTES} unless given"
    )
    parser.add_argument("--resume", action="store_true", help="with --part, go on with the folder's earlier run")
    parser.add_argument("--rehearse", action="store_true", help="run the steps small, without a GPU")
    parser.add_argument("--out", type=Path, help="folder; bench/results/<gpu> unless given")
    parser.add_argument("--archive", type=Path, help="file; build/gpu-<gpu>.tar.gz unless given")
    options = parser.parse_args(arguments)
    if options.resume and not options.part:
        parser.error("--resume needs a --part")
    if not torch.cuda.is_available() and not options.rehearse:
        print(
            "error: no CUDA GPU is here; `make gpu ARGS=--rehearse` tries the command, `make bench` times the "
            "interpreter", file=sys.stderr,
        )  # fmt: skip
        return 2
    begun = time.monotonic()
    gpu = (
        "rehearsal" if options.rehearse else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    )
    folder = "build" if options.rehearse else "bench/results"
    out = (options.out or ROOT / folder / gpu).resolve()
    archive = (options.archive or ROOT / "build" / f"gpu-{gpu}.tar.gz").resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(prepared.unpack(), flush=True)
    before = prepared.count()
    os.environ["TRITON_CACHE_DIR"] = str(prepared.KERNELS)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        well = run_steps(
            chosen(options.part, options.minutes), out, archive, begun + 60 * options.minutes - 5, options.rehearse,
            *(["--resume"] if options.resume else []),
        )  # fmt: skip
    except KeyboardInterrupt:
        well = False
    new = prepared.count() - before
    print(f"{time.monotonic() - begun:.0f} s; beside {before} prepared kernels {new} were compiled")
    print(f"written to {out} and {archive}")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())

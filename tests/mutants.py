"""Are the tests strong? Puts each fault of faults.py into a copy of the code and runs the tests of its file.

    make mutants                           every fault; which test found it, and which faults none did
    make mutants ARGS="--only 'tap order'" those whose description or file has these words

A fault is found if a test fails that passes without it; first some of the tests that touch the file are run, then all
of them, as `make check` has them. A process that crashes finds it too; one that doesn't end in time does not.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .faults import FAULTS, Fault
from .processes import CRASHED
from .selection import homes_of

ROOT = Path(__file__).parents[1]
SOME = 100  # tests that are run first
LIMIT = 1800  # seconds that the tests of one fault may take
_COPIED = (
    "kernels",
    "cnn_triton",
    "tests",
    "bench",
    "examples",
    "docs",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "README.md",
    "constraints.txt",
    "Makefile",
)


class Outcome(NamedTuple):
    """What became of a fault: the test that found it, or "" if none did; seconds."""

    fault: Fault
    found_by: str
    seconds: float


def copy(folder: Path) -> None:
    """Fills the folder with the repository's code, so that it runs by itself."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")


class _First:
    """A plugin that notes the first test that fails."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (collection)"


def run_tests(folder: Path, answer: Path, *options: str) -> None:
    """Runs tests of the copy up to the first that fails, in a fork of this process, which has imported PyTorch; the
    answer's text is that test's name."""
    import pytest

    signal.alarm(LIMIT)
    os.chdir(folder)
    sys.path[:] = [str(folder), str(folder / "tests"), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    sys.dont_write_bytecode = True  # of files that change within a second
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "PYTHONDONTWRITEBYTECODE": "1"}
    log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    first = _First()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options], plugins=[first])
    answer.write_text(first.failed or ("" if code in (0, 5) else f"pytest's exit code {int(code)}"))


def in_a_fork(*args) -> int:
    """The process that runs tests."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run_tests(*args)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return process


def found(folder: Path, fault: Fault, answer: Path) -> str:
    """The test that finds the fault, "" if none does."""
    file = folder / fault.file
    right = file.read_text()
    assert right.count(fault.before) == 1, f"{fault.file} has not once: {fault.before}"
    file.write_text(right.replace(fault.before, fault.after))
    files = [f"tests/{name}.py" for name in homes_of(fault.file)]
    try:
        for options in ((f"--most={SOME}",), ()):
            answer.unlink(missing_ok=True)
            process = in_a_fork(folder, answer, *files, f"--touching={fault.file}", *options)
            _, status = os.waitpid(process, 0)
            if not answer.exists():
                code = os.waitstatus_to_exitcode(status)
                return f"a crash, {CRASHED[code]}" if code in CRASHED else ""  # out of time or memory, nothing is found
            if by := answer.read_text():
                return by
        return ""
    finally:
        file.write_text(right)


def work(faults: list[tuple[int, Fault]], folder: Path, turn: int, workers: int) -> None:
    """Every so many of the faults, in a copy of its own; outcomes are written as they come."""
    mine = folder / f"copy-{turn}"
    mine.mkdir()
    copy(mine)
    for number, fault in faults[turn::workers]:
        start = time.monotonic()
        by = found(mine, fault, folder / f"answer-{number}")
        part = folder / f"outcome-{number}.part"
        part.write_text(f"{time.monotonic() - start:.1f}\n{by}")
        part.rename(folder / f"outcome-{number}")


def outcomes(faults: list[tuple[int, Fault]], folder: Path, workers: int) -> Iterator[Outcome]:
    """Each fault's outcome, as they come."""
    import torch._dynamo  # noqa: F401 - every fork has it then

    processes = set()
    for turn in range(workers):
        process = os.fork()
        if process == 0:
            with contextlib.suppress(KeyboardInterrupt):
                work(faults, folder, turn, workers)
            os._exit(0)
        processes.add(process)
    left = dict(faults)
    while left:
        ended = {process for process in processes if os.waitpid(process, os.WNOHANG)[0]}
        for number in [number for number in left if (folder / f"outcome-{number}").exists()]:
            seconds, _, by = (folder / f"outcome-{number}").read_text().partition("\n")
            yield Outcome(left.pop(number), by, float(seconds))
        processes -= ended
        if left and not processes:
            raise RuntimeError(f"the workers ended before their last fault; see {folder}")
        time.sleep(0.2)


def unfair(names: set[str]) -> str:
    """What the tests that found faults print if they fail without any."""
    names = {name for name in names if "::" in name}
    if not names:
        return ""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *sorted(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words that a fault's description or file must have")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    faults = [(i, fault) for i, fault in enumerate(FAULTS) if options.only in f"{fault.what} {fault.file}"]
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    survivors, finders = [], set()
    for fault, by, seconds in outcomes(faults, folder, max(1, min(options.workers, len(faults)))):
        print(f"{'found' if by else 'SURVIVED':9}{seconds:6.1f} s  {fault.file}: {fault.what}  {by}", flush=True)
        survivors += [] if by else [fault]
        finders.add(by)
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults found")
    for fault in survivors:
        print(f"survived: {fault.file}: {fault.what}\n  - {fault.before}\n  + {fault.after}")
    if said := unfair(finders):
        print(f"tests that found faults fail without any:\n{said}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())

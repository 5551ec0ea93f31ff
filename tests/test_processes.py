"""Crashes are failures: of a child process that a test started, and of a worker at its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILDREN = """
import pytest, subprocess, sys
@pytest.mark.parametrize("end", ["_exit(3)", "abort()", "kill(os.getpid(), 11)"])
def test_passes(end):
    code = f"import os; print('done', flush=True); os.{end}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.stdout == b"done\\n"
"""
WORKER = """
import atexit, os, time
def test_passes():
    atexit.register(lambda: {end})
"""


def outcome(tmp_path, text, *options):
    """The exit code and the output of pytest on a file, with this folder's conftest.py."""
    (tmp_path / "conftest.py").write_text((Path(__file__).with_name("conftest.py")).read_text())
    (tmp_path / "test_one.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}, cwd=tmp_path,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.cover
def test_child(tmp_path):
    ended, said = outcome(tmp_path, CHILDREN)
    assert ended == 1, said
    assert "3 passed, 2 errors" in said
    assert "SIGABRT in" in said
    assert "SIGSEGV in" in said


@pytest.mark.cover
def test_worker(tmp_path):
    ended, said = outcome(tmp_path, WORKER.format(end="os.kill(os.getpid(), 11)"), "-n", "1")
    assert ended == 1, said
    assert "1 passed" in said
    assert "worker gw0 ended with SIGSEGV" in said


def test_worker_ends_late(tmp_path):
    ended, said = outcome(tmp_path, WORKER.format(end="time.sleep(11)"), "-n", "1")
    assert ended == 0, said
    assert "1 passed" in said

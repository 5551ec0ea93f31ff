"""Compiles the engine once: engine/*.c, and the functions of the table, into a library named by their hash."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .decoder import SPECIAL
from .table import TABLE, source

__all__ = ["library"]

_ENGINE = Path(__file__).parent / "engine"
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fwrapv", "-fPIC", "-w")
_PARTS = 4  # files that the table's functions are spread over, to be compiled at once


def _compiler() -> str:
    """Return the C compiler. Errors: RuntimeError if there is none."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise RuntimeError(f"the simulator needs a C compiler, and none of {names} is here; install gcc, or set CC")
    return found


def _sources() -> dict[str, str]:
    """Return the engine's files by name, with what is generated from the table."""
    files = {path.name: path.read_text() for path in sorted(_ENGINE.iterdir()) if path.suffix in (".c", ".h")}
    functions = [source(i, row) for i, row in enumerate(TABLE.values())]
    for part in range(_PARTS):
        files[f"table{part}.c"] = "\n".join(['#include "engine.h"', *functions[part::_PARTS]])
    names = [*(f"t{i}" for i in range(len(functions))), *SPECIAL]
    files["declared.inc"] = "\n".join(f"HANDLER({name});" for name in names)
    files["handlers.inc"] = ",\n".join(f"h_{name}" for name in names)
    return files


@functools.cache
def library() -> ctypes.CDLL:
    """Return the engine. Errors: RuntimeError without a C compiler, or with what the compiler said."""
    compiler, files = _compiler(), _sources()
    key = hashlib.sha256("\n".join((compiler, *_FLAGS, *files, *files.values())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnn_triton"
    path = folder / f"simulator-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, files, Path(scratch))
            os.replace(Path(scratch) / "simulator.so", path)
    found = ctypes.CDLL(str(path))
    found.engine_size.restype = ctypes.c_size_t
    return found


def _compile(compiler: str, files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)

    def run(*arguments: str) -> None:
        done = subprocess.run([compiler, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} {' '.join(arguments)}: {done.stderr[:4000]}")

    units = [name for name in files if name.endswith(".c")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name: run(*_FLAGS, "-c", name), units))
    run("-shared", *(name.replace(".c", ".o") for name in units), "-lm", "-o", "simulator.so")

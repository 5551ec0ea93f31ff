"""Kernels that were compiled for a GPU before it was at hand: their cache, the file that it travels in.

Triton's cache holds absolute paths, so it lies at the same path on both machines (CNN_TRITON_PREPARED, if it is set).
Triton finds a kernel there by a hash of its own files, of which the wheels for two versions of Python differ in one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

from . import report

CACHE = Path(os.environ.get("CNN_TRITON_PREPARED", "/tmp/cnn_triton-prepared"))
KERNELS = CACHE / "kernels"  # what TRITON_CACHE_DIR is to be
ABOUT = CACHE / "about.json"
PACKED = report.ROOT / "build" / "gpu-cache.tar.xz"


def key() -> str:
    """A hash of Triton's, by which it finds what it compiled."""
    return hashlib.sha256(triton.runtime.cache.triton_key().encode()).hexdigest()[:16]


@contextlib.contextmanager
def as_if(wheel: Path | None) -> Iterator[None]:
    """Within, Triton takes the files of another build of its version, an unpacked wheel, for its own in that hash."""
    cache = triton.runtime.cache
    before = cache.__file__
    cache.triton_key.cache_clear()
    if wheel is not None:
        cache.__file__ = str(wheel.resolve() / "triton" / "runtime" / "cache.py")
    try:
        yield
    finally:
        cache.__file__ = before
        cache.triton_key.cache_clear()


def count() -> int:
    """How many kernels the cache has."""
    return sum(1 for kind in ("cubin", "hsaco") for _ in KERNELS.glob(f"*/*.{kind}"))


def about() -> dict[str, Any]:
    """What the cache is of: sources, chip, version and key of Triton; nothing without one."""
    return json.loads(ABOUT.read_text()) if ABOUT.exists() else {}


def begin(**found: Any) -> None:
    """Makes the cache one of these; its kernels stay if they are of the same sources."""
    if about().get("sources") != found["sources"]:
        shutil.rmtree(CACHE, ignore_errors=True)
    KERNELS.mkdir(parents=True, exist_ok=True)
    ABOUT.write_text(json.dumps(found, indent=1) + "\n")


def pack() -> None:
    """The cache as one file."""
    PACKED.parent.mkdir(exist_ok=True)
    part = PACKED.with_name(f"{PACKED.name}.part")
    with tarfile.open(part, "w:xz", preset=1) as file:
        for path in (ABOUT, KERNELS):
            file.add(path, arcname=path.name)
    part.replace(PACKED)


def unpack() -> str:
    """Puts packed kernels where they belong, and says what is there. None of other sources stay."""
    if PACKED.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        with tarfile.open(PACKED) as file:
            file.extractall(CACHE, filter="data")
    found = about()
    if not found:
        return "no kernels were prepared: make gpu-prepare"
    said = f"{count()} kernels were prepared for {found['chip']} by Triton {found['triton']}"
    if found["sources"] != report.sources():
        shutil.rmtree(CACHE)
        return f"{said}, but of other sources: not used"
    return said if found["key"] == key() else f"{said}, but not by this build of it: they will not be found"

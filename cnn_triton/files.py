"""A file written at once: at every moment it holds its old content or its new one, whole."""

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["UNFINISHED", "replace"]

UNFINISHED = ".unfinished-"  # how the name of a file begins until it is on the disk


def replace(path: Path, content: bytes) -> None:
    """Write a file under another name, and give it its own once it is on the disk. Errors: OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.chmod(name, 0o644)
        os.replace(name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise

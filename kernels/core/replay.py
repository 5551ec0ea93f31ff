"""Replay: a call like two before it repeats the steps of its launcher, which decides nothing anew.

key(call)       all that a launcher looks at: shapes, strides, dtypes, alignments, numbers
    new:            the launcher runs
    seen once:      it runs on a tape (tape.py), which notes its steps; they are a plan
    has a plan:     results and workspaces are allocated, compiled kernels launched on them      a few microseconds
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..base.lang import INTERPRETING, triton
from ..base.precision import switches
from .tape import Plan, Tape, context, current, lock, memory, on

__all__ = ["SEEN", "Plan", "Tape", "apart", "can_be_taped", "context", "deciding", "keep", "key", "note", "on"]

SEEN = "seen"  # kept for a key that one call had
_HERE = contextlib.nullcontext()
_MOST = 4096  # plans of an operator
_deciding = 0


def apart() -> Any:
    """Return a context manager that keeps steps off the tape if all calls alike share their result."""
    tape = current.get()
    return tape.paused() if tape else _HERE


def note(
    kernel: Any, device: torch.device, programs: int, args: tuple[Any, ...], constants: dict[str, Any], compiled: Any
) -> None:
    """Note a launch of `programs` programs of the kernel on the tape, if there is one."""
    tape = current.get()
    if tape:
        tape.launched(kernel, device, programs, args, constants, compiled)


@contextlib.contextmanager
def deciding() -> Iterator[None]:
    """Have launchers decide anew at every call within the context, for callers that change the basis of decisions."""
    global _deciding
    with lock:
        _deciding += 1
    try:
        yield
    finally:
        with lock:
            _deciding -= 1


def key(args: tuple[Any, ...]) -> Any:
    """Return all that a launcher may look at; None while launchers decide anew."""
    if _deciding:
        return None
    found: list[Any] = []
    for value in args:
        if isinstance(value, torch.Tensor):
            found += (value.shape, value.stride(), value.dtype, value.device, value.data_ptr() % 16)
        else:
            found.append(tuple(value) if isinstance(value, list) else value)
    if torch.float32 in found:
        found.append(switches())
    if not INTERPRETING:  # what also decides how Triton compiles: settings, and the driver, which tools replace
        knobs = triton.knobs
        found += (knobs.runtime.debug, knobs.compilation.instrumentation_mode, triton.runtime.driver.active)
    return tuple(found)


def keep(plans: dict[Any, Any], key: Any, plan: Plan | str) -> None:
    """Keep the plan of a key, or SEEN or NEVER; the oldest makes room where there are too many."""
    with lock:
        if len(plans) >= _MOST and key not in plans:
            del plans[next(iter(plans))]
        plans[key] = plan


def can_be_taped(args: tuple[Any, ...]) -> bool:
    """True if a tape can see what is done here, and tell the arguments apart."""
    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python):
        return False
    memories = [memory(value) for value in args if isinstance(value, torch.Tensor)]
    return len({*memories}) == len(memories)

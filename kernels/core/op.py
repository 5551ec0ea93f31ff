"""The Op record, which says once what an operator is, and `launch`, through which every kernel runs."""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..base.lang import require
from . import replay

_current: contextvars.ContextVar[str] = contextvars.ContextVar("operator", default="(none)")

launches: Counter[str] = Counter()
"""Number of kernel launches by operator, since the start or the last `launches.clear()`."""


class VmapRule(NamedTuple):
    """A way to make a batch of calls one call: the dimension that takes up the batch, of arguments by name, tensors and
    sizes alike, and of results; `groups` among them is multiplied. Right if no other tensor differs within the
    batch."""

    args: dict[str, int]
    results: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Registration, tests, compile checks and benchmarks follow from this record.

    schema:   arguments and results, in torch.library's language
    fake:     checks the arguments and allocates the results, uninitialised; also torch's shape function
    launcher: fills the results with Triton kernels: launcher(results, *arguments)
    aten:     the same results from PyTorch's own operators, in any layout; None for one that was not asked for
    flops, bytes: of one call with these arguments: arithmetic, and compulsory memory traffic
    vmap:     in order of preference
    product:  True for a product of matrices, whose flops torch's FlopCounterMode counts
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    launcher: Callable[..., None]
    aten: Callable[..., Any]
    flops: Callable[..., int]
    bytes: Callable[..., int]
    vmap: tuple[VmapRule, ...]
    product: bool = False
    plans: dict[Any, replay.Plan | str] = field(default_factory=dict, init=False, repr=False)

    def launch(self, *args: Any) -> Any:
        """Return the results, from our kernels, which count as this operator's. A call like two before it is replayed
        from a plan."""
        key = replay.key(args) if _notes.get() is None else None
        known = self.plans.get(key)
        if isinstance(known, replay.Plan):
            results = known(args)
            launches[self.name] += known.launches
            return results
        require()
        results = self.fake(*args)
        device = next(value for value in args if isinstance(value, torch.Tensor)).device
        token = _current.set(self.name)
        try:
            with replay.on(device):
                if known is not replay.SEEN or not replay.can_be_taped(args):
                    self.launcher(results, *args)
                    plan = replay.SEEN if known is None else known
                else:
                    single = isinstance(results, torch.Tensor)
                    with replay.Tape(args, (results,) if single else results) as tape:
                        self.launcher(results, *args)
                    plan = tape.plan(single)
            if key is not None and plan is not known:
                replay.keep(self.plans, key, plan)
        finally:
            _current.reset(token)
        return results

    def reference(self, *args: Any) -> Any:
        """Return the same results, strides included, from PyTorch's own operators on any device."""
        results, values = self.fake(*args), self.aten(*args)
        for result, value in zip(results, values, strict=True) if isinstance(results, tuple) else [(results, values)]:
            if value is not None:
                result.copy_(value)
        return results


class Launch(NamedTuple):
    """A launch that was noted: the kernel, where it would run, its arguments, and what it is compiled for."""

    kernel: Any
    device: torch.device
    args: tuple[Any, ...]
    constants: dict[str, Any]


_notes: contextvars.ContextVar[list[Launch] | None] = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[Launch]]:
    """Within, in this thread: launches are noted in the list, neither run nor counted."""
    notes: list[Launch] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


# Asked of Triton's compiler at every launch: a product and a sum may be one instruction, rounded once. That is its
# default up to 3.9; without it full float32 would take two.
ALWAYS = {"enable_fp_fusion": True}


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Launch `programs` programs of a kernel; none for an empty problem."""
    if programs == 0:
        return
    constants |= ALWAYS
    device = next(_tensors(args)).device
    notes = _notes.get()
    if notes is not None:
        notes.append(Launch(kernel, device, args, constants))
        return
    with replay.on(device), replay.apart():
        compiled = replay.context().run(kernel[(programs,)], *args, **constants)
    replay.note(kernel, device, programs, args, constants, compiled)
    launches[_current.get()] += 1


def _tensors(args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    """Yield the tensors among a launch's arguments and in their records."""
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)

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
    """How a batch of calls becomes one call.

    args:    by argument that may differ within the batch, the dimension (of a tensor, or place in a list of sizes) that
             is multiplied by the batch; "groups" itself is multiplied
    results: the same dimension of each result

    The rule applies if every argument that differs is in args.
    """

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
    plans:    by replay.key, a Plan, or SEEN or NEVER
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
        """Return the results, computed by our kernels; their launches are counted under this operator's name in
        `launches`. A call like two before it is replayed from a plan."""
        key = replay.key(args) if _collected.get() is None else None
        kept = self.plans.get(key)
        if isinstance(kept, replay.Plan):
            results = kept(args)
            launches[self.name] += kept.launches
            return results
        require()
        results = self.fake(*args)
        device = next(value for value in args if isinstance(value, torch.Tensor)).device
        token = _current.set(self.name)
        try:
            with replay.on(device):
                if kept is not replay.SEEN or not replay.can_be_taped(args):
                    self.launcher(results, *args)
                    plan = replay.SEEN if kept is None else kept
                else:
                    single = isinstance(results, torch.Tensor)
                    with replay.Tape(args, (results,) if single else results) as tape:
                        self.launcher(results, *args)
                    plan = tape.plan(single)
            if key is not None and plan is not kept:
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
    """A launch that was collected instead of run: the kernel, where it would run, its arguments, and what it is
    compiled for."""

    kernel: Any
    device: torch.device
    args: tuple[Any, ...]
    constants: dict[str, Any]


_collected: contextvars.ContextVar[list[Launch] | None] = contextvars.ContextVar("collected", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[list[Launch]]:
    """Within, in this thread: launches are collected in the list, neither run nor counted."""
    collected: list[Launch] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


# Asked of Triton's compiler at every launch: a product and a sum may be one instruction, rounded once. That is its
# default up to 3.9; without it full float32 would take two.
ALWAYS = {"enable_fp_fusion": True}


def launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Launch `programs` programs of a kernel; none for an empty problem."""
    if programs == 0:
        return
    constants |= ALWAYS
    device = next(_tensors(args)).device
    collected = _collected.get()
    if collected is not None:
        collected.append(Launch(kernel, device, args, constants))
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

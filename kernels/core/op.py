"""The Op record, which says once what an operator is, and `launch`, through which every kernel runs."""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..base.lang import require, tl
from ..base.precision import PRECISION
from ..window.convolution import is_channels_last, span_elements
from . import replay

_current: contextvars.ContextVar[str] = contextvars.ContextVar("operator", default="(none)")

launches: Counter[str] = Counter()
"""Number of kernel launches by operator, since the start or the last `launches.clear()`."""


class Fold(NamedTuple):
    """How a batch of calls is one call: the dimension that takes up the batch, of arguments by name, tensors and sizes
    alike, and of results; `groups` among them is multiplied. Right if no other tensor differs within the batch."""

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
    folds:    for vmap, in order of preference
    product:  is it a product of matrices, whose flops torch's FlopCounterMode counts?
    """

    name: str
    schema: str
    fake: Callable[..., Any]
    launcher: Callable[..., None]
    aten: Callable[..., Any]
    flops: Callable[..., int]
    bytes: Callable[..., int]
    folds: tuple[Fold, ...]
    product: bool = False
    plans: dict[Any, replay.Plan | str] = field(default_factory=dict, init=False, repr=False)

    def launch(self, *args: Any) -> Any:
        """The results, from our kernels, which count as this operator's."""
        key = replay.key(args) if _notes.get() is None else None
        known = self.plans.get(key)
        if isinstance(known, replay.Plan):
            results = known(args)
            launches[self.name] += known.launches
            return results
        require()
        results = self.fake(*args)
        token = _current.set(self.name)
        try:
            self._decide(key, known, results, args)
        finally:
            _current.reset(token)
        return results

    def _decide(self, key: Any, known: Any, results: Any, args: tuple[Any, ...]) -> None:
        """Runs the launcher; on a tape, if such a call was seen once."""
        with replay.on(next(value for value in args if isinstance(value, torch.Tensor)).device):
            if known is replay.SEEN and replay.can_be_taped(args):
                single = isinstance(results, torch.Tensor)
                with replay.Tape(args, (results,) if single else results) as tape:
                    self.launcher(results, *args)
                replay.keep(self.plans, key, tape.plan(single))
                return
            self.launcher(results, *args)
            if key is not None and known is None:
                replay.keep(self.plans, key, replay.SEEN)

    def reference(self, *args: Any) -> Any:
        """The same results, strides included, from PyTorch's own operators on any device."""
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
    """Launches `programs` programs of a kernel; none for an empty problem."""
    if programs == 0:
        return
    constants |= ALWAYS
    device = next(a for a in args if isinstance(a, torch.Tensor)).device
    notes = _notes.get()
    if notes is not None:
        notes.append(Launch(kernel, device, args, constants))
        return
    replay.start(kernel, device, programs, args, constants)
    launches[_current.get()] += 1


def new(shape: Any, like: torch.Tensor, channels_last: bool = False, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised tensor on like's device: contiguous, or channels_last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def laid_out_as(y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor | None:
    """x in y's strides, copied if it has others."""
    return x if x is None or x.stride() == y.stride() else torch.empty_like(y).copy_(x)


def channels_last(*tensors: torch.Tensor) -> bool:
    """Does the result of an operator on these tensors take channels_last? If any of them has it, as in PyTorch."""
    return any(is_channels_last(t.shape, t.stride()) for t in tensors)


def nhwc(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """A tensor's strides in the order the kernels take them: batch, vertical, horizontal, channel."""
    n, c, h, w = tensor.stride()
    return (n, h, w, c)


def unit(columns: int, *tensors: torch.Tensor) -> int:
    """Elements in 16 bytes, where channels are adjacent, and pixels and `columns` multiples of as many; 1 where they
    are not, or where Triton knows by itself."""
    each = 16 // tensors[0].element_size()
    apart = [columns, *(stride for tensor in tensors for stride in (*tensor.stride()[:1], *tensor.stride()[2:]))]
    adjacent = all(tensor.stride(1) == 1 for tensor in tensors)
    known = all(stride % 16 == 0 for stride in apart)
    return each if adjacent and not known and all(stride % each == 0 for stride in apart) else 1


def index_type(*tensors: torch.Tensor | None) -> Any:
    """The integer that offsets into these tensors are computed in; 64 bits only where 32 are not enough."""
    span = max(span_elements(t.shape, t.stride()) for t in tensors if t is not None)
    return tl.int64 if span > 2**31 - 2**24 else tl.int32  # a tile may overhang a tensor


def tl_type(dtype: torch.dtype) -> Any:
    """Triton's name of an accumulator's dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def check_tensors(**tensors: torch.Tensor | None) -> None:
    """Errors: TypeError for what is no tensor, NotImplementedError for a dtype that no kernel takes, RuntimeError
    for mixed dtypes or devices; each names the argument."""
    first = ""
    for name, tensor in tensors.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(tensor).__name__}")
        if not first:
            first, dtype, device = name, tensor.dtype, tensor.device
            if dtype not in PRECISION:
                names = ", ".join(str(d).removeprefix("torch.") for d in PRECISION)
                raise NotImplementedError(f"{name} has dtype {dtype}; the kernels take {names}")
        if tensor.dtype != dtype:
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}, but {first} has {dtype}; convert one with .to(), or use autocast"
            )
        if tensor.device != device:
            raise RuntimeError(f"{name} is on {tensor.device}, but {first} is on {device}; move one of them with .to()")


def check_optional(**tensors: Any) -> None:
    """Errors: TypeError, naming the argument, for what is neither a tensor nor None."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, but got {type(tensor).__name__}")


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Size of these tensors' elements in memory."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)

"""The tape: the steps of a launcher, noted while it runs, and the plan that repeats them for calls like it.

A tape sees all that a launcher does: its launches, and by a dispatch mode the calls of PyTorch's operators. Each step
becomes a function of a list of tensors: the call's arguments, its results, and the workspaces in the order of their
allocation. A launcher whose steps depend on values, or take tensors that the tape can't tell apart, has no plan.
"""

import contextlib
import contextvars
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..base.lang import INTERPRETING, triton

__all__ = ["NEVER", "Plan", "Tape", "context", "current", "lock", "memory", "on"]

current: contextvars.ContextVar["Tape | None"] = contextvars.ContextVar("tape", default=None)
"""The tape that notes steps in this thread."""

lock = threading.RLock()  # dispatch modes are noted process-wide, too
_interpreter = threading.RLock()  # Triton's interpreter is not thread-safe
_HERE = contextlib.nullcontext()

NEVER = "never"  # kept instead of a plan for calls that can't be repeated

Step = Callable[[list[torch.Tensor]], None]
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_DEPENDS_ON_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Allocate device memory for the descriptors that a kernel builds; PyTorch's is stream-ordered and aligned to 512
    bytes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def context() -> contextvars.Context:
    """Return a context in which our allocator is Triton's; the caller's stays as it is."""
    context = contextvars.copy_context()
    context.run(triton.set_allocator, _scratch)
    return context


def on(device: torch.device) -> Any:
    """Return a context manager under which launches go to the device; in the interpreter, one at a time."""
    if INTERPRETING:
        return _interpreter
    elsewhere = device.type == "cuda" and torch.cuda.current_device() != device.index
    return torch.cuda.device(device) if elsewhere else _HERE


class Slot(NamedTuple):
    """A placeholder for the tensor with this number."""

    number: int


class View(NamedTuple):
    """A placeholder for a view of the memory of the tensor with this number; the offset counts from that tensor's."""

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def _filler(template: Any) -> Callable[[list[torch.Tensor]], Any]:
    """Return the function that puts a call's tensors into the template's slots and views."""
    if isinstance(template, Slot):
        return operator.itemgetter(template.number)
    if isinstance(template, View):
        number, shape, strides, offset = template
        return lambda tensors: tensors[number].as_strided(shape, strides, tensors[number].storage_offset() + offset)
    if not _has_tensors(template):
        return lambda tensors: template
    whole, kind = list(template), type(template)
    slots = [(i, each.number) for i, each in enumerate(whole) if isinstance(each, Slot)]
    fillers = [(i, _filler(each)) for i, each in enumerate(whole) if not isinstance(each, Slot) and _has_tensors(each)]

    def fill(tensors: list[torch.Tensor]) -> Any:
        filled = whole.copy()
        for i, number in slots:
            filled[i] = tensors[number]
        for i, filler in fillers:
            filled[i] = filler(tensors)
        return filled if kind is list else kind(*filled) if hasattr(kind, "_fields") else kind(filled)

    return fill


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tuple or list with each element changed; the value itself if nothing changes, or if it is neither."""
    if not isinstance(value, tuple | list):
        return value
    changed = [change(each) for each in value]
    if all(new is old for new, old in zip(changed, value, strict=True)):
        return value
    return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)


class _NotRepeatable(Exception):
    """A step that later calls can't repeat."""


class Tape(TorchDispatchMode):
    """A mode that notes the steps that run under it."""

    def __init__(self, args: tuple[Any, ...], results: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.results = results
        self.tensors = [*(value for value in args if isinstance(value, torch.Tensor)), *results]
        self.given = len(self.tensors)  # the number of the first workspace
        self.steps: list[tuple[Step, set[int]]] | None = []  # each with the numbers of the tensors that it takes
        self.launches = 0
        self._paused = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: the mode is off while torch.compile compiles."""
        return True

    def __enter__(self) -> "Tape":
        with contextlib.ExitStack() as undo:
            undo.enter_context(lock)
            undo.callback(current.reset, current.set(self))
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        with self._undo:
            super().__exit__(*raised)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing within the context."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def note(self, make: Callable[[], tuple[Step, set[int]]]) -> None:
        """Add a step and the numbers of the tensors that it takes, if all steps so far can be repeated."""
        if self.steps is not None:
            try:
                self.steps.append(make())
            except _NotRepeatable:
                self.steps = None

    def template(self, value: Any, exact: bool) -> Any:
        """Return a value with slots and views for its tensors. A kernel takes only where a tensor begins; an operator
        of PyTorch takes shape and strides, too: then `exact` is True."""
        if isinstance(value, torch.Tensor):
            for number, tensor in enumerate(self.tensors):
                if memory(tensor) == memory(value):
                    offset = value.storage_offset() - tensor.storage_offset()
                    same = not exact or (tensor.shape, tensor.stride()) == (value.shape, value.stride())
                    if tensor.dtype != value.dtype:
                        raise _NotRepeatable
                    return Slot(number) if offset == 0 and same else View(number, value.shape, value.stride(), offset)
            raise _NotRepeatable
        return _mapped(value, lambda each: self.template(each, exact))

    def launched(
        self, kernel: Any, device: torch.device, programs: int, args: tuple[Any, ...], constants: dict[str, Any],
        compiled: Any,
    ) -> None:  # fmt: skip
        """Note the launch of a compiled kernel; in the interpreter, of the kernel itself."""
        self.launches += 1
        unnamed = [] if INTERPRETING else [n for n in kernel.arg_names[len(args) :] if n not in constants]
        if unnamed or (compiled is None and not INTERPRETING):  # a default, or someone's hook took the launch
            self.steps = None
            return
        if INTERPRETING:
            names, run, scratch = {}, kernel[(programs,)], False
        else:
            names = {name: constants[name] for name in kernel.arg_names[len(args) :]}
            compiled = compiled.result() if hasattr(compiled, "result") else compiled  # if it is still being compiled
            run, constants = compiled[(programs, 1, 1)], {}
            scratch = bool(getattr(compiled.metadata, "global_scratch_size", 0))

        def make() -> tuple[Step, set[int]]:
            template = [self.template(value, False) for value in (*args, *names.values())]
            fill = _filler(template)

            def step(tensors: list[torch.Tensor]) -> None:
                with on(device):
                    if scratch or INTERPRETING:
                        context().run(run, *fill(tensors), **constants)
                    else:
                        run(*fill(tensors))

            return step, {*_numbers(template)}

        self.note(make)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.steps is None or self._paused:
            return result
        tensors = () if result is None else result if isinstance(result, tuple | list) else (result,)
        if not all(isinstance(each, torch.Tensor) for each in tensors) or _DEPENDS_ON_VALUES & {*func.tags}:
            self.steps = None  # later steps may depend on values
            return result
        fresh = [each for each in tensors if memory(each) not in map(memory, self.tensors)]
        allocates = func._schema.name in _ALLOCATIONS
        if func._schema.is_mutable or not tensors or (fresh and not allocates):  # else it is a view, or an allocation
            self.note(lambda: self._call(func, args, kwargs, len(fresh)))
        elif fresh:
            (like,) = fresh
            size, strides, how = like.shape, like.stride(), {"dtype": like.dtype, "device": like.device}
            own = {len(self.tensors)}
            self.note(lambda: (lambda tensors: tensors.append(torch.empty_strided(size, strides, **how)), own))
        self.tensors += fresh
        return result

    def _call(self, func: Any, args: Any, kwargs: Any, fresh: int) -> tuple[Step, set[int]]:
        """Return the step that calls an operator of PyTorch, and the numbers of the tensors that it takes or makes."""
        if fresh > 1:
            raise _NotRepeatable
        names = tuple(kwargs)
        template = self.template([*args, *kwargs.values()], True)
        fill, used = _filler(template), {*_numbers(template)} | ({len(self.tensors)} if fresh else set())

        def step(tensors: list[torch.Tensor]) -> None:
            (*filled,) = fill(tensors)
            named = {name: filled.pop() for name in reversed(names)}
            result = func(*filled, **named)
            if fresh:
                tensors.append(result[0] if isinstance(result, tuple | list) else result)

        return step, used

    def plan(self, single: bool) -> "Plan | str":
        """Return the plan of the noted steps; NEVER if they can't be repeated. A workspace lives until the last step
        that takes it."""
        if self.steps is None:
            return NEVER
        made = tuple((t.shape, t.stride(), t.dtype, t.device) for t in self.results)
        last = {number: i for i, (_, used) in enumerate(self.steps) for number in used if number >= self.given}
        ends: list[list[int]] = [[] for _ in self.steps]
        for number, i in last.items():
            ends[i].append(number)
        steps = tuple((step, tuple(end)) for (step, _), end in zip(self.steps, ends, strict=True))
        return Plan(made, steps, self.launches, single)


class Plan(NamedTuple):
    """The steps that compute a call's results.

    results:  size, strides, dtype and device of each
    steps:    each with the numbers of the workspaces that no later step takes
    launches: how many kernels they launch
    single:   True if there is one result, which isn't in a tuple
    """

    results: tuple[tuple[Any, ...], ...]
    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    launches: int
    single: bool

    def __call__(self, args: tuple[Any, ...]) -> Any:
        results = tuple(
            torch.empty_strided(size, strides, dtype=dtype, device=device)
            for size, strides, dtype, device in self.results
        )
        tensors: list[Any] = [value for value in args if isinstance(value, torch.Tensor)]
        tensors += results
        for step, ends in self.steps:
            step(tensors)
            for number in ends:
                tensors[number] = None
        return results[0] if self.single else results


def memory(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def _numbers(template: Any) -> Iterator[int]:
    """Yield the numbers of the tensors in a template."""
    if isinstance(template, Slot | View):
        yield template.number
    elif isinstance(template, tuple | list):
        for each in template:
            yield from _numbers(each)


def _has_tensors(template: Any) -> bool:
    return next(_numbers(template), None) is not None

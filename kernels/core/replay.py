"""What a launcher decides, kept: a call like an earlier one repeats its steps without deciding anew.

    key(call): shapes, strides, dtypes, alignments, numbers: all that a launcher looks at
        seen never:    the launcher runs
        seen once:     it runs on a tape, which notes its steps and whose tensors they take: a plan
        with a plan:   results and workspaces are allocated, compiled kernels launched on them      a few microseconds

The tape sees all that a launcher does: its launches, and by a dispatch mode PyTorch's own operators. A launcher whose
steps depend on values, or take tensors that the tape can't tell apart, is never repeated from a plan.
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
from ..base.precision import switches

_interpreter = threading.RLock()  # Triton's interpreter is not thread-safe
_tape: contextvars.ContextVar["Tape | None"] = contextvars.ContextVar("tape", default=None)
_recording = threading.RLock()  # dispatch modes are noted process-wide, too
_HERE = contextlib.nullcontext()
_deciding = 0
_MOST = 4096  # plans of an operator

Step = Callable[[list[torch.Tensor]], None]
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Device memory for the descriptors that a kernel builds; PyTorch's is aligned to 512 bytes, and stream-ordered."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def context() -> contextvars.Context:
    """Return a context in which our allocator is Triton's; the caller's stays as it is."""
    context = contextvars.copy_context()
    context.run(triton.set_allocator, _scratch)
    return context


def on(device: torch.device) -> Any:
    """A context in which launches go to the device; in the interpreter, one at a time."""
    if INTERPRETING:
        return _interpreter
    elsewhere = device.type == "cuda" and torch.cuda.current_device() != device.index
    return torch.cuda.device(device) if elsewhere else _HERE


def apart() -> Any:
    """A context in which what is done is no step: it is the same for all calls that are alike."""
    tape = _tape.get()
    return tape.paused() if tape else _HERE


def note(
    kernel: Any, device: torch.device, programs: int, args: tuple[Any, ...], constants: dict[str, Any], compiled: Any
) -> None:
    """Note a launch of so many programs of the kernel on the tape, if there is one."""
    tape = _tape.get()
    if tape:
        tape.launched(kernel, device, programs, args, constants, compiled)


@contextlib.contextmanager
def deciding() -> Iterator[None]:
    """Within: launchers decide anew at every call, for those who change what they decide by."""
    global _deciding
    with _recording:
        _deciding += 1
    try:
        yield
    finally:
        with _recording:
            _deciding -= 1


def key(args: tuple[Any, ...]) -> Any:
    """All that a launcher may look at; None where plans are out of question."""
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
    if not INTERPRETING:  # what else decides how Triton compiles
        found += (triton.knobs.runtime.debug, triton.knobs.compilation.instrumentation_mode)
    return tuple(found)


class Slot(NamedTuple):
    """The tensor of this number, of a call's arguments, results, and what it allocates."""

    number: int


class View(NamedTuple):
    """A view of the memory of a tensor; offset counts from the tensor's own."""

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def _filler(template: Any) -> Callable[[list[torch.Tensor]], Any]:
    """The function of a call's tensors that puts them into the template's slots and views."""
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


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A tuple or list with each element changed; itself if nothing changes, or if it is neither."""
    if not isinstance(value, tuple | list):
        return value
    changed = [change(each) for each in value]
    if all(new is old for new, old in zip(changed, value, strict=True)):
        return value
    return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)


class _NotAgain(Exception):
    """What was done can't be repeated."""


class Tape(TorchDispatchMode):
    """Within: steps are noted, and run."""

    def __init__(self, args: tuple[Any, ...], results: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.results = results
        self.tensors = [*(value for value in args if isinstance(value, torch.Tensor)), *results]
        self.given = len(self.tensors)
        self.steps: list[tuple[Step, set[int]]] | None = []  # with the numbers of the tensors that they take
        self.launches = 0
        self._paused = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """torch.compile's business is none of a tape's."""
        return True

    def __enter__(self) -> "Tape":
        with contextlib.ExitStack() as undo:
            undo.enter_context(_recording)
            undo.callback(_tape.reset, _tape.set(self))
            super().__enter__()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        with self._undo:
            super().__exit__(*raised)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within: nothing is noted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def note(self, make: Callable[[], tuple[Step, set[int]]]) -> None:
        """Adds a step and the tensors that it takes, if all of them can be repeated so far."""
        if self.steps is not None:
            try:
                self.steps.append(make())
            except _NotAgain:
                self.steps = None

    def template(self, value: Any, exact: bool) -> Any:
        """A value with slots and views for tensors. A kernel takes no more of a tensor than where it begins; what else
        takes it `exact`."""
        if isinstance(value, torch.Tensor):
            for number, tensor in enumerate(self.tensors):
                if _memory(tensor) == _memory(value):
                    offset = value.storage_offset() - tensor.storage_offset()
                    same = not exact or (tensor.shape, tensor.stride()) == (value.shape, value.stride())
                    if tensor.dtype != value.dtype:
                        raise _NotAgain
                    return Slot(number) if offset == 0 and same else View(number, value.shape, value.stride(), offset)
            raise _NotAgain
        return _each(value, lambda each: self.template(each, exact))

    def launched(
        self, kernel: Any, device: torch.device, programs: int, args: tuple[Any, ...], constants: dict[str, Any],
        compiled: Any,
    ) -> None:  # fmt: skip
        """Notes a launch of what is compiled now; in the interpreter, of the kernel."""
        self.launches += 1
        unnamed = [] if INTERPRETING else [n for n in kernel.arg_names[len(args) :] if n not in constants]
        if unnamed or (compiled is None and not INTERPRETING):  # a default, or someone's hook took the launch
            self.steps = None
            return
        if INTERPRETING:
            names, run, scratch = {}, kernel[(programs,)], False
        else:
            names = {name: constants[name] for name in kernel.arg_names[len(args) :]}
            compiled = compiled.result() if hasattr(compiled, "result") else compiled  # of a compilation under way
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
        if not all(isinstance(each, torch.Tensor) for each in tensors) or _depends & {*func.tags}:
            self.steps = None  # what follows may depend on values
            return result
        fresh = [each for each in tensors if _memory(each) not in map(_memory, self.tensors)]
        allocates = func._schema.name in _ALLOCATIONS
        if func._schema.is_mutable or not tensors or (fresh and not allocates):  # else it is a view, or an allocation
            self.note(lambda: self._again(func, args, kwargs, len(fresh)))
        elif fresh:
            (like,) = fresh
            size, strides, how = like.shape, like.stride(), {"dtype": like.dtype, "device": like.device}
            own = {len(self.tensors)}
            self.note(lambda: (lambda tensors: tensors.append(torch.empty_strided(size, strides, **how)), own))
        self.tensors += fresh
        return result

    def _again(self, func: Any, args: Any, kwargs: Any, fresh: int) -> tuple[Step, set[int]]:
        """The step that calls one of PyTorch's operators, and the tensors that it takes or makes."""
        if fresh > 1:
            raise _NotAgain
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
        """What was noted; NEVER if it can't be repeated. A workspace lives until the last step that takes it."""
        if self.steps is None:
            return NEVER
        made = tuple((t.shape, t.stride(), t.dtype, t.device) for t in self.results)
        last = {number: i for i, (_, used) in enumerate(self.steps) for number in used if number >= self.given}
        ends: list[list[int]] = [[] for _ in self.steps]
        for number, i in last.items():
            ends[i].append(number)
        steps = tuple((step, tuple(end)) for (step, _), end in zip(self.steps, ends, strict=True))
        return Plan(made, steps, self.launches, single)


_depends = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _numbers(template: Any) -> Iterator[int]:
    """Those of the tensors in a template."""
    if isinstance(template, Slot | View):
        yield template.number
    elif isinstance(template, tuple | list):
        for each in template:
            yield from _numbers(each)


def _has_tensors(template: Any) -> bool:
    return next(_numbers(template), None) is not None


SEEN, NEVER = "seen", "never"  # kept for a key without a plan: once seen, or never to be repeated


def keep(plans: dict[Any, Any], key: Any, what: "Plan | str") -> None:
    """Keeps what is known of a key; of too many, the oldest goes."""
    with _recording:
        if len(plans) >= _MOST and key not in plans:
            del plans[next(iter(plans))]
        plans[key] = what


def can_be_taped(args: tuple[Any, ...]) -> bool:
    """True if the tape can see what is done here, and tell the arguments apart."""
    if torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python):
        return False
    memories = [_memory(value) for value in args if isinstance(value, torch.Tensor)]
    return len({*memories}) == len(memories)


class Plan(NamedTuple):
    """Steps to the results of a call, each with the workspaces that nothing takes after it, and so many launches;
    `single`: there is one result, which isn't in a tuple."""

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

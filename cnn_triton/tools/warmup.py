"""Warm-up: compiles the kernels of a model's training step ahead of its first batch.

the model's forward and backward, on fake tensors:    shapes and strides, no memory, no arithmetic
    each of our operators on the way:                 its launcher picks tiles as always; its launches are collected
for each collected launch, in parallel threads:       Triton's compiler, which runs mostly outside of Python
"""

import contextlib
import contextvars
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..dispatch import as_on_a_gpu
from ..fusion.compiled import CompiledCall
from ..fusion.fakes import ForDynamo, arguments, faked
from ..kernels.base.lang import INTERPRETING, require, triton
from ..kernels.compiler import aot
from ..kernels.core.chips import NAMES
from ..kernels.core.op import Launch, collecting
from ..kernels.registry import op_of
from .tensors import tensors_in

__all__ = ["Collecting", "WarmUp", "compile_launches", "step_launches", "warmup"]


class WarmUp(NamedTuple):
    """The result of `warmup`; str() says it in a sentence.

    kernels:  number of distinct kernels that a step launches
    launches: number of a step's launches
    seconds:  duration of the call
    chip:     the chip that they are compiled for, for example "sm_90"; "cpu" or "interpreter" where nothing is compiled
    new:      number of kernels that this process did not have: compiled now, or found in Triton's cache on disk
    """

    kernels: int
    launches: int
    seconds: float
    chip: str
    new: int

    def __str__(self) -> str:
        if self.chip == "cpu":
            return (
                "nothing to compile: on a CPU the layers are PyTorch's own operators; move the model and the example "
                "to a GPU, or name a chip, as in chip='sm_90'"
            )
        if self.chip == "interpreter":
            return "nothing to compile: the kernels run in Triton's interpreter (TRITON_INTERPRET)"
        if not self.launches:
            return f"nothing to compile for {self.chip}: the model launches no kernel of ours"
        return (
            f"{self.kernels} kernel{'s' * (self.kernels != 1)} for {self.chip} in {self.seconds:.1f} s, "
            f"{self.new} of them new to this process; a step launches {self.launches}"
        )


def warmup(model: torch.nn.Module, example: Any, *, chip: str | None = None, workers: int | None = None) -> WarmUp:
    """Compile every kernel that a training step of the model launches on inputs like the example. The first step finds
    them ready; without a warm-up it compiles them one after the other.

    Nothing is computed and no memory is taken. The model's forward runs once, as Python, on copies of its tensors
    that have shapes and strides only, then backward from all of its outputs that require gradients, each with a
    gradient laid out like the output. Parameters, buffers, gradients and the random state stay as they are; other
    effects of forward (on a counter, or a tensor that is neither parameter nor buffer) do take place. The step is the
    one that a call would make here: in the model's mode, under the autocast in force (but backward outside of it), and
    forward alone where no output requires a gradient (frozen parameters, torch.no_grad()). If a model returns its loss,
    the loss is in the step, too.

    Equivalent to: model(*example).backward(...), for its effect on Triton's cache

    model: on the GPU it will run on; with `chip` on any device, "meta" too
    example: the model's argument or arguments: a tensor, a tuple of arguments, or a dict of keyword arguments, on the
    model's device; sizes, strides and dtypes count, values don't
    chip: the chip to compile for if it isn't the GPU here, one of cnn_triton.kernels.core.chips.NAMES, for example
    "sm_90": the kernels go into Triton's cache on disk (TRITON_CACHE_DIR), and no GPU is needed. Other threads must not
    launch kernels meanwhile
    workers: number of threads that compile; unless given, the number of CPUs
    returns: a WarmUp. On a CPU without `chip`, and in Triton's interpreter, there is nothing to compile: 0 kernels
    errors: TypeError (types), ValueError (an unknown chip, workers below 1), RuntimeError (a `chip` in the interpreter,
    a kernel that does not compile, a forward that needs its tensors' values), and the model's own errors
    """
    args, kwargs = _checked(model, example, chip, workers)
    begun = time.perf_counter()
    tensors = (*model.parameters(), *model.buffers(), *tensors_in(example))
    on_gpu = any(t.is_cuda for t in tensors)
    if chip is None and (INTERPRETING or not on_gpu):
        return WarmUp(0, 0, time.perf_counter() - begun, "interpreter" if INTERPRETING else "cpu", 0)
    require()
    if INTERPRETING:
        raise RuntimeError(
            f"chip is {chip!r}, but Triton's interpreter is on (TRITON_INTERPRET): compile in a process without it"
        )
    if on_gpu and chip == _chip_here():
        chip = None
    with contextlib.nullcontext() if chip is None else _compiling_for(chip), warnings.catch_warnings():
        # Triton asks each tensor for its address; a fake tensor gives its offset, as if its memory were well aligned.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        launches = step_launches(model, args, kwargs)
        workers = workers or getattr(os, "process_cpu_count", os.cpu_count)() or 1
        # In a context of its own: Triton's mark of a compilation in threads would outlive a failure.
        kernels, new = contextvars.copy_context().run(compile_launches, launches, workers, load=chip is None)
        return WarmUp(len(kernels), len(launches), time.perf_counter() - begun, _chip_here(), len(new))


def _checked(model: Any, example: Any, chip: Any, workers: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that the example stands for. Errors: TypeError, ValueError."""
    found = arguments(model, example)
    if chip is not None and not isinstance(chip, str):
        raise TypeError(f"chip must be a string, but got {type(chip).__name__}")
    if chip is not None and chip not in NAMES:
        raise ValueError(f"chip must be one of {', '.join(NAMES)}, but got {chip!r}")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool)):
        raise TypeError(f"workers must be an integer, but got {type(workers).__name__}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, but got {workers}")
    return found


class Collecting(TorchDispatchMode):
    """A mode, in force on all of autograd's threads, under which our operators launch nothing: `launches` lists the
    launches that they would have made, and their results are uninitialised."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = op_of(func)
        if op is None:
            return func(*args, **(kwargs or {}))
        with collecting() as launches:
            results = op.launch(*args, **(kwargs or {}))
        self.launches += launches
        return results


class _CollectingForDynamo(ForDynamo, Collecting):
    """The same, and TorchDynamo captures under it."""


def step_launches(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Launch]:
    """Return the launches of a forward and a backward pass of the model, in order."""
    collected = _CollectingForDynamo() if CompiledCall.of(model) else Collecting()
    with faked(model, args, kwargs) as forward, collected:
        step(forward)
    return collected.launches


def step(forward: Callable[[], Any]) -> None:
    """Run forward, and backward from every output that requires a gradient; leave no gradient behind."""
    outputs = [t for t in tensors_in(forward()) if t.requires_grad]
    before = [(leaf, leaf.grad) for leaf in _leaves(outputs)]  # real ones, where the model has weights of its own
    try:
        with contextlib.ExitStack() as stack:
            for kind in filter(torch.amp.is_autocast_available, {t.device.type for t in outputs}):
                stack.enter_context(torch.autocast(kind, enabled=False))
            # Not from the outputs' sum: its gradient is one number, broadcast, and kernels are compiled for strides.
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
    finally:
        for leaf, grad in before:
            leaf.grad = grad


def _leaves(outputs: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the tensors whose gradients grow in a backward pass from these outputs."""
    yield from (t for t in outputs if t.is_leaf)
    nodes: list[Any] = [t.grad_fn for t in outputs]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


@contextlib.contextmanager
def _compiling_for(chip: str) -> Iterator[None]:
    """Have Triton compile for the chip within the context, and layers run as on a GPU wherever their tensors are."""
    with aot.compiling_for(chip), as_on_a_gpu():
        yield


def _chip_here() -> str:
    """Return the name of the chip that Triton compiles for now."""
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch).split(":")[0]


def compile_launches(launches: list[Launch], workers: int, load: bool) -> tuple[set[str], set[str]]:
    """Compile the launches' kernels and, with `load`, bring each onto its GPU. Return (all, new): the hashes of the
    kernels, and of those that this process did not have. Errors: RuntimeError for a kernel that does not compile; the
    others are compiled all the same."""
    kernels: set[str] = set()
    new: set[str] = set()
    for device in {launch.device for launch in launches}:  # each GPU has a cache of its own, and loads for itself
        here = [launch for launch in launches if launch.device == device]
        pool = ThreadPoolExecutor(workers)
        try:
            with _on(device), triton.AsyncCompileMode(pool, ignore_errors=True):
                begun = [_compiled(launch) for launch in here]
        finally:
            pool.shutdown(cancel_futures=True)
            _settle(here)
        with _on(device):
            ready = {_finished(kernel, launch) for kernel, launch in zip(begun, here, strict=True)}
        kernels |= {kernel.hash for kernel in ready}
        new |= {kernel.hash for kernel in ready.difference(begun)}
        if load:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(_load, ready, [device] * len(ready)))
    return kernels, new


def _compiled(launch: Launch) -> Any:
    """Return the launch's kernel, from Triton's caches or compiled; in Triton's asynchronous mode it may be under
    way."""
    return launch.kernel.run(*launch.args, grid=(1,), warmup=True, **launch.constants)


def _finished(kernel: Any, launch: Launch) -> Any:
    """Return the launch's kernel, finished. A kernel that failed among threads is compiled once more, alone: in CPython
    3.11, threads that parse at the same time fail now and then (github.com/python/cpython/issues/106905)."""
    if not isinstance(kernel, triton.FutureKernel):
        return kernel
    try:
        return _compiled(launch) if kernel.kernel is None else kernel.kernel
    except Exception as error:
        raise RuntimeError(f"{launch.kernel.__name__} does not compile: {type(error).__name__}: {error}") from error


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _load(kernel: Any, device: torch.device) -> None:
    """Bring a kernel onto the GPU and make its launcher, as its first launch would."""
    with _on(device):
        _ = kernel.run


def _settle(launches: list[Launch]) -> None:
    """Remove unfinished kernels from Triton's caches, so that a kernel that failed or was interrupted is compiled anew
    when it is next needed."""
    for kernel in {launch.kernel for launch in launches}:
        for cache, *_ in kernel.device_caches.values():
            for key in [key for key, entry in cache.items() if isinstance(entry, triton.FutureKernel)]:
                del cache[key]

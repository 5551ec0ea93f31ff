"""Where a step's time goes: by layer and pass, by operator, by kernel, against what the chip can do.

    three runs of the same step, each after a warm-up:
        bare           the step's time by the host's clock, and by the GPU's
        watched        each operator between two marks of the clock, counted to the module that called it
        traced         torch.profiler: kernels, and the trace that Chrome and Perfetto open

A module is known forward by hooks, and backward by the autograd nodes that its forward made.
"""

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .dispatch import launches, where
from .kernels.lang import INTERPRETING
from .kernels.registry import OPS
from .modules import hooked

__all__ = ["Kernel", "Profile", "Row", "ceilings", "profile", "step_of"]

_OURS = {op.name: op for op in OPS}
_REST = "(rest)"  # what no module called: the loss, sums of gradients


@dataclass
class Row:
    """A layer's operator in one pass of a step: calls, milliseconds in all, FLOPs and bytes that it can't avoid."""

    layer: str
    kind: str
    phase: str  # forward, backward
    operator: str
    calls: int = 0
    launches: int = 0
    milliseconds: float = 0.0
    flops: int = 0
    bytes: int = 0


@dataclass
class Kernel:
    """A kernel of a step on the GPU."""

    name: str
    calls: int
    milliseconds: float


@dataclass
class Profile:
    """A step's figures.

    host, device: milliseconds of a bare step, medians: until the host had queued it, and until it was done
    ceilings: copy, GB/s, and product, TFLOP/s; measured in the same process, and empty without a GPU
    unknown: what can't be known here, in words
    """

    title: str
    runs: str
    training: bool
    host: float
    device: float
    rows: list[Row]
    kernels: list[Kernel]
    ceilings: dict[str, float]
    unknown: list[str] = field(default_factory=list)

    def layers(self) -> dict[str, list[Row]]:
        """Rows by layer, in the order of the forward pass."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.layer, []).append(row)
        return found

    def roofline(self, row: Row) -> float | None:
        """The time that the chip would need at its ceilings, over the row's."""
        if not self.ceilings or not row.milliseconds or not (row.flops or row.bytes):
            return None
        best = max(row.flops / self.ceilings["product, TFLOP/s"] / 1e9, row.bytes / self.ceilings["copy, GB/s"] / 1e6)
        return best / row.milliseconds

    def write(self, path: Path) -> None:
        """All figures as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


class _Clock:
    """Marks in time; milliseconds between two of them can be asked for after `wait`."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"

    def mark(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self.gpu else 1e3 * (end - start)


class _Layers:
    """Which module is at work: forward by hooks, backward by hooks on autograd's nodes."""

    def __init__(self, model: torch.nn.Module, ranges: bool) -> None:
        self.model, self.ranges = model, ranges
        self.names = {module: name or "(model)" for name, module in model.named_modules()}
        self.at: list[tuple[str, str]] = []
        self.seen: set[Any] = set()
        self.open: list[Any] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, `at` is a stack of (name, phase)."""
        handles: list[Any] = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.seen.clear()

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        name = self.names[module]
        self.at.append((name, "forward"))
        self._begin(name)

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._end()
        self.at.pop()
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None:
                self._own(tensor.grad_fn, self.names[module])

    def _own(self, last: Any, name: str) -> None:
        """Counts the nodes that nobody has to the module: inner modules have theirs already."""
        nodes = [last]
        while nodes:
            node = nodes.pop()
            if node is None or node in self.seen or type(node).__name__ == "AccumulateGrad":
                continue
            self.seen.add(node)
            node.register_prehook(lambda grads, name=name: self._back(name))
            node.register_hook(lambda *grads: self._done())
            nodes += [each for each, _ in node.next_functions]

    def _back(self, name: str) -> None:
        self.at.append((name, "backward"))
        self._begin(f"{name}, backward")

    def _done(self) -> None:
        self._end()
        self.at.pop()

    def _begin(self, name: str) -> None:
        if self.ranges:
            scope = torch.profiler.record_function(name)
            scope.__enter__()
            self.open.append(scope)
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_push(name)

    def _end(self) -> None:
        if self.ranges:
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_pop()
            self.open.pop().__exit__(None, None, None)


class _Watched(TorchDispatchMode):
    """Within: operators between marks of the clock, by layer."""

    def __init__(self, layers: _Layers, clock: _Clock, kinds: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self.clock, self.kinds = layers, clock, kinds
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.marks: list[tuple[Row, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        layer, phase = self.layers.at[-1] if self.layers.at else (_REST, "")
        before, start = sum(launches().values()), self.clock.mark()
        result = func(*args, **kwargs)
        end = self.clock.mark()
        if _is_free(func):
            return result
        name = func.name().partition("::")[2].split(".")[0]
        row = self.rows.setdefault((layer, phase, name), Row(layer, self.kinds.get(layer, ""), phase, name))
        row.calls += 1
        row.launches += sum(launches().values()) - before
        flops, moved = _work(func, args, kwargs, result)
        row.flops += flops
        row.bytes += moved
        self.marks.append((row, start, end))
        return result

    def finished(self, steps: int) -> list[Row]:
        """The rows of one step, of so many that were watched."""
        self.clock.wait()
        for row, start, end in self.marks:
            row.milliseconds += self.clock.between(start, end) / steps
        for row in self.rows.values():
            row.calls, row.launches = row.calls // steps, row.launches // steps
            row.flops, row.bytes = row.flops // steps, row.bytes // steps
        return list(self.rows.values())


def _is_free(func: Any) -> bool:
    """Does it compute nothing: a view, an allocation, a question?"""
    name = func.name()
    asks = not any(isinstance(each.type, torch.TensorType) for each in func._schema.returns)
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return views or asks or name.startswith(("aten::empty", "aten::new_empty", "aten::detach"))


def _work(func: Any, args: Any, kwargs: Any, result: Any) -> tuple[int, int]:
    """FLOPs of products, and bytes of what is read and written."""
    namespace, _, name = func.name().partition("::")
    if namespace == "cnn_triton":
        op = _OURS[name.split(".")[0]]
        return op.flops(*args) if op.product else 0, op.bytes(*args)
    formula = flop_registry.get(func._overloadpacket)
    flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
    tensors = {id(t): t for t in _tensors((args, list(kwargs.values()), result))}
    return flops, sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches here and now: a large copy, GB/s read and written, and a large product, TFLOP/s."""
    gpu, clock = device.type == "cuda", _Clock(device)
    size, side = (1 << 30, 8192) if gpu else (1 << 26, 1024)
    source = torch.empty(size, dtype=torch.int8, device=device)
    target, a = torch.empty_like(source), torch.randn(side, side, device=device).to(dtype)

    def fastest(run: Callable[[], Any]) -> float:
        pairs = []
        for _ in range(12):
            start = clock.mark()
            run()
            pairs.append((start, clock.mark()))
        clock.wait()
        return min(clock.between(*pair) for pair in pairs[2:])

    copy, product = fastest(lambda: target.copy_(source)), fastest(lambda: a @ a)
    return {"copy, GB/s": 2 * size / copy / 1e6, "product, TFLOP/s": 2 * side**3 / product / 1e9}


def profile(
    model: torch.nn.Module, images: torch.Tensor, *, training: bool = False, steps: int = 10, title: str = "",
    trace: Path | None = None,
) -> Profile:  # fmt: skip
    """Profiles a step of the model on these images: a forward pass in eval mode without gradients, or in training mode
    forward and backward, from the sum of the squared result.

    trace: file for the Chrome and Perfetto trace, ranges named after the modules. Errors: those of the model.
    """
    device, before = images.device, model.training
    clock, gpu = _Clock(device), images.device.type == "cuda"
    step = step_of(model, images, training)
    model.train(training)
    try:
        for _ in range(3):
            step()
        hosts, devices = _bare(step, clock, steps)
        kinds = {name or "(model)": type(module).__name__ for name, module in model.named_modules()}
        layers = _Layers(model, ranges=False)
        watched = _Watched(layers, clock, kinds)
        with layers.watching(), watched:
            for _ in range(steps):
                step()
        rows = watched.finished(steps)
        kernels = _traced(model, step, steps, trace)
        limits = {} if INTERPRETING and not gpu else ceilings(device, images.dtype)
    finally:
        model.train(before)
    unknown = [] if gpu else [
        "no GPU is here: the times are of the CPU, and of what runs there. The kernels' times and launches, the gap "
        "between them, and their share of what a chip can do are known on a GPU alone"
    ]  # fmt: skip
    if hooked(model):
        unknown.append("the model has hooks, whose work is in these times")
    host, whole = statistics.median(hosts), statistics.median(devices)
    return Profile(title, where(device), training, host, whole, rows, kernels, limits, unknown)


def step_of(model: torch.nn.Module, images: torch.Tensor, training: bool) -> Callable[[], None]:
    """A step of the model, as it is profiled."""

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def both() -> None:
        model.zero_grad(set_to_none=True)
        output = model(images)
        output = output[0] if isinstance(output, tuple) else output
        output.float().square().sum().backward()

    return both if training else forward


def _bare(step: Callable[[], None], clock: _Clock, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds until the host had queued the step, and until it was done."""
    hosts, devices = [], []
    for _ in range(steps):
        clock.wait()
        begun, start = time.perf_counter(), clock.mark()
        step()
        hosts.append(1e3 * (time.perf_counter() - begun))
        end = clock.mark()
        clock.wait()
        devices.append(clock.between(start, end))
    return hosts, devices


def _traced(model: torch.nn.Module, step: Callable[[], None], steps: int, trace: Path | None) -> list[Kernel]:
    """Kernels of a step on the GPU, by torch.profiler, the longest first; and the trace."""
    gpu = torch.cuda.is_available()
    if not gpu and trace is None:
        return []
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as seen, _Layers(model, ranges=True).watching():
        for _ in range(steps):
            step()
        if gpu:
            torch.cuda.synchronize()
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    count: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for event in seen.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count[event.name] += 1
            spent[event.name] += event.self_device_time_total
    return [Kernel(name, count[name] // steps, time / 1e3 / steps) for name, time in spent.most_common()]

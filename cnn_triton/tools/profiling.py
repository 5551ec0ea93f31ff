"""Where a step's time goes: by layer and pass, by operator, by kernel, against what the chip can do.

    three runs of the same step, each after a warm-up:
        bare           the step's time by the host's clock, and by the GPU's
        watched        each operator between two marks of the clock, counted to the module that called it
        traced         torch.profiler: kernels, and the trace that Chrome and Perfetto open

A module is known forward by its call, and backward by the autograd nodes that its call made.
"""

import contextlib
import functools
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

from ..dispatch import launches, where
from ..fusion import capture
from ..fusion.compiled import CompiledCall
from ..fusion.fusing import modules_of
from ..kernels.base.lang import INTERPRETING
from ..kernels.base.precision import switches
from ..kernels.registry import op_of

__all__ = ["Kernel", "Profile", "Row", "ceilings", "in_mode", "profile", "step_of"]

_CALL = "_compiled_call_impl"  # where torch.nn.Module looks for what to call
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
    ceilings: copy, GB/s, and product, TFLOP/s; measured in the same process, and empty in Triton's interpreter
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

    def occupy(self, milliseconds: float) -> None:
        """Keeps the GPU busy for about as long, so that what is queued meanwhile runs without a gap."""
        if self.gpu and milliseconds:
            torch.cuda._sleep(int(2e6 * milliseconds))  # at two cycles a nanosecond

    def between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self.gpu else 1e3 * (end - start)


class _Layers:
    """Which module is at work: forward by its call, or by that of a captured graph's node which was made in it;
    backward by hooks on the autograd nodes that its call made.

    No hooks on modules: what was captured without them would be captured anew.
    """

    def __init__(self, model: torch.nn.Module, ranges: bool) -> None:
        self.ranges = ranges
        self.model = model
        self.names = {str(id(module)): name or "(model)" for name, module in model.named_modules()}
        self.at: list[tuple[str, str]] = []
        self.seen: set[Any] = set()
        self.open: list[Any] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, `at` is a stack of (name, phase)."""
        layers = self

        class Nodes(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                """The node's result, counted to the module that it is of."""
                return layers._counted(next(reversed(modules_of(n)), ""), super().run_node, n)

        converted = [module for module in self.model.modules() if CompiledCall.of(module)]
        captured = {part for module in converted for part in module.modules()} - set(converted)
        before = {module: vars(module).get(_CALL) for module in self.model.modules() if module not in captured}
        try:
            for module, call in before.items():
                vars(module)[_CALL] = functools.partial(self._counted, str(id(module)), call or module._call_impl)
            with capture.node_by_node(Nodes):
                yield
        finally:
            for module, call in before.items():
                vars(module)[_CALL] = call
                if call is None:
                    del vars(module)[_CALL]

    def _counted(self, module: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's result, counted to the module of this id."""
        name = self.names.get(module)
        if name is None:
            return function(*args, **kwargs)
        parent = self.at[-1][0] if self.at else _REST
        self._own((args, list(kwargs.values())), parent)  # what was made before is not this module's
        self._enter(name, "forward")
        try:
            output = function(*args, **kwargs)
        finally:
            self._leave()
        self._own(output, name)
        return output

    def step_ends(self) -> None:
        """Forgets the step's nodes, which hold its tensors."""
        self.seen.clear()

    def _own(self, value: Any, name: str) -> None:
        """Counts the nodes behind the value's tensors that nobody has to the module."""
        nodes = [tensor.grad_fn for tensor in _tensors(value)]
        while nodes:
            node = nodes.pop()
            if node is None or node in self.seen or type(node).__name__ == "AccumulateGrad":
                continue
            self.seen.add(node)
            node.register_prehook(lambda grads, name=name: self._enter(name, "backward"))
            node.register_hook(lambda *grads: self._leave())
            nodes += [each for each, _ in node.next_functions]

    def _enter(self, name: str, phase: str) -> None:
        self.at.append((name, phase))
        if self.ranges:
            said = name if phase == "forward" else f"{name}, backward"
            scope = torch.profiler.record_function(said)
            scope.__enter__()
            self.open.append(scope)
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_push(said)

    def _leave(self) -> None:
        if self.ranges:
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_pop()
            self.open.pop().__exit__(None, None, None)
        self.at.pop()


class _Watched(TorchDispatchMode):
    """Within: operators between marks of the clock, by layer."""

    def __init__(self, layers: _Layers, clock: _Clock, kinds: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self.clock, self.kinds = layers, clock, kinds
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.marks: list[tuple[Row, Any, Any]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """So TorchDynamo asks whether what it captured may run."""
        return True

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
    asks = not func._schema.returns and not func._schema.is_mutable
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return views or asks or name.startswith(("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view"))


def _work(func: Any, args: Any, kwargs: Any, result: Any) -> tuple[int, int]:
    """FLOPs of products, and bytes of what is read and written."""
    op = op_of(func)
    if op is not None:
        return op.flops(*args) if op.product else 0, op.bytes(*args)
    formula = flop_registry.get(func._overloadpacket)
    flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
    tensors = {id(t): t for t in _tensors((args, list(kwargs.values()), result))}
    return flops, sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches here and now: a large copy, GB/s read and written, and a large product, TFLOP/s; in
    float32 as convolutions have it, in TF32 where PyTorch's switch says so."""
    gpu, clock = device.type == "cuda", _Clock(device)
    size, side = (1 << 30, 8192) if gpu else (1 << 26, 2048)
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

    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, switches()[0]
    try:
        copy, product = fastest(lambda: target.copy_(source)), fastest(lambda: a @ a)
    finally:
        switch.fp32_precision = before
    return {"copy, GB/s": 2 * size / copy / 1e6, "product, TFLOP/s": 2 * side**3 / product / 1e9}


@contextlib.contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Within, the model is in training mode or not; after it, each module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def profile(
    model: torch.nn.Module, images: torch.Tensor, *, training: bool = False, steps: int = 10, title: str = "",
    trace: Path | None = None,
) -> Profile:  # fmt: skip
    """Profiles a step of the model on these images: a forward pass in eval mode without gradients, or in training mode
    forward and backward, from the sum of the squared result. Training steps leave no gradients, and move what
    batch normalisation remembers.

    trace: file for the Chrome and Perfetto trace, ranges named after the modules. Errors: those of the model.
    """
    device, gpu = images.device, images.device.type == "cuda"
    clock, step = _Clock(device), step_of(model, images, training)
    with in_mode(model, training), torch.cuda.device(device) if gpu else contextlib.nullcontext():
        for _ in range(3):
            step()
        hosts, devices = _bare(step, clock, steps)
        kinds = {name or "(model)": type(module).__name__ for name, module in model.named_modules()}
        rows, covered = _watch(_Layers(model, ranges=False), kinds, clock, step, steps)
        kernels = _traced(model, step, steps, trace)
        limits = {} if INTERPRETING and not gpu else ceilings(device, images.dtype)
    unknown = [] if gpu else [
        "no GPU is here: the times are of the CPU, and of what runs there. The kernels' times and launches, the gap "
        "between them, and what a chip could do are known on a GPU alone"
    ]  # fmt: skip
    if not covered:
        unknown.append("the host was slower than the GPU while operators were timed: their times hold some of its own")
    host, whole = statistics.median(hosts), statistics.median(devices)
    return Profile(title, where(device), training, host, whole, rows, kernels, limits, unknown)


def _watch(
    layers: _Layers, kinds: dict[str, str], clock: _Clock, step: Callable[[], None], steps: int
) -> tuple[list[Row], bool]:
    """The rows of a step; and was the GPU kept busy while the host queued it, so that times are the GPU's alone?"""
    slow, covered = 0.0, True
    with layers.watching():
        for i in range(2):  # the first says how long the host takes
            watched = _Watched(layers, clock, kinds)
            for _ in range(steps if i else 1):
                clock.occupy(1.5 * slow)
                with watched:
                    begun, start = time.perf_counter(), clock.mark()
                    step()
                    spent = 1e3 * (time.perf_counter() - begun)
                layers.step_ends()
                covered = covered and (not clock.gpu or not i or not start.query())
                slow = slow or spent  # later ones wait for the GPU where its queue is full
                clock.wait()
    return watched.finished(steps), covered


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
    layers = _Layers(model, ranges=True)
    with torch.profiler.profile(activities=activities) as seen, layers.watching():
        for _ in range(steps):
            step()
            layers.step_ends()
        if gpu:
            torch.cuda.synchronize()
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    count: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for event in seen.events() or ():
        if event.device_type == torch._C._autograd.DeviceType.CUDA and not event.is_user_annotation:
            count[event.name] += 1
            spent[event.name] += event.self_device_time_total
    return [Kernel(name, count[name] // steps, time / 1e3 / steps) for name, time in spent.most_common()]

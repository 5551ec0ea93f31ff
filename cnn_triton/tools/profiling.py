"""Profile: where a step's time goes, by layer and pass, by operator and by kernel, beside the limits of the device.

three runs of the same step, after a warm-up:
    bare           the step's time by the host's clock, and by the GPU's
    watched        each operator between two marks of the clock, counted to the layer at work (layers.py)
    traced         torch.profiler: kernels, and the trace that Chrome and Perfetto open
"""

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..dispatch import where
from ..kernels.base.lang import INTERPRETING
from .clock import Clock, ceilings
from .layers import Layers, OperatorTimes, Row
from .tensors import tensors_in

__all__ = ["Kernel", "Profile", "Row", "in_mode", "profile", "step_of"]


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
    unknown: figures that can't be measured here, in words
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
        """Return the time that the device would need at its ceilings, over the row's; None where it isn't known."""
        if not self.ceilings or not row.milliseconds or not (row.flops or row.bytes):
            return None
        best = max(row.flops / self.ceilings["product, TFLOP/s"] / 1e9, row.bytes / self.ceilings["copy, GB/s"] / 1e6)
        return best / row.milliseconds

    def as_json(self) -> str:
        """Return all figures as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


@contextlib.contextmanager
def in_mode(model: torch.nn.Module, training: bool) -> Iterator[None]:
    """Put the model into training or eval mode within the context; each module's mode comes back after it."""
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
    """Profile a step of the model on these images: a forward pass in eval mode without gradients, or in training mode
    forward and backward, from the sum of the squared result, of several tensors the first. Training steps leave no
    gradients, and update the running statistics of batch normalisation.

    trace: file for the Chrome and Perfetto trace, ranges named after the modules
    errors: those of the model
    """
    device, gpu = images.device, images.device.type == "cuda"
    clock, step = Clock(device), step_of(model, images, training)
    with in_mode(model, training), torch.cuda.device(device) if gpu else contextlib.nullcontext():
        for _ in range(3):
            step()
        hosts, devices = _bare(step, clock, steps)
        kinds = {name or "(model)": type(module).__name__ for name, module in model.named_modules()}
        rows, covered = _watch(Layers(model, ranges=False), kinds, clock, step, steps)
        kernels = _traced(model, step, steps, trace)
        limits = {} if INTERPRETING and not gpu else ceilings(device, images.dtype)
    unknown = [] if gpu else [
        "no GPU is here: the times are those of the CPU. Times and launches of kernels, the gaps between them, and the "
        "limits of a chip can only be measured on a GPU"
    ]  # fmt: skip
    if not covered:
        unknown.append("the host was slower than the GPU while operators were timed: their times hold some of its own")
    host, whole = statistics.median(hosts), statistics.median(devices)
    return Profile(title, where(device), training, host, whole, rows, kernels, limits, unknown)


def _watch(
    layers: Layers, kinds: dict[str, str], clock: Clock, step: Callable[[], None], steps: int
) -> tuple[list[Row], bool]:
    """Return (the rows of a step, True if the GPU was kept busy while the host queued it: the times are the GPU's)."""
    slow, covered = 0.0, True
    with layers.watching():
        for i in range(2):  # the first says how long the host takes
            operators = OperatorTimes(layers, clock, kinds)
            for _ in range(steps if i else 1):
                clock.occupy(1.5 * slow)
                with operators:
                    begun, start = time.perf_counter(), clock.mark()
                    step()
                    spent = 1e3 * (time.perf_counter() - begun)
                layers.step_ends()
                covered = covered and (not clock.gpu or not i or not start.query())
                slow = slow or spent  # later ones wait for the GPU where its queue is full
                clock.wait()
    return operators.finished(steps), covered


def step_of(model: torch.nn.Module, images: torch.Tensor, training: bool) -> Callable[[], None]:
    """Return a function that runs the step that is profiled."""

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def both() -> None:
        model.zero_grad(set_to_none=True)
        output, *_ = tensors_in(model(images))
        output.float().square().sum().backward()

    return both if training else forward


def _bare(step: Callable[[], None], clock: Clock, steps: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each step (until the host had queued it, until it was done)."""
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
    """Run steps under torch.profiler and write its trace. Return a step's kernels on the GPU, the longest first."""
    gpu = torch.cuda.is_available()
    if not gpu and trace is None:
        return []
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    layers = Layers(model, ranges=True)
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

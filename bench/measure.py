"""How it is measured: verified, then interleaved on cold caches; medians with spread, and the chip's ceilings."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cnn_triton
from cnn_triton.kernels.registry import op_of

from .problems import Problem

Run = Callable[[], Any]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
# Distance from 1 to the next number; TF32's for float32.
EPS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-10}
# torch.compile's ways, tried in turn; of a whole network, whose kernels are too many to tune, the last alone. No CUDA
# graphs: they would time replays instead of launches.
COMPILE: tuple[dict[str, Any], ...] = ({"mode": "max-autotune-no-cudagraphs"}, {"mode": "default"})


def prepare(device: torch.device) -> None:
    """PyTorch at its best on a GPU: cuDNN tries its algorithms, and float32 matrix products may use TF32."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # Not through fp32_precision: where that alone is set, Inductor's reading of the older switch is an error.
        torch.set_float32_matmul_precision("high")


class HostClock:
    """Milliseconds by the host's clock."""

    covered = float("inf")

    def prepare(self, runs: list[Run]) -> None:
        for run in runs:
            run()

    def time(self, run: Run) -> tuple[float, float]:
        """Milliseconds of the work, and of the host's part in it."""
        begun = time.perf_counter()
        run()
        spent = 1e3 * (time.perf_counter() - begun)
        return spent, spent


class GpuClock:
    """Milliseconds by CUDA events. Before each run a buffer larger than L2 is overwritten, often enough to keep the
    GPU busy until the host has queued the run: launch overhead is reported, but not in the GPU's time."""

    def __init__(self, device: torch.device, size: int = 256 << 20) -> None:
        self.buffer = torch.empty(size, dtype=torch.int8, device=device)
        self.flushes = 1
        self.covered = 0.0

    def prepare(self, runs: list[Run]) -> None:
        self.flushes = 1
        flush = min(self.time(self.buffer.zero_)[0] for _ in range(5))
        host = max(min(self.time(run)[1] for _ in range(4)) for run in runs)
        self.flushes = min(200, 2 + int(1.5 * host / max(flush, 1e-3)))
        self.covered = self.flushes * flush

    def time(self, run: Run) -> tuple[float, float]:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        for _ in range(self.flushes):
            self.buffer.zero_()
        start.record()
        begun = time.perf_counter()
        run()
        host = 1e3 * (time.perf_counter() - begun)
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop), host


def clock_for(device: torch.device) -> HostClock | GpuClock:
    return GpuClock(device) if device.type == "cuda" else HostClock()


def quantile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def interleaved(
    runs: dict[str, Run], clock: HostClock | GpuClock, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Milliseconds of each run, by name: in every round each in turn, another one first each time."""
    clock.prepare(list(runs.values()))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    names, end = list(runs), time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        for i in range(len(names)):
            name = names[(done + i) % len(names)]
            times[name].append(clock.time(runs[name]))
    return {
        name: {
            **{f"p{percent}": quantile([t for t, _ in pairs], percent) for percent in (20, 50, 80)},
            "host": quantile([t for _, t in pairs], 50),
            "rounds": len(pairs),
        }
        for name, pairs in times.items()
    }


def gradient(problem: Problem) -> torch.Tensor | None:
    """The gradient that every backward pass starts from, in the result's memory format."""
    if problem.mode == "forward":
        return None
    with torch.no_grad():
        y = problem.theirs(*problem.tensors)
        return torch.empty_like(y).copy_(torch.randn(y.shape, device=y.device))


def step(function: Callable[..., Any], problem: Problem, grad: torch.Tensor | None) -> Run:
    """What is timed, as a function without arguments that returns its results and gradients."""
    tensors = [t.detach().requires_grad_(grad is not None and i in problem.wrt) for i, t in enumerate(problem.tensors)]
    if grad is None:

        def forward() -> Any:
            with torch.no_grad():
                return (function(*tensors),)

        return forward
    leaves = [tensors[i] for i in problem.wrt]
    if problem.mode == "backward":
        y = function(*tensors)
        return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)
    return lambda: (y := function(*tensors), *torch.autograd.grad(y, leaves, grad))


def exact(problem: Problem, grad: torch.Tensor | None) -> Any:
    """PyTorch's result in float64."""
    wide = problem._replace(tensors=tuple(t.double() for t in problem.tensors))
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        return step(wide.theirs, wide, None if grad is None else grad.double())()
    finally:
        torch.backends.cudnn.benchmark = before


def error(result: Any, reference: Any) -> float:
    """Largest ‖a − b‖ / ‖b‖ over outputs and gradients; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(result, reference, strict=True):
        norm = torch.linalg.vector_norm(b).clamp_min(1e-30)
        relative = (torch.linalg.vector_norm(a.double() - b) / norm).item()
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


class Counted(TorchDispatchMode):
    """Within: arithmetic and compulsory memory traffic of our operators, summed from their records."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = op_of(func)
        if op is not None:
            self.flops += op.flops(*args)
            self.bytes += op.bytes(*args)
        return func(*args, **(kwargs or {}))


def verified(problem: Problem, row: dict[str, Any], compile: bool) -> dict[str, Run]:
    """The runs that may be timed. Ours and torch.compile's must be as near to float64 as eager, within a factor and
    an epsilon; errors: AssertionError for ours or eager's."""
    sample = problem if problem.sample is None else problem._replace(tensors=problem.sample())
    grad = gradient(sample)
    reference = exact(sample, grad)
    before = sum(cnn_triton.launches().values())
    calls = {"ours": problem.ours, "eager": problem.theirs}
    row["errors"] = {name: error(step(call, sample, grad)(), reference) for name, call in calls.items()}
    row["launches"] = sum(cnn_triton.launches().values()) - before
    allowed = 2 * row["errors"]["eager"] + EPS[sample.tensors[0].dtype]
    assert row["launches"] > 0, "no kernel of ours ran"
    assert row["errors"]["eager"] < 0.25, f"PyTorch's error against float64 is {row['errors']['eager']:.2g}"
    assert row["errors"]["ours"] <= allowed, f"our error is {row['errors']['ours']:.2g}, allowed {allowed:.2g}"
    for who, other in problem.others.items():
        try:
            found = error(step(other, sample, grad)(), reference)
        except RuntimeError as reason:
            row["notes"].append(f"{who} failed: {str(reason)[:300]}")
            continue
        if found <= allowed:
            calls[who], row["errors"][who] = other, found
        else:
            row["notes"].append(f"{who} has error {found:.2g}, allowed {allowed:.2g}: not timed")
    for options in COMPILE[-1 if problem.images else 0 :] if compile else ():
        way = " ".join(map(str, options.values()))
        try:
            torch._dynamo.reset()
            candidate = torch.compile(problem.theirs, dynamic=False, **options)
            found = error(step(candidate, sample, grad)(), reference)
            if sample is not problem:
                step(candidate, problem, gradient(problem))()  # compiles again, for its shapes
        except Exception as reason:
            row["notes"].append(f"torch.compile ({way}) failed: {type(reason).__name__}: {str(reason)[:300]}")
            continue
        if found <= allowed:
            calls["compile"], row["errors"]["compile"], row["compile"] = candidate, found, way
            break
        row["notes"].append(f"torch.compile ({way}) has error {found:.2g}, allowed {allowed:.2g}: not timed")
    del reference
    whole = grad if sample is problem else gradient(problem)
    return {who: step(call, problem, whole) for who, call in calls.items()}


def measure(
    name: str,
    problem: Problem,
    clock: HostClock | GpuClock,
    limits: dict[str, float],
    rounds: int = 30,
    seconds: float = 1.0,
    compile: bool = False,
) -> dict[str, Any]:
    """A row: milliseconds of ours and of each baseline with the right result, ratios, rates, and shares of limits."""
    row: dict[str, Any] = {"problem": name, "mode": problem.mode, "notes": []}
    runs = verified(problem, row, compile)
    with Counted() as counted:
        runs["ours"]()
    row["flops"], row["bytes"] = counted.flops, counted.bytes
    row["milliseconds"] = interleaved(runs, clock, rounds, seconds)
    mine = row["milliseconds"]["ours"]["p50"]
    row["ratio"] = {who: t["p50"] / mine for who, t in row["milliseconds"].items() if who != "ours"}
    row["TFLOP/s"], row["GB/s"] = counted.flops / mine / 1e9, counted.bytes / mine / 1e6
    if problem.images:
        row["images/s"] = {who: 1e3 * problem.images / t["p50"] for who, t in row["milliseconds"].items()}
    row["share of product"] = row["TFLOP/s"] / limits[f"{name.split()[0]} product, TFLOP/s"]
    row["share of copy"] = row["GB/s"] / limits["copy, GB/s"]
    row["achieved / compulsory"] = 1 / row["share of copy"]
    row["host-bound"] = [who for who, t in row["milliseconds"].items() if t["host"] > clock.covered]
    for who, t in row["milliseconds"].items():
        if who in row["host-bound"]:
            row["notes"].append(f"{who}: the host took {t['host']:.3g} ms to queue it, so the GPU waited for the host")
    return row


def ceilings(clock: HostClock | GpuClock, device: torch.device) -> dict[str, float]:
    """What the chip reaches in this run: a copy's GB/s, read and written, and a product's TFLOP/s by arithmetic."""
    gpu = device.type == "cuda"
    size, side = (1 << 31, 8192) if gpu else (1 << 24, 256)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    took = interleaved({"copy": lambda: target.copy_(source)}, clock, 15, 2.0)["copy"]["p50"]
    found = {"copy, GB/s": 2 * size / took / 1e6}
    for name in ("bf16", "fp16", "tf32") if gpu else ("fp32",):
        x, y = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(2))
        took = interleaved({"product": lambda x=x, y=y: x @ y}, clock, 15, 2.0)["product"]["p50"]
        found[f"{name} product, TFLOP/s"] = 2 * side**3 / took / 1e9
    return found


@contextlib.contextmanager
def memory_returned(device: torch.device) -> Iterator[None]:
    """After it, the GPU's cached memory is free: what one problem held must not cost the next one."""
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()

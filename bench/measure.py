"""How it is measured: verified, then interleaved on cold caches; medians with spread, and the chip's ceilings."""

import datetime
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
import triton

import cnn_triton

from .problems import Problem

Run = Callable[[], Any]


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and the 20th and 80th percentile."""
    values = sorted(values)
    return {f"p{q}": values[min(len(values) * q // 100, len(values) - 1)] for q in (20, 50, 80)}


def interleaved(runs: dict[str, Run], device: torch.device, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of each run, by name, each round in turn; on a GPU by events, with L2 flushed before each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    gpu = device.type == "cuda"
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if gpu else None
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, run in runs.items():
            if flush is not None:
                flush.zero_()
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                torch.cuda.synchronize()
                times[name].append(start.elapsed_time(stop))
            else:
                begun = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: quantiles(values) for name, values in times.items()}


def step(function: Callable[..., Any], problem: Problem) -> Run:
    """One call: the function, and with training the gradients of all its tensors."""
    if not problem.training:

        def forward() -> Any:
            with torch.no_grad():
                return (function(*problem.tensors),)

        return forward
    leaves = [t.detach().requires_grad_() for t in problem.tensors]
    with torch.no_grad():
        y = function(*leaves)
    generator = torch.Generator(y.device).manual_seed(0)  # the same gradient for ours and the baselines
    grad = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
    return lambda: (y := function(*leaves), *torch.autograd.grad(y, leaves, grad))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile's version; max-autotune without CUDA graphs, which would time replays instead of launches."""
    torch._dynamo.reset()
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def difference(result: Any, reference: Any) -> float:
    """Largest ‖a − b‖ / ‖b‖ over outputs and gradients; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(result, reference, strict=True):
        error = ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def measure(
    problem: Problem, device: torch.device, rounds: int = 30, seconds: float = 2.0, compile: bool = False
) -> dict[str, Any]:
    """A row: milliseconds of ours and each baseline that gives the same result, ratios, rates; our launches."""
    runs = {"ours": step(problem.ours, problem), "eager": step(problem.theirs, problem)}
    row: dict[str, Any] = {"problem": problem.name, "training": problem.training, "notes": []}
    before = sum(cnn_triton.launches().values())
    ours = runs["ours"]()
    row["launches"] = sum(cnn_triton.launches().values()) - before
    assert row["launches"] > 0, "no kernel of ours ran"
    row["difference from eager"] = difference(ours, runs["eager"]())
    bound = {torch.bfloat16: 0.03, torch.float16: 0.005}.get(problem.tensors[0].dtype, 0.005)
    assert row["difference from eager"] < bound, (
        f"{problem.name}: differs from PyTorch by {row['difference from eager']}"
    )
    if compile:
        try:
            candidate = step(compiled(problem.theirs), problem)
            error = difference(candidate(), runs["eager"]())
            if error < bound:
                runs["compile"] = candidate
            else:
                row["notes"].append(f"torch.compile's result differs from eager's by {error:.2g}: not timed")
        except Exception as reason:
            row["notes"].append(f"torch.compile failed: {type(reason).__name__}")
    row["milliseconds"] = interleaved(runs, device, rounds, seconds)
    mine = row["milliseconds"]["ours"]["p50"]
    row["ratio"] = {name: t["p50"] / mine for name, t in row["milliseconds"].items() if name != "ours"}
    if problem.flops:
        row["TFLOP/s"] = problem.flops / mine / 1e9
        row["GB/s"] = problem.bytes / mine / 1e6
    return row


def ceilings(device: torch.device) -> dict[str, float]:
    """What the chip reaches in this run: a copy's GB/s (read and written), a bfloat16 product's TFLOP/s."""
    gpu = device.type == "cuda"
    size, side = (1 << 31, 8192) if gpu else (1 << 24, 256)
    a, b = (torch.empty(size, dtype=torch.int8, device=device).random_(0, 100) for _ in range(2))
    x, y = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    times = interleaved({"copy": lambda: b.copy_(a), "product": lambda: x @ y}, device, 15, 5.0)
    return {
        "copy GB/s": 2 * size / times["copy"]["p50"] / 1e6,
        "bfloat16 TFLOP/s": 2 * side**3 / times["product"]["p50"] / 1e9,
    }


def environment(device: torch.device) -> dict[str, str]:
    """Where and with what the figures came to be."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "kernels": cnn_triton.where(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def table(report: dict[str, Any]) -> str:
    """A report as a Markdown table."""
    lines = [
        "# Results",
        "",
        *(f"- {name}: {value}" for name, value in report["environment"].items()),
        *(f"- ceiling, {name}: {value:.4g}" for name, value in report["ceilings"].items()),
        "",
        "| problem | ours, ms | eager / ours | compile / ours | TFLOP/s | of ceiling | GB/s | of ceiling |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    flops, copy = report["ceilings"]["bfloat16 TFLOP/s"], report["ceilings"]["copy GB/s"]
    for row in report["rows"]:
        ratio = {name: f"{row['ratio'][name]:.2f}" if name in row["ratio"] else "" for name in ("eager", "compile")}
        rates = ["", "", "", ""]
        if "GB/s" in row:
            tera, giga = row["TFLOP/s"], row["GB/s"]
            rates = [f"{tera:.3g}", f"{tera / flops:.0%}", f"{giga:.4g}", f"{giga / copy:.0%}"]
        cells = [row["label"], f"{row['milliseconds']['ours']['p50']:.4g}", ratio["eager"], ratio["compile"], *rates]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {row['label']}: {note}" for row in report["rows"] for note in row["notes"]]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"

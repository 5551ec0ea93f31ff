"""`cnn-triton profile`: finds a model, profiles a step of it, and shows the figures."""

import contextlib
import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from .. import backend, nn
from ..classifier import runs
from ..classifier.models import MODELS
from ..fusion.convert import convert
from ..tools.calls import nearest
from ..tools.profiling import Profile, Row, in_mode, profile, step_of
from .jobs import fail, open_run, write_file

__all__ = ["ncu", "profile_model"]

_USUAL = {"vgg": (3, 32, 32)}  # images' (channels, height, width) for built-in models; for others MNIST's


class Found(NamedTuple):
    """A model, the shape of its images, and True if its layers are this library's already."""

    model: torch.nn.Module
    shape: tuple[int, int, int]
    ours: bool


def profile_model(
    name: str, shape: str | None, batch: int, device: torch.device, dtype: torch.dtype, steps: int, *,
    training: bool, compare: bool, json: Path | None, trace: Path | None, roofline: Path | None, proton: Path | None,
) -> None:  # fmt: skip
    """Profile a step, show it as tables, and write the files that were asked for."""
    if compare and proton is not None:
        fail("--proton: can't be used with --compare, whose profiler keeps the GPU's counters to itself")
    found = find(name, _shape(shape), device)
    model = found.model.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, *found.shape).to(device, dtype, memory_format=torch.channels_last)
    original, into = None, {}
    if compare:
        with backend("aten") if found.ours else contextlib.nullcontext():
            original = profile(model, x, training=training, steps=steps, title=f"{name}, PyTorch's own operators")
        model.zero_grad(set_to_none=True)
    if not found.ours:
        with in_mode(model, training):
            report = convert(model, x)
        print(report)
        fused = report.captures.fused
        into = {layer: each.module for each in fused for layer in each.places[1:] if layer != each.module}
    if proton is not None:  # before PyTorch's profiler, which would keep the GPU's counters to itself
        _proton(model, x, training, proton)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
    result = profile(model, x, training=training, steps=steps, title=name, trace=trace)
    show(result, original, into)
    if json is not None:
        write_file(json, result.as_json().encode())
    if roofline is not None:
        write_file(roofline, _plot(result, roofline))


def find(name: str, shape: tuple[int, int, int] | None, device: torch.device) -> Found:
    """Return the model of a name: a built-in model's, a run's folder, or module:function, which is called. Fail for any
    other name."""
    if name in MODELS:
        c, h, w = shape or _USUAL.get(name, (1, 28, 28))
        return Found(MODELS[name](c, (h, w), 10), (c, h, w), True)
    if runs.is_run(Path(name)):
        run = open_run(Path(name), device)
        own = (run.config.channels, run.config.height, run.config.width)
        if shape not in (None, own):
            fail(f"--input {shape}: the run in {name} is of images {'x'.join(map(str, own))}; leave the option out")
        return Found(run.model, own, True)
    if ":" not in name:
        hint = nearest(name, MODELS)
        fail(f"MODEL {name}: neither a built-in network, nor a run's folder, nor module:function; {hint}")
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        fail(f"MODEL {name}: {error}; it must name a function without arguments that returns a torch.nn.Module")
    finally:
        sys.path.remove("")
    if not isinstance(model, torch.nn.Module):
        fail(f"MODEL {name}: it returned a {type(model).__name__}, and must return a torch.nn.Module")
    ours = any(getattr(nn, type(layer).__name__, None) is type(layer) for layer in model.modules())
    return Found(model, shape or (3, 224, 224), ours)


def _shape(text: str | None) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of 'CxHxW'."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not numbers:
        fail(f"--input must be channels x height x width, as 3x224x224, but got {text!r}")
    c, h, w = map(int, numbers.groups())
    return c, h, w


def show(result: Profile, original: Profile | None, into: dict[str, str]) -> None:
    """Print the tables of layers, of kernels and of the step, and the figures that are not known.

    into: the layer whose kernel does another layer's work in the converted model, by that layer; PyTorch's time for the
    other layer is counted to it
    """
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=f"{result.title}: {'training' if result.training else 'forward'} step by layer")
    names = ["layer", "kind", "pass", "operators", "launches", "ms", "GFLOP", "MB", "TFLOP/s", "GB/s", "of roofline"]
    names += ["PyTorch, ms", "PyTorch / ours"] if original else []
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < 4 else "right", overflow="fold")
    theirs = _by_layer(original, into) if original else {}
    ours = _by_layer(result, into)
    for layer, phase in [*ours, *(each for each in theirs if each not in ours)]:
        rows, others = ours.get((layer, phase), []), theirs.get((layer, phase), [])
        table.add_row(*_cells(result, layer, phase, rows, others, bool(original)))
    console.print(table)
    if result.kernels:
        table = Table("kernel", "calls", "ms", title="Kernels, of a step")
        for kernel in result.kernels[:30]:
            table.add_row(kernel.name[:100], str(kernel.calls), f"{kernel.milliseconds:.4g}")
        console.print(table)
    for each in filter(None, (original, result)):
        busy = sum(row.milliseconds for row in each.rows)
        print(f"{each.title}: {each.device:.4g} ms a step ({each.runs}); {busy:.4g} ms in operators, ", end="")
        print(f"{max(each.device - busy, 0):.4g} ms between them; the host took {each.host:.4g} ms")
    if original:
        print(f"PyTorch / ours: {original.device / result.device:.3g}")
    for ceiling, limit in result.ceilings.items():
        print(f"measured here: {ceiling}: {limit:.4g}")
    for line in result.unknown:
        print(f"note: {line}")


def _by_layer(each: Profile, into: dict[str, str]) -> dict[tuple[str, str], list[Row]]:
    """Return a profile's rows by (layer, phase)."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in each.rows:
        found.setdefault((into.get(row.layer, row.layer), row.phase), []).append(row)
    return found


def _cells(result: Profile, layer: str, phase: str, rows: list[Row], others: list[Row], compared: bool) -> list[str]:
    """Return the cells of a layer in one phase: of our rows, and of PyTorch's where they are compared."""
    time, before = (sum(row.milliseconds for row in each) for each in (rows, others))
    flops, moved, launched = (sum(getattr(row, of) for row in rows) for of in ("flops", "bytes", "launches"))
    whole = Row(layer, "", phase, "", milliseconds=time, flops=flops, bytes=moved)
    share = result.roofline(whole)
    cells = [
        layer, (rows or others)[0].kind, phase, ", ".join(row.operator for row in rows), str(launched or ""),
        f"{time:.4g}" if rows else "", f"{flops / 1e9:.4g}" if flops else "", f"{moved / 1e6:.4g}" if moved else "",
        f"{flops / time / 1e9:.3g}" if flops else "", f"{moved / time / 1e6:.4g}" if moved else "",
        "" if share is None else f"{share:.1%}",
    ]  # fmt: skip
    if compared:
        cells += [f"{before:.4g}" if others else "", f"{before / time:.3g}" if rows and others else ""]
    return cells


def _plot(result: Profile, path: Path) -> bytes:
    """Return a plot of the roofline: each layer's arithmetic intensity and rate, below the ceilings of the device. The
    path's suffix names the format. Fail without ceilings, or for an unknown format."""
    from matplotlib.figure import Figure

    if not result.ceilings:
        fail(f"{path}: the machine's ceilings are not known where kernels run in Triton's interpreter")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    copy_rate, top = result.ceilings["copy, GB/s"] / 1e3, result.ceilings["product, TFLOP/s"]
    for phase, colour in (("forward", "#2a6f97"), ("backward", "#c1440e")):
        rows = [row for row in result.rows if row.phase == phase and row.flops and row.milliseconds]
        intensities = [row.flops / row.bytes for row in rows]
        axes.scatter(intensities, [row.flops / row.milliseconds / 1e9 for row in rows], s=14, color=colour, label=phase)
        for row, intensity in zip(rows, intensities, strict=True):
            axes.annotate(row.layer, (intensity, row.flops / row.milliseconds / 1e9), fontsize=6)
    low, high = axes.get_xlim()
    edge = [max(low, 1e-2), top / copy_rate, max(high, 2 * top / copy_rate)]
    axes.plot(edge, [edge[0] * copy_rate, top, top], color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s", title=result.title)
    axes.legend(frameon=False)
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix.removeprefix(".") or "png")
    except ValueError as error:
        fail(f"{path}: {error}")
    return content.getvalue()


def _proton(model: torch.nn.Module, x: torch.Tensor, training: bool, out: Path) -> None:
    """Profile a step by Triton's own profiler. Fail without it, or without a GPU."""
    try:
        import triton.profiler as proton
    except ImportError as error:
        fail(f"--proton: Triton's profiler can't be imported ({error})")
    if x.device.type != "cuda":
        fail("--proton: Triton's profiler needs a GPU, and none is here")
    out.parent.mkdir(parents=True, exist_ok=True)
    step = step_of(model, x, training)
    with in_mode(model, training):
        step()
        session = proton.start(str(out.with_suffix("")), hook="triton")
        step()
        torch.cuda.synchronize()
        proton.finalize(session)
    print(f"written: {out.with_suffix('.hatchet')}")


def ncu(kernel: str, arguments: list[str]) -> None:
    """Print the command by which Nsight Compute profiles one kernel, and run it where it is installed."""
    words = ["ncu", "--kernel-name", f"regex:{kernel}", "--launch-skip", "3", "--launch-count", "1", "--set", "full"]
    command = [*words, "cnn-triton", "profile", *arguments]
    print(shlex.join(command))
    if shutil.which("ncu") and torch.cuda.is_available():
        raise SystemExit(subprocess.run(command, check=False).returncode)
    print("note: Nsight Compute (ncu) or a GPU is missing here; run the command where both are")

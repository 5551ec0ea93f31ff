"""Compiles what `make gpu` will launch, on a machine without its GPU, and packs it: python -m bench.prepare.

A GPU that is lent by the minute then begins with warm kernels (see prepared.py).
"""

import argparse
import contextvars
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: kernels are to be compiled

import torch
import triton

from cnn_triton.dispatch import as_on_a_gpu
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.core.chips import NAMES
from cnn_triton.kernels.core.op import Launch, collecting
from cnn_triton.tools.warmup import Collecting, compile_launches

from . import measure, prepared, problems, report, tune
from .calls import ARITHMETICS, PASSES, calls
from .layers import BY_NAME

Launches = Callable[[], list[Launch]]


def operators() -> Iterator[tuple[str, Launches]]:
    """What the tests of every operator launch, float32 and TF32."""
    sys.path.insert(0, str(report.ROOT / "tests"))
    from cases import CASES

    def launches(case: Any, form: str, precision: str) -> list[Launch]:
        with float32_precision(precision), collecting() as launched:
            case.op.launch(*case.make(torch.float32, form))
        return launched

    seen = set()
    for case in CASES:
        if case.op not in seen and "1" not in case.label:
            seen.add(case.op)
            for form, precision in (("channels_last", "ieee"), ("channels_last", "tf32"), ("contiguous", "ieee")):
                yield case.op.name, partial(launches, case, form, precision)


def benchmarks() -> Iterator[tuple[str, Launches]]:
    """What the problems launch that are measured first."""

    def launches(make: Callable[[], problems.Problem]) -> list[Launch]:
        problem = make()
        with Collecting() as collected:
            measure.step(problem.ours, problem, measure.gradient(problem))()
        return collected.launches

    for name, make in problems.problems(torch.device("meta")).items():
        if problems.first(name):
            yield name, partial(launches, make)


def candidates() -> Iterator[tuple[str, Launches]]:
    """What the tuner launches for the layers that it begins with."""

    def launches(layer: str, i: int) -> list[Launch]:
        dtype, _ = ARITHMETICS["bf16"]
        with torch.device("meta"):
            op, args = calls(BY_NAME[layer], dtype)[i]
        with tune.picking() as noted, collecting() as launched:
            result = op.launch(*args)
            for tile in tune.served(noted):
                noted.tile = tile
                op.launcher(result, *args)
        return launched

    for i, what in enumerate(PASSES):
        for layer in tune.FIRST:
            yield f"tiles of {layer}, {what}", partial(launches, layer, i)


def prepare(chip: str, minutes: float, workers: int, wheel: Path | None = None) -> list[str]:
    """Compiles what fits into the time, the most valuable first; what was left out, and what failed with its reason."""
    end, left = time.perf_counter() + 60 * minutes, []
    with prepared.as_if(wheel), aot.compiling_for(chip), as_on_a_gpu():
        for name, launches in (each for some in (operators, benchmarks, candidates) for each in some()):
            if time.perf_counter() > end:
                left.append(f"{name}: no time")
                continue
            begun, before = time.perf_counter(), prepared.count()
            try:
                contextvars.copy_context().run(compile_launches, launches(), workers, load=False)
            except RuntimeError as reason:
                left.append(f"{name}: {reason}")
            print(f"{time.perf_counter() - begun:6.1f} s  {prepared.count() - before:3d} kernels  {name}", flush=True)
    return left


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="sm_90", choices=NAMES, help="of the GPU; sm_90 unless given")
    parser.add_argument("--minutes", type=float, default=15, help="for compiling; 15 unless given")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads; one for each CPU unless given"
    )
    parser.add_argument("--there", type=Path, help="the other machine's wheel of Triton, unpacked; this one's if none")
    options = parser.parse_args(arguments)
    with prepared.as_if(options.there):
        key = prepared.key()
    prepared.begin(sources=report.sources(), chip=options.chip, triton=triton.__version__, key=key)
    os.environ["TRITON_CACHE_DIR"] = str(prepared.KERNELS)
    left = prepare(options.chip, options.minutes, options.workers, options.there)
    prepared.pack()
    print(*left, sep="\n")
    size = prepared.PACKED.stat().st_size / 2**20
    print(f"{prepared.count()} kernels for {options.chip}, {len(left)} left out, {size:.1f} MiB: {prepared.PACKED}")
    return 0 if prepared.count() else 1


if __name__ == "__main__":
    raise SystemExit(main())

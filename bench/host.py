"""What a call takes of the host, in microseconds: python -m bench.host [--out FILE].

Of conv2d_relu, with 1x16x8x8 images, 3 x 3 and 16 outputs, there is next to nothing to compute, so the time is that of
Python, PyTorch's dispatch and the launch. On a GPU ours and PyTorch's chain in turns; without one ours alone, on CPU
tensors and with compiled kernels: a stub of the driver takes the launches, and CUDA's allocator has no part.
"""

import argparse
import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: kernels are to be compiled

import torch
import torch.nn.functional as F

from cnn_triton import functional
from cnn_triton.dispatch import as_on_a_gpu
from cnn_triton.kernels.base.lang import triton
from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.registry import OPS

from .measure import HostClock, interleaved
from .report import environment

CALLS = 100  # in a row, after which the GPU may catch up


@contextlib.contextmanager
def launching_nothing(chip: str) -> Iterator[None]:
    """Within, our operators on CPU tensors launch kernels compiled for the chip, on a driver that drops launches."""
    library = torch.library.Library("cnn_triton", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that they are overridden
        for op in OPS:
            op.plans.clear()  # they don't know of chips
            library.impl(op.name, op.launch, "CPU", allow_override=True)
    compiled, init = triton.compiler.CompiledKernel, triton.compiler.CompiledKernel._init_handles

    def no_handles(kernel: Any) -> None:
        kernel.module = kernel.function = 0
        kernel._run = lambda *args: None

    compiled._init_handles = no_handles
    try:
        with aot.targeting(chip), as_on_a_gpu():
            yield
    finally:
        compiled._init_handles = init
        library._destroy()
        for op in OPS:
            op.plans.clear()


def calls(device: torch.device) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by name and whose it is."""
    image = {"device": device, "memory_format": torch.channels_last}
    x, w = torch.randn(1, 16, 8, 8).to(**image), torch.randn(16, 16, 3, 3).to(**image)
    b, grad = torch.randn(16, device=device), torch.randn(1, 16, 8, 8).to(**image)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    ours = lambda x, w, b: functional.conv2d_relu(x, w, b, 1, 1)  # noqa: E731
    theirs = lambda x, w, b: F.relu(F.conv2d(x, w, b, 1, 1))  # noqa: E731

    def forward(chain: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                for _ in range(CALLS):
                    chain(*leaves)

        return run

    def training(chain: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(CALLS):
                torch.autograd.grad(chain(*leaves), leaves, grad)

        return run

    chains = {"ours": ours} | ({"PyTorch": theirs} if device.type == "cuda" else {})
    modes = {"forward": forward, "forward and backward": training}
    return {mode: {who: make(chain) for who, chain in chains.items()} for mode, make in modes.items()}


class Clock(HostClock):
    """The host's clock, where a GPU is waited for outside of the time."""

    def time(self, run: Callable[[], Any]) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return super().time(run)


def measured(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for each mode: microseconds per call, and PyTorch's over ours where both are."""
    rows = []
    for mode, runs in calls(device).items():
        times = interleaved(runs, Clock(), rounds, math.inf)
        row: dict[str, Any] = {"call": "conv2d_relu 1x16x8x8, 3x3, 16 outputs", "mode": mode, "microseconds": {}}
        for who, figures in times.items():
            row["microseconds"][who] = {name: 1e3 * figures[name] / CALLS for name in ("p20", "p50", "p80")}
        if "PyTorch" in times:
            row["ratio"] = times["PyTorch"]["p50"] / times["ours"]["p50"]
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, as in bench/results/<machine>/host.json")
    parser.add_argument("--rounds", type=int, default=50, help=f"of {CALLS} calls each; 50 unless given")
    parser.add_argument("--chip", default="sm_90", help="which kernels are compiled for, without a GPU")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    with contextlib.nullcontext() if gpu else launching_nothing(options.chip):
        rows = measured(torch.device("cuda" if gpu else "cpu"), options.rounds)
    for row in rows:
        print(f"{row['mode']}:", *(f"{who} {t['p50']:.1f} us" for who, t in row["microseconds"].items()))
    if options.out:
        found = environment(torch.device("cuda" if gpu else "cpu"))
        if not gpu:
            found["kernels"] = f"Triton's, for {options.chip}; their launches are dropped by a stub of the driver"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"environment": found, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

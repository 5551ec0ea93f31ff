"""What conversion costs where PyTorch's own operators run: python -m bench.converted, on a CPU without the interpreter.

A model and its converted twin, eager and compiled, forward and training, in turns in one process; the ratio of their
medians, above 1 where the converted one is slower. With --out the figures go into a file, as JSON.
"""

import argparse
import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: a CPU's tensors are to go to PyTorch

import torch
from torch import nn

import cnn_triton

from .measure import HostClock, interleaved
from .report import environment

SHAPES = ((16, 32, 28, 28), (16, 64, 56, 56))


def network(channels: int) -> nn.Module:
    """Convolutions with normalisation and ReLU, a pool, a linear layer: all that conversion touches."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def call(model: nn.Module, x: torch.Tensor, training: bool) -> Callable[[], None]:
    """One step: forward in eval mode, or forward and backward in training mode."""
    model.train(training)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    return step if training else forward


def measured(shape: tuple[int, ...], training: bool, compiled: bool, rounds: int) -> dict[str, Any]:
    """A row: both models' milliseconds, and the ratio of the medians."""
    torch.manual_seed(0)
    original = network(shape[1])
    converted = copy.deepcopy(original)
    cnn_triton.convert(converted)
    models = {"original": original, "converted": converted}
    if compiled:
        torch._dynamo.reset()
        models = {name: torch.compile(model) for name, model in models.items()}
    x = torch.randn(shape)
    runs = {name: call(model, x, training) for name, model in models.items()}
    times = interleaved(runs, HostClock(), rounds, math.inf)
    row = {"shape": shape, "mode": "training" if training else "forward", "how": "compiled" if compiled else "eager"}
    return row | times | {"ratio": times["converted"]["p50"] / times["original"]["p50"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="turns of each pair; 100 unless given")
    parser.add_argument("--shape", type=int, nargs=4, action="append", help="N C H W; those above unless given")
    parser.add_argument("--out", type=Path, help="file for the figures, as in bench/results/<machine>/converted.json")
    options = parser.parse_args(arguments)
    rows = []
    for shape in options.shape or SHAPES:
        for compiled in (False, True):
            for training in (False, True):
                row = measured(shape, training, compiled, options.rounds)
                rows.append(row)
                print(f"{'x'.join(map(str, shape)):12} {row['how']:8} {row['mode']:8}: {row['ratio']:.3f}", flush=True)
    if options.out:
        figures = {"environment": environment(torch.device("cpu")) | {"CPUs": str(os.cpu_count())}, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

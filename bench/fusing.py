"""What is fused in public networks, and what conversion costs them on a CPU: python -m bench.fusing.

It prints docs/fusing.md's table: transformers' networks, small, and timm's, in eval mode and in training. With --out it
times networks of their usual size, batch 1, 64 x 64 pixels, original and converted in turns, where PyTorch's own
operators run: the captured graph as it was; the first call; and what of a call is not the graph, chiefly guards.
"""

import argparse
import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: a CPU's tensors are to go to PyTorch

import torch

import cnn_triton
from cnn_triton.fusion.backend import Captured

from .converted import call
from .measure import HostClock, interleaved
from .report import environment
from .zoo import SMALL, TIMM, USUAL, network, said, usual


def cells(name: str) -> Iterator[str]:
    """A row: the network; of eval mode the patterns and what was left; of training the patterns."""
    yield name
    for training in (False, True):
        model, x = network(name)
        with torch.set_grad_enabled(training):
            report = cnn_triton.convert(model.train(training), x)
        yield from said(report.captures)[: 1 if training else 2]


def table() -> str:
    """docs/fusing.md's table."""
    head = "| network | in eval mode | left apart there | in training |\n| --- | --- | --- | --- |"
    return "\n".join([head, *(f"| {' | '.join(cells(name))} |" for name in (*SMALL, *TIMM))])


def fixed(run: Callable[[], Any], calls: int = 200) -> float:
    """Seconds of a call of a converted model whose graph costs nothing: it gives what it gave before."""
    kept: list[Any] = []
    usual = Captured.__call__

    def keeping(graph: Captured, *args: Any) -> Any:
        kept[:] = [usual(graph, *args)]
        return kept[0]

    times = []
    try:
        Captured.__call__ = keeping  # type: ignore[method-assign]
        run()
        Captured.__call__ = lambda graph, *args: kept[0]  # type: ignore[method-assign]
        for _ in range(calls):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    finally:
        Captured.__call__ = usual  # type: ignore[method-assign]
    return statistics.median(times)


def timed(name: str, training: bool, rounds: int) -> dict[str, Any]:
    """A row: milliseconds of the original and of the converted network, their ratio, the first call's seconds, and in
    forward those of a call without its graph."""
    original, x = usual(name)
    if training:  # so that each channel has more than one value
        x = x.expand(2, -1, -1, -1).contiguous()
    converted = copy.deepcopy(original)
    report = cnn_triton.convert(converted)
    runs = {"original": call(original, x, training), "converted": call(converted, x, training)}
    begun = time.perf_counter()
    runs["converted"]()
    first = time.perf_counter() - begun
    assert report.captures.graphs > 0
    times = interleaved(runs, HostClock(), rounds, math.inf)
    row = {"network": name, "mode": "training" if training else "forward", "graphs": report.captures.graphs}
    ratio = times["converted"]["p50"] / times["original"]["p50"]
    costs = {"first call, seconds": first}
    if not training:
        assert report.captures.graphs == 1
        costs["a call without its graph, seconds"] = fixed(runs["converted"])
    return row | costs | times | {"ratio": ratio}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the times, as in bench/results/<machine>/fusing.json")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each pair; 30 unless given")
    options = parser.parse_args(arguments)
    if options.out is None:
        print(table())
        return 0
    rows = []
    for name in (*USUAL, *TIMM):
        for training in (False, True):
            rows.append(timed(name, training, options.rounds))
            print(*(rows[-1][key] for key in ("network", "mode", "ratio", "first call, seconds")), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"environment": environment(torch.device("cpu")) | {"CPUs": str(os.cpu_count())}, "rows": rows}
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

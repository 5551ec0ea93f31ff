"""Bounds of operators and of networks' layers by their compiled code: make bounds, or python -m bench.bounds.

    python -m bench.bounds count [--chips sm_90 ...] [--dtypes ...] [--groups ...]    counts anew, and writes the file
    python -m bench.bounds show [WORDS]                                     prints the tables of what the file has

A row sums up the launches of one operator of a call: the least time by cnn_triton.tools.bounds, and its ratio to the
operator's ideal, that of its compulsory traffic and its arithmetic alone. A sum that gets worse needs --reason.
"""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: kernels are to be compiled

import torch

from cnn_triton.files import replace
from cnn_triton.tools.bounds import boards_of, bounds_of, ideal
from cnn_triton.tools.calls import Call, call_of

from .layers import BATCH, LAYERS, Layer

ROOT = Path(__file__).parents[1]
FILE = ROOT / "bench" / "results" / "no-gpu" / "bounds.csv"
CHIPS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
DTYPES = ("bfloat16", "tf32")
LAYOUTS = ("channels_last", "contiguous")
SAMPLE = 16  # blocks of a launch that run
NETWORKS = ("ResNet-50", "VGG-16", "MobileNetV2", "ConvNeXt-T")
POOLED = "VGG-16, pooled"  # each of its blocks' last convolution with the ReLU and the pool behind it
GROUPS = ("operators", *NETWORKS, POOLED)
_POOL = "input=32x64x112x112"
_MAPS = "input=32x64x56x56"
_CONV = f"{_MAPS} weight=64x64x3x3 padding=1"
OPERATORS = {
    "max_pool2d 3x3 s2": f"{_POOL} kernel_size=3 stride=2 padding=1",
    "max_pool2d 2x2": f"{_POOL} kernel_size=2",
    "max_pool2d 3x3 s1": f"{_MAPS} kernel_size=3 stride=1 padding=1",
    "max_pool2d 3x3 s2 of 57x57": "input=32x64x57x57 kernel_size=3 stride=2",
    "avg_pool2d 3x3 s2": f"{_POOL} kernel_size=3 stride=2 padding=1",
    "avg_pool2d 2x2": f"{_POOL} kernel_size=2",
    "adaptive_avg_pool2d to 1x1": "input=32x2048x7x7 output_size=1",
    "max_unpool2d 2x2": f"{_MAPS} indices=32x64x56x56 kernel_size=2",
    "conv2d_relu 3x3 64-64": f"{_CONV} bias=64",
    "conv2d 3x3 64-64, gelu": f"{_CONV} bias=64 activation=gelu",
    "conv2d 3x3 64-64, silu": f"{_CONV} bias=64 activation=silu",
    "conv2d 3x3 64-64, tanh": f"{_CONV} bias=64 activation=tanh",
    "conv2d_batch_norm 3x3 64-64, relu": f"{_CONV} training=true activation=relu",
    "conv2d_batch_norm 3x3 64-64, gelu": f"{_CONV} training=true activation=gelu",
    "conv2d_relu_max_pool2d 3x3 64-64": f"{_CONV} bias=64",
    "conv2d_relu_avg_pool2d 3x3 64-64": f"{_CONV} bias=64",
    "linear_relu 4096-4096": "input=32x4096 weight=4096x4096 bias=4096",
}


# Why a cell of the tables (Cell's words in its order) is above 2: the first that matches.
REASONS = {
    r"ResNet-50 .* conv2d_input_grad$":
        "The first layer's images have three channels, of which threads read and write one element at a time.",
    r"ResNet-50 .* linear": "Over 32 rows the classifier has fewer tiles than there are multiprocessors.",
    r"tf32 channels_last sm_90 conv2d_(?:weight|pool)_grad$":
        "wgmma takes TF32 along the reduction alone: boxes are turned through registers, with bank conflicts.",
    r"contiguous (?:sm_80|sm_89|gfx942) conv2d_pool$":
        "Without TMA a convolution with a pooling gathers contiguous images one element at a time.",
    r"contiguous \S+ conv2d":
        "Contiguous images are copied to channels_last for products, and results back, which the ideal does not need.",
    r"batch_norm_grad$":
        "Sums over the batch come first, so images are read twice, 1.67 of the ideal, and gelu is computed twice.",
    r"max_unpool2d$":
        "Indices may be equal, and the last wins: a first pass writes which index has a pixel, a second one reads it.",
    r"(?:sm_100|gfx942) (?:max_pool2d|batch_norm)":
        "Memory is faster beside the issue rate than on an H200, for which these kernels' instructions are few enough.",
    r"gfx942 (?:conv2d|linear|activation)":
        "Operands pass through registers, and their addresses take instructions of the vector units.",
    r"sm_80 conv2d":
        "In a layer of 64 columns warps read their operands from shared memory more often than they multiply.",
    r"sm_80 linear_weight_grad$":
        "Over 32 rows a tile's products are few, and its store is most of its instructions.",
    r"sm_100 conv2d":
        "In a layer of 64 columns the epilogue weighs most, beside products twice as fast as an H200's.",
}  # fmt: skip


class Row(NamedTuple):
    """An operator of a call, in text; times in microseconds, of the board in tools.bounds."""

    group: str
    call: str
    dtype: str
    layout: str
    chip: str
    operator: str
    kernels: str
    ratio: str
    ideal: str
    least: str
    bound: str
    instructions: str
    bytes: str
    flops: str
    wavefronts: str


def names(group: str) -> Iterator[str]:
    """Yield the names of a group's calls."""
    if group == "operators":
        yield from OPERATORS
    elif group == POOLED:
        yield from (
            layer.name for layer in LAYERS if layer.times("VGG-16") and layer.kind == "conv" and layer.c == layer.k
        )
    else:
        yield from (layer.name for layer in LAYERS if layer.times(group))


def call(group: str, name: str, dtype: str, layout: str) -> Call:
    """Return a call, with its gradients."""
    how: dict[str, Any] = {"dtype": dtype, "channels_last": layout == "channels_last", "gradients": True}
    if group == "operators":
        return call_of(name.split()[0], OPERATORS[name].split(), **how)
    layer = next(each for each in LAYERS if each.name == name)
    conv = "conv2d_relu_max_pool2d" if group == POOLED else "conv2d_relu"
    return call_of("linear_relu" if layer.kind == "linear" else conv, _words(layer), **how)


def _words(layer: Layer) -> list[str]:
    sizes = ["x".join(map(str, shape)) for shape in layer.shapes(BATCH)[:2]]
    words = [f"input={sizes[0]}", f"weight={sizes[1]}", f"bias={layer.k}"]
    if layer.kind == "linear":
        return words
    words += [f"padding={layer.padding}"]
    return words if layer.stride == layer.groups == 1 else [*words, f"stride={layer.stride}", f"groups={layer.groups}"]


def count(group: str, name: str, dtype: str, layout: str, chip: str) -> list[Row]:
    """Return the rows of a call."""
    torch.manual_seed(0)
    board = boards_of(chip)[0]
    rows = []
    for operator, bounds in bounds_of(call(group, name, dtype, layout), board, SAMPLE):
        best = ideal(operator, dtype, board)
        if not bounds or not best:
            continue
        least = sum(each.times.longest for each in bounds)
        longest = max(bounds, key=lambda each: each.times.longest)
        work = ("instructions", "bytes", "flops", "wavefronts")
        totals = [sum(getattr(each, field) for each in bounds) for field in work]
        kernels = " + ".join(each.kernel for each in bounds)
        figures = (f"{least / best:.3f}", f"{best:.2f}", f"{least:.2f}", longest.times.name, *map(str, totals))
        rows.append(Row(group, name, dtype, layout, chip, operator.name, kernels, *figures))
    return rows


def read() -> list[Row]:
    """Return the rows of the file."""
    if not FILE.exists():
        return []
    with FILE.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [Row(*row) for row in rows]


def written(rows: Iterable[Row]) -> str:
    """Return the file's text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Row._fields, *sorted(rows)])
    return text.getvalue()


Sum = tuple[str, ...]


def sums(rows: Iterable[Row]) -> dict[Sum, float]:
    """Return the least times over the ideals of a group's calls, by group, dtype, layout, chip and operator."""
    least: dict[Sum, float] = {}
    best: dict[Sum, float] = {}
    for row in rows:
        key = (row.group, row.dtype, row.layout, row.chip, row.operator)
        least[key], best[key] = least.get(key, 0) + float(row.least), best.get(key, 0) + float(row.ideal)
    return {key: least[key] / best[key] for key in least}


def worse(before: Iterable[Row], after: Iterable[Row]) -> list[str]:
    """Return in words the sums that are more than half a percent worse than before."""
    old = sums(before)
    return [
        f"{', '.join(key)}: {ratio:.3f}, was {old[key]:.3f}"
        for key, ratio in sums(after).items()
        if key in old and ratio > 1.005 * old[key]
    ]


class Cell(NamedTuple):
    """A cell of the tables: an operator of a call, or of all layers of a network."""

    group: str
    call: str
    dtype: str
    layout: str
    chip: str
    operator: str
    ratio: float
    bound: str


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Return the cells of the tables."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        call = row.call if row.group == "operators" else "all layers"
        found.setdefault((row.group, call, row.dtype, row.layout, row.chip, row.operator), []).append(row)
    return [Cell(*key, *_ratio(some)) for key, some in found.items()]


def _ratio(rows: list[Row]) -> tuple[float, str]:
    """Return the least time of rows over their ideal, and what bounds most of it."""
    least: dict[str, float] = {}
    for row in rows:
        least[row.bound] = least.get(row.bound, 0) + float(row.least) * _times(row)
    best = sum(float(row.ideal) * _times(row) for row in rows)
    return sum(least.values()) / best, max(least, key=lambda bound: least[bound])


def _times(row: Row) -> int:
    """Return how often a row counts in its group: as often as a network has its layer."""
    return max([1, *(layer.times(row.group) for layer in LAYERS if layer.name == row.call)])


def reason(cell: Cell) -> str | None:
    """Return why a cell is above 2."""
    said = " ".join(cell[:6])
    return next((why for words, why in REASONS.items() if re.search(words, said)), None)


def tables(rows: Iterable[Row], words: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the tables, of the cells that have all the words, and the reasons of what is above 2."""
    chosen = [cell for cell in cells(rows) if all(word in " ".join(cell[:6]) for word in words)]
    why = {reason(cell): "" for cell in chosen if cell.ratio > 2}
    marks = {each: f"[{i}]" for i, each in enumerate(why, 1)}
    for chip, dtype in dict.fromkeys((cell.chip, cell.dtype) for cell in chosen):
        yield f"{chip} ({boards_of(chip)[0].name}), {dtype}: least time over the ideal, channels_last / contiguous"
        some = {cell[:6]: cell for cell in chosen if (cell.chip, cell.dtype) == (chip, dtype)}
        for group, call, operator in dict.fromkeys((cell.group, cell.call, cell.operator) for cell in some.values()):
            pair = [some.get((group, call, dtype, layout, chip, operator)) for layout in LAYOUTS]
            ratios = " / ".join(f"{each.ratio:6.2f}" if each else "-" for each in pair)
            bounds = " / ".join(each.bound if each else "-" for each in pair)
            notes = " ".join(dict.fromkeys(marks[reason(each)] for each in pair if each and each.ratio > 2))
            name = call if group == "operators" else group
            yield f"  {name:36} {operator:26} {ratios}   {bounds} {notes}".rstrip()
        yield ""
    yield from (f"{mark} {each or 'no reason is known'}" for each, mark in marks.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("count", "show"))
    parser.add_argument("words", nargs="*", help="of rows to show")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=CHIPS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--reason", default="", help="why sums got worse")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = read()
    if options.command == "count":
        jobs = [(group, name, dtype, layout, chip) for group in options.groups for name in names(group)
                for dtype in options.dtypes for layout in LAYOUTS for chip in options.chips]  # fmt: skip
        with ProcessPoolExecutor(options.workers) as pool:
            new = [row for some in pool.map(count, *zip(*jobs, strict=True)) for row in some]
        kept = [row for row in rows if (row.group, row.call, row.dtype, row.layout, row.chip) not in set(jobs)]
        found = worse(rows, new + kept)
        print("\n".join(f"worse: {each}" for each in found))
        if found and not options.reason:
            print("say why with --reason", file=sys.stderr)
            return 1
        rows = sorted(new + kept)
        replace(FILE, written(rows).encode())
    print("\n".join(tables(rows, options.words)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The table of docs/results.md and the plots, from the raw files alone: python -m bench.publish, or make results.

The table has a column for each GPU that has a folder in bench/results/, made of the files that `bench.run` and
`bench.host` left there. A cell without a file says 'not measured yet'. Without any GPU, a sentence replaces the table.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from .layers import Layer
from .problems import BATCHES, NCHW_MODES, PARTS, layer_of, part_of, problems

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
MARKS = ("<!-- results: made by make results -->", "<!-- end of results -->")
NONE = "not measured yet"
NO_GPU = "No GPU has run the kernels yet: `make gpu` measures one, and then `make results` writes its results here."
Row = dict[str, Any]


def read(folder: Path) -> tuple[dict[str, Row], dict[str, float], list[Row], set[str]]:
    """Return the (rows by problem, ceilings, rows of the host's time, commits) of a GPU's folder."""
    rows: dict[str, Row] = {}
    ceilings: dict[str, float] = {}
    commits: set[str] = set()
    for name in ("bench", *PARTS):
        file = folder / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            rows |= {row["problem"]: row for row in found["rows"]}
            ceilings |= found["ceilings"]
            commits.add(found["environment"]["commit"])
    host = folder / "host.json"
    return rows, ceilings, json.loads(host.read_text())["rows"] if host.exists() else [], commits


def best(row: Row) -> float:
    """Return the time of the row's best baseline over ours; baselines that wait for the host count only if all do."""
    fair = [ratio for who, ratio in row["ratio"].items() if who not in row.get("host-bound", ())]
    return float(min(fair or row["ratio"].values()))


def mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean; None of no values."""
    every = list(values)
    return statistics.geometric_mean(every) if every else None


class Line(NamedTuple):
    """A line of the table.

    words:      its first cell
    part, mode, layers: which problems it sums up
    quantities: "ratio", to the best baseline; "product" and "copy", the shares of what the chip reaches
    """

    words: str
    part: str
    mode: str
    quantities: tuple[str, ...] = ("ratio",)
    layers: Callable[[Layer], bool] | None = None

    def covers(self, name: str) -> bool:
        """True if it sums up this problem. The batch is the usual one; a demo's problems are left out."""
        if part_of(name) != self.part or not name.endswith(f", {self.mode}"):
            return False
        if self.part == "model":
            return f" n{BATCHES[0]}," in name or " n2," in name
        layer = layer_of(name)
        return " n" not in name and (self.layers is None or (layer is not None and self.layers(layer)))


def _depthwise(layer: Layer) -> bool:
    return layer.groups > 1 and layer.size == 3


LINES = (
    Line("conv + bias + ReLU, forward", "conv", "forward"),
    Line("conv + bias + ReLU, forward and backward", "conv", "training"),
    Line("3x3, 128 channels or more, forward", "conv", "forward", ("product",), lambda layer: layer.heavy),
    Line("3x3, 128 channels or more, in NCHW, forward", "conv", NCHW_MODES[0]),
    Line("3x3, 128 channels or more, in NCHW, forward and backward", "conv", NCHW_MODES[1]),
    Line("1x1 with bias and ReLU, forward", "conv", "forward", ("copy",), lambda layer: layer.size == 1),
    Line("depthwise 3x3, forward", "conv", "forward", ("ratio", "copy"), _depthwise),
    Line("depthwise 3x3, forward and backward", "conv", "training", ("ratio",), _depthwise),
    Line("max and average pooling, forward", "pool", "forward", ("ratio", "copy")),
    Line("max and average pooling, backward", "pool", "backward", ("ratio", "copy")),
    Line("conv + ReLU + max pool, forward", "block", "forward"),
    Line("conv + ReLU + max pool, forward and backward", "block", "training"),
    Line("locally connected, forward, against unfold", "local", "forward"),
    Line("locally connected, forward and backward, against unfold", "local", "training"),
    Line("whole networks, forward", "model", "forward"),
    Line("whole networks, training step", "model", "training"),
)


def cell(line: Line, rows: dict[str, Row], quantity: str, every: list[str]) -> str:
    """Return a cell: the geometric mean, and over how many problems of all."""
    names = [name for name in rows if line.covers(name)]
    if quantity == "ratio":
        value, shown = mean(best(rows[name]) for name in names), "{:.2f}x"
    else:
        value, shown = mean(rows[name][f"share of {quantity}"] for name in names), "{:.0%}"
    all_of_it = len({*names, *filter(line.covers, every)})
    return NONE if value is None else f"{shown.format(value)} ({len(names)} of {all_of_it})"


def table(folders: list[Path], arithmetic: str = "bf16") -> str:
    """Return the table as Markdown, with a column for each GPU; without any GPU, a sentence."""
    if not folders:
        return NO_GPU
    start = f"{arithmetic} "
    found = [(folder.name, *read(folder)) for folder in folders]
    every = [name for name in problems(torch.device("cuda")) if name.startswith(start)]
    names = [name for name, *_ in found]
    lines = [
        f"| {arithmetic}, channels_last unless said | | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    words = {"ratio": "best baseline / ours", "product": "of the product's ceiling", "copy": "of the copy's ceiling"}
    columns = [{name: row for name, row in rows.items() if name.startswith(start)} for _, rows, *_ in found]
    for line in LINES:
        for quantity in line.quantities:
            cells = [cell(line, rows, quantity, every) for rows in columns]
            lines.append(f"| {line.words} | {words[quantity]} | " + " | ".join(cells) + " |")
    for mode in ("forward", "forward and backward"):
        cells = []
        for _, _, _, host, _ in found:
            times = next((row["microseconds"] for row in host if row["mode"] == mode), {})
            cells.append(
                f"{times['ours']['p50']:.0f} us, PyTorch {times['PyTorch']['p50']:.0f} us"
                if "PyTorch" in times
                else NONE
            )
        lines.append(f"| conv2d_relu of 1x16x8x8, {mode} | the host's time | " + " | ".join(cells) + " |")
    commits = [", ".join(sorted({commit[:10] for commit in each})) for *_, each in found]
    lines.append("| commit | | " + " | ".join(commits) + " |")
    return "\n".join(lines)


def plots(folder: Path) -> None:
    """Write roofline.svg and ratios.svg into a folder that has rows."""
    rows, ceilings, *_ = read(folder)
    layers = {name: row for name, row in rows.items() if layer_of(name)}
    if not layers:
        return
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    copy = ceilings["copy, GB/s"] / 1e3
    for arithmetic, colour in (("bf16", "#2a6f97"), ("fp16", "#6a994e"), ("tf32", "#c1440e"), ("fp32", "#777777")):
        top = ceilings.get(f"{arithmetic} product, TFLOP/s")
        each = [row for name, row in layers.items() if name.startswith(f"{arithmetic} ") and row["bytes"]]
        if top is None or not each:
            continue
        axes.scatter([row["flops"] / row["bytes"] for row in each], [row["TFLOP/s"] for row in each], s=9, color=colour)
        edge = [min(row["flops"] / row["bytes"] for row in each), top / copy, 1e4]
        axes.plot(edge, [edge[0] * copy, top, top], color=colour, linewidth=1, label=arithmetic)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per compulsory byte", ylabel="TFLOP/s", title=folder.name)
    axes.legend(frameon=False)
    _save(figure, folder / "roofline.svg")
    shown = {
        name: row for name, row in layers.items() if name.endswith(", forward") and name.startswith(("bf16", "fp32"))
    }
    order = sorted(shown, key=lambda name: best(shown[name]))
    figure = Figure(figsize=(9, 0.16 * len(order) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(order, [best(shown[name]) for name in order], color="#2a6f97")
    axes.axvline(1, color="black", linewidth=1)
    axes.tick_params(axis="y", labelsize=6)
    axes.set(xlabel="best baseline / ours", ylim=(-0.6, len(order) - 0.4), title=f"{folder.name}, forward")
    _save(figure, folder / "ratios.svg")


def _save(figure: Figure, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    figure.savefig(part, format="svg", metadata={"Date": None})
    part.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the GPUs' folders")
    parser.add_argument("--arithmetic", default="bf16", help="whose rows the table is of")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="the page that has the table")
    options = parser.parse_args(arguments)
    folders = sorted(f for f in options.results.iterdir() if f.is_dir() and f.name != "no-gpu")
    for folder in folders:
        plots(folder)
    text = options.page.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        parser.error(f"{options.page} has no lines {MARKS[0]!r} and {MARKS[1]!r}, between which the table goes")
    part = options.page.with_name(f"{options.page.name}.part")
    part.write_text(f"{before}{MARKS[0]}\n{table(folders, options.arithmetic)}\n{MARKS[1]}{after}")
    part.replace(options.page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

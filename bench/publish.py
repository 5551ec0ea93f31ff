"""The results table of README.md and the plots, from the raw files alone: python -m bench.publish, or make results.

Of each GPU that has a folder in bench/results/: what `bench.run` and `bench.host` left there. What no file has says
'not measured yet'.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .problems import PARTS, layer_of, part_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
MARKS = ("<!-- results: made by make results -->", "<!-- end of results -->")
NONE = "not measured yet"
Row = dict[str, Any]


def read(folder: Path) -> tuple[dict[str, Row], dict[str, float], list[Row]]:
    """(rows by problem, ceilings, rows of the host's time) of a GPU's folder."""
    rows: dict[str, Row] = {}
    ceilings: dict[str, float] = {}
    for name in ("bench", *PARTS):
        file = folder / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            rows |= {row["problem"]: row for row in found["rows"]}
            ceilings |= found["ceilings"]
    host = folder / "host.json"
    return rows, ceilings, json.loads(host.read_text())["rows"] if host.exists() else []


def best(row: Row) -> float:
    """How much faster ours is than the row's best baseline."""
    return float(min(row["ratio"].values()))


def mean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing."""
    every = list(values)
    return statistics.geometric_mean(every) if every else None


def chosen(rows: dict[str, Row], part: str, mode: str, test: Callable[[str], bool] = lambda name: True) -> list[Row]:
    """The rows of a part in a mode."""
    return [row for name, row in rows.items() if part_of(name) == part and name.endswith(f", {mode}") and test(name)]


def _is(**wanted: Any) -> Callable[[str], bool]:
    """Is a problem's layer of this kind?"""

    def test(name: str) -> bool:
        layer = layer_of(name)
        return layer is not None and all(getattr(layer, key) == value for key, value in wanted.items())

    return test


def _depthwise(name: str) -> bool:
    layer = layer_of(name)
    return layer is not None and layer.groups > 1 and layer.size == 3


# What the table says: a line's words, its rows, and what is quoted of them: "ratio" to the best baseline, or to eager;
# "product" and "copy", shares of what the chip reaches.
LINES: tuple[tuple[str, Callable[[dict[str, Row]], list[Row]], tuple[str, ...]], ...] = (
    ("conv + bias + ReLU, forward", lambda rows: chosen(rows, "conv", "forward"), ("ratio",)),
    ("conv + bias + ReLU, forward and backward", lambda rows: chosen(rows, "conv", "training"), ("ratio",)),
    ("3x3, 128 channels or more, forward", lambda rows: chosen(rows, "conv", "forward", _is(heavy=True)), ("product",)),
    ("1x1 with bias and ReLU, forward", lambda rows: chosen(rows, "conv", "forward", _is(size=1)), ("copy",)),
    ("depthwise 3x3, forward", lambda rows: chosen(rows, "conv", "forward", _depthwise), ("ratio", "copy")),
    ("depthwise 3x3, forward and backward", lambda rows: chosen(rows, "conv", "training", _depthwise), ("ratio",)),
    ("max and average pooling, forward", lambda rows: chosen(rows, "pool", "forward"), ("ratio", "copy")),
    ("max and average pooling, backward", lambda rows: chosen(rows, "pool", "backward"), ("ratio", "copy")),
    ("conv + ReLU + max pool, forward", lambda rows: chosen(rows, "block", "forward"), ("ratio",)),
    ("conv + ReLU + max pool, forward and backward", lambda rows: chosen(rows, "block", "training"), ("ratio",)),
    ("locally connected, forward, against unfold", lambda rows: chosen(rows, "local", "forward"), ("ratio",)),
    ("whole networks, forward", lambda rows: chosen(rows, "model", "forward"), ("ratio",)),
    ("whole networks, training step", lambda rows: chosen(rows, "model", "training"), ("ratio",)),
)


def said(rows: list[Row], quantity: str) -> str:
    """A cell: the geometric mean, and of how many."""
    if quantity == "ratio":
        value, shown = mean(map(best, rows)), "{:.2f}x"
    else:
        value, shown = mean(row[f"share of {quantity}"] for row in rows), "{:.0%}"
    return NONE if value is None else f"{shown.format(value)} ({len(rows)})"


def table(folders: list[Path], arithmetic: str = "bf16") -> str:
    """The table as Markdown: a column for each GPU."""
    found = [(folder.name, *read(folder)) for folder in folders]
    found = [
        (name, {what: row for what, row in rows.items() if what.startswith(f"{arithmetic} ")}, *rest)
        for name, rows, *rest in found
    ]
    names = [name for name, *_ in found] or ["a GPU"]
    lines = [f"| {arithmetic}, channels_last | | " + " | ".join(names) + " |", "| --- | --- |" + " --- |" * len(names)]
    words = {"ratio": "best baseline / ours", "product": "of the product's ceiling", "copy": "of the copy's ceiling"}
    for what, rows_of, quantities in LINES:
        for quantity in quantities:
            cells = [said(rows_of(rows), quantity) for _, rows, _, _ in found] or [NONE]
            lines.append(f"| {what} | {words[quantity]} | " + " | ".join(cells) + " |")
    for mode in ("forward", "forward and backward"):
        cells = []
        for _, _, _, host in found:
            times = next((row["microseconds"] for row in host if row["mode"] == mode), {})
            cells.append(
                f"{times['ours']['p50']:.0f} us, PyTorch {times['PyTorch']['p50']:.0f} us"
                if "PyTorch" in times
                else NONE
            )
        lines.append(f"| conv2d_relu of 1x16x8x8, {mode} | the host's time | " + " | ".join(cells or [NONE]) + " |")
    return "\n".join(lines)


def plots(folder: Path) -> None:
    """roofline.svg and ratios.svg of a folder with rows."""
    rows, ceilings, _ = read(folder)
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
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    folders = sorted(f for f in options.results.iterdir() if f.is_dir() and f.name != "no-gpu")
    for folder in folders:
        plots(folder)
    text = options.readme.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        parser.error(f"{options.readme} has no lines {MARKS[0]!r} and {MARKS[1]!r}, between which the table goes")
    part = options.readme.with_name(f"{options.readme.name}.part")
    part.write_text(f"{before}{MARKS[0]}\n{table(folders, options.arithmetic)}\n{MARKS[1]}{after}")
    part.replace(options.readme)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Times every tile that can serve a layer beside the picked one: python -m bench.tune --out FOLDER [--minutes M].

It says how far the picks of kernels/tiles/pick.py are from the best tiles, and prints the rows of pick.TUNED that mend
them. With --resume it goes on with what an earlier run in that folder left out, in another arithmetic too.
"""

import argparse
import contextlib
import contextvars
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from types import SimpleNamespace
from typing import Any

import torch

from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.core import chips
from cnn_triton.kernels.core.op import Op, collecting
from cnn_triton.kernels.tiles import pick, shapes
from cnn_triton.tools.warmup import compile_launches

from .calls import ARITHMETICS, PASSES, calls
from .layers import BATCH, LAYERS, Layer
from .measure import EPS, GpuClock, HostClock, clock_for, interleaved, memory_returned
from .report import environment

Row = dict[str, Any]
NEAR, SLOW = 1.3, 1.05  # times the best: what is timed in further rounds, what is to be mended
# The layers that say the most where minutes are short: ResNet-50's 3 x 3, its widest 1 x 1, and VGG-16's heaviest.
FIRST = (
    "3x3 64-64 @56 s1", "3x3 128-128 @28 s1", "3x3 256-256 @14 s1", "3x3 512-512 @7 s1", "1x1 256-64 @56 s1",
    "3x3 512-512 @28 s1",
)  # fmt: skip


@contextlib.contextmanager
def picking() -> Iterator[SimpleNamespace]:
    """Within: noted are what launchers `asked` for last, (problem, arithmetic, chip), and what was picked, `pick`; they
    are given `tile` instead, if there is one."""
    noted = SimpleNamespace(tile=None)

    def choose(picked: shapes.Tile, *asked: Any) -> shapes.Tile:
        noted.asked, noted.pick = asked, picked
        return noted.tile or picked

    with pick.overriding(choose):
        yield noted


def served(noted: SimpleNamespace) -> list[shapes.Tile]:
    """The pick, and every other tile that can serve what was asked for."""
    return list(dict.fromkeys([noted.pick, *pick.serving(*noted.asked)]))


def compile_ahead(launches: list[Callable[[], Any]]) -> None:
    """Compiles on all cores what these launch; nothing runs. What fails is compiled again, and said, when it runs."""
    with collecting() as launched:
        for launch in launches:
            launch()
    with contextlib.suppress(RuntimeError):
        contextvars.copy_context().run(compile_launches, launched, os.cpu_count() or 1, load=False)


def check(result: torch.Tensor, right: torch.Tensor) -> None:
    """Errors: AssertionError for results that are apart by more than two epsilons of value plus root mean square."""
    wide = right.float()
    allowed = 2 * EPS[right.dtype] * (wide.abs() + wide.square().mean().sqrt())
    share = ((result.float() - wide).abs() / allowed.clamp_min(1e-30)).max().item()
    assert share <= 1, f"wrong result, off the pick's by {share:.2g} times what rounding allows"


def text(value: tuple[Any, ...]) -> str:
    """A tile or a problem as short Python."""
    return f"{type(value).__name__}{tuple(value)!r}"


def measured(op: Op, args: tuple[Any, ...], noted: SimpleNamespace, clock: HostClock | GpuClock, end: float) -> Row:
    """A problem's row; errors: TimeoutError if not all of its tiles were compiled in time."""
    torch.manual_seed(0)
    for tensor in filter(torch.is_tensor, args):
        tensor.normal_()
    right, result = op.launch(*args), op.fake(*args)
    (problem, kind, chip), ours = noted.asked, text(noted.pick)
    every = served(noted)

    def launch(tile: shapes.Tile) -> None:
        noted.tile = tile
        op.launcher(result, *args)

    failed: dict[str, str] = {}
    runs: dict[str, Callable[[], None]] = {}
    for i, tile in enumerate(every):
        if time.perf_counter() > end:
            raise TimeoutError
        if i % 64 == 0 and not INTERPRETING:
            compile_ahead([partial(launch, each) for each in every[i : i + 64]])
        try:
            result.fill_(float("nan"))  # what a kernel doesn't write shows
            launch(tile)
            check(result, right)
            runs[text(tile)] = partial(launch, tile)
        except Exception as reason:  # a tile's failure must not cost the others, and is in the report
            failed[text(tile)] = f"{type(reason).__name__}: {reason}"[:1000]
            if right.is_cuda:
                torch.cuda.synchronize()  # an error here means that the GPU is lost to this process
    assert ours in runs, f"the pick itself fails: {failed[ours]}"
    quick = {name: took["p50"] for name, took in interleaved(runs, clock, 1, 0.0).items()}
    near = {name: run for name, run in runs.items() if name == ours or quick[name] <= NEAR * min(quick.values())}
    more = interleaved(near, clock, 9, 1.0)
    milliseconds = quick | {name: took["p50"] for name, took in more.items()}
    best = min(near, key=milliseconds.__getitem__)
    return {
        "problem": text(problem), "kind": kind, "chip": chip, "pick": ours, "best": best,
        "pick / best": milliseconds[ours] / milliseconds[best], "milliseconds": milliseconds,
        "p20, p80": {name: (took["p20"], took["p80"]) for name, took in more.items()}, "failed": failed,
    }  # fmt: skip


def mended(rows: list[Row]) -> list[str]:
    """Rows of pick.TUNED for what would be more than SLOW times as fast, the largest gain first. Layers may share a
    problem (a forward and another's input gradient): they get the tile that is best for all of them."""
    shared: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        shared.setdefault((row["chip"], row["kind"], row["problem"]), []).append(row)
    found = []
    for (chip, kind, problem), same in shared.items():
        times = [row["milliseconds"] for row in same]
        every = [tile for tile in times[0] if all(tile in each for each in times)]
        gains = {tile: geometric_mean(each[same[0]["pick"]] / each[tile] for each in times) for tile in every}
        best = max(gains, key=gains.__getitem__)
        names = "; ".join(row["name"] for row in same)
        line = f'    # {names}: {gains[best]:.3g} times as fast\n    ("{chip}", "{kind}", {problem}):\n        {best},'
        found += [(gains[best], line)] if gains[best] > SLOW else []
    return [line for _, line in sorted(found, reverse=True)]


def summary(rows: list[Row]) -> list[str]:
    """How far the picks were from the best, of all and of each pass, and why tiles failed; as lines of Markdown."""
    lines = [""]
    for name in ("", *PASSES):
        some = [row for row in rows if row["name"].endswith(name)]
        if some:
            worst, at = max((row["pick / best"], row["name"]) for row in some)
            mean = geometric_mean(row["pick / best"] for row in some)
            line = f"pick / best over {len(some)} problems: geometric mean {mean:.4f}, worst {worst:.3f} ({at})"
            lines.append(f"- {name or 'all'}, {line}")
    failed = [
        (why.partition(":")[0], f"{row['name']}, {tile}: {' '.join(why.split())}")
        for row in rows for tile, why in row["failed"].items()
    ]  # fmt: skip
    lines.append(f"- {sum(len(row['milliseconds']) for row in rows)} tiles were timed, {len(failed)} failed")
    for kind, example in dict(reversed(failed)).items():
        lines.append(f"- {sum(kind == each for each, _ in failed)} of these as in {example}")
    return lines


def table(report: dict[str, Any]) -> str:
    """A report as Markdown, the rows for pick.TUNED at its end."""
    lines = ["# Tiles", "", *(f"- {name}: {value}" for name, value in report["environment"].items())]
    lines += ["", "| problem | pick | best | pick / best |", "|" + " --- |" * 4]
    for row in report["rows"]:
        lines.append(f"| {row['name']} | {row['pick']} | {row['best']} | {row['pick / best']:.3f} |")
    lines += summary(report["rows"])
    lines += [f"- failed: {name}: {' '.join(why.split())}" for name, why in report["failed"].items()]
    lines += [f"- left out: {name}" for name in report["left out"]]
    return "\n".join([*lines, "", "Rows for pick.TUNED:", "", "```python", *mended(report["rows"]), "```"]) + "\n"


def write(report: dict[str, Any], out: Path) -> None:
    """Both files, each replaced in one step."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("tune.json", json.dumps(report, indent=1) + "\n"), ("tune.md", table(report))):
        (out / f"{name}.part").write_text(content)
        (out / f"{name}.part").replace(out / name)


def earlier(out: Path, where: dict[str, str], resume: bool) -> dict[str, Any]:
    """The report to go on with, or an empty one; errors: ValueError if it comes from another chip, commit, version."""
    report = json.loads((out / "tune.json").read_text()) if resume and (out / "tune.json").exists() else {}
    if {**report.get("environment", where), "date": ""} != {**where, "date": ""}:
        raise ValueError(f"the run in {out} can't be resumed, for it had another chip, commit or version of something")
    return {"rows": [], "failed": {}, "left out": []} | report | {"environment": where}


def tune(
    out: Path, minutes: float, only: str = "", arithmetic: str = "bf16", resume: bool = False,
    layers: tuple[Layer, ...] = LAYERS, n: int = BATCH, only_first: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measures what fits into the time, the important layers first; `only_first`: of FIRST alone, forward before
    gradients, unless problems are named. Both files are there after every problem. A resumed run keeps the rows, and
    tries last what failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end, clock, (dtype, precision) = time.perf_counter() + 60 * minutes, clock_for(device), ARITHMETICS[arithmetic]
    report = earlier(out, environment(device), resume)
    matrices = [each for each in layers if each.groups == 1]  # depthwise convolutions have no tile to pick
    turns = sorted(
        matrices, key=lambda each: (not each.heavy, not {"ResNet-50", "VGG-16"} & dict(each.networks).keys())
    )
    every = {f"{arithmetic} {layer.name}, {what}": (layer, i) for layer in turns for i, what in enumerate(PASSES)}
    if only_first and not only:
        every = {name: every[name] for what in PASSES for name in (f"{arithmetic} {each}, {what}" for each in FIRST)}
    done = {row["name"] for row in report["rows"]}
    names = sorted((name for name in every if only in name and name not in done), key=report["failed"].__contains__)
    report["left out"] = [*(name for name in report["left out"] if name not in names), *names]
    write(report, out)
    for name in itertools.takewhile(lambda name: time.perf_counter() < end, names):
        begun, (layer, i) = time.perf_counter(), every[name]
        try:
            with memory_returned(device), float32_precision(precision), picking() as noted:
                with device:
                    op, args = calls(layer, dtype, n)[i]
                row = measured(op, args, noted, clock, end)
        except TimeoutError:
            break
        except Exception as reason:  # one problem's failure must not cost the others, and is in the report
            report["failed"][name] = f"{type(reason).__name__}: {reason}"[:1000] + f", with {noted.tile or 'the pick'}"
        else:
            report["rows"].append({"name": name, "seconds": time.perf_counter() - begun} | row)
            report["failed"].pop(name, None)
        report["left out"].remove(name)
        write(report, out)
        print(f"{time.perf_counter() - begun:6.1f} s  {name}", flush=True)
        if "CUDA error" in report["failed"].get(name, ""):
            break  # this process has lost the GPU
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for tune.json and tune.md")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--arithmetic", choices=ARITHMETICS, default="bf16")
    parser.add_argument("--resume", action="store_true", help="go on with the run that the folder holds")
    parser.add_argument("--first", action="store_true", help="only the layers that say the most", dest="only_first")
    parser.add_argument("--batch", type=int, default=BATCH, dest="n")
    parser.add_argument(
        "--chip", choices=chips.CHIPS, help="without a GPU: this chip's tiles, run and timed in Triton's interpreter"
    )
    options = parser.parse_args(arguments)
    chip = vars(options).pop("chip")
    if not torch.cuda.is_available() and chip is None:
        print("error: no CUDA GPU is here, on which tiles could be timed", file=sys.stderr)
        return 2
    assumed = contextlib.nullcontext() if chip is None or torch.cuda.is_available() else chips.assuming(chip)
    try:
        with assumed:
            report = tune(**vars(options))
    except ValueError as reason:
        parser.error(str(reason))
    print(table(report))
    print(*(f"{what}: {len(report[what])};" for what in ("rows", "failed", "left out")))
    wrong = any("wrong result" in why for row in report["rows"] for why in row["failed"].values())
    return 1 if wrong or report["failed"] or not report["rows"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

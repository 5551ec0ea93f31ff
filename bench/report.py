"""What is said about a run: where and with what it was measured, means over the layers, and the table."""

import datetime
import hashlib
import os
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton

import cnn_triton

from .layers import BATCH, LAYERS
from .problems import CONV_MODES, NCHW_MODES, layer_of

ROOT = Path(__file__).parents[1]
BASELINES = ("eager", "cudnn", "cudnn graph", "compile")


def commit() -> str:
    """The checkout's commit, and whether files were changed since; without git what CNN_TRITON_COMMIT says, or a hash
    of the sources: rows of other code must not be taken for this one's."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CNN_TRITON_COMMIT") or f"sources {sources()}"


def sources() -> str:
    """A hash of the package's and the benchmarks' code."""
    found = hashlib.sha256()
    for folder in ("kernels", "cnn_triton", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def environment(device: torch.device) -> dict[str, str]:
    """Where and with what the figures came to be."""
    gpu = device.type == "cuda"
    found = {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine() or "CPU",
        "kernels": cnn_triton.where(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "float32 convolutions": torch.backends.cudnn.conv.fp32_precision,
        "float32 matrix products": torch.backends.cuda.matmul.fp32_precision,
    }
    if gpu:
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "compute capability": f"{major}.{minor}",
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    else:
        found["PyTorch's threads"] = str(torch.get_num_threads())
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    mine, ratio = row["milliseconds"]["ours"], row["ratio"]
    return [
        row["problem"],
        f"{mine['p50']:.4g} ({mine['p20']:.4g}-{mine['p80']:.4g})",
        f"{mine['host']:.3g}",
        *(f"{ratio[name]:.3g}" if name in ratio else "" for name in BASELINES),
        f"{row['TFLOP/s']:.3g}",
        f"{row['share of product']:.2%}",
        f"{row['GB/s']:.4g}",
        f"{row['share of copy']:.2%}",
        f"{row['achieved / compulsory']:.3g}",
    ]


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over the networks' layers, by arithmetic, batch and mode: how much faster ours is than each
    layer's best baseline, and of the heavy layers' shares of the product's ceiling; each with the number of layers."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if layer_of(row["problem"]):
            what, _, mode = row["problem"].rpartition(", ")
            batch = int(what.rpartition(" n")[2]) if " n" in what else BATCH
            groups.setdefault((row["problem"].split()[0], batch, mode), []).append(row)
    found = []
    for (arithmetic, batch, mode), group in groups.items():
        shares = [row["share of product"] for row in group if layer_of(row["problem"]).heavy]
        found.append({
            "arithmetic": arithmetic,
            "batch": batch,
            "mode": mode,
            "layers": len(group),
            "layers with compile": sum("compile" in row["ratio"] for row in group),
            "best baseline / ours": statistics.geometric_mean(min(row["ratio"].values()) for row in group),
            "heavy layers": len(shares),
            "share of product": statistics.geometric_mean(shares) if shares else None,
        })  # fmt: skip
    return found


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """The means as lines of Markdown; none if no layer of the networks was measured."""
    found = means(rows)
    if not found:
        return []
    every = {mode: sum(layer.kind == "conv" or mode in CONV_MODES[:2] for layer in LAYERS) for mode in CONV_MODES}
    heavy = sum(layer.heavy for layer in LAYERS)
    every |= dict.fromkeys(NCHW_MODES, heavy)
    head = ["geometric means", "best baseline / ours", "over layers", "heavy: of product", "over heavy layers"]
    lines = ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for mean in found:
        share = mean["share of product"]
        cells = [
            f"{mean['arithmetic']} {mean['mode']}" + (f", batch {mean['batch']}" if mean["batch"] != BATCH else ""),
            f"{mean['best baseline / ours']:.3g}",
            f"{mean['layers']} of {every[mean['mode']]}",
            "" if share is None else f"{share:.2%}",
            f"{mean['heavy layers']} of {heavy}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    compiled = sum(mean["layers with compile"] for mean in found)
    return [
        *lines,
        "",
        f"The layers: every distinct one of five networks, at batch {BATCH} unless said, each counted once; the heavy "
        "ones are 3x3 convolutions of 128 channels or more. The best baseline is the fastest of PyTorch eager, cuDNN's "
        "fused convolution, cuDNN's graph where its frontend is installed, and torch.compile, "
        f"which {compiled} of these {sum(mean['layers'] for mean in found)} rows have.",
    ]


def table(report: dict[str, Any]) -> str:
    """A report as Markdown. A ratio above 1 means that ours is faster. Achieved / compulsory: what a copy would have
    moved in ours' time, over the traffic that its operators can't avoid."""
    head = ["problem", "ours, ms (p20-p80)", "host, ms", *(f"{name} / ours" for name in BASELINES)]
    head += ["TFLOP/s", "of product", "GB/s", "of copy", "achieved / compulsory"]
    lines = ["# Results", ""]
    lines += [f"- {name}: {value}" for name, value in report["environment"].items()]
    lines += [f"- ceiling, {name}: {value:.4g}" for name, value in report["ceilings"].items()]
    lines += _means(report["rows"])
    lines += ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in report["rows"]]
    notes = [f"- {row['problem']}: torch.compile was {row['compile']}" for row in report["rows"] if "compile" in row]
    notes += [f"- {row['problem']}: {' '.join(note.split())}" for row in report["rows"] for note in row["notes"]]
    notes += [f"- failed: {name}: {' '.join(reason.split())}" for name, reason in report["failed"].items()]
    notes += [f"- left out for want of time: {name}" for name in report["left out"]]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"

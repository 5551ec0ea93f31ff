"""What a training step keeps for its backward pass: python -m bench.memory [--out FILE].

VGG-16's convolutions, ReLUs and pools, as torch.nn has them and converted. By torch's saved-tensor hooks, on fake
tensors that hold no memory, so that any machine can say it; with a GPU also by torch.cuda.max_memory_allocated.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

if not os.environ.get("CUDA_VISIBLE_DEVICES"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a GPU, a CPU's tensors are to go to the kernels

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import cnn_triton

from .measure import DTYPES
from .report import environment

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; a 2 x 2 maximum after each


def features(**where: Any) -> nn.Sequential:
    """VGG-16's feature stack, of this device and dtype: Simonyan, Zisserman, 2015, table 1, D."""
    layers: list[nn.Module] = []
    c = 3
    for k, convs in STAGES:
        for _ in range(convs):
            layers += [nn.Conv2d(c, k, 3, padding=1, **where), nn.ReLU(inplace=True)]
            c = k
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def saved(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that are kept for the backward pass, each memory counted once; parameters and the input are not."""
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), x)}
    found: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model(x)
    total = sum(storage.nbytes() for storage in found.values())
    del y
    return total


def peak(model: nn.Module, x: torch.Tensor) -> int:
    """Most bytes that a training step had allocated on the GPU beyond what was there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(x).sum().backward()
    return torch.cuda.max_memory_allocated() - before


def measured(n: int, size: int, name: str) -> dict[str, Any]:
    """A row: bytes of the original and of the converted stack, and their ratios."""
    gpu = torch.cuda.is_available()
    row: dict[str, Any] = {"input": f"{n}x3x{size}x{size}", "dtype": name, "saved, bytes": {}}
    with contextlib.nullcontext() if gpu else FakeTensorMode():
        where = {"device": "cuda" if gpu else "cpu", "dtype": DTYPES[name]}
        models = {who: features(**where) for who in ("original", "converted")}
        cnn_triton.convert(models["converted"])
        x = torch.randn(n, 3, size, size, **where).to(memory_format=torch.channels_last)
        for who, model in models.items():
            row["saved, bytes"][who] = saved(model, x)
            if gpu:
                row.setdefault("peak, bytes", {})[who] = peak(model, x)
    row["ratio"] = {
        what.partition(",")[0]: bytes["converted"] / bytes["original"]
        for what, bytes in row.items()
        if what.endswith(", bytes")
    }
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    rows = [measured(options.batch, 224, name) for name in ("fp32", "bf16")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for row in rows:
        print(row["input"], row["dtype"], *(f"{what}: {ratio:.3f}" for what, ratio in row["ratio"].items()))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        part = options.out.with_name(f"{options.out.name}.part")
        part.write_text(json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n")
        part.replace(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

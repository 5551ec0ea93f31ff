"""What a training step keeps for its backward pass: python -m bench.memory [--out FILE].

VGG-16's convolutions, ReLUs and pools, as torch.nn has them and converted; and a locally connected layer by unfold and
by its own kernel. By torch's saved-tensor hooks, on fake tensors that hold no memory, so that any machine can say it;
with a GPU also by torch.cuda.max_memory_allocated.
"""

import argparse
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import cnn_triton
from cnn_triton.fusion.fakes import FakesForDynamo
from cnn_triton.nn import LocallyConnected2d

from .measure import DTYPES
from .networks import vgg16_features
from .report import environment


class Unfolded(nn.Module):
    """A locally connected 3 x 3 layer of PyTorch's functions: unfold's copy of the windows, a product for each."""

    def __init__(self, channels: int, size: int, **where: Any) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size * size, channels, 9 * channels, **where))
        self.bias = nn.Parameter(torch.empty(channels, size * size, **where))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        windows = F.unfold(x, 3, padding=1)
        return (torch.einsum("ntp,pkt->nkp", windows, self.weight) + self.bias).unflatten(2, (self.size, self.size))


def vgg(**where: Any) -> tuple[nn.Module, nn.Module]:
    """VGG-16's feature stack, PyTorch's and converted."""
    original, converted = vgg16_features(**where), vgg16_features(**where)
    cnn_triton.convert(converted)
    return original, converted


def local(**where: Any) -> tuple[nn.Module, nn.Module]:
    """A locally connected layer, by unfold and by its kernel."""
    return Unfolded(64, 28, **where), LocallyConnected2d(64, 64, (28, 28), 3, padding=1, **where)


STACKS = {"VGG-16's features": (vgg, (3, 224, 224)), "locally connected 3x3 64-64 @28": (local, (64, 28, 28))}


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
    """Most bytes that a training step had allocated on the GPU beyond what was there before it; not the first step,
    which also makes gradients, compiles and lets libraries take what they keep."""
    model(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(x).sum().backward()
    return torch.cuda.max_memory_allocated() - before


def measured(stack: str, n: int, dtype: str, shape: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """A row: bytes of PyTorch's stack and of ours, and their ratios; for its images (C, H, W), or others."""
    gpu, (build, usual) = torch.cuda.is_available(), STACKS[stack]
    size = (n, *(shape or usual))
    row: dict[str, Any] = {"layers": stack, "input": "x".join(map(str, size)), "dtype": dtype, "saved, bytes": {}}
    with contextlib.nullcontext() if gpu else FakesForDynamo():
        where = {"device": "cuda" if gpu else "cpu", "dtype": DTYPES[dtype]}
        x = torch.randn(size, **where).to(memory_format=torch.channels_last)
        for who, model in zip(("PyTorch", "ours"), build(**where), strict=True):
            row["saved, bytes"][who] = saved(model, x)
            if gpu:
                row.setdefault("peak, bytes", {})[who] = peak(model, x)
    row["ratio"] = {
        what.partition(",")[0]: bytes["ours"] / bytes["PyTorch"]
        for what, bytes in row.items()
        if what.endswith(", bytes")
    }
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"environment": environment(device), "rows": []}
    for stack, dtype in itertools.product(STACKS, ("fp32", "bf16")):
        row = measured(stack, options.batch, dtype)
        said = (f"{what}: {ratio:.3f}" for what, ratio in row["ratio"].items())
        print(row["layers"], row["input"], row["dtype"], *said, flush=True)
        found["rows"].append(row)
        if options.out:  # each row as it comes, so that none is lost
            options.out.parent.mkdir(parents=True, exist_ok=True)
            part = options.out.with_name(f"{options.out.name}.part")
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

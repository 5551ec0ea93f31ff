"""What torch.compile(backend="cnn_triton") fuses in public networks, and its cost on a CPU: python -m bench.fusing.

It prints docs/fusing.md's table: transformers' networks, small and with random weights, in eval mode and in training.
With --out it also times networks of their usual size, batch 1, 64 x 64 pixels, original and compiled in turns, where
PyTorch's own operators run: the captured graph as it was.
"""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: a CPU's tensors are to go to PyTorch

import torch
import transformers as hf
from torch import nn

from cnn_triton import captures

from .converted import call
from .measure import HostClock, interleaved
from .report import environment

_HIDDEN = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "ResNet, bottleneck": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1])
    ),
    "ResNet, basic": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    ),
    "RegNet-Y": lambda: hf.RegNetModel(hf.RegNetConfig(embedding_size=8, **_HIDDEN, groups_width=4)),
    "MobileNetV1": lambda: hf.MobileNetV1Model(hf.MobileNetV1Config(depth_multiplier=0.25, image_size=32)),
    "MobileNetV2": lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32)),
    "MobileViT": lambda: hf.MobileViTModel(
        hf.MobileViTConfig(
            image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
            num_attention_heads=2,
        )
    ),
    "ConvNeXt": lambda: hf.ConvNextModel(hf.ConvNextConfig(**_HIDDEN, num_stages=2)),
    "ConvNeXt V2": lambda: hf.ConvNextV2Model(hf.ConvNextV2Config(**_HIDDEN, num_stages=2)),
    "BiT": lambda: hf.BitModel(hf.BitConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4)),
    "LeViT": lambda: hf.LevitModel(
        hf.LevitConfig(
            image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[4] * 3
        )
    ),
    "PoolFormer": lambda: hf.PoolFormerModel(hf.PoolFormerConfig(**_FOUR)),
    "SegFormer": lambda: hf.SegformerModel(hf.SegformerConfig(**_FOUR, num_attention_heads=[1, 1, 2, 2])),
}  # fmt: skip
USUAL: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: hf.ResNetModel(hf.ResNetConfig()),
    "RegNet-Y 4GF": lambda: hf.RegNetModel(hf.RegNetConfig()),
    "MobileNetV2": lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(image_size=64)),
    "ConvNeXt-T": lambda: hf.ConvNextModel(hf.ConvNextConfig()),
    "MobileViT-S": lambda: hf.MobileViTModel(hf.MobileViTConfig(image_size=64)),
}


class Images(nn.Module):
    """A network of transformers' as a function of images alone, without the randomness of its training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's last feature maps."""
        return self.network(x).last_hidden_state  # type: ignore[no-any-return]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A small network and images for it."""
    torch.manual_seed(0)
    size = 64 if name in ("LeViT", "SegFormer") else 32
    return Images(SMALL[name]()), torch.randn(2, 3, size, size)


def said() -> tuple[str, str]:
    """What was captured, as the table has it: the patterns; and what was left apart, and why."""
    reasons = [reason for reason, _ in captures.apart]
    left = "; ".join(f"{reason} ({reasons.count(reason)})" for reason in dict.fromkeys(reasons))
    return ", ".join(f"{pattern} {count}" for pattern, count in captures.patterns.most_common()), left


def cells(name: str) -> Iterator[str]:
    """A row: the network; of eval mode the patterns and what was left; of training the patterns."""
    yield name
    for training in (False, True):
        model, x = network(name)
        torch._dynamo.reset()
        captures.clear()
        torch.compile(model.train(training), backend="cnn_triton")(x)
        yield from said()[: 1 if training else 2]


def table() -> str:
    """docs/fusing.md's table."""
    head = "| network | in eval mode | left apart there | in training |\n| --- | --- | --- | --- |"
    return "\n".join([head, *(f"| {' | '.join(cells(name))} |" for name in SMALL)])


def timed(name: str, training: bool, rounds: int) -> dict[str, Any]:
    """A row: milliseconds of the original and of the compiled network, their ratio, and the first call's seconds."""
    torch.manual_seed(0)
    original = Images(USUAL[name]())
    compiled, x = torch.compile(copy.deepcopy(original), backend="cnn_triton"), torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    captures.clear()
    runs = {"original": call(original, x, training), "compiled": call(compiled, x, training)}
    begun = time.perf_counter()
    runs["compiled"]()
    first = time.perf_counter() - begun
    assert captures.graphs > 0
    times = interleaved(runs, HostClock(), rounds, math.inf)
    row = {"network": name, "mode": "training" if training else "forward", "first call, seconds": first}
    return row | times | {"ratio": times["compiled"]["p50"] / times["original"]["p50"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the times, as in bench/results/<machine>/fusing.json")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each pair; 30 unless given")
    options = parser.parse_args(arguments)
    if options.out is None:
        print(table())
        return 0
    rows = []
    for name in USUAL:
        for training in (False, True):
            rows.append(timed(name, training, options.rounds))
            said = {key: rows[-1][key] for key in ("network", "mode", "ratio", "first call, seconds")}
            print(*said.values(), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"environment": environment(torch.device("cpu")) | {"CPUs": str(os.cpu_count())}, "rows": rows}
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

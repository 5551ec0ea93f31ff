"""A photograph's feature maps after a first layer: hand-set edge kernels, or a trained network's."""

from pathlib import Path

import torch

from .. import functional
from ..files import replace
from ..nn import Conv2d, MaxPool2d
from ..pages import render
from . import pictures
from .runs import Loaded
from .training import normalised

__all__ = ["EDGES", "write_photograph"]

# Hand-set 3x3 kernels, similar to those that a first layer may learn.
EDGES = {
    "bright on the left": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "bright on the right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "bright above": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "bright below": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "bright above left": ((2, 1, 0), (1, 0, -1), (0, -1, -2)),
    "bright above right": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "bright points (Laplace)": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
    "blur": ((1 / 9,) * 3,) * 3,
}


def write_photograph(image: torch.Tensor, name: str, run: Loaded | None, device: torch.device, out: Path) -> None:
    """Write a page with a photograph's feature maps, at full size, after convolution + ReLU and after a 2x2 pool.

    image: (C, H, W) in [0, 1]; grey for the hand-set kernels, with a run's channels for its trained first layer
    errors: OSError; ValueError for a run whose first layer only fits images of its own size
    """
    if run is None:
        labels = list(EDGES)
        weight = torch.tensor(list(EDGES.values()))[:, None]
        x, conv = image[None].to(device), weight.to(device)
        found = functional.conv2d_relu(x, conv, None, padding="same")
    else:
        config, trained, weight = run.config, run.model.first, run.model.kernels
        if not isinstance(trained, Conv2d):
            raise ValueError(
                f"--run: a {config.model} network's first layer only fits images of {config.height} x {config.width}; "
                "a run of --model lenet5 or vgg fits any size"
            )
        labels = [f"kernel {k}" for k in range(len(weight))]
        with torch.no_grad():
            found = trained(normalised(image[None], config, device))
    pooled = MaxPool2d(2, ceil_mode=True)(found)
    replace(
        out,
        render(
            "photograph.html",
            name=name,
            hand_set=run is None,
            image=pictures.photograph(image),
            size=tuple(image.shape[1:]),
            maps=[
                (label, pictures.kernels(weight[k : k + 1]), _bright(found[0, k]), _bright(pooled[0, k]))
                for k, label in enumerate(labels)
            ],
        ),
    )


def _bright(values: torch.Tensor) -> str:
    """Return a map (P, Q) in grey, with its largest half percent white."""
    flat = values.flatten().float().cpu()
    white = flat.kthvalue(-(-len(flat) * 995 // 1000)).values.clamp_min(1e-12)
    return pictures.photograph((flat / white).view(values.shape)[None])

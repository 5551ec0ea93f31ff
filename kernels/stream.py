"""Launching of kernels that go once over all elements of a batch of images, in strips of pixels x channels."""

from typing import Any

import torch

from . import geometry, tiles
from .op import launch, tl_type
from .precision import accumulator


def stream(kernel: Any, over: torch.Tensor, *args: Any, **constants: Any) -> None:
    """Launches kernel(*args, size of `over` (n, h, w), its channels), each program on a `device.strip` of `over`."""
    batch, channels, height, width = over.shape
    block = tiles.pick_strip(batch * height * width, channels, over.stride(1) == 1, tiles.chip_name())
    programs = geometry.cdiv(batch * height * width, block.pixels) * geometry.cdiv(channels, block.channels)
    launch(
        kernel, programs, *args, (batch, height, width), channels, **constants, ACC=tl_type(accumulator(over.dtype)),
        PIXELS=block.pixels, CHANNELS=block.channels, num_warps=block.warps,
    )  # fmt: skip

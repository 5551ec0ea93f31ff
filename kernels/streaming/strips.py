"""Launching of kernels that go once over all elements of a batch of images, in strips of pixels x channels."""

from typing import Any

import torch

from ..base.precision import accumulator
from ..core import chips
from ..core.op import launch, tl_type
from ..tiles import pick
from ..window import convolution


def stream(kernel: Any, over: torch.Tensor, *args: Any, **constants: Any) -> None:
    """Launches kernel(*args, size of `over` (n, h, w), its channels), each program on a `device.strip` of `over`."""
    batch, channels, height, width = over.shape
    block = pick.strip(batch * height * width, channels, over.stride(1) == 1, chips.chip_name())
    programs = convolution.cdiv(batch * height * width, block.pixels) * convolution.cdiv(channels, block.channels)
    launch(
        kernel, programs, *args, (batch, height, width), channels, **constants, ACC=tl_type(accumulator(over.dtype)),
        PIXELS=block.pixels, CHANNELS=block.channels, num_warps=block.warps,
    )  # fmt: skip

"""A layer's operator calls on untouched memory: for whatever looks at launches without running them."""

from typing import Any

import torch

from cnn_triton.kernels.core.op import Op
from cnn_triton.kernels.matrix import conv2d, linear

from .layers import BATCH, Layer

# dtype and float32's precision, by the arithmetic's name in tables.
ARITHMETICS = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
PASSES = ("forward", "input gradient", "weight gradient")


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An untouched tensor, which takes no memory; channels_last if it has images."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout)


def calls(layer: Layer, dtype: torch.dtype, n: int = BATCH) -> tuple[tuple[Op, tuple[Any, ...]], ...]:
    """(operator, arguments) of a layer's PASSES at batch size n; the forward with bias and ReLU."""
    x, w, y = (empty(shape, dtype) for shape in layer.shapes(n))
    b = empty((layer.k,), dtype)
    if layer.kind == "linear":
        return (
            (linear.LINEAR, (x, w, b, None, None, None, 1, "relu")),
            (linear.LINEAR_INPUT_GRAD, (y, w, 1)),
            (linear.LINEAR_WEIGHT_GRAD, (y, x, 1)),
        )
    window = ((layer.stride,) * 2, (layer.padding,) * 4, (1, 1), layer.groups, "zeros")
    return (
        (conv2d.CONV2D, (x, w, b, None, None, None, *window, "relu")),
        (conv2d.CONV2D_INPUT_GRAD, (y, w, x.shape, *window, True)),
        (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *window, True)),
    )

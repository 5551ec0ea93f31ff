"""Convolution, bias, ReLU and a pooling in one kernel."""

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.window import arguments
from .calling import Ints, overridable
from .convolution import convolve
from .images import image, like
from .operands import Operands, WindowArguments


@overridable
def conv2d_relu_max_pool2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    pool_size: Ints = 2,
    padding_mode: str = "zeros",
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, bias, ReLU and maximum pooling in one kernel: the images between them never are in memory.

    y[n,k,p,q] = max over windows of pool_size, side by side, of max(scale[k] · conv2d(...)[n,k,...] + b[k], 0)

    Equivalent to: torch.nn.functional.max_pool2d(torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride,
    padding, dilation, groups)), pool_size), NaN and ties too; pixels beyond the last whole window are not computed

    Arguments, shapes, dtypes and errors as in `conv2d`. For the backward pass it keeps, besides input and weight, one
    byte per output (windows of up to 255 pixels): which pixel won, or that ReLU is closed.
    """
    window = WindowArguments(stride, padding, dilation, groups, padding_mode)
    return _convolve_and_pool(input, weight, bias, scale, window, pool_size, average=False)


@overridable
def conv2d_relu_avg_pool2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    pool_size: Ints = 2,
    padding_mode: str = "zeros",
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, bias, ReLU and average pooling in one kernel: the images between them never are in memory.

    y[n,k,p,q] = mean over windows of pool_size, side by side, of max(scale[k] · conv2d(...)[n,k,...] + b[k], 0)

    Equivalent to: torch.nn.functional.avg_pool2d(torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride,
    padding, dilation, groups)), pool_size); pixels beyond the last whole window are not computed

    Arguments, shapes, dtypes and errors as in `conv2d`. For the backward pass it keeps, besides input and weight, one
    bit per pixel of each window (a byte for every eight): whether ReLU is open.
    """
    window = WindowArguments(stride, padding, dilation, groups, padding_mode)
    return _convolve_and_pool(input, weight, bias, scale, window, pool_size, average=True)


def _convolve_and_pool(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    window: WindowArguments,
    pool_size: Ints,
    average: bool,
) -> torch.Tensor:
    pool = arguments.pair("pool_size", pool_size, 1)
    operands = Operands.of(input, weight, bias, "relu", scale)
    if operands.on_aten:
        aten = F.avg_pool2d if average else F.max_pool2d
        return aten(convolve(2, operands, window), pool)
    given = operands.checked()
    kernel, images = image("weight", given.weight, 2, batched=True), image("input", given.input, 2)
    sliding = window.window((kernel.shape[2], kernel.shape[3]), 2)
    groups = arguments.integer("groups", window.groups)
    how = (sliding.stride, sliding.pads, sliding.dilation, groups, window.padding_mode, pool, average)
    return like(autograd.conv2d_pool(images, kernel, given.bias, given.scale, *how)[0], given.input, 2)

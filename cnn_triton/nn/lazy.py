"""Layers that take their input's channels from their first input.

They inherit our layers as well as PyTorch's lazy ones, because the first call already runs a method of the lazy class.
"""

import torch

from .convolution import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from .fused import ConvReLU2d
from .linear import Linear, LinearReLU


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """`Conv2d` that takes in_channels from its first input, as torch.nn.LazyConv2d does."""

    cls_to_become = Conv2d


class LazyConvReLU2d(torch.nn.LazyConv2d, ConvReLU2d):  # type: ignore[misc]
    """`ConvReLU2d` that takes in_channels from its first input, with the constructor of torch.nn.LazyConv2d."""

    cls_to_become = ConvReLU2d


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """`Conv1d` that takes in_channels from its first input, as torch.nn.LazyConv1d does."""

    cls_to_become = Conv1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """`ConvTranspose2d` that takes in_channels from its first input, as torch.nn.LazyConvTranspose2d does."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """`ConvTranspose1d` that takes in_channels from its first input, as torch.nn.LazyConvTranspose1d does."""

    cls_to_become = ConvTranspose1d


class LazyLinear(torch.nn.LazyLinear, Linear):
    """`Linear` that takes in_features from its first input, as torch.nn.LazyLinear does."""

    cls_to_become = Linear


class LazyLinearReLU(torch.nn.LazyLinear, LinearReLU):
    """`LinearReLU` that takes in_features from its first input, with the constructor of torch.nn.LazyLinear."""

    cls_to_become = LinearReLU

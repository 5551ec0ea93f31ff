"""The layers as torch.nn.Modules: subclasses of PyTorch's own, with their constructors and state_dict."""

from .convolution import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from .fused import ConvAct2d, ConvBatchNorm2d, ConvReLU2d, ConvReLUAvgPool2d, ConvReLUMaxPool2d
from .lazy import (
    LazyConv1d,
    LazyConv2d,
    LazyConvReLU2d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyLinear,
    LazyLinearReLU,
)
from .linear import Linear, LinearAct, LinearReLU
from .local import LocallyConnected2d
from .pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
    MaxUnpool1d,
    MaxUnpool2d,
)

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvAct2d",
    "ConvBatchNorm2d",
    "ConvReLU2d",
    "ConvReLUAvgPool2d",
    "ConvReLUMaxPool2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvReLU2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyLinear",
    "LazyLinearReLU",
    "Linear",
    "LinearAct",
    "LinearReLU",
    "LocallyConnected2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool1d",
    "MaxUnpool2d",
]

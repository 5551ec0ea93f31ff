"""The layers as functions, with the names, arguments and defaults of torch.nn.functional.

The kernels are two-dimensional: a function of one dimension runs them over images that are one row high.
"""

from .adaptive import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_max_pool1d, adaptive_max_pool2d
from .convolution import conv1d, conv2d, conv2d_relu
from .dense import linear, linear_relu
from .local import locally_connected2d
from .normalized import conv2d_batch_norm
from .pooled import conv2d_relu_avg_pool2d, conv2d_relu_max_pool2d
from .pooling import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d
from .transposed import conv_transpose1d, conv_transpose2d
from .unpooling import max_unpool1d, max_unpool2d

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_relu",
    "conv2d_relu_avg_pool2d",
    "conv2d_relu_max_pool2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "linear",
    "linear_relu",
    "locally_connected2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool1d",
    "max_unpool2d",
]

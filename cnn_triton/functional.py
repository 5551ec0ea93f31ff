"""The layers as functions, with the names, arguments and defaults of torch.nn.functional."""

import torch
import torch.nn.functional as F

from . import autograd
from .autograd import apply, differentiable
from .dispatch import runs_kernels
from .kernels import geometry
from .kernels.conv2d import CONV2D
from .kernels.linear import LINEAR
from .kernels.op import check_tensors
from .kernels.pool2d import AVG_POOL2D, MAX_POOL2D
from .ops import operator

__all__ = ["avg_pool2d", "conv2d", "conv2d_relu", "linear", "linear_relu", "max_pool2d"]

_Ints = int | tuple[int, ...] | list[int]
_conv2d, _linear = operator(CONV2D), operator(LINEAR)
_max_pool2d, _avg_pool2d = operator(MAX_POOL2D), operator(AVG_POOL2D)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
) -> torch.Tensor:
    """2-D convolution (cross-correlation).

    y[n,k,p,q] = b[k] + Σ_{c,r,s} x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation] · w[k,c,r,s]

    Equivalent to: torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)

    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (K, C/groups, R, S); bias: (K,); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input or weight is
    dtypes: float16, bfloat16, float32, float64, all tensors alike; sums in float32 (float64 for float64). float32
    uses TF32 as torch.backends.cudnn.conv.fp32_precision says
    errors: RuntimeError (shapes, dtypes, devices, impossible windows), TypeError (types)
    """
    if not runs_kernels(input.device):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type, unused-ignore]
    return _conv(input, weight, bias, stride, padding, dilation, groups, "none")


def conv2d_relu(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
) -> torch.Tensor:
    """2-D convolution, bias and ReLU in one kernel: y = max(conv2d(...), 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups))

    Arguments, shapes, dtypes and errors as in `conv2d`. Saves its output for the backward pass, and nothing else
    of its size.
    """
    if not runs_kernels(input.device):
        return torch.relu(F.conv2d(input, weight, bias, stride, padding, dilation, groups))  # type: ignore[arg-type, unused-ignore]
    return _conv(input, weight, bias, stride, padding, dilation, groups, "relu")


def _conv(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: _Ints,
    padding: _Ints | str,
    dilation: _Ints,
    groups: int,
    activation: str,
) -> torch.Tensor:
    check_tensors(input=input, weight=weight, bias=bias)
    if weight.dim() != 4:
        raise RuntimeError(f"weight must be 4-D (K, C/groups, R, S), but got shape {tuple(weight.shape)}")
    window = geometry.conv_window((weight.shape[2], weight.shape[3]), stride, padding, dilation)
    images = input[None] if input.dim() == 3 else input
    args = (images, weight, bias, window.stride, window.pads, window.dilation, groups, activation)
    y = apply(autograd.Conv2d, *args) if differentiable(input, weight, bias) else _conv2d(*args)
    return y[0] if input.dim() == 3 else y  # type: ignore[no-any-return]


def max_pool2d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    dilation: _Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Maximum over 2-D windows.

    y[n,c,p,q] = max over (r,s) of x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation]

    Equivalent to: torch.nn.functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode,
    return_indices)

    input: (N, C, H, W) or (C, H, W); stride: the kernel size unless given
    returns: (N, C, P, Q) or (C, P, Q) in input's memory format; with return_indices also the winners' places
    h·W + w, int64. NaN wins (the last one); of equal values the first
    The backward pass keeps one byte per output (windows of up to 255 taps), and is deterministic.
    errors: RuntimeError (shapes, windows, padding over half of the window), TypeError (types)
    """
    if not runs_kernels(input.device):
        args = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return F.max_pool2d(*args)  # type: ignore[call-overload, no-any-return, unused-ignore]
    check_tensors(input=input)
    window = geometry.pool_window(kernel_size, stride, padding, dilation)
    images = input[None] if input.dim() == 3 else input
    call = (images, window.size, window.stride, window.pads[::2], window.dilation, ceil_mode)
    if differentiable(input):
        y, _, indices = apply(autograd.MaxPool2d, *call, return_indices)
    else:
        y, _, indices = _max_pool2d(*call, False, return_indices)
    if input.dim() == 3:
        y, indices = y[0], indices[0] if return_indices else indices
    return (y, indices) if return_indices else y


def avg_pool2d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Average over 2-D windows.

    y[n,c,p,q] = 1/divisor · Σ_{r,s} x[n, c, p·stride − padding + r, q·stride − padding + s]

    divisor: divisor_override, or the number of the window's pixels within the input, with count_include_pad within
    the padded input.

    Equivalent to: torch.nn.functional.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
    divisor_override)

    Shapes, memory formats and errors as in `max_pool2d`, but IndexError for an input of fewer than 3 dimensions.
    """
    if not runs_kernels(input.device):
        args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(*args)
    check_tensors(input=input)
    if input.dim() < 3:
        raise IndexError(f"input must be 4-D (N, C, H, W) or 3-D (C, H, W), but got shape {tuple(input.shape)}")
    window = geometry.pool_window(kernel_size, stride, padding)
    images = input[None] if input.dim() == 3 else input
    call = (
        images, window.size, window.stride, window.pads[::2], ceil_mode, count_include_pad, divisor_override,
    )  # fmt: skip
    y = apply(autograd.AvgPool2d, *call) if differentiable(input) else _avg_pool2d(*call)
    return y[0] if input.dim() == 3 else y  # type: ignore[no-any-return]


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Linear layer: y = x · wᵀ + b.

    Equivalent to: torch.nn.functional.linear(input, weight, bias)

    input: (*, in_features); weight: (out_features, in_features); bias: (out_features,); returns (*, out_features)
    dtypes as in `conv2d`, but float32 uses TF32 as torch.backends.cuda.matmul.fp32_precision says
    errors: RuntimeError (shapes, dtypes, devices), TypeError (types)
    """
    if not runs_kernels(input.device):
        return F.linear(input, weight, bias)
    return _dense(input, weight, bias, "none")


def linear_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Linear layer and ReLU in one kernel: y = max(x · wᵀ + b, 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.linear(input, weight, bias))

    Arguments, shapes, dtypes and errors as in `linear`.
    """
    if not runs_kernels(input.device):
        return torch.relu(F.linear(input, weight, bias))
    return _dense(input, weight, bias, "relu")


def _dense(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    check_tensors(input=input, weight=weight, bias=bias)
    if input.dim() == 0:
        raise RuntimeError("input must have at least one dimension (*, in_features), but got a scalar")
    rows = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    args = (rows, weight, bias, activation)
    y = apply(autograd.Linear, *args) if differentiable(input, weight, bias) else _linear(*args)
    return y.view(*input.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]

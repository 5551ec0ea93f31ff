"""Maximum and average pooling of one and two dimensions."""

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.core.tensors import check_tensors
from ..kernels.window import arguments, pooling
from .calling import Ints, on_aten, overridable
from .images import image, like

Pooled = tuple[torch.Tensor, torch.Tensor]  # maxima, and the places of the winners
Maxima = torch.Tensor | Pooled


@overload
def max_pool2d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, return_indices: Literal[False] = False,
) -> torch.Tensor: ...  # fmt: skip
@overload
def max_pool2d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, *, return_indices: Literal[True],
) -> Pooled: ...  # fmt: skip
@overload
def max_pool2d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints, ceil_mode: bool,
    return_indices: Literal[True],
) -> Pooled: ...  # fmt: skip
@overload
def max_pool2d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Maxima: ...  # fmt: skip
@overridable
def max_pool2d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Maxima:
    """Maximum over 2-D windows.

    y[n,c,p,q] = max over (r,s) of x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation]

    Equivalent to: torch.nn.functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode,
    return_indices)

    input: (N, C, H, W) or (C, H, W); stride: the kernel size unless given
    returns: (N, C, P, Q) or (C, P, Q) in input's memory format; with return_indices also the winners' places
    h·W + w, int64. NaN wins (the last one); of equal values the first
    The backward pass keeps one byte per output (windows of up to 255 taps), and is deterministic.
    dtypes: float16, bfloat16, float32, float64
    errors: RuntimeError (shapes, windows, padding over half of the window), NotImplementedError (a dtype that no kernel
    takes), TypeError (types)
    """
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(2, F.max_pool2d, input, *args)


@overload
def max_pool1d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, return_indices: Literal[False] = False,
) -> torch.Tensor: ...  # fmt: skip
@overload
def max_pool1d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, *, return_indices: Literal[True],
) -> Pooled: ...  # fmt: skip
@overload
def max_pool1d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints, ceil_mode: bool,
    return_indices: Literal[True],
) -> Pooled: ...  # fmt: skip
@overload
def max_pool1d(
    input: torch.Tensor, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0, dilation: Ints = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Maxima: ...  # fmt: skip
@overridable
def max_pool1d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Maxima:
    """Maximum over 1-D windows: y[n,c,q] = max over s of x[n, c, q·stride − padding + s·dilation].

    Equivalent to: torch.nn.functional.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode,
    return_indices)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `max_pool2d`.
    """
    args = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(1, F.max_pool1d, input, *args)


def _max_pool(
    dims: int,
    aten: Callable[..., Maxima],
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    return_indices: bool,
) -> Maxima:
    if on_aten(input):
        return aten(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    check_tensors(input=input)
    window = pooling.pool_window(kernel_size, stride, padding, dilation, dims)
    images = image("input", input, dims)
    pooling.check_images(images.shape, dims=dims)
    size = pooling.pool_output(window, images.shape[2:], ceil_mode, dims)
    y, _, indices = autograd.max_pool2d(images, size, window, bool(return_indices))
    return (like(y, input, dims), like(indices, input, dims)) if return_indices else like(y, input, dims)


@overridable
def avg_pool2d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
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

    dtypes: float16, bfloat16, float32, float64; averages are summed in float32 (float64 for float64)
    Shapes, memory formats and errors as in `max_pool2d`, but IndexError for an input of fewer than 3 dimensions.
    """
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if on_aten(input):
        return F.avg_pool2d(*args)
    check_tensors(input=input)
    if input.dim() < 3:
        raise IndexError(f"input must be 4-D (N, C, H, W) or 3-D (C, H, W), but got shape {tuple(input.shape)}")
    return _avg_pool(2, *args)


@overridable
def avg_pool1d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> torch.Tensor:
    """Average over 1-D windows: y[n,c,q] = 1/divisor · Σ_s x[n, c, q·stride − padding + s].

    Equivalent to: torch.nn.functional.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `avg_pool2d`.
    """
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if on_aten(input):
        return F.avg_pool1d(*args)  # type: ignore[arg-type, unused-ignore]
    return _avg_pool(1, *args, None)


def _avg_pool(
    dims: int,
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    check_tensors(input=input)
    window = pooling.pool_window(kernel_size, stride, padding, 1, dims)
    images = image("input", input, dims)
    pooling.check_images(images.shape, dims=dims)
    size = pooling.pool_output(window, images.shape[2:], ceil_mode, dims)
    if divisor_override is not None:
        divisor_override = arguments.integer("divisor_override", divisor_override)
    args = (images, size, window, arguments.flag("count_include_pad", count_include_pad), divisor_override)
    return like(autograd.avg_pool2d(*args), input, dims)

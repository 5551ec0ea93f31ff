"""Adaptive pooling of one and two dimensions: windows that are even shares of the image."""

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.core.tensors import check_tensors
from ..kernels.window import pooling
from .calling import Ints, Sizes, on_aten, overridable
from .images import image, like
from .pooling import Maxima, Pooled


@overridable
def adaptive_avg_pool2d(input: torch.Tensor, output_size: Sizes) -> torch.Tensor:
    """Average over windows that are even shares of the image; with output_size 1, over the whole image.

    y[n,c,p,q] = mean of x[n,c,h,w] over ⌊p·H/P⌋ ≤ h < ⌈(p + 1)·H/P⌉, ⌊q·W/Q⌋ ≤ w < ⌈(q + 1)·W/Q⌉

    Equivalent to: torch.nn.functional.adaptive_avg_pool2d(input, output_size)

    input: (N, C, H, W) or (C, H, W); output_size: (P, Q), one int for both, None for the input's own
    returns: (N, C, P, Q) or (C, P, Q) in input's memory format. The backward pass is deterministic
    dtypes: float16, bfloat16, float32, float64; averages are summed in float32 (float64 for float64)
    errors: RuntimeError (shapes, output_size), NotImplementedError (a dtype that no kernel takes), ValueError (an input
    of fewer than 3 dimensions), TypeError (types)
    """
    if on_aten(input):
        return F.adaptive_avg_pool2d(input, output_size)  # type: ignore[arg-type, unused-ignore]
    return _adaptive_avg_pool(2, input, output_size)


@overridable
def adaptive_avg_pool1d(input: torch.Tensor, output_size: Ints) -> torch.Tensor:
    """Average over windows that are even shares of a row.

    y[n,c,q] = mean of x[n,c,w] over ⌊q·W/Q⌋ ≤ w < ⌈(q + 1)·W/Q⌉

    Equivalent to: torch.nn.functional.adaptive_avg_pool1d(input, output_size)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `adaptive_avg_pool2d`.
    """
    if on_aten(input):
        return F.adaptive_avg_pool1d(input, output_size)  # type: ignore[arg-type, no-any-return, unused-ignore]
    return _adaptive_avg_pool(1, input, output_size)


def _adaptive_avg_pool(dims: int, input: torch.Tensor, output_size: Sizes) -> torch.Tensor:
    check_tensors(input=input)
    size = pooling.adaptive_output(output_size, input.shape, dims)
    return like(autograd.avg_pool2d(image("input", input, dims), size, (), True, None), input, dims)


@overload
def adaptive_max_pool2d(
    input: torch.Tensor, output_size: Sizes, return_indices: Literal[False] = False
) -> torch.Tensor: ...
@overload
def adaptive_max_pool2d(input: torch.Tensor, output_size: Sizes, return_indices: Literal[True]) -> Pooled: ...
@overload
def adaptive_max_pool2d(input: torch.Tensor, output_size: Sizes, return_indices: bool = False) -> Maxima: ...
@overridable
def adaptive_max_pool2d(input: torch.Tensor, output_size: Sizes, return_indices: bool = False) -> Maxima:
    """Maximum over windows that are even shares of the image.

    y[n,c,p,q] = max of x[n,c,h,w] over ⌊p·H/P⌋ ≤ h < ⌈(p + 1)·H/P⌉, ⌊q·W/Q⌋ ≤ w < ⌈(q + 1)·W/Q⌉

    Equivalent to: torch.nn.functional.adaptive_max_pool2d(input, output_size, return_indices)

    Indices, NaN, dtypes and the backward pass as in `max_pool2d`, shapes and errors as in `adaptive_avg_pool2d`.
    """
    return _adaptive_max_pool(2, F.adaptive_max_pool2d, input, output_size, return_indices)


@overload
def adaptive_max_pool1d(
    input: torch.Tensor, output_size: Ints, return_indices: Literal[False] = False
) -> torch.Tensor: ...
@overload
def adaptive_max_pool1d(input: torch.Tensor, output_size: Ints, return_indices: Literal[True]) -> Pooled: ...
@overload
def adaptive_max_pool1d(input: torch.Tensor, output_size: Ints, return_indices: bool = False) -> Maxima: ...
@overridable
def adaptive_max_pool1d(input: torch.Tensor, output_size: Ints, return_indices: bool = False) -> Maxima:
    """Maximum over windows that are even shares of a row.

    y[n,c,q] = max of x[n,c,w] over ⌊q·W/Q⌋ ≤ w < ⌈(q + 1)·W/Q⌉

    Equivalent to: torch.nn.functional.adaptive_max_pool1d(input, output_size, return_indices)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `adaptive_max_pool2d`.
    """
    return _adaptive_max_pool(1, F.adaptive_max_pool1d, input, output_size, return_indices)


def _adaptive_max_pool(
    dims: int, aten: Callable[..., Maxima], input: torch.Tensor, output_size: Sizes, return_indices: bool
) -> Maxima:
    if on_aten(input):
        return aten(input, output_size, return_indices)
    check_tensors(input=input)
    size = pooling.adaptive_output(output_size, input.shape, dims)
    images = image("input", input, dims)
    pooling.check_images(images.shape, (0,) if input.dim() == dims + 2 else (0, 1), dims)
    y, _, indices = autograd.max_pool2d(images, size, (), bool(return_indices))
    return (like(y, input, dims), like(indices, input, dims)) if return_indices else like(y, input, dims)

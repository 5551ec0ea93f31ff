"""Maximum unpooling of one and two dimensions: values back at the places of the winners."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.core.tensors import check_tensors
from ..kernels.pool.unpool2d import check_indices
from ..kernels.window import pooling
from .autocast import casts, may_be_cast
from .calling import Ints, on_aten, overridable
from .images import image, like, row


@overridable
def max_unpool2d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """The values back at the places where `max_pool2d` found them: y[n,c, indices[n,c,p,q]] = x[n,c,p,q], else 0.

    Equivalent to: torch.nn.functional.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)

    input, indices: (N, C, P, Q) or (C, P, Q), indices int64: places h·W + w; where several are the same, the value that
    is last in scan order stays
    returns: (N, C, H, W) or (C, H, W), H = (P − 1)·stride − 2·padding + kernel_size, or output_size
    dtypes: float16, bfloat16, float32, float64
    errors: RuntimeError (shapes, dtype or device of indices, places outside of the output), NotImplementedError (a
    dtype that no kernel takes), TypeError (types), ValueError (output_size)
    """
    return _max_unpool(2, F.max_unpool2d, input, indices, kernel_size, stride, padding, output_size)


@overridable
def max_unpool1d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """The values back at the places where `max_pool1d` found them: y[n,c, indices[n,c,q]] = x[n,c,q], else 0.

    Equivalent to: torch.nn.functional.max_unpool1d(input, indices, kernel_size, stride, padding, output_size)

    input, indices: (N, C, Q) or (C, Q); returns (N, C, W) or (C, W). Otherwise as `max_unpool2d`.
    """
    return _max_unpool(1, F.max_unpool1d, input, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    dims: int,
    aten: Callable[..., torch.Tensor],
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    output_size: Sequence[int] | None,
) -> torch.Tensor:
    if on_aten(input):
        return aten(input, indices, kernel_size, stride, padding, output_size)
    check_tensors(input=input)
    if input.device.type == "cpu" and casts(input) and may_be_cast(input):
        input = input.float()  # PyTorch's autocast on a CPU, and there alone
    check_indices(indices, input, input.shape)
    images = image("input", row(input, dims), dims)
    size = pooling.unpool_output(kernel_size, stride, padding, output_size, images.shape[2:], dims)
    return like(autograd.max_unpool2d(images, image("indices", indices, dims), size), input, dims)

"""Transposed convolutions of one and two dimensions, with what follows them in the same kernel."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.core.tensors import channels_last
from ..kernels.window import arguments
from ..kernels.window.convolution import transposed_shape, transposed_window
from .calling import Activation, Ints, overridable
from .images import check_row, image, like, optional_image, row
from .operands import Operands


class _Arguments(NamedTuple):
    """A transposed convolution's window as the user gives it, in the order of PyTorch's functions."""

    stride: Ints
    padding: Ints
    output_padding: Ints
    groups: int
    dilation: Ints


@overridable
def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D transposed convolution (the input gradient of a convolution), and what follows it in the same kernel. Each
    input pixel adds its window to the output.

    y[n,c,h,w] = act(scale[c] · Σ x[n,k,p,q] · w[k,c,r,s] + b[c] + residual), the sum over all k and over p, q,
                 r, s with p·stride − padding + r·dilation = h and q·stride − padding + s·dilation = w

    Equivalent to: torch.nn.functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups,
    dilation)

    input: (N, K, P, Q) or (K, P, Q); weight: (K, C/groups, R, S); bias: (C,)
    returns: (N, C, H, W) or (C, H, W), H = (P − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1
    activation, scale, residual, dtypes, memory formats and errors as in `conv2d`
    """
    operands = Operands.of(input, weight, bias, activation, scale, residual)
    return _transposed(2, operands, _Arguments(stride, padding, output_padding, groups, dilation))


@overridable
def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """1-D transposed convolution, and what follows it in the same kernel.

    y[n,c,w] = act(scale[c] · Σ x[n,k,q] · w[k,c,s] + b[c] + residual), the sum over all k and over q, s with
               q·stride − padding + s·dilation = w

    Equivalent to: torch.nn.functional.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups,
    dilation)

    input: (N, K, Q) or (K, Q); weight: (K, C/groups, S); returns (N, C, W) or (C, W). Otherwise as `conv_transpose2d`.
    """
    operands = Operands.of(input, weight, bias, activation, scale, residual)
    return _transposed(1, operands, _Arguments(stride, padding, output_padding, groups, dilation))


def _transposed(dims: int, operands: Operands, window: _Arguments) -> torch.Tensor:
    """Return the transposed convolution of one or two dimensions, by our kernels or by PyTorch."""
    if operands.on_aten:
        aten = F.conv_transpose2d if dims == 2 else F.conv_transpose1d
        return operands.completed(lambda bias: aten(operands.input, operands.weight, bias, *window), dims)
    given = operands.checked()
    groups = arguments.integer("groups", window.groups)
    images = image("input", row(given.input, dims), dims)
    kernel = image("weight", given.weight, dims, batched=True)
    sliding = transposed_window(
        (kernel.shape[2], kernel.shape[3]), window.stride, window.padding, window.output_padding, window.dilation, dims
    )
    bias = None if given.bias is None else given.bias.shape
    shape = transposed_shape(images.shape, kernel.shape, bias, sliding, groups)
    residual = optional_image("residual", given.residual, dims)
    if dims == 1:  # the operator would speak of images
        check_row("residual", given.residual, shape)
    how = (shape, sliding.stride, sliding.pads, sliding.dilation, groups, channels_last(images, kernel))
    args = (images, kernel, given.bias, given.scale, residual, given.slopes(shape[1]), *how, given.activation)
    return like(autograd.conv_transpose2d(*args), given.input, dims)

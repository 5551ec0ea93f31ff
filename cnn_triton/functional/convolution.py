"""Convolutions of one and two dimensions, with what follows them in the same kernel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.window import arguments
from ..kernels.window.convolution import conv_shape
from .calling import Activation, Ints, overridable
from .images import check_row, image, like, optional_image, row
from .operands import Operands, WindowArguments


@overridable
def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution (cross-correlation), and what follows it in the same kernel.

    z[n,k,p,q] = scale[k] · Σ_{c,r,s} x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation]
                 · w[k,c,r,s] + b[k] + residual[n,k,p,q]
    y = act(z)

    Equivalent to: torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups); with a
    padding_mode 'reflect', 'replicate' or 'circular', of torch.nn.functional.pad(input, ..., padding_mode), which is
    never formed

    activation: None, or one of {activations};
    or ('prelu', slope) with slope a tensor (K,) or (1,) of input's dtype. For the backward pass
    {activations_by_output} keep their output, all others their input
    scale: (K,), of input's dtype or float32; with a scale, bias may be float32 as well; residual: of the result's shape
    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (K, C/groups, R, S); bias: (K,); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input or weight is
    dtypes: float16, bfloat16, float32, float64, all tensors alike; sums in float32 (float64 for float64). float32
    uses TF32 as torch.backends.cudnn.conv.fp32_precision says
    errors: RuntimeError (shapes, mixed dtypes or devices, impossible windows), NotImplementedError (a dtype that no
    kernel takes), TypeError (types), ValueError (padding_mode, activation)
    """
    operands = Operands.of(input, weight, bias, activation, scale, residual)
    return convolve(2, operands, WindowArguments(stride, padding, dilation, groups, padding_mode))


@overridable
def conv2d_relu(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """2-D convolution, bias and ReLU in one kernel: y = max(conv2d(...), 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups))

    Arguments, shapes, dtypes and errors as in `conv2d`. Saves its output for the backward pass, and nothing else
    of its size.
    """
    operands = Operands.of(input, weight, bias, "relu")
    return convolve(2, operands, WindowArguments(stride, padding, dilation, groups, padding_mode))


@overridable
def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """1-D convolution, and what follows it in the same kernel.

    y[n,k,q] = act(scale[k] · Σ_{c,s} x[n, c, q·stride − padding + s·dilation] · w[k,c,s] + b[k] + residual)

    Equivalent to: torch.nn.functional.conv1d(input, weight, bias, stride, padding, dilation, groups)

    input: (N, C, W) or (C, W); weight: (K, C/groups, S); returns (N, K, Q) or (K, Q). Otherwise as `conv2d`.
    """
    operands = Operands.of(input, weight, bias, activation, scale, residual)
    return convolve(1, operands, WindowArguments(stride, padding, dilation, groups, padding_mode))


def convolve(dims: int, operands: Operands, window: WindowArguments) -> torch.Tensor:
    """Return the convolution of one or two dimensions, by our kernels or by PyTorch."""
    if operands.on_aten:
        return _convolve_on_aten(dims, operands, window)
    given = operands.checked()
    kernel = image("weight", given.weight, dims, batched=True)
    sliding = window.window((kernel.shape[2], kernel.shape[3]), dims)
    images = image("input", row(given.input, dims), dims)
    residual = optional_image("residual", given.residual, dims)
    groups = arguments.integer("groups", window.groups)
    if dims == 1:  # the operator would speak of images
        bias = None if given.bias is None else given.bias.shape
        check_row("residual", given.residual, conv_shape(images.shape, kernel.shape, bias, sliding, groups))
    how = (sliding.stride, sliding.pads, sliding.dilation, groups, window.padding_mode, given.activation)
    y = autograd.conv2d(images, kernel, given.bias, given.scale, residual, given.slopes(kernel.shape[0]), *how)
    return like(y, given.input, dims)


def _convolve_on_aten(dims: int, operands: Operands, window: WindowArguments) -> torch.Tensor:
    """Return the convolution by PyTorch, the input padded first where its convolutions don't know the padding_mode."""
    input, weight, padding = operands.input, operands.weight, window.padding
    if window.padding_mode != "zeros":
        size = (1 if dims == 1 else weight.shape[-2], weight.shape[-1])
        pads = window.window(size, dims).pads
        input, padding = F.pad(input, (*pads[2:], *pads[:2])[: 2 * dims], window.padding_mode), 0
    aten: Callable[..., torch.Tensor] = F.conv2d if dims == 2 else F.conv1d
    how = (window.stride, padding, window.dilation, window.groups)
    return operands.completed(lambda bias: aten(input, weight, bias, *how), dims)

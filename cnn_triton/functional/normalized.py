"""Convolution and batch normalisation."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import autograd
from ..autograd.function import transforming
from ..kernels.base.precision import DTYPES, accumulator
from ..kernels.core.tensors import check_optional, check_tensors
from ..kernels.matrix.epilogue import activated, check_fit
from ..kernels.window import arguments
from .autocast import casts, precise
from .calling import Activation, Ints, overridable
from .convolution import convolve
from .images import image
from .operands import Operands, WindowArguments


class _Norm(NamedTuple):
    """A batch normalisation's arguments."""

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    momentum: float
    eps: float

    def check(self, columns: int, input_dtype: torch.dtype | None = None) -> None:
        """Errors: TypeError, RuntimeError for an argument that is no vector over the output channels, of a dtype that
        kernels take. input_dtype: unless it is float64, the vectors must not be float64."""
        vectors = {
            "running_mean": self.running_mean, "running_var": self.running_var,
            "norm_weight": self.weight, "norm_bias": self.bias,
        }  # fmt: skip
        check_optional(**vectors)
        for name, vector in vectors.items():
            if vector is None:
                continue
            arguments.same_shape(name, vector.shape, (columns,))
            wider = vector.dtype == torch.float64 and input_dtype not in (torch.float64, None)
            if vector.dtype not in DTYPES or wider:
                raise RuntimeError(f"{name} has dtype {vector.dtype}; give it input's dtype or float32")


@overridable
def conv2d_batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    padding_mode: str = "zeros",
    activation: Activation = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, batch normalisation, a residual and activation: in training the convolution's kernel sums the
    statistics, and a second pass does the rest; otherwise one kernel does it all.

    z = conv2d(...)        y = act((z − mean[k]) / √(var[k] + eps) · norm_weight[k] + norm_bias[k] + residual)

    Equivalent to: act(torch.nn.functional.batch_norm(torch.nn.functional.conv2d(input, weight, bias, stride, padding,
    dilation, groups), running_mean, running_var, norm_weight, norm_bias, training, momentum, eps) + residual)

    In training mean and var are z's over batch and pixels, and running_mean and running_var, where they are, move to
    them by momentum (var with Bessel's correction); otherwise mean and var are those. norm_weight, norm_bias, and the
    running statistics: (K,), of input's dtype or float32; residual: of the result's shape. Keeps z and the input for
    the backward pass; with a residual also the output, or where `conv2d` would not keep that, the residual.

    Other arguments, shapes, dtypes as in `conv2d`; input: (N, C, H, W)
    errors: as in `conv2d`; ValueError for one value per channel in training, RuntimeError for missing statistics
    """
    window = WindowArguments(stride, padding, dilation, groups, padding_mode)
    norm = _Norm(running_mean, running_var, norm_weight, norm_bias, momentum, eps)
    check_optional(running_mean=running_mean, running_var=running_var)
    if (running_mean is None or running_var is None) and not training:
        raise RuntimeError("running_mean and running_var must be tensors unless training is True, but got None")
    operands = Operands.of(input, weight, bias, activation, None, residual)
    if operands.on_aten:
        return _on_aten(operands, window, norm, training)
    arguments.flag("training", training)
    norm = norm._replace(momentum=arguments.real("momentum", momentum), eps=arguments.real("eps", eps))
    return _by_the_batch(operands, window, norm) if training else _by_running_statistics(operands, window, norm)


def _on_aten(operands: Operands, window: WindowArguments, norm: _Norm, training: bool) -> torch.Tensor:
    """Return the result by PyTorch."""
    z = convolve(2, operands.bare, window)
    running_mean, running_var, weight, bias, momentum, eps = norm
    y = F.batch_norm(z, running_mean, running_var, weight, bias, training, momentum, eps)
    residual, slope = operands.residual, operands.slope
    check_fit(y, None, residual, slope, 2)
    result: torch.Tensor = activated(y if residual is None else y + residual, slope, operands.activation)
    return result


def _by_running_statistics(operands: Operands, window: WindowArguments, norm: _Norm) -> torch.Tensor:
    """Return the result by the running statistics: a convolution with a scale."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    given = operands.lowered()
    check_tensors(input=given.input, weight=given.weight)
    check_optional(bias=given.bias)
    kernel, images = image("weight", given.weight, 2, batched=True), image("input", given.input, 2, batched=True)
    columns = kernel.shape[0] if images.shape[1] else 0  # PyTorch's answer to an input without channels
    if given.bias is not None:
        arguments.same_shape("bias", given.bias.shape, (columns,))
    norm.check(columns, operands.input.dtype)
    scale, shift = norm_scale(operands.bias, mean, var, norm.weight, norm.bias, norm.eps)
    return convolve(2, given._replace(bias=shift, scale=scale), window)


def _by_the_batch(operands: Operands, window: WindowArguments, norm: _Norm) -> torch.Tensor:
    """Return the result by the batch's own statistics, and move the running ones."""
    norm_weight, norm_bias = norm.weight, norm.bias
    if casts(operands.input):
        norm_weight, norm_bias = precise(norm_weight, norm_bias)
    given = operands.lowered()
    check_tensors(input=given.input, weight=given.weight)
    check_optional(bias=given.bias, norm_weight=norm_weight, norm_bias=norm_bias, residual=given.residual)
    kernel, images = image("weight", given.weight, 2, batched=True), image("input", given.input, 2, batched=True)
    sliding = window.window((kernel.shape[2], kernel.shape[3]), 2)
    groups = arguments.integer("groups", window.groups)
    how = (sliding.stride, sliding.pads, sliding.dilation, groups, window.padding_mode)
    z, mean, var = autograd.conv2d_moments(images, kernel, given.bias, *how)
    count = z.shape[0] * z.shape[2] * z.shape[3]
    norm.check(mean.shape[0])
    if count == 1:
        raise ValueError(
            "input must leave more than one value per channel in training, but the convolution's output has shape "
            f"{tuple(z.shape)}; give more images or pixels"
        )
    epilogue = (norm_weight, norm_bias, given.residual, given.slopes(kernel.shape[0]))
    result: torch.Tensor = autograd.batch_norm(z, mean, var, *epilogue, norm.eps, given.activation)
    if count:
        _move(norm.running_mean, mean, norm.momentum)
        _move(norm.running_var, var * count / (count - 1), norm.momentum)  # Bessel's correction
    return result


def _move(running: torch.Tensor | None, new: torch.Tensor, momentum: float) -> None:
    """Move a running statistic, if there is one, towards the batch's. PyTorch's autograd counts it as no change in
    place, as it does for PyTorch's own operator."""
    if running is not None:
        kept = running.detach() if transforming() else running.data
        kept.copy_((1 - momentum) * kept.to(new.dtype) + momentum * new)


@overridable
def norm_scale(
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the bias by which a convolution without bias becomes convolution, bias and batch
    normalisation in eval mode.

    scale[k] = norm_weight[k] / √(var[k] + eps)        shift[k] = norm_bias[k] + (bias[k] − mean[k]) · scale[k]

    Equivalent to: (scale := norm_weight * torch.rsqrt(var + eps), norm_bias + (bias - mean) * scale)

    all tensors: (K,), or None: 1 for norm_weight, 0 for bias and norm_bias
    returns: (scale, shift), each (K,), float32 (float64 for float64)
    errors: RuntimeError (shapes)
    """
    dtype = accumulator(mean.dtype)
    scale = torch.rsqrt(var.to(dtype) + eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    mean = mean.to(dtype) if bias is None else mean.to(dtype) - bias
    shift = -mean * scale if norm_bias is None else torch.addcmul(norm_bias.to(dtype), mean, scale, value=-1)
    return scale, shift

"""Linear layers, with what follows them in the same kernel."""

import math

import torch
import torch.nn.functional as F

from .. import autograd
from ..kernels.core.tensors import check_optional
from ..kernels.window import arguments
from .calling import Activation, foreign, overridable
from .operands import Operands


@overridable
def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Linear layer, and what follows it in the same kernel: y = act(scale · (x · wᵀ) + b + residual).

    Equivalent to: torch.nn.functional.linear(input, weight, bias)

    input: (*, in_features); weight: (out_features, in_features), or (in_features,) without a bias;
    bias: (out_features,), or one element; returns (*, out_features), or (*) for a weight of one dimension
    activation, scale (out_features,), residual (of the result's shape), dtypes as in `conv2d`, but float32 uses TF32 as
    torch.backends.cuda.matmul.fp32_precision says
    errors: RuntimeError (shapes, mixed dtypes or devices), NotImplementedError (a dtype that no kernel takes),
    TypeError (types), ValueError (activation)
    """
    return _dense(Operands.of(input, weight, bias, activation, scale, residual))


@overridable
def linear_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Linear layer and ReLU in one kernel: y = max(x · wᵀ + b, 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.linear(input, weight, bias))

    Arguments, shapes, dtypes and errors as in `linear`.
    """
    return _dense(Operands.of(input, weight, bias, "relu"))


def _dense(operands: Operands) -> torch.Tensor:
    """Return a linear layer's result, by our kernels or by PyTorch."""
    weight, residual = operands.weight, operands.residual
    if isinstance(weight, torch.Tensor) and weight.dim() == 1 and operands.bias is None and not foreign(weight):
        check_optional(residual=residual)
        residual = None if residual is None else residual[..., None]
        return _dense(operands._replace(weight=weight[None], residual=residual))[..., 0]
    if operands.on_aten:
        return operands.completed(lambda bias: F.linear(operands.input, weight, bias), 0)
    given = operands.checked()
    input, weight, bias, residual = given.input, given.weight, given.bias, given.residual
    if input.dim() == 0:
        raise RuntimeError("input must have at least one dimension (*, in_features), but got a scalar")
    if bias is not None and bias.numel() == 1 and weight.dim() == 2:
        bias = bias.reshape(1).expand(weight.shape[0])
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    if residual is not None:
        arguments.same_shape("residual", residual.shape, (*input.shape[:-1], weight.shape[0]))
        residual = residual.reshape(rows.shape[0], weight.shape[0])
    slope = given.slopes(weight.shape[0])
    result: torch.Tensor = autograd.linear(rows, weight, bias, given.scale, residual, slope, 1, given.activation)
    return result.view(*input.shape[:-1], weight.shape[0])

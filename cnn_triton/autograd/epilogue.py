"""The gradients through the epilogue of a product: bias, activation, PReLU."""

from typing import Any

import torch

from ..kernels.base.precision import accumulator
from ..kernels.matrix import activation_grad, activations, prelu
from .function import Args, Formula, Function, total


class BiasGrad(Function):
    """db[k] = Σ over batch and pixels of grad."""

    OP = activation_grad.BIAS_GRAD

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.to(ctx.dtype)[:, None, None].expand(ctx.shape)


class ActivationGrad(Function):
    """(act'(·) · grad, its sum over batch and pixels), from what was saved."""

    OP = activation_grad.ACTIVATION_GRAD

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        dz, db = outputs
        linear = (None, None) if tangents.grad is None else super().tangent(inputs, outputs, tangents)
        second = None
        if tangents.saved is not None:
            second = _second_order(inputs.grad, tangents.saved, inputs.saved, inputs.activation)
        sums = None if second is None else second.sum((0, 2, 3), dtype=db.dtype)
        zero = torch.zeros_like(dz), torch.zeros_like(db)
        return tuple(total(*terms) for terms in zip(linear, (second, sums), zero, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, saved, ctx.activation = inputs
        ctx.save_for_backward(grad if activations.of(ctx.activation).has_second_derivative else None, saved)

    @staticmethod
    def backward(ctx: Any, grad: Any, grad_bias: Any) -> Any:
        dy, saved = ctx.saved_tensors
        both = total(grad, None if grad_bias is None else grad_bias.to(saved.dtype)[:, None, None])
        first = activations.of(ctx.activation).reference_grad(both, saved)
        return first, None if dy is None else _second_order(dy, both, saved, ctx.activation), None


def _second_order(
    grad: torch.Tensor, tangent: torch.Tensor, saved: torch.Tensor, activation: str
) -> torch.Tensor | None:
    """Return ∂(act'(·) · grad)/∂saved · tangent; None for 0."""
    dtype = accumulator(grad.dtype)
    second = activations.of(activation).second_derivative(saved.to(dtype))
    return None if second is None else (grad.to(dtype) * tangent.to(dtype) * second).to(grad.dtype)


class PreluGrad(Formula):
    """(dz, (Σ dz, Σ dy·min(z, 0)) by channel), dz = dy where z is positive, else slope · dy."""

    OP = prelu.PRELU_GRAD
    formula = staticmethod(prelu.prelu_grad_aten)


def prelu_tangent(z: torch.Tensor, slope: torch.Tensor, z_tangent: Any, slope_tangent: Any) -> torch.Tensor | None:
    """Return the tangent of PReLU(z), None for 0; the slope and its tangent broadcast over z."""
    by_z = None if z_tangent is None else torch.where(z > 0, z_tangent, z_tangent * slope)
    by_slope = None if slope_tangent is None else torch.where(z > 0, 0, z * slope_tangent)
    tangent: torch.Tensor | None = total(by_z, by_slope)
    return tangent

"""The ways back through what follows a product: bias, activation, PReLU."""

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
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        grad, saved, activation = inputs
        linear = (None, None) if tangents[0] is None else super().tangent(inputs, outputs, tangents)
        bent = None if tangents[1] is None else _bent(grad, tangents[1], saved, activation)
        sums = None if bent is None else bent.sum((0, 2, 3), dtype=outputs[1].dtype)
        zero = torch.zeros_like(outputs[0]), torch.zeros_like(outputs[1])
        return tuple(total(*terms) for terms in zip(linear, (bent, sums), zero, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, saved, ctx.activation = inputs
        bends = activations.of(ctx.activation).rule.curve is not None
        ctx.save_for_backward(grad if bends else None, saved)

    @staticmethod
    def backward(ctx: Any, grad: Any, grad_bias: Any) -> Any:
        dy, saved = ctx.saved_tensors
        both = total(grad, None if grad_bias is None else grad_bias.to(saved.dtype)[:, None, None])
        first = activations.of(ctx.activation).reference_grad(both, saved)
        return first, None if dy is None else _bent(dy, both, saved, ctx.activation), None


def _bent(grad: torch.Tensor, step: torch.Tensor, saved: torch.Tensor, activation: str) -> torch.Tensor | None:
    """Return the change of act'(·) · grad along a step of what is saved; None where there is none."""
    dtype = accumulator(grad.dtype)
    curve = activations.of(activation).curve(saved.to(dtype))
    return None if curve is None else (grad.to(dtype) * step.to(dtype) * curve).to(grad.dtype)


class PreluGrad(Formula):
    """(g, (Σ g, Σ dy·min(x, 0)) by channel), g = dy where x is positive, else slope · dy."""

    OP = prelu.PRELU_GRAD
    formula = staticmethod(prelu.prelu_grad_aten)


def prelu_tangent(x: torch.Tensor, slope: torch.Tensor, step: Any, of_slope: Any) -> torch.Tensor | None:
    """Return the change of PReLU(x) along steps of x and the slope, None for 0; a slope [K, 1, ...] beside x."""
    along_x = None if step is None else torch.where(x > 0, step, step * slope)
    along_slope = None if of_slope is None else torch.where(x > 0, 0, x * of_slope)
    tangent: torch.Tensor | None = total(along_x, along_slope)
    return tangent

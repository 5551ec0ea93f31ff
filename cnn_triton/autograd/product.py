"""What all products have in common: an epilogue, a scale, and the way back through them.

A product, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives are the
other two:

    y  = product(x, w)          dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = product(ddx, w)       dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = product(x, ddw)       dx = input_grad(dy, ddw)
"""

from typing import Any

import torch

from ..kernels.core.op import Op
from ..kernels.matrix import activations
from .epilogue import ActivationGrad, BiasGrad, PreluGrad, prelu_tangent
from .function import Args, Function, apply, names_of, total


class Product(Function):
    """y = act(x), x = scale · product(input, weight) + bias + residual; WITH_PREACTIVATION (y, x). With a slope, y is
    PReLU's, whose derivatives need x.

    A subclass says what the product's gradients are, and how its columns stand in the weight.
    """

    PARTS = 2
    WITH_PREACTIVATION = False

    @classmethod
    def rest_of(cls, function: type[Function], inputs: Args) -> list[Any]:
        """Return the arguments of another function of this product that are its own, too, by their names: its window
        and groups."""
        own = names_of(cls)[6:-1]  # between the operands and the activation
        return [value for name, value in zip(names_of(function), inputs, strict=True) if name in own]

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        """Return the product alone, differentiable."""
        raise NotImplementedError

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, needs: Args,
        accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Return the product's gradients in input and weight, those that are needed, differentiable; the weight's in
        the dtype of its sums, if `accumulate_dtype`."""
        raise NotImplementedError

    @classmethod
    def columns(cls, scale: torch.Tensor, weight: torch.Tensor, rest: Args) -> torch.Tensor:
        """Return a vector by column, to be multiplied with the weight."""
        return scale.view(-1, *(1,) * (weight.dim() - 1))

    @classmethod
    def by_column(cls, values: torch.Tensor, rest: Args) -> torch.Tensor:
        """Return the sum of the weight's elements by column."""
        return values.sum(tuple(range(1, values.dim())))

    @classmethod
    def beside(cls, vector: torch.Tensor) -> torch.Tensor:
        """Return a bias or a scale, as it stands beside the result."""
        return vector.view(-1, 1, 1)

    @classmethod
    def scaled(cls, weight: torch.Tensor, scale: torch.Tensor | None, rest: Args) -> torch.Tensor:
        """Return the weight whose bare product is the scaled one."""
        return weight if scale is None else (weight * cls.columns(scale, weight, rest)).to(weight.dtype)

    @classmethod
    def unscaled(cls, dw: Any, weight: torch.Tensor, scale: Any, rest: Args) -> tuple[Any, Any]:
        """Return the gradients of weight and scale, from the scaled weight's, which has the dtype of sums: divided by
        the scale, it may be larger than the weight's own dtype holds."""
        if scale is None or dw is None:
            return dw, None
        ds = cls.by_column(dw * weight.to(dw.dtype), rest).to(scale.dtype)
        return (dw * cls.columns(scale, weight, rest)).to(weight.dtype), ds

    @classmethod
    def step(cls, shape: Args, inputs: Args, rest: Args, tangents: Args) -> torch.Tensor | None:
        """Return the tangent of x, of this shape, None for 0; inputs and tangents: input, weight, bias, scale,
        residual."""
        input, weight, _, scale, _ = inputs
        dx, dw, db, ds, dr = tangents
        product = total(
            None if dx is None else cls.bare(dx, weight, rest), None if dw is None else cls.bare(input, dw, rest)
        )
        if scale is not None:
            scaled = None if product is None else product * cls.beside(scale)
            product = total(scaled, None if ds is None else cls.bare(input, weight, rest) * cls.beside(ds))
        step = total(product, None if db is None else cls.beside(db), dr)
        return None if step is None else step.expand(shape).to(input.dtype)

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        step: Any = cls.step(outputs[0].shape, inputs[:5], inputs[6:-1], tangents[:5])
        slope = inputs[5]
        if slope is None:
            y = activations.of(inputs[-1]).reference_grad(step, outputs[-1])
        else:
            of_slope = None if tangents[5] is None else cls.beside(tangents[5])
            y = prelu_tangent(outputs[-1], cls.beside(slope), step, of_slope)
        return (y, torch.zeros_like(y) if step is None else step) if cls.WITH_PREACTIVATION else y

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        input, weight, bias, scale, _, slope, *ctx.rest, ctx.activation = inputs
        ctx.bias = None if bias is None else bias.shape
        saved = output[1] if cls.WITH_PREACTIVATION else output if activations.of(ctx.activation).saves else None
        ctx.save_for_backward(input, weight, scale, slope, saved)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for x

    @classmethod
    def backward(cls, ctx: Any, grad: Any, of_x: Any = None) -> Any:
        input, weight, scale, slope, saved = ctx.saved_tensors
        of_input, of_weight, of_bias, of_scale, _, _ = ctx.needs_input_grad[:6]
        shape = ctx.bias if of_bias else None
        masked = bias = of_slope = None
        if grad is not None:
            masked, bias, of_slope = cls.through(grad, saved, slope, ctx.activation, shape)
        if of_x is not None:
            masked, bias = total(masked, of_x), total(bias, cls.through(of_x, None, None, "none", shape)[1])
        if masked is None:
            return (None,) * (len(ctx.rest) + 7)
        scaled = cls.scaled(weight, scale, ctx.rest)
        needs = (of_input, of_weight or of_scale)
        dx, dw = cls.grads(masked, input, scaled, ctx.rest, needs, scale is not None)
        dw, ds = cls.unscaled(dw, weight, scale, ctx.rest)
        if input.dim() == 4 and input.shape[1] == 0:  # there is no output then, see window.convolution.conv_shape
            bias = weight.new_zeros(ctx.bias) if of_bias else None
            of_slope = slope if slope is None else torch.zeros_like(slope)
        wanted = zip((dx, dw, bias, ds, masked, of_slope), ctx.needs_input_grad[:6], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * (len(ctx.rest) + 1)

    @classmethod
    def through(cls, grad: torch.Tensor, saved: Any, slope: Any, activation: str, bias: Any) -> Any:
        """Return the gradients of x, of a bias of this shape, None for none, and of the slope, from that of images
        [N, K, P, Q]."""
        if slope is not None and len(slope) == grad.shape[1]:
            masked, sums = apply(PreluGrad, grad, saved, slope)
            return masked, sums[0], sums[1].to(slope.dtype)
        if saved is not None:
            return *apply(ActivationGrad, grad, saved, activation), None
        return grad, None if bias is None else apply(BiasGrad, grad), None


def with_preactivation(product: type[Product], op: Op) -> type[Product]:
    """Return the product that gives, besides its result, what stands before its activation, by this operator."""
    return type(f"{product.__name__}WithPreactivation", (product,), {"OP": op, "WITH_PREACTIVATION": True})


class InputGrad(Function):
    """dx = input_grad(dy, w) of a product."""

    PARTS = 2
    PRODUCT: type[Product]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = cls.PRODUCT.rest_of(cls, inputs)

    @classmethod
    def backward(cls, ctx: Any, grad_input: Any) -> Any:
        grad, weight = ctx.saved_tensors
        of_grad, of_weight = ctx.needs_input_grad[:2]
        ddy = cls.PRODUCT.bare(grad_input, weight, ctx.rest) if of_grad else None
        _, dw = cls.PRODUCT.grads(grad, grad_input, weight, ctx.rest, (False, of_weight))
        return ddy, dw, *(None,) * (len(ctx.needs_input_grad) - 2)


class WeightGrad(InputGrad):
    """dw = weight_grad(dy, x) of a product."""

    @classmethod
    def backward(cls, ctx: Any, grad_weight: Any) -> Any:
        grad, input = ctx.saved_tensors
        of_grad, of_input = ctx.needs_input_grad[:2]
        grad_weight = grad_weight.to(grad.dtype)
        ddy = cls.PRODUCT.bare(input, grad_weight, ctx.rest) if of_grad else None
        dx, _ = cls.PRODUCT.grads(grad, input, grad_weight, ctx.rest, (of_input, False))
        return ddy, dx, *(None,) * (len(ctx.needs_input_grad) - 2)

"""The common part of all products: an epilogue, a scale, and the gradients through them.

A product, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives are the
other two:

    y  = product(x, w)          dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = product(ddx, w)       dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = product(x, ddw)       dx = input_grad(dy, ddw)
"""

import functools
from typing import Any, NamedTuple

import torch

from ..kernels.core.op import Op
from ..kernels.matrix import activations
from .epilogue import ActivationGrad, BiasGrad, PreluGrad, prelu_tangent
from .function import Args, Function, apply, grads_by_name, named, names_of, total


class ProductOperands(NamedTuple):
    """The operands of z = scale · product(input, weight) + bias + residual, or their tangents; None for 0."""

    input: Any = None
    weight: Any = None
    bias: Any = None
    scale: Any = None
    residual: Any = None

    @classmethod
    def of(cls, arguments: Any) -> "ProductOperands":
        """Return the operands among an operator's arguments, a named tuple that may lack some."""
        return cls(*(getattr(arguments, name, None) for name in cls._fields))


class Product(Function):
    """y = act(z), z = scale · product(input, weight) + bias + residual; WITH_PREACTIVATION (y, z). With a slope, y is
    PReLU's, whose derivatives need z.

    A subclass defines the product's gradients, and where the weight has its columns.
    """

    PARTS = 2
    WITH_PREACTIVATION = False

    @classmethod
    def rest_of(cls, function: type[Function], inputs: Args) -> list[Any]:
        """Return, from the inputs of a gradient function, the arguments that it shares with the product: window and
        groups."""
        return [inputs[i] for i in _shared(cls, function)]

    @classmethod
    def bare(cls, input: torch.Tensor, weight: torch.Tensor, rest: Args) -> Any:
        """Return the product alone, differentiable."""
        raise NotImplementedError

    @classmethod
    def grads(
        cls, grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, rest: Args, *, needs_input: bool,
        needs_weight: bool, accumulate_dtype: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Return the product's gradients in input and weight, differentiable, None for one that is not needed; the
        weight's in the dtype of its accumulator if `accumulate_dtype`."""
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
    def broadcast(cls, vector: torch.Tensor) -> torch.Tensor:
        """Return a vector over columns in the shape that broadcasts over the result."""
        return vector.view(-1, 1, 1)

    @classmethod
    def scaled(cls, weight: torch.Tensor, scale: torch.Tensor | None, rest: Args) -> torch.Tensor:
        """Return the weight whose bare product is the scaled one."""
        return weight if scale is None else (weight * cls.columns(scale, weight, rest)).to(weight.dtype)

    @classmethod
    def unscaled(cls, dw: Any, weight: torch.Tensor, scale: Any, rest: Args) -> tuple[Any, Any]:
        """Return the gradients of weight and scale, from that of the scaled weight. That is dw / scale, which may
        overflow in the weight's dtype: it has the accumulator's."""
        if scale is None or dw is None:
            return dw, None
        ds = cls.by_column(dw * weight.to(dw.dtype), rest).to(scale.dtype)
        return (dw * cls.columns(scale, weight, rest)).to(weight.dtype), ds

    @classmethod
    def z_tangent(
        cls, shape: Args, operands: ProductOperands, tangents: ProductOperands, rest: Args
    ) -> torch.Tensor | None:
        """Return the tangent of z, in this shape; None for 0."""
        input, weight, _, scale, _ = operands
        by_input = None if tangents.input is None else cls.bare(tangents.input, weight, rest)
        by_weight = None if tangents.weight is None else cls.bare(input, tangents.weight, rest)
        product = total(by_input, by_weight)
        if scale is not None:
            scaled = None if product is None else product * cls.broadcast(scale)
            by_scale = None
            if tangents.scale is not None:
                by_scale = cls.bare(input, weight, rest) * cls.broadcast(tangents.scale)
            product = total(scaled, by_scale)
        by_bias = None if tangents.bias is None else cls.broadcast(tangents.bias)
        tangent = total(product, by_bias, tangents.residual)
        return None if tangent is None else tangent.expand(shape).to(input.dtype)

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        *_, saved = outputs
        operands, operand_tangents = ProductOperands.of(inputs), ProductOperands.of(tangents)
        z_tangent: Any = cls.z_tangent(saved.shape, operands, operand_tangents, cls.rest_of(cls, inputs))
        if inputs.slope is None:
            y_tangent = activations.of(inputs.activation).reference_grad(z_tangent, saved)
        else:
            slope_tangent = None if tangents.slope is None else cls.broadcast(tangents.slope)
            y_tangent = prelu_tangent(saved, cls.broadcast(inputs.slope), z_tangent, slope_tangent)
        if not cls.WITH_PREACTIVATION:
            return y_tangent
        return y_tangent, torch.zeros_like(y_tangent) if z_tangent is None else z_tangent

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.rest, ctx.activation = cls.rest_of(cls, inputs), given.activation
        ctx.bias_shape = None if given.bias is None else given.bias.shape
        saved = output[1] if cls.WITH_PREACTIVATION else output if activations.of(given.activation).saves else None
        ctx.save_for_backward(given.input, given.weight, given.scale, given.slope, saved)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for z

    @classmethod
    def backward(cls, ctx: Any, grad: Any, grad_z: Any = None) -> Any:
        input, weight, scale, slope, saved = ctx.saved_tensors
        needs = named(cls, ctx.needs_input_grad)
        bias_shape = ctx.bias_shape if needs.bias else None
        dz = db = dslope = None
        if grad is not None:
            dz, db, dslope = cls.through(grad, saved, slope, ctx.activation, bias_shape)
        if grad_z is not None:
            _, more, _ = cls.through(grad_z, None, None, "none", bias_shape)
            dz, db = total(dz, grad_z), total(db, more)
        if dz is None:
            return grads_by_name(cls, ctx)
        dx, dw = cls.grads(
            dz, input, cls.scaled(weight, scale, ctx.rest), ctx.rest, needs_input=needs.input,
            needs_weight=needs.weight or needs.scale, accumulate_dtype=scale is not None,
        )  # fmt: skip
        dw, ds = cls.unscaled(dw, weight, scale, ctx.rest)
        if input.dim() == 4 and input.shape[1] == 0:  # there is no output then, see window.convolution.conv_shape
            db = weight.new_zeros(ctx.bias_shape) if needs.bias else None
            dslope = slope if slope is None else torch.zeros_like(slope)
        return grads_by_name(cls, ctx, input=dx, weight=dw, bias=db, scale=ds, residual=dz, slope=dslope)

    @classmethod
    def through(cls, grad: torch.Tensor, saved: Any, slope: Any, activation: str, bias_shape: Any) -> Any:
        """Return (dz, db, dslope) from the gradient of images [N, K, P, Q]. db has `bias_shape`; None for no bias."""
        if slope is not None and len(slope) == grad.shape[1]:
            dz, (db, dslope) = apply(PreluGrad, grad, saved, slope)
            return dz, db, dslope.to(slope.dtype)
        if saved is not None:
            return *apply(ActivationGrad, grad, saved, activation), None
        return grad, None if bias_shape is None else apply(BiasGrad, grad), None


@functools.cache
def _shared(product: type[Product], function: type[Function]) -> list[int]:
    """Return the positions of the arguments of a function that are a product's too, without operands and activation."""
    own = {*names_of(product)} - {*ProductOperands._fields, "slope", "activation"}
    return [i for i, name in enumerate(names_of(function)) if name in own]


def with_preactivation(product: type[Product], op: Op) -> type[Product]:
    """Return the product with results (y, z), computed by this operator."""
    return type(f"{product.__name__}WithPreactivation", (product,), {"OP": op, "WITH_PREACTIVATION": True})


class InputGrad(Function):
    """dx = input_grad(dy, w) of a product."""

    PARTS = 2
    PRODUCT: type[Product]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.save_for_backward(*inputs[: cls.PARTS])
        ctx.rest = cls.PRODUCT.rest_of(cls, inputs)

    @classmethod
    def backward(cls, ctx: Any, grad_input: Any) -> Any:
        grad, weight = ctx.saved_tensors
        needs = named(cls, ctx.needs_input_grad)
        ddy = cls.PRODUCT.bare(grad_input, weight, ctx.rest) if needs.grad else None
        _, dw = cls.PRODUCT.grads(
            grad, grad_input, weight, ctx.rest, needs_input=False, needs_weight=needs.weight
        )  # fmt: skip
        return grads_by_name(cls, ctx, grad=ddy, weight=dw)


class WeightGrad(InputGrad):
    """dw = weight_grad(dy, x) of a product."""

    @classmethod
    def backward(cls, ctx: Any, grad_weight: Any) -> Any:
        grad, input = ctx.saved_tensors
        needs = named(cls, ctx.needs_input_grad)
        grad_weight = grad_weight.to(grad.dtype)
        ddy = cls.PRODUCT.bare(input, grad_weight, ctx.rest) if needs.grad else None
        dx, _ = cls.PRODUCT.grads(
            grad, input, grad_weight, ctx.rest, needs_input=needs.input, needs_weight=False
        )  # fmt: skip
        return grads_by_name(cls, ctx, grad=ddy, input=dx)

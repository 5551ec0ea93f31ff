"""Convolutions that a pool or a batch normalisation follows."""

from typing import Any

import torch

from ..kernels.core.tensors import channels_last
from ..kernels.matrix import activations, pool_code
from ..kernels.matrix import batch_norm as norm
from ..kernels.matrix import conv_pool as pools
from .epilogue import ActivationGrad, BiasGrad, PreluGrad, prelu_tangent
from .function import Args, Formula, Function, apply, grads_by_name, jvp, named, total
from .product import ProductOperands
from .products import Conv2d


class Conv2dPool(Function):
    """(y, code): pooling of ReLU(z), z = scale · conv(x, weight) + bias, and of z what the gradients need."""

    OP = pools.CONV2D_POOL

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        _, code = outputs
        window = Conv2d.rest_of(cls, inputs)
        shape = pools.full_size(inputs.input, inputs.weight, *window)
        tangent = Conv2d.z_tangent(shape, ProductOperands.of(inputs), ProductOperands.of(tangents), window)
        return apply(ReluPool2dAtOpen, tangent, code, inputs.pool, inputs.average), None

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        _, code = output
        ctx.window, ctx.pool, ctx.average = Conv2d.rest_of(cls, inputs), given.pool, given.average
        ctx.mark_non_differentiable(code)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(given.input, given.weight, given.scale, code)

    @classmethod
    def backward(cls, ctx: Any, grad: Any, _code: Any) -> Any:
        if grad is None:
            return grads_by_name(cls, ctx)
        input, weight, scale, code = ctx.saved_tensors
        needs = named(cls, ctx.needs_input_grad)
        needs_weight = needs.weight or needs.scale
        scaled, how = Conv2d.scaled(weight, scale, ctx.window), (*ctx.window, ctx.pool, ctx.average)
        dx, dw, db = apply(
            Conv2dPoolGrad, grad, code, input, scaled, *how, needs.input, needs_weight, None, scale is not None
        )  # fmt: skip
        dw, ds = Conv2d.unscaled(dw, weight, scale, ctx.window) if needs_weight else (None, None)
        return grads_by_name(cls, ctx, input=dx, weight=dw, bias=db, scale=ds)


class Conv2dPoolGrad(Function):
    """(dx, dw, db) of a convolution that is pooled, from the gradient of the pool's result."""

    OP = pools.CONV2D_POOL_GRAD

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        dx = dw = db = None
        if tangents.grad is not None:
            dx, dw, db = apply(cls, *inputs._replace(grad=tangents.grad))
        # dx is linear in the weight, dw in the input: the gradient kernels with those replaced
        if tangents.weight is not None and inputs.needs_input:
            crossed, _, _ = apply(cls, *inputs._replace(weight=tangents.weight, needs_weight=False))
            dx = total(dx, crossed)
        if tangents.input is not None and inputs.needs_weight:
            _, crossed, _ = apply(cls, *inputs._replace(input=tangents.input, needs_input=False))
            dw = total(dw, crossed)
        parts = zip((dx, dw, db), outputs, strict=True)
        return tuple(torch.zeros_like(output) if part is None else part for part, output in parts)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.window, ctx.pool, ctx.average = Conv2d.rest_of(cls, inputs), given.pool, given.average
        ctx.needs_input, ctx.needs_weight = given.needs_input, given.needs_weight
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(given.grad, given.code, given.input, given.weight)

    @classmethod
    def backward(cls, ctx: Any, ddx: Any, ddw: Any, ddb: Any) -> Any:
        grad, code, input, weight = ctx.saved_tensors
        ddx = ddx if ctx.needs_input else None
        ddw = ddw.to(weight.dtype) if ctx.needs_weight and ddw is not None else None
        if ddx is None and ddw is None and ddb is None:
            return grads_by_name(cls, ctx)
        size, window = pools.full_size(input, weight, *ctx.window), ctx.window
        tangent = Conv2d.z_tangent(size, ProductOperands(input, weight), ProductOperands(ddx, ddw, ddb), window)
        ddy = apply(ReluPool2dAtOpen, tangent, code, ctx.pool, ctx.average)
        dz, _ = apply(ReluPool2dInputGrad, grad, code, size, ctx.pool, ctx.average, channels_last(grad))
        dx = dw = None
        if ddw is not None:
            dx, _ = Conv2d.grads(dz, input, ddw, window, needs_input=True, needs_weight=False)
        if ddx is not None:
            _, dw = Conv2d.grads(dz, ddx, weight, window, needs_input=False, needs_weight=True)
        return grads_by_name(cls, ctx, grad=ddy, input=dx, weight=dw)


class ReluPool2dInputGrad(Function):
    """(dz, its sum by channel): the gradient of pooling ReLU(z)."""

    OP = pool_code.RELU_POOL2D_INPUT_GRAD

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.pool, ctx.average, ctx.size, ctx.dtype = given.pool, given.average, given.input_size, given.grad.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(given.code)

    @classmethod
    def backward(cls, ctx: Any, grad: Any, grad_bias: Any) -> Any:
        if grad is None and grad_bias is None:
            return grads_by_name(cls, ctx)
        (code,) = ctx.saved_tensors
        both = total(grad, None if grad_bias is None else grad_bias.to(ctx.dtype)[:, None, None]).expand(ctx.size)
        return grads_by_name(cls, ctx, grad=apply(ReluPool2dAtOpen, both, code, ctx.pool, ctx.average))


class ReluPool2dAtOpen(Function):
    """The sum (or average) of a window's taps that the code marks: the winner of a maximum, the taps with ReLU open of
    an average."""

    OP = pool_code.RELU_POOL2D_AT_OPEN

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.pool, ctx.average = given.pool, given.average
        ctx.shape, ctx.last = given.input.shape, channels_last(given.input)
        ctx.save_for_backward(given.code)

    @classmethod
    def backward(cls, ctx: Any, grad: Any) -> Any:
        (code,) = ctx.saved_tensors
        dz, _ = apply(ReluPool2dInputGrad, grad, code, ctx.shape, ctx.pool, ctx.average, ctx.last)
        return grads_by_name(cls, ctx, input=dz)


class Conv2dMoments(Function):
    """(z, mean, var) of a convolution with bias: its channels' moments over batch and pixels. Only z is differentiable;
    a function of the moments differentiates them itself."""

    OP = norm.CONV2D_MOMENTS

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        z, _, _ = outputs
        operands, operand_tangents = ProductOperands.of(inputs), ProductOperands.of(tangents)
        return Conv2d.z_tangent(z.shape, operands, operand_tangents, Conv2d.rest_of(cls, inputs)), None, None

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        _, mean, var = output
        ctx.window = Conv2d.rest_of(cls, inputs)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(given.input, given.weight)

    @classmethod
    def backward(cls, ctx: Any, grad: Any, _mean: Any, _var: Any) -> Any:
        if grad is None:
            return grads_by_name(cls, ctx)
        input, weight = ctx.saved_tensors
        needs = named(cls, ctx.needs_input_grad)
        dx, dw = Conv2d.grads(
            grad, input, weight, ctx.window, needs_input=needs.input, needs_weight=needs.weight
        )  # fmt: skip
        return grads_by_name(cls, ctx, input=dx, weight=dw, bias=apply(BiasGrad, grad) if needs.bias else None)


class BatchNorm(Function):
    """y = act((z − mean) / √(var + eps) · weight + bias + residual). With a slope, y is PReLU's. mean and var are z's
    own, and the derivatives take that into account.

    With a residual or a slope the backward pass begins with act'(·)·dy, the residual's gradient: from y, or from the
    preactivation, computed again.
    """

    OP = norm.BATCH_NORM

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        (y,) = outputs

        def normalized(z: Any, weight: Any, bias: Any, residual: Any) -> Any:
            return norm.norm_reference(z, weight, bias, residual, None, inputs.eps, "none")

        args, arg_tangents = ((v.input, v.weight, v.bias, v.residual) for v in (inputs, tangents))
        preactivation, tangent = jvp(normalized, args, arg_tangents)
        if inputs.slope is not None:
            slope_tangent = None if tangents.slope is None else Conv2d.broadcast(tangents.slope)
            return prelu_tangent(preactivation, Conv2d.broadcast(inputs.slope), tangent, slope_tangent)
        act = activations.of(inputs.activation)
        return act.reference_grad(tangent, y if act.saves == "output" else preactivation)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.eps, ctx.activation = given.eps, given.activation
        ctx.masks_first = (given.residual is not None and given.activation != "none") or given.slope is not None
        ctx.recomputes = given.slope is not None or activations.of(given.activation).saves == "input"
        kept = None if not ctx.masks_first else given.residual if ctx.recomputes else output
        ctx.save_for_backward(given.input, given.mean, given.var, given.weight, given.bias, given.slope, kept)

    @classmethod
    def backward(cls, ctx: Any, grad: Any) -> Any:
        z, mean, var, weight, bias, slope, kept = ctx.saved_tensors
        needs, activation, dslope = named(cls, ctx.needs_input_grad), ctx.activation, None
        vectors = mean, var, weight, bias
        if ctx.masks_first:
            saved = apply(BatchNorm, z, *vectors, kept, None, ctx.eps, "none") if ctx.recomputes else kept
            if slope is None:
                grad, _ = apply(ActivationGrad, grad, saved, activation)
            else:
                grad, (_, dslope) = apply(PreluGrad, grad, saved, slope)
                dslope = dslope.to(slope.dtype) if needs.slope else None
            activation = "none"
        dz, (db, dw) = apply(BatchNormGrad, grad, z, *vectors, ctx.eps, activation)
        dw = dw.to(weight.dtype) if needs.weight else None
        db = db.to(bias.dtype) if needs.bias else None
        return grads_by_name(cls, ctx, input=dz, weight=dw, bias=db, residual=grad, slope=dslope)


class BatchNormGrad(Formula):
    """(dz, (Σ g, Σ g·ẑ) by channel)."""

    OP = norm.BATCH_NORM_GRAD
    formula = staticmethod(norm.norm_grad_aten)

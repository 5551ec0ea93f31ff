"""Convolutions with a pool or a batch normalisation behind them."""

from typing import Any

import torch

from ..kernels.core.tensors import channels_last
from ..kernels.matrix import activations, pool_code
from ..kernels.matrix import batch_norm as norm
from ..kernels.matrix import conv_pool as pools
from .epilogue import ActivationGrad, BiasGrad, PreluGrad, prelu_tangent
from .function import Args, Formula, Function, along, apply, total
from .products import Conv2d


class Conv2dPool(Function):
    """(y, code): pooling of ReLU(x), x = scale · conv(input, weight) + bias, and what the way back needs of x."""

    OP = pools.CONV2D_POOL

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        input, weight, bias, scale, *window, pool, average = inputs
        shape = pools.full_size(input, weight, *window)
        step = Conv2d.step(shape, (input, weight, bias, scale, None), window, (*tangents[:4], None))
        return apply(ReluPool2dAtOpen, step, outputs[1], pool, average), None

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, weight, _, scale, *ctx.window, ctx.pool, ctx.average = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, scale, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Any, _code: Any) -> Any:
        if grad is None:
            return (None,) * 11
        input, weight, scale, code = ctx.saved_tensors
        of_input, of_weight, _, of_scale = ctx.needs_input_grad[:4]
        scaled, how = Conv2d.scaled(weight, scale, ctx.window), (*ctx.window, ctx.pool, ctx.average)
        dx, dw, bias = apply(
            Conv2dPoolGrad, grad, code, input, scaled, *how, of_input, of_weight or of_scale, None, scale is not None
        )  # fmt: skip
        dw, ds = Conv2d.unscaled(dw, weight, scale, ctx.window) if of_weight or of_scale else (None, None)
        wanted = zip((dx, dw, bias, ds), ctx.needs_input_grad[:4], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * 7


class Conv2dPoolGrad(Function):
    """(dx, dw, db) of a convolution that is pooled, from the gradient of what comes out."""

    OP = pools.CONV2D_POOL_GRAD

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        grad, code, input, weight, *how, of_input, of_weight, materialized, accumulate_dtype = inputs
        dg, _, dx, dw = tangents[:4]
        parts = [None] * 3
        if dg is not None:
            parts = apply(cls, dg, *inputs[1:])
        # dx is linear in the weight, dw in the input: the gradient kernels with those replaced
        if dw is not None and of_input:
            crossed = apply(cls, grad, code, input, dw, *how, True, False, materialized, accumulate_dtype)[0]
            parts = [total(parts[0], crossed), *parts[1:]]
        if dx is not None and of_weight:
            crossed = apply(cls, grad, code, dx, weight, *how, False, True, materialized, accumulate_dtype)[1]
            parts = [parts[0], total(parts[1], crossed), parts[2]]
        return tuple(torch.zeros_like(out) if part is None else part for part, out in zip(parts, outputs, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, code, input, weight, *ctx.window, ctx.pool, ctx.average, ctx.of_input, ctx.of_weight, _, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, code, input, weight)

    @staticmethod
    def backward(ctx: Any, gx: Any, gw: Any, gb: Any) -> Any:
        grad, code, input, weight = ctx.saved_tensors
        gx, gw = gx if ctx.of_input else None, gw.to(weight.dtype) if ctx.of_weight and gw is not None else None
        if gx is None and gw is None and gb is None:
            return (None,) * 15
        size = pools.full_size(input, weight, *ctx.window)
        step = Conv2d.step(size, (input, weight, None, None, None), ctx.window, (gx, gw, gb, None, None))
        dg = apply(ReluPool2dAtOpen, step, code, ctx.pool, ctx.average)
        full, _ = apply(ReluPool2dInputGrad, grad, code, size, ctx.pool, ctx.average, channels_last(grad))
        dx = None if gw is None else Conv2d.grads(full, input, gw, ctx.window, (True, False))[0]
        dw = None if gx is None else Conv2d.grads(full, gx, weight, ctx.window, (False, True))[1]
        return dg, None, dx, dw, *(None,) * 11


class ReluPool2dInputGrad(Function):
    """(dx, its sum by channel): the gradient of what was pooled after ReLU."""

    OP = pool_code.RELU_POOL2D_INPUT_GRAD

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, code, ctx.size, *ctx.pool, _ = inputs
        ctx.dtype = grad.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(code)

    @staticmethod
    def backward(ctx: Any, grad: Any, grad_bias: Any) -> Any:
        if grad is None and grad_bias is None:
            return (None,) * 6
        (code,) = ctx.saved_tensors
        step = total(grad, None if grad_bias is None else grad_bias.to(ctx.dtype)[:, None, None]).expand(ctx.size)
        return apply(ReluPool2dAtOpen, step, code, *ctx.pool), *(None,) * 5


class ReluPool2dAtOpen(Function):
    """The sum of a window's taps, or their average, that the pooling after ReLU took its result from."""

    OP = pool_code.RELU_POOL2D_AT_OPEN

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, code, *ctx.pool = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(code)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (code,) = ctx.saved_tensors
        return apply(ReluPool2dInputGrad, grad, code, ctx.shape, *ctx.pool, ctx.last)[0], None, None, None


class Conv2dMoments(Function):
    """(z, mean, var) of a convolution with bias: its channels' moments over batch and pixels. Only z is differentiable;
    what depends on the moments says so itself."""

    OP = norm.CONV2D_MOMENTS

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        input, weight, bias, *window = inputs
        step = Conv2d.step(
            outputs[0].shape, (input, weight, bias, None, None), window, (*tangents[:3], None, None)
        )  # fmt: skip
        return step, None, None

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, weight, _, *ctx.window = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Any, _mean: Any, _var: Any) -> Any:
        if grad is None:
            return (None,) * 8
        input, weight = ctx.saved_tensors
        dx, dw = Conv2d.grads(grad, input, weight, ctx.window, ctx.needs_input_grad[:2])
        return dx, dw, apply(BiasGrad, grad) if ctx.needs_input_grad[2] else None, *(None,) * 5


class BatchNorm(Function):
    """y = act((z − mean) / √(var + eps) · weight + bias + residual), mean and var those of z: the derivatives know it.
    With a slope, y is PReLU's.

    With a residual or a slope the backward pass begins with act'(·)·dy, the residual's gradient: from y, or from what
    stands before the activation, computed again.
    """

    OP = norm.BATCH_NORM

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        input, _, _, weight, bias, residual, slope, eps, activation = inputs
        dz, _, _, dw, db, dr, of_slope = tangents[:7]
        normal = lambda z, w, b, r: norm.norm_reference(z, w, b, r, None, eps, "none")  # noqa: E731
        x, step = along(normal, (input, weight, bias, residual), (dz, dw, db, dr))
        if slope is not None:
            of_slope = None if of_slope is None else Conv2d.beside(of_slope)
            return prelu_tangent(x, Conv2d.beside(slope), step, of_slope)
        act = activations.of(activation)
        return act.reference_grad(step, outputs[0] if act.saves == "output" else x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        *saved, residual, slope, ctx.eps, ctx.activation = inputs
        ctx.apart = (residual is not None and ctx.activation != "none") or slope is not None
        ctx.again = slope is not None or activations.of(ctx.activation).saves == "input"
        kept = None if not ctx.apart else residual if ctx.again else output
        ctx.save_for_backward(*saved, slope, kept)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        *saved, slope, kept = ctx.saved_tensors
        _, _, _, weight, bias = saved
        activation, of_slope = ctx.activation, None
        if ctx.apart:
            x = apply(BatchNorm, *saved, kept, None, ctx.eps, "none") if ctx.again else kept
            if slope is None:
                grad, _ = apply(ActivationGrad, grad, x, activation)
            else:
                grad, sums = apply(PreluGrad, grad, x, slope)
                of_slope = sums[1].to(slope.dtype) if ctx.needs_input_grad[6] else None
            activation = "none"
        dz, sums = apply(BatchNormGrad, grad, *saved, ctx.eps, activation)
        dw = sums[1].to(weight.dtype) if ctx.needs_input_grad[3] else None
        db = sums[0].to(bias.dtype) if ctx.needs_input_grad[4] else None
        return dz, None, None, dw, db, grad if ctx.needs_input_grad[5] else None, of_slope, None, None


class BatchNormGrad(Formula):
    """(dz, (Σ g, Σ g·ẑ) by channel)."""

    OP = norm.BATCH_NORM_GRAD
    formula = staticmethod(norm.norm_grad_aten)

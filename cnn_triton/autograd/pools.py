"""Pools and unpooling. Pooling is linear once its winners are known: the derivative of its gradient reads what the
winners read.
"""

import math
from typing import Any

import torch

from ..kernels.base.precision import accumulator
from ..kernels.core.tensors import channels_last
from ..kernels.pool.avg_pool2d import AVG_POOL2D, AVG_POOL2D_INPUT_GRAD
from ..kernels.pool.max_pool2d import MAX_POOL2D, MAX_POOL2D_AT_WINNER, MAX_POOL2D_INPUT_GRAD
from ..kernels.pool.unpool2d import MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD
from .function import Args, Function, apply, grads_by_name, named


class MaxPool2d(Function):
    """(maximum, winning tap, winning pixel) of each window; only the first is differentiable."""

    OP = MAX_POOL2D

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        _, winner, _ = outputs
        return apply(MaxPool2dAtWinner, tangents.input, winner, inputs.window), None, None

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        _, winner, indices = output
        ctx.mark_non_differentiable(winner, indices)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for the winners' and the indices' gradients
        ctx.shape, ctx.window, ctx.last = given.input.shape, given.window, channels_last(given.input)
        ctx.save_for_backward(winner)

    @classmethod
    def backward(cls, ctx: Any, grad: Any, _winner: Any, _indices: Any) -> Any:
        if grad is None:
            return grads_by_name(cls, ctx)
        (winner,) = ctx.saved_tensors
        dx = apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last)
        return grads_by_name(cls, ctx, input=dx)


class MaxPool2dInputGrad(Function):
    """dx: each output's gradient at its winner."""

    OP = MAX_POOL2D_INPUT_GRAD

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.window = given.window
        ctx.save_for_backward(given.winner)

    @classmethod
    def backward(cls, ctx: Any, grad_input: Any) -> Any:
        (winner,) = ctx.saved_tensors
        return grads_by_name(cls, ctx, grad=apply(MaxPool2dAtWinner, grad_input, winner, ctx.window))


class MaxPool2dAtWinner(Function):
    """y = x at each window's winner."""

    OP = MAX_POOL2D_AT_WINNER

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, winner, ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @classmethod
    def backward(cls, ctx: Any, grad: Any) -> Any:
        (winner,) = ctx.saved_tensors
        dx = apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last)
        return grads_by_name(cls, ctx, input=dx)


class MaxUnpool2d(Function):
    """y: each value at its place, 0 elsewhere."""

    OP = MAX_UNPOOL2D

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.save_for_backward(named(cls, inputs).indices)

    @classmethod
    def backward(cls, ctx: Any, grad: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return grads_by_name(cls, ctx, input=apply(MaxUnpool2dInputGrad, grad, indices))


class MaxUnpool2dInputGrad(Function):
    """dx = dy at each value's place."""

    OP = MAX_UNPOOL2D_INPUT_GRAD

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, indices = inputs
        ctx.shape = grad.shape
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, grad_input: Any) -> Any:
        (indices,) = ctx.saved_tensors
        # Several values may have read one place: a sum by place, which PyTorch does in a fixed order on a GPU.
        n, c, h, w = ctx.shape
        plane = torch.arange(n * c, device=indices.device)[:, None]
        rows = (n * c, math.prod(grad_input.shape[2:]))
        values = grad_input.reshape(rows).to(accumulator(grad_input.dtype))
        total = values.new_zeros(n * c, h * w).index_put((plane, indices.reshape(rows)), values, True)
        return total.to(grad_input.dtype).view(ctx.shape), None


class AvgPool2d(Function):
    """Average of each window."""

    OP = AVG_POOL2D

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.how = given.window, given.count_include_pad, given.divisor_override
        ctx.shape, ctx.last = given.input.shape, channels_last(given.input)

    @classmethod
    def backward(cls, ctx: Any, grad: Any) -> Any:
        return grads_by_name(cls, ctx, input=apply(AvgPool2dInputGrad, grad, ctx.shape, *ctx.how, ctx.last))


class AvgPool2dInputGrad(Function):
    """dx: each output's gradient, spread over its window."""

    OP = AVG_POOL2D_INPUT_GRAD

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        given = named(cls, inputs)
        ctx.how = given.window, given.count_include_pad, given.divisor_override
        ctx.size = given.grad.shape[2:]

    @classmethod
    def backward(cls, ctx: Any, grad_input: Any) -> Any:
        return grads_by_name(cls, ctx, grad=apply(AvgPool2d, grad_input, ctx.size, *ctx.how))

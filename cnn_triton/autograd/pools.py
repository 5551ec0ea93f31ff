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
from .function import Args, Function, apply


class MaxPool2d(Function):
    """(maximum, winning tap, winning pixel) of each window; only the first is differentiable."""

    OP = MAX_POOL2D

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        return apply(MaxPool2dAtWinner, tangents[0], outputs[1], inputs[2]), None, None

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, _, ctx.window, _, _ = inputs
        _, winner, indices = output
        ctx.mark_non_differentiable(winner, indices)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for the winners' and the indices' gradients
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx: Any, grad: Any, _winner: Any, _indices: Any) -> Any:
        if grad is None:
            return (None,) * 5
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last), *(None,) * 4


class MaxPool2dInputGrad(Function):
    """dx: each output's gradient at its winner."""

    OP = MAX_POOL2D_INPUT_GRAD

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        _, winner, _, ctx.window, _ = inputs
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx: Any, grad_input: Any) -> Any:
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dAtWinner, grad_input, winner, ctx.window), None, None, None, None


class MaxPool2dAtWinner(Function):
    """y = x at each window's winner."""

    OP = MAX_POOL2D_AT_WINNER

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, winner, ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last), None, None


class MaxUnpool2d(Function):
    """y: each value at its place, 0 elsewhere."""

    OP = MAX_UNPOOL2D

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (indices,) = ctx.saved_tensors
        return apply(MaxUnpool2dInputGrad, grad, indices), None, None


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

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        input, _, *ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return apply(AvgPool2dInputGrad, grad, ctx.shape, *ctx.window, ctx.last), *(None,) * 4


class AvgPool2dInputGrad(Function):
    """dx: each output's gradient, spread over its window."""

    OP = AVG_POOL2D_INPUT_GRAD

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        grad, _, *ctx.window, _ = inputs
        ctx.size = grad.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad_input: Any) -> Any:
        return apply(AvgPool2d, grad_input, ctx.size, *ctx.window), *(None,) * 5

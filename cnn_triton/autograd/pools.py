"""Pools and unpooling. Pooling is linear once its winners are known: the derivative of its gradient reads what the
winners read.
"""

import math

import torch

from ..kernels.base.precision import accumulator
from ..kernels.core.op import channels_last
from ..kernels.pool.avg_pool2d import AVG_POOL2D, AVG_POOL2D_INPUT_GRAD
from ..kernels.pool.max_pool2d import MAX_POOL2D, MAX_POOL2D_AT_WINNER, MAX_POOL2D_INPUT_GRAD
from ..kernels.pool.unpool2d import MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD
from ..ops import operator
from .function import Function, apply

_max_pool2d, _max_pool2d_input_grad, _max_pool2d_at_winner = map(
    operator, (MAX_POOL2D, MAX_POOL2D_INPUT_GRAD, MAX_POOL2D_AT_WINNER)
)
_max_unpool2d, _max_unpool2d_input_grad = map(operator, (MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD))
_avg_pool2d, _avg_pool2d_input_grad = map(operator, (AVG_POOL2D, AVG_POOL2D_INPUT_GRAD))


class MaxPool2d(Function):
    """(maximum, winning tap, winning pixel) of each window; only the first is differentiable."""

    OP = MAX_POOL2D

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        return apply(MaxPool2dAtWinner, tangents[0], outputs[1], inputs[2]), None, None

    @staticmethod
    def forward(input, output_size, window, indices):
        return _max_pool2d(input, output_size, window, True, indices)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _, ctx.window, _ = inputs
        _, winner, indices = output
        ctx.mark_non_differentiable(winner, indices)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for the winners' and the indices' gradients
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx, grad, _winner, _indices):
        if grad is None:
            return (None,) * 4
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last), None, None, None


class MaxPool2dInputGrad(Function):
    """dx: each output's gradient at its winner."""

    OP = MAX_POOL2D_INPUT_GRAD

    @staticmethod
    def forward(grad, winner, input_size, window, last):
        return _max_pool2d_input_grad(grad, winner, input_size, window, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, winner, _, ctx.window, _ = inputs
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx, grad_input):
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dAtWinner, grad_input, winner, ctx.window), None, None, None, None


class MaxPool2dAtWinner(Function):
    """y = x at each window's winner."""

    OP = MAX_POOL2D_AT_WINNER

    @staticmethod
    def forward(input, winner, window):
        return _max_pool2d_at_winner(input, winner, window)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, winner, ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx, grad):
        (winner,) = ctx.saved_tensors
        return apply(MaxPool2dInputGrad, grad, winner, ctx.shape, ctx.window, ctx.last), None, None


class MaxUnpool2d(Function):
    """y: each value at its place, 0 elsewhere."""

    OP = MAX_UNPOOL2D

    @staticmethod
    def forward(input, indices, output_size):
        return _max_unpool2d(input, indices, output_size)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        (indices,) = ctx.saved_tensors
        return apply(MaxUnpool2dInputGrad, grad, indices), None, None


class MaxUnpool2dInputGrad(Function):
    """dx = dy at each value's place."""

    OP = MAX_UNPOOL2D_INPUT_GRAD

    @staticmethod
    def forward(grad, indices):
        return _max_unpool2d_input_grad(grad, indices)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, indices = inputs
        ctx.shape = grad.shape
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, grad_input):
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
    def forward(input, output_size, window, count_include_pad, divisor_override):
        return _avg_pool2d(input, output_size, window, count_include_pad, divisor_override)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _, *ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)

    @staticmethod
    def backward(ctx, grad):
        return apply(AvgPool2dInputGrad, grad, ctx.shape, *ctx.window, ctx.last), *(None,) * 4


class AvgPool2dInputGrad(Function):
    """dx: each output's gradient, spread over its window."""

    OP = AVG_POOL2D_INPUT_GRAD

    @staticmethod
    def forward(grad, input_size, window, count_include_pad, divisor_override, last):
        return _avg_pool2d_input_grad(grad, input_size, window, count_include_pad, divisor_override, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, _, *ctx.window, _ = inputs
        ctx.size = grad.shape[2:]

    @staticmethod
    def backward(ctx, grad_input):
        return apply(AvgPool2d, grad_input, ctx.size, *ctx.window), *(None,) * 5

"""torch.autograd.Functions over the operators. Backward passes are made of differentiable functions again.

Convolution, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives
are the other two:

    y  = conv(x, w)             dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = conv(ddx, w)          dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = conv(x, ddw)          dx = input_grad(dy, ddw)

The same holds for the linear layer; pooling is linear once its winners are known.
"""

from typing import Any

import torch
from torch.autograd import Function

from .kernels import conv2d as conv
from .kernels import epilogue, pool2d
from .kernels import linear as dense
from .kernels.op import channels_last
from .ops import operator

_conv2d, _conv2d_input_grad, _conv2d_weight_grad = map(
    operator, (conv.CONV2D, conv.CONV2D_INPUT_GRAD, conv.CONV2D_WEIGHT_GRAD)
)
_linear, _linear_input_grad, _linear_weight_grad = map(
    operator, (dense.LINEAR, dense.LINEAR_INPUT_GRAD, dense.LINEAR_WEIGHT_GRAD)
)
_activation_grad, _bias_grad = operator(epilogue.ACTIVATION_GRAD), operator(epilogue.BIAS_GRAD)
_max_pool2d, _max_pool2d_input_grad = operator(pool2d.MAX_POOL2D), operator(pool2d.MAX_POOL2D_INPUT_GRAD)
_avg_pool2d, _avg_pool2d_input_grad = operator(pool2d.AVG_POOL2D), operator(pool2d.AVG_POOL2D_INPUT_GRAD)


class BiasGrad(Function):
    """db[k] = Σ over batch and pixels of grad."""

    @staticmethod
    def forward(grad):
        return _bias_grad(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, grad):
        return grad[:, None, None].expand(ctx.shape)


class ActivationGrad(Function):
    """(act'(y) · grad, its sum over batch and pixels)."""

    @staticmethod
    def forward(grad, output, activation):
        return _activation_grad(grad, output, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, saved, ctx.activation = inputs
        ctx.save_for_backward(saved)

    @staticmethod
    def backward(ctx, grad, grad_bias):
        (saved,) = ctx.saved_tensors
        both = grad + grad_bias[:, None, None]
        return epilogue.ACTIVATIONS[ctx.activation].reference_grad(both, saved), None, None


def _through_epilogue(ctx, grad, output, has_bias):
    """The gradient before the epilogue and the bias' gradient, for images [N, K, P, Q]."""
    if epilogue.ACTIVATIONS[ctx.activation].saves_output:
        return ActivationGrad.apply(grad, output, ctx.activation)
    return grad, BiasGrad.apply(grad) if has_bias else None


class Conv2d(Function):
    """y = act(conv(x, w) + b)."""

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups, activation):
        return _conv2d(input, weight, bias, stride, padding, dilation, groups, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, *ctx.window, ctx.activation = inputs
        saves = epilogue.ACTIVATIONS[ctx.activation].saves_output
        ctx.save_for_backward(input, weight, output if saves else None)

    @staticmethod
    def backward(ctx, grad):
        input, weight, output = ctx.saved_tensors
        grad, bias = _through_epilogue(ctx, grad, output, ctx.needs_input_grad[2])
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = Conv2dInputGrad.apply(grad, weight, input.shape, *ctx.window, channels_last(input))
        if ctx.needs_input_grad[1]:
            dw = Conv2dWeightGrad.apply(grad, input, weight.shape, *ctx.window, channels_last(weight))
        return dx, dw, bias if ctx.needs_input_grad[2] else None, None, None, None, None, None


class Conv2dInputGrad(Function):
    """dx = input_grad(dy, w)."""

    @staticmethod
    def forward(grad, weight, input_size, stride, padding, dilation, groups, last):
        return _conv2d_input_grad(grad, weight, input_size, stride, padding, dilation, groups, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, _, *ctx.window, _ = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, grad_input):
        grad, weight = ctx.saved_tensors
        ddy = dw = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2d.apply(grad_input, weight, None, *ctx.window, "none")
        if ctx.needs_input_grad[1]:
            dw = Conv2dWeightGrad.apply(grad, grad_input, weight.shape, *ctx.window, channels_last(weight))
        return ddy, dw, None, None, None, None, None, None


class Conv2dWeightGrad(Function):
    """dw = weight_grad(dy, x)."""

    @staticmethod
    def forward(grad, input, weight_size, stride, padding, dilation, groups, last):
        return _conv2d_weight_grad(grad, input, weight_size, stride, padding, dilation, groups, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, input, _, *ctx.window, _ = inputs
        ctx.save_for_backward(grad, input)

    @staticmethod
    def backward(ctx, grad_weight):
        grad, input = ctx.saved_tensors
        ddy = dx = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2d.apply(input, grad_weight, None, *ctx.window, "none")
        if ctx.needs_input_grad[1]:
            dx = Conv2dInputGrad.apply(grad, grad_weight, input.shape, *ctx.window, channels_last(input))
        return ddy, dx, None, None, None, None, None, None


class Linear(Function):
    """y = act(x · wᵀ + b), for rows x."""

    @staticmethod
    def forward(input, weight, bias, activation):
        return _linear(input, weight, bias, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, ctx.activation = inputs
        saves = epilogue.ACTIVATIONS[ctx.activation].saves_output
        ctx.save_for_backward(input, weight, output if saves else None)

    @staticmethod
    def backward(ctx, grad):
        input, weight, output = ctx.saved_tensors
        output = None if output is None else dense.images(output)
        grad, bias = _through_epilogue(ctx, dense.images(grad), output, ctx.needs_input_grad[2])
        grad = grad[:, :, 0, 0]
        dx = LinearInputGrad.apply(grad, weight) if ctx.needs_input_grad[0] else None
        dw = LinearWeightGrad.apply(grad, input) if ctx.needs_input_grad[1] else None
        return dx, dw, bias if ctx.needs_input_grad[2] else None, None


class LinearInputGrad(Function):
    """dx = dy · w."""

    @staticmethod
    def forward(grad, weight):
        return _linear_input_grad(grad, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_input):
        grad, weight = ctx.saved_tensors
        ddy = Linear.apply(grad_input, weight, None, "none") if ctx.needs_input_grad[0] else None
        dw = LinearWeightGrad.apply(grad, grad_input) if ctx.needs_input_grad[1] else None
        return ddy, dw


class LinearWeightGrad(Function):
    """dw = dyᵀ · x."""

    @staticmethod
    def forward(grad, input):
        return _linear_weight_grad(grad, input)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad_weight):
        grad, input = ctx.saved_tensors
        ddy = Linear.apply(input, grad_weight, None, "none") if ctx.needs_input_grad[0] else None
        dx = LinearInputGrad.apply(grad, grad_weight) if ctx.needs_input_grad[1] else None
        return ddy, dx


class MaxPool2d(Function):
    """(maximum, winning tap, winning pixel) of each window; only the first is differentiable."""

    @staticmethod
    def forward(input, kernel_size, stride, padding, dilation, ceil_mode, indices):
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True, indices)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, *ctx.window, _, _ = inputs
        _, winner, indices = output
        ctx.mark_non_differentiable(winner, indices)
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx, grad, _winner, _indices):
        (winner,) = ctx.saved_tensors
        dx = MaxPool2dInputGrad.apply(grad, winner, ctx.shape, *ctx.window, ctx.last)
        return dx, None, None, None, None, None, None


class MaxPool2dInputGrad(Function):
    """dx: each output's gradient at its winner."""

    @staticmethod
    def forward(grad, winner, input_size, kernel_size, stride, padding, dilation, last):
        return _max_pool2d_input_grad(grad, winner, input_size, kernel_size, stride, padding, dilation, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, winner, _, *ctx.window, _ = inputs
        ctx.save_for_backward(winner)

    @staticmethod
    def backward(ctx, grad_input):
        (winner,) = ctx.saved_tensors
        index = pool2d.winner_pixel(winner, grad_input.shape[3], *ctx.window)
        ddy = grad_input.flatten(2).gather(2, index.flatten(2)).view(winner.shape)
        return ddy, None, None, None, None, None, None, None


class AvgPool2d(Function):
    """Average of each window."""

    @staticmethod
    def forward(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
        return _avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, *ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)

    @staticmethod
    def backward(ctx, grad):
        dx = AvgPool2dInputGrad.apply(grad, ctx.shape, *ctx.window, ctx.last)
        return dx, None, None, None, None, None, None


class AvgPool2dInputGrad(Function):
    """dx: each output's gradient, spread over its window."""

    @staticmethod
    def forward(grad, size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, last):
        window = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return _avg_pool2d_input_grad(grad, size, *window, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, *ctx.window, _ = inputs

    @staticmethod
    def backward(ctx, grad_input):
        ddy = AvgPool2d.apply(grad_input, *ctx.window)
        return ddy, None, None, None, None, None, None, None, None


def apply(function: type[Function], *args: Any) -> Any:
    """The function's results, differentiable."""
    return function.apply(*args)  # type: ignore[no-untyped-call]


def differentiable(*tensors: torch.Tensor | None) -> bool:
    """Will anything ask for gradients through these tensors?"""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

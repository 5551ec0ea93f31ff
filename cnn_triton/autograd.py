"""torch.autograd.Functions over the operators. Backward passes are made of differentiable functions again.

Convolution, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives
are the other two:

    y  = conv(x, w)             dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = conv(ddx, w)          dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = conv(x, ddw)          dx = input_grad(dy, ddw)

The same holds for the linear layer. Pooling is linear once its winners are known: the derivative of its gradient reads
what the winners read.
"""

from typing import Any

import torch
from torch.autograd import Function

from .kernels import avg_pool2d, epilogue, max_pool2d, unpool2d
from .kernels import conv2d as conv
from .kernels import linear as dense
from .kernels.op import channels_last
from .kernels.precision import accumulator
from .ops import operator

_conv2d, _conv2d_input_grad, _conv2d_weight_grad = map(
    operator, (conv.CONV2D, conv.CONV2D_INPUT_GRAD, conv.CONV2D_WEIGHT_GRAD)
)
_linear, _linear_input_grad, _linear_weight_grad = map(
    operator, (dense.LINEAR, dense.LINEAR_INPUT_GRAD, dense.LINEAR_WEIGHT_GRAD)
)
_activation_grad, _bias_grad = operator(epilogue.ACTIVATION_GRAD), operator(epilogue.BIAS_GRAD)
_max_pool2d, _max_pool2d_input_grad, _max_pool2d_at_winner = map(
    operator, (max_pool2d.MAX_POOL2D, max_pool2d.MAX_POOL2D_INPUT_GRAD, max_pool2d.MAX_POOL2D_AT_WINNER)
)
_max_unpool2d, _max_unpool2d_input_grad = map(operator, (unpool2d.MAX_UNPOOL2D, unpool2d.MAX_UNPOOL2D_INPUT_GRAD))
_avg_pool2d, _avg_pool2d_input_grad = operator(avg_pool2d.AVG_POOL2D), operator(avg_pool2d.AVG_POOL2D_INPUT_GRAD)


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
    def forward(input, weight, bias, stride, padding, dilation, groups, padding_mode, activation):
        return _conv2d(input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)

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
            dx = Conv2dInputGrad.apply(grad, weight, None, input.shape, *ctx.window, channels_last(input))
        if ctx.needs_input_grad[1]:
            dw = Conv2dWeightGrad.apply(grad, input, weight.shape, *ctx.window, channels_last(weight))
        if ctx.needs_input_grad[2] and input.shape[1] == 0:  # no output then, see geometry.conv_shape
            bias = weight.new_zeros(weight.shape[0])
        return dx, dw, bias if ctx.needs_input_grad[2] else None, *(None,) * 6


class Conv2dInputGrad(Function):
    """dx = input_grad(dy, w) + b: a transposed convolution of dy."""

    @staticmethod
    def forward(grad, weight, bias, input_size, stride, padding, dilation, groups, padding_mode, last):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_input_grad(grad, weight, bias, input_size, *window, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, _, _, *ctx.window, _ = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, grad_input):
        grad, weight = ctx.saved_tensors
        ddy = dw = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2d.apply(grad_input, weight, None, *ctx.window, "none")
        if ctx.needs_input_grad[1]:
            dw = Conv2dWeightGrad.apply(grad, grad_input, weight.shape, *ctx.window, channels_last(weight))
        return ddy, dw, BiasGrad.apply(grad_input) if ctx.needs_input_grad[2] else None, *(None,) * 7


class Conv2dWeightGrad(Function):
    """dw = weight_grad(dy, x)."""

    @staticmethod
    def forward(grad, input, weight_size, stride, padding, dilation, groups, padding_mode, last):
        return _conv2d_weight_grad(grad, input, weight_size, stride, padding, dilation, groups, padding_mode, last)

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
            dx = Conv2dInputGrad.apply(grad, grad_weight, None, input.shape, *ctx.window, channels_last(input))
        return ddy, dx, *(None,) * 7


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
        return MaxPool2dInputGrad.apply(grad, winner, ctx.shape, ctx.window, ctx.last), None, None, None


class MaxPool2dInputGrad(Function):
    """dx: each output's gradient at its winner."""

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
        return MaxPool2dAtWinner.apply(grad_input, winner, ctx.window), None, None, None, None


class MaxPool2dAtWinner(Function):
    """y = x at each window's winner."""

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
        return MaxPool2dInputGrad.apply(grad, winner, ctx.shape, ctx.window, ctx.last), None, None


class MaxUnpool2d(Function):
    """y: each value at its place, 0 elsewhere."""

    @staticmethod
    def forward(input, indices, output_size):
        return _max_unpool2d(input, indices, output_size)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        (indices,) = ctx.saved_tensors
        return MaxUnpool2dInputGrad.apply(grad, indices), None, None


class MaxUnpool2dInputGrad(Function):
    """dx = dy at each value's place."""

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
        values = grad_input.flatten(2).flatten(0, 1).to(accumulator(grad_input.dtype))
        total = values.new_zeros(n * c, h * w).index_put((plane, indices.flatten(2).flatten(0, 1)), values, True)
        return total.to(grad_input.dtype).view(ctx.shape), None


class AvgPool2d(Function):
    """Average of each window."""

    @staticmethod
    def forward(input, output_size, window, count_include_pad, divisor_override):
        return _avg_pool2d(input, output_size, window, count_include_pad, divisor_override)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, _, *ctx.window = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)

    @staticmethod
    def backward(ctx, grad):
        return AvgPool2dInputGrad.apply(grad, ctx.shape, *ctx.window, ctx.last), *(None,) * 4


class AvgPool2dInputGrad(Function):
    """dx: each output's gradient, spread over its window."""

    @staticmethod
    def forward(grad, input_size, window, count_include_pad, divisor_override, last):
        return _avg_pool2d_input_grad(grad, input_size, window, count_include_pad, divisor_override, last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, _, *ctx.window, _ = inputs
        ctx.size = grad.shape[2:]

    @staticmethod
    def backward(ctx, grad_input):
        return AvgPool2d.apply(grad_input, ctx.size, *ctx.window), *(None,) * 5


def apply(function: type[Function], *args: Any) -> Any:
    """The function's results, differentiable."""
    return function.apply(*args)  # type: ignore[no-untyped-call]


def differentiable(*tensors: torch.Tensor | None) -> bool:
    """Will anything ask for gradients through these tensors?"""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)

"""torch.autograd.Functions over the operators. Backward passes are made of differentiable functions again.

Convolution, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives
are the other two:

    y  = conv(x, w)             dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = conv(ddx, w)          dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = conv(x, ddw)          dx = input_grad(dy, ddw)

The same holds for the linear layer. Pooling is linear once its winners are known: the derivative of its gradient reads
what the winners read.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from .kernels import epilogue
from .kernels.avg_pool2d import AVG_POOL2D, AVG_POOL2D_INPUT_GRAD
from .kernels.conv2d import CONV2D, CONV2D_INPUT_GRAD, CONV2D_WEIGHT_GRAD
from .kernels.linear import LINEAR, LINEAR_INPUT_GRAD, LINEAR_WEIGHT_GRAD, images
from .kernels.max_pool2d import MAX_POOL2D, MAX_POOL2D_AT_WINNER, MAX_POOL2D_INPUT_GRAD
from .kernels.op import Op, channels_last
from .kernels.precision import accumulator
from .kernels.unpool2d import MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD
from .ops import batched, operator

_conv2d, _conv2d_input_grad, _conv2d_weight_grad = map(operator, (CONV2D, CONV2D_INPUT_GRAD, CONV2D_WEIGHT_GRAD))
_linear, _linear_input_grad, _linear_weight_grad = map(operator, (LINEAR, LINEAR_INPUT_GRAD, LINEAR_WEIGHT_GRAD))
_activation_grad, _bias_grad = operator(epilogue.ACTIVATION_GRAD), operator(epilogue.BIAS_GRAD)
_max_pool2d, _max_pool2d_input_grad, _max_pool2d_at_winner = map(
    operator, (MAX_POOL2D, MAX_POOL2D_INPUT_GRAD, MAX_POOL2D_AT_WINNER)
)
_max_unpool2d, _max_unpool2d_input_grad = map(operator, (MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD))
_avg_pool2d, _avg_pool2d_input_grad = map(operator, (AVG_POOL2D, AVG_POOL2D_INPUT_GRAD))


class Function(torch.autograd.Function):
    """A Function that calls the operator `OP`, by the operator's names of arguments. Its result is linear in the first
    argument, and in each of the first `PARTS` with the others kept; what else it depends on, `tangent` says."""

    OP: Op
    PARTS = 1

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        """The derivative along `tangents`, one for each of the inputs, or None: Σ of the function with one argument
        replaced by its tangent."""
        steps = [(i, tangent) for i, tangent in enumerate(tangents[: cls.PARTS]) if tangent is not None]
        terms = [apply(cls, *inputs[:i], tangent, *inputs[i + 1 :]) for i, tangent in steps]
        return terms[0] if len(terms) == 1 else _total(*terms)


def apply(function: type[Function], *args: Any) -> Any:
    """The function's results, differentiable."""
    if transforming():
        function = _transformable(function)
    return function.apply(*args)


def transforming() -> bool:
    """Is a transform of torch.func on, or forward-mode differentiation?"""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@functools.cache
def _transformable(function):
    """The function with rules for derivatives along tangents and for batches."""
    names = list(inspect.signature(function.forward).parameters)

    class Transformable(function):
        @staticmethod
        def setup_context(ctx, inputs, output):
            function.setup_context(ctx, inputs, output)
            ctx.set_materialize_grads(False)  # or PyTorch makes zeros for what has no tangent
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
            ctx.save_for_forward(*(value if isinstance(value, torch.Tensor) else None for value in inputs), *outputs)

        @staticmethod
        def backward(ctx, *grads):
            return (None,) * len(names) if all(grad is None for grad in grads) else function.backward(ctx, *grads)

        @staticmethod
        def jvp(ctx, *tangents):
            tensors = zip(ctx.saved_tensors, ctx.others, strict=False)
            inputs = [other if tensor is None else tensor for tensor, other in tensors]
            return function.tangent(inputs, ctx.saved_tensors[len(names) :], tangents)

        @staticmethod
        def vmap(info, dims, *args):
            return batched(function.OP, lambda *args: apply(function, *args), names, info.batch_size, dims, args)

    return Transformable


class BiasGrad(Function):
    """db[k] = Σ over batch and pixels of grad."""

    OP = epilogue.BIAS_GRAD

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

    OP = epilogue.ACTIVATION_GRAD

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
        both = _total(grad, None if grad_bias is None else grad_bias[:, None, None])
        return epilogue.ACTIVATIONS[ctx.activation].reference_grad(both, saved), None, None


def _total(*terms):
    """The sum of those that are there, or None."""
    terms = [term for term in terms if term is not None]
    return functools.reduce(torch.add, terms) if terms else None


def _through_epilogue(ctx, grad, output, has_bias):
    """The gradient before the epilogue and the bias' gradient, for images [N, K, P, Q]."""
    if epilogue.ACTIVATIONS[ctx.activation].saves_output:
        return apply(ActivationGrad, grad, output, ctx.activation)
    return grad, apply(BiasGrad, grad) if has_bias else None


class Product(Function):
    """y = act(product(x, w) + b)."""

    PARTS = 2
    PIXELS = (1, 1)  # b's shape is (K, *PIXELS)

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        (output,), activation = outputs, epilogue.ACTIVATIONS[inputs[-1]]
        product = super().tangent([*inputs[:2], None, *inputs[3:-1], "none"], outputs, tangents)
        bias = None if tangents[2] is None else tangents[2].view(-1, *cls.PIXELS)
        return activation.reference_grad(_total(product, bias).expand(output.shape), output)


class Conv2d(Product):
    """y = act(conv(x, w) + b)."""

    OP = CONV2D

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
            dx = apply(Conv2dInputGrad, grad, weight, None, input.shape, *ctx.window, channels_last(input))
        if ctx.needs_input_grad[1]:
            dw = apply(Conv2dWeightGrad, grad, input, weight.shape, *ctx.window, channels_last(weight))
        if ctx.needs_input_grad[2] and input.shape[1] == 0:  # no output then, see geometry.conv_shape
            bias = weight.new_zeros(weight.shape[0])
        return dx, dw, bias if ctx.needs_input_grad[2] else None, *(None,) * 6


class Conv2dInputGrad(Function):
    """dx = input_grad(dy, w) + b: a transposed convolution of dy."""

    OP = CONV2D_INPUT_GRAD
    PARTS = 2

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        product = super().tangent([*inputs[:2], None, *inputs[3:]], outputs, tangents)
        bias = None if tangents[2] is None else tangents[2][:, None, None]
        return _total(product, bias).expand(outputs[0].shape)

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
            ddy = apply(Conv2d, grad_input, weight, None, *ctx.window, "none")
        if ctx.needs_input_grad[1]:
            dw = apply(Conv2dWeightGrad, grad, grad_input, weight.shape, *ctx.window, channels_last(weight))
        return ddy, dw, apply(BiasGrad, grad_input) if ctx.needs_input_grad[2] else None, *(None,) * 7


class Conv2dWeightGrad(Function):
    """dw = weight_grad(dy, x)."""

    OP = CONV2D_WEIGHT_GRAD
    PARTS = 2

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
            ddy = apply(Conv2d, input, grad_weight, None, *ctx.window, "none")
        if ctx.needs_input_grad[1]:
            dx = apply(Conv2dInputGrad, grad, grad_weight, None, input.shape, *ctx.window, channels_last(input))
        return ddy, dx, *(None,) * 7


class Linear(Product):
    """y = act(x · wᵀ + b), for rows x."""

    OP = LINEAR
    PIXELS = ()

    @staticmethod
    def forward(input, weight, bias, groups, activation):
        return _linear(input, weight, bias, groups, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, ctx.groups, ctx.activation = inputs
        saves = epilogue.ACTIVATIONS[ctx.activation].saves_output
        ctx.save_for_backward(input, weight, output if saves else None)

    @staticmethod
    def backward(ctx, grad):
        input, weight, output = ctx.saved_tensors
        output = None if output is None else images(output)
        grad, bias = _through_epilogue(ctx, images(grad), output, ctx.needs_input_grad[2])
        grad = grad[:, :, 0, 0]
        dx = apply(LinearInputGrad, grad, weight, ctx.groups) if ctx.needs_input_grad[0] else None
        dw = apply(LinearWeightGrad, grad, input, ctx.groups) if ctx.needs_input_grad[1] else None
        return dx, dw, bias if ctx.needs_input_grad[2] else None, None, None


class LinearInputGrad(Function):
    """dx = dy · w."""

    OP = LINEAR_INPUT_GRAD
    PARTS = 2

    @staticmethod
    def forward(grad, weight, groups):
        return _linear_input_grad(grad, weight, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *saved, ctx.groups = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx, grad_input):
        grad, weight = ctx.saved_tensors
        ddy = apply(Linear, grad_input, weight, None, ctx.groups, "none") if ctx.needs_input_grad[0] else None
        dw = apply(LinearWeightGrad, grad, grad_input, ctx.groups) if ctx.needs_input_grad[1] else None
        return ddy, dw, None


class LinearWeightGrad(Function):
    """dw = dyᵀ · x."""

    OP = LINEAR_WEIGHT_GRAD
    PARTS = 2

    @staticmethod
    def forward(grad, input, groups):
        return _linear_weight_grad(grad, input, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *saved, ctx.groups = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx, grad_weight):
        grad, input = ctx.saved_tensors
        ddy = apply(Linear, input, grad_weight, None, ctx.groups, "none") if ctx.needs_input_grad[0] else None
        dx = apply(LinearInputGrad, grad, grad_weight, ctx.groups) if ctx.needs_input_grad[1] else None
        return ddy, dx, None


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
        values = grad_input.flatten(2).flatten(0, 1).to(accumulator(grad_input.dtype))
        total = values.new_zeros(n * c, h * w).index_put((plane, indices.flatten(2).flatten(0, 1)), values, True)
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


def _differentiable(function: type[Function], forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function as the layers call it: `forward` alone, its own unless given, where nothing asks for derivatives.
    torch.compile keeps the call whole and differentiates what it does, which goes for torch.func's transforms too; of
    a Function it would trace forward and backward, and transforms of those not, or as if they were constant."""
    plain = forward or function.forward

    def call(*args):
        asked = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        return apply(function, *args) if asked or transforming() else plain(*args)

    return torch.compiler.allow_in_graph(call)


conv2d = _differentiable(Conv2d)
conv2d_input_grad = _differentiable(Conv2dInputGrad)
linear = _differentiable(Linear)
max_pool2d = _differentiable(MaxPool2d, lambda *args: _max_pool2d(*args[:3], False, *args[3:]))
max_unpool2d = _differentiable(MaxUnpool2d)
avg_pool2d = _differentiable(AvgPool2d)

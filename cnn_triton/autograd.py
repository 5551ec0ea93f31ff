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

from .kernels import activations, epilogue, relu_pool
from .kernels import batch_norm as norm
from .kernels import conv2d as conv
from .kernels import conv2d_pool as pools
from .kernels.avg_pool2d import AVG_POOL2D, AVG_POOL2D_INPUT_GRAD
from .kernels.linear import LINEAR, LINEAR_INPUT_GRAD, LINEAR_SAVING, LINEAR_WEIGHT_GRAD, images
from .kernels.max_pool2d import MAX_POOL2D, MAX_POOL2D_AT_WINNER, MAX_POOL2D_INPUT_GRAD
from .kernels.op import Op, channels_last
from .kernels.precision import accumulator
from .kernels.unpool2d import MAX_UNPOOL2D, MAX_UNPOOL2D_INPUT_GRAD
from .ops import batched, operator

_conv2d, _conv2d_saving = operator(conv.CONV2D), operator(conv.CONV2D_SAVING)
_conv2d_input_grad, _conv2d_weight_grad = operator(conv.CONV2D_INPUT_GRAD), operator(conv.CONV2D_WEIGHT_GRAD)
_conv_transpose2d, _conv_transpose2d_saving = map(operator, (conv.CONV_TRANSPOSE2D, conv.CONV_TRANSPOSE2D_SAVING))
_conv2d_pool, _conv2d_pool_grad = operator(pools.CONV2D_POOL), operator(pools.CONV2D_POOL_GRAD)
_relu_pool2d_input_grad, _relu_pool2d_at_open = map(
    operator, (relu_pool.RELU_POOL2D_INPUT_GRAD, relu_pool.RELU_POOL2D_AT_OPEN)
)
_conv2d_moments, _batch_norm, _batch_norm_grad = map(
    operator, (norm.CONV2D_MOMENTS, norm.BATCH_NORM, norm.BATCH_NORM_GRAD)
)
_linear, _linear_saving = operator(LINEAR), operator(LINEAR_SAVING)
_linear_input_grad, _linear_weight_grad = operator(LINEAR_INPUT_GRAD), operator(LINEAR_WEIGHT_GRAD)
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
    """(act'(·) · grad, its sum over batch and pixels), from what was saved."""

    OP = epilogue.ACTIVATION_GRAD

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        grad, saved, activation = inputs
        linear = (None, None) if tangents[0] is None else super().tangent(inputs, outputs, tangents)
        bent = None if tangents[1] is None else _bent(grad, tangents[1], saved, activation)
        sums = None if bent is None else bent.sum((0, 2, 3))
        zero = torch.zeros_like(outputs[0]), torch.zeros_like(outputs[1])
        return tuple(_total(*terms) for terms in zip(linear, (bent, sums), zero, strict=True))

    @staticmethod
    def forward(grad, saved, activation):
        return _activation_grad(grad, saved, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, saved, ctx.activation = inputs
        bends = activations.of(ctx.activation).rule.curve is not None
        ctx.save_for_backward(grad if bends else None, saved)

    @staticmethod
    def backward(ctx, grad, grad_bias):
        dy, saved = ctx.saved_tensors
        both = _total(grad, None if grad_bias is None else grad_bias[:, None, None])
        first = activations.of(ctx.activation).reference_grad(both, saved)
        return first, None if dy is None else _bent(dy, both, saved, ctx.activation), None


def _bent(grad, step, saved, activation):
    """What act'(·) · grad changes by, where what is saved makes a step; None where it doesn't."""
    wide = accumulator(grad.dtype)
    curve = activations.of(activation).curve(saved.to(wide))
    return None if curve is None else (grad.to(wide) * step.to(wide) * curve).to(grad.dtype)


def _total(*terms):
    """The sum of those that are there, or None."""
    terms = [term for term in terms if term is not None]
    return functools.reduce(torch.add, terms) if terms else None


class Product(Function):
    """y = act(x), x = scale · product(input, weight) + bias + residual; of a SAVING function (y, x).

    A subclass says what the product's gradients are, and how its columns stand in the weight.
    """

    PARTS = 2
    SAVING = False
    PIXELS = (1, 1)  # bias' shape is (K, *PIXELS) beside the result

    @classmethod
    def bare(cls, input, weight, rest):
        """The product alone, differentiable."""
        raise NotImplementedError

    @classmethod
    def grads(cls, grad, input, weight, rest, needs):
        """The product's gradients in input and weight, those that are needed, differentiable."""
        raise NotImplementedError

    @classmethod
    def columns(cls, scale, weight, rest):
        """A vector by column, to be multiplied with the weight."""
        return scale.view(-1, *(1,) * (weight.dim() - 1))

    @classmethod
    def by_column(cls, values, rest):
        """The sum of the weight's elements by column."""
        return values.sum(tuple(range(1, values.dim())))

    @classmethod
    def scaled(cls, weight, scale, rest):
        """The weight whose bare product is the scaled one."""
        return weight if scale is None else (weight * cls.columns(scale, weight, rest)).to(weight.dtype)

    @classmethod
    def unscaled(cls, dw, weight, scale, rest):
        """The gradients of weight and scale, from the scaled weight's."""
        if scale is None or dw is None:
            return dw, None
        wide = accumulator(weight.dtype)
        ds = cls.by_column(dw.to(wide) * weight.to(wide), rest).to(scale.dtype)
        return cls.scaled(dw, scale, rest), ds

    @classmethod
    def step(cls, shape, inputs, rest, tangents):
        """The tangent of x, of this shape; inputs and tangents: input, weight, bias, scale, residual."""
        input, weight, _, scale, _ = inputs
        dx, dw, db, ds, dr = tangents
        product = _total(
            None if dx is None else cls.bare(dx, weight, rest), None if dw is None else cls.bare(input, dw, rest)
        )
        vector = lambda v: v.view(-1, *cls.PIXELS)  # noqa: E731
        if scale is not None:
            scaled = None if product is None else product * vector(scale)
            product = _total(scaled, None if ds is None else cls.bare(input, weight, rest) * vector(ds))
        return _total(product, None if db is None else vector(db), dr).expand(shape).to(input.dtype)

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        step = cls.step(outputs[0].shape, inputs[:5], inputs[5:-1], tangents[:5])
        y = activations.of(inputs[-1]).reference_grad(step, outputs[-1])
        return (y, step) if cls.SAVING else y

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        input, weight, _, scale, _, *ctx.rest, ctx.activation = inputs
        saved = output[1] if cls.SAVING else output if activations.of(ctx.activation).saves else None
        ctx.save_for_backward(input, weight, scale, saved)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for x

    @classmethod
    def backward(cls, ctx, grad, of_x=None):
        input, weight, scale, saved = ctx.saved_tensors
        of_input, of_weight, of_bias, of_scale, _ = ctx.needs_input_grad[:5]
        masked = bias = None
        if grad is not None:
            masked, bias = cls.through(grad, saved, ctx.activation, of_bias)
        if of_x is not None:
            masked, bias = _total(masked, of_x), _total(bias, cls.summed(of_x) if of_bias else None)
        if masked is None:
            return (None,) * (len(ctx.rest) + 6)
        scaled = cls.scaled(weight, scale, ctx.rest)
        dx, dw = cls.grads(masked, input, scaled, ctx.rest, (of_input, of_weight or of_scale))
        dw, ds = cls.unscaled(dw, weight, scale, ctx.rest)
        if of_bias and input.shape[1] == 0:  # a convolution has no output then, see geometry.conv_shape
            bias = weight.new_zeros(weight.shape[0])
        wanted = zip((dx, dw, bias, ds, masked), ctx.needs_input_grad[:5], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * (len(ctx.rest) + 1)

    @classmethod
    def through(cls, grad, saved, activation, of_bias):
        """The gradient before the epilogue and the bias' gradient, for images [N, K, P, Q]."""
        if saved is not None:
            return apply(ActivationGrad, grad, saved, activation)
        return grad, cls.summed(grad) if of_bias else None

    @classmethod
    def summed(cls, grad):
        """A gradient's sum by column."""
        return apply(BiasGrad, grad)


class Conv2d(Product):
    """y = act(scale · conv(x, w) + b + residual)."""

    OP = conv.CONV2D

    @staticmethod
    def forward(input, weight, bias, scale, residual, stride, padding, dilation, groups, padding_mode, activation):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d(input, weight, bias, scale, residual, *window, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        return apply(Conv2d, input, weight, None, None, None, *rest, "none")

    @classmethod
    def grads(cls, grad, input, weight, rest, needs):
        dx = dw = None
        if needs[0]:
            dx = apply(Conv2dInputGrad, grad, weight, input.shape, *rest, channels_last(input))
        if needs[1]:
            dw = apply(Conv2dWeightGrad, grad, input, weight.shape, *rest, channels_last(weight))
        return dx, dw


class Conv2dSaving(Conv2d):
    """(y, x): the convolution and what stands before its activation."""

    OP = conv.CONV2D_SAVING
    SAVING = True

    @staticmethod
    def forward(input, weight, bias, scale, residual, stride, padding, dilation, groups, padding_mode, activation):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_saving(input, weight, bias, scale, residual, *window, activation)


class ConvTranspose2d(Product):
    """y = act(scale · transposed conv(x, w) + b + residual)."""

    OP = conv.CONV_TRANSPOSE2D

    @staticmethod
    def forward(
        input, weight, bias, scale, residual, output_size, stride, padding, dilation, groups, channels_last, activation
    ):  # fmt: skip
        window = (stride, padding, dilation, groups, channels_last)
        return _conv_transpose2d(input, weight, bias, scale, residual, output_size, *window, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        size, *window, last = rest
        return apply(Conv2dInputGrad, input, weight, size, *window, "zeros", last)

    @classmethod
    def grads(cls, grad, input, weight, rest, needs):
        window, dx, dw = (*rest[1:-1], "zeros"), None, None
        if needs[0]:
            dx = Conv2d.bare(grad, weight, window)
        if needs[1]:
            dw = apply(Conv2dWeightGrad, input, grad, weight.shape, *window, channels_last(weight))
        return dx, dw

    @classmethod
    def columns(cls, scale, weight, rest):
        each = scale.view(rest[4], 1, -1).expand(-1, weight.shape[0] // rest[4], -1)
        return each.reshape(weight.shape[0], -1, 1, 1)

    @classmethod
    def by_column(cls, values, rest):
        return values.view(rest[4], -1, *values.shape[1:]).sum((1, 3, 4)).reshape(-1)


class ConvTranspose2dSaving(ConvTranspose2d):
    """(y, x): the transposed convolution and what stands before its activation."""

    OP = conv.CONV_TRANSPOSE2D_SAVING
    SAVING = True

    @staticmethod
    def forward(
        input, weight, bias, scale, residual, output_size, stride, padding, dilation, groups, channels_last, activation
    ):  # fmt: skip
        window = (stride, padding, dilation, groups, channels_last)
        return _conv_transpose2d_saving(input, weight, bias, scale, residual, output_size, *window, activation)


class Conv2dInputGrad(Function):
    """dx = input_grad(dy, w)."""

    OP = conv.CONV2D_INPUT_GRAD
    PARTS = 2

    @staticmethod
    def forward(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_input_grad(grad, weight, input_size, *window, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, _, *ctx.window, _ = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, grad_input):
        grad, weight = ctx.saved_tensors
        ddy = dw = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2d.bare(grad_input, weight, ctx.window)
        if ctx.needs_input_grad[1]:
            dw = apply(Conv2dWeightGrad, grad, grad_input, weight.shape, *ctx.window, channels_last(weight))
        return ddy, dw, *(None,) * 7


class Conv2dWeightGrad(Function):
    """dw = weight_grad(dy, x)."""

    OP = conv.CONV2D_WEIGHT_GRAD
    PARTS = 2

    @staticmethod
    def forward(grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_weight_grad(grad, input, weight_size, *window, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, input, _, *ctx.window, _ = inputs
        ctx.save_for_backward(grad, input)

    @staticmethod
    def backward(ctx, grad_weight):
        grad, input = ctx.saved_tensors
        ddy = dx = None
        if ctx.needs_input_grad[0]:
            ddy = Conv2d.bare(input, grad_weight, ctx.window)
        if ctx.needs_input_grad[1]:
            dx = apply(Conv2dInputGrad, grad, grad_weight, input.shape, *ctx.window, channels_last(input))
        return ddy, dx, *(None,) * 7


class Linear(Product):
    """y = act(scale · x · wᵀ + b + residual), for rows x."""

    OP = LINEAR
    PIXELS = ()

    @staticmethod
    def forward(input, weight, bias, scale, residual, groups, activation):
        return _linear(input, weight, bias, scale, residual, groups, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        return apply(Linear, input, weight, None, None, None, *rest, "none")

    @classmethod
    def grads(cls, grad, input, weight, rest, needs):
        dx = apply(LinearInputGrad, grad, weight, *rest) if needs[0] else None
        return dx, apply(LinearWeightGrad, grad, input, *rest) if needs[1] else None

    @classmethod
    def through(cls, grad, saved, activation, of_bias):
        saved = None if saved is None else images(saved)
        masked, bias = super().through(images(grad), saved, activation, of_bias)
        return masked[:, :, 0, 0], bias

    @classmethod
    def summed(cls, grad):
        return super().summed(grad if grad.dim() == 4 else images(grad))


class LinearSaving(Linear):
    """(y, x): the linear layer and what stands before its activation."""

    OP = LINEAR_SAVING
    SAVING = True

    @staticmethod
    def forward(input, weight, bias, scale, residual, groups, activation):
        return _linear_saving(input, weight, bias, scale, residual, groups, activation)


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
        ddy = Linear.bare(grad_input, weight, (ctx.groups,)) if ctx.needs_input_grad[0] else None
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
        ddy = Linear.bare(input, grad_weight, (ctx.groups,)) if ctx.needs_input_grad[0] else None
        dx = apply(LinearInputGrad, grad, grad_weight, ctx.groups) if ctx.needs_input_grad[1] else None
        return ddy, dx, None


class Conv2dPool(Function):
    """(y, code): pooling of ReLU(x), x = scale · conv(input, weight) + bias, and what the way back needs of x."""

    OP = pools.CONV2D_POOL

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        input, weight, bias, scale, *window, pool, average = inputs
        shape = pools.full_size(input, weight, *window)
        step = Conv2d.step(shape, (input, weight, bias, scale, None), window, (*tangents[:4], None))
        return apply(ReluPool2dAtOpen, step, outputs[1], pool, average), None

    @staticmethod
    def forward(input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_pool(input, weight, bias, scale, *window, pool, average)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, scale, *ctx.window, ctx.pool, ctx.average = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, scale, output[1])

    @staticmethod
    def backward(ctx, grad, _code):
        if grad is None:
            return (None,) * 11
        input, weight, scale, code = ctx.saved_tensors
        of_input, of_weight, _, of_scale = ctx.needs_input_grad[:4]
        scaled, how = Conv2d.scaled(weight, scale, ctx.window), (*ctx.window, ctx.pool, ctx.average)
        dx, dw, bias = apply(
            Conv2dPoolGrad, grad, code, input, scaled, *how, of_input, of_weight or of_scale, None
        )  # fmt: skip
        dw, ds = Conv2d.unscaled(dw, weight, scale, ctx.window) if of_weight or of_scale else (None, None)
        wanted = zip((dx, dw, bias, ds), ctx.needs_input_grad[:4], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * 7


class Conv2dPoolGrad(Function):
    """(dx, dw, db) of a convolution that is pooled, from the gradient of what comes out."""

    OP = pools.CONV2D_POOL_GRAD

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        grad, code, input, weight, *how, of_input, of_weight, written = inputs
        dg, _, dx, dw = tangents[:4]
        parts = [None] * 3
        if dg is not None:
            parts = apply(cls, dg, *inputs[1:])
        # dx is linear in the weight, dw in the input: the gradient kernels with those replaced
        if dw is not None and of_input:
            crossed = apply(cls, grad, code, input, dw, *how, True, False, written)[0]
            parts = [_total(parts[0], crossed), *parts[1:]]
        if dx is not None and of_weight:
            crossed = apply(cls, grad, code, dx, weight, *how, False, True, written)[1]
            parts = [parts[0], _total(parts[1], crossed), parts[2]]
        return tuple(torch.zeros_like(out) if part is None else part for part, out in zip(parts, outputs, strict=True))

    @staticmethod
    def forward(
        grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, of_input, of_weight,
        written,
    ):  # fmt: skip
        how = (stride, padding, dilation, groups, padding_mode, pool, average)
        return _conv2d_pool_grad(grad, code, input, weight, *how, of_input, of_weight, written)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, code, input, weight, *ctx.window, ctx.pool, ctx.average, ctx.of_input, ctx.of_weight, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, code, input, weight)

    @staticmethod
    def backward(ctx, gx, gw, gb):
        grad, code, input, weight = ctx.saved_tensors
        gx, gw = gx if ctx.of_input else None, gw if ctx.of_weight else None
        if gx is None and gw is None and gb is None:
            return (None,) * 14
        size = pools.full_size(input, weight, *ctx.window)
        step = Conv2d.step(size, (input, weight, None, None, None), ctx.window, (gx, gw, gb, None, None))
        dg = apply(ReluPool2dAtOpen, step, code, ctx.pool, ctx.average)
        full, _ = apply(ReluPool2dInputGrad, grad, code, size, ctx.pool, ctx.average, channels_last(grad))
        dx = None if gw is None else Conv2d.grads(full, input, gw, ctx.window, (True, False))[0]
        dw = None if gx is None else Conv2d.grads(full, gx, weight, ctx.window, (False, True))[1]
        return dg, None, dx, dw, *(None,) * 10


class ReluPool2dInputGrad(Function):
    """(dx, its sum by channel): the gradient of what was pooled after ReLU."""

    OP = relu_pool.RELU_POOL2D_INPUT_GRAD

    @staticmethod
    def forward(grad, code, input_size, pool, average, channels_last):
        return _relu_pool2d_input_grad(grad, code, input_size, pool, average, channels_last)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, code, ctx.size, *ctx.pool, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(code)

    @staticmethod
    def backward(ctx, grad, grad_bias):
        if grad is None and grad_bias is None:
            return (None,) * 6
        (code,) = ctx.saved_tensors
        step = _total(grad, None if grad_bias is None else grad_bias[:, None, None]).expand(ctx.size)
        return apply(ReluPool2dAtOpen, step, code, *ctx.pool), *(None,) * 5


class ReluPool2dAtOpen(Function):
    """The sum of a window's taps, or their average, that the pooling after ReLU took its result from."""

    OP = relu_pool.RELU_POOL2D_AT_OPEN

    @staticmethod
    def forward(input, code, pool, average):
        return _relu_pool2d_at_open(input, code, pool, average)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, code, *ctx.pool = inputs
        ctx.shape, ctx.last = input.shape, channels_last(input)
        ctx.save_for_backward(code)

    @staticmethod
    def backward(ctx, grad):
        (code,) = ctx.saved_tensors
        return apply(ReluPool2dInputGrad, grad, code, ctx.shape, *ctx.pool, ctx.last)[0], None, None, None


class Conv2dMoments(Function):
    """(z, mean, var) of a convolution with bias: its channels' moments over batch and pixels. Only z is differentiable;
    what depends on the moments says so itself."""

    OP = norm.CONV2D_MOMENTS

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        input, weight, bias, *window = inputs
        step = Conv2d.step(
            outputs[0].shape, (input, weight, bias, None, None), window, (*tangents[:3], None, None)
        )  # fmt: skip
        return step, None, None

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups, padding_mode):
        return _conv2d_moments(input, weight, bias, stride, padding, dilation, groups, padding_mode)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, _, *ctx.window = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx, grad, _mean, _var):
        if grad is None:
            return (None,) * 8
        input, weight = ctx.saved_tensors
        dx, dw = Conv2d.grads(grad, input, weight, ctx.window, ctx.needs_input_grad[:2])
        return dx, dw, apply(BiasGrad, grad) if ctx.needs_input_grad[2] else None, *(None,) * 5


class BatchNorm(Function):
    """y = act((z − mean) / √(var + eps) · weight + bias), mean and var those of z: the derivatives know it."""

    OP = norm.BATCH_NORM

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        input, _, _, weight, bias, eps, activation = inputs
        dz, _, _, dw, db = tangents[:5]
        normal = lambda *given: norm.norm_reference(*given, eps, "none")  # noqa: E731
        x, step = _along(normal, (input, weight, bias), (dz, dw, db))
        act = activations.of(activation)
        return act.reference_grad(step, outputs[0] if act.saves == "output" else x)

    @staticmethod
    def forward(input, mean, var, weight, bias, eps, activation):
        return _batch_norm(input, mean, var, weight, bias, eps, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *saved, ctx.eps, ctx.activation = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx, grad):
        input, mean, var, weight, bias = ctx.saved_tensors
        dz, sums = apply(BatchNormGrad, grad, input, mean, var, weight, bias, ctx.eps, ctx.activation)
        dw = sums[1].to(weight.dtype) if ctx.needs_input_grad[3] else None
        db = sums[0].to(bias.dtype) if ctx.needs_input_grad[4] else None
        return dz, None, None, dw, db, None, None


class BatchNormGrad(Function):
    """(dz, (Σ g, Σ g·ẑ) by channel). Its own derivatives are PyTorch's, of the same formulas."""

    OP = norm.BATCH_NORM_GRAD

    @staticmethod
    def formulas(eps, activation):
        """What the kernels compute, as a function of grad, input, weight and bias."""
        return lambda grad, input, *affine: norm.norm_grad_aten(grad, input, None, None, *affine, eps, activation)

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        grad, input, _, _, weight, bias, *how = inputs
        steps = (*tangents[:2], *tangents[4:6])
        return _along(cls.formulas(*how), (grad, input, weight, bias), steps)[1]

    @staticmethod
    def forward(grad, input, mean, var, weight, bias, eps, activation):
        return _batch_norm_grad(grad, input, mean, var, weight, bias, eps, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *saved, ctx.eps, ctx.activation = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx, of_dz, of_sums):
        grad, input, _, _, weight, bias = ctx.saved_tensors
        function, tensors = _of_tensors(BatchNormGrad.formulas(ctx.eps, ctx.activation), (grad, input, weight, bias))
        grads = iter(torch.func.vjp(function, *tensors)[1]((of_dz, of_sums)))
        dg, dz, dw, db = (None if tensor is None else next(grads) for tensor in (grad, input, weight, bias))
        return dg, dz, None, None, dw, db, None, None


def _of_tensors(function, args):
    """The function of those arguments that are tensors, and these; the others are None."""
    places = [arg is not None for arg in args]

    def call(*tensors):
        each = iter(tensors)
        return function(*(next(each) if place else None for place in places))

    return call, [arg for arg in args if arg is not None]


def _along(function, args, steps):
    """The function's results, and their derivative along the arguments' steps. By reverse mode twice: forward mode
    can't be nested in every way that this may be called."""
    function, tensors = _of_tensors(function, args)
    steps = [
        torch.zeros_like(arg) if step is None else step
        for arg, step in zip(args, steps, strict=True)
        if arg is not None
    ]
    results, back = torch.func.vjp(function, *tensors)
    like = results if isinstance(results, tuple) else (results,)
    along = torch.func.vjp(
        lambda *cotangents: back(cotangents if isinstance(results, tuple) else cotangents[0]),
        *map(torch.zeros_like, like),
    )[1]
    tangents = along(tuple(steps))
    return results, tangents if isinstance(results, tuple) else tangents[0]


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


def _asked(args: tuple[Any, ...]) -> bool:
    """Does anything ask for derivatives, or transform the call?"""
    leaves = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    return leaves or transforming()


def _differentiable(function: type[Function], forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The function as the layers call it: `forward` alone, its own unless given, where nothing asks for derivatives.
    torch.compile keeps the call whole and differentiates what it does, which goes for torch.func's transforms too; of
    a Function it would trace forward and backward, and transforms of those not, or as if they were constant."""
    plain = forward or function.forward

    def call(*args):
        return apply(function, *args) if _asked(args) else plain(*args)

    return torch.compiler.allow_in_graph(call)


def _product(plain: type[Product], saving: type[Product]) -> Callable[..., Any]:
    """A product as the layers call it: where its activation's derivative needs x, the function that saves it."""

    def call(*args):
        if not _asked(args):
            return plain.forward(*args)
        if activations.of(args[-1]).saves == "input":
            return apply(saving, *args)[0]
        return apply(plain, *args)

    return torch.compiler.allow_in_graph(call)


conv2d = _product(Conv2d, Conv2dSaving)
conv_transpose2d = _product(ConvTranspose2d, ConvTranspose2dSaving)
linear = _product(Linear, LinearSaving)
conv2d_pool = _differentiable(Conv2dPool)
conv2d_moments = _differentiable(Conv2dMoments)
batch_norm = _differentiable(BatchNorm)
max_pool2d = _differentiable(MaxPool2d, lambda *args: _max_pool2d(*args[:3], False, *args[3:]))
max_unpool2d = _differentiable(MaxUnpool2d)
avg_pool2d = _differentiable(AvgPool2d)

"""Products and what follows them: convolution, transposed convolution, locally connected layer, linear layer.

Convolution, its input gradient and its weight gradient are linear in both arguments, and each one's derivatives
are the other two:

    y  = conv(x, w)             dx  = input_grad(dy, w)     dw = weight_grad(dy, x)
    dx = input_grad(dy, w)      ddy = conv(ddx, w)          dw = weight_grad(dy, ddx)
    dw = weight_grad(dy, x)     ddy = conv(x, ddw)          dx = input_grad(dy, ddw)

The same holds for the locally connected and the linear layer.
"""

import torch

from ..kernels.base.precision import accumulator
from ..kernels.core.op import channels_last
from ..kernels.matrix import activations, epilogue, prelu
from ..kernels.matrix import conv2d as conv
from ..kernels.matrix import locally_connected2d as local
from ..kernels.matrix.linear import LINEAR, LINEAR_INPUT_GRAD, LINEAR_SAVING, LINEAR_WEIGHT_GRAD, images
from ..ops import operator
from .function import Formula, Function, apply, total

_conv2d, _conv2d_saving = operator(conv.CONV2D), operator(conv.CONV2D_SAVING)
_conv2d_input_grad, _conv2d_weight_grad = operator(conv.CONV2D_INPUT_GRAD), operator(conv.CONV2D_WEIGHT_GRAD)
_conv_transpose2d, _conv_transpose2d_saving = map(operator, (conv.CONV_TRANSPOSE2D, conv.CONV_TRANSPOSE2D_SAVING))
_local, _local_saving = map(operator, (local.LOCALLY_CONNECTED2D, local.LOCALLY_CONNECTED2D_SAVING))
_local_input_grad = operator(local.LOCALLY_CONNECTED2D_INPUT_GRAD)
_local_weight_grad = operator(local.LOCALLY_CONNECTED2D_WEIGHT_GRAD)
_linear, _linear_saving = operator(LINEAR), operator(LINEAR_SAVING)
_linear_input_grad, _linear_weight_grad = operator(LINEAR_INPUT_GRAD), operator(LINEAR_WEIGHT_GRAD)
_activation_grad, _bias_grad = operator(epilogue.ACTIVATION_GRAD), operator(epilogue.BIAS_GRAD)
_prelu_grad = operator(prelu.PRELU_GRAD)


class BiasGrad(Function):
    """db[k] = Σ over batch and pixels of grad."""

    OP = epilogue.BIAS_GRAD

    @staticmethod
    def forward(grad):
        return _bias_grad(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype)[:, None, None].expand(ctx.shape)


class ActivationGrad(Function):
    """(act'(·) · grad, its sum over batch and pixels), from what was saved."""

    OP = epilogue.ACTIVATION_GRAD

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        grad, saved, activation = inputs
        linear = (None, None) if tangents[0] is None else super().tangent(inputs, outputs, tangents)
        bent = None if tangents[1] is None else _bent(grad, tangents[1], saved, activation)
        sums = None if bent is None else bent.sum((0, 2, 3), dtype=outputs[1].dtype)
        zero = torch.zeros_like(outputs[0]), torch.zeros_like(outputs[1])
        return tuple(total(*terms) for terms in zip(linear, (bent, sums), zero, strict=True))

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
        both = total(grad, None if grad_bias is None else grad_bias.to(saved.dtype)[:, None, None])
        first = activations.of(ctx.activation).reference_grad(both, saved)
        return first, None if dy is None else _bent(dy, both, saved, ctx.activation), None


def _bent(grad, step, saved, activation):
    """What act'(·) · grad changes by, where what is saved makes a step; None where it doesn't."""
    wide = accumulator(grad.dtype)
    curve = activations.of(activation).curve(saved.to(wide))
    return None if curve is None else (grad.to(wide) * step.to(wide) * curve).to(grad.dtype)


class PreluGrad(Formula):
    """(g, (Σ g, Σ dy·min(x, 0)) by channel), g = dy where x is positive, else slope · dy."""

    OP = prelu.PRELU_GRAD
    formula = staticmethod(prelu.prelu_grad_aten)

    @staticmethod
    def forward(grad, saved, slope):
        return _prelu_grad(grad, saved, slope)


def prelu_tangent(x, slope, step, of_slope):
    """What PReLU(x) changes by, where x and the slope make these steps; a slope [K, 1, ...] beside x."""
    along_x = None if step is None else torch.where(x > 0, step, step * slope)
    return total(along_x, None if of_slope is None else torch.where(x > 0, 0, x * of_slope))


class Product(Function):
    """y = act(x), x = scale · product(input, weight) + bias + residual; of a SAVING function (y, x). With a slope, y is
    PReLU's, whose derivatives a SAVING function has.

    A subclass says what the product's gradients are, and how its columns stand in the weight.
    """

    PARTS = 2
    SAVING = False

    @classmethod
    def bare(cls, input, weight, rest):
        """The product alone, differentiable."""
        raise NotImplementedError

    @classmethod
    def grads(cls, grad, input, weight, rest, needs, wide=False):
        """The product's gradients in input and weight, those that are needed, differentiable; the weight's as precise
        as its sums, if `wide`."""
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
    def beside(cls, vector):
        """A bias or a scale, as it stands beside the result."""
        return vector.view(-1, 1, 1)

    @classmethod
    def scaled(cls, weight, scale, rest):
        """The weight whose bare product is the scaled one."""
        return weight if scale is None else (weight * cls.columns(scale, weight, rest)).to(weight.dtype)

    @classmethod
    def unscaled(cls, dw, weight, scale, rest):
        """The gradients of weight and scale, from the scaled weight's, which is `wide`: divided by the scale, it may be
        larger than the weight's own dtype holds."""
        if scale is None or dw is None:
            return dw, None
        ds = cls.by_column(dw * weight.to(dw.dtype), rest).to(scale.dtype)
        return (dw * cls.columns(scale, weight, rest)).to(weight.dtype), ds

    @classmethod
    def step(cls, shape, inputs, rest, tangents):
        """The tangent of x, of this shape; inputs and tangents: input, weight, bias, scale, residual. None for 0."""
        input, weight, _, scale, _ = inputs
        dx, dw, db, ds, dr = tangents
        product = total(
            None if dx is None else cls.bare(dx, weight, rest), None if dw is None else cls.bare(input, dw, rest)
        )
        if scale is not None:
            scaled = None if product is None else product * cls.beside(scale)
            product = total(scaled, None if ds is None else cls.bare(input, weight, rest) * cls.beside(ds))
        step = total(product, None if db is None else cls.beside(db), dr)
        return None if step is None else step.expand(shape).to(input.dtype)

    @classmethod
    def tangent(cls, inputs, outputs, tangents):
        step, slope = cls.step(outputs[0].shape, inputs[:5], inputs[6:-1], tangents[:5]), inputs[5]
        if slope is None:
            y = activations.of(inputs[-1]).reference_grad(step, outputs[-1])
        else:
            of_slope = None if tangents[5] is None else cls.beside(tangents[5])
            y = prelu_tangent(outputs[-1], cls.beside(slope), step, of_slope)
        return (y, torch.zeros_like(y) if step is None else step) if cls.SAVING else y

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        input, weight, bias, scale, _, slope, *ctx.rest, ctx.activation = inputs
        ctx.bias = None if bias is None else bias.shape
        saved = output[1] if cls.SAVING else output if activations.of(ctx.activation).saves else None
        ctx.save_for_backward(input, weight, scale, slope, saved)
        ctx.set_materialize_grads(False)  # or PyTorch fills zeros for x

    @classmethod
    def backward(cls, ctx, grad, of_x=None):
        input, weight, scale, slope, saved = ctx.saved_tensors
        of_input, of_weight, of_bias, of_scale, _, _ = ctx.needs_input_grad[:6]
        shape = ctx.bias if of_bias else None
        masked = bias = of_slope = None
        if grad is not None:
            masked, bias, of_slope = cls.through(grad, saved, slope, ctx.activation, shape)
        if of_x is not None:
            masked, bias = total(masked, of_x), total(bias, cls.through(of_x, None, None, "none", shape)[1])
        if masked is None:
            return (None,) * (len(ctx.rest) + 7)
        scaled = cls.scaled(weight, scale, ctx.rest)
        needs = (of_input, of_weight or of_scale)
        dx, dw = cls.grads(masked, input, scaled, ctx.rest, needs, scale is not None)
        dw, ds = cls.unscaled(dw, weight, scale, ctx.rest)
        if input.dim() == 4 and input.shape[1] == 0:  # there is no output then, see geometry.conv_shape
            bias = weight.new_zeros(ctx.bias) if of_bias else None
            of_slope = slope if slope is None else torch.zeros_like(slope)
        wanted = zip((dx, dw, bias, ds, masked, of_slope), ctx.needs_input_grad[:6], strict=True)
        return *(grad if needed else None for grad, needed in wanted), *(None,) * (len(ctx.rest) + 1)

    @classmethod
    def through(cls, grad, saved, slope, activation, bias):
        """The gradients of x, of a bias of this shape, None for none, and of the slope; of images [N, K, P, Q]."""
        if slope is not None and len(slope) == grad.shape[1]:
            masked, sums = apply(PreluGrad, grad, saved, slope)
            return masked, sums[0], sums[1].to(slope.dtype)
        if saved is not None:
            return *apply(ActivationGrad, grad, saved, activation), None
        return grad, None if bias is None else apply(BiasGrad, grad), None


class Conv2d(Product):
    """y = act(scale · conv(x, w) + b + residual)."""

    OP = conv.CONV2D

    @staticmethod
    def forward(
        input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
    ):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d(input, weight, bias, scale, residual, slope, *window, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        return apply(Conv2d, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(cls, grad, input, weight, rest, needs, wide=False):
        dx = dw = None
        if needs[0]:
            dx = apply(Conv2dInputGrad, grad, weight, input.shape, *rest, channels_last(input))
        if needs[1]:
            dw = apply(Conv2dWeightGrad, grad, input, weight.shape, *rest, channels_last(weight), wide)
        return dx, dw


class Conv2dSaving(Conv2d):
    """(y, x): the convolution and what stands before its activation."""

    OP = conv.CONV2D_SAVING
    SAVING = True

    @staticmethod
    def forward(
        input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
    ):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_saving(input, weight, bias, scale, residual, slope, *window, activation)


class ConvTranspose2d(Product):
    """y = act(scale · transposed conv(x, w) + b + residual)."""

    OP = conv.CONV_TRANSPOSE2D

    @staticmethod
    def forward(
        input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
        activation,
    ):  # fmt: skip
        window = (stride, padding, dilation, groups, channels_last)
        return _conv_transpose2d(input, weight, bias, scale, residual, slope, output_size, *window, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        size, *window, last = rest
        return apply(Conv2dInputGrad, input, weight, size, *window, "zeros", last)

    @classmethod
    def grads(cls, grad, input, weight, rest, needs, wide=False):
        window, dx, dw = (*rest[1:-1], "zeros"), None, None
        if needs[0]:
            dx = Conv2d.bare(grad, weight, window)
        if needs[1]:
            dw = apply(Conv2dWeightGrad, input, grad, weight.shape, *window, channels_last(weight), wide)
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
        input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
        activation,
    ):  # fmt: skip
        window = (stride, padding, dilation, groups, channels_last)
        return _conv_transpose2d_saving(input, weight, bias, scale, residual, slope, output_size, *window, activation)


class LocallyConnected2d(Product):
    """y = act(scale · locally connected product of x and w + b + residual); b by column, or by pixel and column."""

    OP = local.LOCALLY_CONNECTED2D

    @staticmethod
    def forward(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation):
        return _local(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        return apply(LocallyConnected2d, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(cls, grad, input, weight, rest, needs, wide=False):
        dx = dw = None
        if needs[0]:
            dx = apply(LocallyConnected2dInputGrad, grad, weight, input.shape, *rest, channels_last(input))
        if needs[1]:
            dw = apply(LocallyConnected2dWeightGrad, grad, input, weight.shape, *rest, wide)
        return dx, dw

    @classmethod
    def columns(cls, scale, weight, rest):
        return scale.view(-1, 1, 1, 1)

    @classmethod
    def by_column(cls, values, rest):
        return values.sum((0, 1, 3, 4, 5))

    @classmethod
    def beside(cls, vector):
        return vector.permute(2, 0, 1) if vector.dim() == 3 else super().beside(vector)

    @classmethod
    def through(cls, grad, saved, slope, activation, bias):
        if bias is None or len(bias) == 1:
            return super().through(grad, saved, slope, activation, bias)
        if 0 in grad.shape:
            masked, _, of_slope = super().through(grad, saved, slope, activation, None)
            return masked, grad.new_zeros(bias), of_slope
        # Each pixel's columns are columns of their own: of images of one pixel.
        n, k, p, q = grad.shape
        one = lambda t: None if t is None else t.permute(0, 2, 3, 1).reshape(n, p * q * k, 1, 1)  # noqa: E731
        below = None if slope is None else slope.repeat(p * q)
        masked, sums, of_slope = super().through(one(grad), one(saved), below, activation, bias)
        of_slope = None if slope is None else of_slope.view(p * q, k).sum(0)
        return masked.reshape(n, p, q, k).permute(0, 3, 1, 2), sums.view(bias), of_slope


class LocallyConnected2dSaving(LocallyConnected2d):
    """(y, x): the locally connected layer and what stands before its activation."""

    OP = local.LOCALLY_CONNECTED2D_SAVING
    SAVING = True

    @staticmethod
    def forward(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation):
        return _local_saving(input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, activation)


class Linear(Product):
    """y = act(scale · x · wᵀ + b + residual), for rows x."""

    OP = LINEAR

    @staticmethod
    def forward(input, weight, bias, scale, residual, slope, groups, activation):
        return _linear(input, weight, bias, scale, residual, slope, groups, activation)

    @classmethod
    def bare(cls, input, weight, rest):
        return apply(Linear, input, weight, None, None, None, None, *rest, "none")

    @classmethod
    def grads(cls, grad, input, weight, rest, needs, wide=False):
        dx = apply(LinearInputGrad, grad, weight, *rest) if needs[0] else None
        return dx, apply(LinearWeightGrad, grad, input, *rest, wide) if needs[1] else None

    @classmethod
    def beside(cls, vector):
        return vector

    @classmethod
    def through(cls, grad, saved, slope, activation, bias):
        saved = None if saved is None else images(saved)
        masked, *sums = super().through(images(grad), saved, slope, activation, bias)
        return masked[:, :, 0, 0], *sums


class LinearSaving(Linear):
    """(y, x): the linear layer and what stands before its activation."""

    OP = LINEAR_SAVING
    SAVING = True

    @staticmethod
    def forward(input, weight, bias, scale, residual, slope, groups, activation):
        return _linear_saving(input, weight, bias, scale, residual, slope, groups, activation)


class InputGrad(Function):
    """dx = input_grad(dy, w) of a product, whose own arguments are those at REST."""

    PARTS = 2
    PRODUCT: type[Product]
    REST: slice

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.rest = inputs[cls.REST]

    @classmethod
    def backward(cls, ctx, grad_input):
        grad, weight = ctx.saved_tensors
        of_grad, of_weight = ctx.needs_input_grad[:2]
        ddy = cls.PRODUCT.bare(grad_input, weight, ctx.rest) if of_grad else None
        _, dw = cls.PRODUCT.grads(grad, grad_input, weight, ctx.rest, (False, of_weight))
        return ddy, dw, *(None,) * (len(ctx.needs_input_grad) - 2)


class WeightGrad(InputGrad):
    """dw = weight_grad(dy, x) of a product."""

    @classmethod
    def backward(cls, ctx, grad_weight):
        grad, input = ctx.saved_tensors
        of_grad, of_input = ctx.needs_input_grad[:2]
        grad_weight = grad_weight.to(grad.dtype)
        ddy = cls.PRODUCT.bare(input, grad_weight, ctx.rest) if of_grad else None
        dx, _ = cls.PRODUCT.grads(grad, input, grad_weight, ctx.rest, (of_input, False))
        return ddy, dx, *(None,) * (len(ctx.needs_input_grad) - 2)


class Conv2dInputGrad(InputGrad):
    """A convolution's."""

    OP, PRODUCT, REST = conv.CONV2D_INPUT_GRAD, Conv2d, slice(3, 8)

    @staticmethod
    def forward(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_input_grad(grad, weight, input_size, *window, channels_last)


class Conv2dWeightGrad(WeightGrad):
    """A convolution's."""

    OP, PRODUCT, REST = conv.CONV2D_WEIGHT_GRAD, Conv2d, slice(3, 8)

    @staticmethod
    def forward(grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, wide):
        window = (stride, padding, dilation, groups, padding_mode)
        return _conv2d_weight_grad(grad, input, weight_size, *window, channels_last, wide)


class LocallyConnected2dInputGrad(InputGrad):
    """A locally connected layer's."""

    OP, PRODUCT, REST = local.LOCALLY_CONNECTED2D_INPUT_GRAD, LocallyConnected2d, slice(3, 7)

    @staticmethod
    def forward(grad, weight, input_size, stride, padding, dilation, groups, channels_last):
        return _local_input_grad(grad, weight, input_size, stride, padding, dilation, groups, channels_last)


class LocallyConnected2dWeightGrad(WeightGrad):
    """A locally connected layer's."""

    OP, PRODUCT, REST = local.LOCALLY_CONNECTED2D_WEIGHT_GRAD, LocallyConnected2d, slice(3, 7)

    @staticmethod
    def forward(grad, input, weight_size, stride, padding, dilation, groups, wide):
        return _local_weight_grad(grad, input, weight_size, stride, padding, dilation, groups, wide)


class LinearInputGrad(InputGrad):
    """A linear layer's: dx = dy · w."""

    OP, PRODUCT, REST = LINEAR_INPUT_GRAD, Linear, slice(2, 3)

    @staticmethod
    def forward(grad, weight, groups):
        return _linear_input_grad(grad, weight, groups)


class LinearWeightGrad(WeightGrad):
    """A linear layer's: dw = dyᵀ · x."""

    OP, PRODUCT, REST = LINEAR_WEIGHT_GRAD, Linear, slice(2, 3)

    @staticmethod
    def forward(grad, input, groups, wide):
        return _linear_weight_grad(grad, input, groups, wide)

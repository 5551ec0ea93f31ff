"""Batch normalisation in training, after a convolution that has summed its statistics on the way out.

    z, mean, var = convolution and the moments of its channels over batch and pixels
    y = act( (z − mean)·s·weight[k] + bias[k] + residual )      s = 1 / √(var + eps)

Each tile of the convolution stores its pixels' number, mean, and sum of squares about the mean (epilogue.py); these
moments are joined in a fixed order, which loses nothing to a mean far from 0:

    n = Σ nᵢ        mean = Σ nᵢ·meanᵢ / n        m = Σ mᵢ + Σ nᵢ·(meanᵢ − mean)²        var = m / n

The gradient, of a y without residual and slope (with either, autograd applies act' first and passes activation "none"),
with ẑ = (z − mean)·s and g = act'(·)·dy, takes one pass for two sums and one for dz:

    dbias = Σ g        dweight = Σ g·ẑ        dz = weight·s·(g − (dbias + ẑ·dweight) / n)

Source: Ioffe and Szegedy, "Batch normalization", arXiv:1502.03167; moments as in Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator, conv_precision
from ..core.images import Images, in_vectors, merged, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, index_type, laid_out_as, nbytes, new
from ..streaming.strips import part_of, step_of, stream_chunks
from ..streaming.sums import held, store_sums, sum_pixels
from ..window.arguments import same_shape
from ..window.convolution import Window
from . import activations
from .conv2d import WINDOW, conv2d_aten, conv2d_fake
from .epilogue import Epilogue, activated, prelu
from .moments import joined
from .paths import path_of
from .problem import Problem


class Vectors(NamedTuple):
    """The vectors that normalise each channel."""

    mean: Any
    var: Any
    weight: Any
    bias: Any

    @classmethod
    def of(cls, *vectors: torch.Tensor | None) -> "Vectors":
        """Return the vectors, each contiguous."""
        return cls(*(vector if vector is None else vector.contiguous() for vector in vectors))


class Normal(NamedTuple):
    """How each channel of a block is normalised: x = (z − mean)·scale + bias, with scale = s·weight. [1, channels]"""

    mean: Any
    s: Any
    scale: Any
    bias: Any


@device_function
def normal_of(vectors, k, k_mask, EPS: tl.constexpr, ACC: tl.constexpr):
    """Return how channels k are normalised."""
    mean = tl.load(vectors.mean + k, mask=k_mask, other=0.0).to(ACC)[None, :]
    s = 1.0 / tl.sqrt(tl.load(vectors.var + k, mask=k_mask, other=1.0).to(ACC) + EPS)[None, :]
    scale, bias = s, tl.zeros_like(s)
    if vectors.weight is not None:
        scale = s * tl.load(vectors.weight + k, mask=k_mask, other=0.0).to(ACC)[None, :]
    if vectors.bias is not None:
        bias = tl.load(vectors.bias + k, mask=k_mask, other=0.0).to(ACC)[None, :]
    return Normal(mean, s, scale, bias)


@device_function
def masked(g, off, normal, ACTIVATION: tl.constexpr):
    """Return act'(x)·g with x = off·scale + bias computed again; off: z − mean."""
    NUMBERS: tl.constexpr = ACTIVATION.numbers
    x = off * normal.scale + normal.bias
    if ACTIVATION.saves == "output":
        return ACTIVATION.backward(g, ACTIVATION.forward(x, NUMBERS), NUMBERS)
    else:
        return ACTIVATION.backward(g, x, NUMBERS)


@triton.jit
def norm_kernel(
    z, vectors, residual, slope, y, channels, chunk, ACTIVATION: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y = act(ẑ·weight + bias + residual), the residual in y's strides; with a slope PReLU's."""
    ACC: tl.constexpr = BLOCK.accumulator
    NUMBERS: tl.constexpr = ACTIVATION.numbers
    z, y = in_vectors(z, BLOCK), in_vectors(y, BLOCK)
    part = part_of(channels, BLOCK)
    normal = normal_of(vectors, part.c, part.c_mask, EPS, ACC)
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, y.size, part, BLOCK)
        x = tl.load(z.data + offsets(step.at, part.c, z.strides), mask=step.mask, other=0.0).to(ACC)
        x = (x - normal.mean) * normal.scale + normal.bias
        to = offsets(step.at, part.c, y.strides)
        if residual is not None:
            x += tl.load(residual + to, mask=step.mask, other=0.0).to(ACC)
        if slope is not None:
            x = prelu(x, slope, part.c, part.c_mask)
        tl.store(y.data + to, ACTIVATION.forward(x, NUMBERS).to(y.data.dtype.element_ty), mask=step.mask)


@triton.jit
def norm_sums_kernel(
    grad, z, vectors, parts, channels, chunk, ACTIVATION: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """parts[program] = (Σ g, Σ g·ẑ) over the program's pixels."""
    ROWS: tl.constexpr = BLOCK.rows
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    grad, z = in_vectors(grad, BLOCK), in_vectors(z, BLOCK)
    part = part_of(channels, BLOCK)
    normal = normal_of(vectors, part.c, part.c_mask, EPS, ACC)
    sums = tl.zeros([ROWS, CHANNELS], ACC)
    products = tl.zeros([ROWS, CHANNELS], ACC)
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, z.size, part, BLOCK)
        g = tl.load(grad.data + offsets(step.at, part.c, grad.strides), mask=step.mask, other=0.0).to(ACC)
        x = tl.load(z.data + offsets(step.at, part.c, z.strides), mask=step.mask, other=0.0).to(ACC)
        off = x - normal.mean
        g = masked(g, off, normal, ACTIVATION)  # 0 where masked, as the gradient is
        sums += held(g, BLOCK)
        products += held(g * off, BLOCK)
    store_sums(parts, part, sums, products * normal.s, channels, BLOCK)


@triton.jit
def norm_grad_kernel(
    grad, z, vectors, sums, dz, channels, chunk, ACTIVATION: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dz = weight·s·(g − (dbias + ẑ·dweight) / count)."""
    ACC: tl.constexpr = BLOCK.accumulator
    grad, z, dz = in_vectors(grad, BLOCK), in_vectors(z, BLOCK), in_vectors(dz, BLOCK)
    part = part_of(channels, BLOCK)
    normal = normal_of(vectors, part.c, part.c_mask, EPS, ACC)
    count = tl.cast(tl.cast(dz.size.n, tl.int64) * dz.size.h * dz.size.w, ACC)
    total = tl.load(sums + part.c, mask=part.c_mask, other=0.0)[None, :] / count
    product = tl.load(sums + channels + part.c, mask=part.c_mask, other=0.0)[None, :] / count * normal.s
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, dz.size, part, BLOCK)
        x = tl.load(z.data + offsets(step.at, part.c, z.strides), mask=step.mask, other=0.0).to(ACC)
        g = tl.load(grad.data + offsets(step.at, part.c, grad.strides), mask=step.mask, other=0.0).to(ACC)
        off = x - normal.mean
        g = normal.scale * (masked(g, off, normal, ACTIVATION) - total - off * product)
        tl.store(dz.data + offsets(step.at, part.c, dz.strides), g.to(dz.data.dtype.element_ty), mask=step.mask)


def moments_fake(input, weight, bias, stride, padding, dilation, groups, padding_mode):
    """Return (z [N, K, P, Q], mean [K], var [K])."""
    z = conv2d_fake(input, weight, bias, None, None, None, stride, padding, dilation, groups, padding_mode, "none")
    kind = accumulator(z.dtype)
    return z, z.new_empty(z.shape[1], dtype=kind), z.new_empty(z.shape[1], dtype=kind)


def moments_launch(results, input, weight, bias, stride, padding, dilation, groups, padding_mode):
    z, mean, var = results
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode).of_outputs(z.shape[2:])
    precision, epilogue = conv_precision(input.dtype), Epilogue(bias)
    problem = Problem(input, weight, z, window, groups, False, precision, epilogue, moments=True)
    moments = path_of(problem).forward(problem)
    for result, value in zip((mean, var), (float("nan"),) * 2 if moments is None else joined(moments), strict=True):
        result.copy_(value) if isinstance(value, torch.Tensor) else result.fill_(value)


def moments_aten(input, weight, bias, stride, padding, dilation, groups, padding_mode):
    z = conv2d_aten(input, weight, bias, None, None, None, stride, padding, dilation, groups, padding_mode, "none")
    var, mean = torch.var_mean(z.to(accumulator(z.dtype)), (0, 2, 3), correction=0)
    return z, mean, var


def _check(z, mean, var, weight, bias):
    check_tensors(input=z)
    for name, vector in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        if vector is not None:
            same_shape(name, vector.shape, z.shape[1:2])


def norm_fake(input, mean, var, weight, bias, residual, slope, eps, activation):
    _check(input, mean, var, weight, bias)
    if residual is not None:
        same_shape("residual", residual.shape, input.shape)
        check_tensors(input=input, residual=residual)
    if slope is not None:
        same_shape("slope", slope.shape, input.shape[1:2])
        check_tensors(input=input, slope=slope)
    return new(input.shape, input, channels_last(input))


def norm_launch(y, input, mean, var, weight, bias, residual, slope, eps, activation):
    slope = slope if slope is None else slope.contiguous()
    act = activations.of(activation)
    z, to = merged(Images.of(input), Images.of(y))
    stream_chunks(
        norm_kernel, y, z, Vectors.of(mean, var, weight, bias), laid_out_as(y, residual), slope, to,
        index=index_type(input, y), high=act.vectors_at_once, ACTIVATION=act.on_device(y.dtype), EPS=eps,
    )  # fmt: skip


def norm_aten(input, mean, var, weight, bias, residual, slope, eps, activation):
    return norm_reference(input, weight, bias, residual, slope, eps, activation, mean, var)


def norm_grad_fake(grad, input, mean, var, weight, bias, eps, activation):
    """Return (dz, sums [2, C]: dbias, dweight)."""
    _check(input, mean, var, weight, bias)
    same_shape("grad", grad.shape, input.shape)
    return new(input.shape, input, channels_last(input)), new((2, input.shape[1]), input, dtype=mean.dtype)


def norm_grad_launch(results, grad, input, mean, var, weight, bias, eps, activation):
    dz, sums = results
    dy, z, to = merged(Images.of(grad), Images.of(input), Images.of(dz))
    vectors = Vectors.of(mean, var, weight, bias)
    act, index = activations.of(activation), index_type(grad, input, dz)
    same = {"ACTIVATION": act.on_device(dz.dtype), "EPS": eps, "index": index, "high": act.vectors_at_once}
    sum_pixels(norm_sums_kernel, sums, input, dy, z, vectors, **same)
    stream_chunks(norm_grad_kernel, dz, dy, z, vectors, sums, to, **same)


def _normal_reference(z, eps, mean=None, var=None):
    """Return (ẑ, s) of z by these moments, or else its own."""
    if mean is None:
        var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    s = torch.rsqrt(var + eps)[:, None, None]
    return (z - mean[:, None, None]) * s, s


def _affine_reference(z, weight, bias):
    z = z if weight is None else z * weight.to(z.dtype)[:, None, None]
    return z if bias is None else z + bias.to(z.dtype)[:, None, None]


def norm_reference(input, weight, bias, residual, slope, eps, activation, mean=None, var=None):
    """Return y by PyTorch, with derivatives through the moments unless they are given."""
    z = input.to(accumulator(input.dtype))
    x = _affine_reference(_normal_reference(z, eps, mean, var)[0], weight, bias)
    x = x if residual is None else x + residual
    slope = slope if slope is None else slope.to(z.dtype)
    return activated(x, slope, activation).to(input.dtype)


def norm_grad_aten(grad, input, mean, var, weight, bias, eps, activation):
    """Return the gradient's formulas by PyTorch. The moments have the given values and the derivatives of input's own:
    they may be of its values before they were rounded."""
    dtype = accumulator(input.dtype)
    own = torch.var_mean(input.to(dtype), (0, 2, 3), correction=0)
    var, mean = (of + (given - of).detach() for of, given in zip(own, (var, mean), strict=True))
    z, s = _normal_reference(input.to(dtype), eps, mean, var)
    x = _affine_reference(z, weight, bias)
    act = activations.of(activation)
    # An output without a second derivative says on which side of its kinks x is; x says the same.
    saved = activations.reference(activation, x) if act.saves == "output" and act.has_second_derivative else x
    g = act.reference_grad(grad.to(dtype), saved)
    sums = torch.stack((g.sum((0, 2, 3)), (g * z).sum((0, 2, 3))))
    g = g - g.mean((0, 2, 3), keepdim=True) - z * (g * z).mean((0, 2, 3), keepdim=True)
    return _affine_reference(g * s, weight, None).to(input.dtype), sums


CONV2D_MOMENTS = Op(
    name="conv2d_moments",
    schema=f"(Tensor input, Tensor weight, Tensor? bias, {WINDOW}) -> (Tensor, Tensor, Tensor)",
    fake=moments_fake,
    launcher=moments_launch,
    aten=moments_aten,
    flops=lambda input, weight, *args: 2 * moments_fake(input, weight, *args)[0].numel() * weight[0].numel(),
    bytes=lambda *args: nbytes(*args[:3], *moments_fake(*args)),
    vmap=(VmapRule({"input": 1, "weight": 0, "bias": 0, "groups": 0}, (1, 0, 0)),),
    product=True,
)

_VECTORS = "Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias"

BATCH_NORM = Op(
    name="batch_norm",
    schema=f"({_VECTORS}, Tensor? residual, Tensor? slope, float eps, str activation) -> Tensor",
    fake=norm_fake,
    launcher=norm_launch,
    aten=norm_aten,
    flops=lambda input, *args: 4 * input.numel(),
    bytes=lambda *args: nbytes(*args[:7], norm_fake(*args)),
    vmap=(VmapRule({"input": 1, "mean": 0, "var": 0, "weight": 0, "bias": 0, "residual": 1, "slope": 0}, (1,)),),
)

BATCH_NORM_GRAD = Op(
    name="batch_norm_grad",
    schema=f"(Tensor grad, {_VECTORS}, float eps, str activation) -> (Tensor, Tensor)",
    fake=norm_grad_fake,
    launcher=norm_grad_launch,
    aten=norm_grad_aten,
    flops=lambda grad, *args: 12 * grad.numel(),
    bytes=lambda *args: nbytes(*args[:6], *norm_grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "input": 1, "mean": 0, "var": 0, "weight": 0, "bias": 0}, (1, 1)),),
)

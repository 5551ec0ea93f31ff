"""Batch normalisation in training, after a convolution that has summed its statistics on the way out.

    z, mean, var = convolution and the moments of its channels over batch and pixels
    y = act( (z − mean)·s·weight[k] + bias[k] + residual )      s = 1 / √(var + eps)

Each tile of the convolution stores its pixels' number, mean, and sum of squares about the mean (epilogue.py); these
moments are joined in a fixed order, which loses nothing to a mean far from 0:

    n = Σ nᵢ        mean = Σ nᵢ·meanᵢ / n        m = Σ mᵢ + Σ nᵢ·(meanᵢ − mean)²        var = m / n

The gradient, with ẑ = (z − mean)·s and g = act'(·)·dy, takes one pass for two sums and one for dz:

    dbias = Σ g        dweight = Σ g·ẑ        dz = weight·s·(g − (dbias + ẑ·dweight) / n)

Source: Ioffe and Szegedy, "Batch normalization", arXiv:1502.03167; moments as in Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator, conv_dot
from ..core import chips
from ..core.device import offsets, part_of, step_of, strip, sum_rows
from ..core.op import (
    Fold,
    Op,
    channels_last,
    check_tensors,
    index_type,
    laid_out_as,
    launch,
    nbytes,
    new,
    nhwc,
    tl_type,
)
from ..streaming.strips import stream
from ..tiles import pick
from ..window import convolution
from . import activations
from .conv2d import WINDOW, conv2d_aten, conv2d_fake, product, window_of
from .epilogue import Epilogue, activated, prelu, sum_pixels


@triton.jit
def join_kernel(
    moments, out, rows, columns, chunk, ACC: tl.constexpr, INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """out[part] = the joint moments of the part's chunk of rows, for BLOCK columns."""
    across = tl.cdiv(columns, BLOCK)
    part = tl.program_id(0) // across
    k = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    has = k < columns
    count = tl.zeros([BLOCK], ACC)
    mean = tl.zeros([BLOCK], ACC)
    m = tl.zeros([BLOCK], ACC)
    for first in range(part * chunk, tl.minimum((part + 1) * chunk, rows), ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < tl.minimum((part + 1) * chunk, rows))[:, None] & has[None, :]
        at = moments + row[:, None].to(INDEX) * 3 * columns + k[None, :]
        counts = tl.load(at, mask=mask, other=0.0)
        means = tl.load(at + columns, mask=mask, other=0.0)
        ms = tl.load(at + 2 * columns, mask=mask, other=0.0)
        some = tl.maximum(sum_rows(counts), 1.0)  # not of columns that don't exist
        new = sum_rows(counts * means) / some
        off = means - new[None, :]
        m, mean, count = join(
            count, mean, m, sum_rows(counts), new, sum_rows(ms + counts * off * off)
        )  # fmt: skip
    to = out + part.to(INDEX) * 3 * columns + k
    tl.store(to, count, mask=has)
    tl.store(to + columns, mean, mask=has)
    tl.store(to + 2 * columns, m, mask=has)


@device_function
def join(count, mean, m, counts, means, ms):
    """The joint (m, mean, count) of two sets."""
    total = tl.maximum(count + counts, 1.0)
    off = means - mean
    return m + ms + off * off * (count * counts / total), mean + off * (counts / total), count + counts


@device_function
def normal(z, vectors, k, has, EPS: tl.constexpr, ACC: tl.constexpr):
    """(ẑ, s) of values z of channels k, by vectors = (mean, var, weight, bias). [pixels, channels], [channels]"""
    s = 1.0 / tl.sqrt(tl.load(vectors[1] + k, mask=has, other=0.0).to(ACC) + EPS)
    return (z - tl.load(vectors[0] + k, mask=has, other=0.0).to(ACC)[None, :]) * s[None, :], s


@device_function
def affine(z, weight, bias, k, has, ACC: tl.constexpr):
    """z·weight + bias, each by channel, if it is there."""
    if weight is not None:
        z *= tl.load(weight + k, mask=has, other=0.0).to(ACC)[None, :]
    if bias is not None:
        z += tl.load(bias + k, mask=has, other=0.0).to(ACC)[None, :]
    return z


@device_function
def masked(
    g, z, vectors, k, has, FORWARD: tl.constexpr, BACKWARD: tl.constexpr, NUMBERS: tl.constexpr,
    SAVES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """act'(·)·g, where the activation's input is computed again."""
    x = affine(z, vectors[2], vectors[3], k, has, ACC)
    return BACKWARD(g, FORWARD(x, NUMBERS) if SAVES == "output" else x, NUMBERS)


@triton.jit
def norm_kernel(
    z, vectors, residual, slope, y, z_strides, y_strides, size, channels,
    FORWARD: tl.constexpr, NUMBERS: tl.constexpr, EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = act(ẑ·weight + bias + residual), the residual in y's strides; with a slope PReLU's."""
    at, k, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    has = k < channels
    x, _ = normal(tl.load(z + offsets(at, k, z_strides), mask=exists, other=0.0).to(ACC), vectors, k, has, EPS, ACC)
    x = affine(x, vectors[2], vectors[3], k, has, ACC)
    to = offsets(at, k, y_strides)
    if residual is not None:
        x += tl.load(residual + to, mask=exists, other=0.0).to(ACC)
    if slope is not None:
        x = prelu(x, slope, k, has)
    tl.store(y + to, FORWARD(x, NUMBERS).to(y.dtype.element_ty), mask=exists)


@triton.jit
def norm_sums_kernel(
    grad, z, vectors, grad_strides, z_strides, parts, size, channels, chunk,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, NUMBERS: tl.constexpr, SAVES: tl.constexpr, EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """parts[program] = (Σ g, Σ g·ẑ) over the program's pixels."""
    part, k, has = part_of(channels, INDEX, CHANNELS)
    sums = tl.zeros([PIXELS, CHANNELS], ACC)
    products = tl.zeros([PIXELS, CHANNELS], ACC)
    for step in range(part * chunk, (part + 1) * chunk):
        at, mask = step_of(step, size, has, INDEX, PIXELS)
        g = tl.load(grad + offsets(at, k, grad_strides), mask=mask, other=0.0).to(ACC)
        x = tl.load(z + offsets(at, k, z_strides), mask=mask, other=0.0).to(ACC)
        x, _ = normal(x, vectors, k, has, EPS, ACC)
        g = tl.where(mask, masked(g, x, vectors, k, has, FORWARD, BACKWARD, NUMBERS, SAVES, ACC), 0.0)
        sums += g
        products += tl.where(mask, g * x, 0.0)
    to = parts + part.to(INDEX) * 2 * channels + k
    tl.store(to, sum_rows(sums).to(parts.dtype.element_ty), mask=has)
    tl.store(to + channels, sum_rows(products).to(parts.dtype.element_ty), mask=has)


@triton.jit
def norm_grad_kernel(
    grad, z, vectors, sums, dz, grad_strides, z_strides, dz_strides, size, channels,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, NUMBERS: tl.constexpr, SAVES: tl.constexpr, EPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dz = weight·s·(g − (dbias + ẑ·dweight) / count)."""
    at, k, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    has = k < channels
    x = tl.load(z + offsets(at, k, z_strides), mask=exists, other=0.0).to(ACC)
    x, s = normal(x, vectors, k, has, EPS, ACC)
    g = tl.load(grad + offsets(at, k, grad_strides), mask=exists, other=0.0).to(ACC)
    g = masked(g, x, vectors, k, has, FORWARD, BACKWARD, NUMBERS, SAVES, ACC)
    total = tl.load(sums + k, mask=has, other=0.0)[None, :]
    product = tl.load(sums + channels + k, mask=has, other=0.0)[None, :]
    count = tl.cast(tl.cast(size[0], tl.int64) * size[1] * size[2], ACC)
    g = affine((g - (total + x * product) / count) * s[None, :], vectors[2], None, k, has, ACC)
    tl.store(dz + offsets(at, k, dz_strides), g.to(dz.dtype.element_ty), mask=exists)


_ROWS = 32  # of moments that a program of join_kernel takes at once
_CHUNK = 128  # and in all, but the last


def joined(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, var) by column of tiles' moments [tiles, 3, columns]."""
    rows, _, columns = moments.shape
    block = pick.sum_columns(columns, chips.chip_name())
    while rows > 1:
        chunk = _CHUNK if rows > 2 * _CHUNK else rows
        parts = convolution.cdiv(rows, chunk)
        out = new((parts, 3, columns), moments)
        launch(
            join_kernel, parts * convolution.cdiv(columns, block), moments, out, rows, columns, chunk,
            ACC=tl_type(moments.dtype), INDEX=index_type(moments), ROWS=_ROWS, BLOCK=block, num_warps=4,
        )  # fmt: skip
        moments, rows = out, parts
    return moments[0, 1], moments[0, 2] / moments[0, 0]


def moments_fake(input, weight, bias, stride, padding, dilation, groups, padding_mode):
    z = conv2d_fake(input, weight, bias, None, None, None, stride, padding, dilation, groups, padding_mode, "none")
    kind = accumulator(z.dtype)
    return z, z.new_empty(z.shape[1], dtype=kind), z.new_empty(z.shape[1], dtype=kind)


def moments_launch(results, input, weight, bias, stride, padding, dilation, groups, padding_mode):
    z, mean, var = results
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    moments = product(input, weight, z, window, groups, False, conv_dot(input.dtype), Epilogue(bias), moments=True)
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
            convolution.same_shape(name, vector.shape, z.shape[1:2])


def norm_fake(input, mean, var, weight, bias, residual, slope, eps, activation):
    _check(input, mean, var, weight, bias)
    if residual is not None:
        convolution.same_shape("residual", residual.shape, input.shape)
        check_tensors(input=input, residual=residual)
    if slope is not None:
        convolution.same_shape("slope", slope.shape, input.shape[1:2])
        check_tensors(input=input, slope=slope)
    return new(input.shape, input, channels_last(input))


def _vectors(*vectors):
    return tuple(vector if vector is None else vector.contiguous() for vector in vectors)


def norm_launch(y, input, mean, var, weight, bias, residual, slope, eps, activation):
    act, (slope,) = activations.of(activation), _vectors(slope)
    stream(
        norm_kernel, y, input, _vectors(mean, var, weight, bias), laid_out_as(y, residual), slope, y, nhwc(input),
        nhwc(y), FORWARD=act.rule.forward, NUMBERS=act.numbers, EPS=eps, INDEX=index_type(input, y),
    )  # fmt: skip


def norm_aten(input, mean, var, weight, bias, residual, slope, eps, activation):
    return norm_reference(input, weight, bias, residual, slope, eps, activation, mean, var)


def norm_grad_fake(grad, input, mean, var, weight, bias, eps, activation):
    _check(input, mean, var, weight, bias)
    convolution.same_shape("grad", grad.shape, input.shape)
    return new(input.shape, input, channels_last(input)), new((2, input.shape[1]), input, dtype=mean.dtype)


def norm_grad_launch(results, grad, input, mean, var, weight, bias, eps, activation):
    dz, sums = results
    act = activations.of(activation)
    vectors = _vectors(mean, var, weight, bias)
    same = {
        "FORWARD": act.rule.forward, "BACKWARD": act.rule.backward, "NUMBERS": act.numbers, "SAVES": act.saves,
        "EPS": eps, "INDEX": index_type(grad, input, dz),
    }  # fmt: skip
    sum_pixels(norm_sums_kernel, sums, input, grad, input, vectors, nhwc(grad), nhwc(input), **same)
    stream(norm_grad_kernel, dz, grad, input, vectors, sums, dz, nhwc(grad), nhwc(input), nhwc(dz), **same)


def _normal_reference(z, eps, mean=None, var=None):
    """(ẑ, s) of z by these moments, or else its own."""
    if mean is None:
        var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    s = torch.rsqrt(var + eps)[:, None, None]
    return (z - mean[:, None, None]) * s, s


def _affine_reference(z, weight, bias):
    z = z if weight is None else z * weight.to(z.dtype)[:, None, None]
    return z if bias is None else z + bias.to(z.dtype)[:, None, None]


def norm_reference(input, weight, bias, residual, slope, eps, activation, mean=None, var=None):
    """y by PyTorch, with derivatives through the moments unless they are given."""
    z = input.to(accumulator(input.dtype))
    x = _affine_reference(_normal_reference(z, eps, mean, var)[0], weight, bias)
    x = x if residual is None else x + residual
    slope = slope if slope is None else slope.to(z.dtype)
    return activated(x, slope, activation).to(input.dtype)


def norm_grad_aten(grad, input, mean, var, weight, bias, eps, activation):
    """The gradient's formulas by PyTorch, with derivatives through the moments, which are input's own."""
    wide = accumulator(input.dtype)
    z, s = _normal_reference(input.to(wide), eps)
    x = _affine_reference(z, weight, bias)
    act = activations.of(activation)
    # An output without a curve says on which side of its kinks x is; x says the same.
    saved = activations.reference(activation, x) if act.saves == "output" and act.rule.curve else x
    g = act.reference_grad(grad.to(wide), saved)
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
    folds=(Fold({"input": 1, "weight": 0, "bias": 0, "groups": 0}, (1, 0, 0)),),
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
    folds=(Fold({"input": 1, "mean": 0, "var": 0, "weight": 0, "bias": 0, "residual": 1, "slope": 0}, (1,)),),
)

BATCH_NORM_GRAD = Op(
    name="batch_norm_grad",
    schema=f"(Tensor grad, {_VECTORS}, float eps, str activation) -> (Tensor, Tensor)",
    fake=norm_grad_fake,
    launcher=norm_grad_launch,
    aten=norm_grad_aten,
    flops=lambda grad, *args: 12 * grad.numel(),
    bytes=lambda *args: nbytes(*args[:6], *norm_grad_fake(*args)),
    folds=(Fold({"grad": 1, "input": 1, "mean": 0, "var": 0, "weight": 0, "bias": 0}, (1, 1)),),
)

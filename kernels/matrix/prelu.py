"""PReLU's way back: the slope of negative values, one for each column, is learned.

    y = x where that is positive, else slope[k]·x        in the epilogue of a product, or of a normalisation

    g = dy where x is positive, else slope[k]·dy         one pass over dy and x, which yields two sums besides:
    dbias[k] = Σ_pixel g
    dslope[k] = Σ_pixel dy·min(x, 0)

Source: He et al., "Delving deep into rectifiers", 2015, arXiv:1502.01852.
"""

import torch

from ..base.lang import tl, triton
from ..base.precision import accumulator
from ..core.device import offsets, part_of, step_of, sum_rows
from ..core.op import Fold, Op, channels_last, check_tensors, index_type, nbytes, new, nhwc
from ..window.convolution import same_shape
from .epilogue import sum_pixels


@triton.jit
def prelu_grad_kernel(
    grad, saved, slope, masked, grad_strides, saved_strides, masked_strides, parts, size, channels, chunk,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """masked = g, and parts[program] = (Σ g, Σ dy·min(x, 0)) over the program's pixels."""
    part, k, has = part_of(channels, INDEX, CHANNELS)
    below = tl.load(slope + k, mask=has, other=0.0).to(ACC)[None, :]
    sums = tl.zeros([PIXELS, CHANNELS], ACC)
    slopes = tl.zeros([PIXELS, CHANNELS], ACC)
    for step in range(part * chunk, (part + 1) * chunk):
        at, mask = step_of(step, size, has, INDEX, PIXELS)
        x = tl.load(saved + offsets(at, k, saved_strides), mask=mask, other=1.0).to(ACC)
        g = tl.load(grad + offsets(at, k, grad_strides), mask=mask, other=0.0).to(ACC)
        slopes += tl.where(x > 0, 0.0, g * x)
        g = tl.where(x > 0, g, g * below)
        sums += g
        tl.store(masked + offsets(at, k, masked_strides), g.to(masked.dtype.element_ty), mask=mask)
    to = parts + part.to(INDEX) * 2 * channels + k
    tl.store(to, sum_rows(sums).to(parts.dtype.element_ty), mask=has)
    tl.store(to + channels, sum_rows(slopes).to(parts.dtype.element_ty), mask=has)


def prelu_grad_fake(grad, saved, slope):
    check_tensors(grad=grad, saved=saved, slope=slope)
    same_shape("grad", grad.shape, saved.shape)
    same_shape("slope", slope.shape, saved.shape[1:2])
    masked = new(saved.shape, saved, channels_last(saved))
    return masked, new((2, saved.shape[1]), saved, dtype=accumulator(saved.dtype))


def prelu_grad_launch(results, grad, saved, slope):
    masked, sums = results
    sum_pixels(
        prelu_grad_kernel, sums, saved, grad, saved, slope.contiguous(), masked, nhwc(grad), nhwc(saved), nhwc(masked),
        INDEX=index_type(grad, saved, masked),
    )  # fmt: skip


def prelu_grad_aten(grad, saved, slope):
    wide = accumulator(saved.dtype)
    dy, x, below = grad.to(wide), saved.to(wide), slope.to(wide)[:, None, None]
    g = torch.where(x > 0, dy, dy * below)
    return g.to(saved.dtype), torch.stack((g.sum((0, 2, 3)), torch.where(x > 0, 0, dy * x).sum((0, 2, 3))))


PRELU_GRAD = Op(
    name="prelu_grad",
    schema="(Tensor grad, Tensor saved, Tensor slope) -> (Tensor, Tensor)",
    fake=prelu_grad_fake,
    launcher=prelu_grad_launch,
    aten=prelu_grad_aten,
    flops=lambda grad, saved, slope: 4 * grad.numel(),
    bytes=lambda *args: nbytes(*args, *prelu_grad_fake(*args)),
    folds=(Fold({"grad": 1, "saved": 1, "slope": 0}, (1, 1)),),
)

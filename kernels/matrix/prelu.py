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
from ..core import chips
from ..core.images import Images, in_vectors, merged, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, index_type, nbytes, new
from ..streaming.strips import part_of, step_of
from ..streaming.sums import held, store_sums, sum_pixels
from ..tiles.model import register_options
from ..window.arguments import same_shape


@triton.jit
def prelu_grad_kernel(grad, saved, slope, masked, parts, channels, chunk, BLOCK: tl.constexpr):
    """masked = g, and parts[program] = (Σ g, Σ dy·min(x, 0)) over the program's pixels."""
    ROWS: tl.constexpr = BLOCK.rows
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    grad, saved, masked = in_vectors(grad, BLOCK), in_vectors(saved, BLOCK), in_vectors(masked, BLOCK)
    part = part_of(channels, BLOCK)
    below = tl.load(slope + part.c, mask=part.c_mask, other=0.0).to(ACC)[None, :]
    sums = tl.zeros([ROWS, CHANNELS], ACC)
    slopes = tl.zeros([ROWS, CHANNELS], ACC)
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, masked.size, part, BLOCK)
        x = tl.load(saved.data + offsets(step.at, part.c, saved.strides), mask=step.mask, other=1.0).to(ACC)
        g = tl.load(grad.data + offsets(step.at, part.c, grad.strides), mask=step.mask, other=0.0).to(ACC)
        slopes += held(tl.where(x > 0, 0.0, g * x), BLOCK)
        g = tl.where(x > 0, g, g * below)
        sums += held(g, BLOCK)
        to = masked.data + offsets(step.at, part.c, masked.strides)
        tl.store(to, g.to(masked.data.dtype.element_ty), mask=step.mask)
    store_sums(parts, part, sums, slopes, channels, BLOCK)


def prelu_grad_fake(grad, saved, slope):
    """Return (g [N, C, H, W], sums [2, C]: dbias, dslope)."""
    check_tensors(grad=grad, saved=saved, slope=slope)
    same_shape("grad", grad.shape, saved.shape)
    same_shape("slope", slope.shape, saved.shape[1:2])
    masked = new(saved.shape, saved, channels_last(saved))
    return masked, new((2, saved.shape[1]), saved, dtype=accumulator(saved.dtype))


def prelu_grad_launch(results, grad, saved, slope):
    masked, sums = results
    dy, x, dx = merged(Images.of(grad), Images.of(saved), Images.of(masked))
    index = index_type(grad, saved, masked)
    registers = register_options(chips.chip_name())
    sum_pixels(prelu_grad_kernel, sums, saved, dy, x, slope.contiguous(), dx, index=index, high=4, **registers)


def prelu_grad_aten(grad, saved, slope):
    dtype = accumulator(saved.dtype)
    dy, x, below = grad.to(dtype), saved.to(dtype), slope.to(dtype)[:, None, None]
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
    vmap=(VmapRule({"grad": 1, "saved": 1, "slope": 0}, (1, 1)),),
)

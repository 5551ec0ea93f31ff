"""Average pooling over 2-D windows, sliding or adaptive (pooling.py), and its gradient.

    y[n,c,p,q] = Σ over taps (r,s) of x[n,c,h,w], the pixel that the tap reads, / divisor(p,q)   outside: 0

The gradient is a gather, so it needs no atomics and is deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ dy[n,c,p,q] / divisor(p,q) over windows (p,q) covering (h,w)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..base.lang import device_function, tl, triton
from ..core.images import Images, Pixel, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..streaming.strips import stream, strip
from ..window import pooling
from ..window.arguments import same_shape
from .windows import SCHEMA, axes, covering, hangs_over, read, taps, unrolled


class Counted(NamedTuple):
    """The divisor of an average: True if padding counts, and the divisor that overrides all, if there is one."""

    padding: bool
    divisor: int | None


@device_function
def extent(p, size, results, AXIS: tl.constexpr, PADDING: tl.constexpr):
    """Return how many pixels of the image, or with PADDING of the padded image, window p takes."""
    if AXIS.stride == 0:
        return ((p + 1) * size + results - 1) // results - p * size // results
    else:
        h = p * AXIS.stride - AXIS.pad
        last = tl.minimum(h + AXIS.size, size + AXIS.pad)
        if not PADDING:
            h, last = tl.maximum(h, 0), tl.minimum(last, size)
        return (last - h).to(tl.int64)


@device_function
def divisor(p, q, image, results, DOWN: tl.constexpr, ACROSS: tl.constexpr, COUNTED: tl.constexpr):
    """Return what the sum of window (p, q) of the results is divided by."""
    PADDING: tl.constexpr = COUNTED.padding
    if COUNTED.divisor is not None:
        return tl.full(p.shape, COUNTED.divisor, tl.int64)
    else:
        return extent(p, image.h, results.h, DOWN, PADDING) * extent(q, image.w, results.w, ACROSS, PADDING)


@triton.jit
def avg_kernel(
    x, y, channels, DOWN: tl.constexpr, ACROSS: tl.constexpr, UNROLL: tl.constexpr, COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y = Σ over the window of x / divisor."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(y.size, channels, BLOCK)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for t in tl.range(0, DOWN.size * ACROSS.size, loop_unroll_factor=UNROLL):
        h, w, inside = read(s.at.h, s.at.w, t, x.size, y.size, DOWN, ACROSS)
        inside = inside[:, None] & s.mask
        acc += tl.load(x.data + offsets(Pixel(s.at.n, h, w), s.c, x.strides), mask=inside, other=0.0).to(ACC)
    acc = acc / divisor(s.at.h, s.at.w, x.size, y.size, DOWN, ACROSS, COUNTED)[:, None].to(ACC)
    tl.store(y.data + offsets(s.at, s.c, y.strides), acc.to(y.data.dtype.element_ty), mask=s.mask)


@triton.jit
def avg_grad_kernel(
    grad, dx, channels, DOWN: tl.constexpr, ACROSS: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dx[h,w] = Σ over covering windows of grad / divisor."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(dx.size, channels, BLOCK)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for i in range(DOWN.covers):
        p, _, down = covering(s.at.h, i, dx.size.h, grad.size.h, DOWN)
        for j in range(ACROSS.covers):
            q, _, across = covering(s.at.w, j, dx.size.w, grad.size.w, ACROSS)
            covers = down & across
            to = grad.data + offsets(Pixel(s.at.n, p, q), s.c, grad.strides)
            g = tl.load(to, mask=covers[:, None] & s.mask, other=0.0).to(ACC)
            by = divisor(p, q, dx.size, grad.size, DOWN, ACROSS, COUNTED)
            acc += g / tl.where(covers, by, 1)[:, None].to(ACC)
    tl.store(dx.data + offsets(s.at, s.c, dx.strides), acc.to(dx.data.dtype.element_ty), mask=s.mask)


def _check(input, output, window):
    # PyTorch lets the channels be empty here, and nowhere else.
    pooling.check_images(input, (0,) if window else (0, 1))
    pooling.check_pooled(input, output, window)


def avg_pool2d_fake(input, output_size, window, count_include_pad, divisor_override):
    check_tensors(input=input)
    if divisor_override == 0:
        raise RuntimeError("divisor_override must not be 0; give another divisor, or None for the window's size")
    _check(input.shape, output_size, window)
    return new((*input.shape[:2], *output_size), input, channels_last(input))


def avg_pool2d_launch(y, input, output_size, window, count_include_pad, divisor_override):
    counted = Counted(count_include_pad, divisor_override)
    how = unrolled(axes(window, input, y))
    stream(avg_kernel, y, Images.of(input), Images.of(y), COUNTED=counted, **how)


def avg_pool2d_aten(input, output_size, window, count_include_pad, divisor_override):
    if not window:
        return F.adaptive_avg_pool2d(input, output_size)
    its, ceil = pooling.PoolWindow.of(window), hangs_over(window, input.shape[2:], output_size)
    args = (its.kernel_size, its.stride, its.padding, ceil, count_include_pad, divisor_override)
    return F.avg_pool2d(input, *args)


def avg_grad_fake(grad, input_size, window, count_include_pad, divisor_override, channels_last):
    check_tensors(grad=grad)
    _check(input_size, grad.shape[2:], window)
    same_shape("grad", grad.shape[:2], input_size[:2])
    return new(input_size, grad, channels_last)


def avg_grad_launch(dx, grad, input_size, window, count_include_pad, divisor_override, channels_last):
    if grad.numel() == 0:
        dx.zero_()
        return
    counted = Counted(count_include_pad, divisor_override)
    stream(avg_grad_kernel, dx, Images.of(grad), Images.of(dx), COUNTED=counted, **axes(window, dx, grad))


def avg_grad_aten(grad, input_size, window, count_include_pad, divisor_override, channels_last):
    input = grad.new_empty(input_size)
    if not window:
        return torch.ops.aten._adaptive_avg_pool2d_backward(grad, input)
    its, ceil = pooling.PoolWindow.of(window), hangs_over(window, input_size[2:], grad.shape[2:])
    args = (its.kernel_size, its.stride, its.padding, ceil, count_include_pad, divisor_override)
    return torch.ops.aten.avg_pool2d_backward(grad, input, *args)


_COUNTED = "bool count_include_pad, int? divisor_override"

AVG_POOL2D = Op(
    name="avg_pool2d",
    schema=f"(Tensor input, {SCHEMA}, {_COUNTED}) -> Tensor",
    fake=avg_pool2d_fake,
    launcher=avg_pool2d_launch,
    aten=avg_pool2d_aten,
    flops=lambda *args: taps(args),
    bytes=lambda *args: nbytes(args[0], avg_pool2d_fake(*args)),
    vmap=(VmapRule({"input": 0}, (0,)),),
)

AVG_POOL2D_INPUT_GRAD = Op(
    name="avg_pool2d_input_grad",
    schema=f"(Tensor grad, SymInt[4] input_size, int[] window, {_COUNTED}, bool channels_last) -> Tensor",
    fake=avg_grad_fake,
    launcher=avg_grad_launch,
    aten=avg_grad_aten,
    flops=lambda grad, *args: grad.numel(),
    bytes=lambda *args: nbytes(args[0], avg_grad_fake(*args)),
    vmap=(VmapRule({"grad": 0, "input_size": 0}, (0,)),),
)

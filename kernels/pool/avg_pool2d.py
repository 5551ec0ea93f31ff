"""Average pooling over 2-D windows, sliding or adaptive (pooling.py), and its gradient.

    y[n,c,p,q] = Σ over taps (r,s) of x[n,c,h,w], the pixel that the tap reads, / divisor(p,q)   outside: 0

The gradient is a gather, so it needs no atomics and is deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ dy[n,c,p,q] / divisor(p,q) over windows (p,q) covering (h,w)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..base.lang import tl, triton
from ..core.images import Images, Pixel, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..streaming.strips import stream, strip
from ..window import pooling
from ..window.arguments import same_shape
from .avg_patches import Counted, averaged, avg_grad_patches_kernel, avg_patches_kernel, divisor
from .patches import known, launch_patches, serves
from .whole_windows import launch_windows, step_of
from .windows import SCHEMA, axes, covering, hangs_over, taps


@triton.jit
def avg_kernel(x, y, channels, COUNTED: tl.constexpr, WINDOWS: tl.constexpr):
    """y = Σ over the window of x / divisor."""
    PIXELS: tl.constexpr = WINDOWS.pixels
    TAPS: tl.constexpr = WINDOWS.taps
    CHANNELS: tl.constexpr = WINDOWS.channels
    STEPS: tl.constexpr = WINDOWS.steps
    UNROLL: tl.constexpr = WINDOWS.unroll
    VECTOR: tl.constexpr = WINDOWS.vector
    ALIGNED: tl.constexpr = WINDOWS.aligned
    ACC: tl.constexpr = WINDOWS.accumulator
    x = known(x, ALIGNED, VECTOR, CHANNELS == 1)
    s = strip(y.size, channels // ALIGNED * ALIGNED, WINDOWS)
    acc = tl.zeros([PIXELS, TAPS, CHANNELS], ACC)
    for step in tl.range(0, STEPS, loop_unroll_factor=UNROLL):
        to, mask = step_of(step, s, x, y.size, WINDOWS)
        acc += tl.load(to, mask=mask, other=0.0).to(ACC)
    total = averaged(tl.sum(acc, axis=1), s.at.h, s.at.w, x.size, y.size, COUNTED, WINDOWS)
    tl.store(y.data + offsets(s.at, s.c, y.strides), total.to(y.data.dtype.element_ty), mask=s.mask)


@triton.jit
def avg_spread_kernel(dx, grad, channels, COUNTED: tl.constexpr, WINDOWS: tl.constexpr):
    """dx = grad / divisor, of the only window that covers a pixel."""
    CHANNELS: tl.constexpr = WINDOWS.channels
    STEPS: tl.constexpr = WINDOWS.steps
    UNROLL: tl.constexpr = WINDOWS.unroll
    VECTOR: tl.constexpr = WINDOWS.vector
    ALIGNED: tl.constexpr = WINDOWS.aligned
    ACC: tl.constexpr = WINDOWS.accumulator
    dx = known(dx, ALIGNED, VECTOR, CHANNELS == 1)
    s = strip(grad.size, channels // ALIGNED * ALIGNED, WINDOWS)
    g = tl.load(grad.data + offsets(s.at, s.c, grad.strides), mask=s.mask, other=0.0).to(ACC)
    g = averaged(g, s.at.h, s.at.w, dx.size, grad.size, COUNTED, WINDOWS).to(dx.data.dtype.element_ty)
    for step in tl.range(0, STEPS, loop_unroll_factor=UNROLL):
        to, mask = step_of(step, s, dx, grad.size, WINDOWS)
        tl.store(to, tl.broadcast_to(g[:, None, :], to.shape), mask=mask)


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


def _uniform(counted: Counted, each: pooling.Axes, images: Sequence[int], results: Sequence[int]) -> Counted:
    """Return the divisor that all sliding windows have, if they have one; else `counted` itself."""
    whole = all(
        axis.stride > 0 and (counted.padding or axis.pad == 0) and (p - 1) * axis.stride + axis.size <= h + 2 * axis.pad
        for axis, h, p in zip(each, images, results, strict=True)
    )
    return counted._replace(divisor=each.taps) if whole and counted.divisor is None else counted


def avg_pool2d_launch(y, input, output_size, window, count_include_pad, divisor_override):
    each = pooling.pool_axes(window, input.shape[2:], output_size)
    counted = _uniform(Counted(count_include_pad, divisor_override), each, input.shape[2:], output_size)
    if serves(each):
        launch_patches(avg_patches_kernel, y, (input,), each, False, Images.of(input), Images.of(y), COUNTED=counted)
    else:
        launch_windows(avg_kernel, input, y, each, axes(window, input, y)["index"], COUNTED=counted)


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
    images, sizes = (Images.of(grad), Images.of(dx)), (dx.shape[2:], grad.shape[2:])
    each, its = pooling.pool_axes(window, *sizes), axes(window, dx, grad)
    counted = _uniform(Counted(count_include_pad, divisor_override), each, *sizes)
    if serves(each):
        launch_patches(avg_grad_patches_kernel, dx, (grad,), each, True, *images, COUNTED=counted)
    elif pooling.partition(each, *sizes):
        launch_windows(avg_spread_kernel, dx, grad, each, its["index"], COUNTED=counted)
    else:
        stream(avg_grad_kernel, dx, *images, COUNTED=counted, **its)


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

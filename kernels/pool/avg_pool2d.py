"""Average pooling over 2-D windows, sliding or adaptive (pooling.py), and its gradient.

    y[n,c,p,q] = Σ over taps (r,s) of x[n,c,h,w], the pixel that the tap reads, / divisor(p,q)   outside: 0

The gradient is a gather, so it needs no atomics and is deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ dy[n,c,p,q] / divisor(p,q) over windows (p,q) covering (h,w)
"""

from collections.abc import Sequence
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
from .patches import (
    block_of,
    first_window,
    known,
    last_window,
    launch_patches,
    load_row,
    offsets_of,
    place_of,
    serves,
    store_row,
)
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


@device_function
def averaged(total, p, q, image, results, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """Return a block of sums over windows (p, q) of patches, divided. Results of 16 bits hide that the reciprocals of a
    window's height and width are rounded."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    PADDING: tl.constexpr = COUNTED.padding
    EXACT: tl.constexpr = PATCHES.itemsize > 2
    ACC: tl.constexpr = PATCHES.accumulator
    if COUNTED.divisor is not None:
        return total / COUNTED.divisor if EXACT else total * (1.0 / COUNTED.divisor)
    else:  # of windows that there are not: 1
        high = tl.maximum(extent(p, image.h, results.h, DOWN, PADDING), 1).to(ACC)
        wide = tl.maximum(extent(q, image.w, results.w, ACROSS, PADDING), 1).to(ACC)
        if EXACT:
            return total / block_of(high * wide, PATCHES.planes)
        else:
            return total * block_of(1.0 / high * (1.0 / wide), PATCHES.planes)


@triton.jit
def avg_patches_kernel(x, y, channels, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """The same as avg_kernel, in patches: the sum of each row of a window, shared by the windows above each other, then
    the sum of its rows."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    HIGH: tl.constexpr = DOWN.size
    WIDE: tl.constexpr = ACROSS.size
    ROWS: tl.constexpr = PATCHES.rows
    COLUMNS: tl.constexpr = PATCHES.columns
    PLANES: tl.constexpr = PATCHES.planes
    READS: tl.constexpr = PATCHES.reads
    WRITES: tl.constexpr = PATCHES.writes
    ALIGNED: tl.constexpr = PATCHES.aligned
    ACC: tl.constexpr = PATCHES.accumulator
    END: tl.constexpr = (COLUMNS - 1) * ACROSS.stride + WIDE - ACROSS.pad
    x, y = known(x, ALIGNED, READS, PLANES), known(y, ALIGNED, WRITES, PLANES)
    place = place_of(y.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * ROWS, place.w * COLUMNS
    h, w = p * DOWN.stride, q * ACROSS.stride
    start = x.data + offsets_of(place, h, w, x.strides, PLANES)
    to = y.data + offsets_of(place, p, q, y.strides, PLANES)
    sums = ()  # of each row that is read, in each column of windows
    for i in tl.static_range((ROWS - 1) * DOWN.stride + HIGH):
        row = load_row(x, place, start, h, w, 0.0, ACC, i - DOWN.pad, -ACROSS.pad, END, READS, PLANES)
        for j in tl.static_range(COLUMNS):
            total = row[j * ACROSS.stride]
            for s in tl.static_range(1, WIDE):
                total += row[j * ACROSS.stride + s]
            sums = sums + (total,)
        for t in tl.static_range(ROWS):
            if t * DOWN.stride + HIGH - 1 == i:
                results = ()
                for j in tl.static_range(COLUMNS):
                    total = sums[t * DOWN.stride * COLUMNS + j]
                    for r in tl.static_range(1, HIGH):
                        total += sums[(t * DOWN.stride + r) * COLUMNS + j]
                    results = results + (averaged(total, p + t, q + j, x.size, y.size, COUNTED, PATCHES),)
                store_row(y, place, to, p, q, results, t, WRITES, PLANES)


@triton.jit
def avg_grad_patches_kernel(grad, dx, channels, COUNTED: tl.constexpr, PATCHES: tl.constexpr):
    """The same as avg_grad_kernel, in patches: each window is loaded once; in each row of windows the sums over those
    that can contain a pixel, shared by the pixels above each other, then the sum over rows."""
    DOWN: tl.constexpr = PATCHES.down
    ACROSS: tl.constexpr = PATCHES.across
    ROWS: tl.constexpr = PATCHES.rows * DOWN.stride
    COLUMNS: tl.constexpr = PATCHES.columns * ACROSS.stride
    PLANES: tl.constexpr = PATCHES.planes
    READS: tl.constexpr = PATCHES.reads
    WRITES: tl.constexpr = PATCHES.writes
    ALIGNED: tl.constexpr = PATCHES.aligned
    ACC: tl.constexpr = PATCHES.accumulator
    FIRST_P: tl.constexpr = first_window(0, DOWN)
    FIRST_Q: tl.constexpr = first_window(0, ACROSS)
    END: tl.constexpr = last_window(COLUMNS - 1, ACROSS) + 1
    grad, dx = known(grad, ALIGNED, READS, PLANES), known(dx, ALIGNED, WRITES, PLANES)
    place = place_of(dx.size, channels, ROWS, COLUMNS, PATCHES)
    p, q = place.h * PATCHES.rows, place.w * PATCHES.columns
    h, w = place.h * ROWS, place.w * COLUMNS
    start = grad.data + offsets_of(place, p, q, grad.strides, PLANES)
    to = dx.data + offsets_of(place, h, w, dx.strides, PLANES)
    sums = ()  # of each row of windows, in each column of pixels
    for i in tl.static_range(FIRST_P, last_window(ROWS - 1, DOWN) + 1):
        row, shares = load_row(grad, place, start, p, q, 0.0, ACC, i, FIRST_Q, END, READS, PLANES), ()
        for j in tl.static_range(FIRST_Q, END):
            share = averaged(row[j - FIRST_Q], p + i, q + j, dx.size, grad.size, COUNTED, PATCHES)
            shares = shares + (share,)
        for b in tl.static_range(COLUMNS):
            sums = sums + (sum_of(shares, first_window(b, ACROSS) - FIRST_Q, last_window(b, ACROSS) - FIRST_Q + 1, 1),)
        for a in tl.static_range(ROWS):
            if last_window(a, DOWN) == i:
                pixels = ()
                for b in tl.static_range(COLUMNS):
                    total = sum_of(
                        sums, (first_window(a, DOWN) - FIRST_P) * COLUMNS + b, (i - FIRST_P + 1) * COLUMNS, COLUMNS
                    )  # fmt: skip
                    pixels = pixels + (total,)
                store_row(dx, place, to, h, w, pixels, a, WRITES, PLANES)


@device_function
def sum_of(blocks, FIRST: tl.constexpr, END: tl.constexpr, STEP: tl.constexpr):
    """Return Σ of every STEP-th block from FIRST up to, but not, END."""
    total = blocks[FIRST]
    for i in tl.static_range(FIRST + STEP, END, STEP):
        total += blocks[i]
    return total


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
        (counted.padding or axis.pad == 0) and (p - 1) * axis.stride + axis.size <= h + 2 * axis.pad
        for axis, h, p in zip(each, images, results, strict=True)
    )
    return counted._replace(divisor=each.taps) if whole and counted.divisor is None else counted


def avg_pool2d_launch(y, input, output_size, window, count_include_pad, divisor_override):
    counted, images = Counted(count_include_pad, divisor_override), (Images.of(input), Images.of(y))
    each = pooling.pool_axes(window, input.shape[2:], output_size)
    if serves(each):
        counted = _uniform(counted, each, input.shape[2:], output_size)
        launch_patches(avg_patches_kernel, y, (input,), each, False, *images, COUNTED=counted)
    else:
        stream(avg_kernel, y, *images, COUNTED=counted, **unrolled(axes(window, input, y)))


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
    counted, images = Counted(count_include_pad, divisor_override), (Images.of(grad), Images.of(dx))
    each = pooling.pool_axes(window, dx.shape[2:], grad.shape[2:])
    if serves(each):
        counted = _uniform(counted, each, dx.shape[2:], grad.shape[2:])
        launch_patches(avg_grad_patches_kernel, dx, (grad,), each, True, *images, COUNTED=counted)
    else:
        stream(avg_grad_kernel, dx, *images, COUNTED=counted, **axes(window, dx, grad))


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

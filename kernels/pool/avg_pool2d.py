"""Average pooling over 2-D windows, sliding or adaptive (pooling.py), and its gradient.

    y[n,c,p,q] = Σ over taps (r,s) of x[n,c,h,w], the pixel that the tap reads, / divisor(p,q)   outside: 0

The gradient is a gather, so it needs no atomics and is deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ dy[n,c,p,q] / divisor(p,q) over windows (p,q) covering (h,w)
"""

import torch
import torch.nn.functional as F

from ..base.lang import device_function, tl, triton
from ..core.device import offsets, strip
from ..core.op import Fold, Op, channels_last, check_tensors, nbytes, new, nhwc
from ..streaming.strips import stream
from ..window import convolution, pooling
from .windows import COVERS, PAD, SCHEMA, SIZE, STRIDE, axes, covering, hangs_over, pairs, read, taps, unrolled


@device_function
def extent(p, size, results, AXIS: tl.constexpr, PAD_COUNTS: tl.constexpr):
    """How many pixels of the image, or of the padded image, window p takes."""
    if AXIS[STRIDE] == 0:
        return ((p + 1) * size + results - 1) // results - p * size // results
    else:
        h = p * AXIS[STRIDE] - AXIS[PAD]
        last = tl.minimum(h + AXIS[SIZE], size + AXIS[PAD])
        if not PAD_COUNTS:
            h, last = tl.maximum(h, 0), tl.minimum(last, size)
        return (last - h).to(tl.int64)


@device_function
def divisor(p, q, image, size, DOWN: tl.constexpr, ACROSS: tl.constexpr, COUNTED: tl.constexpr):
    """What the sum of window (p, q) is divided by; COUNTED: (whether padding counts, the divisor that overrides)."""
    if COUNTED[1] is not None:
        return tl.full(p.shape, COUNTED[1], tl.int64)
    else:
        return extent(p, image[0], size[0], DOWN, COUNTED[0]) * extent(q, image[1], size[1], ACROSS, COUNTED[0])


@triton.jit
def avg_kernel(
    x, y, x_strides, y_strides, image, size, channels,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, UNROLL: tl.constexpr, COUNTED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = Σ over the window of x / divisor."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for t in tl.range(0, DOWN[SIZE] * ACROSS[SIZE], loop_unroll_factor=UNROLL):
        h, w, inside = read(at[1], at[2], t, image, size, DOWN, ACROSS)
        inside = inside[:, None] & exists
        acc += tl.load(x + offsets((at[0], h, w), c, x_strides), mask=inside, other=0.0).to(ACC)
    acc = acc / divisor(at[1], at[2], image, (size[1], size[2]), DOWN, ACROSS, COUNTED)[:, None].to(ACC)
    tl.store(y + offsets(at, c, y_strides), acc.to(y.dtype.element_ty), mask=exists)


@triton.jit
def avg_grad_kernel(
    grad, dx, grad_strides, dx_strides, results, size, channels,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, COUNTED: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx[h,w] = Σ over covering windows of grad / divisor."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for i in range(DOWN[COVERS]):
        p, _, down = covering(at[1], i, size[1], results[0], DOWN)
        for j in range(ACROSS[COVERS]):
            q, _, across = covering(at[2], j, size[2], results[1], ACROSS)
            covers = down & across
            mask = covers[:, None] & exists
            g = tl.load(grad + offsets((at[0], p, q), c, grad_strides), mask=mask, other=0.0).to(ACC)
            by = divisor(p, q, (size[1], size[2]), results, DOWN, ACROSS, COUNTED)
            acc += g / tl.where(covers, by, 1)[:, None].to(ACC)
    tl.store(dx + offsets(at, c, dx_strides), acc.to(dx.dtype.element_ty), mask=exists)


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
    stream(
        avg_kernel, y, input, y, nhwc(input), nhwc(y), tuple(input.shape[2:]),
        COUNTED=(count_include_pad, divisor_override), **unrolled(axes(window, input, y)),
    )  # fmt: skip


def avg_pool2d_aten(input, output_size, window, count_include_pad, divisor_override):
    if not window:
        return F.adaptive_avg_pool2d(input, output_size)
    ceil = hangs_over(window, input.shape[2:], output_size)
    return F.avg_pool2d(input, *pairs(window)[:3], ceil, count_include_pad, divisor_override)


def avg_grad_fake(grad, input_size, window, count_include_pad, divisor_override, channels_last):
    check_tensors(grad=grad)
    _check(input_size, grad.shape[2:], window)
    convolution.same_shape("grad", grad.shape[:2], input_size[:2])
    return new(input_size, grad, channels_last)


def avg_grad_launch(dx, grad, input_size, window, count_include_pad, divisor_override, channels_last):
    if grad.numel() == 0:
        dx.zero_()
        return
    stream(
        avg_grad_kernel, dx, grad, dx, nhwc(grad), nhwc(dx), tuple(grad.shape[2:]),
        COUNTED=(count_include_pad, divisor_override), **axes(window, dx, grad),
    )  # fmt: skip


def avg_grad_aten(grad, input_size, window, count_include_pad, divisor_override, channels_last):
    input = grad.new_empty(input_size)
    if not window:
        return torch.ops.aten._adaptive_avg_pool2d_backward(grad, input)
    ceil = hangs_over(window, input_size[2:], grad.shape[2:])
    args = (*pairs(window)[:3], ceil, count_include_pad, divisor_override)
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
    folds=(Fold({"input": 0}, (0,)),),
)

AVG_POOL2D_INPUT_GRAD = Op(
    name="avg_pool2d_input_grad",
    schema=f"(Tensor grad, SymInt[4] input_size, int[] window, {_COUNTED}, bool channels_last) -> Tensor",
    fake=avg_grad_fake,
    launcher=avg_grad_launch,
    aten=avg_grad_aten,
    flops=lambda grad, *args: grad.numel(),
    bytes=lambda *args: nbytes(args[0], avg_grad_fake(*args)),
    folds=(Fold({"grad": 0, "input_size": 0}, (0,)),),
)

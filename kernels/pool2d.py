"""Maximum and average pooling over 2-D windows, and their input gradients.

    max:  y[n,c,p,q] = max over taps (r,s) of x[n, c, p·stride − pad + r·dilation, ...]     outside: −∞
    avg:  y[n,c,p,q] = Σ over taps of x / divisor(p,q)                                      outside: 0

The maximum also stores which tap won, as the smallest integer that holds it. Both gradients are gathers, so they
need no atomics and are deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ over windows (p,q) covering (h,w), at tap (r,s):
        max:  dy[p,q] if winner[p,q] is (r,s)             avg:  dy[p,q] / divisor(p,q)

A window covers h iff h + pad = p·stride + r·dilation. With i counting back from the last such p there are at most
(span − 1) / stride + 1 of them in each direction: one, for windows that don't overlap.
"""

from typing import Any

import torch
import torch.nn.functional as F

from . import geometry, tiles
from .device import offsets, pixel, source
from .lang import device_function, tl, triton
from .op import Op, channels_last, check_tensors, index_type, launch, nbytes, new, nhwc, tl_type
from .precision import accumulator


@device_function
def strip(size, channels, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's pixels (n, p, q) [PIXELS], channels [CHANNELS], and which of them exist [PIXELS, CHANNELS]."""
    across = tl.cdiv(channels, CHANNELS)
    index = (tl.program_id(0) // across).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    at = pixel(index, size[1], size[2])
    return at, c, (at[0] < size[0])[:, None] & (c < channels)[None, :]


@device_function
def covering(at, i, j, size, WINDOW: tl.constexpr):
    """The window (p, q), i and j before the last that covers pixel (h, w), its tap there, and whether it is one."""
    h, w = at[1] + WINDOW[2][0], at[2] + WINDOW[2][1]
    p, q = h // WINDOW[1][0] - i, w // WINDOW[1][1] - j
    h, w = h - p * WINDOW[1][0], w - q * WINDOW[1][1]
    r, s = h // WINDOW[3][0], w // WINDOW[3][1]
    on_tap = (r * WINDOW[3][0] == h) & (s * WINDOW[3][1] == w) & (r < WINDOW[0][0]) & (s < WINDOW[0][1])
    return p, q, r * WINDOW[0][1] + s, on_tap & (p >= 0) & (q >= 0) & (p < size[0]) & (q < size[1])


@triton.jit
def max_kernel(
    x, y, winner, indices, x_strides, y_strides, x_size, size, channels,
    WINDOW: tl.constexpr, UNROLL: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = max over the window; winner = its tap; indices = its pixel. NaN wins, the last NaN; else the first."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), ACC)
    tap = tl.full([PIXELS, CHANNELS], -1, tl.int32)
    for t in tl.range(0, WINDOW[0][0] * WINDOW[0][1], loop_unroll_factor=UNROLL):
        h, w, inside = source(at[1], at[2], t // WINDOW[0][1], t % WINDOW[0][1], WINDOW)
        inside = (inside & (h < x_size[0]) & (w < x_size[1]))[:, None] & exists
        value = tl.load(x + offsets((at[0], h, w), c, x_strides), mask=inside, other=0.0).to(ACC)
        wins = inside & ((value > best) | (value != value) | (tap < 0))
        best = tl.where(wins, value, best)
        tap = tl.where(wins, t, tap)
    to = offsets(at, c, y_strides)
    tl.store(y + to, best.to(y.dtype.element_ty), mask=exists)
    if winner is not None:
        tl.store(winner + to, tap.to(winner.dtype.element_ty), mask=exists)
    if indices is not None:
        h, w, _ = source(at[1][:, None], at[2][:, None], tap // WINDOW[0][1], tap % WINDOW[0][1], WINDOW)
        tl.store(indices + to, h.to(tl.int64) * x_size[1] + w, mask=exists)


@triton.jit
def max_grad_kernel(
    grad, winner, dx, grad_strides, winner_strides, dx_strides, size, dx_size, channels,
    WINDOW: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx[h,w] = Σ over covering windows of grad, where this pixel won."""
    at, c, exists = strip(dx_size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for i in range(((WINDOW[0][0] - 1) * WINDOW[3][0]) // WINDOW[1][0] + 1):
        for j in range(((WINDOW[0][1] - 1) * WINDOW[3][1]) // WINDOW[1][1] + 1):
            p, q, tap, covers = covering(at, i, j, size, WINDOW)
            mask = covers[:, None] & exists
            won = tl.load(winner + offsets((at[0], p, q), c, winner_strides), mask=mask, other=0)
            g = tl.load(grad + offsets((at[0], p, q), c, grad_strides), mask=mask, other=0.0).to(ACC)
            acc += tl.where(mask & (won == tap[:, None]), g, 0.0)
    tl.store(dx + offsets(at, c, dx_strides), acc.to(dx.dtype.element_ty), mask=exists)


@device_function
def avg_divisor(p, q, x_size, WINDOW: tl.constexpr, PAD_COUNTS: tl.constexpr, DIVISOR: tl.constexpr):
    """What the sum at output pixel (p, q) is divided by: DIVISOR, or the window's pixels within the (padded) input."""
    if DIVISOR is not None:
        return tl.full(p.shape, DIVISOR, tl.int64)
    else:
        h, w = p * WINDOW[1][0] - WINDOW[2][0], q * WINDOW[1][1] - WINDOW[2][1]
        last_h = tl.minimum(h + WINDOW[0][0], x_size[0] + WINDOW[2][0])
        last_w = tl.minimum(w + WINDOW[0][1], x_size[1] + WINDOW[2][1])
        if not PAD_COUNTS:
            h, w = tl.maximum(h, 0), tl.maximum(w, 0)
            last_h, last_w = tl.minimum(last_h, x_size[0]), tl.minimum(last_w, x_size[1])
        return ((last_h - h) * (last_w - w)).to(tl.int64)


@triton.jit
def avg_kernel(
    x, y, x_strides, y_strides, x_size, size, channels,
    WINDOW: tl.constexpr, UNROLL: tl.constexpr, PAD_COUNTS: tl.constexpr, DIVISOR: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = Σ over the window of x / divisor."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for t in tl.range(0, WINDOW[0][0] * WINDOW[0][1], loop_unroll_factor=UNROLL):
        h, w, inside = source(at[1], at[2], t // WINDOW[0][1], t % WINDOW[0][1], WINDOW)
        inside = (inside & (h < x_size[0]) & (w < x_size[1]))[:, None] & exists
        acc += tl.load(x + offsets((at[0], h, w), c, x_strides), mask=inside, other=0.0).to(ACC)
    acc = acc / avg_divisor(at[1], at[2], x_size, WINDOW, PAD_COUNTS, DIVISOR)[:, None].to(ACC)
    tl.store(y + offsets(at, c, y_strides), acc.to(y.dtype.element_ty), mask=exists)


@triton.jit
def avg_grad_kernel(
    grad, dx, grad_strides, dx_strides, size, dx_size, channels,
    WINDOW: tl.constexpr, PAD_COUNTS: tl.constexpr, DIVISOR: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx[h,w] = Σ over covering windows of grad / divisor."""
    at, c, exists = strip(dx_size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    image = (dx_size[1], dx_size[2])
    for i in range((WINDOW[0][0] - 1) // WINDOW[1][0] + 1):
        for j in range((WINDOW[0][1] - 1) // WINDOW[1][1] + 1):
            p, q, _, covers = covering(at, i, j, size, WINDOW)
            mask = covers[:, None] & exists
            g = tl.load(grad + offsets((at[0], p, q), c, grad_strides), mask=mask, other=0.0).to(ACC)
            divisor = tl.where(covers, avg_divisor(p, q, image, WINDOW, PAD_COUNTS, DIVISOR), 1)
            acc += g / divisor[:, None].to(ACC)
    tl.store(dx + offsets(at, c, dx_strides), acc.to(dx.dtype.element_ty), mask=exists)


def _stream(kernel: Any, over: torch.Tensor, args: tuple[Any, ...], **constants: Any) -> None:
    """Launches a kernel over all elements of `over`, in strips."""
    batch, channels, height, width = over.shape
    block = tiles.pick_strip(channels, over.stride(1) == 1, tiles.chip_name())
    programs = geometry.cdiv(batch * height * width, block.pixels) * geometry.cdiv(channels, block.channels)
    launch(
        kernel, programs, *args, (batch, height, width), channels, **constants, ACC=tl_type(accumulator(over.dtype)),
        PIXELS=block.pixels, CHANNELS=block.channels, num_warps=block.warps,
    )  # fmt: skip


def _unroll(window: geometry.Window) -> int:
    """Small windows are unrolled, so that all their loads are under way at once."""
    return window.taps if window.taps <= 16 else 1


def winner_dtype(taps: int) -> torch.dtype:
    """The smallest integer that holds a tap's number: one byte up to 255 taps."""
    return torch.uint8 if taps <= 255 else torch.int16 if taps < 2**15 else torch.int32


def max_pool2d_fake(input, kernel_size, stride, padding, dilation, ceil_mode, winner, indices):
    check_tensors(input=input)
    window = geometry.pool_window(kernel_size, stride, padding, dilation)
    shape = geometry.pool_shape(input.shape, window, ceil_mode)
    last, none = channels_last(input), (0,)
    return (
        new(shape, input, last),
        new(shape, input, last, winner_dtype(window.taps)) if winner else input.new_empty(none, dtype=torch.uint8),
        new(shape, input, last, torch.int64) if indices else input.new_empty(none, dtype=torch.int64),
    )


def max_pool2d_launch(results, input, kernel_size, stride, padding, dilation, ceil_mode, winner, indices):
    y, taps, places = results
    window = geometry.pool_window(kernel_size, stride, padding, dilation)
    to = (y, taps if winner else None, places if indices else None)
    _stream(
        max_kernel, y, (input, *to, nhwc(input), nhwc(y), tuple(input.shape[2:])),
        WINDOW=window.constants(), UNROLL=_unroll(window), INDEX=index_type(input, y),
    )  # fmt: skip


def max_pool2d_aten(input, kernel_size, stride, padding, dilation, ceil_mode, winner, indices):
    y, index = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    p, q = (torch.arange(n, device=input.device) for n in y.shape[2:])
    r = (index // input.shape[3] + padding[0] - p[:, None] * stride[0]) // dilation[0]
    s = (index % input.shape[3] + padding[1] - q * stride[1]) // dilation[1]
    return y, r * kernel_size[1] + s if winner else None, index if indices else None


def max_grad_fake(grad, winner, input_size, kernel_size, stride, padding, dilation, channels_last):
    check_tensors(grad=grad)
    geometry.same_shape("winner", winner.shape, grad.shape)
    return new(input_size, grad, channels_last)


def max_grad_launch(dx, grad, winner, input_size, kernel_size, stride, padding, dilation, channels_last):
    window = geometry.pool_window(kernel_size, stride, padding, dilation)
    _stream(
        max_grad_kernel, dx, (grad, winner, dx, nhwc(grad), nhwc(winner), nhwc(dx), tuple(grad.shape[2:])),
        WINDOW=window.constants(), INDEX=index_type(grad, winner, dx),
    )  # fmt: skip


def winner_pixel(winner, width, kernel_size, stride, padding, dilation):
    """Places h·W + w, int64, of the winning taps in an input of this width, by pointwise arithmetic."""
    p, q = (torch.arange(n, device=winner.device) for n in winner.shape[2:])
    tap = winner.long()
    h = p[:, None] * stride[0] - padding[0] + tap // kernel_size[1] * dilation[0]
    w = q * stride[1] - padding[1] + tap % kernel_size[1] * dilation[1]
    return h * width + w


def max_grad_aten(grad, winner, input_size, kernel_size, stride, padding, dilation, channels_last):
    index = winner_pixel(winner, input_size[3], kernel_size, stride, padding, dilation)
    dx = torch.zeros(input_size, device=grad.device, dtype=accumulator(grad.dtype)).flatten(2)
    return dx.scatter_add_(2, index.flatten(2), grad.flatten(2).to(dx.dtype)).view(input_size)


def avg_pool2d_fake(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    check_tensors(input=input)
    if divisor_override == 0:
        raise RuntimeError("divisor_override must not be 0; give another divisor, or None for the window's size")
    shape = geometry.pool_shape(input.shape, geometry.pool_window(kernel_size, stride, padding), ceil_mode)
    return new(shape, input, channels_last(input))


def avg_pool2d_launch(y, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    window = geometry.pool_window(kernel_size, stride, padding)
    _stream(
        avg_kernel, y, (input, y, nhwc(input), nhwc(y), tuple(input.shape[2:])), INDEX=index_type(input, y),
        WINDOW=window.constants(), UNROLL=_unroll(window), PAD_COUNTS=count_include_pad, DIVISOR=divisor_override,
    )  # fmt: skip


def avg_grad_fake(grad, input_size, kernel_size, stride, padding, ceil_mode, pad_counts, divisor, channels_last):
    check_tensors(grad=grad)
    expected = geometry.pool_shape(input_size, geometry.pool_window(kernel_size, stride, padding), ceil_mode)
    geometry.same_shape("grad", grad.shape, expected)
    return new(input_size, grad, channels_last)


def avg_grad_launch(dx, grad, input_size, kernel_size, stride, padding, ceil_mode, pad_counts, divisor, channels_last):
    window = geometry.pool_window(kernel_size, stride, padding)
    _stream(
        avg_grad_kernel, dx, (grad, dx, nhwc(grad), nhwc(dx), tuple(grad.shape[2:])), INDEX=index_type(grad, dx),
        WINDOW=window.constants(), PAD_COUNTS=pad_counts, DIVISOR=divisor,
    )  # fmt: skip


def avg_grad_aten(grad, input_size, *window_and_format):
    return torch.ops.aten.avg_pool2d_backward(grad, grad.new_empty(input_size), *window_and_format[:-1])


_MAX = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"
_AVG = (
    "int[2] kernel_size, int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad, int? divisor_override"
)

MAX_POOL2D = Op(
    name="max_pool2d",
    schema=f"(Tensor input, {_MAX}, bool ceil_mode, bool winner, bool indices) -> (Tensor, Tensor, Tensor)",
    fake=max_pool2d_fake,
    launcher=max_pool2d_launch,
    aten=max_pool2d_aten,
    flops=lambda *args: max_pool2d_fake(*args)[0].numel() * args[1][0] * args[1][1],
    bytes=lambda *args: nbytes(args[0], *max_pool2d_fake(*args)),
)

MAX_POOL2D_INPUT_GRAD = Op(
    name="max_pool2d_input_grad",
    schema=f"(Tensor grad, Tensor winner, SymInt[4] input_size, {_MAX}, bool channels_last) -> Tensor",
    fake=max_grad_fake,
    launcher=max_grad_launch,
    aten=max_grad_aten,
    flops=lambda grad, *args: grad.numel(),
    bytes=lambda *args: nbytes(*args[:2], max_grad_fake(*args)),
)

AVG_POOL2D = Op(
    name="avg_pool2d",
    schema=f"(Tensor input, {_AVG}) -> Tensor",
    fake=avg_pool2d_fake,
    launcher=avg_pool2d_launch,
    aten=F.avg_pool2d,
    flops=lambda *args: avg_pool2d_fake(*args).numel() * args[1][0] * args[1][1],
    bytes=lambda *args: nbytes(args[0], avg_pool2d_fake(*args)),
)

AVG_POOL2D_INPUT_GRAD = Op(
    name="avg_pool2d_input_grad",
    schema=f"(Tensor grad, SymInt[4] input_size, {_AVG}, bool channels_last) -> Tensor",
    fake=avg_grad_fake,
    launcher=avg_grad_launch,
    aten=avg_grad_aten,
    flops=lambda grad, *args: grad.numel(),
    bytes=lambda *args: nbytes(args[0], avg_grad_fake(*args)),
)

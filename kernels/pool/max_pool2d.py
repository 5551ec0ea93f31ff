"""Maximum pooling over 2-D windows, sliding or adaptive (pooling.py), its gradient, and that one's.

    y[n,c,p,q] = max over taps (r,s) of x[n,c,h,w], the pixel that the tap reads                 outside: −∞

The maximum also stores which tap won, as the smallest integer that holds it. The gradient is a gather, so it needs no
atomics and is deterministic: an input pixel visits the windows that cover it,

    dx[n,c,h,w] = Σ dy[n,c,p,q] over windows (p,q) covering (h,w) whose winner is the tap that reads (h,w)

and the gradient's own derivative reads what the winners read: ddy[n,c,p,q] = ddx at the winner of (p,q).
"""

import torch
import torch.nn.functional as F

from ..base.lang import tl, triton
from ..base.precision import smallest_integer
from ..core.images import Images, Pixel, offsets, offsets_each
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, nbytes, new
from ..streaming.strips import stream, strip
from ..window import pooling
from ..window.arguments import same_shape
from .max_patches import max_grad_patches_kernel, max_patches_kernel
from .patches import launch_patches, serves
from .windows import SCHEMA, axes, covering, first, hangs_over, read, taps, unrolled


@triton.jit
def max_kernel(
    x, y, winner, indices, channels, DOWN: tl.constexpr, ACROSS: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y = max over the window; winner = its tap; indices = its pixel, in y's strides. NaN wins, the last NaN; else the
    first."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(y.size, channels, BLOCK)
    best = tl.full([PIXELS, CHANNELS], float("-inf"), ACC)
    tap = tl.full([PIXELS, CHANNELS], -1, tl.int32)
    for t in tl.range(0, DOWN.size * ACROSS.size, loop_unroll_factor=UNROLL):
        h, w, inside = read(s.at.h, s.at.w, t, x.size, y.size, DOWN, ACROSS)
        inside = inside[:, None] & s.mask
        value = tl.load(x.data + offsets(Pixel(s.at.n, h, w), s.c, x.strides), mask=inside, other=0.0).to(ACC)
        wins = inside & ((value > best) | (value != value) | (tap < 0))
        best = tl.where(wins, value, best)
        tap = tl.where(wins, t, tap)
    to = offsets(s.at, s.c, y.strides)
    tl.store(y.data + to, best.to(y.data.dtype.element_ty), mask=s.mask)
    if winner is not None:
        tl.store(winner + to, tap.to(winner.dtype.element_ty), mask=s.mask)
    if indices is not None:
        tap = tl.maximum(tap, 0)  # a window of nothing but padding has no winner
        h, w, _ = read(s.at.h[:, None], s.at.w[:, None], tap, x.size, y.size, DOWN, ACROSS)
        tl.store(indices + to, h.to(tl.int64) * x.size.w + w, mask=s.mask)


@triton.jit
def max_grad_kernel(
    grad, winner, dx, channels, DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dx[h,w] = Σ over covering windows of grad, where this pixel won."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(dx.size, channels, BLOCK)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for i in range(DOWN.covers):
        p, r, down = covering(s.at.h, i, dx.size.h, grad.size.h, DOWN)
        for j in range(ACROSS.covers):
            q, t, across = covering(s.at.w, j, dx.size.w, grad.size.w, ACROSS)
            mask = (down & across)[:, None] & s.mask
            at = Pixel(s.at.n, p, q)
            won = tl.load(winner.data + offsets(at, s.c, winner.strides), mask=mask, other=0)
            g = tl.load(grad.data + offsets(at, s.c, grad.strides), mask=mask, other=0.0).to(ACC)
            acc += tl.where(mask & (won == (r * ACROSS.size + t)[:, None]), g, 0.0)
    tl.store(dx.data + offsets(s.at, s.c, dx.strides), acc.to(dx.data.dtype.element_ty), mask=s.mask)


@triton.jit
def at_winner_kernel(
    x, winner, y, channels, DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y = x where the winner of each window stands."""
    s = strip(y.size, channels, BLOCK)
    tap = tl.load(winner.data + offsets(s.at, s.c, winner.strides), mask=s.mask, other=0).to(tl.int32)
    h, w, inside = read(s.at.h[:, None], s.at.w[:, None], tap, x.size, y.size, DOWN, ACROSS)
    to = x.data + offsets_each(s.at.n, h, w, s.c, x.strides)
    value = tl.load(to, mask=inside & s.mask, other=0.0)
    tl.store(y.data + offsets(s.at, s.c, y.strides), value, mask=s.mask)


def max_pool2d_fake(input, output_size, window, winner, indices):
    """Return (y, winner, indices); those not asked for have shape (0,)."""
    check_tensors(input=input)
    pooling.check_images(input.shape, (0,) if window else (0, 1))
    pooling.check_pooled(input.shape, output_size, window)
    shape = (*input.shape[:2], *output_size)
    last, none = channels_last(input), (0,)
    dtype = smallest_integer(pooling.pool_axes(window, input.shape[2:], output_size).taps)
    return (
        new(shape, input, last),
        new(shape, input, last, dtype) if winner else input.new_empty(none, dtype=torch.uint8),
        new(shape, input, last, torch.int64) if indices else input.new_empty(none, dtype=torch.int64),
    )


def max_pool2d_launch(results, input, output_size, window, winner, indices):
    y, winners, places = results
    each = pooling.pool_axes(window, input.shape[2:], output_size)
    args = (Images.of(input), Images.of(y), winners if winner else None, places if indices else None)
    if serves(each):
        launch_patches(max_patches_kernel, y, (input,), each, False, *args)
    else:
        stream(max_kernel, y, *args, **unrolled(axes(window, input, y)))


def max_pool2d_aten(input, output_size, window, winner, indices):
    if window:
        ceil, how = hangs_over(window, input.shape[2:], output_size), pooling.PoolWindow.of(window)._asdict()
        y, index = F.max_pool2d(input, **how, ceil_mode=ceil, return_indices=True)
    else:
        y, index = F.adaptive_max_pool2d(input, output_size, return_indices=True)
    if not winner:
        return y, None, index if indices else None
    its = pooling.pool_axes(window, input.shape[2:], output_size)
    top, left = first(window, input.shape[2:], output_size, input.device)
    width = input.shape[3]
    r, s = (index // width - top) // its.down.dilation, (index % width - left) // its.across.dilation
    return y, r * its.across.size + s, index if indices else None


def max_grad_fake(grad, winner, input_size, window, channels_last):
    check_tensors(grad=grad)
    pooling.check_pooled(input_size, grad.shape[2:], window)
    same_shape("winner", winner.shape, grad.shape)
    return new(input_size, grad, channels_last)


def max_grad_launch(dx, grad, winner, input_size, window, channels_last):
    if grad.numel() == 0:
        dx.zero_()
        return
    images = (Images.of(grad), Images.of(winner), Images.of(dx))
    each = pooling.pool_axes(window, dx.shape[2:], grad.shape[2:])
    if serves(each, True):
        launch_patches(max_grad_patches_kernel, dx, (grad, winner), each, True, *images)
    else:
        stream(max_grad_kernel, dx, *images, **axes(window, dx, grad))


def _winner_index(winner, image, window):
    """Return the places h·W + w, int64, of the winning taps in images (H, W)."""
    its, tap = pooling.pool_axes(window, image, winner.shape[2:]), winner.long()
    top, left = first(window, image, winner.shape[2:], winner.device)
    r, s = tap // its.across.size, tap % its.across.size
    return (top + r * its.down.dilation) * image[1] + left + s * its.across.dilation


def max_grad_aten(grad, winner, input_size, window, channels_last):
    index = _winner_index(winner, input_size[2:], window).flatten(2)
    dx = torch.zeros(input_size, device=grad.device, dtype=grad.dtype).flatten(2)
    return dx.scatter_add_(2, index, grad.flatten(2)).view(input_size)


def at_winner_fake(input, winner, window):
    check_tensors(input=input)
    pooling.check_pooled(input.shape, winner.shape[2:], window)
    same_shape("winner", winner.shape[:2], input.shape[:2])
    return new(winner.shape, input, channels_last(winner))


def at_winner_launch(y, input, winner, window):
    images = (Images.of(input), Images.of(winner), Images.of(y))
    stream(at_winner_kernel, y, *images, **axes(window, input, y))


def at_winner_aten(input, winner, window):
    index = _winner_index(winner, input.shape[2:], window)
    return input.flatten(2).gather(2, index.flatten(2)).view(winner.shape)


MAX_POOL2D = Op(
    name="max_pool2d",
    schema=f"(Tensor input, {SCHEMA}, bool winner, bool indices) -> (Tensor, Tensor, Tensor)",
    fake=max_pool2d_fake,
    launcher=max_pool2d_launch,
    aten=max_pool2d_aten,
    flops=lambda *args: taps(args),
    bytes=lambda *args: nbytes(args[0], *max_pool2d_fake(*args)),
    vmap=(VmapRule({"input": 0}, (0, 0, 0)),),
)

MAX_POOL2D_INPUT_GRAD = Op(
    name="max_pool2d_input_grad",
    schema="(Tensor grad, Tensor winner, SymInt[4] input_size, int[] window, bool channels_last) -> Tensor",
    fake=max_grad_fake,
    launcher=max_grad_launch,
    aten=max_grad_aten,
    flops=lambda grad, *args: grad.numel(),
    bytes=lambda *args: nbytes(*args[:2], max_grad_fake(*args)),
    vmap=(VmapRule({"grad": 0, "winner": 0, "input_size": 0}, (0,)),),
)

MAX_POOL2D_AT_WINNER = Op(
    name="max_pool2d_at_winner",
    schema="(Tensor input, Tensor winner, int[] window) -> Tensor",
    fake=at_winner_fake,
    launcher=at_winner_launch,
    aten=at_winner_aten,
    flops=lambda input, winner, window: winner.numel(),
    bytes=lambda *args: nbytes(args[1]) + 2 * nbytes(at_winner_fake(*args)),
    vmap=(VmapRule({"input": 0, "winner": 0}, (0,)),),
)

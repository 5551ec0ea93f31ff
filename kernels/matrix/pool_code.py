"""ReLU and pooling in windows that don't overlap, as one: what a convolution that is pooled stores, and the way back.

    maximum:  y[p,q] = max(0, max over taps t of x[t])       code: the tap that won; the number of taps if none did
    average:  y[p,q] = Σ over taps t of max(0, x[t]) / taps  code: a bit for each tap, 1 where ReLU is open

with x[t] = x[p·R + t / S, q·S + t mod S] for windows of R x S = `taps`. NaN as in the chain of PyTorch's operators: it
wins (the last one), and ReLU is open there. That is all that the gradient needs,

    dx[t] = dy where the code says that tap t is open, else 0             average: dy / taps
    ddy   = Σ over open taps of ddx[t]                                    average: / taps

and dbias[k] = Σ dx. A code is a tensor [bytes, N, C, P, Q]: of a maximum the smallest integer that holds it; of an
average one byte for every eight taps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator, smallest_integer
from ..core import chips
from ..core.images import Images, Pixel, Strides, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, index_type, laid_out_as, nbytes, new
from ..streaming.strips import part_of, step_of, stream, strip
from ..streaming.sums import held, sum_held, sum_pixels
from ..tiles.model import register_options
from ..window.arguments import same_shape
from ..window.layout import cdiv
from .activation_grad import bias_grad_fake
from .loop import offset_inside
from .meta import Code, Pool


@device_function
def pool_start(M: tl.constexpr, N: tl.constexpr, POOL: tl.constexpr, ACC: tl.constexpr):
    """Return (y, code) before the first tap; of a maximum's keys y alone, a key of value 0 that is no tap's. [M, N]"""
    if POOL.how == "key":
        return tl.full([M, N], 0xFFFF, tl.int32), 0
    else:
        code = 0 if POOL.how == "average" else POOL.rows * POOL.columns
        return tl.zeros([M, N], ACC), tl.full([M, N], code, tl.int32)


@device_function
def tap_key(x, t, POOL: tl.constexpr):
    """Return the key of 16-bit values x at tap t: x's bits above the number of taps that follow. As integers, keys of
    positive values are in the values' order, the first tap's above its equals'; those of other values are below
    pool_start's."""
    return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16) | (POOL.rows * POOL.columns - 1 - t)


@device_function
def nan_key(t, POOL: tl.constexpr):
    """Return the key of NaN at tap t, above those of all numbers."""
    return 0x7FFF0000 | (POOL.rows * POOL.columns - 1 - t)


@device_function
def pool_step(y, code, x, t, KIND: tl.constexpr, POOL: tl.constexpr):
    """Return (y, code) after tap t with values x, which are rounded to dtype KIND.

    average: code is the byte of taps 8·⌊t/8⌋ and on
    key:     y is the largest key, or the last NaN's
    """
    if POOL.how == "key":
        y = tl.maximum(y, tap_key(x.to(KIND), t, POOL))
        return tl.where(x != x, nan_key(t, POOL), y), code
    elif POOL.how == "average":
        x = x.to(KIND).to(y.dtype)
        opens = (x > 0) | (x != x)
        return y + tl.where(opens, x, 0.0), tl.where(t % 8 > 0, code, 0) | (opens.to(tl.int32) << (t % 8))
    else:
        x = x.to(KIND).to(y.dtype)
        wins = (x > y) | (x != x)
        return tl.where(wins, x, y), tl.where(wins, t, code)


@device_function
def store_byte(code, to, won, t, mask, POOL: tl.constexpr):
    """Store at offsets `to` an average's byte of eight taps, if t is their last; see meta.Code."""
    if POOL.how == "average":  # noqa: SIM102 - known at compile time
        if (t % 8 == 7) | (t == POOL.rows * POOL.columns - 1):
            tl.store(code.data + to + tl.cast(t // 8, to.dtype) * code.plane, won.to(tl.uint8), mask=mask)


@device_function
def store_pooled(y, code, to, pooled, won, mask, POOL: tl.constexpr):
    """Store at offsets `to` the values after the last tap, but for an average's bytes."""
    if POOL.how == "key":
        won = POOL.rows * POOL.columns - 1 - pooled  # in its last 16 bits
        pooled = (pooled >> 16).to(tl.int16).to(y.dtype.element_ty, bitcast=True)
    elif POOL.how == "average":
        pooled = pooled / (POOL.rows * POOL.columns)
    tl.store(y + to, pooled.to(y.dtype.element_ty), mask=mask)
    if POOL.how != "average":
        tl.store(code.data + to, won.to(code.data.dtype.element_ty), mask=mask)


@device_function
def is_open(code, to, t, mask, POOL: tl.constexpr):
    """True where a gradient passes through tap t, at offsets `to`."""
    if POOL.how == "average":
        byte = tl.load(code.data + to + tl.cast(t // 8, to.dtype) * code.plane, mask=mask, other=0).to(tl.int32)
        return ((byte >> (t % 8)) & 1) > 0
    else:
        return tl.load(code.data + to, mask=mask, other=0).to(tl.int32) == t


@device_function
def share(x, POOL: tl.constexpr):
    """Return a tap's part of a gradient."""
    if POOL.how != "average":
        return x
    elif x.dtype == tl.float64:
        return x / (POOL.rows * POOL.columns)
    else:
        return (x.to(tl.float32) / (POOL.rows * POOL.columns)).to(x.dtype)


@device_function
def gather_open(grad, code, at, pixel_mask, h, w, c, c_mask, POOL: tl.constexpr):
    """Return the tile [pixels, terms] of the gradient of the images before pooling, (h, w) away from pixels `at`, in
    channels c. It is computed from grad, the pooled images' gradient, and the code; 0 outside of all windows."""
    h = at.h[:, None] + h[None, :]  # [pixels, terms or 1]
    w = at.w[:, None] + w[None, :]
    inside = (h >= 0) & (w >= 0) & (h < grad.size.h * POOL.rows) & (w < grad.size.w * POOL.columns)
    inside = inside & pixel_mask[:, None]
    p, q = h // POOL.rows, w // POOL.columns
    t = (h - p * POOL.rows) * POOL.columns + w - q * POOL.columns
    to = at.n[:, None] * grad.strides.n + offset_inside(p, q, grad.strides, inside) + c[None, :] * grad.strides.c
    mask = inside & c_mask[None, :]
    g = share(tl.load(grad.data + to, mask=mask, other=0.0), POOL)
    return tl.where(is_open(code, to, t, mask, POOL), g, 0.0).to(g.dtype)


@device_function
def tap_pixel(at, t, POOL: tl.constexpr):
    """Return the pixels that tap t of windows `at` takes."""
    return Pixel(at.n, at.h * POOL.rows + t // POOL.columns, at.w * POOL.columns + t % POOL.columns)


@device_function
def spread_step(g, code, to, dx, at, c, mask, POOL: tl.constexpr):
    """Store g at the open taps of windows `at`, whose code is at offsets `to`, unless dx is None; return their
    number."""
    TAPS: tl.constexpr = POOL.rows * POOL.columns
    PLANES: tl.constexpr = (TAPS + 7) // 8 if POOL.how == "average" else 1
    EACH: tl.constexpr = TAPS if PLANES == 1 else 8
    opened = tl.zeros(g.shape, tl.int32)
    for plane in range(PLANES):
        bits = tl.load(code.data + to + tl.cast(plane, to.dtype) * code.plane, mask=mask, other=0).to(tl.int32)
        if POOL.how != "average":
            opened = (bits < TAPS).to(tl.int32)
        for i in range(EACH if PLANES == 1 else tl.minimum(EACH, TAPS - plane * EACH)):
            opens = bits == i
            if POOL.how == "average":
                opens = ((bits >> i) & 1) > 0
                opened += opens.to(tl.int32)
            if dx is not None:
                t = tl.cast(plane * EACH + i, to.dtype)
                first = offsets(Pixel(at.n, at.h * POOL.rows, at.w * POOL.columns), c, dx.strides)
                tap = t // POOL.columns * dx.strides.h + t % POOL.columns * dx.strides.w
                tl.store(dx.data + (first + tap), tl.where(opens, g, 0.0).to(g.dtype), mask=mask)
    return opened


@triton.jit
def spread_kernel(grad, code, dx, parts, channels, chunk, POOL: tl.constexpr, BLOCK: tl.constexpr):
    """dx[t] = grad's share where tap t is open, and parts[program, k] = Σ of it over the program's pixels."""
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    ROWS: tl.constexpr = BLOCK.rows
    part = part_of(channels, BLOCK)
    acc = tl.zeros([ROWS, CHANNELS], ACC)
    strides = Strides(code.strides.n, code.strides.h, code.strides.w, code.strides.c)  # Triton 3.6 loses code.strides.c
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, grad.size, part, BLOCK)
        to = offsets(step.at, part.c, strides)
        g = tl.load(grad.data + offsets(step.at, part.c, grad.strides), mask=step.mask, other=0.0)
        g = share(g, POOL)
        opened = spread_step(g, code, to, dx, step.at, part.c, step.mask, POOL)
        shares = g.to(ACC) * opened.to(ACC) if POOL.how == "average" else g.to(ACC)
        acc += held(tl.where(opened > 0, shares, 0.0), BLOCK)
    to = parts + part.number.to(BLOCK.index) * channels + part.c
    tl.store(to, sum_held(acc, BLOCK).to(parts.dtype.element_ty), mask=part.c_mask)


@triton.jit
def at_open_kernel(x, code, y, channels, POOL: tl.constexpr, BLOCK: tl.constexpr):
    """y = Σ over open taps of x[t]'s share."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(y.size, channels, BLOCK)
    to = offsets(s.at, s.c, code.strides)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for t in range(POOL.rows * POOL.columns):
        opens = is_open(code, to, t, s.mask, POOL)
        value = tl.load(x.data + offsets(tap_pixel(s.at, t, POOL), s.c, x.strides), mask=s.mask, other=0.0)
        acc += tl.where(opens, value.to(ACC), 0.0)
    if POOL.how == "average":
        acc = acc / (POOL.rows * POOL.columns)
    tl.store(y.data + offsets(s.at, s.c, y.strides), acc.to(y.data.dtype.element_ty), mask=s.mask)


def new_code(y: torch.Tensor, pool: Sequence[int], average: bool) -> torch.Tensor:
    """Return an uninitialised code of results y."""
    taps = math.prod(pool)
    planes, kind = (cdiv(taps, 8), torch.uint8) if average else (1, smallest_integer(taps))
    n, *rest = y.shape
    return new((planes * n, *rest), y, channels_last(y), kind).unflatten(0, (planes, n))


class Pooled(NamedTuple):
    """A pooling: its code, and what kernels are compiled for."""

    code: Code
    pool: Pool

    @property
    def result_registers(self) -> str:
        """A word of tiles.shapes.EXTRA_REGISTERS, for a product that this pooling follows."""
        return "number" if self.pool.how == "key" else "two numbers"

    @property
    def extra_registers(self) -> str:
        """A word of tiles.shapes.EXTRA_REGISTERS, for a product that reads a gradient through the code."""
        return f"code, {self.code.data.element_size()} B"

    @classmethod
    def of(cls, code: torch.Tensor, pool: Sequence[int], average: bool, dtype: torch.dtype) -> "Pooled":
        """Return the pooling of an operator's arguments, and the dtype of what is pooled."""
        small = dtype.itemsize == 2 and math.prod(pool) < 2**15
        how = "average" if average else "key" if small else "largest"
        strides = Images.of(code[0]).strides
        return cls(Code(code, strides, code.stride(0)), Pool(pool[0], pool[1], how))


def in_same_strides(grad: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a gradient and a code in the same strides, as gather_open takes them; copied unless they are."""
    flat = code.flatten(0, 1)  # dense, as new_code makes it; not one that was expanded
    if not flat.is_contiguous(memory_format=torch.channels_last):
        flat = flat.contiguous()
    code = flat.unflatten(0, code.shape[:2])
    return laid_out_as(code[0], grad), code


def _whole(pooled: torch.Size, pool: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the images that windows cover."""
    return (pooled[2] * pool[0], pooled[3] * pool[1])


def _check(grad, code, input_size, pool):
    check_tensors(grad=grad)
    same_shape("code", code.shape[1:], grad.shape)
    pooled = tuple(size // k for size, k in zip(input_size[2:], pool, strict=True))
    same_shape("grad", grad.shape, (*input_size[:2], *pooled))


def spread(dbias, dx, grad, code, pool, average):
    """Fill dbias, and dx unless it is None."""
    if dx is not None and (grad.numel() == 0 or tuple(dx.shape[2:]) != _whole(grad.shape, pool)):
        dx.zero_()  # what hangs over is in no window
    pooled = Pooled.of(code, pool, average, grad.dtype)
    images = None if dx is None else Images.of(dx)
    sum_pixels(
        spread_kernel, dbias, grad, Images.of(grad), pooled.code, images, index=index_type(grad, code, dx),
        POOL=pooled.pool, **register_options(chips.chip_name()),
    )  # fmt: skip


def input_grad_fake(grad, code, input_size, pool, average, channels_last):
    """Return (dx [N, C, H, W], dbias [C])."""
    _check(grad, code, input_size, pool)
    return new(input_size, grad, channels_last), bias_grad_fake(grad)


def input_grad_launch(results, grad, code, input_size, pool, average, channels_last):
    dx, dbias = results
    spread(dbias, dx, grad, code, pool, average)


def opens_aten(code, pool, average):
    """Return which taps are open, [taps, N, C, P, Q]."""
    tap = torch.arange(pool[0] * pool[1], device=code.device)[:, None, None, None, None]
    return (code[tap.flatten() // 8].long() >> tap % 8) & 1 > 0 if average else code.long() == tap


def input_grad_aten(grad, code, input_size, pool, average, channels_last):
    taps = torch.where(opens_aten(code, pool, average), grad / math.prod(pool) if average else grad, 0)
    n, c, h, w = input_size
    whole = taps.unflatten(0, tuple(pool)).permute(2, 3, 4, 0, 5, 1).reshape(n, c, *_whole(grad.shape, pool))
    dx = torch.nn.functional.pad(whole, (0, w - whole.shape[3], 0, h - whole.shape[2]))
    return dx, taps.sum((0, 1, 3, 4), dtype=accumulator(grad.dtype))


def at_open_fake(input, code, pool, average):
    check_tensors(input=input)
    pooled = (input.shape[2] // pool[0], input.shape[3] // pool[1])
    same_shape("code", code.shape[1:], (*input.shape[:2], *pooled))
    return new(code.shape[1:], input, channels_last(code[0]))


def at_open_launch(y, input, code, pool, average):
    pooled = Pooled.of(code, pool, average, input.dtype)
    index = index_type(input, code)
    stream(at_open_kernel, y, Images.of(input), pooled.code, Images.of(y), index=index, POOL=pooled.pool)


def at_open_aten(input, code, pool, average):
    h, w = _whole(code.shape[1:], pool)
    taps = input[:, :, :h, :w].unflatten(3, (-1, pool[1])).unflatten(2, (-1, pool[0])).permute(3, 5, 0, 1, 2, 4)
    y = torch.where(opens_aten(code, pool, average), taps.flatten(0, 1), 0).sum(0)
    return y / math.prod(pool) if average else y


RELU_POOL2D_INPUT_GRAD = Op(
    name="relu_pool2d_input_grad",
    schema="(Tensor grad, Tensor code, SymInt[4] input_size, int[2] pool, bool average, bool channels_last) "
    "-> (Tensor, Tensor)",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, code, input_size, pool, *args: grad.numel() * math.prod(pool),
    bytes=lambda *args: nbytes(*args[:2], *input_grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "code": 2, "input_size": 1}, (1, 0)),),
)

RELU_POOL2D_AT_OPEN = Op(
    name="relu_pool2d_at_open",
    schema="(Tensor input, Tensor code, int[2] pool, bool average) -> Tensor",
    fake=at_open_fake,
    launcher=at_open_launch,
    aten=at_open_aten,
    flops=lambda input, code, pool, average: code[0].numel() * math.prod(pool),
    bytes=lambda *args: nbytes(*args[:2], at_open_fake(*args)),
    vmap=(VmapRule({"input": 0, "code": 1}, (0,)),),
)

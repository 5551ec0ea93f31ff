"""Windows of pooling, sliding or adaptive: which pixels they read, which of them cover a pixel.

Along one direction (window.pooling.Axis), for P windows over H pixels:

    sliding:   tap r of window p reads pixel  h = p·stride − pad + r·dilation,  if there is such a pixel
               pixel h is covered by the last p with p·stride ≤ h + pad, and by i windows before it, at most
               (span − 1) / stride of them: none, for windows that don't overlap
    adaptive:  window p reads the pixels from ⌊p·H/P⌋ up to, but not, (p + 1)·H/P
               pixel h is covered by the windows from ⌊h·P/H⌋ up to, but not, (h + 1)·P/H: the same with H for P
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..base.lang import device_function, tl
from ..core.tensors import index_type
from ..window import pooling


@device_function
def reads(p, r, size, results, AXIS: tl.constexpr):
    """Return the pixel, of `size`, that tap r of window p, of `results`, reads; and whether there is one."""
    if AXIS.stride == 0:
        h = p * size // results + r
        return h, h * results < (p + 1) * size
    else:
        h = p * AXIS.stride - AXIS.pad + r * AXIS.dilation
        return h, (h >= 0) & (h < size)


@device_function
def read(p, q, tap, image, results, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Return the pixel (h, w) of images of a size that a tap of window (p, q) of the results reads, and whether there
    is one."""
    h, down = reads(p, tap // ACROSS.size, image.h, results.h, DOWN)
    w, across = reads(q, tap % ACROSS.size, image.w, results.w, ACROSS)
    return h, w, down & across


@device_function
def covering(h, i, size, results, AXIS: tl.constexpr):
    """Return the i-th window that covers pixel h, its tap there, and whether there is one: `reads` reversed."""
    if AXIS.stride == 0:
        p = h * results // size + i
        return p, h - p * size // results, p * size < (h + 1) * results
    else:
        h += AXIS.pad
        p = h // AXIS.stride - i
        h -= p * AXIS.stride
        r = h // AXIS.dilation
        return p, r, (r * AXIS.dilation == h) & (r < AXIS.size) & (p >= 0) & (p < results)


def axes(window: Sequence[int], images: torch.Tensor, results: torch.Tensor) -> dict[str, Any]:
    """Return what kernels are compiled for: the two directions of the windows, and the offsets' integer, which also
    holds an adaptive window's p·H."""
    each = pooling.pool_axes(window, images.shape[2:], results.shape[2:])
    products = max(h * p for h, p in zip(images.shape[2:], results.shape[2:], strict=True))
    large = not window and products >= 2**31 - 2**24
    return {"DOWN": each.down, "ACROSS": each.across, "index": tl.int64 if large else index_type(images, results)}


def unrolled(axes: dict[str, Any]) -> dict[str, Any]:
    """Return `axes` and UNROLL, how many taps the loop over a window unrolls, so that several loads are under way at
    once: all up to 16, else 8."""
    taps = axes["DOWN"].size * axes["ACROSS"].size
    return axes | {"UNROLL": taps if taps <= 16 else 8}


def first(window: Sequence[int], image: Any, output: Any, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first pixel that each window takes, vertically [P, 1] and horizontally [Q]."""
    places = []
    for axis, h, p in zip(pooling.pool_axes(window, image, output), image, output, strict=True):
        at = torch.arange(p, device=device)
        places.append(at * axis.stride - axis.pad if window else at * h // p)
    return places[0][:, None], places[1]


def hangs_over(window: Sequence[int], image: Any, output_size: Any) -> bool:
    """True if this output size is the one of ceil_mode, in which the last windows may hang over."""
    return pooling.pool_sizes(window, image, False) != tuple(output_size)


def taps(args: tuple[Any, ...]) -> int:
    """Return the pixels that the windows of a forward pass take, at most: each output's taps."""
    input, output_size, window, *_ = args
    each = pooling.pool_axes(window, input.shape[2:], output_size)
    return input.shape[0] * input.shape[1] * output_size[0] * output_size[1] * each.taps


# window: see window.pooling.PoolWindow. The output's size says whether the last windows hang over.
SCHEMA = "SymInt[2] output_size, int[] window"

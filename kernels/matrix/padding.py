"""The way back through padding that shows the image: reflect, replicate, circular.

    padded:  x̂[h'] = x[source(h' − top)]                for h' of the padded image; never formed, see gather.gather
    back:    dx[h] = Σ over h' that show h of dx̂[h']    in both directions

A pixel is shown by itself and by some of the border's rows and columns: a gather over those, so no atomics.
"""

import torch

from ..base.lang import device_function, tl, triton
from ..core.images import Images, Pixel, offsets
from ..core.tensors import index_type
from ..streaming.strips import stream, strip
from ..window.convolution import Window
from .loop import source_index


@device_function
def showing(i, h, size, before, PADDING: tl.constexpr):
    """Return the padded image's place that might show pixel h, its own or the i-th of the border; and whether it
    does."""
    border = tl.where(i <= before, i - 1, size + i - 1)
    return tl.where(i == 0, h + before, border), (i == 0) | (source_index(border - before, size, PADDING) == h)


@triton.jit
def unpad_kernel(padded, dx, before, borders, channels, PADDING: tl.constexpr, BLOCK: tl.constexpr):
    """dx[h,w] = Σ over the places of the padded image that show (h,w). before, borders: padding above and to the left,
    and in all, in each direction."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    s = strip(dx.size, channels, BLOCK)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for place in range((1 + borders[0]) * (1 + borders[1])):
        h, down = showing(place // (1 + borders[1]), s.at.h, dx.size.h, before[0], PADDING)
        w, across = showing(place % (1 + borders[1]), s.at.w, dx.size.w, before[1], PADDING)
        mask = (down & across)[:, None] & s.mask
        to = padded.data + offsets(Pixel(s.at.n, h, w), s.c, padded.strides)
        acc += tl.load(to, mask=mask, other=0.0).to(ACC)
    tl.store(dx.data + offsets(s.at, s.c, dx.strides), acc.to(dx.data.dtype.element_ty), mask=s.mask)


def unpad(padded: torch.Tensor, dx: torch.Tensor, window: Window) -> None:
    """dx = the gradient of images whose padding by the window's mode has the gradient `padded`."""
    top, bottom, left, right = window.pads
    stream(
        unpad_kernel, dx, Images.of(padded), Images.of(dx), (top, left), (top + bottom, left + right),
        index=index_type(padded, dx), PADDING=window.padding_mode,
    )  # fmt: skip

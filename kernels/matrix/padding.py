"""The way back through padding that shows the image: reflect, replicate, circular.

    padded:  x̂[h'] = x[shown(h' − top)]               for h' of the padded image; never formed, see device.gather
    back:    dx[h] = Σ over h' that show h of dx̂[h']   in both directions

A pixel is shown by itself and by some of the border's rows and columns: a gather over those, so no atomics.
"""

import torch

from ..base.lang import device_function, tl, triton
from ..core.device import offsets, shown, strip
from ..core.op import index_type, nhwc
from ..streaming.strips import stream
from ..window.convolution import Window


@device_function
def showing(i, h, size, before, PADDING: tl.constexpr):
    """The padded image's place that might show pixel h: its own, or the i-th of the border; and whether it does."""
    border = tl.where(i <= before, i - 1, size + i - 1)
    return tl.where(i == 0, h + before, border), (i == 0) | (shown(border - before, size, PADDING) == h)


@triton.jit
def unpad_kernel(
    padded, dx, padded_strides, dx_strides, before, borders, size, channels, PADDING: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx[h,w] = Σ over the places of the padded image that show (h,w)."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for place in range((1 + borders[0]) * (1 + borders[1])):
        h, down = showing(place // (1 + borders[1]), at[1], size[1], before[0], PADDING)
        w, across = showing(place % (1 + borders[1]), at[2], size[2], before[1], PADDING)
        mask = (down & across)[:, None] & exists
        acc += tl.load(padded + offsets((at[0], h, w), c, padded_strides), mask=mask, other=0.0).to(ACC)
    tl.store(dx + offsets(at, c, dx_strides), acc.to(dx.dtype.element_ty), mask=exists)


def unpad(padded: torch.Tensor, dx: torch.Tensor, window: Window) -> None:
    """dx = the gradient of images whose padding by the window's mode has the gradient `padded`."""
    top, bottom, left, right = window.pads
    stream(
        unpad_kernel, dx, padded, dx, nhwc(padded), nhwc(dx), (top, left), (top + bottom, left + right),
        PADDING=window.padding_mode, INDEX=index_type(padded, dx),
    )  # fmt: skip

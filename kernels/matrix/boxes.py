"""Boxes of pixels, and the descriptors by which the tensor memory accelerator (TMA) fetches and stores them."""

from ..base.lang import device_function, tl
from ..core.images import Pixel, pixel


@device_function
def split(h, STRIDE: tl.constexpr):
    """Return ⌊h / STRIDE⌋ and the rest, for any h above −2²⁰·STRIDE."""
    if STRIDE == 1:
        return h, 0
    else:
        lifted = h + (1 << 20) * STRIDE
        return lifted // STRIDE - (1 << 20), lifted % STRIDE


@device_function
def box_at(index, size, BOX: tl.constexpr):
    """Return the first pixel of a box: boxes tile images of a size."""
    down, across = tl.cdiv(size.h, BOX[1]), tl.cdiv(size.w, BOX[2])
    row = index // across
    return Pixel(row // down * BOX[0], row % down * BOX[1], (index - row * across) * BOX[2])


@device_function
def next_box(at, size, BOX: tl.constexpr):
    """Return the first pixel of the box that follows the one at pixel `at`, without a division."""
    w = at.w + BOX[2]
    h = tl.where(w < size.w, at.h, at.h + BOX[1])
    n = tl.where(h < size.h, at.n, at.n + BOX[0])
    return Pixel(n, tl.where(h < size.h, h, 0), tl.where(w < size.w, w, 0))


@device_function
def box_count(size, BOX: tl.constexpr):
    """Return the number of boxes that tile images of a size."""
    return tl.cdiv(size.n, BOX[0]) * tl.cdiv(size.h, BOX[1]) * tl.cdiv(size.w, BOX[2])


@device_function
def box_pixels(first, a, b, BOX: tl.constexpr, RESULT_STEPS: tl.constexpr):
    """Return the pixels [M] of a box from its `first`, every RESULT_STEPS-th of phase (a, b)."""
    within = pixel(tl.arange(0, BOX[0] * BOX[1] * BOX[2]), BOX[1], BOX[2])
    return Pixel(
        first.n + within.n, a + (first.h + within.h) * RESULT_STEPS[0], b + (first.w + within.w) * RESULT_STEPS[1]
    )  # fmt: skip


@device_function
def box_descriptor(x, size, strides, channels, BOX: tl.constexpr, CHANNELS: tl.constexpr, SPACING: tl.constexpr):
    """Return a descriptor that fetches or stores a box of pixels x CHANNELS of channels_last images, every SPACING-th
    pixel, at [n, i, a, j, b·channels + c] for pixel (a + i·SPACING, b + j·SPACING). Outside the images it reads 0 and
    stores nothing."""
    n, h, w = strides.n.to(tl.int64), strides.h.to(tl.int64), strides.w.to(tl.int64)
    return tl.make_tensor_descriptor(
        x,
        [size.n, size.h // SPACING[0], SPACING[0], size.w // SPACING[1], SPACING[1] * channels],
        [n, h * SPACING[0], h, w * SPACING[1], 1],
        [BOX[0], BOX[1], 1, BOX[2], CHANNELS],
    )

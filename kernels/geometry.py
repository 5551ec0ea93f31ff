"""Window arithmetic of convolution and pooling: sizes, padding, argument errors. Plain integers, no tensors.

Names: batch n, input pixel (h, w), output pixel (p, q), tap (r, s), input channel c, output channel k.
"""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from math import gcd
from typing import Any, NamedTuple

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, bottom, left, right


class Window(NamedTuple):
    """A sliding window: tap (r, s) of output pixel (p, q) reads input pixel (p·stride − pad + r·dilation, ...)."""

    size: Pair
    stride: Pair
    pads: Pads
    dilation: Pair

    @property
    def taps(self) -> int:
        """Number of points in the window."""
        return self.size[0] * self.size[1]

    @property
    def span(self) -> Pair:
        """Extent of the dilated window, in pixels."""
        return (self.dilation[0] * (self.size[0] - 1) + 1, self.dilation[1] * (self.size[1] - 1) + 1)

    @property
    def is_point(self) -> bool:
        """Does each output pixel read the input pixel of its own place and no other?"""
        return self.size == (1, 1) and self.stride == (1, 1) and self.pads == (0, 0, 0, 0)

    def constants(self) -> tuple[Pair, Pair, Pair, Pair]:
        """What a pooling kernel is compiled for: size, stride, top and left padding, dilation."""
        return (self.size, self.stride, (self.pads[0], self.pads[2]), self.dilation)

    @cache  # noqa: B019 - a window is a small immutable value
    def walks(self, transposed: bool) -> tuple["Walk", "Walk"]:
        """The vertical and the horizontal walk of a convolution, forward or transposed."""
        each = zip(self.size, self.stride, (self.pads[0], self.pads[2]), self.dilation, strict=True)
        return tuple(_transposed(*axis) if transposed else _forward(*axis) for axis in each)  # type: ignore[return-value]


class Walk(NamedTuple):
    """One direction of a product of windows. The result's pixels come in `step` phases, every step-th pixel each:

        y[a + i·step] = Σ_{j < count} x[i·stride + offset + j·reach] · w[first + j·hop]

    with (first, count, offset, some) = phases[a]; `some` is 0 for a phase without taps, its count 1.

    forward:    one phase: y[p] = Σ_r x[p·stride − pad + r·dilation] · w[r]
    transposed: the input gradient, x[h] = Σ y[p] · w[r] over p·stride = h + pad − r·dilation. Pixels h of one residue
                modulo the stride have the same taps, every hop-th, and read adjacent pixels: a dense walk of stride 1.
    """

    step: int
    stride: int
    hop: int
    reach: int
    phases: tuple[tuple[int, int, int, int], ...]

    def constants(self) -> tuple[int, ...]:
        """What a convolution kernel is compiled for: all numbers in one row."""
        return (*self[:4], *chain(*self.phases))


def _forward(size: int, stride: int, pad: int, dilation: int) -> Walk:
    return Walk(1, stride, 1, dilation, ((0, size, -pad, 1),))


def _transposed(size: int, stride: int, pad: int, dilation: int) -> Walk:
    common = gcd(dilation, stride)
    hop = stride // common
    phases = []
    for a in range(stride):
        first = next((r for r in range(min(hop, size)) if (a + pad - r * dilation) % stride == 0), None)
        if first is None:
            phases.append((0, 1, 0, 0))
        else:
            phases.append((first, (size - first - 1) // hop + 1, (a + pad - first * dilation) // stride, 1))
    return Walk(stride, 1, hop, -dilation // common, tuple(phases))


def cdiv(size: int, part: int) -> int:
    """How many parts cover the size. (Triton's own takes some microseconds on the host.)"""
    return -(-size // part)


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def pair(argument: str, value: Any) -> Pair:
    """One integer for both directions, or two: (vertical, horizontal). Errors: TypeError, RuntimeError (length)."""
    if _is_int(value):
        return (value, value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(_is_int(v) for v in value):
        raise TypeError(f"{argument} must be an int or a pair of ints, but got {value!r}")
    if len(value) == 1:
        return (value[0], value[0])
    if len(value) != 2:
        raise RuntimeError(f"{argument} must be one int or two (vertical, horizontal), but got {tuple(value)}")
    return (value[0], value[1])


def positive(argument: str, value: Pair) -> Pair:
    """The pair itself. Errors: RuntimeError unless both are at least 1."""
    if value[0] < 1 or value[1] < 1:
        raise RuntimeError(f"{argument} must be at least 1 in both directions, but got {value}")
    return value


def conv_pads(padding: Any, size: Pair, stride: Pair, dilation: Pair) -> Pads:
    """Convolution's padding (int, pair, 'same', 'valid') as (top, bottom, left, right).

    'same' gives the odd pixel, where there is one, to the bottom and right, as torch.nn.functional.conv2d does.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise RuntimeError(f"padding must be an int, a pair, 'same' or 'valid', but got {padding!r}")
        if stride != (1, 1):
            raise RuntimeError(f"padding='same' needs stride 1, but got stride {stride}; give padding as numbers")
        total = (dilation[0] * (size[0] - 1), dilation[1] * (size[1] - 1))
        top, left = total[0] // 2, total[1] // 2
        return (top, total[0] - top, left, total[1] - left)
    vertical, horizontal = pair("padding", padding)
    if vertical < 0 or horizontal < 0:
        raise RuntimeError(f"padding must not be negative, but got {(vertical, horizontal)}")
    return (vertical, vertical, horizontal, horizontal)


def conv_window(size: Pair, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window of a convolution, from arguments as torch.nn.functional.conv2d takes them."""
    stride = positive("stride", pair("stride", stride))
    dilation = positive("dilation", pair("dilation", dilation))
    return Window(size, stride, conv_pads(padding, size, stride, dilation), dilation)


def conv_output(window: Window, image: Pair) -> Pair:
    """Output size (P, Q) of a convolution over an image (H, W). Errors: RuntimeError if the window doesn't fit."""
    padded = (image[0] + window.pads[0] + window.pads[1], image[1] + window.pads[2] + window.pads[3])
    if window.span[0] > padded[0] or window.span[1] > padded[1]:
        raise RuntimeError(
            f"weight: its window spans {window.span[0]} x {window.span[1]} pixels, more than the padded input's "
            f"{padded[0]} x {padded[1]}; give a larger input, more padding or less dilation"
        )
    return (
        (padded[0] - window.span[0]) // window.stride[0] + 1,
        (padded[1] - window.span[1]) // window.stride[1] + 1,
    )


def conv_shape(
    input: Sequence[int], weight: Sequence[int], bias: Sequence[int] | None, window: Window, groups: int
) -> tuple[int, int, int, int]:
    """Output shape (N, K, P, Q) of a convolution. Errors: RuntimeError naming the argument that doesn't fit."""
    if len(weight) != 4:
        raise RuntimeError(f"weight must be 4-D (K, C/groups, R, S), but got shape {tuple(weight)}")
    if len(input) != 4:
        raise RuntimeError(f"input must be 4-D (N, C, H, W) or 3-D (C, H, W), but got shape {tuple(input)}")
    if groups < 1:
        raise RuntimeError(f"groups must be at least 1, but got {groups}")
    if weight[0] % groups:
        raise RuntimeError(f"groups must divide weight's {weight[0]} output channels, but got {groups}")
    if input[1] != weight[1] * groups:
        raise RuntimeError(
            f"input has {input[1]} channels, but weight of shape {tuple(weight)} with groups={groups} "
            f"expects {weight[1] * groups}"
        )
    if bias is not None and tuple(bias) != (weight[0],):
        raise RuntimeError(f"bias must have shape ({weight[0]},), one per output channel, but got {tuple(bias)}")
    return (input[0], weight[0], *conv_output(window, (input[2], input[3])))


def pool_window(kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> Window:
    """The window of a pooling, from arguments as torch.nn.functional's pools take them (stride None or empty:
    the kernel size). Errors: RuntimeError."""
    size = positive("kernel_size", pair("kernel_size", kernel_size))
    empty = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    step = positive("stride", size if empty else pair("stride", stride))
    spacing = positive("dilation", pair("dilation", dilation))
    pad = pair("padding", padding)
    if pad[0] < 0 or pad[1] < 0:
        raise RuntimeError(f"padding must not be negative, but got {pad}")
    window = Window(size, step, (pad[0], pad[0], pad[1], pad[1]), spacing)
    if pad[0] > size[0] // 2 or pad[1] > size[1] // 2:
        raise RuntimeError(f"padding must be at most half of kernel_size {size}, but got {pad}")
    return window


def pool_output(window: Window, image: Pair, ceil_mode: bool) -> Pair:
    """Output size (P, Q) of a pooling; with ceil_mode a last window may hang over, if it starts inside."""

    def one(size: int, pad: int, span: int, stride: int) -> int:
        room = size + 2 * pad - span
        count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (count - 1) * stride >= size + pad:
            count -= 1
        return count

    p = one(image[0], window.pads[0], window.span[0], window.stride[0])
    q = one(image[1], window.pads[2], window.span[1], window.stride[1])
    if p < 1 or q < 1:
        raise RuntimeError(
            f"kernel_size {window.size} with dilation {window.dilation} and padding {window.pads[::2]} doesn't fit "
            f"into an input of {image[0]} x {image[1]}: the output would be {p} x {q}"
        )
    return (p, q)


def pool_shape(input: Sequence[int], window: Window, ceil_mode: bool) -> tuple[int, int, int, int]:
    """Output shape (N, C, P, Q) of a pooling. Errors: RuntimeError naming the argument that doesn't fit."""
    if len(input) != 4 or 0 in tuple(input)[1:]:
        raise RuntimeError(
            "input must be 4-D (N, C, H, W) or 3-D (C, H, W) with only the batch possibly empty, but got shape "
            f"{tuple(input)}"
        )
    return (input[0], input[1], *pool_output(window, (input[2], input[3]), ceil_mode))


def same_shape(argument: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Errors: RuntimeError unless the argument has the expected shape."""
    if tuple(shape) != tuple(expected):
        raise RuntimeError(f"{argument} must have shape {tuple(expected)}, but got {tuple(shape)}")


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Does PyTorch propagate channels_last from a 4-D tensor with these strides? (Its own stride rule:
    strides grow in the order C, W, H, N; ties that any layout satisfies count as contiguous.)"""
    if len(shape) != 4 or strides[1] == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if shape[d] == 0 or strides[d] < least:
            return False
        if d == 0 and least == strides[1]:
            return False
        least = strides[d]
        if shape[d] > 1:
            least *= shape[d]
    return True


def span_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Largest offset, in elements, that indexing this tensor can reach, plus one."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 0)


def row_stride(size: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride, in elements, of the pixels of images of this size (n, h, w) and these strides, if all pixels lie in
    one row of that stride; else None."""
    stride, expected = 0, None
    for count, step in zip(reversed(size), reversed(strides), strict=True):
        if count == 1:
            continue
        if expected is None:
            stride = expected = step
        elif step != expected:
            return None
        expected *= count
    return stride


def taps_meet(walk: Walk, image: int, result: int) -> bool:
    """Does every tap of a forward walk meet a pixel of the image, not only padding, for some pixel of the result?"""
    ((_, count, offset, _),) = walk.phases
    reads = [offset + r * walk.reach for r in range(count)]
    return all(image > h % walk.stride and result + h // walk.stride > 0 and h < image for h in reads)

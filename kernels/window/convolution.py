"""Window arithmetic of convolution: sizes, padding, argument errors; and of memory formats. Plain integers only.

Names: batch n, input pixel (h, w), output pixel (p, q), tap (r, s), input channel c, output channel k.
"""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from math import gcd
from typing import Any, NamedTuple

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, bottom, left, right


# What a window reads outside of the image, in the words of torch.nn.Conv2d.
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Window(NamedTuple):
    """A sliding window: tap (r, s) of output pixel (p, q) reads input pixel (p·stride − pad + r·dilation, ...).

    The bottom and right padding may be negative: so many of the last pixels are no part of the image.
    """

    size: Pair
    stride: Pair
    pads: Pads
    dilation: Pair
    padding_mode: str = "zeros"
    dims: int = 2  # of what the user has: rows are images one pixel high

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

    @property
    def unpadded(self) -> "Window":
        """The same window over an image that contains its padding."""
        return self._replace(pads=(0, 0, 0, 0), padding_mode="zeros")

    def padded(self, image: Pair) -> Pair:
        """Size of an image (H, W) with its padding."""
        return (image[0] + self.pads[0] + self.pads[1], image[1] + self.pads[2] + self.pads[3])

    def of_outputs(self, outputs: Sequence[int]) -> "Window":
        """The same for so many output pixels (P, Q). Where there is one, its stride is never taken, but a gradient
        walks through as many phases: two are enough (with one, a window of one tap would be taken for a point). Where
        there is one tap, there is no dilation."""
        return self._replace(
            stride=tuple(min(s, 2) if n == 1 else s for s, n in zip(self.stride, outputs, strict=True)),
            dilation=tuple(1 if n == 1 else d for d, n in zip(self.dilation, self.size, strict=True)),
        )

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
    """Is it an integer, PyTorch's symbolic ones and NumPy's too? Not bool."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (hasattr(value, "__index__") and not getattr(value, "shape", ()))


def integer(argument: str, value: Any) -> int:
    """The integer itself. Errors: TypeError."""
    if not _is_int(value):
        raise TypeError(f"{argument} must be an int, but got {value!r}")
    return value  # type: ignore[no-any-return]


def real(argument: str, value: Any) -> float:
    """The number itself, PyTorch's symbolic ones too. Errors: TypeError."""
    symbolic = type(value).__name__ in ("SymFloat", "SymInt")
    if isinstance(value, bool) or not (symbolic or isinstance(value, int | float)):
        raise TypeError(f"{argument} must be a number, but got {value!r}")
    # torch.compile may let a number vary, which no operator takes; it fixes and guards what is in a set.
    return next(iter({float(value)}))


def flag(argument: str, value: Any) -> bool:
    """The truth value itself. Errors: TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, but got {value!r}")
    return value


def pair(argument: str, value: Any, least: int, dims: int = 2) -> Pair:
    """(vertical, horizontal) of an argument that is one integer, or one for each of `dims` directions, none below
    `least`; a single direction is the horizontal one. Errors: TypeError, RuntimeError (length, value)."""
    if type(value) is int and value >= least:  # as it is nearly always
        return (value if dims == 2 else least, value)
    values = (value,) if _is_int(value) else value
    if not isinstance(values, Sequence) or isinstance(value, str) or not all(_is_int(v) for v in values):
        raise TypeError(f"{argument} must be an int or a sequence of {dims} ints, but got {value!r}")
    if len(values) not in (1, dims):
        raise RuntimeError(f"{argument} must be one int, or one for each of {dims} directions, but got {tuple(value)}")
    values = tuple(values) * (dims // len(values))
    if min(values) < least:
        raise RuntimeError(f"{argument} must be at least {least}, but got {values}")
    return (least, values[0]) if dims == 1 else values  # a row has as little vertically as there can be


def conv_pads(padding: Any, size: Pair, stride: Pair, dilation: Pair, dims: int = 2) -> Pads:
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
    vertical, horizontal = pair("padding", padding, 0, dims)
    return (vertical, vertical, horizontal, horizontal)


def conv_window(
    size: Pair, stride: Any, padding: Any, dilation: Any, padding_mode: str = "zeros", dims: int = 2
) -> Window:
    """The window of a convolution, from arguments as torch.nn.functional.conv2d, or with dims=1 conv1d, takes them."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, but got {padding_mode!r}")
    stride, dilation = pair("stride", stride, 1, dims), pair("dilation", dilation, 1, dims)
    return Window(size, stride, conv_pads(padding, size, stride, dilation, dims), dilation, padding_mode, dims)


def sizes(pair: Sequence[int], dims: int) -> str:
    """(vertical, horizontal) in words, as the user has it."""
    return " x ".join(map(str, pair[2 - dims :]))


def shape(images: Sequence[int], dims: int) -> tuple[int, ...]:
    """Of images, as the user has it."""
    return tuple(images) if dims == 2 else (*images[:-2], images[-1])


def conv_output(window: Window, image: Pair) -> Pair:
    """Output size (P, Q) of a convolution over an image (H, W). Errors: RuntimeError if the window doesn't fit."""
    most = {"reflect": -1, "circular": 0}.get(window.padding_mode)
    if most is not None and (max(window.pads[:2]) > image[0] + most or max(window.pads[2:]) > image[1] + most):
        raise RuntimeError(
            f"padding in mode {window.padding_mode!r} must be {'less than' if most else 'at most'} the input's size, "
            f"{sizes(image, window.dims)}, but got {_pads(window)}"
        )
    padded = window.padded(image)
    if window.span[0] > padded[0] or window.span[1] > padded[1]:
        raise RuntimeError(
            f"weight: its window spans {sizes(window.span, window.dims)} pixels, more than the padded input's "
            f"{sizes(padded, window.dims)}; give a larger input, more padding or less dilation"
        )
    return (
        (padded[0] - window.span[0]) // window.stride[0] + 1,
        (padded[1] - window.span[1]) // window.stride[1] + 1,
    )


def _pads(window: Window) -> str:
    if window.dims == 2:
        return f"{window.pads} (top, bottom, left, right)"
    return f"{window.pads[2:]} (left, right)"


def _check_conv(input: Sequence[int], weight: Sequence[int], groups: int, dims: int) -> None:
    if len(weight) != 4 or 0 in tuple(weight[2:]):
        kind = "4-D (K, C/groups, R, S)" if dims == 2 else "3-D (K, C/groups, S)"
        raise RuntimeError(
            f"weight must be {kind} with a window of {sizes((1, 1), dims)} at least, but got shape "
            f"{shape(weight, dims)}"
        )
    if len(input) != 4 or 0 in tuple(input[2:]):
        kind = "4-D (N, C, H, W) or 3-D (C, H, W)" if dims == 2 else "3-D (N, C, W) or 2-D (C, W)"
        raise RuntimeError(
            f"input must be {kind} with images of {sizes((1, 1), dims)} at least, but got shape {shape(input, dims)}"
        )
    if groups < 1:
        raise RuntimeError(f"groups must be at least 1, but got {groups}")
    if weight[0] < 1 or weight[0] % groups:
        raise RuntimeError(
            f"groups must divide the first dimension of weight, which is 1 at least, but got groups={groups} for shape "
            f"{shape(weight, dims)}"
        )


def _check_bias(bias: Sequence[int] | None, channels: int) -> None:
    if bias is not None and tuple(bias) != (channels,):
        raise RuntimeError(f"bias must have shape ({channels},), one per output channel, but got {tuple(bias)}")


def conv_shape(
    input: Sequence[int], weight: Sequence[int], bias: Sequence[int] | None, window: Window, groups: int
) -> tuple[int, int, int, int]:
    """Output shape (N, K, P, Q) of a convolution. Errors: RuntimeError naming the argument that doesn't fit."""
    _check_conv(input, weight, groups, window.dims)
    if input[1] != weight[1] * groups:
        raise RuntimeError(
            f"input has {input[1]} channels, but weight of shape {shape(weight, window.dims)} with groups={groups} "
            f"expects {weight[1] * groups}"
        )
    _check_bias(bias, weight[0])
    if window.padding_mode in ("reflect", "replicate") and input[1] == 0:
        raise RuntimeError(
            f"input must have a channel to be padded by {window.padding_mode!r}, but got {shape(input, window.dims)}"
        )
    outputs = weight[0] if input[1] else 0  # PyTorch's answer to an input without channels
    return (input[0], outputs, *conv_output(window, (input[2], input[3])))


def transposed_window(
    size: Pair, stride: Any, padding: Any, output_padding: Any, dilation: Any, dims: int = 2
) -> Window:
    """The window of the convolution that a transposed convolution transposes, from arguments as
    torch.nn.functional.conv_transpose2d takes them: pixels of output_padding are in no window. Errors: RuntimeError."""
    stride, dilation = pair("stride", stride, 1, dims), pair("dilation", dilation, 1, dims)
    pad, extra = pair("padding", padding, 0, dims), pair("output_padding", output_padding, 0, dims)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise RuntimeError(
            f"output_padding must be smaller than stride {stride[2 - dims :]} or dilation {dilation[2 - dims :]}, but "
            f"got {extra[2 - dims :]}"
        )
    return Window(size, stride, (pad[0], pad[0] - extra[0], pad[1], pad[1] - extra[1]), dilation, dims=dims)


def transposed_shape(
    input: Sequence[int], weight: Sequence[int], bias: Sequence[int] | None, window: Window, groups: int
) -> tuple[int, int, int, int]:
    """Output shape (N, C, H, W) of a transposed convolution of `input` (N, K, P, Q) with `weight` (K, C/groups, R, S).
    Errors: RuntimeError naming the argument that doesn't fit."""
    dims = window.dims
    _check_conv(input, weight, groups, dims)
    if input[1] != weight[0]:
        raise RuntimeError(
            f"input has {input[1]} channels, but transposed weight of shape {shape(weight, dims)} expects {weight[0]}"
        )
    if weight[1] < 1:
        raise RuntimeError(f"weight must have at least one output channel, but got shape {shape(weight, dims)}")
    _check_bias(bias, weight[1] * groups)
    pads = (window.pads[0] + window.pads[1], window.pads[2] + window.pads[3])
    image = [
        (size - 1) * stride + span - pad
        for size, stride, span, pad in zip(input[2:], window.stride, window.span, pads, strict=True)
    ]
    if min(image) < 1:
        raise RuntimeError(
            f"padding {window.pads[::2][2 - dims :]} leaves an output of {sizes(image, dims)} pixels of an input of "
            f"shape {shape(input, dims)}; give less padding or more output_padding"
        )
    return (input[0], weight[1] * groups, *image)  # type: ignore[return-value]


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

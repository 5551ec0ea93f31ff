"""Window arithmetic of convolution: sizes, padding, argument errors. Plain integers only.

Names: batch n, input pixel (h, w), output pixel (p, q), tap (r, s), input channel c, output channel k.
"""

from collections.abc import Sequence
from functools import cache
from math import gcd
from typing import Any, NamedTuple

from .arguments import Pair, pair, shape, sizes

Pads = tuple[int, int, int, int]  # top, bottom, left, right


# What a window reads outside of the image, in the words of torch.nn.Conv2d.
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Window(NamedTuple):
    """A sliding window: tap (r, s) of output pixel (p, q) reads input pixel (p·stride − pad + r·dilation, ...).

    A negative bottom or right padding leaves out that many of the last pixels.
    """

    size: Pair
    stride: Pair
    pads: Pads
    dilation: Pair
    padding_mode: str = "zeros"
    dims: int = 2  # 1 if the user's images are rows (N, C, W), here one pixel high; else 2

    @property
    def taps(self) -> int:
        """Number of taps in the window."""
        return self.size[0] * self.size[1]

    @property
    def span(self) -> Pair:
        """Extent of the dilated window, in pixels."""
        return (self.dilation[0] * (self.size[0] - 1) + 1, self.dilation[1] * (self.size[1] - 1) + 1)

    @property
    def is_point(self) -> bool:
        """True if each output pixel reads the input pixel of its own place and no other."""
        return self.size == (1, 1) and self.stride == (1, 1) and self.pads == (0, 0, 0, 0)

    @property
    def unpadded(self) -> "Window":
        """The same window over an image that contains its padding."""
        return self._replace(pads=(0, 0, 0, 0), padding_mode="zeros")

    def padded(self, image: Pair) -> Pair:
        """Size of an image (H, W) with its padding."""
        return (image[0] + self.pads[0] + self.pads[1], image[1] + self.pads[2] + self.pads[3])

    def of_outputs(self, outputs: Sequence[int]) -> "Window":
        """Return an equivalent window for results of P x Q pixels. In a direction with one result the stride is never
        taken, but an input gradient has as many phases; so it is at most 2 (not 1: a window of one tap would become a
        point). In a direction with one tap the dilation is 1."""
        return self._replace(
            stride=tuple(min(s, 2) if n == 1 else s for s, n in zip(self.stride, outputs, strict=True)),
            dilation=tuple(1 if n == 1 else d for d, n in zip(self.dilation, self.size, strict=True)),
        )

    @classmethod
    def of(cls, size: Sequence[int], stride: Any, padding: Any, dilation: Any, padding_mode: str = "zeros") -> "Window":
        """Return the window of an operator's arguments; size: rows and columns of taps."""
        return cls((size[0], size[1]), tuple(stride), tuple(padding), tuple(dilation), padding_mode)

    @cache  # noqa: B019 - a window is a small immutable value
    def walks(self, transposed: bool) -> "Walks":
        """Return the vertical and the horizontal walk of a convolution, forward or transposed."""
        each = zip(self.size, self.stride, (self.pads[0], self.pads[2]), self.dilation, strict=True)
        return Walks(*(_transposed(*axis) if transposed else _forward(*axis) for axis in each))


class Phase(NamedTuple):
    """The taps of one phase of a walk: `count` of the weight's, from `first` on, read pixels from `offset` on. A phase
    without taps has count 1, and nonempty 0 instead of 1."""

    first: int
    count: int
    offset: int
    nonempty: int


class Walk(NamedTuple):
    """One direction of a product of windows. The result's pixels come in `result_step` phases, every
    result_step-th pixel each:

        y[a + i·result_step] = Σ_{j < count} x[i·stride + offset + j·input_step] · w[first + j·weight_step]

    with (first, count, offset) those of phases[a].

    forward:    one phase: y[p] = Σ_r x[p·stride − pad + r·dilation] · w[r]
    transposed: the input gradient, x[h] = Σ y[p] · w[r] over p·stride = h + pad − r·dilation. Pixels h of one residue
                modulo the stride have the same taps, every weight_step-th, and read adjacent pixels: a dense walk of
                stride 1.
    """

    result_step: int
    stride: int
    weight_step: int
    input_step: int
    phases: tuple[Phase, ...]


class Walks(NamedTuple):
    """The two directions of a product of windows."""

    down: Walk
    across: Walk

    @property
    def result_steps(self) -> Pair:
        """Phases in each direction."""
        return (self.down.result_step, self.across.result_step)

    @property
    def strides(self) -> Pair:
        """Stride in each direction."""
        return (self.down.stride, self.across.stride)


def _forward(size: int, stride: int, pad: int, dilation: int) -> Walk:
    return Walk(1, stride, 1, dilation, (Phase(0, size, -pad, 1),))


def _transposed(size: int, stride: int, pad: int, dilation: int) -> Walk:
    common = gcd(dilation, stride)
    weight_step = stride // common
    phases = []
    for a in range(stride):
        first = next((r for r in range(min(weight_step, size)) if (a + pad - r * dilation) % stride == 0), None)
        if first is None:
            phases.append(Phase(0, 1, 0, 0))
        else:
            count = (size - first - 1) // weight_step + 1
            phases.append(Phase(first, count, (a + pad - first * dilation) // stride, 1))
    return Walk(stride, 1, weight_step, -dilation // common, tuple(phases))


def conv_pads(padding: Any, size: Pair, stride: Pair, dilation: Pair, dims: int = 2) -> Pads:
    """Return a convolution's padding (int, pair, 'same', 'valid') as (top, bottom, left, right).

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
    """Return the window of a convolution, from arguments as torch.nn.functional.conv2d, or with dims=1 conv1d, takes
    them."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, but got {padding_mode!r}")
    stride, dilation = pair("stride", stride, 1, dims), pair("dilation", dilation, 1, dims)
    return Window(size, stride, conv_pads(padding, size, stride, dilation, dims), dilation, padding_mode, dims)


def conv_output(window: Window, image: Pair) -> Pair:
    """Return the output size (P, Q) of a convolution over an image (H, W). Errors: RuntimeError if the window doesn't
    fit."""
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
    """Return the output shape (N, K, P, Q) of a convolution. Errors: RuntimeError naming the argument that doesn't
    fit."""
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
    """Return the window of the convolution that a transposed convolution transposes, from arguments as
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
    """Return the output shape (N, C, H, W) of a transposed convolution of `input` (N, K, P, Q) with `weight` (K,
    C/groups, R, S). Errors: RuntimeError naming the argument that doesn't fit."""
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


def taps_meet(walk: Walk, image: int, result: int) -> bool:
    """True if every tap of a forward walk meets a pixel of the image, not just padding, for a pixel of the result."""
    (phase,) = walk.phases
    reads = [phase.offset + r * walk.input_step for r in range(phase.count)]
    return all(image > h % walk.stride and result + h // walk.stride > 0 and h < image for h in reads)

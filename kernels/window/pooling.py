"""Window arithmetic of pooling and unpooling: sizes, argument errors. Plain integers, no tensors."""

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

from .arguments import Pair, flag, integer, pair, shape, sizes


class Axis(NamedTuple):
    """One direction of a pooling's windows, as a kernel is compiled for it. Sliding: tap r of window p reads pixel
    p·stride − pad + r·dilation. Adaptive (stride 0): windows are shares of an image that can't be divided, ragged and
    overlapping; window p of P takes the pixels from ⌊p·H/P⌋ up to, but not, (p + 1)·H/P.

    `size`: the most taps of a window; `covers`: the most windows that cover a pixel.
    """

    size: int
    stride: int
    pad: int
    dilation: int
    covers: int


class Axes(NamedTuple):
    """The two directions of a pooling's windows."""

    down: Axis
    across: Axis

    @property
    def taps(self) -> int:
        """The most taps of a window."""
        return self.down.size * self.across.size


class PoolWindow(NamedTuple):
    """The window of a sliding pooling; each field is (vertical, horizontal)."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "PoolWindow":
        """Return the window of an operator's argument, the fields' eight numbers in a row."""
        return cls(*zip(numbers[::2], numbers[1::2], strict=True))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The window as operators take it."""
        return (*self.kernel_size, *self.stride, *self.padding, *self.dilation)


def _share(size: int, parts: int) -> int:
    """Return the largest of `parts` even shares of `size`: see Axis."""
    return (size + 2 * parts - gcd(size, parts) - 1) // parts if parts else 0


def _sliding(size: int, stride: int, pad: int, dilation: int) -> Axis:
    return Axis(size, stride, pad, dilation, covers=(size - 1) * dilation // stride + 1)


def _shares(image: int, output: int) -> Axis:
    """Return a direction of adaptive windows; windows that divide the image slide."""
    if output and image % output == 0:
        return _sliding(image // output, image // output, 0, 1)
    return Axis(_share(image, output), 0, 0, 1, covers=_share(output, image))


def pool_axes(window: Sequence[int], image: Sequence[int], output: Sequence[int]) -> Axes:
    """Return the directions of a pooling from images (H, W) to (P, Q). `window`: PoolWindow.numbers; or none:
    adaptive."""
    if not window:
        # Pixel h is covered by the share that it takes of the windows: the formula is its own transpose.
        return Axes(*map(_shares, image, output))
    return Axes(*map(_sliding, *PoolWindow.of(window)))


def partition(each: Axes, image: Sequence[int], output: Sequence[int]) -> bool:
    """True if each pixel of an image is in one window."""
    return all(
        axis.stride == axis.size and axis.pad == 0 and axis.dilation == 1 and p * axis.size == h
        for axis, h, p in zip(each, image, output, strict=True)
    )


def _pool_steps(kernel_size: Any, stride: Any, dims: int) -> tuple[Pair, Pair]:
    """Return a pooling's kernel size and stride, which is the kernel size if it is None or empty."""
    size = pair("kernel_size", kernel_size, 1, dims)
    empty = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    return size, size if empty else pair("stride", stride, 1, dims)


def pool_window(kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1, dims: int = 2) -> tuple[int, ...]:
    """Return the window of a pooling as operators take it (PoolWindow.numbers), from arguments as torch.nn.functional's
    pools take them. Errors: RuntimeError."""
    size, step = _pool_steps(kernel_size, stride, dims)
    spacing, pad = pair("dilation", dilation, 1, dims), pair("padding", padding, 0, dims)
    own = slice(2 - dims, 2)  # of the directions those that the user has
    if pad[0] > size[0] // 2 or pad[1] > size[1] // 2:
        raise RuntimeError(f"padding must be at most half of kernel_size {size[own]}, but got {pad[own]}")
    for name, value in (("kernel_size", size), ("stride", step), ("dilation", spacing)):
        if max(value) >= 1 << 31:
            raise RuntimeError(
                f"{name} must be less than 2^31, as PyTorch's pools want it, but got {value[2 - dims :]}"
            )
    return PoolWindow(size, step, pad, spacing).numbers


def pool_sizes(window: Sequence[int], image: Sequence[int], ceil_mode: bool) -> Pair:
    """Return the output size (P, Q) of a pooling, below 1 if the window doesn't fit; with ceil_mode a last window may
    hang over, if it starts inside."""

    def one(length: int, size: int, stride: int, pad: int, dilation: int) -> int:
        room = length + 2 * pad - dilation * (size - 1) - 1
        count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (count - 1) * stride >= length + pad:
            count -= 1
        return count

    p, q = map(one, image, *PoolWindow.of(window))
    return (p, q)


def pool_output(window: Sequence[int], image: Sequence[int], ceil_mode: bool, dims: int = 2) -> Pair:
    """Return the output size (P, Q) of a pooling. Errors: RuntimeError if the window doesn't fit, TypeError
    (ceil_mode)."""
    size = pool_sizes(window, image, flag("ceil_mode", ceil_mode))
    if min(size) < 1:
        its, own = PoolWindow.of(window), slice(2 - dims, 2)  # of the directions those that the user has
        raise RuntimeError(
            f"kernel_size {its.kernel_size[own]} with dilation {its.dilation[own]} and padding {its.padding[own]} "
            f"doesn't fit into an input of {sizes(image, dims)}: the output would be {sizes(size, dims)}"
        )
    return size


def adaptive_output(output_size: Any, input: Sequence[int], dims: int = 2) -> Pair:
    """Return the output size (P, Q) of an adaptive pooling, from an argument as torch.nn.functional takes it (2-d,
    None: the input's size). Errors: TypeError, RuntimeError, ValueError (a tuple for an input without images)."""
    if not isinstance(output_size, Sequence) or isinstance(output_size, str):
        values = [integer("output_size", output_size)] * dims
    elif len(output_size) != dims:
        raise RuntimeError(f"output_size must be one int, or one for each of {dims} directions, but got {output_size}")
    elif dims == 1:
        values = list(output_size)
    elif len(input) <= dims:
        raise ValueError(
            f"input must have at least {dims + 1} dimensions for output_size {output_size}, but got {tuple(input)}"
        )
    else:
        values = [h if p is None else p for p, h in zip(output_size, input[-dims:], strict=True)]
    size = pair("output_size", values, 0, dims)
    return (1, size[1]) if dims == 1 else size


def unpool_output(
    kernel_size: Any, stride: Any, padding: Any, output_size: Any, image: Sequence[int], dims: int = 2
) -> Pair:
    """Return the output size (H, W) of an unpooling of images (P, Q), from arguments as
    torch.nn.functional.max_unpool2d takes them. Errors: ValueError for an output_size that no pooling by this window
    brings to (P, Q)."""
    (size, step), pad = _pool_steps(kernel_size, stride, dims), pair("padding", padding, 0, dims)
    usual = tuple((image[i] - 1) * step[i] + size[i] - 2 * pad[i] for i in range(2))
    if output_size is None:
        if min(usual) < 0:
            raise ValueError(
                f"padding {pad[2 - dims :]} leaves an output of {sizes(usual, dims)}; give less, or an output_size"
            )
        return usual  # type: ignore[return-value]
    if not isinstance(output_size, Sequence) or isinstance(output_size, str):
        raise TypeError(f"output_size must be a sequence of {dims} or {dims + 2} ints, but got {output_size!r}")
    given = tuple(integer("output_size", size) for size in output_size)
    if len(given) == dims + 2:
        given = given[2:]
    if len(given) != dims:
        raise ValueError(f"output_size must have {dims} or {dims + 2} elements, but got {tuple(output_size)}")
    given = (1, *given) if dims == 1 else given
    for i in range(2 - dims, 2):
        if not usual[i] - step[i] < given[i] < usual[i] + step[i]:
            raise ValueError(
                f"output_size must differ from {usual[2 - dims :]} by less than stride {step[2 - dims :]} in each "
                f"direction, but got {tuple(output_size)}"
            )
    return given


def check_images(input: Sequence[int], may_be_empty: Sequence[int] = (0,), dims: int = 2) -> None:
    """Errors: RuntimeError unless input is a batch of images, of which only these dimensions may be empty."""
    if len(input) != 4 or any(size == 0 and d not in may_be_empty for d, size in enumerate(input)):
        kind = "4-D (N, C, H, W) or 3-D (C, H, W)" if dims == 2 else "3-D (N, C, W) or 2-D (C, W)"
        raise RuntimeError(
            f"input must be {kind} with only the batch possibly empty, but got shape {shape(input, dims)}"
        )


def check_pooled(input: Sequence[int], output: Sequence[int], window: Sequence[int]) -> None:
    """Errors: RuntimeError unless output is a size that the window leads to from the input's."""
    if window and tuple(output) not in (pool_sizes(window, input[2:], mode) for mode in (False, True)):
        raise RuntimeError(f"output_size {tuple(output)} is not that of window {tuple(window)} over {tuple(input)}")

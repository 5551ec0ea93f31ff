"""Memory layouts: channels_last, spans, rows of pixels; and whole parts of a size."""

from collections.abc import Sequence


def cdiv(size: int, part: int) -> int:
    """Return how many parts cover the size. (Triton's own takes some microseconds on the host.)"""
    return -(-size // part)


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True if PyTorch propagates channels_last from a 4-D tensor with these strides. (Its own stride rule:
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
    """Return the largest offset, in elements, that indexing this tensor can reach, plus one."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 0)


def row_stride(size: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the stride, in elements, of the pixels of images of this size (n, h, w) and these strides, if all pixels
    lie in one row of that stride; else None."""
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

"""Window arithmetic on plain integers, against what it stands for: padding, pixels in a row, taps in an image."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from cnn_triton import functional
from cnn_triton.kernels.window import convolution, layout, pooling


@pytest.mark.parametrize("dilation", [1, (1, 2), 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 2), (5, 4)], ids=str)
def test_same(size, dilation, device):
    """padding='same' is PyTorch's, which gives an odd pixel to the bottom and the right."""
    x, w = torch.randn(1, 2, 9, 8, device=device).double(), torch.randn(3, 2, *size, device=device).double()
    ours = functional.conv2d(x, w, padding="same", dilation=dilation)
    torch.testing.assert_close(ours, F.conv2d(x, w, padding="same", dilation=dilation), rtol=1e-12, atol=1e-12)


def test_row_stride():
    """The stride of pixels that lie in one row, evenly; None if they don't."""
    stride = layout.row_stride
    assert stride((2, 3, 4), (12, 4, 1)) == 1
    assert stride((2, 3, 4), (120, 40, 10)) == 10
    assert stride((2, 1, 4), (40, 999, 10)) == 10, "a direction of one pixel may have any stride"
    assert stride((2, 3, 4), (121, 40, 10)) is None, "a gap behind each image"
    assert stride((2, 3, 4), (150, 50, 10)) is None, "a gap behind each row"
    assert stride((2, 3, 4), (60, 20, 10)) is None, "rows that overlap"
    assert stride((1, 3, 4), (0, 1, 3)) is None, "columns first"


def test_pool_sizes():
    """PyTorch's sizes, also where a last window would start in the padding behind the image."""
    different = 0
    for size, stride, dilation, ceil in itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (False, True)):
        for pad, image in itertools.product(range(size // 2 + 1), range(dilation * (size - 1) + 1, 9)):
            window = ((size,) * 2, (stride, 1), (pad, 0), (dilation, 1))
            x = torch.empty(1, 1, image, 9, device="meta")
            right = F.max_pool2d(x, *window, ceil_mode=ceil).shape[2:]
            assert pooling.pool_sizes(sum(window, ()), x.shape[2:], ceil) == right, (window, image, ceil)
            different += right != pooling.pool_sizes(sum(window, ()), x.shape[2:], False)
    assert different


def test_taps_meet():
    """True exactly where every tap reads a pixel of the image for some pixel of the result."""
    both = set()
    for size, stride, pad, dilation in itertools.product((1, 2, 3), (1, 2, 3), (0, 1, 3), (1, 2)):
        walk = convolution.Window((size, 1), (stride, 1), (pad, pad, 0, 0), (dilation, 1)).walks(False)[0]
        for image, result in itertools.product(range(1, 6), range(1, 5)):
            reads = [[p * stride - pad + r * dilation for p in range(result)] for r in range(size)]
            right = all(any(0 <= h < image for h in tap) for tap in reads)
            assert convolution.taps_meet(walk, image, result) == right, (walk, image, result)
            both.add(right)
    assert both == {True, False}

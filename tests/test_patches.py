"""Pools whose threads take patches of windows, bit by bit: at sizes around the patches' edges, in both layouts."""

import itertools
import random

import pytest
import torch

from checks import assert_right, kernels_only
from cnn_triton.kernels.core.tensors import channels_last
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, patches
from cnn_triton.kernels.window import pooling
from cnn_triton.simulator import simulating
from simulated import simulated

WINDOWS = ((3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 1, 1), (5, 3, 2), (4, 2, 2), (3, 3, 0), (1, 1, 0), (5, 2, 2))
DIVISORS = ((True, None, False), (False, None, True), (True, None, True), (True, 5, False), (False, None, False))
COMPILED = (
    ((3, 1, 1), torch.bfloat16), ((3, 2, 1), torch.bfloat16), ((2, 2, 0), torch.float16), ((3, 1, 1), torch.float32),
    ((3, 2, 0), torch.float64),
)  # fmt: skip
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def sizes(size, stride, padding, ceil_mode):
    """(window, image, output) of images up to 17 wide."""
    window = pooling.pool_window(size, stride, padding)
    for width in range(1, 18):
        image = ((5 * width) % 11 + 1, width)
        output = pooling.pool_sizes(window, image, ceil_mode)
        if min(output) > 0:
            yield window, image, output


@pytest.fixture(params=[0, 1 << 30], ids=["high", "low"])
def _high(request, monkeypatch):
    """Patches of many rows, or of few, however large the images are."""
    monkeypatch.setattr(patches, "FEWEST", request.param)


def same(ours, theirs):
    return torch.equal(ours.nan_to_num(7.5), theirs.nan_to_num(7.5)) and ours.stride() == theirs.stride()


def odd(shape, layout):
    """Few numbers, so that many are equal, and among them NaN and infinities."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, float("nan"), float("inf"), *[float("-inf")] * 5])
    return values[torch.randint(len(values), shape)].bfloat16().to(memory_format=layout)


def integers(shape, layout):
    return torch.randint(-4, 5, shape).bfloat16().to(memory_format=layout)


@pytest.mark.usefixtures("_high")
@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("how", WINDOWS, ids=str)
def test_max(how, form, device):
    """Values, winners, indices and gradients."""
    for i, (window, image, output) in enumerate(sizes(*how, False)):
        check_max(odd((2, 3, *image), LAYOUTS[form]).to(device), window, output, i % 2 == 0)


def check_max(x, window, output, indices):
    args = (x, output, window, True, indices)
    assert patches.serves(pooling.pool_axes(window, x.shape[2:], output))
    with kernels_only("max_pool2d"):
        ours = max_pool2d.MAX_POOL2D.launch(*args)
    for our, their in zip(ours, max_pool2d.MAX_POOL2D.reference(*args), strict=True):
        assert same(our, their), (x.shape, output)
    layout = torch.channels_last if channels_last(x) else torch.contiguous_format
    grad = integers(ours[0].shape, layout).to(x)
    args = (grad, ours[1], x.shape, window, channels_last(x))
    with kernels_only("max_pool2d_input_grad"):
        ours = max_pool2d.MAX_POOL2D_INPUT_GRAD.launch(*args)
    assert same(ours, max_pool2d.MAX_POOL2D_INPUT_GRAD.reference(*args)), (x.shape, output)


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])
@simulated
def test_compiled_max(chip):
    """Compiled code, of patches of many rows, in some of the dtypes and layouts: NaN, ties and infinities as well."""
    few, draw = patches.FEWEST, random.Random(torch.initial_seed())
    patches.FEWEST = 0
    try:
        for (how, dtype), layout in draw.sample([*itertools.product(COMPILED, LAYOUTS.values())], 3):
            window, size = pooling.pool_window(*how), draw.choice([(19, 24), (17, 21)])
            x = odd((2, draw.choice([8, 11]), *size), layout).to(dtype)
            with simulating(chip, races=True) as run:
                check_max(x, window, pooling.pool_sizes(window, size, False), True)
            assert not [str(found) for found in run.findings if not found.is_note]
    finally:
        patches.FEWEST = few


@pytest.mark.usefixtures("_high")
@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("how", WINDOWS, ids=str)
def test_average(how, form, device):
    """Divisors: of whole windows, of what is inside, of windows that hang over, one for all."""
    for i, (padding, divisor, ceil_mode) in enumerate(DIVISORS):
        for window, image, output in [*sizes(*how, ceil_mode)][i :: len(DIVISORS)]:
            x = integers((2, 3, *image), LAYOUTS[form]).to(device)
            args = (x, output, window, padding, divisor)
            with kernels_only("avg_pool2d"):
                y = avg_pool2d.AVG_POOL2D.launch(*args)
            assert_right(avg_pool2d.AVG_POOL2D, args, (y,))
            args = (integers(y.shape, LAYOUTS[form]).to(device), x.shape, window, padding, divisor, channels_last(x))
            with kernels_only("avg_pool2d_input_grad"):
                dx = avg_pool2d.AVG_POOL2D_INPUT_GRAD.launch(*args)
            assert_right(avg_pool2d.AVG_POOL2D_INPUT_GRAD, args, (dx,))


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("sized", [(1, 40), (40, 1), (7, 56)], ids=str)
def test_long_images(sized, form, device):
    """Rows and columns of many patches."""
    window = pooling.pool_window((3 if sized[0] > 1 else 1, 3 if sized[1] > 1 else 1), 1 if 1 in sized else 2, 0)
    x = odd((3, 16, *sized), LAYOUTS[form]).to(device)
    args = (x, pooling.pool_sizes(window, sized, False), window, True, True)
    with kernels_only("max_pool2d"):
        ours = max_pool2d.MAX_POOL2D.launch(*args)
    for our, their in zip(ours, max_pool2d.MAX_POOL2D.reference(*args), strict=True):
        assert same(our, their)


def test_what_is_not_served():
    """Dilation, gaps between windows, large and ragged windows, and gradients of pixels in many windows."""
    image = (20, 20)
    for window in ((3, 2, 1, 2), (2, 3, 0, 1), (6, 2, 1, 1)):
        window = pooling.pool_window(*window)
        assert not patches.serves(pooling.pool_axes(window, image, pooling.pool_sizes(window, image, False)))
    assert not patches.serves(pooling.pool_axes((), image, (5, 6)))
    assert patches.serves(pooling.pool_axes((), image, (5, 10)))
    each = pooling.pool_axes(pooling.pool_window(5, 1, 2), image, image)
    assert patches.serves(each)
    assert not patches.serves(each, True)

"""Blocks of what streams: every one that can be picked computes right results, also the last, which is smaller."""

import pytest
import torch

from cases import draw
from checks import assert_accurate, kernels_only
from cnn_triton.kernels.core import chips, replay
from cnn_triton.kernels.matrix import activation_grad, batch_norm, conv2d, pool_code
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, unpool2d
from cnn_triton.kernels.tiles import pick, shapes


@pytest.fixture(autouse=True)
def _deciding():
    """These tests change what is picked from call to call."""
    with replay.deciding():
        yield


@pytest.mark.cover
@pytest.mark.parametrize("shape", sorted({s for chip in chips.CHIPS for s in pick.strip_shapes(chip)}), ids=str)
def test_strip(shape, monkeypatch, device):
    """Everything that streams, with every block that it may be picked, one over its edges."""
    monkeypatch.setattr(pick, "strip_shape", lambda *problem: shape)
    channels, height = shape.channels + 1, 2 * (shape.pixels // 16 + 1)
    x = draw((1, channels, height, 32), torch.float32, "channels_last").to(device)
    half = (height // 2, 16)
    reflect = ((1, 1), (0, 0, 1, 1), (1, 1), channels, "reflect")
    weight = torch.ones(channels, 1, 1, 3, device=device)
    same = ((1, 1), (1, 1, 1, 1), (1, 1), channels, "zeros")
    depthwise = draw((channels, 1, 3, 3), torch.float32, "contiguous").to(device)
    moments = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
    scale = draw((channels,), torch.float32, "contiguous").to(device)
    for output, window in ((half, (2, 2, 2, 2, 0, 0, 1, 1)), (half, ())):
        y, winner, indices = max_pool2d.MAX_POOL2D.reference(x, output, window, True, True)
        code = torch.where(y > 0, winner, 4).to(torch.uint8)[None]
        for op, *args in (
            (max_pool2d.MAX_POOL2D, x, output, window, True, True),
            (max_pool2d.MAX_POOL2D_INPUT_GRAD, y, winner, x.shape, window, True),
            (max_pool2d.MAX_POOL2D_AT_WINNER, x, winner, window),
            (avg_pool2d.AVG_POOL2D, x, output, window, True, None),
            (avg_pool2d.AVG_POOL2D_INPUT_GRAD, y, x.shape, window, True, None, True),
            (avg_pool2d.AVG_POOL2D, x, (height // 2 + 1, 17), (), True, None),
            (avg_pool2d.AVG_POOL2D, x, (1, 1), (), True, None),
            (avg_pool2d.AVG_POOL2D_INPUT_GRAD, x[:, :, :1, :1], x.shape, (), True, None, True),
            (unpool2d.MAX_UNPOOL2D, y, indices, x.shape[2:]),
            (unpool2d.MAX_UNPOOL2D_INPUT_GRAD, x, indices),
            (activation_grad.ACTIVATION_GRAD, x, x, "relu"),
            (conv2d.CONV2D_INPUT_GRAD, x, weight, x.shape, *reflect, True),
            (conv2d.CONV2D, x, depthwise, scale, None, None, None, *same, "relu"),
            (conv2d.CONV2D_INPUT_GRAD, x, depthwise, x.shape, *same, True),
            (conv2d.CONV2D_WEIGHT_GRAD, x, x, depthwise.shape, *same, True),
            (batch_norm.CONV2D_MOMENTS, x, depthwise, scale, *same),
            (batch_norm.BATCH_NORM, x, *moments, scale, None, x, None, 1e-5, "relu"),
            (batch_norm.BATCH_NORM_GRAD, x, x, *moments, scale, None, 1e-5, "relu"),
            (pool_code.RELU_POOL2D_INPUT_GRAD, y, code, x.shape, (2, 2), False, True),
            (pool_code.RELU_POOL2D_AT_OPEN, x, code, (2, 2), False),
        ):
            with kernels_only(op.name):
                ours = op.launch(*args)
            theirs = op.reference(*args)
            wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
            exact = op.reference(*wide)
            for mine, right, best in zip(
                *(r if isinstance(r, tuple) else (r,) for r in (ours, theirs, exact)), strict=True
            ):
                if mine.is_floating_point():
                    assert_accurate(mine, right, best, op.name)
                else:
                    assert torch.equal(mine, right), op.name


def test_chunks_of_pixels(monkeypatch, device):
    """Sums over pixels, whose last program has fewer strips than the others."""
    monkeypatch.setattr(pick, "strip_shape", lambda *problem: shapes.StripShape(16, 4))
    x = draw((1, 3, 7, 10), torch.float32, "contiguous").to(device)
    with kernels_only("bias_grad"):
        ours = activation_grad.BIAS_GRAD.launch(x)
    assert_accurate(ours, activation_grad.BIAS_GRAD.reference(x), activation_grad.BIAS_GRAD.reference(x.double()))

"""Tiles: every one that can be picked computes right results, and the picks are sensible and repeatable."""

import subprocess
import sys

import pytest
import torch

from cases import draw
from checks import assert_accurate, kernels_only
from cnn_triton.kernels import conv2d, epilogue, pool2d, tiles

CHIPS = [chip for chip in tiles.CHIPS if chip != "interpreter"]
DTYPES = {
    "half": (torch.float16, torch.bfloat16),
    "tf32": (torch.float32,),
    "float": (torch.float32,),
    "double": (torch.float64,),
}


def blocks(every):
    """The distinct (arithmetic, m, n, k, packed) of all chips: warps and stages don't change what is computed, and
    are compiled in test_compile.py."""
    found = {
        (kind, *tile[:3], tile.packed) for kind in tiles.ARITHMETIC for chip in CHIPS for tile in every(kind, chip)
    }
    return sorted(found)


def name(block):
    kind, m, n, k, packed = block
    return f"{kind}-{m}x{n}x{k}{'-packed' if packed else ''}"


def run(op, make, dtype, monkeypatch, device, pick, tile):
    args = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in make(dtype))
    wide = tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)
    theirs, exact = op.reference(*args), op.reference(*wide)
    monkeypatch.setattr(tiles, pick, lambda *problem: tile)
    with kernels_only():
        ours = op.launch(*args)
    assert_accurate(ours, theirs, exact)


WINDOW = ((1, 2), (1, 1, 1, 1), (1, 1), 1)  # stride, pads, dilation, groups


def layer(k, c, pixels):
    """Sizes of a 3 x 3 layer of more than `pixels` output pixels: input, weight, output."""
    height = -(-pixels // 13)
    return (1, c, height, 26), (k, c, 3, 3), (1, k, height, 13)


@pytest.mark.cover
@pytest.mark.parametrize("block", blocks(tiles.every_matrix_tile), ids=name)
def test_matrix_tile(block, monkeypatch, device):
    """Forward and input gradient, at sizes one over the edges of the tile in every direction."""
    kind, m, n, k, packed = block
    tile = tiles.Tile(m, n, k, packed=packed)
    few = 7 if packed else k + 1  # channels of the reduction
    form = "channels_last"
    for dtype in DTYPES[kind]:
        size, weight, _ = layer(n + 1, few, m + 1)
        make = lambda d: (draw(size, d, form), draw(weight, d, form), draw(weight[:1], d, form), *WINDOW, "relu")  # noqa: E731, B023
        run(conv2d.CONV2D, make, dtype, monkeypatch, device, "pick_matrix", tile)
        size, weight, output = layer(few, n + 1, m // 2 + 1)
        make = lambda d: (draw(output, d, form), draw(weight, d, form), size, *WINDOW, True)  # noqa: E731, B023
        run(conv2d.CONV2D_INPUT_GRAD, make, dtype, monkeypatch, device, "pick_matrix", tile)


@pytest.mark.cover
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("block", blocks(tiles.every_weight_grad_tile), ids=name)
def test_weight_grad_tile(block, split, monkeypatch, device):
    """Weight gradient, at sizes one over the edges of the tile, with and without a split sum."""
    kind, m, n, k, packed = block
    tile = tiles.Tile(m, n, k, packed=packed, split=split)
    channels = n // 9 + 1 if packed else n + 1
    for dtype in DTYPES[kind]:
        size, weight, output = layer(m + 1, channels, 2 * k + 1)
        form = "channels_last"
        make = lambda d: (draw(output, d, form), draw(size, d, form), weight, *WINDOW, True)  # noqa: E731, B023
        run(conv2d.CONV2D_WEIGHT_GRAD, make, dtype, monkeypatch, device, "pick_weight_grad", tile)


@pytest.mark.parametrize("strip", sorted({s for chip in tiles.CHIPS for s in tiles.strips(chip)}), ids=str)
def test_strip(strip, monkeypatch, device):
    """Pools and epilogue gradients with every block of a streaming kernel, one over its edges."""
    monkeypatch.setattr(tiles, "pick_strip", lambda *problem: strip)
    x = draw((1, strip.channels + 1, 2 * (strip.pixels // 16 + 1), 32), torch.float32, "channels_last").to(device)
    pool = ((2, 2), (2, 2), (0, 0))
    with kernels_only():
        y, winner, indices = pool2d.MAX_POOL2D.launch(x, *pool, (1, 1), False, True, True)
        grad = pool2d.MAX_POOL2D_INPUT_GRAD.launch(y, winner, x.shape, *pool, (1, 1), True)
        average = pool2d.AVG_POOL2D.launch(x, *pool, False, True, None)
        masked, bias = epilogue.ACTIVATION_GRAD.launch(x, x, "relu")
    right = pool2d.MAX_POOL2D.reference(x, *pool, (1, 1), False, True, True)
    assert torch.equal(y, right[0])
    assert torch.equal(winner, right[1])
    assert torch.equal(indices, right[2])
    assert torch.equal(grad, pool2d.MAX_POOL2D_INPUT_GRAD.reference(y, winner, x.shape, *pool, (1, 1), True))
    exact = pool2d.AVG_POOL2D.reference(x.double(), *pool, False, True, None)
    assert_accurate(average, pool2d.AVG_POOL2D.reference(x, *pool, False, True, None), exact)
    theirs, exact = (epilogue.ACTIVATION_GRAD.reference(t, t, "relu") for t in (x, x.double()))
    assert torch.equal(masked, theirs[0])
    assert_accurate(bias, theirs[1], exact[1])


# ResNet-50's distinct convolutions: channels in, out, window, output size.
RESNET50 = [
    (3, 64, 7, 112), (64, 64, 1, 56), (64, 64, 3, 56), (64, 256, 1, 56), (256, 64, 1, 56), (256, 128, 1, 56),
    (128, 128, 3, 28), (128, 512, 1, 28), (256, 512, 1, 28), (512, 128, 1, 28), (512, 256, 1, 28), (256, 256, 3, 14),
    (256, 1024, 1, 14), (512, 1024, 1, 14), (1024, 256, 1, 14), (1024, 512, 1, 14), (512, 512, 3, 7),
    (512, 2048, 1, 7), (1024, 2048, 1, 7), (2048, 512, 1, 7),
]  # fmt: skip


def picks(kind, chip, batch=32):
    """The tiles of ResNet-50's convolutions: forward, input gradient, weight gradient."""
    for c, k, r, p in RESNET50:
        m = batch * p * p
        yield tiles.pick_matrix(m, k, c, r * r, kind, chip)
        yield tiles.pick_matrix(m, c, k, r * r, kind, chip)
        yield tiles.pick_weight_grad(k, c, r * r, m, kind, chip)


def test_picks_suit_the_problem():
    forward = {tiles.pick_matrix(32 * p * p, k, c, r * r, "half", "sm_90") for c, k, r, p in RESNET50}
    assert len(forward) >= 6, forward
    tile = tiles.pick_matrix(32 * 56 * 56, 256, 256, 9, "half", "sm_90")
    assert tile.m >= 128
    assert tile.n >= 128


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kind", tiles.ARITHMETIC)
def test_picks_are_among_the_tested(kind, chip):
    """No problem gets a tile outside the lists that the tests run over."""
    matrix, weight = set(tiles.every_matrix_tile(kind, chip)), set(tiles.every_weight_grad_tile(kind, chip))
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        m, n, c, taps = (int(2 ** (torch.rand((), generator=generator) * bits)) for bits in (20, 12, 12, 6))
        assert tiles.pick_matrix(m, n, c, taps, kind, chip) in matrix
        assert tiles.pick_weight_grad(n, c, taps, m, kind, chip)._replace(split=1) in weight


def test_two_processes_pick_the_same():
    code = (
        "from test_tiles import *; print([t for chip in CHIPS for kind in tiles.ARITHMETIC for t in picks(kind, chip)])"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert b"Tile" in first.stdout

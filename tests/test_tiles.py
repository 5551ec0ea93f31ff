"""Tiles: every one that can be picked computes right results."""

import functools
import math
import zlib
from typing import NamedTuple

import pytest
import torch
from wide import exact

import picked
from bench.layers import BATCH, LAYERS
from cases import draw
from checks import assert_accurate, assert_code, kernels_only
from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.kernels.base.precision import TF32_EPS, float32_precision
from cnn_triton.kernels.core import replay
from cnn_triton.kernels.matrix import batch_norm, conv2d, conv_pool, locally_connected2d
from cnn_triton.kernels.tiles import model, pick, shapes
from cnn_triton.kernels.window import convolution
from combinations import turns


class Block(NamedTuple):
    """What of a tile decides the results; warps, stages and programs don't, and are compiled in test_compile.py."""

    kind: str
    weight_grad: bool
    m: int
    n: int
    k: int
    packed: bool
    box: tuple[int, int, int] | None
    parts: int
    taps: int = 1

    def __repr__(self):
        way = "x".join(map(str, self.box)) if self.box else "packed" if self.packed else "gathered"
        what = "weight_grad" if self.weight_grad else "product"
        counts = f"-{self.parts}_parts" * (self.parts > 1) + f"-{self.taps}_taps" * (self.taps > 1)
        return f"{what}-{self.kind}-{self.m}x{self.n}x{self.k}-{way}{counts}"


def block(kind, weight_grad, tile):
    return Block(kind, weight_grad, *tile[:3], tile.packed, tile.box, 3 if tile.parts > 1 else 1, tile.taps)


@functools.cache
def boxes(pixels):
    """The boxes of so many pixels that the results of the networks' layers and of 60 random ones are tiled by."""
    layers = [(BATCH, layer) for layer in LAYERS] + list(picked.random_layers(60))
    sizes = {(n, side, side) for n, layer in layers for side in (layer.h, layer.p)}
    sizes |= {(1, 1, n * p * q) for n, p, q in sizes}
    return sorted({model.box_of(pixels, images)[0] for images in sizes})


def blocks(seed, wanted=lambda tile: True, extra=""):
    """Those of every tile that may be picked with these extra registers, a weight gradient's whole and in parts; of a
    tile of boxes, whose sides know nothing of it, two boxes in turn. Without a seed, all."""
    found = {
        block(kind, weight_grad, tile._replace(parts=parts))
        for kind in shapes.ARITHMETIC
        for chip in picked.chips(kind)
        for weight_grad in (False, True)
        for tile in pick.every_tile(kind, chip, weight_grad, extra)
        for parts in (1, 3)
        if weight_grad or parts == 1
    }
    for tile, turn in turns(sorted(filter(wanted, found), key=repr), lambda tile: None, seed or 0):
        sides = boxes(math.prod(tile.box)) if tile.box else [None]
        if seed is not None and tile.box:
            sides = [sides[(2 * turn + i) % len(sides)] for i in range(2)]
        for box in sides:
            yield pytest.param(tile._replace(box=box), id=repr(tile._replace(box=box)))


@pytest.fixture(autouse=True)
def _deciding():
    """These tests change what is picked from call to call."""
    with replay.deciding():
        yield


@pytest.fixture
def run(monkeypatch, device):
    """Runs an operator with a tile on fresh values of these shapes, and compares it with float64."""

    def compare(op, tile, given, *rest):
        name = "weight_grad" if tile.weight_grad else "product"
        forced = shapes.Tile(
            *tile[2:5], packed=tile.packed, parts=tile.parts, box=tile.box, programs=3, taps=tile.taps
        )  # fmt: skip
        monkeypatch.setattr(pick, name, lambda *problem: forced)
        half = (torch.float16, torch.bfloat16)[zlib.crc32(repr(tile).encode()) % 2]
        dtype = half if tile.kind == "half" else picked.DTYPES[tile.kind]
        args = [draw(s, dtype, "channels_last").to(device) if isinstance(s, tuple) else s for s in given]
        wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        with float32_precision("tf32" if tile.kind == "tf32" else "ieee"), kernels_only():
            ours = op.launch(*args, *rest)
        every = (ours, op.reference(*args, *rest), exact(op, (*wide, *rest)))
        for mine, right, best in zip(*(r if isinstance(r, tuple) else (r,) for r in every), strict=True):
            if mine.is_floating_point():
                assert_accurate(mine, right, best, eps=TF32_EPS if tile.kind == "tf32" and not INTERPRETING else None)
            else:
                assert_code(mine, (*args, *rest), (*wide, *rest))

    return compare


def sizes(tile):
    """(n, p, q) of a result one over the edges of the tile's pixels in every direction."""
    if tile.box:
        return tuple(side + (side > 1) for side in tile.box)
    return (1, -(-((tile.k if tile.weight_grad else tile.m) + 1) // 13), 13)


def window(stride):
    """Stride, pads, dilation, groups and padding mode of a 3 x 3 convolution."""
    return ((1, stride), (1, 1, 1, 1), (1, 1), 1, "zeros")


@pytest.mark.cover
@pytest.mark.rotated("tile", functools.partial(blocks, wanted=lambda tile: not tile.weight_grad))
def test_product_tile(tile, run):
    """Forward and input gradient of 3 x 3 windows, at sizes over the edges of the tile."""
    n, p, q = sizes(tile)
    channels = 7 if tile.packed else 2 * tile.k if tile.box else tile.k + 1
    columns = tile.n + (8 if tile.box else 1)
    x, w = (n, channels, p, 2 * q), (columns, channels, 3, 3)
    run(conv2d.CONV2D, tile, (x, w, w[:1]), None, None, None, *window(2), "relu")
    for stride in (1, 2) if tile.box else (2,):
        # Boxes of a result with phases take whole columns.
        columns = tile.n if tile.box and stride == 2 else columns
        y, w, dx = (n, channels, p, q), (channels, columns, 3, 3), (n, columns, p, stride * q)
        run(conv2d.CONV2D_INPUT_GRAD, tile, (y, w), dx, *window(stride), True)


def blocks_beside(*words):
    """Those of every tile of a product that may be picked with this beside its sums."""
    found = {
        block(kind, False, tile)
        for kind in shapes.ARITHMETIC
        for chip in picked.chips(kind)
        for word in words
        for tile in pick.every_tile(kind, chip, False, word)
    }
    return sorted(found, key=repr)


@pytest.mark.cover
@pytest.mark.parametrize("tile", blocks_beside("number", "two numbers", *shapes.AT_ONCE.values()), ids=repr)
def test_pooled_tile(tile, run):
    """Convolution, ReLU and pooling, at sizes of the result over the edges of the tile."""
    average = zlib.crc32(repr(tile).encode()) % 3 == 0
    n, p, q = sizes(tile)
    channels = 7 if tile.packed else 2 * tile.k if tile.box else tile.k + 1
    x, w = (n, channels, 2 * p, 4 * q), (tile.n + 1, channels, 3, 3)
    run(conv_pool.CONV2D_POOL, tile, (x, w, w[:1], None), *window(2), (2, 2), average)


@pytest.mark.cover
@pytest.mark.parametrize("tile", blocks_beside("epilogue", "moments"), ids=repr)
def test_epilogue_tile(tile, run):
    """Everything that an epilogue loads and stores, at sizes over the edges of the tile."""
    n, p, q = sizes(tile)
    channels = 7 if tile.packed else 2 * tile.k if tile.box else tile.k + 1
    columns = tile.n + (8 if tile.box else 1)
    x, w, y = (n, channels, p, 2 * q), (columns, channels, 3, 3), (n, columns, p, q)
    run(conv2d.CONV2D_WITH_PREACTIVATION, tile, (x, w, w[:1], w[:1], y), None, *window(2), "silu")
    run(batch_norm.CONV2D_MOMENTS, tile, (x, w, w[:1]), *window(2))


@pytest.mark.cover
@pytest.mark.rotated("tile", functools.partial(blocks, wanted=lambda tile: not tile.box, extra="code, 1 B"))
def test_pooled_grad_tile(tile, run, device):
    """Gradients that read the pooled one."""
    average = zlib.crc32(repr(tile).encode()) % 3 == 0
    n, p, q = sizes(tile)
    channels, columns = 7 if tile.packed else tile.k + 1, tile.n + 1
    if tile.weight_grad:
        channels, columns = tile.m + 1, tile.n // 9 + 1 if tile.packed else tile.n + 1
    code = torch.randint(0, 16 if average else 5, (1, n, channels, p // 2 + 1, q // 2 + 1), dtype=torch.uint8).to(
        device
    )
    x, w = (n, columns, 2 * (p // 2) + 2, 2 * (q // 2) + 3), (channels, columns, 3, 3)
    grad = tuple(code.shape[1:])
    of = (not tile.weight_grad, tile.weight_grad)
    run(conv_pool.CONV2D_POOL_GRAD, tile, (grad, code, x, w), *window(1), (2, 2), average, *of, False)


@pytest.mark.cover
@pytest.mark.rotated("tile", functools.partial(blocks, wanted=lambda tile: tile.weight_grad))
def test_weight_grad_tile(tile, run):
    """Weight gradient of 3 x 3 windows, at sizes over the edges of the tile."""
    n, p, q = sizes(tile)
    over = 8 if tile.box else 1
    outputs, channels = tile.m + over, tile.n // 9 + 1 if tile.packed else tile.n + over
    y, x, w = (n, outputs, p, q), (n, channels, p, 2 * q), (outputs, channels, 3, 3)
    run(conv2d.CONV2D_WEIGHT_GRAD, tile, (y, x), w, *window(2), True)


def blocks_placed(weight_grad, *words):
    """Those of every tile of a locally connected product that may be picked with one of these beside its sums."""
    found = {
        block(kind, weight_grad, tile)
        for kind in shapes.ARITHMETIC
        for chip in picked.chips(kind)
        for word in words
        for tile in pick.every_tile(kind, chip, weight_grad, word, True)
    }
    return sorted(found, key=repr)


@pytest.mark.cover
@pytest.mark.parametrize("tile", blocks_placed(False, "", "epilogue"), ids=repr)
def test_placed_tile(tile, run):
    """Locally connected: forward with everything that follows it, input gradient, at sizes over the tile's edges."""
    channels, columns = 7 if tile.packed else tile.k + 1, tile.n + 1
    x, w, y = (tile.m + 1, channels, 2, 4), (2, 2, columns, 3, 3, channels), (tile.m + 1, columns, 2, 2)
    each, vector, window = (2, 2, columns), (columns,), window_placed(2)
    run(
        locally_connected2d.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, tile, (x, w, each, vector, y), None, *window, "silu"
    )
    back = (tile.m + 1, channels, 2, 2), (2, 2, channels, 3, 3, columns)
    run(locally_connected2d.LOCALLY_CONNECTED2D_INPUT_GRAD, tile, back, (tile.m + 1, columns, 2, 4), *window, True)


@pytest.mark.cover
@pytest.mark.parametrize("tile", blocks_placed(True, ""), ids=repr)
def test_placed_weight_grad_tile(tile, run):
    """Weight gradient of locally connected layers, at sizes over the tile's edges."""
    outputs, channels = tile.m + 1, tile.n // 9 + 1 if tile.packed else tile.n + 1
    y, x, w = (tile.k + 1, outputs, 2, 2), (tile.k + 1, channels, 2, 4), (2, 2, outputs, 3, 3, channels)
    run(locally_connected2d.LOCALLY_CONNECTED2D_WEIGHT_GRAD, tile, (y, x), w, *window_placed(2))


def window_placed(stride):
    """Stride, pads, dilation and groups of a 3 x 3 window."""
    return window(stride)[:-1]


def tiles_grouped():
    """Every tile of products in many narrow groups, by what of it decides the results."""
    found = {
        (kind, *tile[:3], tile.groups)
        for kind in shapes.ARITHMETIC
        for chip in picked.chips(kind)
        for tile in pick.every_grouped(kind, chip)
    }
    return sorted(found)


@pytest.mark.cover
@pytest.mark.parametrize("grouped", tiles_grouped(), ids=lambda grouped: "x".join(map(str, grouped)))
def test_grouped_tile(grouped, monkeypatch, run):
    """Forward, input gradient, weight gradient in narrow groups, at sizes over the edges of the tile."""
    kind, m, n, k, g = grouped
    for parts in (1, 3):
        forced = shapes.Tile(m, n, k, groups=g, parts=parts)
        monkeypatch.setattr(pick, "grouped", lambda *problem, forced=forced: forced)
        groups, inputs, outputs = g + 1, 3 + 2 * parts, n + 1 if parts == 1 else 5
        how = ((1, 2), (1, 1, 1, 1), (1, 1), groups, "zeros")
        q = m // 8 + 1
        x, w = (2, groups * inputs, 5, 2 * q), (groups * outputs, inputs, 3, 3)
        y = (2, groups * outputs, 5, q)
        tile = Block(kind, False, m, n, k, True, None, 1)
        run(conv2d.CONV2D_WEIGHT_GRAD, tile, (y, x), w, *how, True)
        if parts == 1:
            run(conv2d.CONV2D_WITH_PREACTIVATION, tile, (x, w, w[:1], w[:1], y), None, *how, "silu")
            run(conv2d.CONV2D_INPUT_GRAD, tile, (y, w), x, *how, True)


@pytest.mark.cover
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 8])
def test_rows(rows, size, monkeypatch, run):
    """Depthwise convolution in strips of so many rows, and windows up to those that are taken tap by tap."""
    monkeypatch.setattr(pick, "rows", lambda *problem: rows)
    tile = Block("float", False, 0, 0, 0, False, None, 1)
    for stride in (1, 2):
        how = ((stride, 1), (size // 2,) * 4, (1, 1), 3, "zeros")
        x, w = (2, 3, 8 * stride, 9), (6, 1, size, size)
        y = (2, 6, *convolution.conv_output(convolution.Window((size, size), *how[:3]), x[2:]))
        if not y[2] % rows:  # in a weight gradient rows must be whole
            run(conv2d.CONV2D_WEIGHT_GRAD, tile, (y, x), w, *how, True)
        run(conv2d.CONV2D, tile, (x, w, w[:1], None, y), None, *how, "relu")
        run(conv2d.CONV2D_INPUT_GRAD, tile, (y, w), x, *how, True)


def test_wide_groups_in_parts(run):
    """A weight gradient of wide groups whose sum is cut: what one part of one group is stays that in the workspace."""
    tile = Block("float", True, 32, 32, 32, False, None, 3)
    y, x, w = (2, 2 * 34, 9, 13), (2, 2 * 35, 9, 13), (2 * 34, 35, 1, 1)
    run(conv2d.CONV2D_WEIGHT_GRAD, tile, (y, x), w, (1, 1), (0, 0, 0, 0), (1, 1), 2, "zeros", True)


def test_phases_without_taps(run):
    """The input gradient of 1 x 1 windows at stride 2, in boxes: one of four phases has a tap, the others are 0."""
    tile = Block("half", False, 64, 64, 64, False, (1, 4, 16), 1)
    y, w, dx = (2, 64, 5, 17), (64, 64, 1, 1), (2, 64, 10, 34)
    run(conv2d.CONV2D_INPUT_GRAD, tile, (y, w), dx, (2, 2), (0, 0, 0, 0), (1, 1), 1, "zeros", True)


@pytest.mark.parametrize("across", [False, True])
def test_what_a_tap_does_not_read(across, monkeypatch, device):
    """A weight gradient in boxes that reach over the result: infinite pixels are in the sums of the taps that read
    them, and in no others."""
    turned = (lambda pair: pair[::-1]) if across else (lambda pair: pair)
    box, stride = (1, *turned((64, 1))), turned((2, 1))
    monkeypatch.setattr(pick, "weight_grad", lambda *problem: shapes.Tile(64, 64, 64, box=box, programs=1))
    x, grad = (draw((1, 64, *turned(size)), torch.float32, "channels_last").to(device) for size in ((34, 3), (17, 3)))
    x.select(3 if across else 2, -1).fill_(math.inf)
    how = ((64, 64, 3, 3), stride, (1, 1, 1, 1), (1, 1), 1, "zeros", True)
    ours = conv2d.CONV2D_WEIGHT_GRAD.launch(grad, x, *how)
    right = conv2d.CONV2D_WEIGHT_GRAD.reference(grad, x, *how)
    assert 0 < right.isfinite().sum() < right.numel()
    assert_accurate(ours, right, conv2d.CONV2D_WEIGHT_GRAD.reference(grad.double(), x.double(), *how))

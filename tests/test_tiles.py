"""Tiles: every one that can be picked computes right results, and the picks are sensible and repeatable."""

import functools
import itertools
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from wide import exact

import picked
from bench.layers import BATCH, LAYERS
from cases import draw
from checks import assert_accurate, assert_code, kernels_only
from cnn_triton.kernels.base.lang import INTERPRETING, tl, triton
from cnn_triton.kernels.base.precision import TF32_EPS, conv_precision, float32_precision, matmul_precision
from cnn_triton.kernels.core import chips, replay
from cnn_triton.kernels.matrix import activation_grad, batch_norm, conv2d, conv_pool, locally_connected2d, pool_code
from cnn_triton.kernels.matrix.loop import program_tile
from cnn_triton.kernels.matrix.problem import can_fetch, packed
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, unpool2d
from cnn_triton.kernels.tiles import model, pick, shapes
from cnn_triton.kernels.window import convolution
from combinations import turns

ROOT = Path(__file__).parents[1]


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

    def __repr__(self):
        way = "x".join(map(str, self.box)) if self.box else "packed" if self.packed else "gathered"
        what = "weight_grad" if self.weight_grad else "product"
        return f"{what}-{self.kind}-{self.m}x{self.n}x{self.k}-{way}" + f"-{self.parts}_parts" * (self.parts > 1)


def block(kind, weight_grad, tile):
    return Block(kind, weight_grad, *tile[:3], tile.packed, tile.box, 3 if tile.parts > 1 else 1)


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
        forced = shapes.Tile(*tile[2:5], packed=tile.packed, parts=tile.parts, box=tile.box, programs=3)
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
@pytest.mark.parametrize("tile", blocks_beside("number", "two numbers"), ids=repr)
def test_pooled_tile(tile, run):
    """Convolution, ReLU and pooling, at sizes of the result over the edges of the tile."""
    average = zlib.crc32(repr(tile).encode()) % 3 == 0
    n, p, q = sizes(tile)
    channels = 7 if tile.packed else 2 * tile.k if tile.box else tile.k + 1
    x, w = (n, channels, 2 * p, 4 * q), (tile.n + 1, channels, 3, 3)
    run(conv_pool.CONV2D_POOL, tile, (x, w, w[:1], None), *window(2), (2, 2), average)


@pytest.mark.cover
@pytest.mark.parametrize("tile", blocks_beside("epilogue"), ids=repr)
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


@pytest.mark.parametrize("kind", shapes.ARITHMETIC)
def test_grouped_picks_are_among_the_tested(kind):
    for chip in picked.chips(kind):
        for groups, outputs, inputs in itertools.product((2, 3, 32), (1, 4, 17, 32, 100), (2, 8, 32, 70)):
            problems = [shapes.Grouped(groups, 1000, outputs, 9 * inputs, crowded) for crowded in (False, True)]
            problems.append(shapes.Grouped(groups, outputs, 9 * inputs, 10**5, parts=True))
            for problem in problems:
                assert pick.grouped(problem, kind, chip)._replace(parts=1) in pick.every_grouped(kind, chip)


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


@pytest.mark.cover
@pytest.mark.parametrize("strip", sorted({s for chip in chips.CHIPS for s in pick.strips(chip)}), ids=str)
def test_strip(strip, monkeypatch, device):
    """Everything that streams, with every block that it may be picked, one over its edges."""
    monkeypatch.setattr(pick, "strip", lambda *problem: strip)
    channels, height = strip.channels + 1, 2 * (strip.pixels // 16 + 1)
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
    monkeypatch.setattr(pick, "strip", lambda *problem: shapes.Strip(16, 4))
    x = draw((1, 3, 7, 10), torch.float32, "contiguous").to(device)
    with kernels_only("bias_grad"):
        ours = activation_grad.BIAS_GRAD.launch(x)
    assert_accurate(ours, activation_grad.BIAS_GRAD.reference(x), activation_grad.BIAS_GRAD.reference(x.double()))


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


def test_boxes_are_aligned(device):
    """Boxes are fetched of adjacent channels, everything at multiples of 16 bytes."""

    def boxed(channels, dtype=torch.bfloat16, offset=0, last=True):
        memory = torch.empty(2 * 4 * 4 * channels + offset, dtype=dtype, device=device)[offset:]
        x = memory.view(2, 4, 4, channels).permute(0, 3, 1, 2) if last else memory.view(2, channels, 4, 4)
        return can_fetch(packed(x), (1, 1))

    assert boxed(8)
    assert boxed(4, torch.float32)
    assert not boxed(12)
    assert not boxed(6, torch.float32)
    assert not boxed(8, offset=4)
    assert not boxed(8, last=False)


@triton.jit
def order_kernel(out, rows, columns):
    row, column = program_tile(tl.program_id(0), rows, columns)
    tl.store(out + row * columns + column, tl.program_id(0) + 1)


def test_every_tile_has_a_program(device):
    """Bands of rows, also where the last has fewer, and of as many columns as there are."""
    for rows, columns in ((1, 1), (3, 5), (8, 2), (11, 3), (17, 1)):
        out = torch.zeros(rows, columns, dtype=torch.int32, device=device)
        order_kernel[(rows * columns,)](out, rows, columns)
        assert sorted(out.flatten().tolist()) == list(range(1, rows * columns + 1))
        assert out[:, 0][:8].tolist() == list(range(1, min(rows, 8) + 1)), "down a band first"


def test_tiles_fit():
    """The operands of a tile's steps under way are within the chip's shared memory."""
    size = {"half": 2, "tf32": 4, "float": 4, "double": 8}
    for kind in shapes.ARITHMETIC:
        for chip, weight_grad in itertools.product(picked.chips(kind), (False, True)):
            at = chips.CHIPS[chip]
            for tile in pick.every_tile(kind, chip, weight_grad):
                stages = tile.stages - at.amd  # AMD's compiler keeps one in registers
                assert (tile.m + tile.n) * tile.k * size[kind] * stages <= at.shared, (kind, chip, tile)


def test_stand_in():
    """A chip that is not in the table is taken for one that has no more than it; one that is too old is refused."""
    for name in chips.NAMES:
        assert chips.stand_in(name) == name
    for name in ("sm_88", "sm_110", "sm_130"):
        assert chips.stand_in(name) == "sm_89"
    assert (chips.stand_in("gfx1030"), chips.stand_in("gfx908")) == ("gfx1100", "gfx90a")
    least = min(chips.CHIPS[name].shared for name in chips.NAMES if name.startswith("sm_"))
    assert chips.CHIPS["sm_89"].shared == least
    with pytest.raises(RuntimeError, match="or later, but got sm_75"):
        chips.stand_in("sm_75")


def test_switches():
    """float32 products follow PyTorch's two switches, each its own; other dtypes none."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    with float32_precision("ieee"):
        for one, other in (("tf32", "ieee"), ("ieee", "tf32")):
            conv.fp32_precision, matmul.fp32_precision = one, other
            assert (conv_precision(torch.float32), matmul_precision(torch.float32)) == (one, other)
            for dtype in (torch.float64, torch.float16, torch.bfloat16):
                assert (conv_precision(dtype), matmul_precision(dtype)) == ("ieee", "ieee")


def test_picks_suit_the_problem():
    """On Hopper the 3 x 3 layers of ResNet-50 and VGG-16 fetch boxes, in all passes; big ones with big tiles."""
    seen = 0
    with picked.launchers() as of:
        for each in LAYERS:
            if each.size == 3 and each.c >= 64 and (each.times("ResNet-50") or each.times("VGG-16")):
                for _, what, tile in of(each, BATCH, ["sm_90"], "half"):
                    seen += 1
                    assert tile.box, f"{each.name}, {what}: {tile}"
                    if each.name == "3x3 256-256 @56 s1":
                        assert min(tile.m, tile.n) >= 128, f"{what}: {tile}"
    assert seen == 3 * 15


def test_boxes_waste_little():
    """A box of pixels fits the images of the usual networks without a rest, and any others as well as a box can."""
    for size in (224, 112, 56, 28, 14):
        for pixels in (64, 128):
            (n, p, q), count = model.box_of(pixels, (32, size, size))
            assert n * p * q == pixels
            assert count * pixels == 32 * size * size, f"{size}: {(n, p, q)}"
    assert model.box_of(64, (32, 7, 7)) == ((8, 1, 8), 4 * 7)
    for images in ((1, 1, 1), (3, 5, 9), (1, 1, 1000), (7, 100, 1)):
        box, count = model.box_of(128, images)
        assert box[0] * box[1] * box[2] == 128
        assert count == math.prod(-(-whole // part) for whole, part in zip(images, box, strict=True))


@pytest.mark.parametrize("kind", shapes.ARITHMETIC)
def test_picks_are_among_the_tested(kind):
    """No problem gets a tile outside the list that is compiled and compared, but for what the list leaves open."""
    with picked.launchers() as of:
        for n, each in picked.random_layers(150, seed=1):
            for chip, what, tile in of(each, n, picked.chips(kind), kind):
                weight_grad = what == "weight gradient"
                row = tile.box and (1, 1, tile.k if weight_grad else tile.m)
                listed = tile._replace(box=row, parts=1, programs=0)
                assert listed in pick.every_tile(kind, chip, weight_grad), f"{each}, {what}: {tile}"


def test_estimates_follow_the_model():
    """More work takes longer, a full chip as long as one program of it, and one program more a wave more."""
    for candidate in model.candidates("half", "sm_90", "tma", 64):
        one = model.estimate(candidate, 1, 10)
        assert one >= candidate.start + 10 * candidate.alone
        assert model.estimate(candidate, candidate.slots // candidate.resident, 10) == one
        full = model.estimate(candidate, candidate.slots, 10)
        assert full >= one
        assert model.estimate(candidate, candidate.slots + 1, 10) == full + one
        assert model.estimate(candidate, 1, 20) > one


@pytest.mark.cover
def test_two_processes_pick_the_same():
    code = "import picked; print([pick for pick in picked.picks()][::7])"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env=path | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    )
    assert first.stdout == second.stdout
    assert b"Tile" in first.stdout

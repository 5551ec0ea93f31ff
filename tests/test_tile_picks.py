"""Picks of tiles: they suit the problem, fit the chip, are among the tested, and are the same in every process."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import picked
from bench.layers import BATCH, LAYERS
from cnn_triton.kernels.base.lang import tl, triton
from cnn_triton.kernels.base.precision import conv_precision, float32_precision, matmul_precision
from cnn_triton.kernels.core import chips, replay
from cnn_triton.kernels.matrix.loop import program_tile
from cnn_triton.kernels.matrix.problem import can_fetch, with_dense_strides
from cnn_triton.kernels.tiles import model, pick, shapes

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _deciding():
    """These tests change what is picked from call to call."""
    with replay.deciding():
        yield


@pytest.mark.parametrize("kind", shapes.ARITHMETIC)
def test_grouped_picks_are_among_the_tested(kind):
    for chip in picked.chips(kind):
        for groups, outputs, inputs in itertools.product((2, 3, 32), (1, 4, 17, 32, 100), (2, 8, 32, 70)):
            problems = [shapes.Grouped(groups, 1000, outputs, 9 * inputs, crowded) for crowded in (False, True)]
            problems.append(shapes.Grouped(groups, outputs, 9 * inputs, 10**5, may_split=True))
            for problem in problems:
                assert pick.grouped(problem, kind, chip)._replace(parts=1) in pick.every_grouped(kind, chip)


def test_boxes_are_aligned(device):
    """Boxes are fetched of adjacent channels, everything at multiples of 16 bytes."""

    def boxed(channels, dtype=torch.bfloat16, offset=0, last=True):
        memory = torch.empty(2 * 4 * 4 * channels + offset, dtype=dtype, device=device)[offset:]
        x = memory.view(2, 4, 4, channels).permute(0, 3, 1, 2) if last else memory.view(2, channels, 4, 4)
        return can_fetch(with_dense_strides(x), (1, 1))

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
        box, count = model.box_of(64, images, 4, 32)
        assert box[0] * box[1] * box[2] == 64
        assert 4 <= box[2] <= 32
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

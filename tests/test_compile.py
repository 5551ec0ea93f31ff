"""What the launchers launch, compiled for six chips without having one: no spills, matrix instructions, wide loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import ACTIVATIONS
from cnn_triton.kernels import tiles
from cnn_triton.kernels.registry import OPS

CHIPS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
DOTS = {"float16": "ieee", "bfloat16": "ieee", "float32": "tf32"}
MATRIX = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad")
KERNELS = ("conv_kernel", "conv_box_kernel", "weight_grad_kernel", "weight_grad_box_kernel")
KERNELS += ("conv_pool_kernel", "conv_pool_box_kernel", "placed_kernel", "placed_weight_grad_kernel")
# What else is compiled with the tiles that may be picked with this beside the sums.
BESIDE = {
    "conv2d_saving": "epilogue",
    "conv2d_moments": "epilogue",
    "conv2d_pool": "number",
    "conv2d_pool average": "two numbers",
    "conv2d_pool_grad": "",
    "conv2d_pool_grad average": "",
}
# With the tiles of products in which each pixel has weights of its own.
PLACED = {
    "locally_connected2d": "",
    "locally_connected2d_saving": "epilogue",
    "locally_connected2d_input_grad": "",
    "locally_connected2d_weight_grad": "",
}


def compiled(chip, calls):
    """The codes of each call, compiled in a child process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = [sys.executable, str(Path(__file__).with_name("compile_child.py")), chip, json.dumps(calls)]
    done = subprocess.run(child, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls)
    return [json.loads(line) for line in lines]


def check(chip, calls):
    """Every kernel of every call: no spills, fits into shared memory. The main loops of the matrix kernels: matrix
    instructions, and every load 16 bytes wide or a box. The others: 16-byte loads."""
    for call, codes in zip(calls, compiled(chip, calls), strict=True):
        assert codes, f"{call} launched nothing"
        for code in codes:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert code["shared"] <= tiles.CHIPS[chip].shared, said
            if code["kernel"] in KERNELS:
                assert code["loop_matrix"] > 0, said
                # A code, which the pooled gradient is read through, has one byte for each of its two or four.
                assert code["load_bytes"] >= (4 if call["what"].startswith("conv2d_pool_grad") else 16), said
                assert (code["tma"] > 0) == ("box" in code["kernel"]), said
            elif code["kernel"] != "at_winner_kernel":  # which reads a byte, and what that points at
                assert code["wide"] > 0, said


def tile_calls():
    """(chip, calls): the convolution kernels with every tile that can be picked for them."""
    for chip in CHIPS:
        for dtype, dot in DOTS.items():
            kind = "half" if dtype != "float32" else "tf32"
            calls = []
            for what in (*MATRIX, *({**BESIDE, **PLACED} if dtype != "float16" else ())):
                beside = {**BESIDE, **PLACED}.get(what, "")
                if what == "conv2d_pool" and kind == "tf32":
                    beside = "two numbers"
                for tile in tiles.every_tile(kind, chip, what.endswith("weight_grad"), beside, what in PLACED):
                    if what.startswith("conv2d_pool_grad") and tile.box:
                        continue
                    # As many channels as a packed tile is for; more of them for the others.
                    channels = 16 if tile.packed else 256
                    calls.append({"what": what, "dtype": dtype, "dot": dot, "tile": tile, "channels": channels})
            for part in range(3):  # as long as a test may be
                yield pytest.param(chip, calls[part::3], id=f"{chip}-{dtype}-{part + 1} of 3")


@pytest.mark.cover
@pytest.mark.parametrize(("chip", "calls"), list(tile_calls()))
def test_tiles(chip, calls):
    check(chip, calls)


def as_picked(names):
    """Calls of operators, in bfloat16 and, for the matrix products, TF32."""
    return [
        {"what": name, "dtype": dtype, "dot": dot, "tile": None, "channels": 256}
        for name in names
        for dtype, dot in (("bfloat16", "ieee"), ("float32", "tf32"))
        if dtype == "bfloat16" or name.startswith(("conv", "linear", "locally"))
    ]


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_operators(chip):
    """Every operator as picked."""
    check(chip, as_picked(op.name for op in OPS))


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_variants(chip):
    """Without a bias, with a padding mode, with adaptive windows: other code."""
    names = ["conv2d without bias", "linear without bias", *(f"{name} reflect" for name in MATRIX)]
    names += [f"{op.name} adaptive" for op in OPS if op.name.startswith(("max_pool", "avg_pool"))]
    names += [
        "batch_norm_grad one image",
        "conv2d_pool average",
        "conv2d_pool_grad average",
        "conv2d_pool_grad written",
    ]
    names += [f"{what} {name}" for what in ("conv2d", "activation_grad") for name in ACTIVATIONS if name != "none"]
    check(chip, as_picked(names))


WINDOWS = ("3 by 1", "3 by 2", "5 by 1", "7 by 1", "9 by 1", "3 by 1 of 72", "7 by 1 of 72", "5 by 1 times 4")


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_depthwise(chip):
    """Depthwise convolution, size by stride: no spills; every load 16 bytes wide, unless there are several outputs for
    each channel."""
    calls = as_picked(f"{what} depthwise {window}" for window in WINDOWS for what in MATRIX)
    calls = [call for call in calls if call["dtype"] == "bfloat16" or call["what"].endswith(("3 by 1", "7 by 1"))]
    calls += as_picked(["conv2d_moments depthwise 3 by 1"])
    for call, codes in zip(calls, compiled(chip, calls), strict=True):
        direct = [code for code in codes if code["kernel"].startswith("direct")]
        assert direct
        for code in direct:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert "times" in call["what"] or code["load_bytes"] >= 16, said


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_groups(chip):
    """Narrow groups, channels by stride: no spills, matrix instructions."""
    whats = (*MATRIX, "conv2d_saving", "conv2d_moments")
    groups = ("4 by 1", "8 by 2", "16 by 1", "32 by 1")
    calls = as_picked(f"{what} of groups of {wide}" for wide in groups for what in whats)
    for call, codes in zip(calls, compiled(chip, calls), strict=True):
        grouped = [code for code in codes if code["kernel"].startswith("grouped")]
        assert grouped
        for code in grouped:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert code["shared"] <= tiles.CHIPS[chip].shared, said
            assert code["loop_matrix"] > 0, said


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_full_precision(chip):
    """float64 and full float32 compile and fit; tensor cores have no full float32, so matrix instructions aren't
    asked for."""
    calls = [
        {"what": what, "dtype": dtype, "dot": "ieee", "tile": None, "channels": 256}
        for what in MATRIX
        for dtype in ("float32", "float64")
    ]
    for codes in compiled(chip, calls):
        assert all(code["shared"] <= tiles.CHIPS[chip].shared for code in codes)

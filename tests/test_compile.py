"""What the launchers launch, compiled for chips that are not here: no spills, matrix instructions, wide loads."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_triton.kernels.core import chips
from cnn_triton.kernels.core.chips import COMPILED as CHIPS
from cnn_triton.kernels.core.chips import NAMES
from cnn_triton.kernels.registry import OPS
from cnn_triton.kernels.tiles import model, pick
from tables import ACTIVATIONS

HALVES = ("float16", "bfloat16")
MATRIX = ("conv2d", "conv2d_input_grad", "conv2d_weight_grad")
KERNELS = ("conv_kernel", "conv_tma_kernel", "weight_grad_kernel", "weight_grad_tma_kernel")
KERNELS += ("conv_pool_kernel", "conv_pool_tma_kernel", "per_pixel_kernel", "per_pixel_weight_grad_kernel")
# What else is compiled with the tiles that may be picked with this beside the sums.
BESIDE = {
    "conv2d_with_preactivation": "epilogue",
    "conv2d_moments": "moments",
    "conv2d_pool": "number",
    "conv2d_pool average": "two numbers",
    "conv2d_pool at once": "windows of a number",
    "conv2d_pool average at once": "windows of two numbers",
    "conv2d_pool_grad": "code, 1 B",
    "conv2d_pool_grad average": "code, 1 B",
}
# With the tiles of products in which each pixel has weights of its own.
PLACED = {
    "locally_connected2d": "",
    "locally_connected2d_with_preactivation": "epilogue",
    "locally_connected2d_input_grad": "",
    "locally_connected2d_weight_grad": "",
}


PINNED = "pinned"
TRITONS = Path(__file__).parents[1] / ".venv" / "triton"  # where `make` puts other versions
VERSIONS = [line for line in Path(__file__).with_name("tritons.txt").read_text().splitlines() if line[:1].isdigit()]


def compiled(chip, calls, version=PINNED):
    """The codes of each call, compiled in a child process, with another version of Triton if it is named."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if version != PINNED:
        environment["PYTHONPATH"] = os.pathsep.join([str(TRITONS / version), environment.get("PYTHONPATH", "")])
    child = [sys.executable, str(Path(__file__).with_name("compile_child.py")), chip, json.dumps(calls), version]
    done = subprocess.run(child, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls)
    return [json.loads(line) for line in lines]


def check(chip, calls, version=PINNED):
    """Every kernel of every call: no spills, fits into shared memory. The main loops of the matrix kernels: matrix
    instructions, and every load 16 bytes wide or a box. The others: 16-byte loads."""
    for call, codes in zip(calls, compiled(chip, calls, version), strict=True):
        assert codes, f"{call} launched nothing"
        for code in codes:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert code["shared"] <= chips.CHIPS[chip].shared, said
            if call["tile"] and code["kernel"] in KERNELS:
                beside = {**BESIDE, **PLACED}.get(call["what"], "")
                most = model.shared_memory(
                    call["tile"], 4 if call["dtype"] == "float32" else 2, chip, "tma" in code["kernel"], beside
                )
                assert code["shared"] <= most, f"the model says at most {most}: {said}"
            if code["kernel"] in KERNELS:
                assert code["loop_matrix"] > 0, said
                # A code, which the pooled gradient is read through, has one byte for each of its two or four.
                assert code["load_bytes"] >= (4 if call["what"].startswith("conv2d_pool_grad") else 16), said
                assert (code["tma"] > 0) == ("tma" in code["kernel"]), said
            elif code["kernel"] not in ("at_winner_kernel", "avg_spread_kernel"):  # which read little, and write much
                assert code["wide"] > 0, said


def tile_calls(seed):
    """(chip, calls): the convolution kernels with every tile that can be picked for them. Each tile in the products
    and, in turn, in one of the other kernels that may have it; on one of its chips, in float16 or bfloat16, which have
    the same tiles, in turn. Without a seed, in all of them on each chip, the products in both."""
    having = {}  # by kernel and tile: the chips
    for chip in CHIPS:
        for kind, what in itertools.product(("half", "tf32"), (*MATRIX, *BESIDE, *PLACED)):
            beside = {**BESIDE, **PLACED}.get(what, "")
            if what in ("conv2d_pool", "conv2d_pool at once") and kind == "tf32":
                beside = BESIDE[what.replace("pool", "pool average")]
            for tile in pick.every_tile(kind, chip, what.endswith("weight_grad"), beside, what in PLACED):
                if not (what.startswith("conv2d_pool_grad") and tile.box):
                    having.setdefault((kind, tile, what), []).append(chip)
    others = {}  # by tile: the other kernels
    for kind, tile, what in having:
        others.setdefault((kind, tile), []).extend([] if what in MATRIX else [what])
    places = {tile: place for place, tile in enumerate(others)}
    calls = {chip: [] for chip in CHIPS}
    for turn, ((kind, tile, what), its_chips) in enumerate(having.items(), seed or 0):
        some = others[kind, tile]
        if seed is not None and what not in MATRIX and what != some[(places[kind, tile] + seed) % len(some)]:
            continue
        # As many channels as a packed tile is for; more of them for the others.
        each = {"what": what, "tile": tile, "channels": 16 if tile.packed else 256}
        halves = HALVES if seed is None and what in MATRIX else (HALVES[turn % 2],)
        for chip in its_chips if seed is None else [its_chips[turn % len(its_chips)]]:
            for dtype, dot in [(half, "ieee") for half in halves] if kind == "half" else [("float32", "tf32")]:
                calls[chip].append({**each, "dtype": dtype, "dot": dot})
    for chip, every in calls.items():
        parts = -(-len(every) // 24)  # as long as a test may be
        for part in range(parts):
            yield pytest.param(chip, every[part::parts], id=f"{chip}-{part + 1} of {parts}")


@pytest.mark.cover
@pytest.mark.rotated("chip, calls", tile_calls)
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


def in_turn(calls):
    """(chip, calls): each call on one of the chips, in turn. Without a seed, on all."""

    def rows(seed):
        for place, chip in enumerate(CHIPS):
            mine = [call for i, call in enumerate(calls) if seed is None or (i + place + seed) % len(CHIPS) == 0]
            yield pytest.param(chip, mine, id=chip)

    return rows


OPERATORS = as_picked(op.name for op in OPS)
# Without a bias, with a padding mode, with adaptive windows: other code.
VARIANTS = ["conv2d without bias", "linear without bias", *(f"{name} reflect" for name in MATRIX)]
VARIANTS += [f"{op.name} adaptive" for op in OPS if op.name.startswith(("max_pool", "avg_pool"))]
VARIANTS += ["avg_pool2d global", "avg_pool2d_input_grad global"]
VARIANTS += ["batch_norm added", *(f"{name} PReLU" for name in ("conv2d", "conv2d_with_preactivation", "batch_norm"))]
VARIANTS += ["batch_norm_grad one image", "conv2d_pool average", "conv2d_pool_grad average"]
VARIANTS += ["conv2d_pool_grad materialized"]
VARIANTS += [f"{what} {name}" for what in ("conv2d", "activation_grad") for name in ACTIVATIONS if name != "none"]
WINDOWS = ("3 by 1", "3 by 2", "5 by 1", "7 by 1", "9 by 1", "3 by 1 of 72", "7 by 1 of 72", "5 by 1 times 4")
DEPTHWISE = as_picked(f"{what} depthwise {window}" for window in WINDOWS for what in MATRIX)
DEPTHWISE = [call for call in DEPTHWISE if call["dtype"] == "bfloat16" or call["what"].endswith(("3 by 1", "7 by 1"))]
DEPTHWISE += as_picked(["conv2d_moments depthwise 3 by 1"])
# Channels of a group by stride.
GROUPS = as_picked(
    f"{what} of groups of {wide}"
    for wide in ("4 by 1", "8 by 2", "16 by 1", "32 by 1")
    for what in (*MATRIX, "conv2d_with_preactivation", "conv2d_moments")
)
FULL = [
    {"what": what, "dtype": dtype, "dot": "ieee", "tile": None, "channels": 256}
    for what in (
        *(op.name for op in OPS),
        "conv2d_pool average",
        "conv2d_pool_grad average",
        "conv2d of groups of 8 by 2",
    )
    for dtype in ("float32", "float64")
]


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("version", [PINNED, *VERSIONS])
def test_operators(version, chip, record_property):
    """Every operator as picked, with the pinned Triton, the oldest supported, the newest known, and those between."""
    assert {call["what"] for call in OPERATORS} == {op.name for op in OPS}
    if version != PINNED and not (TRITONS / version / ".ready").exists():
        pytest.skip(f"Triton {version} is not in {TRITONS}, where `make test` puts it")
    # TF32 with the pinned one on all chips, with each other on half of them.
    turn = [PINNED, *VERSIONS].index(version) + CHIPS.index(chip)
    calls = [call for call in OPERATORS if version == PINNED or turn % 2 or call["dtype"] == "bfloat16"]
    check(chip, calls, version)
    record_property("compiled", (version, chip, len(OPS)))


@pytest.mark.cover
@pytest.mark.rotated("chip, calls", in_turn(as_picked(VARIANTS)))
def test_variants(chip, calls):
    check(chip, calls)


@pytest.mark.cover
@pytest.mark.rotated("chip, calls", in_turn(DEPTHWISE))
def test_depthwise(chip, calls):
    """Depthwise convolution, size by stride: no spills; every load 16 bytes wide, unless there are several outputs for
    each channel."""
    for call, codes in zip(calls, compiled(chip, calls), strict=True):
        direct = [code for code in codes if code["kernel"].startswith("direct")]
        assert direct
        for code in direct:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert "times" in call["what"] or code["load_bytes"] >= 16, said


@pytest.mark.cover
@pytest.mark.rotated("chip, calls", in_turn(GROUPS))
def test_groups(chip, calls):
    """Narrow groups: no spills, matrix instructions."""
    for call, codes in zip(calls, compiled(chip, calls), strict=True):
        grouped = [code for code in codes if code["kernel"].startswith("grouped")]
        assert grouped
        for code in grouped:
            said = f"{call}: {code}"
            assert code["spills"] == 0, said
            assert code["shared"] <= chips.CHIPS[chip].shared, said
            assert code["loop_matrix"] > 0, said


@pytest.mark.cover
@pytest.mark.rotated("chip, calls", in_turn(FULL))
def test_full_precision(chip, calls):
    """float64 and full float32 compile and fit; tensor cores have no full float32, so matrix instructions aren't
    asked for."""
    for codes in compiled(chip, calls):
        assert all(code["shared"] <= chips.CHIPS[chip].shared for code in codes)


def narrow(widths):
    """How many of the accesses move fewer than 16 bytes: 5 of "16 B x 8, 2 B x 4, 4 B x 1, tma x 2"."""
    return sum(int(count) for size, count in re.findall(r"(\d+) B x (\d+)", widths) if int(size) < 16)


@pytest.mark.cover
def test_epilogues_are_wide():
    """Where boxes are fetched too, results are stored, and what is added is loaded, 16 bytes at a time, or as boxes:
    in as few sectors as there can be. All but vectors over the columns, of two bytes for each of four registers."""
    each = {"dtype": "bfloat16", "dot": "ieee", "tile": None}
    names = ("conv2d_pool", "conv2d_pool average", "conv2d_with_preactivation", "conv2d_weight_grad")
    calls = [{"what": name, "channels": 256, **each} for name in names]
    calls.append({"what": "conv2d_weight_grad", "channels": 72, **each})  # Triton knows by itself of multiples of 16
    for call, codes in zip(calls, compiled("sm_90", calls), strict=True):
        boxed = [code for code in codes if "tma" in code["kernel"]]
        assert boxed, call
        for code in boxed:
            assert narrow(code["store_widths"]) == 0, f"{call}: {code}"
            assert narrow(code["load_widths"]) <= 4, f"{call}: {code}"


@pytest.mark.cover
@pytest.mark.parametrize("chip", [name for name in NAMES if name not in CHIPS])
def test_other_chips(chip):
    """On chips that are not compiled for in full: the products, and a pooling."""
    calls = [call for call in as_picked((*MATRIX, "max_pool2d")) if call["dtype"] == "bfloat16"]
    check(chip, calls)


def test_in_turn():
    """As many seeds as there are chips compile every call on every chip; each tile is compiled in every product."""
    for calls in (as_picked(VARIANTS), DEPTHWISE, GROUPS, FULL):
        drawn = [row.values for seed in range(len(CHIPS)) for row in in_turn(calls)(seed)]
        found = [(chip, call["what"], call["dtype"]) for chip, some in drawn for call in some]
        assert sorted(found) == sorted((chip, call["what"], call["dtype"]) for chip in CHIPS for call in calls)

    def compiled(seed, whats):
        every = [call for _, some in (row.values for row in tile_calls(seed)) for call in some]
        return {(call["what"], call["tile"], call["dtype"] == "float32") for call in every if call["what"] in whats}

    assert compiled(0, MATRIX) == compiled(None, MATRIX)
    others = {*BESIDE, *PLACED}
    assert {tile for _, tile, _ in compiled(0, others)} == {tile for _, tile, _ in compiled(None, others)}
    assert {what for what, *_ in compiled(0, others)} == others

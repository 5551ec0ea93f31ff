"""What `cnn-triton inspect` says of a kernel: the ledger's figures, from any function, on every chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ledger import CHIPS, FIGURES, read
from cnn_triton import functional
from cnn_triton.kernels.core import chips
from cnn_triton.tools.calls import EXAMPLES
from inspections import LAYER, inspected
from small import process, refused

ROOT = Path(__file__).parents[1]


@pytest.mark.cover
@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_as_in_the_ledger(dtype, tmp_path):
    """A layer of ResNet-50 on every chip, with its gradients: the same code and figures as the ledger has."""
    found, _ = inspected(tmp_path, *LAYER, "--gradients", "--dtype", dtype)
    assert set(found["chips"]) == set(chips.NAMES)
    names = {"conv2d": "forward", "conv2d_input_grad": "input gradient", "conv2d_weight_grad": "weight gradient"}
    seen = 0
    for chip in CHIPS:
        ledger = read(chip)
        for operator in found["chips"][chip]:
            if operator["operator"] not in names:
                continue
            cell = ("3x3 64-64 @56 s1", names[operator["operator"]], {"bfloat16": "bf16", "tf32": "tf32"}[dtype])
            assert tuple(kernel["source"] for kernel in operator["kernels"]) == ledger.codes[cell], (chip, cell)
            for kernel in operator["kernels"]:
                row = ledger.kernels[kernel["source"]]
                for name in FIGURES:
                    assert row[name] == ("" if kernel[name] is None else str(kernel[name])), (chip, cell, name)
                seen += 1
    assert seen >= 3 * len(CHIPS)


CHILD = """
import json, sys
from cnn_triton.tools.calls import call_of
from cnn_triton.tools.inspection import inspect_call
from cnn_triton.tools.limits import waves
for name in json.loads(sys.argv[1]):
    for gradients in (False, True):
        call = call_of(name, [], gradients=gradients, dtype=sys.argv[3])
        for each in inspect_call(call, sys.argv[2]):
            codes = [(c.kernel, c.spills, c.grid, waves(launch), bool(launch.choice))
                     for launch in each.launches for c in [launch.code]]
            print(json.dumps([name, gradients, each.name, each.flops, each.bytes, codes]))
"""


@pytest.mark.cover
@pytest.mark.parametrize(
    ("chip", "dtype"), [("sm_90", "bfloat16"), ("gfx950", "float16"), ("gfx950", "tf32"), ("sm_80", "float64")]
)
def test_every_function(chip, dtype):
    """The example of each function compiles, forward and backward, without spills but in full precision."""
    assert set(EXAMPLES) == set(functional.__all__)
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", CHILD, json.dumps(list(EXAMPLES)), chip, dtype]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(name, gradients) for name, gradients, *_ in rows} == {
        (name, gradients) for name in EXAMPLES for gradients in (False, True)
    }
    for *what, flops, moved, codes in rows:
        assert codes, what
        assert flops > 0, what
        assert moved > 0, what
        for kernel, spills, grid, waves, has_tile in codes:
            assert has_tile == any(word in kernel for word in ("conv_", "weight_grad", "per_pixel")), (what, kernel)
            assert grid > 0, (what, kernel)
            assert "unknown" not in waves, (what, kernel)
            if dtype in ("bfloat16", "float16"):
                assert spills == 0, (what, kernel)


@pytest.mark.cover
def test_tiles(tmp_path):
    """Every candidate in a table sorted by what is asked for; one of them chosen by its words; and all texts."""
    folder = tmp_path / "texts"
    args = (*LAYER, "--target", "sm_90")
    found, out = inspected(tmp_path, *args, "--tiles", "--sort", "registers", "--dump", folder)
    assert "Every tile that could serve conv2d on sm_90" in out
    rows = found["tables"][-1]["rows"]
    assert len(rows) > 10
    registers = [int(row[1]) for row in rows]
    assert registers == sorted(registers)
    assert len({*registers}) > 5
    (picked,) = (row for row in rows if "picked" in row[0])
    assert picked[0].endswith(",tma (picked)")
    (kernel,) = found["chips"]["sm_90"][0]["kernels"]
    assert int(picked[1]) == kernel["registers"]
    texts = {path.suffix for path in (folder / "sm_90").iterdir()}
    assert texts == {".ttir", ".ttgir", ".llir", ".ptx", ".sass"}
    assert "HGMMA" in next((folder / "sm_90").glob("*.sass")).read_text()
    other, _ = inspected(tmp_path, *args, "--tile", "128x128x64,stages=2,gathered")
    (chosen,) = other["chips"]["sm_90"][0]["kernels"]
    assert chosen["tile"] == "128x128x64,warps=8,stages=2,gathered"
    assert chosen["kernel"] == "conv_kernel"
    assert chosen["source"] != kernel["source"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("conv2d_rely",), ("OP 'conv2d_rely'", "conv2d_relu")),
        (("nowhere.py:conv",), ("OP 'nowhere.py:conv'", "No such file")),
        (("conv2d", "--target", "sm_91"), ("--target sm_91", "sm_90")),
        (("conv2d", "--dtype", "bfloat61"), ("--dtype bfloat61", "bfloat16")),
        (("conv2d", "--layout", "channel_last"), ("--layout channel_last", "channels_last")),
        (("conv2d", "imput=1x1x4x4"), ("no argument 'imput'", "input")),
        (("conv2d", "input=1x8x4x4"), ("needs weight",)),
        (("conv2d", "input=1,8,4,4"), ("input must be the shape of a tensor", "'1,8,4,4'")),
        (("conv2d", "stride"), ("NAME=VALUE", "'stride'")),
        (("conv2d", "--tiles"), ("--tiles", "on one chip at a time")),
        (("conv2d", "--tiles", "--tile", "64x64x64", "--target", "h100"), ("--tiles", "without --tile")),
        (("conv2d", "--target", "a10"), ("--target a10", "a100")),
        (("conv2d", "--html", "."), ("--html .", "a folder")),
        (("conv2d", "--sort", "spills"), ("--sort spills", "--tiles")),
        (("conv2d", "--target", "sm_90", "--tiles", "--sort", "spill"), ("--sort spill", "spills")),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_words(args, words):
    refused(("inspect", *args), "error: ", *words)


@pytest.mark.cover
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("conv2d", "input=1x8x4x4", "weight=8x7x3x3"), ("weight", "7")),
        (("conv2d", "--tile", "129x64x64"), ("--tile 129x64x64", "128x64x64")),
        (("conv2d", "--operator", "conv2d_input_grad"), ("--operator", "--gradients")),
        (("max_pool2d", "--tile", "64x64x64"), ("max_pool2d: there is no other tile",)),
        (("conv2d", "input=0x64x8x8", "weight=64x64x3x3"), ("launches no kernel",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_calls(args, words):
    refused(("inspect", *args, "--target", "sm_90"), "error: ", *words, by=process)


OWN = """
import torch
import triton
import triton.language as tl

if True:
    @triton.jit
    def double_kernel(x, y, n, B: tl.constexpr = 128):
        i = tl.program_id(0) * B + tl.arange(0, B)
        tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)

@triton.jit
def count_kernel(x, total, n):
    i = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.atomic_add(total + (i & 0), tl.load(x + i, mask=i < n, other=0.0), mask=i < n)

@triton.autotune([triton.Config({}, num_warps=w) for w in (1, 2)], ["n"])
@triton.jit
def tuned_kernel(x, n):
    tl.store(x, n)

def double(x: torch.Tensor):
    y = torch.empty_like(x)
    double_kernel[lambda meta: (triton.cdiv(x.numel(), meta["B"]),)](x, y, x.numel())
    return y

def count(x: torch.Tensor, *rest, **more):
    double_kernel[(4, 2)](x, x, 512)
    count_kernel[(triton.cdiv(x.numel(), 64),)](x, x, x.numel())

def tuned(x: torch.Tensor):
    tuned_kernel[(1,)](x, 3)

def wrong(x: torch.Tensor):
    return {}["absent"]

def idle(x: torch.Tensor):
    return x

def bare(x):
    return x
"""


@pytest.mark.cover
def test_own_functions(tmp_path):
    """A user's file: grids of several sides and of a function, atomics, bytes counted once, pages of what is nested."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    page = tmp_path / "page.html"
    args = ("--dtype", "float32", "--target", "h200", "--html", page)
    found, out = inspected(tmp_path, f"{file}:double", "x=1000", *args)
    (operator,) = found["chips"]["sm_90"]
    (kernel,) = operator["kernels"]
    assert (kernel["kernel"], kernel["grid"], operator["bytes"], operator["flops"]) == ("double_kernel", 8, 8000, None)
    assert "memory at least" in out
    assert "2 * tl.load(x + i" in page.read_text()
    found, _ = inspected(tmp_path, f"{file}:count", "x=1000", "--dtype", "float32", "--target", "sm_90")
    (operator,) = found["chips"]["sm_90"]
    assert [(kernel["kernel"], kernel["grid"]) for kernel in operator["kernels"]] == [
        ("double_kernel", 8), ("count_kernel", 16)
    ]  # fmt: skip
    assert "atomic x" in operator["kernels"][1]["store_widths"]
    assert operator["bytes"] == 4000
    for name, words in (
        ("tuned", "an autotuned kernel times its configurations"),
        ("wrong", "KeyError: 'absent'"),
        ("idle", "it launches no kernel"),
    ):
        refused(("inspect", f"{file}:{name}", "x=64", "--target", "sm_90"), "error: ", words, by=process)
    refused(("inspect", f"{file}:bare", "x=64x64"), "x: torch.Tensor")
    refused(("inspect", f"{file}:count_kernel", "x=64x64"), "name the function that launches the kernel")


@pytest.mark.cover
def test_two_products_in_an_operator(tmp_path):
    """The gradients of a pooled block are of one operator: each product has its own tile, and a chosen one is given
    to the first alone."""
    args = ("conv2d_relu_max_pool2d", *LAYER[1:], "--gradients", "--operator", "conv2d_pool_grad", "--target", "sm_90")
    found, _ = inspected(tmp_path, *args)
    other, out = inspected(tmp_path, *args, "--tile", "128x128x64,gathered")

    def tiles_of(figures):
        return {
            kernel["kernel"]: kernel["tile"] for kernel in figures["chips"]["sm_90"][0]["kernels"] if kernel["tile"]
        }

    before, after = tiles_of(found), tiles_of(other)
    assert set(before) == {"conv_tma_kernel", "weight_grad_tma_kernel"}
    assert set(after) == {"conv_kernel", "weight_grad_tma_kernel"}
    assert after["weight_grad_tma_kernel"] == before["weight_grad_tma_kernel"]
    assert after["conv_kernel"].startswith("128x128x64")
    assert "sum_kernel" in out


@pytest.mark.cover
def test_what_a_chip_has_not(tmp_path):
    """TF32 on gfx950, which has no instruction for it: it is said, and full precision is compiled."""
    found, out = inspected(tmp_path, *LAYER, "--dtype", "tf32", "--target", "gfx950", "--target", "gfx942")
    assert "gfx950 has no TF32 instruction: float32 is multiplied in full precision" in out
    assert "gfx942 has" not in out
    full, _ = inspected(tmp_path, *LAYER, "--dtype", "float32", "--target", "gfx950")
    assert found["chips"]["gfx950"][0]["kernels"] == full["chips"]["gfx950"][0]["kernels"]

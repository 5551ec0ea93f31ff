"""What `cnn-triton inspect` says of a kernel: the ledger's figures, from any function, on every chip; and its page."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.ledger import CHIPS, FIGURES, read
from checks import assert_accurate, fresh_is_nan
from cnn_triton import functional
from cnn_triton.cli import inspecting
from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.kernels.compiler import aot, sass
from cnn_triton.kernels.core import chips
from cnn_triton.tools import inspection, listing
from small import CHROMIUM, process, refused, watched_in_chromium

ROOT = Path(__file__).parents[1]
EXAMPLES = tuple(sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
LAYER = ("conv2d_relu", "input=32x64x56x56", "weight=64x64x3x3", "bias=64", "padding=1")


def inspected(tmp_path, *args):
    """The figures that the command writes, and what it prints."""
    file = tmp_path / "figures.json"
    code, out, said = process("inspect", *args, "--json", file)
    assert code == 0, said
    return json.loads(file.read_text()), out


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
from cnn_triton.tools import inspection
for name in json.loads(sys.argv[1]):
    for gradients in (False, True):
        call = inspection.call_of(name, [], gradients=gradients, dtype=sys.argv[3])
        for each in inspection.inspect_call(call, sys.argv[2]):
            codes = [(c.kernel, c.spills, c.grid, inspection.waves(launch), bool(launch.choice))
                     for launch in each.launches for c in [launch.code]]
            print(json.dumps([name, gradients, each.name, each.flops, each.bytes, codes]))
"""


@pytest.mark.cover
@pytest.mark.parametrize(
    ("chip", "dtype"), [("sm_90", "bfloat16"), ("gfx950", "float16"), ("gfx950", "tf32"), ("sm_80", "float64")]
)
def test_every_function(chip, dtype):
    """The example of each function compiles, forward and backward, without spills but in full precision."""
    assert set(inspection.EXAMPLES) == set(functional.__all__)
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", CHILD, json.dumps(list(inspection.EXAMPLES)), chip, dtype]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(name, gradients) for name, gradients, *_ in rows} == {
        (name, gradients) for name in inspection.EXAMPLES for gradients in (False, True)
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
        (("conv2d", "--tiles"), ("--tiles", "of one chip at a time")),
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


def test_roofline():
    """By hand: 7.4 GFLOP and 25.8 MB on boards whose rates are known."""
    layer = inspection.Operator("conv2d", 7_400_000_000, 25_800_000, True, [])
    found = {roof.board.name: roof for roof in inspection.roofs(layer, "bfloat16", ["sm_90", "gfx950"])}
    assert set(found) == {"H200", "H100", "MI355X"}
    assert found["H200"].microseconds == pytest.approx(7.4e9 / 989.4e12 * 1e6)
    assert found["H200"].bound == "arithmetic"
    assert found["H100"].microseconds == pytest.approx(25.8e6 / 3350e9 * 1e6)
    assert found["H100"].bound == "memory"
    (tf32,) = inspection.roofs(layer, "tf32", ["gfx950"])
    assert tf32.rate == 157.3
    pool = inspection.Operator("max_pool2d", 1, 1, False, [])
    assert {roof.rate for roof in inspection.roofs(pool, "bfloat16", ["sm_90"])} == {66.9}
    for board in chips.BOARDS:
        assert board.chip in chips.NAMES
        assert bool(board.rates[1]) == bool(chips.CHIPS[board.chip].rates[1])


def test_waves():
    def of(grid, resident):
        code = aot.Code("k", "sm_90", "", "", resident=resident, grid=grid)
        return inspection.waves(inspection.Launch(code, None))

    assert of(264, 2) == "1 full wave"
    assert of(528, 2) == "2 full waves"
    assert of(66, 1) == "50% of a wave"
    assert of(300, 2) == "1 wave and 13% of one"
    assert of(1, 1) == "<1% of a wave"
    assert of(5, 0) == "does not fit"


@pytest.mark.parametrize(
    "words",
    [
        ("<1% of a wave", "2% of a wave", "12% of a wave", "1 full wave", "1 wave and 3% of one", "12 full waves"),
        ("0.198", "1.4", "9", "10", "1,000", "none"),
        ("16x64x64,gathered", "128x64x32,boxes", "128x64x64,boxes"),
    ],
)
def test_order(words):
    assert tuple(sorted(sorted(words), key=inspecting.order)) == words


def test_widths():
    names = ["LDG.E.128.CONSTANT", "LDG.E.128", "LDGSTS.E.BYPASS.128", "LDG.E.U16", "UTMALDG.4D", "STG.E", "UTMASTG.4D"]
    assert sass.widths(names, sass.load_bytes) == "box x 1, 16 B x 3, 2 B x 1"
    assert sass.widths(names, sass.store_bytes) == "box x 1, 4 B x 1"
    names = ["buffer_load_dwordx4", "global_load_ushort", "buffer_store_short", "global_store_dwordx2", "s_endpgm"]
    assert sass.widths(names, sass.load_bytes) == "16 B x 1, 2 B x 1"
    assert sass.widths(names, sass.store_bytes) == "8 B x 1, 2 B x 1"


PTX = """
	.file	1 "/a/kernel.py"
	.file	2 "/a/device.py"
	.loc	1 10 0                          // kernel.py:10:0
$L__func_begin0:
	mov.u32 	%r1, %ctaid.x;
$L__tmp0:
	.loc	2 20 8                          // device.py:20:8 @[ kernel.py:11:9 @[ kernel.py:12:4 ] ]
	@%p1 ld.global.b32 	%r2, [%rd1];  // a load
	.loc	2 20 9                          // device.py:20:9 @[ kernel.py:12:4 ]
	add.s32 	%r3, %r2, 1;
	.section	.debug_abbrev
	.loc	1 99 0
"""
SASS = """
	//## File "/a/device.py", line 20
        /*0000*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_0:
	//## File "/a/kernel.py", line 10
        /*0010*/                   EXIT ;
"""


def test_lines_know_where_they_are_from(monkeypatch):
    monkeypatch.setattr(aot, "disassembled", lambda chip, texts: SASS)
    found = listing.listings("sm_90", {"ptx": PTX})
    kernel, device = "/a/kernel.py", "/a/device.py"
    assert [(line.text.split()[0], line.places) for line in found["PTX"]] == [
        ("mov.u32", ((kernel, 10),)),
        ("@%p1", ((device, 20), (kernel, 11), (kernel, 12))),
        ("add.s32", ((device, 20), (kernel, 12))),
    ]
    assert [(line.text.split()[0], line.places) for line in found["SASS"]] == [
        ("/*0000*/", ((device, 20), (kernel, 12))),  # 11 calls some of it only
        (".L_x_0:", ()),
        ("/*0010*/", ((kernel, 10),)),
    ]


CLICK = """<script>addEventListener("load", () => {
  const kernel = document.querySelector(".kernel.shown"), forms = kernel.querySelector(".form");
  const lines = [...kernel.querySelectorAll(".source .code[data-at]")];
  const dot = lines.find(line => line.textContent.includes("tl.dot("));
  const lit = what => [...kernel.querySelectorAll(what)].map(line => line.textContent);
  dot.click();
  const ptx = lit('[data-name=PTX] .lit'), machine = lit('[data-name=SASS] .lit'), near = lit('.source .near').length;
  const instruction = kernel.querySelector('[data-name=SASS] .lit');
  instruction.click();
  const back = lit('.source .lit'), callers = lit('.source .near');
  forms.selectedIndex = 1; forms.onchange();
  const shown = kernel.querySelector(".listing.shown").dataset.name;
  const head = document.querySelector(".sortable th"); head.click(); head.click();
  const result = { ptx, machine, near, back, callers, shown, sorted: head.getAttribute("aria-sort") };
  document.body.dataset.watch = JSON.stringify(result);
});</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian's package chromium)")
def test_page_in_a_browser(tmp_path):
    """A click on the source line that multiplies lights the matrix instructions, and one on these lights that line."""
    page = tmp_path / "page.html"
    code, _, said = process("inspect", *LAYER, "--target", "sm_90", "--target", "gfx942", "--html", page)
    assert code == 0, said
    text = page.read_text()
    assert "http://" not in text
    assert "https://" not in text
    result, console = watched_in_chromium(page, CLICK, tmp_path)
    found = json.loads(result)
    assert any("wgmma.mma_async" in line for line in found["ptx"])
    assert any("HGMMA" in line for line in found["machine"])
    assert any("tl.dot(" in line for line in found["back"])
    assert any("main_loop(" in line for line in found["callers"])
    assert found["shown"] == "SASS"
    assert found["sorted"] == "descending"
    assert console == []


def example(name):
    """An example's function."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.conv2d_relu


# Triton's interpreter multiplies bfloat16's bit patterns in tl.dot; our own kernels widen them there.
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *([] if INTERPRETING else [torch.bfloat16])], ids=str)
def test_examples_are_right(name, dtype, device):
    """Each worked kernel against PyTorch, over the edges of its tiles, in windows of several sizes."""
    conv = example(name)
    for n, c, k, h, w, size in ((2, 5, 7, 9, 11, 3), (1, 33, 65, 13, 10, 1), (1, 3, 4, 12, 12, 5)):
        x = torch.randn(n, c, h, w, device=device).to(dtype)
        weight = (torch.randn(k, c, size, size, device=device) / (c * size * size) ** 0.5).to(dtype)
        bias = torch.randn(k, device=device).to(dtype)
        if name == "fused":
            theirs = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding="same"))
        else:  # they round what the convolution stores, and PyTorch adds to it
            theirs = torch.relu(torch.nn.functional.conv2d(x, weight, padding="same") + bias[:, None, None])
        wide = (t.double() for t in (x, weight, bias))
        exact = torch.relu(torch.nn.functional.conv2d(*wide, padding="same"))
        with fresh_is_nan():
            assert_accurate(conv(x, weight, bias), theirs, exact)


@pytest.mark.cover
def test_examples_are_as_inspected(tmp_path):
    """The table in examples/README.md is what the command says of them today; nothing spills."""
    rows = list(csv.reader((ROOT / "examples" / "README.md").read_text().splitlines(), delimiter="|"))
    table = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows if len(row) > 5}
    for name in EXAMPLES:
        where = ("--target", "sm_90", "--target", "sm_80", "--target", "gfx942")
        found, _ = inspected(tmp_path, ROOT / "examples" / f"{name}.py:conv2d_relu", *LAYER[1:-1], *where)
        assert all(k["spills"] == 0 for each in found["chips"].values() for op in each for k in op["kernels"])
        (operator,) = found["chips"]["sm_90"]
        (kernel,) = operator["kernels"]
        assert table[f"[{name}.py]({name}.py)"] == [
            str(kernel["registers"]), kernel["instruction"] or "none", kernel["load_widths"], kernel["store_widths"],
            str(kernel["per_flop"]), kernel["waves"],
        ]  # fmt: skip

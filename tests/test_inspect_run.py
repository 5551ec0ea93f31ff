"""`cnn-triton inspect --run`: compiled code that is run, its results, what is wrong, its counters."""

import json

import pytest

from inspections import inspected
from small import process, refused

CONV = ("conv2d_relu", "input=2x16x9x9", "weight=32x16x3x3", "bias=32", "padding=1", "--run")
KERNEL = """
import torch
import triton
import triton.language as tl


@triton.jit
def double_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i{mask})
    tl.store(y + i, value * {factor}, i < n)


def double(x: torch.Tensor):
    y = torch.empty_like(x)
    double_kernel[(triton.cdiv(x.numel(), 256),)](x, y, x.numel(), BLOCK=256)
    return y


def by_pytorch(x):
    return 2 * x
"""


def own(tmp_path, mask=", i < n", factor=2):
    """A file with a user's kernel, and the words that run it."""
    file = tmp_path / "mine.py"
    file.write_text(KERNEL.format(mask=mask, factor=factor))
    return f"{file}:double", "x=1000", "--run", "--target", "sm_90"


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_operator(tmp_path, layout):
    """Forward and backward on two chips: right, counted, with the lines."""
    targets = ("--target", "sm_80", "--target", "sm_90")
    found, out = inspected(tmp_path, *CONV, *targets, "--gradients", "--layout", layout)
    assert out.count(" right ") == 2 * 4
    assert "WRONG" not in out
    for chip in ("sm_80", "sm_90"):
        operators = found["chips"][chip]
        assert operators[0]["operator"] == "conv2d"
        for each in operators:
            for kernel in each["kernels"]:
                assert kernel["counters"]["instructions"] > 0
        counters = operators[0]["kernels"][0]["counters"]
        assert counters["fewest_sectors"] <= counters["sectors"] <= 2 * counters["fewest_sectors"]
        (lines,) = (table for table in found["tables"] if table["title"].startswith(f"Lines on {chip}"))
        assert any("tl.load" in row[2] for row in lines["rows"])


def test_own_kernel(tmp_path):
    words = own(tmp_path)
    found, out = inspected(tmp_path, *words, "--reference", words[0].replace(":double", ":by_pytorch"))
    assert " right " in out
    (kernel,) = found["chips"]["sm_90"][0]["kernels"]
    assert kernel["counters"]["global_bytes"] == 2 * 1000 * 2  # bfloat16, in and out
    assert "not compared: give --reference" in inspected(tmp_path, *words)[1]


@pytest.mark.parametrize(
    ("fault", "said"),
    [({"mask": ""}, ("load outside of every allocation", "mine.py:10")), ({"factor": 3}, ("WRONG",))],
)
def test_faults(tmp_path, fault, said):
    """What is wrong is said with its line, in the files too, and the exit code is 1."""
    words, file = own(tmp_path, **fault), tmp_path / "figures.json"
    more = ("--reference", words[0].replace(":double", ":by_pytorch"), "--json", file)
    code, out, _ = process("inspect", *words, *more)
    assert code == 1
    assert all(each in out for each in said)
    assert all(each in file.read_text() for each in said)
    assert json.loads(file.read_text())["chips"]


def test_page(tmp_path):
    """The page has the counters: tables, and beside each line of the source the instructions that ran."""
    page = tmp_path / "page.html"
    inspected(tmp_path, *CONV, "--target", "sm_90", "--html", page)
    text = page.read_text()
    assert "run: warp instructions" in text
    assert "Lines on sm_90" in text
    assert "warp instructions, " in text


def test_bad_options():
    refused(("inspect", *CONV, "--target", "gfx942"), "gfx942 can't be simulated", by=process)
    refused(("inspect", *CONV[:-1], "--reference", "a.py:b"), "--reference a.py:b", by=process)
    refused(("inspect", *CONV, "--target", "sm_90", "--reference", "no.py:b"), "no.py", by=process)

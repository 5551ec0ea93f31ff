"""The worked kernels of examples/: right over the edges of their tiles, and as the command says of them."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch

from checks import assert_accurate, fresh_is_nan
from cnn_triton.kernels.base.lang import INTERPRETING
from inspections import LAYER, inspected

ROOT = Path(__file__).parents[1]
EXAMPLES = tuple(sorted(path.stem for path in (ROOT / "examples").glob("*.py")))


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

"""What base/interpreter.py changes in Triton's interpreter: overflow, types that are kept, a restored language."""

import pytest
import torch

from cnn_triton.kernels.base import lang
from cnn_triton.kernels.base.lang import tl, triton

pytestmark = pytest.mark.skipif(not lang.INTERPRETING, reason="of the interpreter, which a GPU does without")


@triton.jit
def add_kernel(x, y, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def sub_kernel(x, y, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i) - tl.load(y + i))


@triton.jit
def mul_kernel(x, y, z, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i) * tl.load(y + i))


KERNELS = {"add": add_kernel, "sub": sub_kernel, "mul": mul_kernel}
# Operations at the edge of an integer's bits, whose results fit, and that overflow.
FITS = [
    ("add", "max", 0),
    ("add", "min", 0),
    ("sub", "min", 0),
    ("sub", "min", -1),
    ("mul", "max", -1),
    ("mul", "min", 1),
]
OVER = [
    ("add", "max", 1),
    ("add", "min", -1),
    ("sub", "max", -1),
    ("sub", "min", 1),
    ("mul", "min", -1),
    ("mul", "max", 2),
]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize(("name", "edge", "other"), [*FITS, *OVER])
def test_overflow(name, edge, other, bits):
    """The check sees every overflow and nothing else; 64 bits aren't checked; without it integers wrap around."""
    dtype = getattr(torch, f"int{bits}")
    x = torch.zeros(4, dtype=dtype)
    x[2] = getattr(torch.iinfo(dtype), edge)
    y, result = torch.full_like(x, other), torch.zeros_like(x)
    if (name, edge, other) in OVER and bits < 64:
        with pytest.raises(Exception, match=f"int{bits} overflow detected for operation {name}"):
            KERNELS[name][(1,)](x, y, result, BLOCK=4)
        lang.interpreter.check_overflow(False)
    try:
        KERNELS[name][(1,)](x, y, result, BLOCK=4)
    finally:
        lang.interpreter.check_overflow(True)
    assert torch.equal(result, getattr(torch, name)(x, y))


@triton.jit
def shapes_kernel(x, y, z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = tl.load(x + i[:, None] * COLUMNS + j[None, :])
    tl.static_assert(tile.shape[0] == ROWS and tile.shape[1] == COLUMNS and tile.numel == ROWS * COLUMNS)
    column = tl.sum(tile, axis=1)
    tl.static_assert(len(column.shape) == 1 and column.shape[0] == ROWS and column.dtype == tile.dtype)
    tl.store(y + j[:, None] * ROWS + i[None, :], tile.T)
    tl.store(z + i, column.to(tl.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.int64], ids=str)
def test_types_are_kept_apart(dtype):
    """Blocks of one shape and several dtypes, of one dtype and several shapes, by turns."""
    for rows, columns in ((4, 8), (8, 4), (1, 32), (4, 8)):
        x = torch.randint(0, 9, (rows, columns)).to(dtype)
        y, z = x.new_empty(columns, rows), torch.empty(rows)
        shapes_kernel[(1,)](x, y, z, ROWS=rows, COLUMNS=columns)
        assert torch.equal(y, x.T)
        assert torch.equal(z, x.sum(1).float())


def language():
    """What Triton's packages and classes hold."""
    return [dict(vars(package)) for package in (tl, tl.math, tl.tensor, tl.core.tensor_descriptor_base)]


def test_language_is_restored():
    """After a launch Triton's language is as it was, and the next launch patches it again."""
    before, x = language(), torch.arange(4, dtype=torch.int32)
    for _ in range(2):
        result = torch.zeros_like(x)
        add_kernel[(1,)](x, x, result, BLOCK=4)
        assert torch.equal(result, 2 * x)
    assert language() == before

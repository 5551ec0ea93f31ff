"""Every operator on every case: results against float64, shapes and strides against PyTorch's, opcheck."""

import pytest
import torch

from cases import CASES, draw
from checks import assert_right, kernels_only, moved, results
from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.registry import OPS
from cnn_triton.ops import operator
from combinations import DTYPES, FORMATS, KINDS, ROWS, dtype_name, rotated


def on(args, device):
    return tuple(moved(a, device) for a in args)


def combinations(seed):
    """Every case in the combinations of dtype and format whose turn it is among its operator's."""
    for case, kinds in rotated(CASES, lambda case: case.op, ROWS, seed):
        for dtype, form in kinds:
            yield pytest.param(case, dtype, form, id=f"{case}-{dtype_name(dtype)}-{form}")


@pytest.mark.cover
@pytest.mark.rotated("case, dtype, form", combinations)
def test_accuracy(case, dtype, form, device):
    args = on(case.make(dtype, form), device)
    empty = all(t.numel() == 0 for t in results(case.op.fake(*args)))
    if empty or 0 in args[0].shape:  # nothing to launch a kernel for, or only zeros to write
        ours = results(operator(case.op)(*args))
    else:
        with kernels_only(case.op.name):
            ours = results(operator(case.op)(*args))
    assert_right(case.op, args, ours)


@pytest.mark.parametrize("op", [op for op in OPS if op.product], ids=lambda op: op.name)
def test_tf32(op, device):
    """float32 products with TF32, PyTorch's default for convolutions; rounded to it where there are tensor cores."""
    case = next(case for case in CASES if case.op is op)
    args = on(case.make(torch.float32, "channels_last"), device)
    with float32_precision("tf32"), kernels_only(op.name):
        ours = results(operator(op)(*args))
    assert_right(op, args, ours, tf32=not INTERPRETING)


@pytest.mark.parametrize("form", FORMATS)
def test_moved(form, device):
    """Tests on a GPU are given what is drawn here: values, strides and offset."""
    drawn = draw((2, 3, 4, 5), torch.float32, form)
    there = moved(drawn, device)
    assert there.device.type == device.type
    assert there.data_ptr() != drawn.data_ptr()
    assert (there.stride(), there.storage_offset()) == (drawn.stride(), drawn.storage_offset())
    assert torch.equal(there.cpu(), drawn)


def test_combinations(request):
    """Of the cases as collected each is tested in every dtype and format, each operator in every combination; four
    seeds test every case in every combination."""
    seed = request.config.getoption("seed")
    turned = [[(p.values[0], p.values[1:]) for p in combinations(seed + turn)] for turn in range(4)]
    for case in CASES:
        mine = [{kind for other, kind in drawn if other is case} for drawn in turned]
        for kinds in mine:
            assert {dtype for dtype, _ in kinds} == set(DTYPES), case
            assert {form for _, form in kinds} == set(FORMATS), case
            assert len(kinds) == len(DTYPES), case
        assert set().union(*mine) == set(KINDS), case
    for op in OPS:
        assert {kind for case, kind in turned[0] if case.op is op} == set(KINDS), op.name
    assert len(list(combinations(None))) == len(CASES) * len(KINDS)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_record(op):
    """Each operator has cases, and says its arithmetic and traffic."""
    cases = [case for case in CASES if case.op is op]
    assert cases, f"no case of {op.name} in cases.py"
    args = cases[0].make(torch.float32, "contiguous")
    assert op.flops(*args) > 0
    touched = [t for t in (*args, *results(op.fake(*args))) if isinstance(t, torch.Tensor)]
    assert 0 < op.bytes(*args) <= sum(t.numel() * t.element_size() for t in touched)


@pytest.mark.cover
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_opcheck(op, form, device):
    case = next(case for case in CASES if case.op is op and "1" not in case.label)
    torch.library.opcheck(operator(op), on(case.make(torch.float32, form), device))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_same_bits_twice(op, device):
    args = on(next(case for case in CASES if case.op is op).make(torch.float32, "channels_last"), device)
    first, second, third = (results(operator(op)(*args)) for _ in range(3))  # the third from a plan
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))

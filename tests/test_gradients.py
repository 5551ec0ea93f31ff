"""The public functions' results and gradients against float64, in every dtype and format; gradcheck."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from cases import draw
from checks import assert_accurate, kernels_only, moved, operator_of
from cnn_triton import functional
from combinations import KINDS, dtype_name, turns, two
from function_pairs import FUNCTIONS


def differentiate(function, tensors, rest, grad):
    """Result and gradients, with the format of the tensors kept."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, *rest)
    return (y, *torch.autograd.grad(y, leaves, grad))


def combinations(seed):
    """Two combinations of dtype and format of every function and layer, in turn: these tests prove the wiring, the
    operators' own the arithmetic. Without a seed, all."""
    for label, turn in turns(FUNCTIONS, operator_of, seed or 0):
        pair = FUNCTIONS[label]
        kinds = tuple(
            (dtype, form)
            for dtype, form in KINDS
            if not (pair.smooth and dtype == torch.float64) and not (pair.kinked and dtype.itemsize == 2)
        )
        for dtype, form in kinds if seed is None else two(kinds, turn):
            yield pytest.param(label, dtype, form, id=f"{label}-{dtype_name(dtype)}-{form}")


@pytest.mark.cover
@pytest.mark.rotated("label, dtype, form", combinations)
def test_gradients(label, dtype, form, device):
    pair = FUNCTIONS[label]
    tensors = [moved(draw(shape, dtype, form), device) for shape in pair.shapes]
    grad = moved(draw(pair.theirs(*tensors, *pair.rest).shape, dtype, form), device)
    if 0 in pair.shapes[0]:
        mine = differentiate(pair.ours, tensors, pair.rest, grad)
    else:
        with kernels_only(operator_of(label)):
            mine = differentiate(pair.ours, tensors, pair.rest, grad)
    same = differentiate(pair.theirs, tensors, pair.rest, grad)
    wide = [t.double() for t in tensors]
    exact = list(differentiate(pair.theirs, wide, pair.rest, grad.double()))
    if pair.masked and mine[0].numel():
        exact[1:] = masked_as(pair, wide, grad.double(), mine[0], tensors)
        same = (same[0], *masked_as(pair, tensors, grad, mine[0], tensors))
    for what, *values in zip(
        ("output", "input", "weight", "bias", "scale", "residual"), mine, same, exact, strict=False
    ):
        assert_accurate(*values, f"{what} gradient" if what != "output" else what)


def masked_as(pair, tensors, grad, output, own):
    """The gradients of a chain with kinks, on the side of them where our output is."""
    return differentiate(pair.plain, tensors, pair.rest, pair.masked(grad, output, own).to(grad.dtype))[1:]


CHECKED = [label for label in FUNCTIONS if any(word in label for word in ("3x3", "odd", "groups", "flect", "10 to 3"))]
# Of locally connected layers a small one: in the interpreter each of their pixels is a program.
CHECKED = [label for label in CHECKED if "locally" not in label or label.endswith("two groups")]


def points(pair, device):
    """Leaves away from the kinks of ReLU and maximum: distinct values, far apart."""
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for shape in pair.shapes:
        size = torch.Size(shape)
        steps = torch.randperm(size.numel(), generator=generator).view(size)
        tensors.append((steps / size.numel() - 0.47).double().to(device).requires_grad_())
    if pair.masked:
        assert pair.plain(*tensors, *pair.rest).abs().min() > 1e-5
    return tensors


def checked(seed):
    """A third of the labels of each function, in turn. Without a seed, all."""
    counts = Counter(label.split()[0] for label in CHECKED)
    for label, turn in turns(CHECKED, lambda label: label.split()[0], seed or 0):
        if seed is None or turn % min(3, counts[label.split()[0]]) == 0:
            yield label


@pytest.mark.cover
@pytest.mark.rotated("label", checked)
def test_gradcheck(label, device):
    """Numerical differentiation in float64, backward and forward, one by one and in batches."""
    pair = FUNCTIONS[label]
    every = dict.fromkeys(("check_forward_ad", "check_batched_grad", "check_batched_forward_grad"), True)
    assert torch.autograd.gradcheck(lambda *t: pair.ours(*t, *pair.rest), points(pair, device), fast_mode=True, **every)


@pytest.mark.cover
@pytest.mark.rotated("label", checked)
def test_gradgradcheck(label, device):
    """The same of the gradients."""
    pair = FUNCTIONS[label]
    assert torch.autograd.gradgradcheck(lambda *t: pair.ours(*t, *pair.rest), points(pair, device), fast_mode=True)


def test_indices(device):
    """return_indices, with gradients through the values alone."""
    x = draw((2, 3, 9, 8), torch.float32, "channels_last").to(device).requires_grad_()
    with kernels_only("max_pool2d", "max_pool2d_input_grad"):
        y, indices = functional.max_pool2d(x, 3, 2, 1, return_indices=True)
        (grad,) = torch.autograd.grad(y.sum(), x)
    right, places = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert torch.equal(y, right)
    assert torch.equal(indices, places)
    assert not indices.requires_grad
    assert torch.equal(grad, torch.autograd.grad(right.sum(), x)[0])

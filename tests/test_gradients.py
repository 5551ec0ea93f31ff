"""The public functions' results and gradients against float64, in every dtype and format; gradcheck; every layer."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from cases import ADAPTIVES, CONVS, DTYPES, FORMATS, LINEARS, POOLS, TRANSPOSED, draw
from checks import assert_accurate, kernels_only, operator_of
from cnn_triton import functional
from cnn_triton.kernels import geometry


class Pair(NamedTuple):
    """A function of ours, PyTorch's (without the ReLU that ours may end in), the tensors' shapes, other arguments."""

    ours: Any
    plain: Any
    shapes: tuple[tuple[int, ...], ...]
    rest: tuple[Any, ...]
    relu: bool = False

    def theirs(self, *args):
        y = self.plain(*args)
        return y.relu() if self.relu else y


def conv2d_of(layer):
    """PyTorch's conv2d with the layer's padding mode, which it doesn't know."""
    window = geometry.conv_window(layer.size, layer.stride, layer.padding, layer.dilation)
    sides, mode = (*window.pads[2:], *window.pads[:2]), layer.padding_mode.replace("zeros", "constant")
    return lambda x, w, b, stride, padding, *rest: F.conv2d(F.pad(x, sides, mode), w, b, stride, 0, *rest)


FUNCTIONS = {}
for label, layer in CONVS.items():
    shapes = (layer.input, (layer.k, layer.input[1] // layer.groups, *layer.size), (layer.k,))
    rest = (layer.stride, layer.padding, layer.dilation, layer.groups)
    for function in (functional.conv2d, functional.conv2d_relu):
        ours = functools.partial(function, padding_mode=layer.padding_mode)
        relu = function is functional.conv2d_relu
        FUNCTIONS[f"{function.__name__} {label}"] = Pair(ours, conv2d_of(layer), shapes, rest, relu)
for label, layer in TRANSPOSED.items():
    shapes = (layer.input, (layer.input[1], layer.c // layer.groups, *layer.size), (layer.c,))
    FUNCTIONS[f"conv_transpose2d {label}"] = Pair(functional.conv_transpose2d, F.conv_transpose2d, shapes, layer[3:])
for label, layer in POOLS.items():
    shape, *rest, ceil, include, divisor = layer
    FUNCTIONS[f"max_pool2d {label}"] = Pair(functional.max_pool2d, F.max_pool2d, (shape,), (*rest, ceil))
    if layer.dilation == 1:
        rest = (*rest[:-1], ceil, include, divisor)
        FUNCTIONS[f"avg_pool2d {label}"] = Pair(functional.avg_pool2d, F.avg_pool2d, (shape,), rest)
for label, (shape, output) in ADAPTIVES.items():
    for name in ("adaptive_max_pool2d", "adaptive_avg_pool2d"):
        FUNCTIONS[f"{name} {label}"] = Pair(getattr(functional, name), getattr(F, name), (shape,), (output,))
for label, (m, c, k, groups) in LINEARS.items():
    if groups > 1:  # not of the public functions
        continue
    shapes = ((m, c), (k, c), (k,))
    FUNCTIONS[f"linear {label}"] = Pair(functional.linear, F.linear, shapes, ())
    FUNCTIONS[f"linear_relu {label}"] = Pair(functional.linear_relu, F.linear, shapes, (), True)


def differentiate(function, tensors, rest, grad):
    """Result and gradients, with the format of the tensors kept."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, *rest)
    return (y, *torch.autograd.grad(y, leaves, grad))


@pytest.mark.cover
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("label", FUNCTIONS)
def test_gradients(label, dtype, form, device):
    pair = FUNCTIONS[label]
    tensors = [draw(shape, dtype, form).to(device) for shape in pair.shapes]
    grad = draw(pair.theirs(*tensors, *pair.rest).shape, dtype, form).to(device)
    if 0 in pair.shapes[0]:
        mine = differentiate(pair.ours, tensors, pair.rest, grad)
    else:
        with kernels_only(operator_of(label)):
            mine = differentiate(pair.ours, tensors, pair.rest, grad)
    same = differentiate(pair.theirs, tensors, pair.rest, grad)
    wide = [t.double() for t in tensors]
    exact = list(differentiate(pair.theirs, wide, pair.rest, grad.double()))
    if pair.relu:  # where the rounded output is closed, the gradient's exact value is the closed one's
        exact[1:] = closed_as(pair, wide, grad.double(), mine[0])
        same = (same[0], *closed_as(pair, tensors, grad, mine[0]))
    for what, *values in zip(("output", "input", "weight", "bias"), mine, same, exact, strict=False):
        assert_accurate(*values, f"{what} gradient" if what != "output" else what)


def closed_as(pair, tensors, grad, output):
    """The gradients of a ReLU chain whose ReLU is open just where `output` is: outputs within rounding of 0 may be
    open in one precision and closed in another."""
    return differentiate(pair.plain, tensors, pair.rest, torch.where(output <= 0, 0, grad).to(grad.dtype))[1:]


CHECKED = [label for label in FUNCTIONS if any(word in label for word in ("3x3", "odd", "groups", "flect", "10 to 3"))]


def points(pair, device):
    """Leaves away from the kinks of ReLU and maximum: distinct values, far apart."""
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for shape in pair.shapes:
        size = torch.Size(shape)
        steps = torch.randperm(size.numel(), generator=generator).view(size)
        tensors.append((steps / size.numel() - 0.47).double().to(device).requires_grad_())
    if pair.relu:
        assert pair.plain(*tensors, *pair.rest).abs().min() > 1e-5
    return tensors


@pytest.mark.cover
@pytest.mark.parametrize("label", CHECKED)
def test_gradcheck(label, device):
    """Numerical differentiation in float64, backward and forward, one by one and in batches."""
    pair = FUNCTIONS[label]
    every = dict.fromkeys(("check_forward_ad", "check_batched_grad", "check_batched_forward_grad"), True)
    assert torch.autograd.gradcheck(lambda *t: pair.ours(*t, *pair.rest), points(pair, device), fast_mode=True, **every)


@pytest.mark.cover
@pytest.mark.parametrize("label", CHECKED)
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

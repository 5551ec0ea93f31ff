"""The public functions' results and gradients against float64, in every dtype and format; gradcheck; every layer."""

import pytest
import torch
import torch.nn.functional as F

from cases import CONVS, DTYPES, FORMATS, LINEARS, POOLS, draw
from checks import assert_accurate, kernels_only
from cnn_triton import functional

FUNCTIONS = {}  # label: (ours, PyTorch's, shapes of the tensors, other arguments)

for label, layer in CONVS.items():
    shapes = (layer.input, (layer.k, layer.input[1] // layer.groups, *layer.size), (layer.k,))
    rest = (layer.stride, layer.padding, layer.dilation, layer.groups)
    FUNCTIONS[f"conv2d {label}"] = (functional.conv2d, F.conv2d, shapes, rest)
    FUNCTIONS[f"conv2d_relu {label}"] = (functional.conv2d_relu, lambda *a: F.conv2d(*a).relu(), shapes, rest)
for label, layer in POOLS.items():
    shape, *rest, ceil, include, divisor = layer
    FUNCTIONS[f"max_pool2d {label}"] = (functional.max_pool2d, F.max_pool2d, (shape,), (*rest, ceil))
    if layer.dilation == 1:
        rest = (*rest[:-1], ceil, include, divisor)
        FUNCTIONS[f"avg_pool2d {label}"] = (functional.avg_pool2d, F.avg_pool2d, (shape,), rest)
for label, (m, c, k) in LINEARS.items():
    shapes = ((m, c), (k, c), (k,))
    FUNCTIONS[f"linear {label}"] = (functional.linear, F.linear, shapes, ())
    FUNCTIONS[f"linear_relu {label}"] = (functional.linear_relu, lambda *a: F.linear(*a).relu(), shapes, ())


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
    ours, theirs, shapes, rest = FUNCTIONS[label]
    tensors = [draw(shape, dtype, form).to(device) for shape in shapes]
    grad = draw(theirs(*tensors, *rest).shape, dtype, form).to(device)
    if 0 in shapes[0]:
        mine = differentiate(ours, tensors, rest, grad)
    else:
        with kernels_only(label.split()[0].removesuffix("_relu")):
            mine = differentiate(ours, tensors, rest, grad)
    same = differentiate(theirs, tensors, rest, grad)
    wide = [t.double() for t in tensors]
    exact = list(differentiate(theirs, wide, rest, grad.double()))
    if "relu" in label:  # where the rounded output is closed, the gradient's exact value is the closed one's
        exact[1:] = closed_as(theirs, wide, rest, grad.double(), mine[0])
        same = (same[0], *closed_as(theirs, tensors, rest, grad, mine[0]))
    for what, *values in zip(("output", "input", "weight", "bias"), mine, same, exact, strict=False):
        assert_accurate(*values, f"{what} gradient" if what != "output" else what)


def closed_as(function, tensors, rest, grad, output):
    """The gradients of a ReLU chain whose ReLU is open just where `output` is: outputs within rounding of 0 may be
    open in one precision and closed in another."""
    plain = F.linear if tensors[0].dim() == 2 else F.conv2d
    return differentiate(plain, tensors, rest, torch.where(output <= 0, 0, grad).to(grad.dtype))[1:]


@pytest.mark.parametrize(
    "label", [label for label in FUNCTIONS if "3x3" in label or "odd" in label or "groups" in label]
)
def test_gradcheck(label, device):
    """Numerical differentiation in float64, at points away from the kinks of ReLU and maximum."""
    ours, _, shapes, rest = FUNCTIONS[label]
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for shape in shapes:
        size = torch.Size(shape)
        steps = torch.randperm(size.numel(), generator=generator).view(size)  # distinct values, far apart
        tensors.append((steps / size.numel() - 0.47).double().to(device).requires_grad_())
    if "relu" in label:
        plain = F.linear if len(shapes[0]) == 2 else F.conv2d
        assert plain(*tensors, *rest).abs().min() > 1e-5
    assert torch.autograd.gradcheck(lambda *t: ours(*t, *rest), tensors, fast_mode=True)


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

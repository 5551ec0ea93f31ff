"""torch.nn.functional's semantics to the letter: NaN, ties, empty batches, ceil_mode, second gradients."""

import pytest
import torch
import torch.nn.functional as F

from checks import assert_accurate, kernels_only, operator_of
from cnn_triton import functional
from cnn_triton.kernels.matrix import activations
from cnn_triton.kernels.pool import max_pool2d
from semantics import INF, NAN, PAIRS, both, draw, every
from tables import ACTIVATIONS


@pytest.mark.cover
@every
@pytest.mark.parametrize("value", [NAN, INF, -INF, -0.0], ids=str)
def test_odd_values(name, value, device):
    tensors = [t.detach() for t in draw(name, device)]
    tensors[0].flatten()[::7] = value
    if tensors[0].dim() > 2 and value != -0.0:
        tensors[0][0, 0] = value  # whole windows of it
    (ours, our_grads), (theirs, their_grads) = both(name, tensors)
    assert_accurate(ours, theirs, theirs)
    for ours, theirs in zip(our_grads, their_grads, strict=True):
        assert_accurate(ours, theirs, theirs, "gradient")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_at_odd_values(name, dtype, device):
    """Values and gradients as PyTorch's, NaN too: in the places that formulas are wrong in, and on the kinks. PyTorch's
    of one number at a time: in a CPU's vectors some of its own differ at NaN and infinity."""
    word, *numbers = name.split()
    odd = [NAN, INF, -INF, 0.0, -0.0, 1e-30, -1e-30, 1e-3, -1e-3, 0.05, -0.07, 1.0, -1.0, 3.0, -3.0, 6.0, 30.0, -30.0]
    x = torch.tensor([*odd, 200.0, *(float(n) for n in numbers)], dtype=dtype, device=device)[:, None]
    one = torch.ones(1, 1, dtype=dtype, device=device)
    leaf = x.clone().requires_grad_()
    y = functional.linear(leaf, one, activation=(word, *map(float, numbers)))
    leaves = [each.clone().requires_grad_() for each in x]
    each = [activations.reference(name, leaf * one[0]) for leaf in leaves]
    right = torch.stack([activations.reference(name, each.double()) for each in x]).to(dtype)
    grads = [torch.autograd.grad(y.sum(), leaf)[0], torch.stack(torch.autograd.grad(each, leaves, [one[0]] * len(x)))]
    if word == "hardsigmoid":  # PyTorch's sixth is float32's in float64, too
        grads[1] = torch.where(grads[1] > 0, 1 / 6, grads[1]).to(dtype)
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(y, right, rtol=tolerance, atol=tolerance / 100, equal_nan=True)
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if activations.of(name).has_second_derivative])
def test_activation_of_every_number(name, dtype, device):
    """Values and gradients against float64, of all float16 and bfloat16 up to 10⁴ and as many float32: to the last bit
    of a half, and the last four of a float32. Of a half's gradients those that aren't computed from a rounded value."""
    patterns = torch.arange(-(2**15), 2**15, device=device)
    if dtype == torch.float32:
        x = (patterns * 2**16 + torch.randint(2**16, patterns.shape, device=device)).to(torch.int32).view(dtype)
    else:
        x = patterns.to(torch.int16).view(dtype)
    x = x[x.abs() <= 1e4][:, None]
    word, *numbers = name.split()
    leaves = [x.clone().requires_grad_(), x.double().requires_grad_()]
    one = torch.ones(1, 1, dtype=dtype, device=device)
    ours = functional.linear(leaves[0], one, activation=(word, *map(float, numbers)))
    right = activations.reference(name, leaves[1])
    grads = [torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in zip((ours, right), leaves, strict=True)]
    precise = dtype == torch.float32
    near = {
        "rtol": torch.finfo(dtype).eps * (16 if precise else 1),
        "atol": 2e-6 if precise else 1e-5,
        "check_dtype": False,
    }
    torch.testing.assert_close(ours, right, **near)
    if precise or activations.of(name).saves == "input":
        torch.testing.assert_close(*grads, **near)


@pytest.mark.parametrize("average", [False, True], ids=["maximum", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pooled_ties(average, dtype, device):
    """Of equal values the first tap has the gradient, of NaN the last; of values that ReLU closes, none."""
    rows = [[1, 3, 3, 2], [NAN, 1, NAN, 2], [-1, -INF, 0, -0.0], [INF, INF, 1, 5], [-1, -2, NAN, INF], [1e-8, 0, 0, 0]]
    x = torch.tensor(rows, dtype=dtype, device=device).view(1, -1, 2, 2)
    one = torch.ones(len(rows), 1, 1, 1, dtype=dtype, device=device)
    ours = functional.conv2d_relu_avg_pool2d if average else functional.conv2d_relu_max_pool2d
    theirs = F.avg_pool2d if average else F.max_pool2d
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    y, right = ours(leaves[0], one, groups=len(rows)), theirs(leaves[1].relu(), 2)
    torch.testing.assert_close(y, right, rtol=0, atol=0, equal_nan=True)
    grads = [torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in zip((y, right), leaves, strict=True)]
    torch.testing.assert_close(*grads, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("taps", [(1, 1), (15, 17), (16, 16)], ids=str)
def test_code_is_small(taps, device):
    """One byte up to 255 pixels of a window, two beyond; of an average, a byte for every eight."""
    x, w = torch.randn(1, 1, *taps, device=device), torch.ones(1, 1, 1, 1, device=device)
    for average in (False, True):
        how = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "zeros", taps, average)
        y, code = torch.ops.cnn_triton.conv2d_pool(x, w, None, None, *how)
        count = taps[0] * taps[1]
        assert code.dtype == (torch.int16 if count > 255 and not average else torch.uint8)
        assert code.shape == (-(-count // 8) if average else 1, *y.shape)
        right = x.relu().mean() if average else x.relu().amax()
        torch.testing.assert_close(y.flatten()[0], right)


def test_relu_gradient_at_nan_and_zero(device):
    """1 at NaN, 0 at 0 and at -0.0."""
    x = torch.tensor([[NAN], [0.0], [-0.0], [1.0], [-1.0]], device=device, requires_grad=True)
    one = torch.ones(1, 1, device=device)
    y = functional.linear_relu(x, one)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert grad.flatten().tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("row", "value", "index"),
    [
        ([1, 3, 3, 2], 3, 1),
        ([NAN, 1, NAN, 2], NAN, 2),
        ([-INF, -INF, -INF, -INF], -INF, 0),
        ([0.0, -0.0, 0.0, -0.0], 0, 0),
        ([1, INF, NAN, INF], NAN, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_winner(row, value, index, dtype, device):
    x = torch.tensor(row, dtype=dtype, device=device).view(1, 1, 2, 2)
    y, at = functional.max_pool2d(x, 2, return_indices=True)
    right, place = F.max_pool2d(x, 2, return_indices=True)
    assert at.item() == place.item() == index
    assert torch.equal(y.isnan(), right.isnan())
    assert y.item() == value or value != value
    assert at.dtype == torch.int64


@pytest.mark.parametrize(
    ("size", "dtype"), [((15, 17), torch.uint8), ((16, 16), torch.int16), ((182, 182), torch.int32)], ids=str
)
def test_winner_is_small(size, dtype, device):
    """One byte up to 255 taps, two beyond, four beyond 32,767 (for which only the shapes are computed: the window
    has too many taps for the interpreter)."""
    x = torch.randn(1, 1, 184, 184, device=device)
    args = (x, (1, 1), (*size, 184, 184, 0, 0, 1, 1), True, False)
    op = max_pool2d.MAX_POOL2D
    assert op.fake(*args)[1].dtype == dtype
    if size[0] < 20:
        y, winner, _ = torch.ops.cnn_triton.max_pool2d(*args)
        right = op.reference(*args)
        assert torch.equal(y, right[0])
        assert torch.equal(winner, right[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_results_are_rounded_to_nearest(dtype, device):
    x, bias = torch.randn(300, 16, device=device, dtype=dtype), torch.randn(16, device=device, dtype=dtype)
    x[:8] *= torch.finfo(dtype).tiny / 16  # subnormal, and all that is left of some results
    bias[:4] = 0
    with kernels_only("linear"):
        y = functional.linear(x, torch.eye(16, device=device, dtype=dtype), bias)
    assert y.equal((x.double() + bias.double()).to(dtype))


@every
def test_empty_batch(name, device):
    tensors = [t.detach() for t in draw(name, device)]
    tensors[0] = tensors[0][:0]
    (ours, our_grads), (theirs, their_grads) = both(name, tensors)
    assert ours.shape == theirs.shape
    for ours, theirs in zip(our_grads, their_grads, strict=True):
        assert torch.equal(ours, theirs)


@every
def test_unbatched(name, device):
    tensors = [t.detach() for t in draw(name, device)]
    tensors[0] = tensors[0][1]
    with kernels_only(operator_of(name)):
        y = PAIRS[name][0](*tensors, *PAIRS[name][3])
    right = PAIRS[name][1](*tensors, *PAIRS[name][3])
    assert_accurate(y, right, right)
    if "max_pool" in name and "conv" not in name:
        y, at = PAIRS[name][0](*tensors, 2, return_indices=True)
        assert torch.equal(at, PAIRS[name][1](*tensors, 2, return_indices=True)[1])


def test_linear_leading_dimensions(device):
    x, w = torch.randn(2, 3, 5, device=device).double(), torch.randn(5, 4, device=device).double().t()
    for rows in (x, x[0, 0], x[:0], x.transpose(0, 1)):
        right = F.linear(rows, w)
        assert_accurate(functional.linear(rows, w), right, right)


@pytest.mark.parametrize("stride", [None, [], ()], ids=str)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_stride_defaults_to_the_window(name, stride, device):
    x = torch.randn(1, 2, 7, 9, device=device)
    theirs = getattr(F, name)(x, (2, 3))
    assert torch.equal(getattr(functional, name)(x, (2, 3), stride).shape == theirs.shape and theirs, theirs)


@pytest.mark.parametrize("divisor", [None, 3, -2])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
def test_divisors(divisor, include, ceil, device):
    x = torch.randn(1, 2, 6, 6, device=device).double()
    (ours, (our_grad,)), (theirs, (their_grad,)) = both("avg_pool2d", [x], (3, 2, 1, ceil, include, divisor))
    assert_accurate(ours, theirs, theirs)
    assert_accurate(our_grad, their_grad, their_grad)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_ceil_mode_over_the_image(name, device):
    """With ceil_mode a window may be larger than the image."""
    x = torch.randn(1, 2, 3, 5, device=device).double()
    rest = (4, 2, 0, 1, True) if "max" in name else (4, 2, 0, True)
    (ours, (our_grad,)), (theirs, (their_grad,)) = both(name, [x], rest)
    assert_accurate(ours, theirs, theirs)
    assert_accurate(our_grad, their_grad, their_grad)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_huge_window(name, device):
    size = 112 if device.type == "cuda" else 40  # the interpreter takes a millisecond a tap
    x = torch.randn(1, 1, size, size, device=device).mul(256).round().div(256).double()
    (ours, (our_grad,)), (theirs, (their_grad,)) = both(name, [x], (size,))
    assert_accurate(ours, theirs, theirs)
    assert_accurate(our_grad, their_grad, their_grad)


@pytest.mark.parametrize("stay", [False, True], ids=["any order", "as launched"])
def test_unpool_last_wins(stay, device):
    """Of values with one place the last in scan order stays; in PyTorch's CPU operator too, which goes over them."""
    x = torch.randn(2, 3, 40, 50, device=device)
    x = x if stay else x.to(memory_format=torch.channels_last)
    places = torch.randint(0, 60, (2, 3, 40, 51), device=device)[..., 1:]  # rows that are apart
    places = places.contiguous() if stay else places
    with kernels_only("max_unpool2d"):
        y = functional.max_unpool2d(x, places, 2)
    right = torch.zeros(6, 80 * 100)
    for plane, values, at in zip(right, x.cpu().contiguous().view(6, -1), places.cpu().reshape(6, -1), strict=True):
        for place, value in dict(zip(at.tolist(), values.tolist(), strict=True)).items():
            plane[place] = value
    assert torch.equal(y.cpu().flatten(), right.flatten())


@every
def test_no_channels(name, device):
    """What PyTorch does with an input without channels: its result, or its exception type."""
    ours, theirs, shapes, rest = PAIRS[name]
    shapes = [(s[0], 0, *s[2:]) if i == 0 else s for i, s in enumerate(shapes)]
    if len(shapes) > 1:
        shapes[1] = (0, *shapes[1][1:]) if "transpose" in name else (shapes[1][0], 0, *shapes[1][2:])
    leaves = [torch.zeros(s, device=device, requires_grad=True) for s in shapes]
    try:
        right = theirs(*leaves, *rest)
    except Exception as error:
        with pytest.raises(type(error)):
            ours(*leaves, *rest)
        return
    y = ours(*leaves, *rest)
    assert y.shape == right.shape
    grads = torch.autograd.grad(y.sum(), leaves)
    if name.startswith("adaptive_avg"):  # PyTorch's backward pass refuses what its forward pass took
        assert torch.equal(grads[0], leaves[0])
        return
    for mine, grad in zip(grads, torch.autograd.grad(right.sum(), leaves), strict=True):
        assert torch.equal(mine, grad)


@every
def test_second_gradients(name, device):
    ours, theirs, _, rest = PAIRS[name]
    leaves = draw(name, device)
    found = []
    for function in (ours, theirs):
        y = function(*leaves, *rest)
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    for mine, right in zip(*found, strict=True):
        # Second gradients multiply four drawn values: float64 rounds them, in another order than PyTorch does.
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12 * right.abs().max().item())


@every
def test_some_gradients(name, device):
    """Each tensor alone can ask for its gradient."""
    ours, theirs, shapes, rest = PAIRS[name]
    for i in range(len(shapes)):
        leaves = [t.detach().requires_grad_(i == j) for j, t in enumerate(draw(name, device))]
        mine, right = (torch.autograd.grad(f(*leaves, *rest).sum(), leaves[i])[0] for f in (ours, theirs))
        assert_accurate(mine, right, right)

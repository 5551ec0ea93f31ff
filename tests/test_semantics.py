"""torch.nn.functional's semantics to the letter: NaN, ties, empty batches, memory formats, second gradients."""

import functools
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import cnn_triton
from cases import ACTIVATIONS
from checks import assert_accurate, kernels_only, operator_of
from cnn_triton import functional, nn
from cnn_triton.kernels.base.lang import tl
from cnn_triton.kernels.core.tensors import index_type
from cnn_triton.kernels.matrix import activations
from cnn_triton.kernels.pool import max_pool2d

NAN, INF = float("nan"), float("inf")


def unpooling(function):
    """max_unpool1d or max_unpool2d of values of which every two have one place."""

    def unpool(x):
        size = x.shape[-1] * (x.shape[-2] if function.__name__.endswith("2d") else 1)
        places = torch.arange(size, device=x.device) // 2 * 3
        return function(x, places.view(x.shape[-2:] if size > x.shape[-1] else -1).expand(x.shape), 2)

    return unpool


def padded(mode):
    """conv2d with this padding mode: ours, and PyTorch's of a padded copy."""
    return (
        lambda x, w, b: functional.conv2d(x, w, b, 2, (1, 2), padding_mode=mode),
        lambda x, w, b: F.conv2d(F.pad(x, (2, 2, 1, 1), mode), w, b, 2),
        CONV,
        (),
    )


CONV, ROW = ((2, 3, 6, 7), (4, 3, 3, 3), (4,)), ((2, 3, 9), (4, 3, 3), (4,))
BACK, BACK_ROW = ((2, 3, 4, 5), (3, 4, 3, 3), (4,)), ((2, 3, 5), (3, 4, 3), (4,))
PAIRS = {  # ours, PyTorch's, the tensors' shapes, other arguments
    "conv2d": (functional.conv2d, F.conv2d, CONV, (1, 1)),
    "conv2d_relu": (functional.conv2d_relu, lambda *a: F.conv2d(*a).relu(), CONV, (1, 1)),
    "conv2d leaky_relu": (
        functools.partial(functional.conv2d, activation=("leaky_relu", 0.25)),
        lambda *a: F.leaky_relu(F.conv2d(*a), 0.25),
        CONV,
        (1, 1),
    ),
    "conv2d_relu_max_pool2d": (
        functional.conv2d_relu_max_pool2d,
        lambda *a: F.max_pool2d(F.conv2d(*a).relu(), 2),
        CONV,
        (1, 1),
    ),
    "conv2d_relu_avg_pool2d": (
        functional.conv2d_relu_avg_pool2d,
        lambda *a: F.avg_pool2d(F.conv2d(*a).relu(), 2),
        CONV,
        (1, 1),
    ),
    "conv2d reflect": padded("reflect"),
    "conv2d replicate": padded("replicate"),
    "conv2d circular": padded("circular"),
    "conv1d": (functional.conv1d, F.conv1d, ROW, (2, 1)),
    "conv_transpose2d": (functional.conv_transpose2d, F.conv_transpose2d, BACK, (2, 1, (1, 0))),
    "conv_transpose1d": (functional.conv_transpose1d, F.conv_transpose1d, BACK_ROW, (2, 1, 1)),
    "linear": (functional.linear, F.linear, ((5, 6), (4, 6), (4,)), ()),
    "linear_relu": (functional.linear_relu, lambda *a: F.linear(*a).relu(), ((5, 6), (4, 6), (4,)), ()),
    "max_pool2d": (functional.max_pool2d, F.max_pool2d, ((2, 3, 6, 7),), (3, 2, 1)),
    "max_pool1d": (functional.max_pool1d, F.max_pool1d, ((2, 3, 9),), (3, 2, 1)),
    "avg_pool2d": (functional.avg_pool2d, F.avg_pool2d, ((2, 3, 6, 7),), (3, 2, 1)),
    "avg_pool1d": (functional.avg_pool1d, F.avg_pool1d, ((2, 3, 9),), (3, 2, 1)),
    "adaptive_avg_pool2d": (functional.adaptive_avg_pool2d, F.adaptive_avg_pool2d, ((2, 3, 6, 7),), ((4, 1),)),
    "adaptive_avg_pool1d": (functional.adaptive_avg_pool1d, F.adaptive_avg_pool1d, ((2, 3, 9),), (4,)),
    "adaptive_max_pool2d": (functional.adaptive_max_pool2d, F.adaptive_max_pool2d, ((2, 3, 6, 7),), ((4, 3),)),
    "adaptive_max_pool1d": (functional.adaptive_max_pool1d, F.adaptive_max_pool1d, ((2, 3, 9),), (4,)),
    "max_unpool2d": (unpooling(functional.max_unpool2d), unpooling(F.max_unpool2d), ((2, 3, 4, 5),), ()),
    "max_unpool1d": (unpooling(functional.max_unpool1d), unpooling(F.max_unpool1d), ((2, 3, 6),), ()),
}


every = pytest.mark.parametrize("name", PAIRS)


def draw(name, device, dtype=torch.float64):
    """Leaves on a grid that float64 sums exactly."""
    return [(torch.randn(s) * 1024).round().div(1024).to(device, dtype).requires_grad_() for s in PAIRS[name][2]]


def both(name, tensors, extra=None):
    """(ours, PyTorch's) results and gradients, for the same incoming gradient."""
    ours, theirs, _, rest = PAIRS[name]
    rest = rest if extra is None else extra
    results = []
    for function in (ours, theirs):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves, *rest)
        results.append((y, torch.autograd.grad(y.square().sum() if y.numel() else y.sum(), leaves)))
    return results


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
    places = torch.randint(0, 60, x.shape, device=device)
    with kernels_only("max_unpool2d"):
        y = functional.max_unpool2d(x, places, 2)
    right = torch.zeros(6, 80 * 100)
    for plane, values, at in zip(right, x.cpu().contiguous().view(6, -1), places.cpu().view(6, -1), strict=True):
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


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("image", [(2, 3, 6, 7), (2, 1, 6, 7), (2, 3, 1, 1), (1, 3, 6, 7)], ids=str)
@pytest.mark.parametrize("input_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("weight_format", LAYOUTS, ids=str)
def test_conv_memory_format(input_format, weight_format, image, device):
    """The output's format, and the gradients', are PyTorch's."""
    x = torch.randn(image, device=device).to(memory_format=input_format).requires_grad_()
    w = torch.randn(4, image[1], 3, 3, device=device).to(memory_format=weight_format).requires_grad_()
    y, right = functional.conv2d(x, w, padding=1), F.conv2d(x, w, padding=1)
    for layout in LAYOUTS:
        assert y.is_contiguous(memory_format=layout) == right.is_contiguous(memory_format=layout)
    grads = torch.autograd.grad(y.sum(), (x, w))
    assert grads[0].stride() == x.stride()
    assert grads[1].stride() == w.stride()


@pytest.mark.parametrize("name", [name for name in PAIRS if "1d" in name])
def test_rows_memory_format(name, device):
    """Rows whose channels are adjacent: as PyTorch's, results are contiguous, but those of pools."""
    ours, theirs, shapes, rest = PAIRS[name]
    n, c, w = shapes[0]
    tensors = [torch.randn(n, w, c, device=device).transpose(1, 2)] + [
        torch.randn(s, device=device) for s in shapes[1:]
    ]
    tensors[0].requires_grad_()  # PyTorch's maximum without gradients is another operator on a CPU
    assert ours(*tensors, *rest).stride() == theirs(*tensors, *rest).stride()


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pool_memory_format(name, layout, device):
    x = torch.randn(2, 3, 6, 8, device=device).to(memory_format=layout).requires_grad_()
    y = getattr(functional, name)(x, 2)
    assert y.stride() == getattr(F, name)(x, 2).stride()
    assert torch.autograd.grad(y.sum(), x)[0].stride() == x.stride()


@pytest.mark.cover
@every
@pytest.mark.parametrize("view", ["expanded", "transposed", "sliced", "offset"])
def test_views(name, view, device):
    tensors = [t.detach() for t in draw(name, device)]
    x = tensors[0]
    tensors[0] = {
        "expanded": lambda: x[:1].expand(x.shape),
        "transposed": lambda: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "sliced": lambda: torch.stack((x, x), -1).flatten(-2)[..., ::2],
        "offset": lambda: torch.cat((x.new_ones(3), x.flatten()))[3:].view(x.shape),
    }[view]()
    (ours, our_grads), (theirs, their_grads) = both(name, tensors)
    assert_accurate(ours, theirs, theirs)
    for ours, theirs in zip(our_grads, their_grads, strict=True):
        assert_accurate(ours, theirs, theirs, "gradient")


@every
def test_expanded_gradient(name, device):
    """y.sum() sends back a gradient of stride 0."""
    ours, theirs, _, rest = PAIRS[name]
    leaves = draw(name, device)
    grads = [torch.autograd.grad(function(*leaves, *rest).sum(), leaves) for function in (ours, theirs)]
    for mine, right in zip(*grads, strict=True):
        assert_accurate(mine, right, right)


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


def test_backend(device):
    x, w = torch.randn(1, 2, 5, 5, device=device), torch.randn(3, 2, 3, 3, device=device)
    before = cnn_triton.launches()
    with cnn_triton.backend("aten"):
        assert torch.equal(functional.conv2d(x, w), F.conv2d(x, w))
        assert cnn_triton.launches() == before
        with cnn_triton.backend("auto"):
            functional.conv2d(x, w)
            assert cnn_triton.launches() != before
        before = cnn_triton.launches()
        functional.conv2d_relu(x, w)
        assert cnn_triton.launches() == before
    functional.conv2d(x, w)
    assert cnn_triton.launches() != before
    with pytest.raises(ValueError, match="'nope'"), cnn_triton.backend("nope"):
        pass


def test_sizes_of_a_traced_image(device):
    """torch.compile with sizes unknown: windows that are computed from them."""

    def chain(x, w):
        x = functional.conv2d(x, w, padding=x.shape[2] // 4)
        x = functional.max_pool2d(x, (x.shape[2] // 4, 3))
        x = functional.adaptive_max_pool2d(x, (x.shape[2] // 2, 3))
        return functional.avg_pool2d(x, x.shape[2:])

    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True, dynamic=True)
    w = torch.randn(3, 2, 3, 3, device=device)
    for size in (8, 12):
        x = torch.randn(2, 2, size, 20, device=device)
        assert torch.equal(compiled(x, w), chain(x, w))


def test_threads(device):
    """Calls from several threads at once are right."""
    x, w = torch.randn(2, 3, 6, 6, device=device).double(), torch.randn(4, 3, 3, 3, device=device).double()
    right, wrong = F.conv2d(x, w), []

    def work():
        for _ in range(3):
            try:
                torch.testing.assert_close(functional.conv2d(x, w), right)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_wide_offsets(monkeypatch, device):
    """Offsets of 64 bits, which tensors beyond 2^31 elements get, give the same results."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("cnn_triton.kernels.") and hasattr(module, "index_type"):
            monkeypatch.setattr(module, "index_type", lambda *tensors: tl.int64)
    for name in PAIRS:
        (ours, our_grads), (theirs, their_grads) = both(name, draw(name, device))
        assert_accurate(ours, theirs, theirs)
        for mine, right in zip(our_grads, their_grads, strict=True):
            assert_accurate(mine, right, right)


FAR = {  # label: operator's name, shape of the weight, groups
    "dense": ("conv2d", (4, 2, 3, 1), 1),
    "depthwise": ("conv2d", (4, 1, 3, 1), 2),
    "narrow groups": ("conv2d", (10, 1, 3, 1), 2),
    "locally connected": ("locally_connected2d", (5, 1, 4, 3, 1, 2), 1),
}


@pytest.mark.parametrize("label", FAR)
def test_rows_far_apart(label, device):
    """Images and gradients of few pixels whose offsets need 64 bits; of the memory between them nothing is touched."""
    name, size, groups = FAR[label]
    op, dtype = getattr(torch.ops.cnn_triton, name), torch.float16
    memory = torch.empty(2**31 + 2**26, dtype=dtype, device=device)

    def apart(values):
        _, c, h, w = values.shape
        far = memory.as_strided(values.shape, (c * w, w, 2**31 // (h - 1), 1))
        return far.copy_(values)

    x, w = torch.randn(2, 2, 7, 1, dtype=dtype, device=device), torch.randn(size, dtype=dtype, device=device)
    how = ([1, 1], [0] * 4, [1, 1], groups, *(["zeros"] if name == "conv2d" else []))
    forward = lambda x: op(x, w, None, None, None, None, *how, "relu")  # noqa: E731
    right = forward(x)
    assert torch.equal(forward(apart(x)), right)
    grad, last = torch.randn_like(right), [False] * (name == "conv2d")
    input_grad = getattr(torch.ops.cnn_triton, f"{name}_input_grad")
    weight_grad = getattr(torch.ops.cnn_triton, f"{name}_weight_grad")
    assert torch.equal(input_grad(apart(grad), w, x.shape, *how, False), input_grad(grad, w, x.shape, *how, False))
    right = weight_grad(grad, x, size, *how, *last)
    assert torch.equal(weight_grad(apart(grad), x, size, *how, *last), right)
    assert torch.equal(weight_grad(grad, apart(x), size, *how, *last), right)


def test_wide_offsets_where_needed():
    """64 bits for a tensor beyond 2^31 elements."""
    small = torch.empty(2, 2, 2, 2, device="meta")
    assert index_type(small) == tl.int32
    assert index_type(small, torch.empty(2, 2**29, 2, 2, device="meta")) == tl.int64


class Named(torch.Tensor):
    """A tensor that says itself what operators do, and knows PyTorch's alone."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=values.device)

    def __init__(self, values):
        self.values_ = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func.name().startswith("aten::"), f"{func.name()} was asked of a class that doesn't know it"
        plain = lambda value: value.values_ if isinstance(value, cls) else value  # noqa: E731
        result = func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})
        return cls(result) if func is torch.ops.aten.detach.default else result


@pytest.mark.parametrize("kind", ["sparse", "class of its own", "jagged"])
def test_tensors_that_kernels_cannot_read(kind, device):
    """They are left to PyTorch's operators, in functions and in swapped layers."""
    layer = torch.nn.Linear(8, 8, bias=False).to(device)
    x, w = torch.randn(3, 8, device=device), torch.randn(8, 8, device=device).relu()
    if kind == "sparse":
        pairs = [(x.to_sparse(), w)]
    elif kind == "jagged":
        pairs = [(torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged), w)]
    else:
        pairs = [(x, Named(w)), (Named(x), w)]
    for x, w in pairs:
        right = F.linear(x, w)
        before = cnn_triton.launches()
        ours = [functional.linear(x, w)]
        layer.weight = torch.nn.Parameter(w, requires_grad=False)
        converted = torch.nn.Sequential(layer)
        cnn_triton.convert(converted)
        ours.append(converted(x))
        cnn_triton.revert(converted)
        assert cnn_triton.launches() == before
        for mine in ours:
            values = [(mine.values(), right.values())] if kind == "jagged" else [(mine, right)]
            torch.testing.assert_close(*values[0])


def test_padding_that_was_changed(device):
    """A layer in another padding mode pads by what its constructor wrote down, as PyTorch's does; and by what the user
    wrote there later."""
    for mode in ("reflect", "replicate", "circular", "zeros"):
        layers = [of.Conv2d(2, 3, 3, padding=1, padding_mode=mode).to(device) for of in (nn, torch.nn)]
        layers[1].load_state_dict(layers[0].state_dict())
        x = torch.randn(2, 2, 6, 7, device=device)
        for name, value in (("padding", (2, 1)), ("_reversed_padding_repeated_twice", [1, 2, 0, 3])):
            for layer in layers:
                setattr(layer, name, value)
            ours, theirs = (layer(x) for layer in layers)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_replaced_call_of_the_convolution(device):
    """A swapped layer calls what PyTorch's would."""
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3)).to(device)
    cnn_triton.convert(layer)
    layer[0]._conv_forward = lambda input, weight, bias: F.conv2d(input, 2 * weight, bias)
    x = torch.randn(2, 2, 6, 7, device=device)
    right = F.conv2d(x, 2 * layer[0].weight, layer[0].bias)
    torch.testing.assert_close(layer(x), right, rtol=1e-4, atol=1e-4)


def test_what_pytorch_can_do_alone(device):
    """Where no kernel runs, nothing of PyTorch's is lost."""
    with cnn_triton.backend("aten"):
        row = torch.arange(3, device=device)
        for dtype in (torch.int64, torch.complex64, torch.float32):
            values = row.to(dtype)
            assert torch.equal(functional.linear(values, values), F.linear(values, values))
            images, window = values.expand(1, 1, 3, 3), values[:2].expand(1, 1, 2, 2)
            if device.type == "cpu":
                assert torch.equal(functional.conv2d(images, window), F.conv2d(images, window))

"""Where values lie in memory: formats of results and gradients, views, and offsets that need 64 bits."""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

from checks import assert_accurate
from cnn_triton import functional
from cnn_triton.kernels.base.lang import tl
from cnn_triton.kernels.core import images as images_module
from cnn_triton.kernels.core.chips import assuming
from cnn_triton.kernels.core.images import Images
from cnn_triton.kernels.core.op import collecting
from cnn_triton.kernels.core.tensors import index_type
from cnn_triton.kernels.streaming.repack import repack
from semantics import PAIRS, both, draw, every

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


def apart(x):
    """Images in other layouts: contiguous, channels_last, every other column, transposed, one image for all."""
    wide = torch.stack((x, x), -1).flatten(-2)[..., ::2]
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    return x, x.contiguous(memory_format=torch.channels_last), wide, turned, x[:1].expand(x.shape)


@pytest.mark.parametrize("shape", [(2, 8, 6, 7), (1, 130, 9, 9), (3, 64, 1, 65), (2, 1, 5, 5), (0, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64], ids=str)
def test_repack(shape, dtype, device):
    """Images in any layout become images in any other of distinct elements."""
    for x in apart((100 * torch.randn(shape, device=device)).to(dtype)):
        for y in apart(torch.full(shape, 77, dtype=dtype, device=device))[:4]:
            repack(x, y)
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("channels", "kernels"), [(8, ["repack_kernel", "conv_kernel", "repack_kernel"]), (6, ["conv_kernel"])]
)
def test_contiguous_products(channels, kernels, device):
    """Contiguous images are repacked for products if their channels fill 16 bytes."""
    x = torch.randn(2, channels, 7, 7, device=device, dtype=torch.float16)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=torch.float16)
    with collecting() as found, assuming("sm_80"):
        functional.conv2d(x, weight, padding=1)
    assert [each.kernel.__name__ for each in found] == kernels


@pytest.mark.parametrize("mixed", [False, True], ids=["contiguous", "mixed"])
def test_repacked_epilogue(mixed, device):
    """With a residual and a preactivation, and with gradients, layouts change nothing but strides."""
    shapes = ((2, 8, 7, 7), (16, 8, 3, 3), (16,), (2, 16, 7, 7))
    drawn = [torch.randn(shape, device=device, dtype=torch.float16) for shape in shapes]
    found = []
    for last in ([False] * 4, [mixed, True, False, not mixed]):
        x, weight, bias, residual = tensors = [
            each.detach().contiguous(memory_format=LAYOUTS[it]).requires_grad_()
            for each, it in zip(drawn, last, strict=True)
        ]
        with assuming("sm_80"):
            y = functional.conv2d(x, weight, bias, padding=1, residual=residual, activation="gelu")
            grads = torch.autograd.grad(y.float().square().sum(), tensors)
        found.append((y, *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


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


def views(shape):
    """Images of a shape in all kinds of strides."""
    n, c, h, w = shape
    yield torch.empty(shape)
    yield torch.empty(shape).to(memory_format=torch.channels_last)
    yield torch.empty(n, c, h, w + 1)[..., :w]
    yield torch.empty(n, c, h + 1, w)[..., :h, :]
    yield torch.empty(n, h, w, 8 + c).permute(0, 3, 1, 2)[:, :c]
    yield torch.empty(n, c, w, h).transpose(2, 3)
    yield torch.empty(1, c, h, w).expand(shape)
    yield torch.empty(1).expand(shape)


@pytest.mark.parametrize("shape", [*itertools.product((1, 3), (1, 8), (1, 4), (1, 16))], ids=str)
def test_merged(shape):
    """Images with fewer dimensions have the same pixels in the same order, and vectors that are aligned."""

    def pixels(it):
        n, h, w = torch.meshgrid(*map(torch.arange, it.size), indexing="ij")
        return (n * it.strides.n + h * it.strides.h + w * it.strides.w).flatten()

    for pair in itertools.product(views(shape), repeat=2):
        images = [Images.of(tensor) for tensor in pair]
        merged = images_module.merged(*images)
        for it, was in zip(merged, images, strict=True):
            assert torch.equal(pixels(it), pixels(was))
            assert it.strides.c == was.strides.c
        for across in (False, True):
            elements, told = images_module.vector(merged, shape[1], across)
            assert told in (1, elements)
            for it in merged:
                if elements > 1 and across:
                    assert it.strides.c == 1
                    assert shape[1] % elements == 0
                    assert (pixels(it) % elements == 0).all()
                elif elements > 1:
                    first = pixels(it).view(-1, elements)
                    assert (first[:, 0] % elements == 0).all()
                    assert (first == first[:, :1] + torch.arange(elements)).all()


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

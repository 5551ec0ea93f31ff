"""Calls that kernels run and calls that are left to PyTorch: backend, traced sizes, threads, other classes."""

import threading

import pytest
import torch
import torch.nn.functional as F

import cnn_triton
from cnn_triton import functional, nn


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


def test_where(device):
    """A device or its name."""
    assert cnn_triton.where(str(device)) == cnn_triton.where(device) != "PyTorch's own operators"
    with cnn_triton.backend("aten"):
        assert cnn_triton.where("cpu") == "PyTorch's own operators"
    with pytest.raises(RuntimeError, match="nowhere"):
        cnn_triton.where("nowhere")


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

"""Locally connected modules: results, gradients, copies, errors, and weights of Keras."""

import copy
import pickle
import re

import pytest
import torch

import cnn_triton
from checks import kernels_only, unfolded
from cnn_triton import functional, nn
from module_pairs import run

LOCAL = {"stride": 2, "padding": (1, 0), "groups": 2, "dtype": torch.float64}


@pytest.mark.parametrize("bias", [True, "pixel", "channel", False])
def test_locally_connected(bias, device):
    """Results and gradients through the kernels, and by PyTorch; copies; weights start as a convolution's do."""
    layer = nn.LocallyConnected2d(4, 6, (7, 6), 3, bias=bias, **LOCAL).to(device)
    assert layer.weight.shape == (4, 2, 6, 3, 3, 2)
    shapes = {False: None, "channel": (6,)}
    assert (None if layer.bias is None else tuple(layer.bias.shape)) == shapes.get(bias, (4, 2, 6))
    bound = 1 / (3 * 3 * 2) ** 0.5
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64, device=device)
    with kernels_only("locally_connected2d", "locally_connected2d_input_grad", "locally_connected2d_weight_grad"):
        got = run(layer, x, False)
    leaf = x.clone().requires_grad_()
    right = unfolded(leaf, layer.weight, layer.bias, 2, (1, 0), 1, 2)
    expected = (right, *torch.autograd.grad(right.square().sum(), (leaf, *layer.parameters())))
    with cnn_triton.backend("aten"):
        plain = run(layer, x, False)
    for mine, theirs, other in zip(got, expected, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other, theirs, rtol=1e-12, atol=1e-12)
    copied = pickle.loads(pickle.dumps(layer))
    copied.load_state_dict(copy.deepcopy(layer).state_dict(), strict=True)
    assert torch.equal(copied(x), layer(x))
    assert "input_size=(7, 6), kernel_size=(3, 3), stride=2, padding=(1, 0)" in repr(layer)
    assert f"bias={'pixel' if bias is True else bias!r}".replace("=pixel", "='pixel'") in repr(layer)
    with pytest.raises(RuntimeError, match=r"input must be images of \(7, 6\), \(H, W\), but got shape \(3, 4, 6, 7\)"):
        layer(x.transpose(2, 3))
    assert cnn_triton.convert(torch.nn.Sequential(layer)).layers == []  # PyTorch has no such layer


@pytest.mark.parametrize("bias", ["pixel", "channel", False])
def test_locally_connected_without_channels(bias, device):
    """No channel in, no channel out, as torch.nn.Conv2d has it; a bias' gradient is 0."""
    layer = nn.LocallyConnected2d(0, 4, (5, 6), 3, bias=bias).to(device)
    x = torch.randn(2, 0, 5, 6, device=device, requires_grad=True)
    for where in ("auto", "aten"):
        with cnn_triton.backend(where):
            y = layer(x)
            assert y.shape == (2, 0, 3, 4)
            grads = torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=where == "aten")
        assert all(grad is None or not grad.any() for grad in grads)
    y = torch.ops.cnn_triton.locally_connected2d(
        x.detach(), layer.weight.detach(), None, None, None, None, [1, 1], [0] * 4, [1, 1], 1, "relu"
    )
    assert y.shape == (2, 0, 3, 4)


def test_locally_connected_errors():
    with pytest.raises(ValueError, match=r"multiples of groups, 0 or more, but got 3, 4 and groups=2"):
        nn.LocallyConnected2d(3, 4, (6, 6), 3, groups=2)
    for wrong in ("map", torch.ones(4)):
        with pytest.raises(ValueError, match="bias must be True, False, 'pixel' or 'channel', but got"):
            nn.LocallyConnected2d(3, 4, (6, 6), 3, bias=wrong)
    with pytest.raises(TypeError, match="groups must be an int, but got 'a'"):
        nn.LocallyConnected2d(3, 4, (6, 6), 3, groups="a")
    with pytest.raises(ValueError, match="0 or more, but got -3"):
        nn.LocallyConnected2d(-3, 4, (6, 6), 3)
    with pytest.raises(ValueError, match="bias must be True, False, 'pixel' or 'channel', but got 'map'"):
        nn.LocallyConnected2d(3, 4, (6, 6), 3, bias="map")
    with pytest.raises(RuntimeError, match="window spans 7 x 7"):
        nn.LocallyConnected2d(3, 4, (6, 6), 7)
    with pytest.raises(TypeError, match=r"input_size must be an int or a sequence of 2 ints, but got 6\.0"):
        nn.LocallyConnected2d(3, 4, 6.0, 3)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_weights_of_keras(data_format, device):
    """A kernel of Keras' LocallyConnected2D, as its own formula multiplies it: for each output pixel the flattened
    window times a matrix."""
    layer = nn.LocallyConnected2d(3, 5, (6, 7), (2, 3), (2, 1), dtype=torch.float64)
    (p, q), last = layer.output_size, data_format == "channels_last"
    kernel, bias = torch.randn(p * q, 2 * 3 * 3, 5).numpy(), torch.randn(p, q, 5)
    layer.load_keras(kernel, bias, data_format)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    y = layer.to(device)(x.to(device)).cpu()
    for i in range(p):
        for j in range(q):
            window = x[:, :, 2 * i : 2 * i + 2, j : j + 3]
            row = (window.permute(0, 2, 3, 1) if last else window).flatten(1)
            # Keras reshapes the bias of channels_first to (K, P, Q).
            beside = bias[i, j] if last else bias.reshape(5, p, q)[:, i, j]
            right = row @ torch.from_numpy(kernel[i * q + j]).double() + beside
            torch.testing.assert_close(y[:, :, i, j], right, rtol=1e-12, atol=1e-12)
    for wrong, words in (
        ((kernel[1:], bias), r"kernel must have shape \(15, 18, 5\)"),
        ((kernel,), r"bias must be an array of shape \(3, 5, 5\) for this layer, but got None"),
        ((kernel, bias[0]), r"bias must have shape \(3, 5, 5\), but got \(5, 5\)"),
    ):
        with pytest.raises(ValueError, match=words):
            layer.load_keras(*wrong)
    with pytest.raises(ValueError, match="bias must be None for this layer, but got an array"):
        nn.LocallyConnected2d(3, 5, (6, 7), (2, 3), (2, 1), bias=False).load_keras(kernel, bias)


def test_its_equivalent():
    """The expression in the docstring gives the same."""
    told = " ".join(functional.locally_connected2d.__doc__.split())
    (code,) = re.findall(r"Equivalent to, with groups=1: (torch.*), without unfold's copies", told)
    (P, Q, K, R, S), stride, padding, dilation = (3, 4, 5, 2, 3), (2, 1), (0, 1), (1, 2)
    input, weight = torch.randn(2, 3, 6, 6).double(), torch.randn(P, Q, K, R, S, 3).double()
    right = eval(code, {"torch": torch}, locals())
    torch.testing.assert_close(functional.locally_connected2d(input, weight, None, stride, padding, dilation), right)

"""What the pages say of a network: receptive fields, kernels, feature maps, counts of weights."""

import copy

import pytest
import torch

from checks import kernels_only
from cnn_triton import nn, pages
from cnn_triton.classifier.anatomy import feature_maps, stages, weight_counts
from cnn_triton.classifier.models import MODELS


def perturbed(features, size, p, q, channels=2):
    """The input pixels that output pixel (p, q) depends on: (top, left, height, width), found by gradients."""
    x = torch.randn(1, channels, *size, dtype=torch.float64, requires_grad=True)
    y = features(x)
    y[0, :, p, q].sum().backward()
    rows, columns = (x.grad[0].abs().sum(0).sum(axis).nonzero()[:, 0] for axis in (1, 0))
    top, left = rows[0].item(), columns[0].item()
    return top, left, rows[-1].item() - top + 1, columns[-1].item() - left + 1


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(2, 3, 3, padding="same")],
        lambda: [nn.Conv2d(2, 3, 3, padding="same"), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(3, 3, 3, padding=1)],
        lambda: [nn.Conv2d(2, 3, (4, 2), padding="same"), nn.AvgPool2d(2)],
        lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 2, (3, 5)), nn.AvgPool2d(3, 2, 1)],
        lambda: [nn.Conv2d(2, 4, (5, 2), (2, 3), (3, 1)), nn.Conv2d(4, 4, 3, dilation=(2, 1), groups=2)],
    ],
    ids=range(5),
)
def test_receptive_fields(layers):
    """The fields computed are those in which a change of the input changes the output."""
    features = torch.nn.Sequential(*layers()).double()
    size = (41, 38)
    found = stages(features, 2, size)
    for depth, stage in enumerate(found, 1):
        p, q = stage.output[1] // 2, stage.output[2] // 2
        # A max pool passes the gradient of its winner alone: an average over the same window stands for it.
        smooth = [nn.AvgPool2d(f.kernel_size, ceil_mode=True) if isinstance(f, nn.MaxPool2d) else f for f in features]
        assert perturbed(torch.nn.Sequential(*smooth[:depth]), size, p, q) == stage.field.box(p, q)
    assert stage.output == features(torch.zeros(1, 2, *size, dtype=torch.float64)).shape[1:]


def test_receptive_fields_of_the_networks():
    sizes = [stage.field.size[0] for stage in stages(MODELS["lenet5"](1, (32, 32), 10).features, 1, (32, 32))]
    assert sizes == [3, 4, 8, 10]
    sizes = [stage.field.size[0] for stage in stages(MODELS["vgg"](3, (32, 32), 10).features, 3, (32, 32))]
    assert sizes == [3, 5, 6, 10, 14, 16, 24, 32, 36]


def linear(layer):
    """A first layer in which ReLU closes nothing."""
    layer = copy.deepcopy(layer).double()
    torch.nn.init.constant_(layer.bias, 1000)
    return layer


def test_first_layers():
    """Of networks that differ in their first layer: names, fields, sizes also for other images, weights, kernels."""
    for name, first, window in (
        ("lenet5-local", "locally connected 3×3 + ReLU", 3),
        ("lenet5-full", "fully connected + ReLU", 8),
    ):
        model = MODELS[name](1, (8, 8), 10)
        found = stages(model.features, 1, (8, 8))
        assert [stage.name for stage in found][:2] == [first, "max pool 2×2"]
        assert [stage.output for stage in found] == [(16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 2, 2)]
        assert found[0].field.box(4, 4)[2:] == (window, window)
        assert found[0].field.box(4, 4) == perturbed(linear(model.features[0]), (8, 8), 4, 4, 1)
        assert stages(model.features, 1, (100, 60))[0].output == (16, 100, 60)
        assert model.kernels.shape == (16, 1, window, window)
    assert weight_counts(stages(MODELS["lenet5-local"](1, (8, 8), 10).features, 1, (8, 8))[0])[1] == 8 * 8 * 16 * 9


@pytest.mark.parametrize("name", MODELS)
def test_kernels(name):
    """The middle pixel of each first map is its kernel times what that pixel sees."""
    model = MODELS[name](2, (8, 6), 10)
    x, kernels = torch.rand(1, 2, 8, 6), model.kernels
    torch.nn.init.zeros_(model.first.bias)
    seen = x[0] if name == "lenet5-full" else x[0, :, 3:6, 2:5]
    right = (kernels * seen).sum((1, 2, 3)).relu()
    torch.testing.assert_close(model.first(x)[0, :, 4, 3].detach(), right)


def test_weight_counts():
    features = torch.nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    full, local, shared = weight_counts(stages(features, 3, (5, 4))[0])
    assert full == torch.nn.Linear(3 * 5 * 4, 8 * 5 * 4, bias=False).weight.numel()
    assert local == 8 * 5 * 4 * 3 * 9
    assert shared == features[0].weight.numel()
    one = torch.nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"))
    assert weight_counts(stages(one, 1, (1000, 1000))[0]) == (10**12, 9 * 10**6, 9)
    grouped = torch.nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    assert weight_counts(stages(grouped, 4, (9, 9))[0])[2] == grouped[0].weight.numel()


@pytest.mark.parametrize(
    ("number", "text"),
    [(9, "9"), (9_000_000, "9,000,000"), (10**12, "10¹²"), (16 * 10**12, "1.6 · 10¹³"), (99_999_999, "10⁸")],
)
def test_counts_are_legible(number, text):
    assert pages.count(number) == text


def test_feature_maps(device):
    model = MODELS["lenet5"](1, (8, 8), 10).to(device)
    image = torch.randn(1, 1, 8, 8, device=device)
    with kernels_only("conv2d", "max_pool2d"):
        maps = feature_maps(model.features, image)
    assert [tuple(m.shape) for m in maps] == [(16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 2, 2)]
    torch.testing.assert_close(maps[-1], model.features(image)[0].float().cpu())

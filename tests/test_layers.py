"""The networks' layers against published totals: a layer that is missing, doubled or of the wrong size fails."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import layers
from bench.layers import BY_NAME, LAYERS, NETWORKS

# Convolutions, linear layers, and multiply-accumulates of an image: as published with torchvision's models, in GMAC;
# LeNet-5's by hand, outputs x window x channels. Weights: torchvision's number of parameters, less biases and norms.
CLASSES = 1000
RESNET50_NORMS = 64 + 3 * (64 + 64 + 256) + 4 * (128 + 128 + 512) + 6 * (256 + 256 + 1024) + 3 * (512 + 512 + 2048)
RESNET50_NORMS += 256 + 512 + 1024 + 2048  # of the projections
VGG16_BIASES = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 2 * 4096 + CLASSES
MOBILENET_V2_NORMS = 32 + (32 + 16) + (192 + 24) + (288 + 24) + (288 + 32) + 2 * (384 + 32) + (384 + 64) + 1280
MOBILENET_V2_NORMS += 3 * (768 + 64) + (768 + 96) + 2 * (1152 + 96) + (1152 + 160) + 2 * (1920 + 160) + (1920 + 320)
CONVNEXT_T_BLOCKS = 9 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)  # biases 1 + 4 + 1, norm 2, scale 1, times the width
CONVNEXT_T_REST = (96 + 2 * 96) + (2 * 96 + 192) + (2 * 192 + 384) + (2 * 384 + 768) + 2 * 768
PUBLISHED = {
    "ResNet-50": (53, 1, 4.089, 25_557_032 - 2 * RESNET50_NORMS - CLASSES),
    "VGG-16": (13, 3, 15.470, 138_357_544 - VGG16_BIASES),
    "MobileNetV2": (52, 1, 0.301, 3_504_872 - 2 * MOBILENET_V2_NORMS - CLASSES),
    "ConvNeXt-T": (4 + 18, 36 + 1, 4.456, 28_589_128 - CONVNEXT_T_BLOCKS - CONVNEXT_T_REST - CLASSES),
    "LeNet-5": (3, 2, None, 6 * 25 + 16 * 6 * 25 + 120 * 16 * 25 + 120 * 84 + 84 * 10),
}
LENET5_MACS = 28**2 * 6 * 25 + 10**2 * 16 * 25 * 6 + 120 * 25 * 16 + 120 * 84 + 84 * 10


def total(network, quantity):
    """A quantity of the layers, summed over the network's."""
    return sum(layer.times(network) * quantity(layer) for layer in LAYERS)


@pytest.mark.parametrize("network", NETWORKS)
def test_totals(network):
    convs, linears, gmac, weights = PUBLISHED[network]
    assert total(network, lambda layer: layer.kind == "conv") == convs
    assert total(network, lambda layer: layer.kind == "linear") == linears
    assert total(network, lambda layer: layer.weights) == weights
    macs = total(network, lambda layer: layer.flops(1)) / 2
    assert macs == LENET5_MACS if gmac is None else macs / 1e9 == pytest.approx(gmac, abs=5e-4)


def test_figures():
    assert LENET5_MACS == 416_520
    assert PUBLISHED["ResNet-50"][3] == 25_502_912


def test_distinct():
    """Each layer is there once, under a name of its own, with the networks that have it."""
    assert len({layer._replace(networks=()) for layer in LAYERS}) == len(LAYERS) == len(BY_NAME) == 89
    assert all(layer.networks for layer in LAYERS)
    assert all(BY_NAME[layer.name] is layer for layer in LAYERS)
    assert all("," not in layer.name for layer in LAYERS)  # a problem's mode is what follows the comma
    assert BY_NAME["3x3 256-256 @14 s1"].networks == (("ResNet-50", 5),)
    assert BY_NAME["fc 384-1536 @14"].networks == (("ConvNeXt-T", 9),)


def test_a_layer_of_two_networks(monkeypatch):
    """It is one layer, with both networks' counts."""
    shared, other = layers.fc(8, 4), layers.conv(8, 6, 4, 3)
    monkeypatch.setattr(layers, "NETWORKS", {"A": lambda: iter([shared, other, shared]), "B": lambda: iter([shared])})
    assert layers.distinct() == (
        shared._replace(networks=(("A", 2), ("B", 1))),
        other._replace(networks=(("A", 1),)),
    )


def test_heavy():
    """ResNet-50's 3 x 3 layers from its second stage on, and VGG-16's from its fourth layer on; no depthwise one."""
    assert {layer.name for layer in LAYERS if layer.heavy} == {
        "3x3 128-128 @56 s2", "3x3 128-128 @28 s1", "3x3 256-256 @28 s2", "3x3 256-256 @14 s1", "3x3 512-512 @14 s2",
        "3x3 512-512 @7 s1", "3x3 128-128 @112 s1", "3x3 128-256 @56 s1", "3x3 256-256 @56 s1", "3x3 256-512 @28 s1",
        "3x3 512-512 @28 s1", "3x3 512-512 @14 s1",
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 32])
def test_sizes(n):
    """Shapes fit together and flops are right, by PyTorch's own account."""
    for layer in LAYERS:
        shapes = layer.shapes(n)
        x, w = (torch.empty(shape, device="meta") for shape in shapes[:2])
        with FlopCounterMode(display=False) as counter:
            y = (
                F.linear(x, w)
                if layer.kind == "linear"
                else F.conv2d(x, w, None, layer.stride, layer.padding, 1, layer.groups)
            )
        assert y.shape == shapes.output, layer
        assert layer.flops(n) == counter.get_total_flops(), layer
        assert layer.weights == w.numel(), layer


def test_default_batch():
    layer = BY_NAME["fc 96-384 @56"]
    assert layer.shapes() == ((32 * 56 * 56, 96), (384, 96), (32 * 56 * 56, 384))
    assert layer.flops() == 2 * 32 * 56 * 56 * 96 * 384
    assert BY_NAME["3x3 144-144 @56 s2 g144"].shapes(2) == ((2, 144, 56, 56), (144, 1, 3, 3), (2, 144, 28, 28))
    assert BY_NAME["3x3 144-144 @56 s2 g144"].flops(2) == 2 * 2 * 28 * 28 * 144 * 9

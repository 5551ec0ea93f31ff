"""Networks that are measured as a whole: of torch.nn's layers, or ResNet50 of this library's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import cnn_triton.nn


class Bottleneck(nn.Module):
    """relu(x + f(x)), with f = 1 x 1, 3 x 3, 1 x 1 convolution: to `width` channels, within them, to 4·width.

    Each convolution has a batch normalisation, and all but the last a ReLU. Where shapes change, x goes through a
    1 x 1 convolution and a normalisation of its own. The stride is the 3 x 3 convolution's.
    """

    def __init__(self, channels: int, width: int, stride: int, layers: Any) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_normalised(layers, channels, width, 1),
            nn.ReLU(),
            *_normalised(layers, width, width, 3, stride),
            nn.ReLU(),
            *_normalised(layers, width, 4 * width, 1),
        )
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normalised(layers, channels, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


class ResNet50(nn.Module):
    """The 50-layer residual network: (N, 3, H, W) images to (N, classes) logits.

        conv1     7 x 7, 64, stride 2, then 3 x 3 max pool, stride 2
        conv2_x   3 bottlenecks of width 64         conv3_x   4 of width 128
        conv4_x   6 of width 256                    conv5_x   3 of width 512; the first of conv3_x to conv5_x halves
        average over the pixels, then a linear layer

    layers: whose Conv2d, MaxPool2d, Linear: cnn_triton.nn, or torch.nn
    Source: He et al., "Deep residual learning for image recognition", 2015, table 1 (arXiv:1512.03385); the stride of
    a stage is in its first 3 x 3 convolution, as in Goyal et al., arXiv:1706.02677.
    """

    def __init__(self, classes: int = 1000, layers: Any = cnn_triton.nn) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normalised(layers, 3, 64, 7, 2), nn.ReLU(), layers.MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for i in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if i == 0 and width > 64 else 1, layers))
                channels = 4 * width
        self.stages = nn.Sequential(*blocks)
        self.head = layers.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.stages(self.stem(images)).mean((2, 3)))
        return logits


def _normalised(
    layers: Any, channels: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias, which the batch normalisation after it has; images keep their size by padding."""
    conv = layers.Conv2d(channels, outputs, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def resnet50() -> nn.Module:
    """ResNet50 of torch.nn's layers."""
    return ResNet50(layers=nn)


def vgg16_features(**where: Any) -> nn.Sequential:
    """VGG-16's convolutions, ReLUs and maxima, of this device and dtype."""
    layers: list[nn.Module] = []
    c = 3
    for k, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convs):
            layers += [nn.Conv2d(c, k, 3, padding=1, **where), nn.ReLU(inplace=True)]
            c = k
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def vgg16(classes: int = 1000) -> nn.Module:
    """Simonyan and Zisserman, arXiv:1409.1556, table 1, D: 13 convolutions and 3 linear layers, each but the last with
    ReLU; a 2 x 2 maximum after each stage. Dropout is left out: a comparison would see other values in each run."""
    layers: list[nn.Module] = [*vgg16_features(), nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs, outputs in ((512 * 49, 4096), (4096, 4096)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(4096, classes))


class InvertedResidual(nn.Module):
    """x + f(x) where shapes allow, else f(x): 1 x 1 convolution to `expansion` times the channels, depthwise 3 x 3,
    1 x 1; each normalised, the first two with ReLU6."""

    def __init__(self, channels: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        wide = [*_normalised(nn, channels, inner, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *wide, *_normalised(nn, inner, inner, 3, stride, inner), nn.ReLU6(), *_normalised(nn, inner, outputs, 1)
        )
        self.adds = stride == 1 and channels == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.adds else y


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """Sandler et al., arXiv:1801.04381, table 2."""
    layers: list[nn.Module] = [*_normalised(nn, 3, 32, 3, 2), nn.ReLU6()]
    c = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, k, blocks, first in stages:
        for i in range(blocks):
            layers.append(InvertedResidual(c, k, first if i == 0 else 1, expansion))
            c = k
    layers += [*_normalised(nn, c, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, classes))


def lenet5(classes: int = 10) -> nn.Module:
    """LeCun et al., 1998, figure 2, as it is built today: ReLU, maxima, C3 connected in full."""
    layers: list[nn.Module] = []
    for c, k in ((1, 6), (6, 16)):
        layers += [nn.Conv2d(c, k, 5), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(84, classes))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet-5": (lenet5, (1, 32, 32)),
    "VGG-16": (vgg16, (3, 224, 224)),
    "ResNet-50": (resnet50, (3, 224, 224)),
    "MobileNetV2": (mobilenet_v2, (3, 224, 224)),
}
"""Networks of torch.nn's layers, and the (channels, height, width) of their images."""

"""Networks that are measured as a whole, made of this library's layers."""

import torch
from torch import nn

from cnn_triton.nn import Conv2d, Linear, MaxPool2d


class Bottleneck(nn.Module):
    """relu(x + f(x)), with f = 1 x 1, 3 x 3, 1 x 1 convolution: to `width` channels, within them, to 4·width.

    Each convolution has a batch normalisation, and all but the last a ReLU. Where shapes change, x goes through a
    1 x 1 convolution and a normalisation of its own. The stride is the 3 x 3 convolution's.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_normalised(channels, width, 1),
            nn.ReLU(),
            *_normalised(width, width, 3, stride),
            nn.ReLU(),
            *_normalised(width, 4 * width, 1),
        )
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normalised(channels, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


class ResNet50(nn.Module):
    """The 50-layer residual network: (N, 3, H, W) images to (N, classes) logits.

        conv1     7 x 7, 64, stride 2, then 3 x 3 max pool, stride 2
        conv2_x   3 bottlenecks of width 64         conv3_x   4 of width 128
        conv4_x   6 of width 256                    conv5_x   3 of width 512; the first of conv3_x to conv5_x halves
        average over the pixels, then a linear layer

    Source: He et al., "Deep residual learning for image recognition", 2015, table 1 (arXiv:1512.03385); the stride of
    a stage is in its first 3 x 3 convolution, as in Goyal et al., arXiv:1706.02677.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normalised(3, 64, 7, 2), nn.ReLU(), MaxPool2d(3, 2, 1))
        blocks, channels = [], 64
        for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for i in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if i == 0 and width > 64 else 1))
                channels = 4 * width
        self.stages = nn.Sequential(*blocks)
        self.head = Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.stages(self.stem(images)).mean((2, 3)))
        return logits


def _normalised(channels: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias, which the batch normalisation after it has; images keep their size by padding."""
    return Conv2d(channels, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)

"""Image classifiers made of this library's layers: a feature extractor and a fully connected classifier, by name."""

import torch

from .nn import ConvReLU2d, Linear, LinearReLU, MaxPool2d

__all__ = ["MODELS", "LeNet5"]


class LeNet5(torch.nn.Module):
    """A LeNet-5-like network: two rounds of convolution + ReLU and pooling, then three fully connected layers.

        features:    [conv 3x3 'same' + ReLU, max pool 2x2] twice: width, then 2·width channels
        classifier:  120, 84, num_classes

    input: (N, in_channels, H, W) of the given image_size (H, W), at least 4 x 4; returns logits (N, num_classes)
    errors: ValueError for an image too small, or sizes below 1
    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, with ReLU and max pooling.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        height, w = image_size
        if min(height, w) < 4:
            raise ValueError(f"image_size must be at least 4 x 4, since it is halved twice, but got {height} x {w}")
        if min(in_channels, num_classes, width) < 1:
            raise ValueError(
                f"in_channels, num_classes and width must be at least 1, but got {in_channels}, {num_classes}, {width}"
            )
        self.features = torch.nn.Sequential(
            ConvReLU2d(in_channels, width, 3, padding="same"),
            MaxPool2d(2),
            ConvReLU2d(width, 2 * width, 3, padding="same"),
            MaxPool2d(2),
        )
        self.classifier = torch.nn.Sequential(
            LinearReLU(2 * width * (height // 4) * (w // 4), 120),
            LinearReLU(120, 84),
            Linear(84, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


MODELS = {"lenet5": LeNet5}
"""Models by the name that a run's configuration holds."""

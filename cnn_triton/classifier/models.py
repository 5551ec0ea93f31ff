"""Image classifiers made of this library's layers: a feature extractor and a fully connected classifier, by name."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch

from ..nn import Conv2d, ConvReLU2d, Linear, LinearReLU, LocallyConnected2d, MaxPool2d

__all__ = ["FIRST", "MODELS", "VGG", "Classifier", "FullReLU2d", "LeNet5"]


class Classifier(torch.nn.Module):
    """An image classifier: `features` turn images into maps, `classifier` turns the maps into logits.

    input: (N, in_channels, H, W) of the given image_size (H, W); returns logits (N, num_classes). Pools keep ragged
    edges (ceil_mode), so that any image size works: n pools leave ceil(H / 2^n) rows.
    errors: ValueError for sizes below 1
    """

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        features: list[torch.nn.Module],
        width: int,
        hidden: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(*features)
        halvings = sum(isinstance(layer, MaxPool2d) for layer in features)
        height, across = (-(-size // 2**halvings) for size in image_size)
        sizes = (width * height * across, *hidden)
        steps = [LinearReLU(n, m) for n, m in pairwise(sizes)]
        self.classifier = torch.nn.Sequential(*steps, Linear(sizes[-1], num_classes))

    @property
    def first(self) -> "Conv2d | LocallyConnected2d | FullReLU2d":
        """The first layer, whose input is the image."""
        layer = self.features[0]
        assert isinstance(layer, Conv2d | LocallyConnected2d | FullReLU2d)
        return layer

    @property
    def kernels(self) -> torch.Tensor:
        """The first layer's kernels (K, C, R, S), float32 on the CPU; if every pixel has its own, those of the middle
        pixel."""
        layer = self.first
        weight = layer.weight.detach().float().cpu()
        if isinstance(layer, LocallyConnected2d):
            p, q = layer.output_size
            return weight[p // 2, q // 2].permute(0, 3, 1, 2)
        if isinstance(layer, FullReLU2d):
            h, w = layer.input_size
            return weight.view(layer.out_channels, h, w, layer.in_channels, h, w)[:, h // 2, w // 2]
        return weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _check(in_channels: int, image_size: tuple[int, int], num_classes: int, width: int) -> None:
    """Check sizes. Errors: ValueError."""
    if min(in_channels, *image_size, num_classes, width) < 1:
        raise ValueError(
            "in_channels, image_size, num_classes and width must be at least 1, "
            f"but got {in_channels}, {tuple(image_size)}, {num_classes}, {width}"
        )


class FullReLU2d(LinearReLU):
    """Fully connected layer with ReLU from images to maps of their size: each pixel of a map has a weight for each
    pixel of the image.

    y[n,k,h,w] = max(b[k,h,w] + Σ over c and all pixels (i,j) of x[n,c,i,j] · weight[k,h,w,c,i,j], 0)

    Equivalent to: torch.nn.Linear of the flattened images, torch.relu, and unflatten. (N, C, H, W) to (N, K, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, input_size: tuple[int, int]) -> None:
        pixels = math.prod(input_size)
        super().__init__(in_channels * pixels, out_channels * pixels)
        self.in_channels, self.out_channels, self.input_size = in_channels, out_channels, input_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps (N, K, H, W) of images (N, C, H, W)."""
        pixels = super().forward(images.flatten(1))
        return pixels.unflatten(1, (self.out_channels, *self.input_size))  # type: ignore[no-any-return]


FIRST: dict[str, Callable[[int, int, tuple[int, int]], torch.nn.Module]] = {
    "convolution": lambda c, k, size: ConvReLU2d(c, k, 3, padding="same"),
    "locally connected": lambda c, k, size: LocallyConnected2d(c, k, size, 3, padding="same", activation="relu"),
    "fully connected": FullReLU2d,
}
"""First layers of LeNet5 by name, all with maps of the image's size; they differ in windows and shared weights."""


class LeNet5(Classifier):
    """A LeNet-5-like network: two rounds of convolution + ReLU and pooling, then three fully connected layers.

        features:    [conv 3x3 'same' + ReLU, max pool 2x2] twice: width, then 2·width channels
        classifier:  120, 84, num_classes

    first: a name in FIRST. Shapes and errors: see `Classifier`.
    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, with ReLU and max pooling.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        width: int = 16,
        first: str = "convolution",
    ) -> None:
        _check(in_channels, image_size, num_classes, width)
        if first not in FIRST:
            raise ValueError(f"first must be one of {', '.join(map(repr, FIRST))}, but got {first!r}")
        layers = [
            FIRST[first](in_channels, width, image_size),
            MaxPool2d(2, ceil_mode=True),
            ConvReLU2d(width, 2 * width, 3, padding="same"),
            MaxPool2d(2, ceil_mode=True),
        ]
        super().__init__(in_channels, image_size, num_classes, layers, 2 * width, (120, 84))


class VGG(Classifier):
    """A small VGG-like network: three blocks of two 3x3 convolutions and a pool, then two fully connected layers.

        features:    [conv 3x3 'same' + ReLU, conv 3x3 'same' + ReLU, max pool 2x2] three times: width, 2·width, 4·width
        classifier:  128, num_classes

    Weights are initialised by the method of He et al. ("Delving deep into rectifiers", 2015), biases with 0, so that
    signals keep their size through the deeper stack. Shapes and errors: see `Classifier`.
    Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014.
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int, width: int = 16) -> None:
        _check(in_channels, image_size, num_classes, width)
        layers: list[torch.nn.Module] = []
        channels = in_channels
        for k in (width, 2 * width, 4 * width):
            for c in (channels, k):
                layers.append(ConvReLU2d(c, k, 3, padding="same"))
            layers.append(MaxPool2d(2, ceil_mode=True))
            channels = k
        super().__init__(in_channels, image_size, num_classes, layers, channels, (128,))
        for weight in self.parameters():
            if weight.dim() > 1:
                torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
            else:
                torch.nn.init.zeros_(weight)


MODELS: dict[str, Callable[[int, tuple[int, int], int], Classifier]] = {
    "lenet5": LeNet5,
    "lenet5-local": partial(LeNet5, first="locally connected"),
    "lenet5-full": partial(LeNet5, first="fully connected"),
    "vgg": VGG,
}
"""Models by the name in a run's configuration; each takes channels, (height, width), number of classes."""

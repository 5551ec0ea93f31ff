"""Which layers are measured: every distinct convolution and linear layer of five networks, from the papers' tables."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

BATCH = 32


class Shapes(NamedTuple):
    """Of a layer's tensors at a batch size."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]


class Layer(NamedTuple):
    """A convolution of (n, c, h, h) with k windows of size x size; or a linear layer of n·h·h rows, c to k features.

    kind: "conv" or "linear"; h is 1 for a classifier's linear layer, and more for one at every pixel of images
    networks: those that have this layer, and how often
    """

    kind: str
    c: int
    h: int
    k: int
    size: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    networks: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """Window, channels in and out, height of the input, stride, groups: "3x3 256-256 @14 s1"."""
        if self.kind == "linear":
            return f"fc {self.c}-{self.k}" + (f" @{self.h}" if self.h > 1 else "")
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.size}x{self.size} {self.c}-{self.k} @{self.h} s{self.stride}{groups}"

    @property
    def p(self) -> int:
        """Height and width of the output."""
        return (self.h + 2 * self.padding - self.size) // self.stride + 1

    @property
    def weights(self) -> int:
        """Number of elements of the weight."""
        return self.k * self.c // self.groups * self.size**2

    @property
    def heavy(self) -> bool:
        """A full 3 x 3 convolution of 128 channels or more: bound by arithmetic, and most of its networks' work."""
        return self.kind == "conv" and self.size == 3 and self.c >= 128 and self.groups == 1

    def times(self, network: str) -> int:
        """How often the network has this layer."""
        return dict(self.networks).get(network, 0)

    def flops(self, n: int = BATCH) -> int:
        """Arithmetic of a forward pass: two for each multiply-accumulate, bias not counted."""
        return 2 * n * self.p**2 * self.weights

    def shapes(self, n: int = BATCH) -> Shapes:
        """Shapes of input, weight and output at batch size n."""
        c, h, k, p = self.c, self.h, self.k, self.p
        if self.kind == "linear":
            return Shapes((n * h * h, c), (k, c), (n * p * p, k))
        return Shapes((n, c, h, h), (k, c // self.groups, self.size, self.size), (n, k, p, p))


def conv(c: int, h: int, k: int, size: int, stride: int = 1, padding: int | None = None, groups: int = 1) -> Layer:
    """A convolution; padded by half of its window unless told otherwise."""
    return Layer("conv", c, h, k, size, stride, size // 2 if padding is None else padding, groups)


def fc(c: int, k: int, h: int = 1) -> Layer:
    """A linear layer of one row per image, or of one per pixel of h x h images."""
    return Layer("linear", c, h, k)


def resnet50() -> Iterator[Layer]:
    """He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016, table 1; with the stride in the 3 x 3,
    as in torchvision, "v1.5"."""
    yield conv(3, 224, 64, 7, 2)
    c, h = 64, 56
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first, *[1] * (blocks - 1)):
            k = 4 * width
            if c != k:  # each stage's first shortcut is a projection
                yield conv(c, h, k, 1, stride)
            yield conv(c, h, width, 1)
            yield conv(width, h, width, 3, stride)
            yield conv(width, h // stride, k, 1)
            c, h = k, h // stride
    yield fc(c, 1000)


def vgg16() -> Iterator[Layer]:
    """Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015, table 1, D."""
    c, h = 3, 224
    for k, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convs):
            yield conv(c, h, k, 3)
            c = k
        h //= 2
    yield from (fc(c * h * h, 4096), fc(4096, 4096), fc(4096, 1000))


def mobilenet_v2() -> Iterator[Layer]:
    """Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, table 2."""
    yield conv(3, 224, 32, 3, 2)
    c, h = 32, 112
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, k, blocks, first in stages:
        for stride in (first, *[1] * (blocks - 1)):
            inner = expansion * c
            if expansion > 1:
                yield conv(c, h, inner, 1)
            yield conv(inner, h, inner, 3, stride, groups=inner)
            yield conv(inner, h // stride, k, 1)
            c, h = k, h // stride
    yield from (conv(c, h, 1280, 1), fc(1280, 1000))


def convnext_t() -> Iterator[Layer]:
    """Liu, Mao, Wu, Feichtenhofer, Darrell, Xie: A ConvNet for the 2020s, 2022, table 9; its pointwise layers are
    linear layers over the rows of channels_last images, as in the authors' code."""
    c, h = 3, 224
    for k, blocks, size in ((96, 3, 4), (192, 3, 2), (384, 9, 2), (768, 3, 2)):
        yield conv(c, h, k, size, size, padding=0)
        c, h = k, h // size
        for _ in range(blocks):
            yield from (conv(c, h, c, 7, groups=c), fc(c, 4 * c, h), fc(4 * c, c, h))
    yield fc(c, 1000)


def lenet5() -> Iterator[Layer]:
    """LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998, figure 2; with C3
    connected in full and a linear output layer, as it is built today."""
    yield from (conv(c, h, k, 5, padding=0) for c, h, k in ((1, 32, 6), (6, 14, 16), (16, 5, 120)))
    yield from (fc(120, 84), fc(84, 10))


NETWORKS: dict[str, Callable[[], Iterator[Layer]]] = {
    "ResNet-50": resnet50,
    "VGG-16": vgg16,
    "MobileNetV2": mobilenet_v2,
    "ConvNeXt-T": convnext_t,
    "LeNet-5": lenet5,
}


def distinct() -> tuple[Layer, ...]:
    """The layers of all networks, each once, with the networks that have it."""
    found: dict[Layer, list[tuple[str, int]]] = {}
    for network, layers in NETWORKS.items():
        for layer, times in Counter(layers()).items():
            found.setdefault(layer, []).append((network, times))
    return tuple(layer._replace(networks=tuple(networks)) for layer, networks in found.items())


LAYERS = distinct()
BY_NAME = {layer.name: layer for layer in LAYERS}

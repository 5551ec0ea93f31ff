"""What a feature extractor is made of: each layer's receptive field, feature maps and number of weights."""

import copy
from typing import NamedTuple

import torch

from ..kernels.window.arguments import pair
from ..kernels.window.convolution import Window, conv_output, conv_window
from ..nn import Conv2d, ConvReLU2d, LocallyConnected2d, MaxPool2d
from .models import FullReLU2d

__all__ = ["Field", "Stage", "feature_maps", "stages", "weight_counts"]


class Field(NamedTuple):
    """The receptive field of a layer's output: pixel (p, q) depends on the `size` input pixels from start + p·step.

    Each is (vertical, horizontal); the start is negative where the layers' padding reaches beyond the image.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    start: tuple[int, int]

    def box(self, p: int, q: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what output pixel (p, q) sees, in input pixels."""
        return (self.start[0] + p * self.step[0], self.start[1] + q * self.step[1], *self.size)

    def after(self, window: Window) -> "Field":
        """The field of a layer with this window on top.

        size' = size + (span − 1) · step        step' = step · stride        start' = start − pad · step
        Source: Araujo et al., "Computing receptive fields of convolutional neural networks", Distill, 2019.
        """
        pads = (window.pads[0], window.pads[2])
        (a, b), (i, j), (top, left), (span, across) = self.size, self.step, self.start, window.span
        return Field(
            (a + (span - 1) * i, b + (across - 1) * j),
            (i * window.stride[0], j * window.stride[1]),
            (top - pads[0] * i, left - pads[1] * j),
        )


class Stage(NamedTuple):
    """One layer of a feature extractor, on images of one size. input and output are (channels, height, width).

    convolves: has it weights for a window, shared or not?
    """

    name: str
    window: Window
    groups: int
    convolves: bool
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    field: Field


def stages(features: torch.nn.Sequential, channels: int, size: tuple[int, int]) -> list[Stage]:
    """The layers of a feature extractor, convolutions and pools, on images of (channels, *size)."""
    found = []
    shape, field = (channels, *size), Field((1, 1), (1, 1), (0, 0))
    for layer in features:
        window = _window(layer, shape[1:])
        output, field = _output(layer, window, shape), field.after(window)
        groups = getattr(layer, "groups", 1)
        convolves = isinstance(layer, Conv2d | LocallyConnected2d)
        found.append(Stage(_name(layer, window), window, groups, convolves, shape, output, field))
        shape = output
    return found


def _name(layer: torch.nn.Module, window: Window) -> str:
    """What a layer is, in words."""
    size = "×".join(map(str, window.size))
    if isinstance(layer, FullReLU2d):
        return "fully connected + ReLU"
    if isinstance(layer, LocallyConnected2d):
        return f"locally connected {size}{' + ReLU' if layer.activation == 'relu' else ''}"
    if isinstance(layer, Conv2d):
        return f"convolution {size}{' + ReLU' if isinstance(layer, ConvReLU2d) else ''}"
    return f"{'max' if isinstance(layer, MaxPool2d) else 'average'} pool {size}"


def _window(layer: torch.nn.Module, image: tuple[int, ...]) -> Window:
    """A layer's window over an image (H, W); a fully connected one's is the image, whichever pixel it is for."""
    if isinstance(layer, FullReLU2d):
        return Window((image[0], image[1]), (0, 0), (0, 0, 0, 0), (1, 1))
    dilation = getattr(layer, "dilation", 1)
    return conv_window(pair("kernel_size", layer.kernel_size, 1), layer.stride, layer.padding, dilation)


def _output(layer: torch.nn.Module, window: Window, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape (K, P, Q) of a layer's maps for images (C, H, W), also for others than it was made for."""
    if isinstance(layer, FullReLU2d):
        return (layer.out_channels, *shape[1:])
    if isinstance(layer, LocallyConnected2d):
        return (layer.out_channels, *conv_output(window, shape[1:]))
    # On the meta device a layer computes nothing but its output's shape.
    k, p, q = copy.deepcopy(layer).to("meta", torch.float32)(torch.empty(1, *shape, device="meta")).shape[1:]
    return k, p, q


def weight_counts(stage: Stage) -> tuple[int, int, int]:
    """Weights, biases apart, that give a stage's feature maps: (fully connected, locally connected, convolution).

    fully connected:    every output value has a weight for every input value         C·H·W · K·P·Q
    locally connected:  every output value has weights for its window alone           C/groups·R·S · K·P·Q
    convolution:        the output values of a map share their weights                C/groups·R·S · K
    """
    (c, h, w), (k, p, q) = stage.input, stage.output
    near = c // stage.groups * stage.window.taps
    return c * h * w * k * p * q, near * k * p * q, near * k


def feature_maps(features: torch.nn.Sequential, image: torch.Tensor) -> list[torch.Tensor]:
    """The maps (K, P, Q), float32 on the CPU, that an image (1, C, H, W) gives after each layer."""
    maps = []
    with torch.no_grad():
        for layer in features:
            image = layer(image)
            maps.append(image[0].float().cpu())
    return maps

"""The anatomy of a feature extractor: each layer's receptive field, feature maps and number of weights."""

import copy
from typing import NamedTuple

import torch

from ..kernels.window.arguments import pair
from ..kernels.window.convolution import Window, conv_output, conv_window
from ..nn import Conv2d, ConvReLU2d, LocallyConnected2d, MaxPool2d
from .models import FullReLU2d

__all__ = ["Field", "Stage", "feature_maps", "stages", "weight_counts"]


class Field(NamedTuple):
    """The receptive field of a layer's output: pixel (p, q) depends on `size` input pixels from start + (p, q)·step on.

    Each is (vertical, horizontal); the start is negative if the layers' padding reaches beyond the image.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    start: tuple[int, int]

    def box(self, p: int, q: int) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the input pixels that output pixel (p, q) depends on."""
        return (self.start[0] + p * self.step[0], self.start[1] + q * self.step[1], *self.size)

    def after(self, window: Window) -> "Field":
        """Return the field of a layer with this window on top.

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

    convolves: True if it has weights for a window, shared or not
    """

    name: str
    window: Window
    groups: int
    convolves: bool
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    field: Field


def stages(features: torch.nn.Sequential, channels: int, size: tuple[int, int]) -> list[Stage]:
    """Return the layers of a feature extractor, convolutions and pools, for images of (channels, *size)."""
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
    """Return the name of a layer's kind."""
    size = "×".join(map(str, window.size))
    if isinstance(layer, FullReLU2d):
        return "fully connected + ReLU"
    if isinstance(layer, LocallyConnected2d):
        return f"locally connected {size}{' + ReLU' if layer.activation == 'relu' else ''}"
    if isinstance(layer, Conv2d):
        return f"convolution {size}{' + ReLU' if isinstance(layer, ConvReLU2d) else ''}"
    return f"{'max' if isinstance(layer, MaxPool2d) else 'average'} pool {size}"


def _window(layer: torch.nn.Module, image: tuple[int, ...]) -> Window:
    """Return a layer's window over an image (H, W); for a fully connected layer the whole image at every pixel."""
    if isinstance(layer, FullReLU2d):
        return Window((image[0], image[1]), (0, 0), (0, 0, 0, 0), (1, 1))
    dilation = getattr(layer, "dilation", 1)
    return conv_window(pair("kernel_size", layer.kernel_size, 1), layer.stride, layer.padding, dilation)


def _output(layer: torch.nn.Module, window: Window, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape (K, P, Q) of a layer's maps for images (C, H, W), of any size."""
    if isinstance(layer, FullReLU2d):
        return (layer.out_channels, *shape[1:])
    if isinstance(layer, LocallyConnected2d):
        return (layer.out_channels, *conv_output(window, shape[1:]))
    # On the meta device a layer computes only its output's shape.
    k, p, q = copy.deepcopy(layer).to("meta", torch.float32)(torch.empty(1, *shape, device="meta")).shape[1:]
    return k, p, q


def weight_counts(stage: Stage) -> tuple[int, int, int]:
    """Return the weights, without biases, of a stage: (fully connected, locally connected, convolution).

    fully connected:    every output value has a weight for every input value         C·H·W · K·P·Q
    locally connected:  every output value has weights for its window alone           C/groups·R·S · K·P·Q
    convolution:        the output values of a map share their weights                C/groups·R·S · K
    """
    (c, h, w), (k, p, q) = stage.input, stage.output
    near = c // stage.groups * stage.window.taps
    return c * h * w * k * p * q, near * k * p * q, near * k


def feature_maps(features: torch.nn.Sequential, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the feature maps (K, P, Q) of an image (1, C, H, W) after each layer, float32 on the CPU."""
    maps = []
    with torch.no_grad():
        for layer in features:
            image = layer(image)
            maps.append(image[0].float().cpu())
    return maps

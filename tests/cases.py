"""What every operator is tested on: a line per case. A line of a layer gives cases of its forward and its gradients."""

from typing import Any, NamedTuple

import torch

from cnn_triton.kernels import conv2d, epilogue, geometry, linear, pool2d
from cnn_triton.kernels.op import Op

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FORMATS = ("contiguous", "channels_last", "strided")


class Conv(NamedTuple):
    """A convolution layer: input (n, c, h, w), k outputs, window (r, s), and conv2d's other arguments."""

    input: tuple[int, int, int, int]
    k: int
    size: tuple[int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class Pool(NamedTuple):
    """A pooling layer: input (n, c, h, w), and the pools' arguments."""

    input: tuple[int, int, int, int]
    size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None


CONVS = {
    "1x1": Conv((2, 5, 4, 3), 7, (1, 1)),
    "3x3": Conv((2, 3, 9, 11), 8, (3, 3), padding=1),
    "5x5 same": Conv((1, 4, 8, 7), 6, (5, 5), padding="same"),
    "4x2 same": Conv((2, 3, 7, 6), 5, (4, 2), padding="same", dilation=(1, 3)),
    "stride 2": Conv((2, 6, 10, 9), 4, (3, 3), stride=2, padding=1),
    "stride (3, 1)": Conv((1, 5, 11, 6), 3, (2, 4), stride=(3, 1), padding=(2, 0)),
    "stride over window": Conv((2, 4, 9, 9), 3, (1, 2), stride=(4, 3)),
    "dilation": Conv((1, 3, 12, 13), 4, (3, 2), dilation=(2, 5), padding=(3, 4)),
    "groups": Conv((2, 6, 7, 8), 9, (3, 3), padding=1, groups=3),
    "depthwise": Conv((2, 5, 6, 7), 10, (3, 3), padding=1, stride=(1, 2), groups=5),
    "whole image": Conv((3, 4, 5, 6), 4, (5, 6)),
    "first layer": Conv((2, 1, 28, 28), 6, (5, 5), padding=2),
    "33 channels": Conv((2, 33, 5, 5), 35, (3, 3), padding=1),
    "64 channels": Conv((1, 64, 6, 6), 64, (3, 3), padding=1),
    "padding over image": Conv((1, 2, 3, 3), 3, (2, 2), padding=4),
    "no image": Conv((0, 3, 6, 6), 4, (3, 3)),
}

POOLS = {
    "2x2": Pool((2, 5, 8, 6), 2),
    "2x2 ragged": Pool((2, 3, 7, 9), 2),
    "2x2 ceil": Pool((1, 4, 7, 9), 2, ceil_mode=True),
    "3x3 stride 2": Pool((2, 4, 11, 10), 3, 2, 1),
    "3x3 stride 2 ceil": Pool((1, 3, 6, 6), 3, 2, 1, ceil_mode=True),
    "3x3 stride 1": Pool((1, 8, 6, 7), 3, 1, 1),
    "(2, 3) stride (3, 1)": Pool((2, 2, 9, 8), (2, 3), (3, 1), (1, 0)),
    "stride over window": Pool((1, 2, 12, 11), 2, 5),
    "pad not counted": Pool((2, 3, 7, 7), 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "divisor": Pool((1, 3, 6, 8), 3, 2, 1, divisor_override=5),
    "dilation": Pool((1, 3, 12, 13), (2, 3), (2, 1), (0, 1), (3, 2)),
    "dilation, stride 1": Pool((1, 2, 9, 9), 3, 1, 1, 2, True),
    "16x17": Pool((1, 3, 20, 18), (16, 17), 3),
    "33 channels": Pool((3, 33, 6, 5), 2),
    "no image": Pool((0, 3, 6, 6), 2),
}

LINEARS = {  # rows, in_features, out_features
    "1": (1, 1, 1),
    "odd": (5, 33, 7),
    "classifier": (17, 84, 10),
    "tile edges": (65, 130, 67),
    "no row": (0, 8, 4),
}


class Case(NamedTuple):
    """One call of an operator: `make(dtype, format)` draws its arguments, on the CPU."""

    op: Op
    label: str
    make: Any

    def __repr__(self) -> str:
        return f"{self.op.name}: {self.label}"


def draw(shape: Any, dtype: torch.dtype, form: str) -> torch.Tensor:
    """Fresh normal values in one of FORMATS; "strided" is every second element of a transposed, offset buffer.

    The values are multiples of 2^-16: float64 adds up their products exactly, in any order, so that its results are
    the exact ones, for float64 too.
    """
    x = (torch.randn(tuple(shape), dtype=torch.float64) * 2**16).round().div(2**16).to(dtype)
    if x.dim() == 4 and form == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if form == "strided" and x.dim() > 1:
        buffer = torch.randn(*x.shape[:-2], x.shape[-1], 2 * x.shape[-2] + 1, dtype=torch.float64).to(dtype)
        view = buffer[..., 1::2].transpose(-1, -2)
        return view.copy_(x)
    return x


def _conv(layer: Conv) -> dict[Op, Any]:
    window = geometry.conv_window(layer.size, layer.stride, layer.padding, layer.dilation)
    args = (window.stride, window.pads, window.dilation, layer.groups)
    weight = (layer.k, layer.input[1] // layer.groups, *layer.size)
    output = geometry.conv_shape(layer.input, weight, None, window, layer.groups)

    def forward(activation, bias):
        def make(dtype, form):
            b = draw((layer.k,), dtype, form) if bias else None
            return (draw(layer.input, dtype, form), draw(weight, dtype, form), b, *args, activation)

        return make

    def input_grad(dtype, form):
        grad = draw(output, dtype, form)
        return (grad, draw(weight, dtype, form), layer.input, *args, form == "channels_last")

    def weight_grad(dtype, form):
        grad = draw(output, dtype, form)
        return (grad, draw(layer.input, dtype, form), weight, *args, form == "channels_last")

    return {
        (conv2d.CONV2D, ""): forward("none", False),
        (conv2d.CONV2D, ", bias, ReLU"): forward("relu", True),
        (conv2d.CONV2D_INPUT_GRAD, ""): input_grad,
        (conv2d.CONV2D_WEIGHT_GRAD, ""): weight_grad,
    }


def _pool(layer: Pool) -> dict[Op, Any]:
    window = geometry.pool_window(layer.size, layer.stride, layer.padding, layer.dilation)
    output = geometry.pool_shape(layer.input, window, layer.ceil_mode)
    args = (window.size, window.stride, window.pads[::2])
    rest = (layer.ceil_mode, layer.count_include_pad, layer.divisor_override)

    def maximum(winner, indices):
        flags = (layer.ceil_mode, winner, indices)
        return lambda dtype, form: (draw(layer.input, dtype, form), *args, window.dilation, *flags)

    def max_grad(dtype, form):
        _, winner, _ = pool2d.MAX_POOL2D.reference(*maximum(True, False)(dtype, form))
        return (draw(output, dtype, form), winner, layer.input, *args, window.dilation, form == "channels_last")

    def average(dtype, form):
        return (draw(layer.input, dtype, form), *args, *rest)

    def avg_grad(dtype, form):
        return (draw(output, dtype, form), layer.input, *args, *rest, form == "channels_last")

    cases = {
        (pool2d.MAX_POOL2D, ""): maximum(True, False),
        (pool2d.MAX_POOL2D, ", indices"): maximum(True, True),
        (pool2d.MAX_POOL2D, ", values alone"): maximum(False, False),
        (pool2d.MAX_POOL2D_INPUT_GRAD, ""): max_grad,
    }
    if layer.dilation == 1:
        cases |= {(pool2d.AVG_POOL2D, ""): average, (pool2d.AVG_POOL2D_INPUT_GRAD, ""): avg_grad}
    return cases


def _linear(layer: tuple[int, int, int]) -> dict[Op, Any]:
    rows, c, k = layer

    def forward(activation, bias):
        def make(dtype, form):
            b = draw((k,), dtype, form) if bias else None
            return (draw((rows, c), dtype, form), draw((k, c), dtype, form), b, activation)

        return make

    return {
        (linear.LINEAR, ""): forward("none", False),
        (linear.LINEAR, ", bias, ReLU"): forward("relu", True),
        (linear.LINEAR_INPUT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw((k, c), d, f)),
        (linear.LINEAR_WEIGHT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw((rows, c), d, f)),
    }


def _epilogue(shape: tuple[int, int, int, int]) -> dict[Op, Any]:
    def activation(dtype, form):
        return (draw(shape, dtype, form), torch.relu(draw(shape, dtype, form)), "relu")

    return {
        (epilogue.BIAS_GRAD, ""): lambda dtype, form: (draw(shape, dtype, form),),
        (epilogue.ACTIVATION_GRAD, ""): activation,
    }


GRADS = {"small": (2, 3, 5, 7), "33 channels": (3, 33, 9, 4), "rows": (65, 20, 1, 1), "long": (1, 4, 70, 71)}

CASES = [
    Case(op, label + more, make)
    for table, derive in ((CONVS, _conv), (POOLS, _pool), (LINEARS, _linear), (GRADS, _epilogue))
    for label, layer in table.items()
    for (op, more), make in derive(layer).items()
]

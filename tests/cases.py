"""What every operator is tested on: a line per case. A line of a layer gives cases of its forward and its gradients."""

from typing import Any, NamedTuple

import torch

from cnn_triton.kernels.base.precision import accumulator
from cnn_triton.kernels.core.op import Op
from cnn_triton.kernels.matrix import (
    activation_grad,
    activations,
    batch_norm,
    conv2d,
    conv_pool,
    linear,
    locally_connected2d,
    pool_code,
    prelu,
)
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, unpool2d
from cnn_triton.kernels.window import convolution, pooling


class Conv(NamedTuple):
    """A convolution layer: input (n, c, h, w), k outputs, window (r, s), and conv2d's other arguments."""

    input: tuple[int, int, int, int]
    k: int
    size: tuple[int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    padding_mode: str = "zeros"


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
    "stride over image": Conv((2, 3, 4, 5), 4, (3, 2), stride=(50, 60), padding=1),
    "point over image": Conv((2, 3, 4, 5), 4, (1, 1), stride=(50, 60), dilation=70),
    "depthwise stride over image": Conv((2, 3, 4, 5), 3, (3, 2), stride=(50, 60), padding=1, groups=3),
    "dilation": Conv((1, 3, 12, 13), 4, (3, 2), dilation=(2, 5), padding=(3, 4)),
    "groups": Conv((2, 6, 7, 8), 9, (3, 3), padding=1, groups=3),
    "depthwise": Conv((2, 5, 6, 7), 10, (3, 3), padding=1, stride=(1, 2), groups=5),
    "depthwise 7x7": Conv((2, 3, 8, 9), 3, (7, 7), padding=3, groups=3),
    "depthwise 5x5 same": Conv((1, 33, 7, 6), 33, (5, 5), padding="same", groups=33),
    "depthwise stride 2": Conv((2, 4, 9, 8), 4, (3, 3), padding=1, stride=2, groups=4),
    "depthwise 8x2": Conv((1, 2, 21, 10), 6, (8, 2), (3, 1), (2, 1), (2, 3), groups=2),
    "depthwise dilation": Conv((2, 3, 14, 11), 12, (3, 3), padding=2, dilation=2, groups=3),
    "depthwise reflect": Conv((2, 5, 7, 6), 5, (3, 3), padding=1, groups=5, padding_mode="reflect"),
    "many groups": Conv((2, 20, 5, 6), 40, (3, 3), padding=1, stride=2, groups=10),
    "narrow outputs": Conv((1, 80, 4, 5), 6, (2, 3), padding=1, groups=2),
    "wide groups": Conv((1, 80, 4, 4), 70, (3, 2), groups=2),
    "groups reflect": Conv((2, 6, 5, 6), 6, (3, 3), padding=1, groups=2, padding_mode="reflect"),
    "whole image": Conv((3, 4, 5, 6), 4, (5, 6)),
    "first layer": Conv((2, 1, 28, 28), 6, (5, 5), padding=2),
    "33 channels": Conv((2, 33, 5, 5), 35, (3, 3), padding=1),
    "64 channels": Conv((1, 64, 6, 6), 64, (3, 3), padding=1),
    "padding over image": Conv((1, 2, 3, 3), 3, (2, 2), padding=4),
    "no image": Conv((0, 3, 6, 6), 4, (3, 3)),
    "no channel": Conv((2, 0, 6, 6), 4, (3, 3), padding=1),
    "reflect": Conv((2, 3, 6, 7), 5, (3, 4), padding=(2, 3), padding_mode="reflect"),
    "reflect same": Conv((2, 4, 5, 7), 3, (4, 3), padding="same", dilation=(1, 2), padding_mode="reflect"),
    "reflect stride 2": Conv((1, 33, 9, 8), 6, (3, 3), stride=2, padding=2, padding_mode="reflect"),
    "replicate": Conv((2, 3, 4, 7), 5, (5, 3), stride=(1, 2), padding=(6, 2), padding_mode="replicate"),
    "circular": Conv((2, 6, 4, 7), 4, (3, 3), padding=(4, 1), groups=2, padding_mode="circular"),
    "circular dilation": Conv((1, 40, 6, 6), 35, (3, 3), padding=2, dilation=2, padding_mode="circular"),
}


class Transposed(NamedTuple):
    """A transposed convolution layer: input (n, k, p, q), c outputs, window (r, s), conv_transpose2d's arguments."""

    input: tuple[int, int, int, int]
    c: int
    size: tuple[int, int]
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1


TRANSPOSED = {
    "3x3": Transposed((2, 3, 5, 6), 4, (3, 3), padding=1),
    "2x2 stride 2": Transposed((2, 5, 6, 5), 3, (2, 2), 2),
    "4x4 stride 2": Transposed((1, 33, 7, 8), 40, (4, 4), 2, 1),
    "output padding": Transposed((2, 4, 5, 4), 3, (3, 3), (2, 3), 1, (1, 2)),
    "padding by dilation": Transposed((1, 2, 4, 4), 4, (4, 5), (3, 2), (1, 2), (2, 3), 2, 4),
    "groups": Transposed((2, 6, 4, 5), 9, (3, 2), 2, (1, 0), 0, 3),
    "stride over window": Transposed((1, 3, 5, 4), 2, (1, 2), (4, 3)),
    "no image": Transposed((0, 3, 5, 5), 4, (3, 3), 2),
}

# Locally connected layers; the padding mode is zeros.
LOCALS = {
    "1x1": Conv((3, 5, 3, 2), 7, (1, 1)),
    "3x3": Conv((2, 3, 4, 5), 8, (3, 3), padding=1),
    "stride 2": Conv((3, 4, 7, 4), 5, (3, 3), stride=2, padding=1),
    "stride over window": Conv((2, 4, 6, 5), 3, (1, 2), stride=(4, 3)),
    "dilation": Conv((1, 3, 5, 4), 4, (3, 2), dilation=(2, 3), padding=(3, 2)),
    "groups": Conv((2, 6, 3, 5), 9, (3, 3), padding=1, groups=3, stride=(1, 2)),
    "two groups": Conv((2, 4, 2, 3), 4, (2, 2), padding=(0, 1), groups=2),
    "same": Conv((2, 3, 4, 3), 2, (2, 3), padding="same"),
    "33 images": Conv((33, 33, 3, 2), 35, (2, 2), padding=(1, 0)),
    "no image": Conv((0, 3, 5, 5), 4, (3, 3)),
}

# Of the pooling that follows a convolution and ReLU, by the convolution's label.
BLOCKS = {
    "1x1": (2, 2),
    "5x5 same": (1, 3),
    "stride 2": (2, 1),
    "stride (3, 1)": (2, 2),
    "dilation": (3, 3),
    "groups": (2, 3),
    "first layer": (9, 28),
    "33 channels": (2, 2),
    "no image": (2, 2),
    "reflect": (2, 2),
}
# The convolutions that an epilogue of everything follows, and whose moments are taken.
FOLLOWED = (
    "1x1",
    "stride 2",
    "groups",
    "depthwise",
    "depthwise 7x7",
    "33 channels",
    "no image",
    "no channel",
    "reflect",
)
# Every activation of the record, with numbers that aren't the usual ones where it takes any.
NUMBERS = {
    "leaky_relu": ("0.125",),
    "hardtanh": ("-0.25 0.75", "-0.3 0.7"),
    "clamp": ("-0.4 0.9", "0.1 inf"),
    "elu": ("0.75",),
    "softplus": ("1.5 2.0",),
}
ACTIVATIONS = tuple(
    f"{word} {numbers}".strip()
    for word, row in activations.ACTIVATIONS.items()
    for numbers in NUMBERS.get(word, (" ".join(map(str, row.numbers.usual)),))
)

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

ADAPTIVES = {  # input, output size
    "global": ((2, 5, 7, 6), (1, 1)),
    "10 to 3": ((2, 3, 10, 10), (3, 3)),
    "whole": ((1, 4, 6, 8), (3, 2)),
    "ragged": ((1, 33, 7, 11), (5, 4)),
    "larger": ((2, 3, 3, 5), (7, 8)),
    "same": ((1, 2, 4, 5), (4, 5)),
    "one direction": ((2, 2, 9, 4), (2, 4)),
    "17 taps": ((1, 2, 17, 33), (1, 2)),
    "no image": ((0, 3, 6, 6), (2, 3)),
}

LINEARS = {  # rows, in_features, out_features, groups
    "1": (1, 1, 1, 1),
    "odd": (5, 33, 7, 1),
    "classifier": (17, 84, 10, 1),
    "tile edges": (65, 130, 67, 1),
    "no row": (0, 8, 4, 1),
    "groups": (9, 15, 21, 3),
    "wide groups": (33, 70, 134, 2),
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


def _window(layer: Conv) -> tuple[Any, ...]:
    """Stride, pads, dilation, groups and padding mode, as operators take them."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    return (*window[1:4], layer.groups, layer.padding_mode)


def _sizes(layer: Conv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the weight and the output."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    weight = (layer.k, layer.input[1] // layer.groups, *layer.size)
    return weight, convolution.conv_shape(layer.input, weight, None, window, layer.groups)


def _forward(layer: Conv, activation: str, *beside: str) -> Any:
    weight, output = _sizes(layer)

    def make(dtype, form):
        more = beside_product(layer.k, output, dtype, form, beside)
        return (draw(layer.input, dtype, form), draw(weight, dtype, form), *more, *_window(layer), activation)

    return make


def _conv(layer: Conv) -> dict[Op, Any]:
    args, (weight, output) = _window(layer), _sizes(layer)

    def input_grad(dtype, form):
        return (draw(output, dtype, form), draw(weight, dtype, form), layer.input, *args, form == "channels_last")

    def weight_grad(dtype, form):
        grad = draw(output, dtype, form)
        return (grad, draw(layer.input, dtype, form), weight, *args, form == "channels_last")

    return {
        (conv2d.CONV2D, ""): _forward(layer, "none"),
        (conv2d.CONV2D, ", bias, ReLU"): _forward(layer, "relu", "bias"),
        (conv2d.CONV2D_INPUT_GRAD, ""): input_grad,
        (conv2d.CONV2D_WEIGHT_GRAD, ""): weight_grad,
    }


def _followed(layer: Conv) -> dict[Op, Any]:
    def moments(dtype, form):
        input, weight, bias, *_ = _forward(layer, "none", "bias")(dtype, form)
        return (input, weight, bias, *_window(layer))

    return {
        (conv2d.CONV2D, ", all"): _forward(layer, "leaky_relu 0.125", "bias", "scale", "residual"),
        (conv2d.CONV2D, ", PReLU"): _forward(layer, "none", "bias", "slope"),
        (conv2d.CONV2D_WITH_PREACTIVATION, ""): _forward(layer, "gelu", "bias", "residual"),
        (conv2d.CONV2D_WITH_PREACTIVATION, ", PReLU"): _forward(layer, "none", "scale", "residual", "slope"),
        (batch_norm.CONV2D_MOMENTS, ""): moments,
    }


def beside_product(columns: int, output: Any, dtype: torch.dtype, form: str, wanted: Any) -> list[torch.Tensor | None]:
    """Bias, scale, residual and slope of a product's epilogue, those that are wanted."""
    shapes = {"bias": (columns,), "scale": (columns,), "residual": output, "slope": (columns,)}
    return [draw(shape, dtype, form) if name in wanted else None for name, shape in shapes.items()]


def _block(named: tuple[Conv, tuple[int, int]]) -> dict[Op, Any]:
    """A convolution that is pooled, and the way back."""
    layer, pool = named
    args, (weight, output) = _window(layer), _sizes(layer)
    cases = {}
    for average, name in ((False, ", maximum"), (True, ", average")):

        def tensors(dtype, form):
            return draw(layer.input, dtype, form), draw(weight, dtype, form)

        def forward(dtype, form, average=average):
            vectors = (draw((layer.k,), dtype, form) for _ in range(2))
            return (*tensors(dtype, form), *vectors, *args, pool, average)

        def pooled(dtype, form, average=average):
            """A gradient, each of its shares a multiple as `draw`'s values are, and a code as a forward leaves it."""
            y, code = conv_pool.CONV2D_POOL.reference(*tensors(dtype, form), None, None, *args, pool, average)
            return draw(y.shape, dtype, form).mul_(pool[0] * pool[1] if average else 1), code

        def grad(written, of_input=True, pooled=pooled, average=average):
            def make(dtype, form):
                how = (*args, pool, average, of_input, True, written)
                return (*pooled(dtype, form), *tensors(dtype, form), *how)

            return make

        def spread(dtype, form, pooled=pooled, average=average):
            return (*pooled(dtype, form), output, pool, average, form == "channels_last")

        def at_open(dtype, form, pooled=pooled, average=average):
            return (draw(output, dtype, form), pooled(dtype, form)[1], pool, average)

        cases |= {
            (conv_pool.CONV2D_POOL, name): forward,
            (conv_pool.CONV2D_POOL_GRAD, name): grad(False),
            (conv_pool.CONV2D_POOL_GRAD, f"{name}, written, weight alone"): grad(True, False),
            (pool_code.RELU_POOL2D_INPUT_GRAD, name): spread,
            (pool_code.RELU_POOL2D_AT_OPEN, name): at_open,
        }
    return cases


def _local(layer: Conv) -> dict[Op, Any]:
    (k, c, r, s), (n, _, p, q) = _sizes(layer)
    weight, args = (p, q, k, r, s, c), _window(layer)[:-1]

    def forward(activation, *beside, places=()):
        def make(dtype, form):
            more = beside_product(k, (n, k, p, q), dtype, form, beside)
            more[0] = draw((*places, k), dtype, form) if "bias" in beside else None
            return (draw(layer.input, dtype, form), draw(weight, dtype, form), *more, *args, activation)

        return make

    def input_grad(dtype, form):
        grad = draw((n, k, p, q), dtype, form)
        return (grad, draw(weight, dtype, form), layer.input, *args, form == "channels_last")

    def weight_grad(dtype, form):
        return (draw((n, k, p, q), dtype, form), draw(layer.input, dtype, form), weight, *args)

    operators = locally_connected2d
    return {
        (operators.LOCALLY_CONNECTED2D, ""): forward("none"),
        (operators.LOCALLY_CONNECTED2D, ", bias, ReLU"): forward("relu", "bias", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D, ", all"): forward("leaky_relu 0.125", "bias", "scale", "residual"),
        (operators.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, ""): forward("gelu", "bias", "residual", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, ", PReLU"): forward("none", "bias", "slope", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D_INPUT_GRAD, ""): input_grad,
        (operators.LOCALLY_CONNECTED2D_WEIGHT_GRAD, ""): weight_grad,
    }


def _transposed(layer: Transposed) -> dict[Op, Any]:
    window = convolution.transposed_window(
        layer.size, layer.stride, layer.padding, layer.output_padding, layer.dilation
    )  # fmt: skip
    args = (window.stride, window.pads, window.dilation, layer.groups, "zeros")
    weight = (layer.input[1], layer.c // layer.groups, *layer.size)
    output = convolution.transposed_shape(layer.input, weight, None, window, layer.groups)

    def forward(activation, *beside):
        def make(dtype, form):
            more = beside_product(layer.c, output, dtype, form, beside)
            tensors = (draw(layer.input, dtype, form), draw(weight, dtype, form), *more)
            return (*tensors, output, *args[:-1], form == "channels_last", activation)

        return make

    return {
        (conv2d.CONV_TRANSPOSE2D, ""): forward("none", "bias"),
        (conv2d.CONV_TRANSPOSE2D, ", all"): forward("relu", "bias", "scale", "residual"),
        (conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION, ""): forward("silu", "scale"),
        (conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION, ", PReLU"): forward("none", "bias", "slope"),
    }


def _pool(layer: Pool) -> dict[Op, Any]:
    window = pooling.pool_window(layer.size, layer.stride, layer.padding, layer.dilation)
    output = pooling.pool_output(window, layer.input[2:], layer.ceil_mode)
    counted = (layer.count_include_pad, layer.divisor_override)
    return _windows(layer.input, output, window, counted if layer.dilation == 1 else None)


def _adaptive(sizes: tuple[tuple[int, ...], tuple[int, int]]) -> dict[Op, Any]:
    return _windows(*sizes, (), (True, None))


def _windows(input: Any, output: Any, window: Any, counted: Any) -> dict[Op, Any]:
    """Both pools with this window; no average if its padding is `counted` in no way."""

    def maximum(winner, indices):
        return lambda dtype, form: (draw(input, dtype, form), output, window, winner, indices)

    def winner(dtype, form):
        return max_pool2d.MAX_POOL2D.reference(*maximum(True, False)(dtype, form))[1]

    def max_grad(dtype, form):
        grad = draw((*input[:2], *output), dtype, form)
        return (grad, winner(dtype, form), input, window, form == "channels_last")

    def at_winner(dtype, form):
        return (draw(input, dtype, form), winner(dtype, form), window)

    def unpool(dtype, form):
        indices = max_pool2d.MAX_POOL2D.reference(*maximum(False, True)(dtype, form))[2]
        return (draw(indices.shape, dtype, form), indices, input[2:])

    def unpool_grad(dtype, form):
        return (draw(input, dtype, form), unpool(dtype, form)[1])

    def average(dtype, form):
        return (draw(input, dtype, form), output, window, *counted)

    def avg_grad(dtype, form):
        return (draw((*input[:2], *output), dtype, form), input, window, *counted, form == "channels_last")

    cases = {
        (max_pool2d.MAX_POOL2D, ""): maximum(True, False),
        (max_pool2d.MAX_POOL2D, ", indices"): maximum(True, True),
        (max_pool2d.MAX_POOL2D, ", values alone"): maximum(False, False),
        (max_pool2d.MAX_POOL2D_INPUT_GRAD, ""): max_grad,
        (max_pool2d.MAX_POOL2D_AT_WINNER, ""): at_winner,
        (unpool2d.MAX_UNPOOL2D, ""): unpool,
        (unpool2d.MAX_UNPOOL2D_INPUT_GRAD, ""): unpool_grad,
    }
    if counted:
        cases |= {(avg_pool2d.AVG_POOL2D, ""): average, (avg_pool2d.AVG_POOL2D_INPUT_GRAD, ""): avg_grad}
    return cases


def _linear(layer: tuple[int, int, int, int]) -> dict[Op, Any]:
    rows, c, k, groups = layer
    weight = (k, c // groups)

    def forward(activation, *beside):
        def make(dtype, form):
            more = beside_product(k, (rows, k), dtype, form, beside)
            return (draw((rows, c), dtype, form), draw(weight, dtype, form), *more, groups, activation)

        return make

    return {
        (linear.LINEAR, ""): forward("none"),
        (linear.LINEAR, ", bias, ReLU"): forward("relu", "bias"),
        (linear.LINEAR, ", all"): forward("sigmoid", "bias", "scale", "residual"),
        (linear.LINEAR_WITH_PREACTIVATION, ""): forward("gelu_tanh", "bias"),
        (linear.LINEAR_WITH_PREACTIVATION, ", PReLU"): forward("none", "residual", "slope"),
        (linear.LINEAR_INPUT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw(weight, d, f), groups),
        (linear.LINEAR_WEIGHT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw((rows, c), d, f), groups),
    }


def _epilogue(shape: tuple[int, int, int, int]) -> dict[Op, Any]:
    def activation(name):
        def make(dtype, form):
            x, rule = draw(shape, dtype, form), activations.of(name)
            return (draw(shape, dtype, form), activations.reference(name, x) if rule.saves == "output" else x, name)

        return make

    def norm(activation, affine, added=False, slope=False):
        def make(dtype, form):
            x = draw(shape, dtype, form)
            var, mean = torch.var_mean(x.to(accumulator(dtype)), (0, 2, 3), correction=0)
            vectors = (draw(shape[1:2], dtype, form) if affine else None for _ in range(2))
            residual = draw(shape, dtype, form) if added else None
            below = draw(shape[1:2], dtype, form) if slope else None
            return (x, mean, var, *vectors, residual, below, 1e-3, activation)

        return make

    def norm_grad(name, affine):
        def make(dtype, form):
            *vectors, _, _, eps, activation = norm(name, affine)(dtype, form)
            return (draw(shape, dtype, form), *vectors, eps, activation)

        return make

    cases = {(activation_grad.ACTIVATION_GRAD, f", {name}"): activation(name) for name in ACTIVATIONS if name != "none"}
    for name, affine in (("relu", True), ("none", False), ("gelu", True)):
        cases[batch_norm.BATCH_NORM, f", {name}"] = norm(name, affine)
        cases[batch_norm.BATCH_NORM, f", {name}, added"] = norm(name, affine, added=True)
        cases[batch_norm.BATCH_NORM_GRAD, f", {name}"] = norm_grad(name, affine)
    cases[batch_norm.BATCH_NORM, ", PReLU"] = norm("none", True, added=True, slope=True)
    images = lambda dtype, form: [draw(shape, dtype, form) for _ in range(2)]  # noqa: E731
    cases[prelu.PRELU_GRAD, ""] = lambda dtype, form: (*images(dtype, form), draw(shape[1:2], dtype, form))
    return cases | {(activation_grad.BIAS_GRAD, ""): lambda dtype, form: (draw(shape, dtype, form),)}


GRADS = {"small": (2, 3, 5, 7), "33 channels": (3, 33, 9, 4), "rows": (65, 20, 1, 1), "long": (1, 4, 70, 71)}

CASES = [
    Case(op, label + more, make)
    for table, derive in (
        (CONVS, _conv),
        ({label: CONVS[label] for label in FOLLOWED}, _followed),
        ({label: (CONVS[label], pool) for label, pool in BLOCKS.items()}, _block),
        (TRANSPOSED, _transposed),
        (LOCALS, _local),
        (POOLS, _pool),
        (ADAPTIVES, _adaptive),
        (LINEARS, _linear),
        (GRADS, _epilogue),
    )
    for label, layer in table.items()
    for (op, more), make in derive(layer).items()
]

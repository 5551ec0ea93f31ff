"""The layers that operators are tested on, a line each: sizes, windows, strides, paddings, groups; and activations."""

from typing import Any, NamedTuple

from cnn_triton.kernels.core.op import Op
from cnn_triton.kernels.matrix import activations


class Case(NamedTuple):
    """One call of an operator: `make(dtype, format)` draws its arguments, on the CPU."""

    op: Op
    label: str
    make: Any

    def __repr__(self) -> str:
        return f"{self.op.name}: {self.label}"


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
    "64 channels": (2, 2),
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
    "aligned rows": Pool((2, 16, 9, 32), 3, 2, 1),
    "aligned by four": Pool((1, 16, 7, 12), 3, 1, 1, count_include_pad=False),
    "patches over edges": Pool((2, 9, 19, 17), (3, 2), 2, (1, 0), ceil_mode=True),
    "4x5 stride (2, 4)": Pool((1, 8, 11, 40), (4, 5), (2, 4), (2, 1), count_include_pad=False),
    "5x5 stride 1": Pool((1, 3, 6, 9), 5, 1, 2),
    "16x17": Pool((1, 3, 20, 18), (16, 17), 3),
    "7x7 of many planes": Pool((2, 72, 14, 7), 7),
    "whole rows": Pool((2, 3, 13, 16), (6, 16), (3, 1), (2, 0), count_include_pad=False),
    "6x6 stride 4": Pool((1, 72, 9, 8), 6, 4, 3, ceil_mode=True, count_include_pad=False),
    "33 channels": Pool((3, 33, 6, 5), 2),
    "no image": Pool((0, 3, 6, 6), 2),
}

ADAPTIVES = {  # input, output size
    "global": ((2, 5, 7, 6), (1, 1)),
    "global, of many planes": ((5, 72, 7, 7), (1, 1)),
    "global, aligned": ((2, 8, 24, 12), (1, 1)),
    "30 taps": ((2, 72, 11, 9), (2, 2)),
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

# Images whose gradients go through an epilogue or a normalisation.
# The last three: vectors that the compiler must be told of; several of them for each thread in channels_last; and,
# contiguous, several strips for each program.
GRADS = {
    "small": (2, 3, 5, 7),
    "33 channels": (3, 33, 9, 4),
    "rows": (65, 20, 1, 1),
    "long": (1, 4, 70, 71),
    "24 channels": (2, 24, 14, 18),
    "64 channels": (3, 64, 36, 40),
    "300 channels": (1, 300, 33, 34),
}

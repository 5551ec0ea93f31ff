"""Bad calls of every public function, and the words that their errors must have."""

import pytest
import torch
import torch.nn.functional as F

import cnn_triton
from cnn_triton import functional

X, W, B = (2, 4, 8, 8), (6, 4, 3, 3), (6,)


def on(path):
    """Where the functions run: the kernels, or PyTorch's operators."""
    return cnn_triton.backend("aten" if path == "aten" else "auto")


def rand(*shape, dtype=torch.float32):
    return torch.rand(shape).to(dtype)


CONV = {  # label: (arguments, what the message must hold)
    "input 2-D": (lambda: (rand(8, 8), rand(*W)), ("input", "(8, 8)")),
    "input 5-D": (lambda: (rand(1, *X), rand(*W)), ("input", "(1, 2, 4, 8, 8)")),
    "weight 3-D": (lambda: (rand(*X), rand(6, 4, 3)), ("weight", "(6, 4, 3)")),
    "channels": (lambda: (rand(2, 5, 8, 8), rand(*W)), ("input", "5", "4")),
    "channels unbatched": (lambda: (rand(5, 8, 8), rand(*W)), ("input", "5", "4")),
    "window": (lambda: (rand(2, 4, 2, 8), rand(*W)), ("weight", "3 x 3", "2 x 8")),
    "dilated window": (lambda: (rand(*X), rand(*W), None, 1, 0, 4), ("weight", "9 x 9", "8 x 8")),
    "bias shape": (lambda: (rand(*X), rand(*W), rand(5)), ("bias", "(6,)", "(5,)")),
    "negative padding": (lambda: (rand(*X), rand(*W), None, 1, -1), ("padding", "-1")),
    "stride 0": (lambda: (rand(*X), rand(*W), None, 0), ("stride", "(0, 0)")),
    "stride -1": (lambda: (rand(*X), rand(*W), None, (1, -1)), ("stride", "(1, -1)")),
    "stride of three": (lambda: (rand(*X), rand(*W), None, (1, 2, 3)), ("stride", "(1, 2, 3)")),
    "stride a string": (lambda: (rand(*X), rand(*W), None, "2"), ("stride", "'2'")),
    "stride a float": (lambda: (rand(*X), rand(*W), None, 1.5), ("stride", "1.5")),
    "dilation 0": (lambda: (rand(*X), rand(*W), None, 1, 0, 0), ("dilation", "(0, 0)")),
    "padding word": (lambda: (rand(*X), rand(*W), None, 1, "some"), ("padding", "'some'")),
    "padding same, stride 2": (lambda: (rand(*X), rand(*W), None, 2, "same"), ("padding", "'same'", "(2, 2)")),
    "groups of outputs": (lambda: (rand(*X), rand(6, 1, 3, 3), None, 1, 0, 1, 4), ("groups", "4", "6")),
    "groups of inputs": (lambda: (rand(*X), rand(*W), None, 1, 0, 1, 3), ("input", "4", "groups=3")),
    "groups 0": (lambda: (rand(*X), rand(*W), None, 1, 0, 1, 0), ("groups", "0")),
    "groups a float": (lambda: (rand(*X), rand(*W), None, 1, 0, 1, 2.0), ("groups", "2.0")),
    "groups a bool": (lambda: (rand(*X), rand(*W), None, 1, 0, 1, True), ("groups", "True")),
    "stride a tensor": (lambda: (rand(*X), rand(*W), None, torch.ones(2).int()), ("stride", "tensor")),
    "no weight": (lambda: (rand(*X), None), ("weight", "NoneType")),
    "weight a list": (lambda: (rand(*X), [1.0]), ("weight", "list")),
    "weight's dtype": (lambda: (rand(*X), rand(*W, dtype=torch.float64)), ("weight", "float64", "float32")),
    "bias' dtype": (lambda: (rand(*X), rand(*W), rand(6, dtype=torch.float16)), ("bias", "float16", "float32")),
}

LINEAR = {
    "features": (lambda: (rand(3, 5), rand(6, 4)), ("input", "(3, 5)", "4")),
    "bias shape": (lambda: (rand(3, 4), rand(6, 4), rand(5)), ("bias", "(6,)", "(5,)")),
    "weight 3-D": (lambda: (rand(3, 4), rand(2, 6, 4)), ("weight", "(2, 6, 4)")),
    "input a scalar": (lambda: (torch.tensor(1.0), rand(6, 4)), ("input", "scalar")),
    "weight's dtype": (lambda: (rand(3, 4), rand(6, 4, dtype=torch.float64)), ("weight", "float64", "float32")),
    "no weight": (lambda: (rand(3, 4), None), ("weight", "NoneType")),
}

POOL = {
    "input 2-D": (lambda: (rand(8, 8), 2), ("input", "(8, 8)")),
    "empty image": (lambda: (rand(2, 3, 0, 8), 2), ("input", "(2, 3, 0, 8)")),
    "window": (lambda: (rand(*X), 9), ("kernel_size", "(9, 9)", "8 x 8")),
    "padding over half": (lambda: (rand(*X), 3, 1, 2), ("padding", "(2, 2)", "(3, 3)")),
    "negative padding": (lambda: (rand(*X), 2, 1, -1), ("padding", "-1")),
    "kernel 0": (lambda: (rand(*X), 0), ("kernel_size", "(0, 0)")),
    "kernel of three": (lambda: (rand(*X), (2, 2, 2)), ("kernel_size", "(2, 2, 2)")),
    "kernel a float": (lambda: (rand(*X), 2.5), ("kernel_size", "2.5")),
    "stride 0": (lambda: (rand(*X), 2, 0), ("stride", "(0, 0)")),
    "stride a string": (lambda: (rand(*X), 2, "1"), ("stride", "'1'")),
    "input a list": (lambda: ([1.0], 2), ("input", "list")),
}

BACK = (4, 6, 3, 3)
TRANSPOSED = {
    "input 2-D": (lambda: (rand(8, 8), rand(*BACK)), ("input", "(8, 8)")),
    "weight 3-D": (lambda: (rand(*X), rand(4, 6, 3)), ("weight", "(4, 6, 3)")),
    "channels": (lambda: (rand(*X), rand(5, 6, 3, 3)), ("input", "4", "5")),
    "bias shape": (lambda: (rand(*X), rand(*BACK), rand(5)), ("bias", "(6,)", "(5,)")),
    "output padding": (lambda: (rand(*X), rand(*BACK), None, 2, 0, 2), ("output_padding", "(2, 2)")),
    "negative output padding": (lambda: (rand(*X), rand(*BACK), None, 2, 0, -1), ("output_padding", "-1")),
    "negative padding": (lambda: (rand(*X), rand(*BACK), None, 1, -1), ("padding", "-1")),
    "padding over output": (lambda: (rand(*X), rand(*BACK), None, 1, 6), ("padding", "(6, 6)", "(2, 4, 8, 8)")),
    "stride 0": (lambda: (rand(*X), rand(*BACK), None, 0), ("stride", "(0, 0)")),
    "dilation 0": (lambda: (rand(*X), rand(*BACK), None, 1, 0, 0, 1, 0), ("dilation", "(0, 0)")),
    "no output channel": (lambda: (rand(*X), rand(4, 0, 3, 3)), ("weight", "(4, 0, 3, 3)")),
    "groups a float": (lambda: (rand(*X), rand(*BACK), None, 1, 0, 0, 2.0), ("groups", "2.0")),
    "groups": (lambda: (rand(*X), rand(*BACK), None, 1, 0, 0, 3), ("groups", "3", "(4, 6, 3, 3)")),
    "padding a word": (lambda: (rand(*X), rand(*BACK), None, 1, "same"), ("padding", "'same'")),
}

ROW = {
    "input 4-D": (lambda: (rand(*X), rand(6, 4, 3)), ("input", "(N, C, W)", "(2, 4, 8, 8)")),
    "weight 4-D": (lambda: (rand(2, 4, 8), rand(*W)), ("weight", "(6, 4, 3, 3)")),
    "channels": (lambda: (rand(2, 5, 8), rand(6, 4, 3)), ("input", "5", "4")),
    "window": (lambda: (rand(2, 4, 2), rand(6, 4, 3)), ("weight", "3", "2")),
    "stride of two": (lambda: (rand(2, 4, 8), rand(6, 4, 3), None, (1, 2)), ("stride", "(1, 2)")),
    "stride 0": (lambda: (rand(2, 4, 8), rand(6, 4, 3), None, 0), ("stride", "(0,)")),
    "negative padding": (lambda: (rand(2, 4, 8), rand(6, 4, 3), None, 1, (-1,)), ("padding", "(-1,)")),
}

POOLED_ROW = {
    "input 4-D": (lambda: (rand(*X), 2), ("input", "(N, C, W)", "(2, 4, 8, 8)")),
    "input 1-D": (lambda: (rand(8), 2), ("input", "(8,)")),
    "no channel": (lambda: (rand(2, 0, 8), 2), ("input", "(2, 0, 8)")),
    "kernel of two": (lambda: (rand(2, 4, 8), (2, 2)), ("kernel_size", "(2, 2)")),
    "kernel over input": (lambda: (rand(2, 4, 8), 9), ("kernel_size", "9", "8")),
    "padding over half": (lambda: (rand(2, 4, 8), 3, 1, 2), ("padding", "2", "3")),
}

ADAPTIVE = {
    "input 2-D": (lambda: (rand(8, 8), (2, 2)), ("input", "(8, 8)")),
    "input 5-D": (lambda: (rand(1, *X), (2, 2)), ("input", "(1, 2, 4, 8, 8)")),
    "empty image": (lambda: (rand(2, 3, 0, 8), 2), ("input", "(2, 3, 0, 8)")),
    "size of three": (lambda: (rand(*X), (2, 2, 2)), ("output_size", "(2, 2, 2)")),
    "size of none": (lambda: (rand(*X), ()), ("output_size", "()")),
    "negative size": (lambda: (rand(*X), (-1, 2)), ("output_size", "(-1, 2)")),
    "size a float": (lambda: (rand(*X), 2.5), ("output_size", "2.5")),
    "no size": (lambda: (rand(*X), None), ("output_size", "None")),
    "size a word": (lambda: (rand(*X), "ab"), ("output_size", "ab")),
    "input 2-D, one size": (lambda: (rand(8, 8), 2), ("input", "(8, 8)")),
}

PLACES = torch.arange(2 * 4 * 8 * 8).view(X) % 256
UNPOOL = {
    "input 2-D": (lambda: (rand(8, 8), PLACES[0, 0], 2), ("input", "(8, 8)")),
    "indices' shape": (lambda: (rand(*X), PLACES[:1], 2), ("indices", "(2, 4, 8, 8)", "(1, 4, 8, 8)")),
    "indices' dtype": (lambda: (rand(*X), PLACES.int(), 2), ("indices", "int64", "int32")),
    "index over": (lambda: (rand(*X), PLACES + 1, 2), ("indices", "16 x 16", "255")),
    "index under": (lambda: (rand(*X), PLACES - 1, 2), ("indices", "16 x 16", "255")),
    "output size": (lambda: (rand(*X), PLACES, 2, 2, 0, (18, 16)), ("output_size", "(18, 16)", "(2, 2)")),
    "output size of one number": (lambda: (rand(*X), PLACES, 2, 2, 0, 16), ("output_size", "2 or 4 ints", "16")),
    "output size of three": (lambda: (rand(*X), PLACES, 2, 2, 0, (4, 16, 16)), ("output_size", "(4, 16, 16)")),
    "empty image": (lambda: (rand(2, 4, 0, 8), PLACES[:, :, :0], 2), ("input", "(2, 4, 0, 8)")),
    "no pixel": (lambda: (rand(2, 4, 1, 1), PLACES[:, :, :1, :1], 1, 1, 1), ("padding", "(1, 1)")),
    "output size of floats": (lambda: (rand(*X), PLACES, 2, 2, 0, (16.0, 16.0)), ("output_size", "16.0")),
    "indices elsewhere": (lambda: (rand(*X), PLACES.to("meta"), 2), ("indices", "meta", "cpu")),
}


def max_block(x, w, pool):
    return functional.conv2d_relu_max_pool2d(x, w, pool_size=pool)


def avg_block(x, w, pool):
    return functional.conv2d_relu_avg_pool2d(x, w, pool_size=pool)


BLOCK = {
    "pool of 0": (lambda: (rand(*X), rand(*W), 0), ("pool_size", "(0, 0)")),
    "pool of three": (lambda: (rand(*X), rand(*W), (2, 2, 2)), ("pool_size", "(2, 2, 2)")),
    "pool of floats": (lambda: (rand(*X), rand(*W), 2.5), ("pool_size", "2.5")),
    "pool over image": (lambda: (rand(*X), rand(*W), 7), ("pool_size", "(7, 7)", "6 x 6")),
    "channels": (lambda: (rand(2, 5, 8, 8), rand(*W), 2), ("input", "5", "4")),
    "no channel": (lambda: (rand(2, 0, 8, 8), rand(6, 0, 3, 3), 2), ("input",)),
}
CASES = [
    pytest.param(ours, theirs, make, words, id=f"{ours.__name__} {label}")
    for table, pairs in (
        (CONV, ((functional.conv2d, F.conv2d), (functional.conv2d_relu, F.conv2d))),
        (
            BLOCK,
            (
                (max_block, lambda x, w, pool: F.max_pool2d(F.conv2d(x, w), pool)),
                (avg_block, lambda x, w, pool: F.avg_pool2d(F.conv2d(x, w), pool)),
            ),
        ),
        (LINEAR, ((functional.linear, F.linear), (functional.linear_relu, F.linear))),
        (POOL, ((functional.max_pool2d, F.max_pool2d), (functional.avg_pool2d, F.avg_pool2d))),
        (TRANSPOSED, ((functional.conv_transpose2d, F.conv_transpose2d),)),
        (ROW, ((functional.conv1d, F.conv1d),)),
        (POOLED_ROW, ((functional.max_pool1d, F.max_pool1d), (functional.avg_pool1d, F.avg_pool1d))),
        (
            ADAPTIVE,
            (
                (functional.adaptive_max_pool2d, F.adaptive_max_pool2d),
                (functional.adaptive_avg_pool2d, F.adaptive_avg_pool2d),
            ),
        ),
        (UNPOOL, ((functional.max_unpool2d, F.max_unpool2d),)),
        (
            {
                "dilation 0": (lambda: (rand(*X), 2, 1, 0, 0), ("dilation", "(0, 0)")),
                "ceil_mode an int": (lambda: (rand(*X), 2, 1, 0, 1, 2), ("ceil_mode", "2")),
            },
            ((functional.max_pool2d, F.max_pool2d),),
        ),
        (
            {
                "divisor 0": (lambda: (rand(*X), 2, 2, 0, False, True, 0), ("divisor_override", "0")),
                "divisor a float": (lambda: (rand(*X), 2, 2, 0, False, True, 2.0), ("divisor_override", "2.0")),
                "count_include_pad a list": (
                    lambda: (rand(*X), 2, 2, 0, False, [True]),
                    ("count_include_pad", "[True]"),
                ),
            },
            ((functional.avg_pool2d, F.avg_pool2d),),
        ),
    )
    for label, (make, words) in table.items()
    for ours, theirs in pairs
]


PATHS = pytest.mark.parametrize("path", ["kernels", "aten"])  # the same messages

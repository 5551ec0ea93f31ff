"""The calls that test_compile.py compiles, by name: operators on tensors of a layer's size, uninitialised."""

from functools import cache

import torch

from cases import CASES
from cnn_triton.kernels.matrix import (
    activation_grad,
    batch_norm,
    conv2d,
    conv_pool,
    linear,
    locally_connected2d,
    pool_code,
    prelu,
)
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, unpool2d
from tables import ACTIVATIONS

LAST = torch.channels_last
WINDOW = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros")  # stride, pads, dilation, groups, padding_mode
REFLECT = (*WINDOW[:-1], "reflect")
NOTHING = (None, None, None, None)  # bias, scale, residual, slope


def call(what, dtype, channels):
    """The operator and arguments of a call by name; `channels` of the reduction. An operator that has no call of its
    own here gets its first test case."""
    for calls in (products, blocks, followed, local_and_linear, pools, grouped):
        if what in calls(dtype, channels):
            return calls(dtype, channels)[what]
    case = next(case for case in CASES if case.op.name == what)
    return case.op, case.make(dtype, "channels_last")


def images(dtype, *shape):
    return torch.empty(*shape, dtype=dtype, memory_format=LAST)


def layer(dtype, channels):
    """A 3 x 3 layer of 256 outputs at 32 x 56 x 56: input, weight, bias, output."""
    x, y = images(dtype, 32, channels, 56, 56), images(dtype, 32, 256, 56, 56)
    return x, images(dtype, 256, channels, 3, 3), torch.empty(256, dtype=dtype), y


@cache
def products(dtype, channels):
    """Convolutions and their gradients."""
    x, w, b, y = layer(dtype, channels)
    back, transposed = images(dtype, channels, 256, 3, 3), (y.shape, *WINDOW[:-1], True)
    both, twin = conv2d.CONV2D_WITH_PREACTIVATION, conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION
    return {
        "conv2d": (conv2d.CONV2D, (x, w, b, None, None, None, *WINDOW, "relu")),
        "conv2d without bias": (conv2d.CONV2D, (x, w, *NOTHING, *WINDOW, "relu")),
        "conv2d PReLU": (conv2d.CONV2D, (x, w, b, None, None, b, *WINDOW, "none")),
        "conv2d_with_preactivation": (both, (x, w, b, b, y, None, *WINDOW, "gelu")),
        "conv2d_with_preactivation PReLU": (both, (x, w, b, b, y, b, *WINDOW, "none")),
        "conv_transpose2d": (conv2d.CONV_TRANSPOSE2D, (x, back, b, b, y, None, *transposed, "relu")),
        "conv_transpose2d_with_preactivation": (twin, (x, back, b, b, y, None, *transposed, "silu")),
        "conv2d_input_grad": (conv2d.CONV2D_INPUT_GRAD, (x, back, y.shape, *WINDOW, True)),
        "conv2d_weight_grad": (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *WINDOW, True)),
        "conv2d reflect": (conv2d.CONV2D, (x, w, b, None, None, None, *REFLECT, "relu")),
        "conv2d_input_grad reflect": (conv2d.CONV2D_INPUT_GRAD, (x, back, y.shape, *REFLECT, True)),
        "conv2d_weight_grad reflect": (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *REFLECT, True)),
        **{f"conv2d {name}": (conv2d.CONV2D, (x, w, b, None, None, None, *WINDOW, name)) for name in ACTIVATIONS},
    }


@cache
def blocks(dtype, channels):
    """Convolutions with a pool or a batch normalisation."""
    x, w, b, y = layer(dtype, channels)
    half = images(dtype, 32, 256, 28, 28)
    code = images(torch.uint8, *half.shape)[None]
    pooled, maximum, average, both = (half, code), ((2, 2), False), ((2, 2), True), (True, True)
    vectors = (torch.empty(256), torch.empty(256), b, b)
    forward, grad = conv_pool.CONV2D_POOL, conv_pool.CONV2D_POOL_GRAD
    norm, norm_grad = batch_norm.BATCH_NORM, batch_norm.BATCH_NORM_GRAD
    return {
        "conv2d_pool": (forward, (x, w, b, b, *WINDOW, *maximum)),
        "conv2d_pool average": (forward, (x, w, b, b, *WINDOW, *average)),
        "conv2d_pool at once": (forward, (x, w, b, b, *WINDOW, *maximum)),
        "conv2d_pool average at once": (forward, (x, w, b, b, *WINDOW, *average)),
        "conv2d_pool_grad": (grad, (*pooled, x, w, *WINDOW, *maximum, *both, False)),
        "conv2d_pool_grad average": (grad, (*pooled, x, w, *WINDOW, *average, *both, False)),
        "conv2d_pool_grad materialized": (grad, (*pooled, x, w, *WINDOW, *maximum, *both, True)),
        "relu_pool2d_input_grad": (pool_code.RELU_POOL2D_INPUT_GRAD, (*pooled, y.shape, *maximum, True)),
        "relu_pool2d_at_open": (pool_code.RELU_POOL2D_AT_OPEN, (y, code, *maximum)),
        "conv2d_moments": (batch_norm.CONV2D_MOMENTS, (x, w, b, *WINDOW)),
        "batch_norm": (norm, (y, *vectors, None, None, 1e-5, "relu")),
        "batch_norm PReLU": (norm, (y, *vectors, y, b, 1e-5, "none")),
        "batch_norm added": (norm, (y, *vectors, y, None, 1e-5, "relu")),
        "batch_norm_grad": (norm_grad, (y, y, *vectors, 1e-5, "relu")),
        "batch_norm_grad one image": (norm_grad, (y[:1], y[:1], *vectors, 1e-5, "gelu")),
    }


@cache
def followed(dtype, channels):
    """The ways back through what follows a product."""
    _, _, b, y = layer(dtype, channels)
    return {
        "prelu_grad": (prelu.PRELU_GRAD, (y, y, b)),
        "bias_grad": (activation_grad.BIAS_GRAD, (y,)),
        "activation_grad": (activation_grad.ACTIVATION_GRAD, (y, y, "relu")),
        **{f"activation_grad {name}": (activation_grad.ACTIVATION_GRAD, (y, y, name)) for name in ACTIVATIONS},
    }


@cache
def local_and_linear(dtype, channels):
    """Locally connected layers at 14 x 14 pixels, and linear layers."""
    x, _, b, y = layer(dtype, channels)
    here, there = (t[:, :, :14, :14].contiguous(memory_format=LAST) for t in (x, y))
    own, back = (torch.empty(14, 14, *w, dtype=dtype) for w in ((256, 3, 3, channels), (channels, 3, 3, 256)))
    each, window, local = torch.empty(14, 14, 256, dtype=dtype), WINDOW[:-1], locally_connected2d
    both = local.LOCALLY_CONNECTED2D_WITH_PREACTIVATION
    rows, matrix, columns = (torch.empty(*s, dtype=dtype) for s in ((512, channels), (1024, channels), (512, 1024)))
    bias = torch.empty(1024, dtype=dtype)
    return {
        "locally_connected2d": (local.LOCALLY_CONNECTED2D, (here, own, each, None, None, None, *window, "relu")),
        "locally_connected2d_with_preactivation": (both, (here, own, b, b, there, None, *window, "gelu")),
        "locally_connected2d_input_grad": (
            local.LOCALLY_CONNECTED2D_INPUT_GRAD, (here, back, there.shape, *window, True)
        ),
        "locally_connected2d_weight_grad": (local.LOCALLY_CONNECTED2D_WEIGHT_GRAD, (there, here, own.shape, *window)),
        "linear": (linear.LINEAR, (rows, matrix, bias, None, None, None, 1, "relu")),
        "linear_with_preactivation": (
            linear.LINEAR_WITH_PREACTIVATION, (rows, matrix, bias, bias, columns, None, 1, "gelu_tanh")
        ),
        "linear without bias": (linear.LINEAR, (rows, matrix, *NOTHING, 1, "relu")),
        "linear_input_grad": (linear.LINEAR_INPUT_GRAD, (rows, matrix.view(channels, 1024), 1)),
        "linear_weight_grad": (linear.LINEAR_WEIGHT_GRAD, (columns, rows, 1)),
    }  # fmt: skip


@cache
def pools(dtype, channels):
    """Pools, sliding and adaptive, and unpooling."""
    x, _, _, _ = layer(dtype, channels)
    small, share = images(dtype, 32, channels, 28, 28), images(dtype, 32, channels, 17, 17)
    won, index, shares_won = (images(d, *t.shape) for d, t in (
        (torch.uint8, small), (torch.int64, small), (torch.uint8, share)
    ))  # fmt: skip
    window, counted = (2, 2, 2, 2, 0, 0, 1, 1), (True, None)  # count_include_pad, divisor_override
    maximum, winner = max_pool2d.MAX_POOL2D, max_pool2d.MAX_POOL2D_AT_WINNER
    maximum_grad, average_grad = max_pool2d.MAX_POOL2D_INPUT_GRAD, avg_pool2d.AVG_POOL2D_INPUT_GRAD
    return {
        "max_pool2d": (maximum, (x, (28, 28), window, True, False)),
        "max_pool2d_input_grad": (maximum_grad, (small, won, x.shape, window, True)),
        "max_pool2d_at_winner": (winner, (x, won, window)),
        "avg_pool2d": (avg_pool2d.AVG_POOL2D, (x, (28, 28), window, *counted)),
        "avg_pool2d_input_grad": (average_grad, (small, x.shape, window, *counted, True)),
        "max_pool2d adaptive": (maximum, (x, (17, 17), (), True, True)),
        "max_pool2d_input_grad adaptive": (maximum_grad, (share, shares_won, x.shape, (), True)),
        "max_pool2d_at_winner adaptive": (winner, (x, shares_won, ())),
        "avg_pool2d adaptive": (avg_pool2d.AVG_POOL2D, (x, (17, 17), (), *counted)),
        "avg_pool2d_input_grad adaptive": (average_grad, (share, x.shape, (), *counted, True)),
        "avg_pool2d global": (avg_pool2d.AVG_POOL2D, (x, (1, 1), (), *counted)),
        "avg_pool2d_input_grad global": (
            average_grad,
            (images(dtype, 32, channels, 1, 1), x.shape, (), *counted, True),
        ),
        "max_unpool2d": (unpool2d.MAX_UNPOOL2D, (small, index, (56, 56))),
        "max_unpool2d_input_grad": (unpool2d.MAX_UNPOOL2D_INPUT_GRAD, (x, index)),
    }


@cache
def grouped(dtype, channels):
    """Depthwise convolutions, and those in many narrow groups."""
    found = {}
    for rest, c, times in (("", 144, 1), (" of 72", 72, 1), (" times 4", 64, 4)):
        for size, stride in ((3, 1), (3, 2), (5, 1), (7, 1), (9, 1)):
            for what, found_call in in_groups(dtype, size, stride, c, c, times).items():
                found[f"{what} depthwise {size} by {stride}{rest}"] = found_call
    for wide, stride in ((4, 1), (8, 2), (16, 1), (32, 1)):
        for what, found_call in in_groups(dtype, 3, stride, 32 * wide, 32, 1).items():
            found[f"{what} of groups of {wide} by {stride}"] = found_call
    return found


def in_groups(dtype, size, stride, c, groups, times):
    """A layer of c channels in groups to `times` as many, at 56 x 56."""
    p = 56 // stride
    x, y = images(dtype, 32, c, 56, 56), images(dtype, 32, times * c, p, p)
    w, b = images(dtype, times * c, c // groups, size, size), torch.empty(times * c, dtype=dtype)
    window = ((stride,) * 2, (size // 2,) * 4, (1, 1), groups, "zeros")
    return {
        "conv2d": (conv2d.CONV2D, (x, w, b, None, None, None, *window, "relu")),
        "conv2d_with_preactivation": (conv2d.CONV2D_WITH_PREACTIVATION, (x, w, b, b, y, None, *window, "gelu")),
        "conv2d_moments": (batch_norm.CONV2D_MOMENTS, (x, w, None, *window)),
        "conv2d_input_grad": (conv2d.CONV2D_INPUT_GRAD, (y, w, x.shape, *window, True)),
        "conv2d_weight_grad": (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *window, True)),
    }

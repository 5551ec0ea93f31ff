"""Run by test_compile.py in a process without the interpreter: compiles what launchers launch, prints it as JSON.

python compile_child.py CHIP CALLS VERSION, where CALLS is JSON: a list of {"what", "dtype", "dot", "tile"} (see
`call`), and VERSION that of Triton, or "pinned".
"""

import json
import sys
from itertools import pairwise

import torch
import triton

from cases import ACTIVATIONS
from cnn_triton.kernels.compiler import aot
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
from cnn_triton.kernels.tiles import pick, shapes

LAST = torch.channels_last
_WINDOW = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros")  # stride, pads, dilation, groups, padding_mode


def _images(dtype, c, k):
    """A 3 x 3 layer at 32 x 56 x 56: input, weight, bias, output."""
    x = torch.empty(32, c, 56, 56, dtype=dtype).to(memory_format=LAST)
    y = torch.empty(32, k, 56, 56, dtype=dtype).to(memory_format=LAST)
    return x, torch.empty(k, c, 3, 3, dtype=dtype).to(memory_format=LAST), torch.empty(k, dtype=dtype), y


def call(what, dtype, channels):
    """The operator and arguments of a call by name; `channels` of the reduction."""
    x, w, b, y = _images(dtype, channels, 256)
    back = torch.empty(channels, 256, 3, 3, dtype=dtype).to(memory_format=LAST)
    rows, matrix, columns = (torch.empty(*s, dtype=dtype) for s in ((512, channels), (1024, channels), (512, 1024)))
    pool = ((28, 28), (2, 2, 2, 2, 0, 0, 1, 1))
    shares = ((17, 17), ())
    counted = (True, None)  # count_include_pad, divisor_override
    small = torch.empty(32, channels, 28, 28, dtype=dtype).to(memory_format=LAST)
    share = torch.empty(32, channels, 17, 17, dtype=dtype).to(memory_format=LAST)
    won, index = (torch.empty(small.shape, dtype=d).to(memory_format=LAST) for d in (torch.uint8, torch.int64))
    shares_won = torch.empty(share.shape, dtype=torch.uint8).to(memory_format=LAST)
    reflect = (*_WINDOW[:-1], "reflect")

    def grouped(size, stride, of, c=144, groups=None, times=1):
        """A layer of c channels in groups, each its own unless told otherwise, to times as many, at 56 x 56."""
        p, last, groups = 56 // stride, {"memory_format": LAST, "dtype": dtype}, groups or c
        x, y = torch.empty(32, c, 56, 56, **last), torch.empty(32, times * c, p, p, **last)
        w, b = torch.empty(times * c, c // groups, size, size, **last), torch.empty(times * c, dtype=dtype)
        window = ((stride,) * 2, (size // 2,) * 4, (1, 1), groups, "zeros")
        return {
            "conv2d": lambda: (conv2d.CONV2D, (x, w, b, None, None, None, *window, "relu")),
            "conv2d_with_preactivation": lambda: (
                conv2d.CONV2D_WITH_PREACTIVATION,
                (x, w, b, b, y, None, *window, "gelu"),
            ),
            "conv2d_moments": lambda: (batch_norm.CONV2D_MOMENTS, (x, w, None, *window)),
            "conv2d_input_grad": lambda: (conv2d.CONV2D_INPUT_GRAD, (y, w, x.shape, *window, True)),
            "conv2d_weight_grad": lambda: (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *window, True)),
        }[of]()

    half = torch.empty(32, 256, 28, 28, dtype=dtype).to(memory_format=LAST)
    code = torch.empty(half.shape, dtype=torch.uint8).to(memory_format=LAST)[None]
    pooled, halves, both = (half, code), ((2, 2), False), (True, True)  # gradient and code; pool; what is wanted
    transposed = (y.shape, *_WINDOW[:-1], True)
    vectors = (torch.empty(256), torch.empty(256), b, b)
    wide = b.new_empty(1024)
    # Locally connected, 14 x 14 pixels.
    here, there = (t[:, :, :14, :14].contiguous(memory_format=LAST) for t in (x, y))
    placed, back_placed = (torch.empty(14, 14, *w, dtype=dtype) for w in ((256, 3, 3, channels), (channels, 3, 3, 256)))
    each = torch.empty(14, 14, 256, dtype=dtype)
    local = locally_connected2d
    maximum, average = max_pool2d.MAX_POOL2D, avg_pool2d.AVG_POOL2D
    maximum_grad, average_grad = max_pool2d.MAX_POOL2D_INPUT_GRAD, avg_pool2d.AVG_POOL2D_INPUT_GRAD
    return {
        "conv2d": lambda: (conv2d.CONV2D, (x, w, b, None, None, None, *_WINDOW, "relu")),
        "conv2d without bias": lambda: (conv2d.CONV2D, (x, w, None, None, None, None, *_WINDOW, "relu")),
        "conv2d PReLU": lambda: (conv2d.CONV2D, (x, w, b, None, None, b, *_WINDOW, "none")),
        "conv2d_with_preactivation": lambda: (conv2d.CONV2D_WITH_PREACTIVATION, (x, w, b, b, y, None, *_WINDOW, "gelu")),
        "conv2d_with_preactivation PReLU": lambda: (conv2d.CONV2D_WITH_PREACTIVATION, (x, w, b, b, y, b, *_WINDOW, "none")),
        "prelu_grad": lambda: (prelu.PRELU_GRAD, (y, y, b)),
        "conv2d_moments": lambda: (batch_norm.CONV2D_MOMENTS, (x, w, b, *_WINDOW)),
        "conv2d_pool": lambda: (conv_pool.CONV2D_POOL, (x, w, b, b, *_WINDOW, *halves)),
        "conv2d_pool average": lambda: (conv_pool.CONV2D_POOL, (x, w, b, b, *_WINDOW, (2, 2), True)),
        "conv2d_pool_grad": lambda: (conv_pool.CONV2D_POOL_GRAD, (*pooled, x, w, *_WINDOW, *halves, *both, False)),
        "conv2d_pool_grad average": lambda: (
            conv_pool.CONV2D_POOL_GRAD, (*pooled, x, w, *_WINDOW, (2, 2), True, *both, False)
        ),
        "conv2d_pool_grad written": lambda: (
            conv_pool.CONV2D_POOL_GRAD, (*pooled, x, w, *_WINDOW, *halves, *both, True)
        ),
        "relu_pool2d_input_grad": lambda: (pool_code.RELU_POOL2D_INPUT_GRAD, (*pooled, y.shape, *halves, True)),
        "relu_pool2d_at_open": lambda: (pool_code.RELU_POOL2D_AT_OPEN, (y, code, *halves)),
        "batch_norm": lambda: (batch_norm.BATCH_NORM, (y, *vectors, None, None, 1e-5, "relu")),
        "batch_norm PReLU": lambda: (batch_norm.BATCH_NORM, (y, *vectors, y, b, 1e-5, "none")),
        "batch_norm added": lambda: (batch_norm.BATCH_NORM, (y, *vectors, y, None, 1e-5, "relu")),
        "batch_norm_grad one image": lambda: (batch_norm.BATCH_NORM_GRAD, (y[:1], y[:1], *vectors, 1e-5, "gelu")),
        "batch_norm_grad": lambda: (batch_norm.BATCH_NORM_GRAD, (y, y, *vectors, 1e-5, "relu")),
        "conv_transpose2d": lambda: (conv2d.CONV_TRANSPOSE2D, (x, back, b, b, y, None, *transposed, "relu")),
        "conv_transpose2d_with_preactivation": lambda: (
            conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION, (x, back, b, b, y, None, *transposed, "silu")
        ),
        "conv2d_input_grad": lambda: (conv2d.CONV2D_INPUT_GRAD, (x, back, y.shape, *_WINDOW, True)),
        "conv2d_weight_grad": lambda: (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *_WINDOW, True)),
        "conv2d reflect": lambda: (conv2d.CONV2D, (x, w, b, None, None, None, *reflect, "relu")),
        "conv2d_input_grad reflect": lambda: (conv2d.CONV2D_INPUT_GRAD, (x, back, y.shape, *reflect, True)),
        "conv2d_weight_grad reflect": lambda: (conv2d.CONV2D_WEIGHT_GRAD, (y, x, w.shape, *reflect, True)),
        "locally_connected2d": lambda: (
            local.LOCALLY_CONNECTED2D, (here, placed, each, None, None, None, *_WINDOW[:-1], "relu")
        ),
        "locally_connected2d_with_preactivation": lambda: (
            local.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, (here, placed, b, b, there, None, *_WINDOW[:-1], "gelu")
        ),
        "locally_connected2d_input_grad": lambda: (
            local.LOCALLY_CONNECTED2D_INPUT_GRAD, (here, back_placed, there.shape, *_WINDOW[:-1], True)
        ),
        "locally_connected2d_weight_grad": lambda: (
            local.LOCALLY_CONNECTED2D_WEIGHT_GRAD, (there, here, placed.shape, *_WINDOW[:-1])
        ),
        "linear": lambda: (linear.LINEAR, (rows, matrix, wide, None, None, None, 1, "relu")),
        "linear_with_preactivation": lambda: (linear.LINEAR_WITH_PREACTIVATION, (rows, matrix, wide, wide, columns, None, 1, "gelu_tanh")),
        "linear without bias": lambda: (linear.LINEAR, (rows, matrix, None, None, None, None, 1, "relu")),
        "linear_input_grad": lambda: (linear.LINEAR_INPUT_GRAD, (rows, matrix.view(channels, 1024), 1)),
        "linear_weight_grad": lambda: (linear.LINEAR_WEIGHT_GRAD, (columns, rows, 1)),
        "max_pool2d": lambda: (maximum, (x, *pool, True, False)),
        "max_pool2d_input_grad": lambda: (maximum_grad, (small, won, x.shape, pool[1], True)),
        "max_pool2d_at_winner": lambda: (max_pool2d.MAX_POOL2D_AT_WINNER, (x, won, pool[1])),
        "avg_pool2d": lambda: (average, (x, *pool, *counted)),
        "avg_pool2d_input_grad": lambda: (average_grad, (small, x.shape, pool[1], *counted, True)),
        "max_pool2d adaptive": lambda: (maximum, (x, *shares, True, True)),
        "max_pool2d_input_grad adaptive": lambda: (maximum_grad, (share, shares_won, x.shape, (), True)),
        "max_pool2d_at_winner adaptive": lambda: (max_pool2d.MAX_POOL2D_AT_WINNER, (x, shares_won, ())),
        "avg_pool2d adaptive": lambda: (average, (x, *shares, *counted)),
        "avg_pool2d_input_grad adaptive": lambda: (average_grad, (share, x.shape, (), *counted, True)),
        "max_unpool2d": lambda: (unpool2d.MAX_UNPOOL2D, (small, index, (56, 56))),
        "max_unpool2d_input_grad": lambda: (unpool2d.MAX_UNPOOL2D_INPUT_GRAD, (x, index)),
        "bias_grad": lambda: (activation_grad.BIAS_GRAD, (y,)),
        "activation_grad": lambda: (activation_grad.ACTIVATION_GRAD, (y, y, "relu")),
        **{
            f"{of} depthwise {size} by {stride}{rest}": lambda of=of, size=size, stride=stride, how=how: grouped(
                size, stride, of, **how
            )
            for of in ("conv2d", "conv2d_moments", "conv2d_input_grad", "conv2d_weight_grad")
            for rest, how in (("", {}), (" of 72", {"c": 72}), (" times 4", {"c": 64, "times": 4}))
            for size, stride in ((3, 1), (3, 2), (5, 1), (7, 1), (9, 1))
        },
        **{
            f"{of} of groups of {wide} by {stride}": lambda of=of, wide=wide, stride=stride: grouped(
                3, stride, of, 32 * wide, 32
            )
            for of in ("conv2d", "conv2d_with_preactivation", "conv2d_moments", "conv2d_input_grad", "conv2d_weight_grad")
            for wide, stride in ((4, 1), (8, 2), (16, 1), (32, 1))
        },
        **{f"conv2d {a}": lambda a=a: (conv2d.CONV2D, (x, w, b, None, None, None, *_WINDOW, a)) for a in ACTIVATIONS},
        **{f"activation_grad {a}": lambda a=a: (activation_grad.ACTIVATION_GRAD, (y, y, a)) for a in ACTIVATIONS},
    }[what]()  # fmt: skip


def main():
    chip, calls, version = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    assert version in ("pinned", triton.__version__), f"this is Triton {triton.__version__}, not {version}"
    ends = [0]
    with aot.recording(chip) as codes:  # what several calls launch is compiled once
        for each in calls:
            torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = each["dot"]
            given = each["tile"] and shapes.Tile(*each["tile"])
            if given:
                given = given._replace(box=given.box and tuple(given.box), programs=1)
            op, args = call(each["what"], getattr(torch, each["dtype"]), each["channels"])
            with pick.overriding(lambda picked, *problem, given=given: given or picked):
                op.launch(*args)
            ends.append(len(codes))
    for first, end in pairwise(ends):
        print(json.dumps([code._asdict() for code in codes[first:end]]))


if __name__ == "__main__":
    main()

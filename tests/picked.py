"""What the launchers pick, without running it: for the networks' layers and for random ones, on every chip."""

import contextlib
import itertools
import random

import torch

from bench.calls import PASSES, calls
from bench.layers import BATCH, LAYERS, Layer
from bench.tune import picking
from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.core.chips import CHIPS as TABLE
from cnn_triton.kernels.core.chips import NAMES, assuming, chip_name
from cnn_triton.kernels.core.op import collecting
from cnn_triton.kernels.tiles import shapes

# On a GPU what it picks itself: others' tiles may not fit.
CHIPS = NAMES if INTERPRETING else (chip_name(),)
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "float": torch.float32, "double": torch.float64}


def chips(kind):
    """The chips that are asked for an arithmetic: for TF32 those that have instructions for it."""
    return [chip for chip in CHIPS if kind != "tf32" or TABLE[chip].rates.tf32]


def random_layers(count, seed=0):
    """Convolutions of all sorts, of up to 2^12 channels and 2^7 rows."""
    draw = random.Random(seed)

    def size(bits):
        return int(2 ** (draw.random() * bits))

    for _ in range(count):
        window, stride = draw.choice((1, 1, 2, 3, 3, 5, 7)), draw.choice((1, 1, 1, 2, 3, 4))
        c, k = size(12), size(12)
        if draw.random() < 0.7:
            c, k = 8 * -(-c // 8), 8 * -(-k // 8)
        groups = draw.choice((1, 1, 1, c))
        k = groups * draw.randint(1, 3) if groups > 1 else k
        yield size(6), Layer("conv", c, window + size(7), k, window, stride, window // 2, groups)


@contextlib.contextmanager
def launchers():
    """Within, by the function it gives: (chip, pass, tile) of all that launchers would launch for a layer, but for what
    takes no tile, as depthwise convolution."""
    with picking() as noted:

        def of(layer, n, chips, kind):
            with float32_precision("tf32" if kind == "tf32" else "ieee"):
                for what, (op, args) in zip(PASSES, calls(layer, DTYPES[kind], n), strict=True):
                    result = op.fake(*args)
                    for chip in chips:
                        noted.pick = None
                        with collecting(), assuming(chip):
                            op.launcher(result, *args)
                        if noted.pick:
                            yield chip, what, noted.pick

        yield of


def picks():
    """Every (layer, kind, chip, pass, tile) of the networks' layers at batch size 32, in each arithmetic, and of 500
    random ones, each in one."""
    problems = [(BATCH, layer, kind) for layer in LAYERS for kind in shapes.ARITHMETIC]
    turns = itertools.cycle(shapes.ARITHMETIC)
    problems += [(n, layer, kind) for (n, layer), kind in zip(random_layers(500), turns, strict=False)]
    with launchers() as of:
        for n, layer, kind in problems:
            for chip, what, tile in of(layer, n, chips(kind), kind):
                yield layer, kind, chip, what, tile

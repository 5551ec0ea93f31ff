"""The simulator notices a synchronizing instruction that is missing: each of some kernels, removed one at a time.

`pytest -s` shows a table: of each instruction how it was noticed, or why it is redundant.
"""

import re

import pytest
import torch
import triton
import triton.language as tl

from cnn_triton.kernels.matrix.activation_grad import BIAS_GRAD
from cnn_triton.kernels.matrix.batch_norm import BATCH_NORM_GRAD, CONV2D_MOMENTS
from cnn_triton.kernels.matrix.conv2d import CONV2D, CONV2D_WEIGHT_GRAD
from cnn_triton.kernels.matrix.conv_pool import CONV2D_POOL
from cnn_triton.kernels.matrix.linear import LINEAR
from cnn_triton.kernels.pool.max_pool2d import MAX_POOL2D
from cnn_triton.kernels.tiles.model import box_of
from cnn_triton.kernels.tiles.pick import overriding
from cnn_triton.kernels.tiles.shapes import Tile
from cnn_triton.kernels.window.pooling import pool_output, pool_window
from cnn_triton.simulator import simulating
from simulated import simulated
from simulator_mutants import LIMIT, NOTHING_BEGUN, ORDERS_NOTHING, mutating

WINDOW = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros")  # stride, pads, dilation, groups, padding mode
ONE_TAP = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "zeros")
HALF, FLOAT, DOUBLE = torch.float16, torch.float32, torch.float64


@triton.jit
def dot_kernel(x, w, y, steps, N: tl.constexpr, K: tl.constexpr):
    """y = x · w for N rows and columns and steps · K terms."""
    rows, terms = tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros([N, N], tl.float32)
    for step in range(steps):
        k = step * K + terms
        left = tl.load(x + rows[:, None] * (steps * K) + k[None, :])
        acc = tl.dot(left, tl.load(w + k[:, None] * N + rows[None, :]), acc)
    tl.store(y + rows[:, None] * N + rows[None, :], acc)


@triton.jit
def copy_kernel(x, y, rows, columns, M: tl.constexpr, N: tl.constexpr):
    """y = x + 1, a row of boxes for each program, by descriptors that it makes."""
    origin = tl.make_tensor_descriptor(x, [rows, columns], [columns, 1], [M, N])
    target = tl.make_tensor_descriptor(y, [rows, columns], [columns, 1], [M, N])
    for j in range(tl.cdiv(columns, N)):
        target.store([tl.program_id(0) * M, j * N], origin.load([tl.program_id(0) * M, j * N]) + 1)


@triton.jit
def sums_kernel(x, y, steps, N: tl.constexpr):
    """y[step] = Σ x[step], and then y[steps] = Σ |x[step]| of the last."""
    for step in range(steps):
        row = tl.load(x + step * N + tl.arange(0, N))
        tl.store(y + step, tl.sum(row))
        tl.store(y + steps, tl.sum(tl.abs(row)))


def image(*shape, dtype=HALF):
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def conv(c=64, k=64, n=1, dtype=HALF, window=WINDOW, side=3):
    x, weight, bias = image(n, c, 8, 8, dtype=dtype), image(k, c, side, side, dtype=dtype), torch.randn(k).to(dtype)
    CONV2D.launch(x, weight, bias, None, None, None, *window, "relu")


def in_boxes(pick, problem, arithmetic, chip):
    """A tile of boxes for any problem that can be fetched so; one program for all tiles."""
    box = box_of(64, problem.images)[0]
    return Tile(64, 64, 64, 4, 3, box=box, programs=1) if problem.tma else pick


def conv_by_boxes():
    with overriding(in_boxes):
        conv(256, n=2, window=ONE_TAP, side=1)


def pooled(c=64, k=64, window=WINDOW, side=3):
    bias = torch.randn(k).half()
    CONV2D_POOL.launch(image(1, c, 8, 8), image(k, c, side, side), bias, None, *window, (2, 2), False)


def pooled_by_boxes():
    with overriding(in_boxes):
        pooled(256, window=ONE_TAP, side=1)


def weight_grad(c=64, k=64, n=9, dtype=HALF):
    grad, x = image(n, k, 8, 8, dtype=dtype), image(n, c, 8, 8, dtype=dtype)
    CONV2D_WEIGHT_GRAD.launch(grad, x, (k, c, 3, 3), *WINDOW, True)


def linear():
    x, weight, bias = (torch.randn(shape).half() for shape in ((32, 512), (64, 512), 64))
    LINEAR.launch(x, weight, bias, None, None, None, 1, "relu")


def max_pool():
    window = pool_window(3, 2, 1, 2)  # dilated: whole windows at once, exchanged through shared memory
    MAX_POOL2D.launch(image(1, 32, 8, 8, dtype=FLOAT), pool_output(window, (8, 8), False), window, True, False)


def moments():
    CONV2D_MOMENTS.launch(image(1, 64, 8, 8), image(64, 64, 3, 3), torch.randn(64).half(), *WINDOW)


def norm_grad():
    grad, x = (image(4, 32, 16, 16, dtype=FLOAT) for _ in range(2))
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    BATCH_NORM_GRAD.launch(grad, x, mean, var, torch.randn(32), torch.randn(32), 1e-3, "relu")


def bias_grad(form=torch.contiguous_format):
    BIAS_GRAD.launch(torch.randn(4, 32, 16, 16).to(memory_format=form))


def dot():
    x, w = torch.randn(64, 5 * 64).half(), torch.randn(5 * 64, 64).half()
    dot_kernel[1,](x, w, torch.empty(64, 64), 5, 64, 64, num_stages=3)


def copy():
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
    x = torch.randn(64, 256)
    copy_kernel[2,](x, torch.empty_like(x), *x.shape, 32, 64)


def sums():
    sums_kernel[1,](torch.randn(3, 1024), torch.empty(4), 3, 1024)


CHIPS = ("sm_80", "sm_90", "sm_100")
# Instructions of which one at least must be noticed, beside bar.sync: of products by copies of threads, and of boxes.
COPIES = {"cp.async.wait", "cp.async.commit"}
PRODUCT = {
    "sm_80": COPIES,
    "sm_90": COPIES | {"fence.proxy.async", "wgmma.commit", "wgmma.wait"},
    "sm_100": COPIES | {"fence.proxy.async", "mbarrier.init", "mbarrier.try_wait", "tcgen05.commit", "tcgen05.wait"},
}
IN_BOXES = {"fence.proxy.async", "fence.proxy.tensormap", "mbarrier.init", "mbarrier.arrive", "mbarrier.try_wait"}
BOXES = {"sm_90": IN_BOXES | {"wgmma.commit", "wgmma.wait"}, "sm_100": IN_BOXES | {"tcgen05.commit", "tcgen05.wait"}}
STORED = {"cp.async.bulk.commit", "cp.async.bulk.wait"}
BARRIERS: dict[str, set[str]] = {chip: set() for chip in CHIPS}
# By name: what is launched, and what must be noticed on each chip.
CASES = {
    "a product": (dot, PRODUCT),
    "copies of boxes": (copy, dict.fromkeys(BOXES, IN_BOXES | STORED)),
    "sums across warps": (sums, BARRIERS),
    "convolution": (conv, PRODUCT),
    "convolution, float32": (lambda: conv(dtype=FLOAT), {"sm_80": COPIES, "sm_90": COPIES}),
    "convolution, float64": (lambda: conv(16, 16, dtype=DOUBLE), {"sm_80": COPIES}),
    "convolution, odd channels": (lambda: conv(40, 33), BARRIERS),
    "convolution, few channels": (lambda: conv(24), BARRIERS),
    "convolution, boxes": (conv_by_boxes, {chip: shows | STORED for chip, shows in BOXES.items()}),
    "moments": (moments, {"sm_80": COPIES, "sm_90": COPIES}),
    "weight gradient": (weight_grad, {"sm_80": COPIES, **BOXES}),
    "weight gradient, float32": (lambda: weight_grad(n=4, dtype=FLOAT), {"sm_80": COPIES, "sm_90": IN_BOXES}),
    "weight gradient, odd channels": (lambda: weight_grad(40, 33, 4), BARRIERS),
    "pooled": (pooled, {"sm_80": PRODUCT["sm_80"], **BOXES}),
    "pooled, odd channels": (lambda: pooled(40, 33), BARRIERS),
    "pooled, boxes": (pooled_by_boxes, BOXES),
    "linear": (linear, PRODUCT),
    "max pool, dilated": (max_pool, BARRIERS),
    "batch norm's gradient": (norm_grad, BARRIERS),
    "bias gradient": (bias_grad, BARRIERS),
    "bias gradient, channels_last": (lambda: bias_grad(torch.channels_last), BARRIERS),
}
ALWAYS = ("a product", "copies of boxes", "sums across warps")
# Not products, and so alike on all chips: one is enough.
ALIKE = ("max pool, dilated", "batch norm's gradient", "bias gradient", "bias gradient, channels_last")


def rows():
    for name, (_, shows) in CASES.items():
        for chip in shows if name not in ALIKE else ("sm_80",):
            yield pytest.param(name, chip, marks=() if name in ALWAYS else pytest.mark.cover)


@pytest.mark.parametrize(("name", "chip"), list(rows()))
@simulated
def test_missing_synchronization_is_noticed(name, chip):
    launch, shows = CASES[name]
    with simulating(chip), mutating(chip, blocks=2) as mutants:
        launch()
    table = "\n".join(["", *map(str, mutants)])
    print(table)
    unexplained = [each for each in mutants if not each.noticed and not each.reason]
    assert not unexplained, f"not noticed, and not shown to be redundant:{table}"
    noticed = {each.family for each in mutants if each.noticed}
    assert noticed >= shows[chip] | {"bar.sync"}, f"none of {shows[chip] - noticed} is noticed:{table}"
    # An instruction that is never noticed is beyond the model, or waits for nothing in this kernel.
    never = [each for each in mutants if each.family not in noticed]
    assert all(each.reason.startswith((LIMIT, NOTHING_BEGUN)) for each in never), f"{never[:1]} never noticed:{table}"


@pytest.mark.parametrize("chip", CHIPS)
@simulated
def test_removal_of_what_orders_nothing_is_not_noticed(chip):
    """A barrier twice: of the two, neither is noticed, and both are redundant for the same reason."""
    with (
        simulating(chip),
        mutating(chip, blocks=1, change=lambda text: text.replace("bar.sync", "bar.sync 0; bar.sync")) as mutants,
    ):
        sums()
    assert len(mutants) == 12
    assert {each.noticed for each in mutants} == {""}
    assert {each.reason for each in mutants} == {ORDERS_NOTHING}


@simulated
def test_missing_named_barrier_is_noticed():
    """The block's barriers replaced by one with a number and a count of threads."""

    def change(text):
        return re.sub(r"bar\.sync\s+0", "bar.sync 3, 128", text)

    with simulating("sm_90"), mutating("sm_90", blocks=1, change=change) as mutants:
        sums()
    assert [each.removed.operands for each in mutants] == [("3", "128")] * 6
    assert all(each.noticed.startswith("finding: race") for each in mutants), "\n".join(map(str, mutants))

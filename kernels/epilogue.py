"""What follows a product: bias and activation, and the way back through them.

    y = act(x + bias)        in the matrix kernels, on the sums in registers
    g = act'(y) · dy         one pass over dy and the saved output y, which also yields
    db[k] = Σ_pixel g        in two stages: partial sums per program, then their sum in a fixed order

The mask is not applied inside the gradient kernels: there it would send an operand of a matrix instruction through
registers, and twice, once for each gradient.
"""

from typing import Any, NamedTuple

import torch

from . import device, tiles
from .device import offsets, pixel, sum_rows
from .geometry import cdiv
from .lang import tl, triton
from .op import Fold, Op, channels_last, check_tensors, index_type, launch, nbytes, new, nhwc, tl_type
from .precision import accumulator


class Activation(NamedTuple):
    """y = forward(x) and dx = backward(dy, y); `saves_output`: is y needed for that? The last two are for torch."""

    forward: Any
    backward: Any
    saves_output: bool
    reference: Any
    reference_grad: Any


# A further activation is one line here and two functions in device.py.
ACTIVATIONS = {
    "none": Activation(device.identity, device.identity_grad, False, lambda x: x, lambda grad, y: grad),
    "relu": Activation(device.relu, device.relu_grad, True, torch.relu, lambda grad, y: torch.where(y <= 0, 0, grad)),
}


@triton.jit
def sum_kernel(parts, total, rows, size, ROWS: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """total[i] = Σ_row parts[row, i], in a fixed order: the second stage of every split sum."""
    i = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], parts.dtype.element_ty)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (i < size)[None, :]
        acc += sum_rows(tl.load(parts + row[:, None].to(INDEX) * size + i[None, :], mask=mask, other=0.0))
    tl.store(total + i, acc.to(total.dtype.element_ty), mask=i < size)


@triton.jit
def epilogue_grad_kernel(
    grad, saved, masked, parts, grad_strides, saved_strides, masked_strides, size, channels, chunk,
    BACKWARD: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """masked = act'(saved) · grad, and parts[program, k] = Σ over the program's pixels of masked."""
    across = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) // across
    k = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    has = k < channels
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for step in range(part * chunk, (part + 1) * chunk):
        index = tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS)
        at = pixel(index, size[1], size[2])
        mask = (at[0] < size[0])[:, None] & has[None, :]
        g = tl.load(grad + offsets(at, k, grad_strides), mask=mask, other=0.0).to(ACC)
        if saved is not None:
            y = tl.load(saved + offsets(at, k, saved_strides), mask=mask, other=0.0).to(ACC)
            g = BACKWARD(g, y)
            tl.store(masked + offsets(at, k, masked_strides), g.to(masked.dtype.element_ty), mask=mask)
        acc += g
    tl.store(parts + part.to(INDEX) * channels + k, sum_rows(acc).to(parts.dtype.element_ty), mask=has)


def sum_parts(parts: torch.Tensor, total: torch.Tensor) -> None:
    """total = Σ_row parts[row, :], rows added in a fixed order; total's elements in the order of its memory."""
    size = total.numel()
    block = tiles.pick_sum(size, tiles.chip_name())
    launch(
        sum_kernel, cdiv(size, block), parts, total, parts.shape[0], size,
        ROWS=16, BLOCK=block, INDEX=index_type(parts), num_warps=4,
    )  # fmt: skip


def _launch(bias: torch.Tensor, masked: torch.Tensor, grad: torch.Tensor, saved: torch.Tensor | None, backward: Any):
    if grad.numel() == 0:
        bias.zero_()
        return
    batch, channels, height, width = grad.shape
    chip = tiles.chip_name()
    like = grad if saved is None else saved
    strip = tiles.pick_strip(batch * height * width, channels, like.stride(1) == 1, chip)
    across = cdiv(channels, strip.channels)
    steps = cdiv(batch * height * width, strip.pixels)
    chunk = cdiv(steps, max(1, min(steps, 4 * tiles.CHIPS[chip].multiprocessors // across)))
    programs = cdiv(steps, chunk)
    parts = bias if programs == 1 else new((programs, channels), grad, dtype=accumulator(grad.dtype))
    launch(
        epilogue_grad_kernel, programs * across, grad, saved, masked, parts, nhwc(grad),
        nhwc(like), nhwc(masked), (batch, height, width), channels, chunk,
        BACKWARD=backward, ACC=tl_type(accumulator(grad.dtype)), INDEX=index_type(grad, saved),
        PIXELS=strip.pixels, CHANNELS=strip.channels,
        num_warps=strip.warps,
    )  # fmt: skip
    if parts is not bias:
        sum_parts(parts, bias)


def bias_grad_fake(grad):
    check_tensors(grad=grad)
    return grad.new_empty(grad.shape[1])


def bias_grad_launch(bias, grad):
    _launch(bias, grad, grad, None, device.identity_grad)


def bias_grad_aten(grad):
    return grad.sum((0, 2, 3))


def activation_grad_fake(grad, output, activation):
    check_tensors(grad=grad, output=output)
    return new(output.shape, output, channels_last(output)), bias_grad_fake(grad)


def activation_grad_launch(results, grad, output, activation):
    masked, bias = results
    _launch(bias, masked, grad, output, ACTIVATIONS[activation].backward)


def activation_grad_aten(grad, output, activation):
    masked = ACTIVATIONS[activation].reference_grad(grad, output)
    return masked, bias_grad_aten(masked)


BIAS_GRAD = Op(
    name="bias_grad",
    schema="(Tensor grad) -> Tensor",
    fake=bias_grad_fake,
    launcher=bias_grad_launch,
    aten=bias_grad_aten,
    flops=lambda grad: grad.numel(),
    bytes=lambda grad: nbytes(grad) + grad.shape[1] * grad.element_size(),
    folds=(Fold({"grad": 1}, (0,)),),
)

ACTIVATION_GRAD = Op(
    name="activation_grad",
    schema="(Tensor grad, Tensor output, str activation) -> (Tensor, Tensor)",
    fake=activation_grad_fake,
    launcher=activation_grad_launch,
    aten=activation_grad_aten,
    flops=lambda grad, output, activation: 2 * grad.numel(),
    bytes=lambda grad, output, activation: 2 * nbytes(grad) + nbytes(output) + grad.shape[1] * grad.element_size(),
    folds=(Fold({"grad": 1, "output": 1}, (1, 0)),),
)

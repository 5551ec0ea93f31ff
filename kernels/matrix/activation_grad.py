"""The way back through an activation, and through a bias.

g        = act'(x) · dy       one pass over dy and what was saved, y or x (activations), which also yields
dbias[k] = Σ_pixel g          in two stages (streaming.sums); kept in the accumulator's dtype, which a bias may have
"""

import torch

from ..base.lang import tl, triton
from ..base.precision import accumulator
from ..core.images import Images, in_vectors, merged, offsets
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, index_type, nbytes, new
from ..streaming.strips import part_of, step_of
from ..streaming.sums import held, sum_held, sum_pixels
from . import activations


@triton.jit
def activation_grad_kernel(
    grad, saved, masked, parts, channels, chunk, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """masked = act'(x) · grad, computed from saved (x or y), and parts[program, k] = Σ of it over the program's pixels.
    saved None: only the sums of grad."""
    ROWS: tl.constexpr = BLOCK.rows
    CHANNELS: tl.constexpr = BLOCK.channels
    ACC: tl.constexpr = BLOCK.accumulator
    NUMBERS: tl.constexpr = ACTIVATION.numbers
    grad, masked = in_vectors(grad, BLOCK), in_vectors(masked, BLOCK)
    if saved is not None:
        saved = in_vectors(saved, BLOCK)
    part = part_of(channels, BLOCK)
    acc = tl.zeros([ROWS, CHANNELS], ACC)
    for number in range(part.number * chunk, (part.number + 1) * chunk):
        step = step_of(number, masked.size, part, BLOCK)
        g = tl.load(grad.data + offsets(step.at, part.c, grad.strides), mask=step.mask, other=0.0).to(ACC)
        if saved is not None:
            y = tl.load(saved.data + offsets(step.at, part.c, saved.strides), mask=step.mask, other=0.0).to(ACC)
            g = ACTIVATION.backward(g, y, NUMBERS)
            to = masked.data + offsets(step.at, part.c, masked.strides)
            tl.store(to, g.to(masked.data.dtype.element_ty), mask=step.mask)
        acc += held(g, BLOCK)
    to = parts + part.number.to(BLOCK.index) * channels + part.c
    tl.store(to, sum_held(acc, BLOCK).to(parts.dtype.element_ty), mask=part.c_mask)


def _launch(dbias: torch.Tensor, masked: torch.Tensor, grad: torch.Tensor, saved: torch.Tensor | None, activation: str):
    like = grad if saved is None else saved
    act = activations.of(activation)
    dy, x, dx = merged(Images.of(grad), Images.of(like), Images.of(masked))
    sum_pixels(
        activation_grad_kernel, dbias, like, dy, None if saved is None else x, dx, index=index_type(grad, saved),
        high=act.vectors_at_once, ACTIVATION=act.on_device(masked.dtype, like.dtype),
    )  # fmt: skip


def bias_grad_fake(grad):
    check_tensors(grad=grad)
    return grad.new_empty(grad.shape[1], dtype=accumulator(grad.dtype))


def bias_grad_launch(dbias, grad):
    _launch(dbias, grad, grad, None, "none")


def bias_grad_aten(grad):
    return grad.sum((0, 2, 3), dtype=accumulator(grad.dtype))


def activation_grad_fake(grad, saved, activation):
    """Return (g [N, C, H, W], dbias [C])."""
    check_tensors(grad=grad, saved=saved)
    return new(saved.shape, saved, channels_last(saved)), bias_grad_fake(grad)


def activation_grad_launch(results, grad, saved, activation):
    masked, dbias = results
    _launch(dbias, masked, grad, saved, activation)


def activation_grad_aten(grad, saved, activation):
    masked = activations.of(activation).reference_grad(grad, saved)
    return masked, bias_grad_aten(masked)


BIAS_GRAD = Op(
    name="bias_grad",
    schema="(Tensor grad) -> Tensor",
    fake=bias_grad_fake,
    launcher=bias_grad_launch,
    aten=bias_grad_aten,
    flops=lambda grad: grad.numel(),
    bytes=lambda grad: nbytes(grad, bias_grad_fake(grad)),
    vmap=(VmapRule({"grad": 1}, (0,)),),
)

ACTIVATION_GRAD = Op(
    name="activation_grad",
    schema="(Tensor grad, Tensor saved, str activation) -> (Tensor, Tensor)",
    fake=activation_grad_fake,
    launcher=activation_grad_launch,
    aten=activation_grad_aten,
    flops=lambda grad, saved, activation: 2 * grad.numel(),
    bytes=lambda grad, saved, activation: nbytes(grad, saved, *activation_grad_fake(grad, saved, activation)),
    vmap=(VmapRule({"grad": 1, "saved": 1}, (1, 0)),),
)

"""What follows a product, and the way back through it.

    x = scale · product + bias + residual     in the matrix kernels, on the sums in registers
    y = act(x), or PReLU's with a slope: x where that is positive, else slope · x         (back: prelu.py)
    g = act'(x) · dy         one pass over dy and what was saved, y or x (activations.py), which also yields
    db[k] = Σ_pixel g        in two stages: partial sums per program, then their sum in a fixed order; as precise as
                             sums are, since a bias may be

The mask is not applied inside the gradient kernels: there it would send an operand of a matrix instruction through
registers, and twice, once for each gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..base.lang import device_function, tl, triton
from ..base.precision import PRECISION, accumulator, autocasts
from ..core import chips
from ..core.device import offsets, part_of, step_of, sum_rows
from ..core.op import (
    Fold,
    Op,
    channels_last,
    check_optional,
    check_tensors,
    index_type,
    laid_out_as,
    launch,
    nbytes,
    new,
    nhwc,
    tl_type,
)
from ..tiles import pick
from ..window import convolution
from ..window.convolution import cdiv
from . import activations


class Epilogue(NamedTuple):
    """What follows a product: vectors over its columns, and tensors of the result's shape.

    before: takes x, what stands before the activation
    """

    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    slope: torch.Tensor | None = None
    activation: str = "none"
    before: torch.Tensor | None = None

    def terms(self, y: torch.Tensor, moments: torch.Tensor | None) -> tuple[Any, ...]:
        """What `finish` takes, for a result y: what has its shape, in its strides. `moments` [tiles, 3, columns] takes
        each of the kernel's tiles' number of pixels, mean of x, and sum of squares about it."""
        vectors = (self.bias, self.scale, self.slope)
        bias, scale, slope = (each if each is None else each.contiguous() for each in vectors)
        return (
            bias,
            scale,
            laid_out_as(y, self.residual),
            slope,
            self.before,
            moments,
            0 if moments is None else moments.shape[2],
        )

    @property
    def extra_registers(self) -> bool:
        """Does it take registers for each result: to load or store what is as large, or for a smooth activation?"""
        smooth = activations.of(self.activation).rule.curve is not None
        return smooth or self.residual is not None or self.before is not None

    @property
    def constants(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        activation = activations.of(self.activation)
        return {"ACTIVATION": activation.rule.forward, "NUMBERS": activation.numbers}


@device_function
def finish(
    acc, epilogue, tile, k, has, at, exists, strides,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """y of a kernel's tile of sums [pixels, columns], at pixels `at` = (n, p, q) and columns k, of which some exist;
    see Epilogue."""
    bias, scale, residual, slope, before, moments, columns = epilogue
    if scale is not None:
        acc *= tl.load(scale + k, mask=has, other=0.0).to(acc.dtype)[None, :]
    if bias is not None:
        acc += tl.load(bias + k, mask=has, other=0.0).to(acc.dtype)[None, :]
    if residual is not None or before is not None:
        to = offsets((at[0].to(INDEX), at[1], at[2]), k.to(INDEX), strides)
        mask = exists[:, None] & has[None, :]
        if residual is not None:
            acc += tl.load(residual + to, mask=mask, other=0.0).to(acc.dtype)
        if before is not None:
            tl.store(before + to, acc.to(before.dtype.element_ty), mask=mask)
    if moments is not None:
        some = exists[:, None]
        count = tl.sum(exists.to(acc.dtype), axis=0)
        mean = sum_rows(tl.where(some, acc, 0.0)) / count
        off = tl.where(some, acc - mean[None, :], 0.0)
        to = moments + tl.cast(tile, INDEX) * 3 * columns + k
        tl.store(to, tl.zeros_like(mean) + count, mask=has)
        tl.store(to + columns, mean, mask=has)
        tl.store(to + 2 * columns, sum_rows(off * off), mask=has)
    if slope is not None:
        acc = prelu(acc, slope, k, has)
    return ACTIVATION(acc, NUMBERS)


@device_function
def prelu(x, slope, k, has):
    """x where that is positive, else slope[k]·x, for x [pixels, columns]."""
    return tl.where(x > 0, x, x * tl.load(slope + k, mask=has, other=0.0).to(x.dtype)[None, :])


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
    grad, saved, masked, grad_strides, saved_strides, masked_strides, parts, size, channels, chunk,
    BACKWARD: tl.constexpr, NUMBERS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """masked = act'(saved) · grad, and parts[program, k] = Σ over the program's pixels of masked."""
    part, k, has = part_of(channels, INDEX, CHANNELS)
    acc = tl.zeros([PIXELS, CHANNELS], ACC)
    for step in range(part * chunk, (part + 1) * chunk):
        at, mask = step_of(step, size, has, INDEX, PIXELS)
        g = tl.load(grad + offsets(at, k, grad_strides), mask=mask, other=0.0).to(ACC)
        if saved is not None:
            y = tl.load(saved + offsets(at, k, saved_strides), mask=mask, other=0.0).to(ACC)
            g = BACKWARD(g, y, NUMBERS)
            tl.store(masked + offsets(at, k, masked_strides), g.to(masked.dtype.element_ty), mask=mask)
        acc += g
    tl.store(parts + part.to(INDEX) * channels + k, sum_rows(acc).to(parts.dtype.element_ty), mask=has)


def sum_parts(parts: torch.Tensor, total: torch.Tensor) -> None:
    """total = Σ_row parts[row, :], rows added in a fixed order; total's elements in the order of its memory."""
    size = total.numel()
    block = pick.sum_columns(size, chips.chip_name())
    launch(
        sum_kernel, cdiv(size, block), parts, total, parts.shape[0], size,
        ROWS=16, BLOCK=block, INDEX=index_type(parts), num_warps=4,
    )  # fmt: skip


def sum_pixels(
    kernel: Any, totals: torch.Tensor, over: torch.Tensor, *args: Any, rows: int = 1, blocks: int = 1, **constants: Any
) -> None:
    """Launches kernel(*args, parts, size of `over` (n, h, w), its channels, chunk), each program on a chunk of strips
    of pixels; totals [sums x channels] are the sums of what each program stores in its row of parts. A pixel may stand
    for some `rows`, whose number divides the height, h then counts these; and there may be several `blocks` of sums,
    each with programs of its own."""
    if over.numel() == 0:
        totals.zero_()
        return
    batch, channels, height, width = over.shape
    chip = chips.chip_name()
    height //= rows
    strip = pick.strip(batch * height * width, channels, over.stride(1) == 1, chip)
    across = cdiv(channels, strip.channels) * blocks
    steps = cdiv(batch * height * width, strip.pixels)
    chunk = cdiv(steps, max(1, min(steps, 4 * chips.CHIPS[chip].multiprocessors // across)))
    programs = cdiv(steps, chunk)
    parts = totals if programs == 1 else new((programs, totals.numel()), over, dtype=accumulator(over.dtype))
    launch(
        kernel, programs * across, *args, parts, (batch, height, width), channels, chunk, **constants,
        ACC=tl_type(accumulator(over.dtype)), PIXELS=strip.pixels, CHANNELS=strip.channels, num_warps=strip.warps,
    )  # fmt: skip
    if parts is not totals:
        sum_parts(parts, totals)


def _launch(bias: torch.Tensor, masked: torch.Tensor, grad: torch.Tensor, saved: torch.Tensor | None, activation: str):
    like = grad if saved is None else saved
    applied = activations.of(activation)
    sum_pixels(
        epilogue_grad_kernel, bias, like, grad, saved, masked, nhwc(grad), nhwc(like), nhwc(masked),
        BACKWARD=applied.rule.backward, NUMBERS=applied.numbers_as(like.dtype), INDEX=index_type(grad, saved),
    )  # fmt: skip


def bias_grad_fake(grad):
    check_tensors(grad=grad)
    return grad.new_empty(grad.shape[1], dtype=accumulator(grad.dtype))


def bias_grad_launch(bias, grad):
    _launch(bias, grad, grad, None, "none")


def bias_grad_aten(grad):
    return grad.sum((0, 2, 3), dtype=accumulator(grad.dtype))


def activation_grad_fake(grad, saved, activation):
    check_tensors(grad=grad, saved=saved)
    return new(saved.shape, saved, channels_last(saved)), bias_grad_fake(grad)


def activation_grad_launch(results, grad, saved, activation):
    masked, bias = results
    _launch(bias, masked, grad, saved, activation)


def activation_grad_aten(grad, saved, activation):
    masked = activations.of(activation).reference_grad(grad, saved)
    return masked, bias_grad_aten(masked)


def check_epilogue(
    bias: Any, scale: Any, residual: Any, slope: Any, like: torch.Tensor, shape: Any, columns: int,
    places: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """Errors: RuntimeError, TypeError for what doesn't fit a product's columns and result of this shape, of like's
    dtype and device. With a scale, it and the bias may also have the dtype that sums are kept in. The bias may be one
    for each of `places`."""
    for name, vector in (("scale", scale), ("bias", bias), ("slope", slope)):
        if vector is not None:
            wide = name != "slope" and scale is not None
            wide = wide and isinstance(vector, torch.Tensor) and vector.dtype == accumulator(like.dtype)
            check_tensors(input=like.new_empty(0, dtype=vector.dtype) if wide else like, **{name: vector})
            if name == "bias" and places and vector.dim() != 1:
                each = (*places, columns)
                if vector.shape != each:
                    raise RuntimeError(f"bias must have shape {(columns,)} or {each}, but got {tuple(vector.shape)}")
            else:
                convolution.same_shape(name, vector.shape, (columns,))
    if residual is not None:
        check_tensors(input=like, residual=residual)
        convolution.same_shape("residual", residual.shape, shape)


def completed(
    product: Callable[[Any], torch.Tensor], bias: Any, scale: Any, residual: Any, slope: Any, activation: str,
    dims: int = 2,
) -> torch.Tensor:  # fmt: skip
    """A product and what follows it, by PyTorch, whose products add a bias themselves: product(bias) is one, with
    `dims` dimensions behind its columns."""
    y = product(bias if scale is None else None)
    if (
        y.dim() > dims and not y.is_nested and y.shape[-1 - dims] == 0
    ):  # without input channels there are no columns either
        return y
    columns = (-1, *(1,) * dims)
    check_fit(y, scale, residual, slope, dims)
    x = y if scale is None else y * scale.view(columns)
    x = x if bias is None or scale is None else x + bias.view(columns)
    x = x if residual is None else x + residual
    return activated(x.to(y.dtype), slope, activation, dims)


def check_fit(y: torch.Tensor, scale: Any, residual: Any, slope: Any, dims: int) -> None:
    """Errors: TypeError, RuntimeError for what PyTorch would broadcast or promote, and kernels don't."""
    check_optional(scale=scale, residual=residual)
    if y.is_nested or y.dtype not in PRECISION:
        return
    slope = None if slope is None or slope.numel() == 1 else slope
    if autocasts(y):  # which makes their dtypes the same
        scale, residual, slope = (None if t is None else y.new_empty(t.shape) for t in (scale, residual, slope))
    check_epilogue(None, scale, residual, slope, y, y.shape, y.shape[-1 - dims])


def activated(x: torch.Tensor, slope: torch.Tensor | None, activation: str, dims: int = 2) -> Any:
    """act(x), or with a slope PReLU, by PyTorch."""
    if slope is None or x.numel() == 0:  # without input channels there are no columns that a slope could be of
        return activations.reference(activation, x)
    if slope.numel() == 1 or x.dim() == dims + 2:
        return F.prelu(x, slope)
    return torch.where(x > 0, x, x * slope.view(-1, *(1,) * dims))  # PyTorch's columns would be another dimension


# What a product's operator takes after input and weight, where the slope stands, and the dimensions of the columns.
OPERANDS = "Tensor? bias, Tensor? scale, Tensor? residual, Tensor? slope"
SLOPE = 5
BY_COLUMN = {"bias": 0, "scale": 0, "residual": 1, "slope": 0}


def saving(op: Op) -> Op:
    """The operator that gives, besides op's result, what stands before the activation, op's last argument."""

    def fake(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y = op.fake(*args)
        return y, torch.empty_like(y)

    def launcher(results: tuple[torch.Tensor, torch.Tensor], *args: Any) -> None:
        op.launcher(results[0], *args, before=results[1])

    def aten(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        slope, activation = args[SLOPE], args[-1]
        before = op.aten(*args[:SLOPE], None, *args[SLOPE + 1 : -1], "none")
        return activated(before, slope, activation, 2 if before.dim() == 4 else 0), before

    return dataclasses.replace(
        op,
        name=f"{op.name}_saving",
        schema=op.schema.replace("-> Tensor", "-> (Tensor, Tensor)"),
        fake=fake,
        launcher=launcher,
        aten=aten,
        bytes=lambda *args: op.bytes(*args) + nbytes(op.fake(*args)),
        folds=tuple(fold._replace(results=fold.results * 2) for fold in op.folds),
    )


BIAS_GRAD = Op(
    name="bias_grad",
    schema="(Tensor grad) -> Tensor",
    fake=bias_grad_fake,
    launcher=bias_grad_launch,
    aten=bias_grad_aten,
    flops=lambda grad: grad.numel(),
    bytes=lambda grad: nbytes(grad, bias_grad_fake(grad)),
    folds=(Fold({"grad": 1}, (0,)),),
)

ACTIVATION_GRAD = Op(
    name="activation_grad",
    schema="(Tensor grad, Tensor saved, str activation) -> (Tensor, Tensor)",
    fake=activation_grad_fake,
    launcher=activation_grad_launch,
    aten=activation_grad_aten,
    flops=lambda grad, saved, activation: 2 * grad.numel(),
    bytes=lambda grad, saved, activation: nbytes(grad, saved, *activation_grad_fake(grad, saved, activation)),
    folds=(Fold({"grad": 1, "saved": 1}, (1, 0)),),
)

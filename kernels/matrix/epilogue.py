"""The epilogue of a product: what matrix kernels do with the sums in registers, before they store them.

    x = scale · product + bias + residual
    y = act(x), or PReLU's with a slope: x where that is positive, else slope · x

The way back: activation_grad.py, prelu.py. act'(x)·dy is computed in a pass of its own, not inside the gradient
kernels: there it would send an operand of a matrix instruction through registers, and twice, once for each gradient.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..base.lang import device_function, tl
from ..base.precision import DTYPES, accumulator, autocasts
from ..core.images import Pixel, offsets
from ..core.op import Op
from ..core.tensors import check_optional, check_tensors, laid_out_as, nbytes
from ..streaming.sums import sum_rows
from ..window.arguments import same_shape
from . import activations
from .meta import EpilogueOperands


class Epilogue(NamedTuple):
    """An epilogue: vectors over its columns, and tensors of the result's shape.

    preactivation: takes x, what stands before the activation
    """

    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    slope: torch.Tensor | None = None
    activation: str = "none"
    preactivation: torch.Tensor | None = None

    def operands(self, y: torch.Tensor, moments: torch.Tensor | None = None) -> EpilogueOperands:
        """Return what `finish` takes, for a result y: what has its shape, in its strides. `moments`
        [tiles, 3, columns] takes each of the kernel's tiles' number of pixels, mean of x, and sum of squares about
        it."""
        vectors = (self.bias, self.scale, self.slope)
        bias, scale, slope = (each if each is None else each.contiguous() for each in vectors)
        columns = 0 if moments is None else moments.shape[2]
        return EpilogueOperands(
            bias, scale, laid_out_as(y, self.residual), slope, self.preactivation, moments, columns
        )  # fmt: skip

    def takes_registers(self, dtype: torch.dtype) -> bool:
        """True if it takes registers for each result of a dtype: to load or store what is as large, or for a curved
        activation."""
        larger = self.residual is not None or self.preactivation is not None
        return larger or activations.of(self.activation).takes_registers(dtype)

    def on_device(self, dtype: torch.dtype) -> activations.DeviceActivation:
        """Return the activation that kernels are compiled for, for results of a dtype."""
        return activations.of(self.activation).on_device(dtype)


@device_function
def finish(acc, epilogue, results, strides, ACTIVATION: tl.constexpr, INDEX: tl.constexpr):
    """Return act(scale·acc + bias + residual) for a tile of sums acc [pixels, columns]. strides: of y, the residual and
    the preactivation. Also stores the preactivation and the tile's moments, where they are wanted."""
    k, k_mask = results.k, results.k_mask
    if epilogue.scale is not None:
        acc *= tl.load(epilogue.scale + k, mask=k_mask, other=0.0).to(acc.dtype)[None, :]
    if epilogue.bias is not None:
        acc += tl.load(epilogue.bias + k, mask=k_mask, other=0.0).to(acc.dtype)[None, :]
    if epilogue.residual is not None or epilogue.preactivation is not None:
        at = Pixel(results.at.n.to(INDEX), results.at.h, results.at.w)
        to = offsets(at, k.to(INDEX), strides)
        mask = results.pixel_mask[:, None] & k_mask[None, :]
        if epilogue.residual is not None:
            acc += tl.load(epilogue.residual + to, mask=mask, other=0.0).to(acc.dtype)
        if epilogue.preactivation is not None:
            tl.store(epilogue.preactivation + to, acc.to(epilogue.preactivation.dtype.element_ty), mask=mask)
    if epilogue.moments is not None:
        store_moments(acc, epilogue, results, INDEX)
    if epilogue.slope is not None:
        acc = prelu(acc, epilogue.slope, k, k_mask)
    NUMBERS: tl.constexpr = ACTIVATION.numbers
    return ACTIVATION.forward(acc, NUMBERS)


@device_function
def store_moments(acc, epilogue, results, INDEX: tl.constexpr):
    """Store a tile's number of pixels, its columns' means, and their sums of squares about these."""
    pixel_mask = results.pixel_mask[:, None]
    count = tl.sum(results.pixel_mask.to(acc.dtype), axis=0)
    mean = sum_rows(tl.where(pixel_mask, acc, 0.0)) / count
    off = tl.where(pixel_mask, acc - mean[None, :], 0.0)
    to = epilogue.moments + tl.cast(results.tile, INDEX) * 3 * epilogue.columns + results.k
    tl.store(to, tl.zeros_like(mean) + count, mask=results.k_mask)
    tl.store(to + epilogue.columns, mean, mask=results.k_mask)
    tl.store(to + 2 * epilogue.columns, sum_rows(off * off), mask=results.k_mask)


@device_function
def prelu(x, slope, k, k_mask):
    """Return x where that is positive, else slope[k]·x, for x [pixels, columns]."""
    return tl.where(x > 0, x, x * tl.load(slope + k, mask=k_mask, other=0.0).to(x.dtype)[None, :])


def check_epilogue(
    bias: Any, scale: Any, residual: Any, slope: Any, like: torch.Tensor, shape: Any, columns: int,
    places: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """Errors: RuntimeError, TypeError for what doesn't fit a product's columns and result of this shape, of like's
    dtype and device. With a scale, it and the bias may also have the dtype that sums are kept in. The bias may be one
    for each of `places`."""
    for name, vector in (("scale", scale), ("bias", bias), ("slope", slope)):
        if vector is not None:
            precise = name != "slope" and scale is not None
            precise = precise and isinstance(vector, torch.Tensor) and vector.dtype == accumulator(like.dtype)
            check_tensors(input=like.new_empty(0, dtype=vector.dtype) if precise else like, **{name: vector})
            if name == "bias" and places and vector.dim() != 1:
                each = (*places, columns)
                if vector.shape != each:
                    raise RuntimeError(f"bias must have shape {(columns,)} or {each}, but got {tuple(vector.shape)}")
            else:
                same_shape(name, vector.shape, (columns,))
    if residual is not None:
        check_tensors(input=like, residual=residual)
        same_shape("residual", residual.shape, shape)


def completed(
    product: Callable[[Any], torch.Tensor], bias: Any, scale: Any, residual: Any, slope: Any, activation: str,
    dims: int = 2,
) -> torch.Tensor:  # fmt: skip
    """Return a product with its epilogue, by PyTorch, whose products add a bias themselves: product(bias) is one, with
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
    if y.is_nested or y.dtype not in DTYPES:
        return
    slope = None if slope is None or slope.numel() == 1 else slope
    if autocasts(y):  # which makes their dtypes the same
        scale, residual, slope = (None if t is None else y.new_empty(t.shape) for t in (scale, residual, slope))
    check_epilogue(None, scale, residual, slope, y, y.shape, y.shape[-1 - dims])


def activated(x: torch.Tensor, slope: torch.Tensor | None, activation: str, dims: int = 2) -> Any:
    """Return act(x), or with a slope PReLU, by PyTorch."""
    if slope is None or x.numel() == 0:  # without input channels there are no columns that a slope could be of
        return activations.reference(activation, x)
    if slope.numel() == 1 or x.dim() == dims + 2:
        return F.prelu(x, slope)
    return torch.where(x > 0, x, x * slope.view(-1, *(1,) * dims))  # PyTorch's columns would be another dimension


# What a product's operator takes after input and weight, and the dimensions of the columns in it.
OPERANDS = "Tensor? bias, Tensor? scale, Tensor? residual, Tensor? slope"
BY_COLUMN = {"bias": 0, "scale": 0, "residual": 1, "slope": 0}


def with_preactivation(op: Op) -> Op:
    """Return the operator that gives, besides op's result, what stands before the activation, op's last argument."""

    def fake(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (y, preactivation), of one size."""
        y = op.fake(*args)
        return y, torch.empty_like(y)

    def launcher(results: tuple[torch.Tensor, torch.Tensor], *args: Any) -> None:
        op.launcher(results[0], *args, preactivation=results[1])

    def aten(input: Any, weight: Any, bias: Any, scale: Any, residual: Any, slope: Any, *rest: Any) -> Any:
        *how, activation = rest
        x = op.aten(input, weight, bias, scale, residual, None, *how, "none")
        return activated(x, slope, activation, 2 if x.dim() == 4 else 0), x

    return dataclasses.replace(
        op,
        name=f"{op.name}_with_preactivation",
        schema=op.schema.replace("-> Tensor", "-> (Tensor, Tensor)"),
        fake=fake,
        launcher=launcher,
        aten=aten,
        bytes=lambda *args: op.bytes(*args) + nbytes(op.fake(*args)),
        vmap=tuple(rule._replace(results=rule.results * 2) for rule in op.vmap),
    )

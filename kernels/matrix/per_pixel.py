"""Products in which each output pixel has weights of its own: a product of matrices over the batch, for each pixel.

forward:          Y[n, k]     = X̂[n, term] · Ŵ[term, k]            for each (p,q); X̂: what taps read, 0 outside
input gradient:   dX[n, c]    = Ĝ[n, (r,s,k)] · Ŵ'[(r,s,k), c]     for each (h,w), along a walk (window.convolution):
                                                                   every tap has its weights at the pixel it reads
weight gradient:  dW[k, term] = Gᵀ[k, n] · X̂[n, term]              for each (p,q): the reduction is over the batch

for each pixel, group, and tile of its result:                one program
    acc = Σ over steps of A(step) · B(step)                   loop.main_loop, of tiles as in gather.py
    store epilogue(acc)
"""

from typing import Any, NamedTuple

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Pixel, Size, offsets
from ..core.op import launch
from ..core.tensors import index_type, tl_type
from ..tiles import pick, shapes
from ..tiles.model import precision_on
from ..window.convolution import Phase, Window
from ..window.layout import cdiv
from .epilogue import Epilogue, finish
from .gather import (
    GradOperand,
    PixelsOperand,
    WeightOperand,
    WindowOperand,
    grad_terms,
    weight_terms,
    window_pixels,
    window_terms,
)  # fmt: skip
from .loop import as_tf32, main_loop, phase_of, program_tile, tap_of, tap_steps
from .meta import EpilogueOperands, Meta, Results, Terms, Weight, WeightStrides


class PerPixelProblem(NamedTuple):
    """y = epilogue(product of x and weight), forward or transposed: the input gradient. weight: [P, Q, K, R, S,
    C/groups]."""

    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    window: Window
    groups: int
    transposed: bool
    precision: str
    epilogue: Epilogue = Epilogue()


class PerPixelWeightProblem(NamedTuple):
    """dw = Σ over the batch of grad · x̂. dw: [P, Q, K, R, S, C/groups]."""

    grad: torch.Tensor
    x: torch.Tensor
    dw: torch.Tensor
    window: Window
    groups: int
    precision: str


class PixelWeights(NamedTuple):
    """Ŵ' of fixed columns: the weights that a phase's taps have at the pixels that they read, from (h, w_at) on, of
    images of a size."""

    w: Weight
    column: Any
    mask: Any
    down: Phase
    across: Phase
    channels: Any
    h: Any
    w_at: Any
    size: Size


@device_function
def pixel_terms(operand, step, META: tl.constexpr):
    """B of the input gradient: this step's terms, of the weights at the pixels that taps read, for fixed columns."""
    K: tl.constexpr = META.k
    PACKED: tl.constexpr = META.packed
    PRECISION: tl.constexpr = META.precision
    strides, size = operand.w.strides, operand.size
    terms = tap_of(step, operand.channels, operand.down.count, operand.across.count, PACKED, K)
    p, q = operand.h + terms.r * META.down.input_step, operand.w_at + terms.s * META.across.input_step
    mask = terms.mask & (p >= 0) & (q >= 0) & (p < size.h) & (q < size.w)
    place = tl.where(mask, p * size.w + q, 0).to(operand.column.dtype)
    row = operand.down.first + terms.r * META.down.weight_step
    tap = row * META.taps.columns + operand.across.first + terms.s * META.across.weight_step
    term = place * strides.pixel + tap * strides.tap + terms.c * strides.channel
    to = operand.w.data + term[:, None] + operand.column[None, :] * strides.column
    return as_tf32(tl.load(to, mask=mask[:, None] & operand.mask[None, :], other=0.0), PRECISION)


@triton.jit
def per_pixel_kernel(x, w, y, epilogue, channels, columns, groups, ACTIVATION: tl.constexpr, META: tl.constexpr):
    """y[n, column] of one pixel = epilogue(Σ_term x̂ · w), for a tile of M images x N columns of one group."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    PACKED: tl.constexpr = META.packed
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    row_tiles, column_tiles = tl.cdiv(y.size.n, M), tl.cdiv(columns, N)
    place = tl.program_id(0) // (row_tiles * column_tiles * groups)
    group = tl.program_id(0) // (row_tiles * column_tiles) % groups
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    p, q = (place // y.size.w).to(INDEX), (place % y.size.w).to(INDEX)
    down, across = phase_of(p % DOWN.result_step, DOWN), phase_of(q % ACROSS.result_step, ACROSS)
    h, w_at = p // DOWN.result_step * DOWN.stride + down.offset, q // ACROSS.result_step * ACROSS.stride + across.offset

    n = row.to(INDEX) * M + tl.arange(0, M)  # [M]
    pixel_mask = n < y.size.n
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    k_mask = k < columns

    x = Images(x.data + group.to(INDEX) * channels * x.strides.c, x.strides, x.size)
    w = Weight(w.data + group.to(INDEX) * w.strides.group, w.strides)
    here = tl.zeros([M], INDEX)
    A = WindowOperand(x, None, Pixel(n, here + h, here + w_at), pixel_mask, down, across, channels)
    acc = tl.zeros([M, N], ACC)
    steps = tap_steps(channels, down.count, across.count, PACKED, K) * down.nonempty * across.nonempty
    if META.transposed:
        B = PixelWeights(w, k, k_mask, down, across, channels, h, w_at, x.size)
        acc = main_loop(acc, window_terms, A, pixel_terms, B, 0, steps, META)
    else:
        w = Weight(w.data + place.to(INDEX) * w.strides.pixel, w.strides)
        B = WeightOperand(w, k, k_mask, down, across, channels)
        acc = main_loop(acc, window_terms, A, weight_terms, B, 0, steps, META)

    k += group * columns
    if META.bias_per_pixel:
        e = epilogue
        bias = e.bias + place.to(INDEX) * groups * columns
        epilogue = EpilogueOperands(bias, e.scale, e.residual, e.slope, e.preactivation, e.moments, e.columns)
    results = Results(row, Pixel(n, p, q), pixel_mask, k, k_mask)
    acc = finish(acc, epilogue, results, y.strides, ACTIVATION, INDEX)
    to = y.data + offsets(results.at, k, y.strides)
    tl.store(to, acc.to(y.data.dtype.element_ty), mask=pixel_mask[:, None] & k_mask[None, :])


@triton.jit
def per_pixel_weight_grad_kernel(grad, x, dw, outputs, channels, groups, META: tl.constexpr):
    """dw[k, term] of one pixel = Σ over the batch of grad · x̂, for a tile of M outputs x N terms of one group."""
    DOWN: tl.constexpr = META.down
    ACROSS: tl.constexpr = META.across
    PACKED: tl.constexpr = META.packed
    INDEX: tl.constexpr = META.index
    ACC: tl.constexpr = META.accumulator
    M: tl.constexpr = META.m
    N: tl.constexpr = META.n
    K: tl.constexpr = META.k
    down, across = phase_of(0, DOWN), phase_of(0, ACROSS)
    row_tiles, column_tiles = tl.cdiv(outputs, M), tap_steps(channels, down.count, across.count, PACKED, N)
    place = tl.program_id(0) // (row_tiles * column_tiles * groups)
    group = tl.program_id(0) // (row_tiles * column_tiles) % groups
    row, column = program_tile(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    p, q = (place // grad.size.w).to(INDEX), (place % grad.size.w).to(INDEX)

    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    k_mask = k < outputs
    terms = tap_of(column, channels, down.count, across.count, PACKED, N)  # [N]
    terms = Terms(terms.r, terms.s, terms.c.to(INDEX), terms.mask)

    batch = Size(grad.size.n, 1, 1)  # seen from this pixel, each image is one
    data = grad.data + group.to(INDEX) * outputs * grad.strides.c + p * grad.strides.h + q * grad.strides.w
    x = Images(x.data + group.to(INDEX) * channels * x.strides.c, x.strides, x.size)
    A = GradOperand(Images(data, grad.strides, batch), None, k, k_mask)
    h = down.offset + p * DOWN.stride + terms.r * DOWN.input_step
    w_at = across.offset + q * ACROSS.stride + terms.s * ACROSS.input_step
    B = PixelsOperand(x, batch, h, w_at, terms)
    acc = main_loop(tl.zeros([M, N], ACC), grad_terms, A, window_pixels, B, 0, tl.cdiv(grad.size.n, K), META)

    k += (place * groups + group).to(INDEX) * outputs
    term = (terms.r * across.count + terms.s) * channels + terms.c
    dw += k[:, None] * (down.count * across.count * channels) + term[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=k_mask[:, None] & terms.mask[None, :])


def forward(problem: PerPixelProblem) -> None:
    """Launch a product, forward or transposed."""
    it, chip, weight = problem, chips.chip_name(), problem.weight.contiguous()
    if it.y.numel() == 0:
        return
    every, inputs = weight.shape[2], weight.shape[5]
    outputs, term_count = every // it.groups, it.window.taps * inputs
    channels, columns = (outputs, inputs) if it.transposed else (inputs, outputs)
    walks, precision = it.window.walks(it.transposed), precision_on(chip, it.precision)
    x, y = Images.of(it.x), Images.of(it.y)
    products = y.size.h * y.size.w * it.groups
    phases = walks.down.result_step * walks.across.result_step
    wanted = shapes.Product(
        (y.size.n, 1, 1), columns, channels, cdiv(it.window.taps, phases), 1, products,
        extra_registers="epilogue" if it.epilogue.takes_registers(it.y.dtype) else "", per_pixel_weights=True,
    )  # fmt: skip
    tile = pick.product(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    channel, column = (term_count, 1) if it.transposed else (1, term_count)
    strides = WeightStrides(
        channel=channel, tap=inputs, column=column, group=outputs * term_count, pixel=every * term_count
    )  # fmt: skip
    meta = Meta.of(
        walks, it.window.size, precision, tile, transposed=it.transposed, index=index_type(it.x, weight, it.y),
        bias_per_pixel=it.epilogue.bias is not None and it.epilogue.bias.dim() == 3,
        accumulator=tl_type(accumulator(it.x.dtype)),
    )  # fmt: skip
    launch(
        per_pixel_kernel, cdiv(y.size.n, tile.m) * cdiv(columns, tile.n) * products, x,
        Weight(weight, strides), y, it.epilogue.operands(it.y), channels, columns, it.groups,
        ACTIVATION=it.epilogue.on_device(it.y.dtype), META=meta, **tile.options,
    )  # fmt: skip


def weight_grad(problem: PerPixelWeightProblem) -> None:
    """Launch a weight gradient."""
    it, chip, grad = problem, chips.chip_name(), Images.of(problem.grad)
    if it.dw.numel() == 0:
        return
    precision, taps = precision_on(chip, it.precision), it.window.taps
    outputs, channels = it.dw.shape[2] // it.groups, it.dw.shape[5]
    products = grad.size.h * grad.size.w * it.groups
    wanted = shapes.WeightGrad((grad.size.n, 1, 1), outputs, channels, taps, products, per_pixel_weights=True)
    tile = pick.weight_grad(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    across = cdiv(taps * channels, tile.n) if tile.packed else taps * cdiv(channels, tile.n)
    meta = Meta.of(
        it.window.walks(False), it.window.size, precision, tile, index=index_type(it.grad, it.x, it.dw),
        accumulator=tl_type(accumulator(it.x.dtype)),
    )  # fmt: skip
    launch(
        per_pixel_weight_grad_kernel, cdiv(outputs, tile.m) * across * products, grad, Images.of(it.x), it.dw, outputs,
        channels, it.groups, META=meta, **tile.options,
    )  # fmt: skip

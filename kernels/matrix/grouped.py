"""conv2d's products in many narrow groups, as batches of matrix products: a tile takes several groups at once.

    forward, input gradient:  Y[g, pixel, k] = X̂[g, pixel, term] · Ŵ[g, term, k]     term = (r,s,c), c of few channels
    weight gradient:          dW[g, k, term] = Gᵀ[g, k, pixel] · X̂[g, pixel, term]

    for each tile of G groups, M pixels, N columns:               one program
        acc[g] = 0 for each of its groups
        for each step of the reduction:                           device.main_loop, of three-dimensional tiles
            acc[g] += A(step)[g] · B(step)[g]
        store epilogue(acc), groups side by side

What a group of a few channels lacks to fill a line of memory, its neighbours in the tile give; and taps and channels
are one flat reduction, so that no step is padded with channels that there are not. Their number is compiled for.
"""

from typing import Any

import torch

from ..base.lang import device_function, tl, triton
from ..base.precision import accumulator
from ..core import chips
from ..core.device import (
    HOP,
    REACH,
    STEP,
    STRIDE,
    as_tf32,
    main_loop,
    offset_inside,
    offsets,
    phase_of,
    pixel,
    program_tile,
    shown,
)
from ..core.op import index_type, launch, new, nhwc, tl_type
from ..tiles import pick, shapes
from ..window import convolution
from ..window.convolution import cdiv
from .epilogue import Epilogue, finish, sum_parts


@device_function
def term_of(step, taps, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Tap (r, s) and channel c of a step's terms [BLOCK], and which of them there are."""
    term = step * BLOCK + tl.arange(0, BLOCK)
    tap = term // CHANNELS
    return tap // taps[1], tap % taps[1], term % CHANNELS, tap < taps[0] * taps[1]


@device_function
def reads(x, strides, size, at, exists, h, w, c, has, g, has_g, CHANNELS: tl.constexpr, PADDING: tl.constexpr):
    """What lies (h, w) away from pixels at = (n, p, q) in channels c of groups g. [G, pixels, terms]"""
    h = shown(at[1][:, None] + h[None, :], size[0], PADDING)  # [pixels, terms]
    w = shown(at[2][:, None] + w[None, :], size[1], PADDING)
    inside = (h >= 0) & (w >= 0) & (h < size[0]) & (w < size[1]) & exists[:, None] & has[None, :]
    image = at[0][:, None] * strides[0] + offset_inside(h, w, strides, inside) + c[None, :] * strides[3]
    to = (g * CHANNELS * strides[3])[:, None, None] + image[None, :, :]
    return tl.load(x + to, mask=has_g[:, None, None] & inside[None, :, :], other=0.0)


@device_function
def group_terms(operand, step, META: tl.constexpr):
    """A of the forward: what this step's terms read, for fixed pixels. [G, M, K]"""
    x, strides, size, at, exists, g, has_g, taps = operand
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    CHANNELS: tl.constexpr = META[4]
    PADDING: tl.constexpr = META[7]
    r, s, c, has = term_of(step, taps, CHANNELS, K)
    h, w = r * DOWN[REACH], s * ACROSS[REACH]
    return reads(x, strides, size, at, exists, h, w, c, has, g, has_g, CHANNELS, PADDING)


@device_function
def group_weights(operand, step, META: tl.constexpr):
    """B of the forward: this step's terms of the weight, for fixed columns. [G, K, N]"""
    w, strides, g, has_g, column, exists, first, taps = operand
    PRECISION: tl.constexpr = META[0]
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    CHANNELS: tl.constexpr = META[4]
    S: tl.constexpr = META[5]
    TRANSPOSED: tl.constexpr = META[6]
    r, s, c, has = term_of(step, taps, CHANNELS, K)
    tap = (first[0] + r * DOWN[HOP]) * S + first[1] + s * ACROSS[HOP]
    term = (tap * strides[1] + c * strides[0]).to(column.dtype)
    to = (g * strides[3])[:, None, None] + term[None, :, None] + (column * strides[2])[None, None, :]
    mask = has_g[:, None, None] & has[None, :, None] & exists[None, None, :]
    tile = tl.load(w + to, mask=mask, other=0.0)
    return as_tf32(tile, PRECISION) if TRANSPOSED else tile


@triton.jit
def grouped_kernel(
    x, w, y, epilogue, x_strides, w_strides, y_strides, x_size, y_size, channels, columns, groups,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, S: tl.constexpr, CHANNELS: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    G: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """y[pixel, column] = epilogue(Σ_term x̂ · w), for a tile of M pixels of a phase x N columns of each of G groups."""
    height, width = tl.cdiv(y_size[1], DOWN[STEP]), tl.cdiv(y_size[2], ACROSS[STEP])
    rows, across, blocks = tl.cdiv(y_size[0] * height * width, M), tl.cdiv(columns, N), tl.cdiv(groups, G)
    phase = tl.program_id(0) // (rows * across * blocks)
    row, column = program_tile(tl.program_id(0) % (rows * across * blocks), rows, across * blocks)
    a, b = phase // ACROSS[STEP], phase % ACROSS[STEP]
    first_r, count_r, h, some_r = phase_of(a, DOWN)
    first_s, count_s, v, some_s = phase_of(b, ACROSS)

    n, i, j = pixel(row.to(INDEX) * M + tl.arange(0, M), height, width)  # [M]
    p, q = a + i * DOWN[STEP], b + j * ACROSS[STEP]
    exists = (n < y_size[0]) & (p < y_size[1]) & (q < y_size[2])
    g = (column // across * G + tl.arange(0, G)).to(INDEX)  # [G]
    k = (column % across * N + tl.arange(0, N)).to(INDEX)  # [N]
    has_g, has = g < groups, k < columns

    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, CHANNELS, S, TRANSPOSED, PADDING)
    taps = (count_r, count_s)
    at = (n, i * DOWN[STRIDE] + h, j * ACROSS[STRIDE] + v)
    A = (x, x_strides, x_size, at, exists, g, has_g, taps)
    B = (w, w_strides, g, has_g, k, has, (first_r, first_s), taps)
    steps = tl.cdiv(count_r * count_s * channels, K) * some_r * some_s  # not a constant, or LLVM would unroll the loop
    acc = main_loop(tl.zeros([G, M, N], ACC), group_terms, A, group_weights, B, 0, steps, META)

    acc = acc.permute(1, 0, 2).reshape(M, G * N)
    k = (g[:, None] * columns + k[None, :]).reshape(G * N)
    has = (has_g[:, None] & has[None, :]).reshape(G * N)
    acc = finish(acc, epilogue, row, k, has, (n, p, q), exists, y_strides, ACTIVATION, NUMBERS, INDEX)
    tl.store(y + offsets((n, p, q), k, y_strides), acc.to(y.dtype.element_ty), mask=exists[:, None] & has[None, :])


@device_function
def group_grads(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's pixels. [G, M, K]"""
    grad, strides, size, g, has_g, k, has, outputs = operand
    PRECISION: tl.constexpr = META[0]
    K: tl.constexpr = META[1]
    n, p, q = pixel((step * K + tl.arange(0, K)).to(k.dtype), size[1], size[2])
    rows = n * strides[0] + p * strides[1] + q * strides[2]
    columns = (g * outputs)[:, None] + k[None, :]
    mask = (has_g[:, None] & has[None, :])[:, :, None] & (n < size[0])[None, None, :]
    tile = tl.load(grad + (columns * strides[3])[:, :, None] + rows[None, None, :], mask=mask, other=0.0)
    return as_tf32(tile, PRECISION)


@device_function
def group_pixels(operand, step, META: tl.constexpr):
    """B of the weight gradient: what fixed terms read, for this step's pixels. [G, K, N]"""
    x, strides, x_size, size, h, w, c, has, g, has_g = operand
    PRECISION: tl.constexpr = META[0]
    K: tl.constexpr = META[1]
    DOWN: tl.constexpr = META[2]
    ACROSS: tl.constexpr = META[3]
    CHANNELS: tl.constexpr = META[4]
    PADDING: tl.constexpr = META[5]
    n, p, q = pixel((step * K + tl.arange(0, K)).to(c.dtype), size[1], size[2])
    at, exists = (n, p * DOWN[STRIDE], q * ACROSS[STRIDE]), n < size[0]
    return as_tf32(reads(x, strides, x_size, at, exists, h, w, c, has, g, has_g, CHANNELS, PADDING), PRECISION)


@triton.jit(do_not_specialize=["groups", "split"])
def grouped_weight_grad_kernel(
    grad, x, dw, grad_strides, x_strides, size, x_size, outputs, groups, split,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    G: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """dw[part, k, term] = Σ over a part's pixels of grad · x̂, for a tile of M outputs x N terms of each of G groups."""
    _, count_r, first_h, _ = phase_of(0, DOWN)
    _, count_s, first_w, _ = phase_of(0, ACROSS)
    terms = count_r * count_s * CHANNELS
    rows, across, blocks = tl.cdiv(outputs, M), tl.cdiv(terms, N), tl.cdiv(groups, G)
    part = tl.program_id(0) // (rows * across * blocks)
    block = tl.program_id(0) // (rows * across) % blocks
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)

    g = (block * G + tl.arange(0, G)).to(INDEX)  # [G]
    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    has_g, has_k = g < groups, k < outputs
    r, s, c, has = term_of(column, (count_r, count_s), CHANNELS, N)  # [N]
    c = c.to(INDEX)

    steps = tl.cdiv(size[0] * size[1] * size[2], K)
    chunk = tl.cdiv(steps, split)
    META: tl.constexpr = (PRECISION, K, DOWN, ACROSS, CHANNELS, PADDING)
    a = (grad, grad_strides, size, g, has_g, k, has_k, outputs)
    h, v = first_h + r * DOWN[REACH], first_w + s * ACROSS[REACH]
    b = (x, x_strides, x_size, size, h, v, c, has, g, has_g)
    last = tl.minimum((part + 1) * chunk, steps)
    acc = main_loop(tl.zeros([G, M, N], ACC), group_grads, a, group_pixels, b, part * chunk, last, META)

    k = (part.to(INDEX) * groups + g)[:, None] * outputs + k[None, :]
    dw += k[:, :, None] * terms + ((r * count_s + s) * CHANNELS + c)[None, None, :]
    mask = (has_g[:, None] & has_k[None, :])[:, :, None] & has[None, None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=mask)


def is_grouped(weight_size: Any, groups: int) -> bool:
    """Is a convolution with such a weight computed here: several groups, some of whose sides are narrow?"""
    return groups > 1 and min(weight_size[0] // groups, weight_size[1]) <= shapes.NARROW


def grouped_product(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, window: convolution.Window, groups: int, transposed: bool,
    dot: str, epilogue: Epilogue, moments: bool,
) -> torch.Tensor | None:  # fmt: skip
    """conv2d.product, where `is_grouped`; the weight's memory is the matrix."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    channels, columns = (outputs, inputs) if transposed else (inputs, outputs)
    terms, walks = window.taps * inputs, window.walks(transposed)
    (batch, _, *image), chip = y.shape, chips.chip_name()
    phases = walks[0].step * walks[1].step
    pixels = batch * cdiv(image[0], walks[0].step) * cdiv(image[1], walks[1].step)
    problem = shapes.Grouped(
        groups, pixels, columns, cdiv(window.taps * channels, phases), moments or epilogue.extra_registers
    )
    tile = pick.grouped(problem, shapes.arithmetic(x.dtype, dot), chip)
    rows = cdiv(pixels, tile.m)
    parts = new((rows, 3, columns * groups), y, dtype=accumulator(y.dtype)) if moments else None
    launch(
        grouped_kernel, rows * cdiv(columns, tile.n) * cdiv(groups, tile.groups) * phases, x, weight, y,
        epilogue.terms(y, parts), nhwc(x),
        (terms if transposed else 1, inputs, 1 if transposed else terms, outputs * terms), nhwc(y),
        tuple(x.shape[2:]), (batch, *image), channels, columns, groups,
        DOWN=walks[0].constants(), ACROSS=walks[1].constants(), S=window.size[1], CHANNELS=channels,
        TRANSPOSED=transposed, **epilogue.constants, PRECISION=dot, INDEX=index_type(x, weight, y),
        ACC=tl_type(accumulator(y.dtype)), G=tile.groups, M=tile.m, N=tile.n, K=tile.k, PADDING=window.padding_mode,
        **tile.options,
    )  # fmt: skip
    return parts


def grouped_weight_product(
    grad: torch.Tensor, x: torch.Tensor, dw: torch.Tensor, window: convolution.Window, groups: int, dot: str
) -> None:
    """conv2d.weight_product, where `is_grouped`; dw's memory is the matrix."""
    outputs, channels = dw.shape[0] // groups, dw.shape[1]
    walks, chip = window.walks(False), chips.chip_name()
    size = (grad.shape[0], *grad.shape[2:])
    problem = shapes.Grouped(groups, outputs, window.taps * channels, size[0] * size[1] * size[2], parts=True)
    tile = pick.grouped(problem, shapes.arithmetic(x.dtype, dot), chip)
    parts = dw if tile.parts == 1 else new((tile.parts, dw.numel()), dw, dtype=accumulator(dw.dtype))
    programs = cdiv(outputs, tile.m) * cdiv(window.taps * channels, tile.n) * cdiv(groups, tile.groups) * tile.parts
    launch(
        grouped_weight_grad_kernel, programs, grad, x, parts, nhwc(grad), nhwc(x), size, tuple(x.shape[2:]), outputs,
        groups, tile.parts, DOWN=walks[0].constants(), ACROSS=walks[1].constants(), CHANNELS=channels, PRECISION=dot,
        INDEX=index_type(grad, x, parts), ACC=tl_type(accumulator(x.dtype)), G=tile.groups, M=tile.m, N=tile.n,
        K=tile.k, PADDING=window.padding_mode, **tile.options,
    )  # fmt: skip
    if parts is not dw:
        sum_parts(parts, dw)

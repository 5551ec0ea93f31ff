"""conv2d's products with tiles gathered by pointers: on any chip, for any strides, sizes and groups.

    forward, input gradient:  Y[pixel, k] = X̂[pixel, term] · Ŵ[term, k]
    weight gradient:          dW[k, term] = Gᵀ[k, pixel] · X̂[pixel, term]      G may be read through a pooling's code

    for each tile of the result:                                  one program
        acc = 0
        for each step of the reduction:                           device.main_loop
            acc += A(step) · B(step)                              each thread works out addresses and masks
        store epilogue(acc)

Groups are independent products, side by side in the grid; so are the phases of an input gradient (geometry.Walk).
With few channels (a first layer's one or three) taps and channels are one flat reduction, PACKED into full steps.
"""

from ..base.lang import device_function, tl, triton
from ..core.device import (
    HOP,
    REACH,
    STEP,
    STRIDE,
    as_tf32,
    gather,
    main_loop,
    offsets,
    phase_of,
    pixel,
    program_tile,
    tap_of,
    tap_steps,
)
from .activations import identity
from .epilogue import finish
from .pool_code import gather_open, pool_start, pool_step, store_byte, store_pooled


@device_function
def window_terms(operand, step, META: tl.constexpr):
    """A of the forward: what this step's terms read, for fixed pixels. [M, K]"""
    x, code, strides, size, at, exists, taps, channels = operand
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    PACKED: tl.constexpr = META[4]
    PADDING: tl.constexpr = META[7]
    POOL: tl.constexpr = META[8]
    r, s, c, has = tap_of(step, channels, taps, PACKED, K)
    h, w = r * DOWN[REACH], s * ACROSS[REACH]
    if POOL is None:
        return gather(x, strides, size, at, exists, h, w, c, has, PADDING)
    else:
        return gather_open(x, code, strides, size, at, exists, h, w, c, has, POOL)


@device_function
def weight_terms(operand, step, META: tl.constexpr):
    """B of the forward: this step's terms of the weight, for fixed columns. [K, N]"""
    w, strides, column, exists, first, taps, channels = operand
    PRECISION: tl.constexpr = META[0]
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    PACKED: tl.constexpr = META[4]
    S: tl.constexpr = META[5]
    TRANSPOSED: tl.constexpr = META[6]
    r, s, c, has = tap_of(step, channels, taps, PACKED, K)
    tap = (first[0] + r * DOWN[HOP]) * S + first[1] + s * ACROSS[HOP]
    term = (tap * strides[1] + c * strides[0]).to(column.dtype)
    mask = has[:, None] & exists[None, :]
    tile = tl.load(w + term[:, None] + column[None, :] * strides[2], mask=mask, other=0.0)
    return as_tf32(tile, PRECISION) if TRANSPOSED else tile


@triton.jit
def conv_kernel(
    x, code, w, y, epilogue, x_strides, w_strides, y_strides, x_size, y_size, channels, columns,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, S: tl.constexpr, TRANSPOSED: tl.constexpr, POOL: tl.constexpr,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """y[pixel, column] = epilogue(Σ_term x̂ · w), for a tile of M pixels of one phase x N columns of one group."""
    PHASES: tl.constexpr = DOWN[STEP] * ACROSS[STEP]
    batch, height, width = y_size[0], tl.cdiv(y_size[1], DOWN[STEP]), tl.cdiv(y_size[2], ACROSS[STEP])
    rows = tl.cdiv(batch * height * width, M)
    across = tl.cdiv(columns, N)
    group = tl.program_id(0) // (rows * across * PHASES)
    phase = tl.program_id(0) // (rows * across) % PHASES
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)
    a, b = phase // ACROSS[STEP], phase % ACROSS[STEP]
    first_r, count_r, h, some_r = phase_of(a, DOWN)
    first_s, count_s, v, some_s = phase_of(b, ACROSS)

    n, i, j = pixel(row.to(INDEX) * M + tl.arange(0, M), height, width)  # [M]
    p, q = a + i * DOWN[STEP], b + j * ACROSS[STEP]
    exists = (n < batch) & (p < y_size[1]) & (q < y_size[2])
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    has = k < columns

    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, PACKED, S, TRANSPOSED, PADDING, POOL)
    taps = (count_r, count_s)
    x += group.to(INDEX) * channels * x_strides[3]
    if POOL is not None:
        code = (code[0] + group.to(INDEX) * channels * x_strides[3], code[1])
    w += group.to(INDEX) * w_strides[3]
    reads = (n, i * DOWN[STRIDE] + h, j * ACROSS[STRIDE] + v)
    A = (x, code, x_strides, x_size, reads, exists, taps, channels)
    B = (w, w_strides, k, has, (first_r, first_s), taps, channels)
    acc = tl.zeros([M, N], ACC)
    steps = tap_steps(channels, taps, PACKED, K) * some_r * some_s
    acc = main_loop(acc, window_terms, A, weight_terms, B, 0, steps, META)

    k += group * columns
    acc = finish(acc, epilogue, row, k, has, (n, p, q), exists, y_strides, ACTIVATION, NUMBERS, INDEX)
    y += offsets((n, p, q), k, y_strides)
    tl.store(y, acc.to(y.dtype.element_ty), mask=exists[:, None] & has[None, :])


@triton.jit
def conv_pool_kernel(
    x, w, y, code, epilogue, x_strides, w_strides, y_strides, x_size, y_size, channels, columns,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, S: tl.constexpr, SHIFT: tl.constexpr, POOL: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """(y, code)[pixel, column] = pooling (relu_pool.py) of epilogue(Σ_term x̂ · w), for a tile of M pooled pixels x N
    columns of one group. A tap of the pooling is a convolution by its stride, SHIFT pixels from its neighbour's."""
    rows = tl.cdiv(y_size[0] * y_size[1] * y_size[2], M)
    across = tl.cdiv(columns, N)
    group = tl.program_id(0) // (rows * across)
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)
    first_r, count_r, h, _ = phase_of(0, DOWN)
    first_s, count_s, v, _ = phase_of(0, ACROSS)
    n, p, q = pixel(row.to(INDEX) * M + tl.arange(0, M), y_size[1], y_size[2])  # [M]
    exists = n < y_size[0]
    k = (column * N + tl.arange(0, N)).to(INDEX)  # [N]
    has = k < columns

    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, PACKED, S, False, PADDING, None)
    taps = (count_r, count_s)
    steps = tap_steps(channels, taps, PACKED, K)
    x += group.to(INDEX) * channels * x_strides[3]
    w += group.to(INDEX) * w_strides[3]
    B = (w, w_strides, k, has, (first_r, first_s), taps, channels)
    k += group * columns
    to = offsets((n, p, q), k, y_strides)
    mask = exists[:, None] & has[None, :]
    pooled, won = pool_start(M, N, POOL, ACC)
    for t in range(POOL[0] * POOL[1]):
        i, j = p * DOWN[STRIDE] + t // POOL[1] * SHIFT[0], q * ACROSS[STRIDE] + t % POOL[1] * SHIFT[1]
        A = (x, None, x_strides, x_size, (n, i + h, j + v), exists, taps, channels)
        acc = main_loop(tl.zeros([M, N], ACC), window_terms, A, weight_terms, B, 0, steps, META)
        acc = finish(acc, epilogue, row, k, has, (n, p, q), exists, y_strides, identity, (), INDEX)
        pooled, won = pool_step(pooled, won, acc.to(y.dtype.element_ty), t, POOL)
        store_byte(code, to, won, t, mask, POOL)
    store_pooled(y, code, to, pooled, won, mask, POOL)


@device_function
def grad_terms(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's pixels. [M, K]"""
    grad, code, strides, size, column, has = operand
    PRECISION: tl.constexpr = META[0]
    K: tl.constexpr = META[1]
    POOL: tl.constexpr = META[5]
    index = step * K + tl.arange(0, K)  # [K]
    at = pixel(index.to(column.dtype), size[1], size[2])
    if POOL is None:
        mask = (at[0] < size[0])[None, :] & has[:, None]
        rows = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
        tile = tl.load(grad + rows[None, :] + column[:, None] * strides[3], mask=mask, other=0.0)
    else:
        here = tl.zeros([1], tl.int32)
        pooled = (size[1] // POOL[0], size[2] // POOL[1])
        tile = gather_open(grad, code, strides, pooled, at, at[0] < size[0], here, here, column, has, POOL).T
    return as_tf32(tile, PRECISION)


@device_function
def window_pixels(operand, step, META: tl.constexpr):
    """B of the weight gradient: what fixed terms read, for this step's pixels. [K, N]"""
    x, strides, x_size, size, h, w, c, has = operand
    PRECISION: tl.constexpr = META[0]
    K: tl.constexpr = META[1]
    DOWN: tl.constexpr = META[2]
    ACROSS: tl.constexpr = META[3]
    PADDING: tl.constexpr = META[4]
    n, p, q = pixel((step * K + tl.arange(0, K)).to(c.dtype), size[1], size[2])  # [K]
    reads = (n, p * DOWN[STRIDE], q * ACROSS[STRIDE])
    return as_tf32(gather(x, strides, x_size, reads, n < size[0], h, w, c, has, PADDING), PRECISION)


@triton.jit(do_not_specialize=["groups", "split"])
def weight_grad_kernel(
    grad, code, x, dw, grad_strides, x_strides, size, x_size, outputs, channels, groups, split,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, POOL: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """dw[part, k, term] = Σ over the part's pixels of grad · x̂, for a tile of M outputs x N terms of one group."""
    _, count_r, first_h, _ = phase_of(0, DOWN)
    _, count_s, first_w, _ = phase_of(0, ACROSS)
    taps = (count_r, count_s)
    rows = tl.cdiv(outputs, M)
    across = tap_steps(channels, taps, PACKED, N)
    part = tl.program_id(0) // (rows * across * groups)
    group = tl.program_id(0) // (rows * across) % groups
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)

    k = (row * M + tl.arange(0, M)).to(INDEX)  # [M]
    has_k = k < outputs
    r, s, c, has = tap_of(column, channels, taps, PACKED, N)  # [N]
    c = c.to(INDEX)

    steps = tl.cdiv(size[0] * size[1] * size[2], K)
    chunk = tl.cdiv(steps, split)
    META: tl.constexpr = (PRECISION, K, DOWN, ACROSS, PADDING, POOL)
    grad += group.to(INDEX) * outputs * grad_strides[3]
    if POOL is not None:
        code = (code[0] + group.to(INDEX) * outputs * grad_strides[3], code[1])
    x += group.to(INDEX) * channels * x_strides[3]
    a = (grad, code, grad_strides, size, k, has_k)
    b = (x, x_strides, x_size, size, first_h + r * DOWN[REACH], first_w + s * ACROSS[REACH], c, has)
    acc = tl.zeros([M, N], ACC)
    last = tl.minimum((part + 1) * chunk, steps)
    acc = main_loop(acc, grad_terms, a, window_pixels, b, part * chunk, last, META)

    k += (part * groups + group).to(INDEX) * outputs
    term = (r * count_s + s) * channels + c
    dw += k[:, None] * (count_r * count_s * channels) + term[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=has_k[:, None] & has[None, :])

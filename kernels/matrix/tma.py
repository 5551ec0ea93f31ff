"""conv2d's products where the chip fetches boxes of images by itself: the tensor memory accelerator.

A tile's pixels are a box of batch x rows x columns. A descriptor of the channels_last images fetches the box that a tap
reads, 64 channels or so at a time, straight into shared memory; what lies outside the images arrives as 0, which is the
padding. No thread computes an address, and both operands of the matrix instructions stay in shared memory:

    forward, input gradient:  Yᵀ[k, box] = Ŵ[k, term] · X̂ᵀ[term, box]     the images are the right operand
    weight gradient:          dW[k, c]   = Gᵀ[k, box] · X̂[box, c]         for one tap; the reduction is over boxes

    build the descriptors                                         once a program
    for each of the program's tiles of the result:                persistent: as many programs as run at a time
        acc = 0
        for each step of the reduction:                           device.main_loop
            acc += A(step) · B(step)                              two fetches
        store the box of epilogue(acc)                            while the next tile begins

A stride is a matter of the view: every stride-th row and column from one of stride² first ones are again such images.
"""

from ..base.lang import device_function, tl, triton
from ..core.device import (
    HOP,
    REACH,
    STEP,
    STRIDE,
    as_tf32,
    box_at,
    box_descriptor,
    box_pixels,
    boxes,
    known,
    main_loop,
    offsets,
    phase_of,
    program_tile,
    split,
    tap_steps,
)
from .activations import identity
from .epilogue import finish
from .pool_code import pool_start, pool_step, store_byte, store_pooled


@device_function
def weight_box(operand, step, META: tl.constexpr):
    """A: the weight of this step's tap and channels, for fixed columns. [N, K]"""
    w, column, first, taps, channels, columns = operand
    PRECISION: tl.constexpr = META[0]
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    S: tl.constexpr = META[5]
    TRANSPOSED: tl.constexpr = META[6]
    tap, c = step % (taps[0] * taps[1]), step // (taps[0] * taps[1]) * K
    tap = (first[0] + tap // taps[1] * DOWN[HOP]) * S + first[1] + tap % taps[1] * ACROSS[HOP]
    if TRANSPOSED:
        return as_tf32(w.load([c, tap * columns + column]).T, PRECISION)
    else:
        return w.load([column, tap * channels + c])


@device_function
def window_box(operand, step, META: tl.constexpr):
    """B: what this step's tap and channels read, for a fixed box of M pixels. [K, M]"""
    x, n, p, q, offset, taps, channels = operand
    DOWN: tl.constexpr = META[1]
    ACROSS: tl.constexpr = META[2]
    K: tl.constexpr = META[3]
    M: tl.constexpr = META[4]
    tap, c = step % (taps[0] * taps[1]), step // (taps[0] * taps[1]) * K
    h, a = split(offset[0] + tap // taps[1] * DOWN[REACH], DOWN[STRIDE])
    w, b = split(offset[1] + tap % taps[1] * ACROSS[REACH], ACROSS[STRIDE])
    return x.load([n, p + h, a, q + w, b * channels + c]).reshape(M, K).T


@triton.jit(do_not_specialize=["channels"])
def conv_box_kernel(
    x, w, y, epilogue, x_strides, y_strides, x_size, y_size, channels, columns,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, WINDOW: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, NUMBERS: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BOX: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y[box, column] = epilogue(Σ_term x̂ · w), for tiles of a BOX of pixels of one phase x N columns."""
    y_strides, columns = known(y_strides, UNIT), columns // UNIT * UNIT
    M: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    STEPS: tl.constexpr = (DOWN[STEP], ACROSS[STEP])
    STRIDES: tl.constexpr = (DOWN[STRIDE], ACROSS[STRIDE])
    fetched = box_descriptor(x, x_size, x_strides, channels, BOX, K, STRIDES)
    stored = box_descriptor(y, y_size, y_strides, columns, BOX, N, STEPS)
    terms = WINDOW[0] * WINDOW[1] * (columns if TRANSPOSED else channels)
    if TRANSPOSED:
        weights = tl.make_tensor_descriptor(w, [channels, terms], [terms, 1], [K, N])
    else:
        weights = tl.make_tensor_descriptor(w, [columns, terms], [terms, 1], [N, K])

    size = (y_size[0], y_size[1] // STEPS[0], y_size[2] // STEPS[1])
    rows = boxes(size, BOX)
    across = tl.cdiv(columns, N)
    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, M, WINDOW[1], TRANSPOSED)
    for program in range(tl.program_id(0), rows * across * STEPS[0] * STEPS[1], tl.num_programs(0)):
        row, column = program_tile(program % (rows * across), rows, across)
        column *= N
        n, i, j = box_at(row, size, BOX)
        a = program // (rows * across) // STEPS[1]
        b = program // (rows * across) % STEPS[1]
        first_r, count_r, h, some_r = phase_of(a, DOWN)
        first_s, count_s, v, some_s = phase_of(b, ACROSS)
        taps = (count_r, count_s)
        A = (weights, column, (first_r, first_s), taps, channels, columns)
        B = (fetched, n, i, j, (h, v), taps, channels)
        acc = tl.zeros([N, M], tl.float32)
        steps = tap_steps(channels, taps, False, K) * some_r * some_s
        acc = main_loop(acc, weight_box, A, window_box, B, 0, steps, META)

        k = column + tl.arange(0, N)
        at, exists = box_pixels((n, i, j), (a, b), y_size, BOX, STEPS)
        acc = finish(
            acc.T, epilogue, row, k, k < columns, at, exists, y_strides, ACTIVATION, NUMBERS, tl.int64
        )  # fmt: skip
        result = acc.to(y.dtype.element_ty).reshape(BOX[0], BOX[1], 1, BOX[2], N)
        stored.store([n, i, a, j, b * columns + column], result)


@triton.jit(do_not_specialize=["channels"])
def conv_pool_box_kernel(
    x, w, y, code, epilogue, x_strides, y_strides, x_size, y_size, channels, columns,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, POOL: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, BOX: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """(y, code)[box, column] = pooling (relu_pool.py) of epilogue(Σ_term x̂ · w), for tiles of a BOX of pooled pixels x
    N columns. A tap of the pooling is a convolution by its stride, SHIFT pixels from its neighbour's."""
    y_strides, columns = known(y_strides, UNIT), columns // UNIT * UNIT
    M: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    STRIDES: tl.constexpr = (DOWN[STRIDE], ACROSS[STRIDE])
    fetched = box_descriptor(x, x_size, x_strides, channels, BOX, K, STRIDES)
    terms = WINDOW[0] * WINDOW[1] * channels
    weights = tl.make_tensor_descriptor(w, [columns, terms], [terms, 1], [N, K])
    first_r, count_r, h, _ = phase_of(0, DOWN)
    first_s, count_s, v, _ = phase_of(0, ACROSS)
    taps = (count_r, count_s)
    rows = boxes(y_size, BOX)
    across = tl.cdiv(columns, N)
    META: tl.constexpr = (PRECISION, DOWN, ACROSS, K, M, WINDOW[1], False)
    for program in range(tl.program_id(0), rows * across, tl.num_programs(0)):
        row, column = program_tile(program, rows, across)
        column *= N
        n, i, j = box_at(row, y_size, BOX)
        A = (weights, column, (first_r, first_s), taps, channels, columns)
        k = (column + tl.arange(0, N)).to(INDEX)
        has = k < columns
        at, exists = box_pixels((n, i, j), (0, 0), y_size, BOX, (1, 1))
        to = offsets((at[0].to(INDEX), at[1], at[2]), k, y_strides)
        mask = exists[:, None] & has[None, :]
        pooled, won = pool_start(M, N, POOL, tl.float32)
        for t in range(POOL[0] * POOL[1]):
            offset = (h + t // POOL[1] * SHIFT[0], v + t % POOL[1] * SHIFT[1])
            B = (fetched, n, i, j, offset, taps, channels)
            steps = tap_steps(channels, taps, False, K)
            acc = main_loop(tl.zeros([N, M], tl.float32), weight_box, A, window_box, B, 0, steps, META)
            acc = finish(acc.T, epilogue, row, k, has, at, exists, y_strides, identity, (), INDEX)
            pooled, won = pool_step(pooled, won, acc.to(y.dtype.element_ty), t, POOL)
            store_byte(code, to, won, t, mask, POOL)
        store_pooled(y, code, to, pooled, won, mask, POOL)


@device_function
def grad_box(operand, step, META: tl.constexpr):
    """A of the weight gradient: the output's gradient, transposed, for this step's box. [M, K]"""
    grad, batch, height, width, k = operand
    PRECISION: tl.constexpr = META[0]
    BOX: tl.constexpr = META[1]
    K: tl.constexpr = META[2]
    M: tl.constexpr = META[3]
    n, p, q = box_at(step, (batch, height, width), BOX)
    return as_tf32(grad.load([n, p, 0, q, k]).reshape(K, M).T, PRECISION)


@device_function
def tap_box(operand, step, META: tl.constexpr):
    """B of the weight gradient: what one tap reads, for this step's box. [K, N]"""
    x, batch, height, width, h, w, c = operand
    PRECISION: tl.constexpr = META[0]
    BOX: tl.constexpr = META[1]
    K: tl.constexpr = META[2]
    N: tl.constexpr = META[4]
    n, p, q = box_at(step, (batch, height, width), BOX)
    return as_tf32(x.load([n, p + h, 0, q + w, c]).reshape(K, N), PRECISION)


@triton.jit(do_not_specialize=["outputs", "parts"])
def weight_grad_box_kernel(
    grad, x, dw, grad_strides, x_strides, size, x_size, outputs, channels, parts,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BOX: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """dw[part, k, tap, c] = Σ over the part's boxes of grad · x̂, for a tile of M outputs x N channels of one tap."""
    TAPS: tl.constexpr = WINDOW[0] * WINDOW[1]
    channels = channels // UNIT * UNIT
    rows = tl.cdiv(outputs, M)
    across = tl.cdiv(channels, N) * TAPS
    part = tl.program_id(0) // (rows * across)
    row, column = program_tile(tl.program_id(0) % (rows * across), rows, across)
    k, tap, c = row * M, column % TAPS, column // TAPS * N

    # The tap's own images: every stride-th pixel that it reads. They end where the tap's last window does, since what
    # lies behind meets no gradient, but would not be harmless if it were infinite.
    h, a = split(DOWN[6] + tap // WINDOW[1] * DOWN[REACH], DOWN[STRIDE])
    w, b = split(ACROSS[6] + tap % WINDOW[1] * ACROSS[REACH], ACROSS[STRIDE])
    height = tl.minimum(tl.cdiv(x_size[1] - a, DOWN[STRIDE]), size[1] + h)
    width = tl.minimum(tl.cdiv(x_size[2] - b, ACROSS[STRIDE]), size[2] + w)
    strides = (x_strides[0], x_strides[1] * DOWN[STRIDE], x_strides[2] * ACROSS[STRIDE])
    x += a * x_strides[1] + b * x_strides[2]
    EVERY: tl.constexpr = (1, 1)
    fetched = box_descriptor(x, (x_size[0], height, width), strides, channels, BOX, N, EVERY)
    grads = box_descriptor(grad, size, grad_strides, outputs, BOX, M, EVERY)

    steps = boxes(size, BOX)
    chunk = tl.cdiv(steps, parts)
    META: tl.constexpr = (PRECISION, BOX, BOX[0] * BOX[1] * BOX[2], M, N)
    acc = tl.zeros([M, N], tl.float32)
    last = tl.minimum((part + 1) * chunk, steps)
    a = (grads, size[0], size[1], size[2], k)  # flat: behind a descriptor Triton 3.6 loses an inner tuple's constants
    b = (fetched, size[0], size[1], size[2], h, w, c)
    acc = main_loop(acc, grad_box, a, tap_box, b, part * chunk, last, META)

    k += tl.arange(0, M)
    c += tl.arange(0, N)
    dw += (part.to(INDEX) * outputs + k)[:, None] * (TAPS * channels) + (tap * channels + c)[None, :]
    tl.store(dw, acc.to(dw.dtype.element_ty), mask=(k < outputs)[:, None] & (c < channels)[None, :])

"""Device functions that several kernels share: the main loop, pixels, taps, windows.

Shape tags: [M] output pixels or rows, [N] columns, [K] reduction; a trailing comment gives each block's shape.
"""

from ..base.lang import INTERPRETED, device_function, tl

# Where the numbers of a geometry.Walk stand in its constants.
STEP, STRIDE, HOP, REACH = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@device_function
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b. Full float32 is summed in parts, a step's terms first: in one row of all terms as many roundings
    would add up. The interpreter's is rounded once: its BLAS adds in an order that depends on the CPU."""
    if INTERPRETED:
        a, b, total = a.to(tl.float64), b.to(tl.float64), acc.to(tl.float64)
        return tl.dot(a, b, total, out_dtype=tl.float64).to(acc.dtype)
    elif PRECISION == "ieee" and a.dtype == tl.float32:
        part = tl.dot(a, b, input_precision=PRECISION, out_dtype=acc.dtype)
        return tl.fma(part, 1.0, acc)  # a sum, which Triton would turn into a dot that begins with acc
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@device_function
def sum_rows(x):
    """Σ over the rows of a block, as a tree; in the interpreter, which would add row after row, in float64 as well."""
    if INTERPRETED:
        total = x.to(tl.float64)
        while total.shape[0] > 1:
            total = tl.sum(total.reshape(2, total.shape[0] // 2, total.shape[1]), axis=0)
        return total.reshape(total.shape[1]).to(x.dtype)
    else:
        return tl.sum(x, axis=0)


@device_function
def as_tf32(x, PRECISION: tl.constexpr):
    """x as the tensor cores see it, its last 13 bits cleared; the same product, but in code x passes registers.

    For tiles whose reduction is not their contiguous direction: TF32 matrix instructions want it so, and without a
    step in registers the compiler transposes on the way into shared memory, four bytes a load.
    """
    if PRECISION == "tf32" and not INTERPRETED:
        return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    else:
        return x


@device_function
def main_loop(acc, A: tl.constexpr, a, B: tl.constexpr, b, first, last, META: tl.constexpr):
    """acc + Σ over steps of A(a, step) @ B(b, step): the one loop of every matrix kernel.

    A and B are device functions that fetch the step's [M, K] and [K, N] tiles from operands a and b; META is what
    both are compiled for, the dots' precision first.
    """
    for step in range(first, last):
        acc = dot(A(a, step, META), B(b, step, META), acc, META[0])
    return acc


@device_function
def program_tile(program, rows, columns):
    """(row, column) of a tile in bands of 8 rows, column by column: neighbours in time share operands in L2."""
    band = 8 * columns
    first = program // band * 8
    height = min(rows - first, 8)
    within = program % band
    return first + within % height, within // height


@device_function
def pixel(index, height, width):
    """(n, p, q) of a flat pixel index over images of height x width."""
    row = index // width
    return row // height, row % height, index - row * width


@device_function
def offsets(at, c, strides):
    """Offsets of channels c at pixels at = (n, p, q). [pixels, channels]"""
    rows = at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2]
    return rows[:, None] + c[None, :] * strides[3]


@device_function
def offsets_each(n, h, w, c, strides):
    """The same where each channel has a pixel (h, w) of its own, in images n. [pixels, channels]"""
    return (n * strides[0])[:, None] + h * strides[1] + w * strides[2] + (c * strides[3])[None, :]


@device_function
def known(strides, UNIT: tl.constexpr):
    """Strides of pixels, multiples of UNIT, in a form that tells the compiler so; it knows by itself of 16 alone."""
    if UNIT == 1:
        return strides
    return strides[0] // UNIT * UNIT, strides[1] // UNIT * UNIT, strides[2] // UNIT * UNIT, strides[3]


@device_function
def strip(size, channels, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's pixels (n, p, q) [PIXELS], channels [CHANNELS], and which of them exist [PIXELS, CHANNELS]."""
    across = tl.cdiv(channels, CHANNELS)
    index = (tl.program_id(0) // across).to(INDEX) * PIXELS + tl.arange(0, PIXELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    at = pixel(index, size[1], size[2])
    return at, c, (at[0] < size[0])[:, None] & (c < channels)[None, :]


@device_function
def part_of(channels, INDEX: tl.constexpr, CHANNELS: tl.constexpr):
    """Of a kernel that sums over pixels: this program's part of them, its channels [CHANNELS], and which exist."""
    across = tl.cdiv(channels, CHANNELS)
    c = (tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)).to(INDEX)
    return tl.program_id(0) // across, c, c < channels


@device_function
def step_of(step, size, has, INDEX: tl.constexpr, PIXELS: tl.constexpr):
    """A step's pixels (n, p, q) [PIXELS] of such a part, and which exist in the channels there are."""
    at = pixel(tl.cast(step, INDEX) * PIXELS + tl.arange(0, PIXELS), size[1], size[2])
    return at, (at[0] < size[0])[:, None] & has[None, :]


@device_function
def phase_of(a, WALK: tl.constexpr):
    """(first, count, offset, some) of a walk's phase a: see geometry.Walk."""
    PHASES: tl.constexpr = WALK[STEP]
    if PHASES == 1:
        first: tl.constexpr = WALK[4]
        count: tl.constexpr = WALK[5]
        offset: tl.constexpr = WALK[6]
        some: tl.constexpr = WALK[7]
        return first, count, offset, some
    else:
        first, count, offset, some = 0, 1, 0, 0
        for i in tl.static_range(PHASES):
            first = tl.where(a == i, WALK[4 + 4 * i], first)
            count = tl.where(a == i, WALK[5 + 4 * i], count)
            offset = tl.where(a == i, WALK[6 + 4 * i], offset)
            some = tl.where(a == i, WALK[7 + 4 * i], some)
        return first, count, offset, some


@device_function
def tap_of(step, channels, taps, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """Tap (r, s) and channels c [BLOCK] of a step along the terms of taps = (rows, columns); and which terms exist.

    packed:    term = tap · channels + c, BLOCK terms a step: [BLOCK] taps
    otherwise: one tap and BLOCK channels a step, taps fastest (they share input): [1] tap
    """
    if PACKED:
        term = step * BLOCK + tl.arange(0, BLOCK)
        tap = term // channels
        c = term - tap * channels
        exists = tap < taps[0] * taps[1]
    else:
        tap = tl.full([1], step % (taps[0] * taps[1]), tl.int32)
        c = step // (taps[0] * taps[1]) * BLOCK + tl.arange(0, BLOCK)
        exists = c < channels
    return tap // taps[1], tap % taps[1], c, exists


@device_function
def tap_steps(channels, taps, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """Number of steps that `tap_of` takes through a window's terms."""
    if PACKED:
        return tl.cdiv(taps[0] * taps[1] * channels, BLOCK)
    else:
        return taps[0] * taps[1] * tl.cdiv(channels, BLOCK)


@device_function
def shown(h, size, PADDING: tl.constexpr):
    """The pixel that padding of this mode shows at h, less than one image of `size` away (circular: at most one)."""
    if PADDING == "reflect":
        h = tl.where(h < 0, -h, h)
        return tl.where(h < size, h, 2 * (size - 1) - h)
    elif PADDING == "replicate":
        return tl.minimum(tl.maximum(h, 0), size - 1)
    elif PADDING == "circular":
        h = tl.where(h < 0, h + size, h)
        return tl.where(h < size, h, h - size)
    else:
        return h


@device_function
def offset_inside(h, w, strides, inside):
    """The offset of pixels (h, w) in their image, 0 where they are not `inside`: masked, but never far off. A product,
    since from version 3.8 Triton doesn't know what divides a value that is selected, and would load single elements."""
    offset = h * strides[1] + w * strides[2]
    return offset * inside.to(offset.dtype)


@device_function
def gather(x, strides, size, at, exists, h, w, c, has, PADDING: tl.constexpr):
    """The tile [pixels, terms] of what lies (h, w) away from pixels at = (n, p, q) in channels c; outside of the images
    what the padding shows there, 0 if nothing."""
    h = shown(at[1][:, None] + h[None, :], size[0], PADDING)  # [pixels, terms or 1]
    w = shown(at[2][:, None] + w[None, :], size[1], PADDING)
    inside = (h >= 0) & (w >= 0) & (h < size[0]) & (w < size[1]) & exists[:, None]
    image = at[0][:, None] * strides[0] + offset_inside(h, w, strides, inside)
    return tl.load(x + image + c[None, :] * strides[3], mask=inside & has[None, :], other=0.0)


@device_function
def split(h, STRIDE: tl.constexpr):
    """⌊h / STRIDE⌋ and the rest, for any h above −2²⁰·STRIDE."""
    if STRIDE == 1:
        return h, 0
    else:
        lifted = h + (1 << 20) * STRIDE
        return lifted // STRIDE - (1 << 20), lifted % STRIDE


@device_function
def box_at(index, size, BOX: tl.constexpr):
    """The first pixel (n, p, q) of a box of BOX pixels, and their number: boxes tile images of size (n, p, q)."""
    down, across = tl.cdiv(size[1], BOX[1]), tl.cdiv(size[2], BOX[2])
    row = index // across
    return row // down * BOX[0], row % down * BOX[1], (index - row * across) * BOX[2]


@device_function
def box_pixels(first, phase, size, BOX: tl.constexpr, STEP: tl.constexpr):
    """The pixels (n, p, q) [M] of a box from its `first`, every STEP-th of the phase; and which of them there are."""
    n, i, j = pixel(tl.arange(0, BOX[0] * BOX[1] * BOX[2]), BOX[1], BOX[2])
    n, p, q = first[0] + n, phase[0] + (first[1] + i) * STEP[0], phase[1] + (first[2] + j) * STEP[1]
    return (n, p, q), (n < size[0]) & (p < size[1]) & (q < size[2])


@device_function
def boxes(size, BOX: tl.constexpr):
    """Number of boxes that tile images of size (n, p, q)."""
    return tl.cdiv(size[0], BOX[0]) * tl.cdiv(size[1], BOX[1]) * tl.cdiv(size[2], BOX[2])


@device_function
def box_descriptor(x, size, strides, channels, BOX: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr):
    """Fetches or stores a box of pixels x CHANNELS of channels_last images of size (n, h, w), every STEP-th pixel, at
    [n, i, a, j, b·channels + c] for pixel (a + i·STEP, b + j·STEP). Outside the images it reads 0 and stores nothing.
    """
    n, h, w = strides[0].to(tl.int64), strides[1].to(tl.int64), strides[2].to(tl.int64)
    return tl.make_tensor_descriptor(
        x,
        [size[0], size[1] // STEP[0], STEP[0], size[2] // STEP[1], STEP[1] * channels],
        [n, h * STEP[0], h, w * STEP[1], 1],
        [BOX[0], BOX[1], 1, BOX[2], CHANNELS],
    )

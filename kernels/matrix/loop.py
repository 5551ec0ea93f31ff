"""The main loop of products with matrix instructions, and what all products walk: tiles, phases, taps, padding.

Shape tags: [M] output pixels or rows, [N] columns, [K] reduction; a trailing comment gives each block's shape.
"""

from ..base.lang import device_function, interpreted, tl
from ..window.convolution import Phase
from .meta import Terms


@device_function
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a @ b. Full float32 is summed in parts, a step's terms first: in one row of all terms as many
    roundings would add up. The interpreter's is rounded once: its BLAS adds in an order that depends on the CPU."""
    if interpreted():
        a, b, total = a.to(tl.float64), b.to(tl.float64), acc.to(tl.float64)
        return tl.dot(a, b, total, out_dtype=tl.float64).to(acc.dtype)
    elif PRECISION == "ieee" and a.dtype == tl.float32:
        part = tl.dot(a, b, input_precision=PRECISION, out_dtype=acc.dtype)
        return tl.fma(part, 1.0, acc)  # a sum, which Triton would turn into a dot that begins with acc
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@device_function
def as_tf32(x, PRECISION: tl.constexpr):
    """Return x as the tensor cores see it, its last 13 bits cleared; the same product, but in code x passes registers.

    For tiles whose reduction is not their contiguous direction: TF32 matrix instructions want it so, and without a
    step in registers the compiler transposes on the way into shared memory, four bytes a load.
    """
    if PRECISION == "tf32" and not interpreted():
        return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    else:
        return x


@device_function
def main_loop(acc, A: tl.constexpr, a, B: tl.constexpr, b, first, end, META: tl.constexpr):
    """Return acc + Σ over first <= step < end of A(a, step) @ B(b, step).

    A and B are device functions that fetch a step's tiles from operands a and b: [M, K] and [K, N] in gather.py, in
    per_pixel.py; [N, K] and [K, M] in tma.py; [G, M, K] and [G, K, N] in grouped.py.
    """
    PRECISION: tl.constexpr = META.precision
    for step in range(first, end):
        acc = dot(A(a, step, META), B(b, step, META), acc, PRECISION)
    return acc


@device_function
def program_tile(program, rows, columns):
    """Return (row, column) of a tile in bands of 8 rows, column by column: neighbours in time share operands in L2."""
    band = 8 * columns
    first = program // band * 8
    height = min(rows - first, 8)
    within = program % band
    return first + within % height, within // height


@device_function
def phase_of(a, WALK: tl.constexpr):
    """Return a walk's phase a."""
    PHASES: tl.constexpr = WALK.result_step
    if PHASES == 1:
        FIRST: tl.constexpr = WALK.phases[0].first
        COUNT: tl.constexpr = WALK.phases[0].count
        OFFSET: tl.constexpr = WALK.phases[0].offset
        NONEMPTY: tl.constexpr = WALK.phases[0].nonempty
        return Phase(FIRST, COUNT, OFFSET, NONEMPTY)
    else:
        first, count, offset, nonempty = 0, 1, 0, 0
        for i in tl.static_range(PHASES):
            first = tl.where(a == i, WALK.phases[i].first, first)
            count = tl.where(a == i, WALK.phases[i].count, count)
            offset = tl.where(a == i, WALK.phases[i].offset, offset)
            nonempty = tl.where(a == i, WALK.phases[i].nonempty, nonempty)
        return Phase(first, count, offset, nonempty)


@device_function
def tap_of(step, channels, rows, columns, PACKED: tl.constexpr, TERMS: tl.constexpr):
    """Return the terms of a step along a window of rows x columns of taps.

    packed:    term = tap · channels + c, TERMS terms a step: [TERMS] taps
    otherwise: one tap and TERMS channels a step, taps fastest (they share input): [1] tap
    """
    if PACKED:
        term = step * TERMS + tl.arange(0, TERMS)
        tap = term // channels
        c = term - tap * channels
        mask = tap < rows * columns
    else:
        tap = tl.full([1], step % (rows * columns), tl.int32)
        c = step // (rows * columns) * TERMS + tl.arange(0, TERMS)
        mask = c < channels
    return Terms(tap // columns, tap % columns, c, mask)


@device_function
def tap_steps(channels, rows, columns, PACKED: tl.constexpr, TERMS: tl.constexpr):
    """Return the number of steps that `tap_of` takes through a window's terms."""
    if PACKED:
        return tl.cdiv(rows * columns * channels, TERMS)
    else:
        return rows * columns * tl.cdiv(channels, TERMS)


@device_function
def source_index(h, size, PADDING: tl.constexpr):
    """Return the pixel that padding of this mode shows at h, less than one image of `size` away (circular: at most
    one)."""
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
    """Return the offset of pixels (h, w) in their image, 0 where they are not `inside`: masked, but never far off. A
    product, since from version 3.8 Triton doesn't know what divides a value that is selected, and would load single
    elements."""
    offset = h * strides.h + w * strides.w
    return offset * inside.to(offset.dtype)

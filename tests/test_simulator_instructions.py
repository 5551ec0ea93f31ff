"""Instructions of memory, of warps, of control flow and of matrices in hand-written PTX, against NumPy and Python."""

import functools
import itertools
import operator

import numpy as np
import pytest
import torch

from ptx_text import aligned, run

ORDERS = (0, 1, 2)
STORE = "\nst.global.b32 [element], %r1;"
T = np.arange(64)


def values(body, **options):
    """What each thread has in %r1 at the end of a body with no findings."""
    ran = run(body + STORE, **options)
    assert not ran.launch.findings
    assert not ran.stopped
    return ran.buffer


# ---- memory


@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16", "b32", "f32"])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_narrow_elements(space, kind):
    """Loads extend by their sign, and stores write the low bits alone."""
    size = int(kind[1:]) // 8
    buffer = aligned(128, fill=-1)
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{size}")
    data = buffer[64:].view(dtype)
    data[:] = np.random.default_rng(0).integers(0, 256**size, len(data)).astype(dtype)
    kept = data.copy()
    body = f"mul.lo.s32 %r2, thread, {size}; cvt.u64.u32 %d1, %r2; add.s64 %d1, %d1, out;\n"
    body += f"ld.global.{kind} %r1, [%d1+256];\n"
    if space == "shared":
        body += f"add.s32 %r2, %r2, base; st.shared.b{8 * size} [%r2], %r1; ld.shared.{kind} %r1, [%r2];\n"
    else:
        body += f"add.s32 %r3, %r1, 1; st.global.b{8 * size} [%d1+256], %r3;\n"
    found = values(body, buffer=buffer)
    with np.errstate(over="ignore"):
        assert (found[:64].astype(np.int64) == kept[:64].astype(np.int64).astype(np.int32)).all()
        assert (found[64:].view(dtype)[:64] == kept[:64] + (space == "global") * dtype.type(1)).all()
    assert (found[64:].view(dtype)[64:] == kept[64:]).all()


@pytest.mark.parametrize("count", [2, 4])
def test_vectors(count):
    """Vectors through shared memory and back, their elements the other way round; _ is skipped."""
    names = ", ".join(f"%r{10 + i}" for i in range(count))
    back = ", ".join(f"%r{10 + i}" for i in reversed(range(count)))
    body = f"mul.lo.s32 %r2, thread, {4 * count}; cvt.u64.u32 %d1, %r2; add.s64 %d1, %d1, out; add.s32 %r2, %r2, base;"
    body += f"ld.global.v{count}.b32 {{{names}}}, [%d1]; st.shared.v{count}.b32 [%r2], {{{back}}};\n"
    body += f"mov.b32 %r10, -5; ld.shared.v{count}.b32 {{_, {', '.join(names.split(', ')[1:])}}}, [%r2];\n"
    body += f"st.global.v{count}.b32 [%d1], {{{names}}};"
    data = aligned(64 * count)
    data[:] = np.random.default_rng(0).integers(-(2**31), 2**31, len(data))
    right = data.reshape(64, count)[:, ::-1].copy()
    right[:, 0] = -5
    assert not run(body, buffer=data, shared=64 * 4 * count).launch.findings
    assert (data.reshape(64, count) == right).all()


ATOMICS = {"add": operator.add, "min": min, "max": max, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
           "exch": lambda x, y: y}  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("what", "kind"), [
    *itertools.product(("add", "min", "max"), ("u32", "s32", "u64", "s64")), ("add", "f32"), ("add", "f64"),
    *itertools.product(("and", "or", "xor", "exch"), ("b32", "b64")),
])  # fmt: skip
def test_atomics(what, kind, space):
    """All threads combine into one cell, one after the other: the cell, and what each found there."""
    bits = int(kind[1:])
    dtype = np.dtype(f"{kind[0].translate(str.maketrans('sb', 'iu'))}{bits // 8}")
    buffer = aligned(2 * 130)
    noise = np.random.default_rng(0).integers(-1000, 1000, 65)
    operands = (noise << (bits - 12) if kind[0] != "f" else noise).astype(dtype)
    buffer.view(dtype)[:65] = operands
    r, size = "%d" if bits == 64 else "%r", bits // 8
    body = f"mul.wide.u32 %d1, thread, {size}; add.s64 %d1, %d1, out; ld.global.b{bits} {r}2, [%d1+{size}];\n"
    if space == "shared":
        body += f"ld.global.b{bits} {r}3, [out]; setp.eq.u32 %p1, thread, 0;\n"
        body += f"@%p1 st.shared.b{bits} [base], {r}3;\n"
        body += f"bar.sync 0; atom.shared.{what}.{kind} {r}4, [base], {r}2; bar.sync 0;\n"
        body += f"ld.shared.b{bits} {r}3, [base]; @%p1 st.global.b{bits} [out], {r}3;\n"
    else:
        body += f"atom.global.gpu.relaxed.{what}.{kind} {r}4, [out], {r}2;\n"
    body += f"st.global.b{bits} [%d1+{size}], {r}4;"
    assert not run(body, buffer=buffer).launch.findings
    with np.errstate(over="ignore"):
        steps = list(itertools.accumulate(operands, lambda x, y: dtype.type(ATOMICS[what](x, y))))
    found = buffer.view(dtype)[:65]
    assert found[0] == steps[-1]
    assert (np.sort(found[1:]) == np.sort(np.array(steps[:-1], dtype))).all()


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_compare_and_swap(kind):
    """Counting up by compare and swap: each thread's turn comes when the cell holds its number."""
    bits, register = int(kind[1:]), "%d" if kind == "b64" else "%r"
    body = f"cvt.u{bits}.u32 {register}2, thread; add.u{bits} {register}3, {register}2, 1; mov.b32 %r1, 0;\n"
    body += f"$again: add.s32 %r1, %r1, 1; atom.shared.cas.{kind} {register}4, [base], {register}2, {register}3;\n"
    body += f"setp.ne.{kind} %p1, {register}4, {register}2; @%p1 bra $again;"
    start = f"mov.b{bits} {register}5, 0; st.shared.b{bits} [base], {register}5; bar.sync 0;\n"
    body = start + body + f"bar.sync 0; ld.shared.b{bits} {register}6, [base]; cvt.u32.u{bits} %r1, {register}6;"
    assert (values(body) == 64).all()


def test_red_has_no_result():
    ran = run("red.global.add.u32 [out], thread; red.global.max.s32 [out+4], thread;")
    assert not ran.launch.findings
    assert ran.buffer[:3].tolist() == [sum(range(64)), 63, 0]


def test_special_registers():
    for name, right in {"%laneid": T % 32, "%warpid": T // 32, "%ntid.x": 64, "%tid.y": 0, "%ntid.y": 1, "%nctaid.x": 1,
                        "%lanemask_lt": (1 << T % 32) - 1}.items():  # fmt: skip
        assert (values(f"mov.u32 %r1, {name};").view(np.uint32) == right).all(), name
    body = "mov.u32 %r2, %ctaid.x; mov.u32 %r3, %nctaid.x; mad.lo.s32 %r1, %r2, 100, %r3;\n"
    body += (
        "mad.lo.s32 %r4, %r2, 64, thread; mul.wide.u32 %d1, %r4, 4; add.s64 %d1, %d1, out;\nst.global.b32 [%d1], %r1;"
    )
    assert (run(body, blocks=3).buffer.reshape(3, 64) == 100 * np.arange(3)[:, None] + 3).all()


# ---- warps


def shuffled(mode, lane, by, c):
    """The lane that is read, by the manual's text, and whether it is in range."""
    clamp, segment = c & 31, c >> 8 & 31
    top = (lane & segment) | (clamp & ~segment)
    least = lane & segment
    j = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": least | (by & ~segment)}[mode]
    inside = j >= top if mode == "up" else j <= top
    return (j if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode):
    for by, segments in itertools.product((0, 1, 3, 8, 31), (0, 0x1000, 0x1800, 0x1C00)):
        c = segments | (0 if mode == "up" else 31)
        body = f"mul.lo.s32 %r2, thread, 3; shfl.sync.{mode}.b32 %r1|%p1, %r2, {by}, {c}, -1;\n"
        body += "@!%p1 add.s32 %r1, %r1, 1000;"
        right = [shuffled(mode, t % 32, by, c) for t in range(64)]
        assert values(body).tolist() == [3 * (t // 32 * 32 + j) + 1000 * (not ok) for t, (j, ok) in enumerate(right)]


def test_votes():
    """Of threads below a bound: none, some, all, or those of one warp."""
    for bound in (0, 1, 13, 32, 40, 64):
        lanes = (bound > T).reshape(2, 32)
        right = {"all": lanes.all(1), "any": lanes.any(1), "uni": lanes.all(1) | ~lanes.any(1)}
        test = f"setp.lt.u32 %p1, thread, {bound};"
        for kind, expected in right.items():
            found = values(f"{test} vote.sync.{kind}.pred %p2, %p1, -1; selp.b32 %r1, 1, 0, %p2;")
            assert (found.reshape(2, 32) == expected[:, None]).all()
        ballot = values(f"{test} vote.sync.ballot.b32 %r1, %p1, -1;").view(np.uint32).reshape(2, 32)
        assert (ballot == (lanes * (1 << np.arange(32))).sum(1)[:, None]).all()


@pytest.mark.parametrize(("what", "kind"), [
    *itertools.product(("add", "min", "max"), ("u32", "s32")), *itertools.product(("and", "or", "xor"), ("b32",)),
])  # fmt: skip
def test_redux(what, kind):
    dtype = np.int32 if kind == "s32" else np.uint32
    buffer = aligned(64)
    buffer[:] = np.random.default_rng(0).integers(-(2**31), 2**31, 64)
    with np.errstate(over="ignore"):
        rows = buffer.view(dtype).reshape(2, 32)
        right = [functools.reduce(lambda x, y: dtype(ATOMICS[what](x, y)), row) for row in rows]
    found = values(f"ld.global.b32 %r2, [element]; redux.sync.{what}.{kind} %r1, %r2, -1;", buffer=buffer)
    assert (found.view(dtype).reshape(2, 32) == np.array(right)[:, None]).all()


def test_elect_and_activemask():
    body = "mov.b32 %r1, 0; elect.sync %r2|%p1, -1; @%p1 mov.b32 %r1, 7;"
    assert (values(body) == 7 * (T % 32 == 0)).all()
    body = "mov.b32 %r1, 0; and.b32 %r2, thread, 3; setp.eq.u32 %p1, %r2, 2; @%p1 activemask.b32 %r1;"
    assert (values(body).view(np.uint32) == 0x44444444 * (T % 4 == 2)).all()


# ---- control flow and barriers


@pytest.mark.parametrize("order", ORDERS)
def test_divergence(order):
    """Loops with as many iterations as a thread's number, a branch in them, and an early end of some threads."""
    body = """mov.b32 %r1, 0; mov.b32 %r2, 0;
$loop: add.s32 %r2, %r2, 1; and.b32 %r3, %r2, 1; setp.eq.s32 %p1, %r3, 0; @%p1 bra $even;
add.s32 %r1, %r1, 10; bra $next;
$even: add.s32 %r1, %r1, 1;
$next: setp.le.s32 %p2, %r2, thread; @%p2 bra $loop;
st.global.b32 [element], %r1; setp.gt.s32 %p3, thread, 40; @%p3 exit; add.s32 %r1, %r1, 1000;"""
    right = [10 * ((t + 2) // 2) + (t + 1) // 2 + 1000 * (t <= 40) for t in range(64)]
    assert values(body, order=order).tolist() == right


@pytest.mark.parametrize("order", ORDERS)
def test_barriers(order):
    """Warps exchange through shared memory; barriers by number, of some warps, with arrivals that do not wait."""
    exchange = "st.shared.b32 [slot], thread; {} xor.b32 %r2, slot, 128; ld.shared.b32 %r1, [%r2];"
    for barrier in ("bar.sync 0;", "barrier.cta.sync.aligned 3, 64;", "mov.b32 %r9, 5; bar.sync %r9, 64;"):
        assert (values(exchange.format(barrier), order=order) == T ^ 32).all()
    produce = """setp.lt.u32 %p1, thread, 64; @%p1 bra $consume;
st.shared.b32 [slot], thread; bar.arrive 1, 128; bar.sync 2, 128; ld.shared.b32 %r1, [slot+-256]; bra $end;
$consume: bar.sync 1, 128; ld.shared.b32 %r1, [slot+256]; st.shared.b32 [slot], %r1; bar.arrive 2, 128;
$end:"""
    assert (values(produce, threads=128, order=order) == 64 + np.tile(T, 2)).all()
    ended = (
        "setp.ge.u32 %p1, thread, 32; @%p1 exit; st.shared.b32 [slot], thread; bar.sync 0; ld.shared.b32 %r1, [slot];"
    )
    assert (values(ended, order=order) == T * (T < 32)).all()


# ---- asynchronous copies and mbarriers

COPIES = """add.s32 %r2, thread, 5; st.global.b32 [element], %r2; cp.async.ca.shared.global [slot], [element], 4;
cp.async.commit_group;
cp.async.ca.shared.global [slot+256], [element], 4, {read}; cp.async.commit_group;
{wait} bar.sync 0; ld.shared.b32 %r1, [slot+{at}]; cp.async.wait_all;"""


def test_copies_in_groups():
    """What was waited for is there; what was not, is poison; beyond the bytes that are read, there are zeros."""
    copied = lambda wait, at, read=4, races=False: values(COPIES.format(wait=wait, at=at, read=read), races=races)  # noqa: E731
    assert (copied("cp.async.wait_group 1;", 0, races=True) == T + 5).all()
    assert (copied("cp.async.wait_group 1;", 256) == -1).all()
    assert (copied("cp.async.wait_group 0;", 256, races=True) == T + 5).all()
    assert (copied("cp.async.wait_all;", 256, races=True) == T + 5).all()
    assert (copied("", 0) == -1).all()
    assert (copied("cp.async.wait_group 0;", 256, read=0) == 0).all()
    assert (copied("cp.async.wait_group 0;", 256, read=1) == (T + 5) % 256).all()


RING = """setp.eq.u32 %p1, thread, 0; @!%p1 bra $ready;
mbarrier.init.shared::cta.b64 [base+512], 32; mbarrier.init.shared::cta.b64 [base+520], 32;
$ready: bar.sync 0; mov.b32 %r1, 0; mov.b32 %r2, 0; setp.ge.u32 %p2, thread, 32;
$loop: and.b32 %r3, %r2, 1; xor.b32 %r4, %r3, 1; @%p2 bra $produce;
$full: mbarrier.try_wait.parity.shared::cta.b64 %p3, [base+512], %r3; @!%p3 bra $full;
ld.shared.b32 %r5, [slot+128]; add.s32 %r1, %r1, %r5; mbarrier.arrive.shared::cta.b64 _, [base+520]; bra $next;
$produce: mbarrier.try_wait.parity.shared::cta.b64 %p3, [base+520], %r4; @!%p3 bra $produce;
mad.lo.s32 %r5, %r2, 100, thread; st.shared.b32 [slot], %r5; mbarrier.arrive.shared::cta.b64 _, [base+512];
$next: add.s32 %r2, %r2, 1; setp.lt.u32 %p4, %r2, 5; @%p4 bra $loop;"""


@pytest.mark.parametrize("order", ORDERS)
def test_mbarriers(order):
    """A ring of one place: two mbarriers of a warp's arrivals, by alternating parities."""
    found = values(RING, order=order)
    assert (found == np.where(T < 32, 5 * (T + 32) + 100 * sum(range(5)), 0)).all()


# ---- matrices


def matrices(number, trans, store):
    """8 x 8 matrices of 16 bits through shared memory: the buffer's halves as registers, or as memory."""
    names = ", ".join(f"%r{10 + i}" for i in range(number))
    rows = f"and.b32 %r2, thread, {8 * number - 1}; mad.lo.s32 %r2, %r2, 16, base;"  # a row's address by each thread
    shape = f"sync.aligned.m8n8.x{number}{'.trans' if trans else ''}.shared.b16"
    each = range(number)
    if store:
        body = "".join(f"ld.global.b32 %r{10 + i}, [element+{128 * i}];" for i in each)
        body += f"{rows} stmatrix.{shape} [%r2], {{{names}}}; bar.warp.sync -1;"
        body += "".join(f"ld.shared.b32 %r3, [slot+{128 * i}]; st.global.b32 [element+{128 * i}], %r3;" for i in each)
    else:
        body = "".join(f"ld.global.b32 %r3, [element+{128 * i}]; st.shared.b32 [slot+{128 * i}], %r3;" for i in each)
        body += f"{rows} bar.warp.sync -1; ldmatrix.{shape} {{{names}}}, [%r2];"
        body += "".join(f"st.global.b32 [element+{128 * i}], %r{10 + i};" for i in each)
    return body


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_matrices(number, trans, store):
    """Thread t's register has elements (t / 4, t % 4 · 2) and the next one of a matrix, or of the transposed matrix."""
    buffer = aligned(32 * number)
    buffer.view(np.uint16)[:] = np.arange(64 * number)
    before = np.arange(64 * number).reshape(number, 8, 8)
    assert not run(matrices(number, trans, store), buffer=buffer, threads=32).launch.findings
    assert (buffer.view(np.uint16).reshape(number, 8, 8) == (before.swapaxes(1, 2) if trans else before)).all()


def fragments(matrix, per, by_column=False):
    """A warp's registers [lane, register, element] of A (m x k) or, by column, of B (k x n), by the manual's figures:
    row lane / 4 and the eighth after it, then the next columns."""
    rows = matrix.T if by_column else matrix
    lanes, tall = np.arange(32), rows.shape[0] > 8
    found = []
    for first in range(0, rows.shape[1], 4 * per):
        for row in (0, 8) if tall else (0,):
            found.append(rows[lanes[:, None] // 4 + row, first + lanes[:, None] % 4 * per + np.arange(per)])
    return np.stack(found, 1)


MMA = [
    *(("f16", sums, k) for sums in ("f32", "f16") for k in (8, 16)), ("bf16", "f32", 8), ("bf16", "f32", 16),
    ("tf32", "f32", 4), ("tf32", "f32", 8), ("e4m3", "f32", 32), ("e5m2", "f32", 32), ("e4m3", "f16", 32),
    *((kind, "s32", k) for kind in ("s8", "u8") for k in (16, 32)),
    ("f64", "f64", 4), ("f64", "f64", 8), ("f64", "f64", 16), ("f64 of 8 rows", "f64", 4),
]  # fmt: skip
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "e4m3": torch.float8_e4m3fn,
         "e5m2": torch.float8_e5m2, "s8": torch.int8, "u8": torch.uint8, "f64": torch.float64, "f32": torch.float32,
         "s32": torch.int32}  # fmt: skip


def bits(numbers, kind):
    """The bytes of numbers [.., element] in a format, as registers of 4 bytes, of 8 for f64."""
    typed = torch.from_numpy(numbers.astype(np.float64)).to(TORCH[kind]).contiguous()
    return typed.view(torch.int64 if kind == "f64" else torch.int32).numpy()[..., 0]


@pytest.mark.parametrize(("kind", "sums", "k"), MMA)
def test_mma(kind, sums, k):
    """Fragments of small integers, whose products and sums are exact, against NumPy's product."""
    m, kind = 8 if "of 8" in kind else 16, kind.split()[0]
    rng = np.random.default_rng(k)
    least, most = (-128, 128) if kind == "s8" else (0, 256) if kind == "u8" else (-4, 5)
    a, b, c = rng.integers(least, most, (m, k)), rng.integers(least, most, (k, 8)), rng.integers(-50, 50, (m, 8))
    size = 8 if kind == "f64" else 4
    per, per_sum = size // TORCH[kind].itemsize, 2 if sums == "f16" else 1
    pairs = fragments(c, 2)  # sums: pairs of columns
    start = pairs.reshape(32, -1, per_sum)
    parts = [bits(fragments(a, per), kind), bits(fragments(b, per, True), kind), bits(start, sums)]
    registers = np.concatenate(parts, 1)
    count, width = registers.shape[1], f"b{8 * size}"
    r = "%d1" if size == 8 else "%r1"
    names = iter([f"{r}{i:02}" if size == 4 else f"%d{10 + i}" for i in range(count)])
    fields = [f"{{{', '.join(itertools.islice(names, part.shape[1]))}}}" for part in parts]
    body = f"mul.wide.u32 %d1, thread, {count * size}; add.s64 %d1, %d1, out;\n"
    loaded = [each for field in fields for each in field[1:-1].split(", ")]
    body += "".join(f"ld.global.{width} {each}, [%d1+{size * i}];" for i, each in enumerate(loaded))
    body += f"mma.sync.aligned.m{m}n8k{k}.row.col.{sums}.{kind}.{kind}.{sums} {fields[2]}, {', '.join(fields)};\n"
    at = count - parts[2].shape[1]
    body += "".join(f"st.global.{width} [%d1+{size * (at + i)}], {each};" for i, each in enumerate(loaded[at:]))
    buffer = aligned(registers.size, registers.dtype)
    buffer[:] = registers.ravel()
    assert not run(body, buffer=buffer, threads=32).launch.findings
    right = bits(fragments(a @ b + c, 2).reshape(32, -1, per_sum), sums)
    assert (buffer.reshape(32, count)[:, at:] == right).all()

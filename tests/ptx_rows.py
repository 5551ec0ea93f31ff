"""The rows of the simulator's table of instructions with an independent reference: integers in Python's, floats in
exact fractions that are rounded once, floats of eight bits in PyTorch.

FAMILIES: functions that yield the cases, by name."""

import math
import operator
from fractions import Fraction

import numpy as np
import torch

from ptx_numbers import (
    ARITHMETIC,
    COMPARED,
    FLOATS_COMPARED,
    FORMATS,
    Case,
    away,
    exactly,
    flush,
    fused,
    relu,
    rounded,
    width,
)


def to_signed(x, bits):
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def whole(t):
    """Rows of integers of one type. Division by 0 has no defined result."""
    bits, signed = width(t), t[0] == "s"
    wider = f"{t[0]}{2 * bits}"
    quotient = lambda x, y: -1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)  # noqa: E731
    two = {
        "add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "mul.hi": lambda x, y: x * y >> bits,
        "div": quotient, "rem": lambda x, y: -1 if y == 0 else x - quotient(x, y) * y, "min": min, "max": max,
    }  # fmt: skip
    three = {"mad.lo": lambda x, y, z: x * y + z, "mad.hi": lambda x, y, z: (x * y >> bits) + z}
    for name, function in two.items():
        yield Case(f"{name}.{t}", f"{name}.{t} {{}}, {{}}, {{}};", t, (t, t), function)
    for name, function in (three | {"min": min, "max": max}).items():
        key = f"{name}3.{t}" if name in ("min", "max") else f"{name}.{t}"
        yield Case(key, f"{name}.{t} {{}}, {{}}, {{}}, {{}};", t, (t, t, t), function)
    if bits < 64:
        yield Case(f"mul.wide.{t}", f"mul.wide.{t} {{}}, {{}}, {{}};", wider, (t, t), operator.mul)
        yield Case(f"mad.wide.{t}", f"mad.wide.{t} {{}}, {{}}, {{}}, {{}};", wider, (t, t, wider), three["mad.lo"])
    yield Case(f"neg.{t}", f"neg.{t} {{}}, {{}};", t, (t,), operator.neg)
    if signed:
        yield Case(f"abs.{t}", f"abs.{t} {{}}, {{}};", t, (t,), abs)
    yield Case(f"shr.{t}", f"shr.{t} {{}}, {{}}, {{}};", t, (t, "u32"), lambda x, y: x >> min(y, bits))
    unsigned = {} if signed else {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
    for name, function in (COMPARED | unsigned).items():
        yield Case(f"setp.{name}.{t}", f"setp.{name}.{t} {{}}, {{}}, {{}};", "pred", (t, t), function)


def extracted(t):
    """bfe by the manual: bit by bit, the sign of the field's last bit that is there."""
    bits = width(t)

    def function(x, at, n):
        at, n, x = at & 255, n & 255, x & ((1 << bits) - 1)
        sign = 0 if t[0] == "u" or n == 0 else x >> min(at + n - 1, bits - 1) & 1
        return sum((x >> at + i & 1 if i < n and at + i < bits else sign) << i for i in range(bits))

    return function


def inserted(bits):
    """bfi by the manual."""

    def function(x, y, at, n):
        at, n = at & 255, n & 255
        for i in range(n):
            if at + i < bits:
                y = (y & ~(1 << at + i)) | ((x >> i & 1) << at + i)
        return y

    return function


def permuted(x, y, selector):
    """prmt by the manual."""
    found = 0
    for i in range(4):
        k = selector >> 4 * i & 15
        byte = (y << 32 | x) >> 8 * (k & 7) & 255
        found |= (255 * (byte >> 7) if k & 8 else byte) << 8 * i
    return found


def by_table(x, y, z, table):
    return sum((table >> (x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1) & 1) << i for i in range(32))


def of_bits():
    """Rows of bits, of predicates, and of vectors of registers."""
    for bits in (1, 16, 32, 64):
        t, kind = ("pred", "pred") if bits == 1 else (f"u{bits}", f"b{bits}")
        for name in ("and", "or", "xor"):
            function = getattr(operator, f"{name}_" if name != "xor" else name)
            yield Case(f"{name}.b{bits}", f"{name}.{kind} {{}}, {{}}, {{}};", t, (t, t), function)
        complement = operator.not_ if bits == 1 else operator.invert
        yield Case(f"not.b{bits}", f"not.{kind} {{}}, {{}};", t, (t,), complement)
        yield Case(f"mov.b{bits}", f"mov.{kind} {{}}, {{}};", t, (t,), lambda x: x)
        select = lambda x, y, z: x if z else y  # noqa: E731
        yield Case(f"selp.b{bits}", f"selp.{kind} {{}}, {{}}, {{}}, {{}};", t, (t, t, "pred"), select)
        if bits > 1:
            shift = lambda x, y, bits=bits: x << y if y < bits else 0  # noqa: E731
            yield Case(f"shl.b{bits}", f"shl.b{bits} {{}}, {{}}, {{}};", t, (t, "u32"), shift)
    for bits in (32, 64):
        t = f"u{bits}"
        one = {"popc": int.bit_count, "clz": lambda x, n=bits: n - x.bit_length()}
        for name, function in one.items():
            yield Case(f"{name}.b{bits}", f"{name}.b{bits} {{}}, {{}};", "u32", (t,), function)
        yield Case(f"bfind.{t}", f"bfind.{t} {{}}, {{}};", "u32", (t,), lambda x: x.bit_length() - 1)
        reverse = lambda x, n=bits: int(f"{x:0{n}b}"[::-1], 2)  # noqa: E731
        yield Case(f"brev.b{bits}", f"brev.b{bits} {{}}, {{}};", t, (t,), reverse)
        fields = (t, t, "u32", "u32")
        yield Case(f"bfi.b{bits}", f"bfi.b{bits} {{}}, {{}}, {{}}, {{}}, {{}};", t, fields, inserted(bits))
        for kind in (t, f"s{bits}"):
            yield Case(
                f"bfe.{kind}", f"bfe.{kind} {{}}, {{}}, {{}}, {{}};", kind, (kind, "u32", "u32"), extracted(kind)
            )
    yield Case("lop3.b32", "lop3.b32 {}, {}, {}, {}, {};", "u32", ("u32",) * 4, by_table)
    yield Case("prmt.b32", "prmt.b32 {}, {}, {}, {};", "u32", ("u32",) * 3, permuted)
    for mode, count in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        left = lambda x, y, n, of=count: (y << of(n)) | (x >> 32 - of(n))  # noqa: E731
        right = lambda x, y, n, of=count: (y << 32 - of(n)) | (x >> of(n))  # noqa: E731
        for way, function in (("l", left), ("r", right)):
            key = f"shf.{way}.{mode}.b32"
            yield Case(key, f"{key} {{}}, {{}}, {{}}, {{}};", "u32", ("u32",) * 3, function)
    for bits, parts in ((32, 2), (64, 2), (64, 4)):
        whole_one, part, key = f"u{bits}", f"u{bits // parts}", f"mov.b{bits} {parts}"
        pack = lambda *x, n=bits // parts: sum(y << n * i for i, y in enumerate(x))  # noqa: E731
        holes = ", ".join(["{}"] * parts)
        yield Case(key, f"mov.b{bits} {{}}, {{{{{holes}}}}};", whole_one, (part,) * parts, pack)
        for i in range(parts):
            names = ", ".join("{}" if i == k else "_" for k in range(parts))
            unpack = lambda x, n=bits // parts * i: x >> n  # noqa: E731
            yield Case(f"{key}.{i}", f"mov.b{bits} {{{{{names}}}}}, {{}};", part, (whole_one,), unpack)


def holes(count):
    return ", ".join(["{}"] * (count + 1))


def of_floats(t):
    """Rows of one floating-point type, "ftz.f32" among them."""
    base = t.split(".")[-1]
    before = flush if t != base else lambda x: x
    after = (lambda x: flush(rounded(x, "f32"))) if t != base else lambda x: x

    def flushed(function):
        return lambda *x: after(function(*map(before, x)))

    for name, function in ARITHMETIC.items():
        count = 3 if "3" in name or name == "fma" else 2
        text = f"{name.replace('3', '')}.{t} {holes(count)};"
        yield Case(f"{name}.{t}", text, base, (base,) * count, flushed(function))
    key = f"fma.{t[: -len(base)]}relu.{base}"
    yield Case(key, f"{key} {holes(3)};", base, (base,) * 3, flushed(lambda *x: relu(exactly(fused)(*x))))
    yield Case(f"neg.{t}", f"neg.{t} {{}}, {{}};", base, (base,), flushed(operator.neg))
    yield Case(f"abs.{t}", f"abs.{t} {{}}, {{}};", base, (base,), flushed(abs))
    copied = lambda x, y: math.copysign(y, x)  # noqa: E731
    yield Case(f"copysign.{t}", f"copysign.{t} {holes(2)};", base, (base, base), copied)
    for name, of in FLOATS_COMPARED.items():
        function = lambda x, y, of=of: of(before(x), before(y))  # noqa: E731
        yield Case(f"setp.{name}.{t}", f"setp.{name}.{t} {holes(2)};", "pred", (base, base), function)


def of_pairs():
    """Rows of two numbers in a register, and of float32 sums with operands of 16 bits."""

    def paired(function):
        return lambda *x: tuple(function(*half) for half in zip(*x, strict=True))

    names = [name for name in ARITHMETIC if "3" not in name]
    for t in ("f16", "bf16", "f32"):
        more = {"fma.relu": lambda *x: relu(exactly(fused)(*x))}
        for name, function in ({name: ARITHMETIC[name] for name in names} | more).items():
            count, two = 3 if "fma" in name else 2, f"{t}x2"
            yield Case(f"{name}.{two}", f"{name}.{two} {holes(count)};", two, (two,) * count, paired(function))
            if t != "f32" and name != "fma.relu":
                kinds = (t, "f32") if count == 2 else (t, t, "f32")
                yield Case(f"{name}.f32.{t}", f"{name}.f32.{t} {holes(count)};", "f32", kinds, function)
        if t == "f32":
            continue
        for name, function in {"neg": operator.neg, "abs": abs}.items():
            yield Case(f"{name}.{two}", f"{name}.{two} {{}}, {{}};", two, (two,), paired(function))
        for name, of in FLOATS_COMPARED.items():
            for i in range(2):
                function = lambda x, y, of=of, i=i: of(x[i], y[i])  # noqa: E731
                results = ("{}|%p9", "%p9|{}")[i]
                text = f"setp.{name}.{two} {results}, {{}}, {{}};"
                yield Case(f"setp.{name}.{two} {i}", text, "pred", (two, two), function)
    for t in ("u16x2", "s16x2"):
        for name, function in {"add": operator.add, "sub": operator.sub, "min": min, "max": max}.items():
            yield Case(f"{name}.{t}", f"{name}.{t} {holes(2)};", t, (t, t), paired(function))


def of_functions():
    """Rows of functions, most of them approximations by a few units of the last digit in float32."""
    with_limits = {
        "ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
        "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    }  # fmt: skip

    def of(name, t, flushes):
        def function(x):
            with np.errstate(all="ignore"):
                y = float(with_limits[name](np.float64(flush(x) if flushes else x)))
            return flush(rounded(y, t)) if flushes else y

        return function

    for name in with_limits:
        exact = name in ("rcp", "sqrt")  # rounded once: division and square root are in IEEE's standard
        for t in ("f32", "ftz.f32"):
            error = 0 if exact else 2.0**-22
            yield Case(f"{name}.{t}", f"{name}.{t} {{}}, {{}};", "f32", ("f32",), of(name, "f32", t != "f32"), error)
    for name in ("rcp", "sqrt", "rsqrt"):
        for t in ("f64", "ftz.f64"):
            error = 0 if name != "rsqrt" else 2.0**-51
            yield Case(f"{name}.{t}", f"{name}.{t} {{}}, {{}};", "f64", ("f64",), of(name, "f64", False), error)
    for name in ("ex2", "tanh"):
        for t in ("f16", "bf16"):
            for key in (f"{name}.{t}", f"{name}.ftz.{t}"):
                error = 2.0 ** (1 - FORMATS[t].digits)
                yield Case(key, f"{key} {{}}, {{}};", t, (t,), of(name, t, False), error)


# ---- conversions

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


def registers(t):
    """The types of registers that can hold an integer of a type."""
    return [f"{t[0]}{bits}" for bits in (16, 32, 64) if bits >= int(t[1:])]


def low(x, t):
    """An integer's low bits as a value of a type."""
    bits = int(t[1:])
    return to_signed(x, bits) if t[0] == "s" else x & ((1 << bits) - 1)


def saturated(x, t, origin):
    """A float that is an integer in an integer type, by the manual: clamped; NaN is 0, or the highest bit alone if the
    integer has 64 bits or the float is an f64."""
    bits = int(t[1:])
    if math.isnan(x):
        return low(1 << (bits - 1), t) if origin == "f64" or bits == 64 else 0
    least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if t[0] == "s" else (0, (1 << bits) - 1)
    return least if x < least else most if x > most else int(x)


def of_integers():
    """Conversions between integers, and of integers to floats."""
    for target in INTEGERS:
        for origin in INTEGERS:
            for to in registers(target):
                for of in registers(origin):
                    name = f"cvt.{target}.{origin}"
                    function = lambda x, a=target, b=origin: low(low(x, b), a)  # noqa: E731
                    yield Case(f"{name} {to[1:]}.{of[1:]}", f"{name} {{}}, {{}};", to, (of,), function)
    for origin in INTEGERS:
        for of in registers(origin):
            for target in ("f32", "f64", "f16", "bf16"):
                function = lambda x, b=origin: Fraction(low(x, b)) or 0.0  # noqa: E731
                name = f"cvt.{target}.{origin}"
                yield Case(f"{name} {of[1:]}", f"{name} {{}}, {{}};", target, (of,), function)


MODES = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def of_numbers():
    """Conversions of floats to integers, to integers as floats, and to other formats."""
    for origin in ("f32", "f64", "f16", "bf16"):
        for mode, function in MODES.items():
            kept = lambda x, of=function: float(of(x)) if math.isfinite(x) else x  # noqa: E731
            key = f"cvt.{mode}.{origin}.{origin}"
            yield Case(key, f"{key} {{}}, {{}};", origin, (origin,), kept)
            for target in INTEGERS:
                for to in registers(target):
                    name = f"cvt.{mode}.{target}.{origin}"
                    integer = lambda x, of=kept, a=target, b=origin: saturated(of(x), a, b)  # noqa: E731
                    yield Case(f"{name} {to[1:]}", f"{name} {{}}, {{}};", to, (origin,), integer)
        for target in ("f32", "f64", "f16", "bf16"):
            if target != origin:
                key = f"cvt.{target}.{origin}"
                yield Case(key, f"{key} {{}}, {{}};", target, (origin,), lambda x: x)
    for t in ("f16", "bf16"):
        for name, function in {"": lambda x: x, "relu.": relu}.items():
            key = f"cvt.{name}{t}x2.f32"
            pair = lambda x, y, of=function: (of(y), of(x))  # noqa: E731
            yield Case(key, f"{key} {holes(2)};", f"{t}x2", ("f32", "f32"), pair)
        yield Case(f"cvt.relu.{t}.f32", f"cvt.relu.{t}.f32 {{}}, {{}};", t, ("f32",), relu)
        down = lambda x, t=t: rounded(x, t, math.floor)  # noqa: E731
        yield Case(f"cvt.rz.{t}.f32", f"cvt.rz.{t}.f32 {{}}, {{}};", t, ("f32",), down)
        pair = lambda x, y, of=down: (of(y), of(x))  # noqa: E731
        yield Case(f"cvt.rz.{t}x2.f32", f"cvt.rz.{t}x2.f32 {holes(2)};", f"{t}x2", ("f32", "f32"), pair)
    odd = {
        "cvt.rz.f32.f64": ("f32", "f64", lambda x: rounded(x, "f32", math.floor)),
        "cvt.rna.tf32.f32": ("f32", "f32", lambda x: rounded(x, "tf32", away)),
        "cvt.tf32.f32": ("f32", "f32", lambda x: rounded(x, "tf32")),
        "cvt.sat.f32.f32": ("f32", "f32", lambda x: 0.0 if x != x or x <= 0 else min(x, 1.0)),
        "cvt.ftz.f32.f32": ("f32", "f32", flush),
    }
    for key, (result, operand, function) in odd.items():
        yield Case(key, f"{key} {{}}, {{}};", result, (operand,), function)


EIGHT = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}


def of_eight():
    """Conversions to and from eight bits. Too large numbers are the largest one, NaN is 0x7f."""

    def byte(x, dtype, most):
        if math.isnan(x):
            return 0x7F
        x = max(-most, min(most, x))
        return int(torch.tensor(x, dtype=torch.float32).to(dtype).view(torch.uint8))

    for t, (dtype, most) in EIGHT.items():
        two = lambda x, y, a=dtype, b=most: byte(x, a, b) << 8 | byte(y, a, b)  # noqa: E731
        pair = lambda x, two=two: two(x[1], x[0])  # noqa: E731
        number = lambda x, a=dtype: float(torch.tensor(x, dtype=torch.uint8).view(a).float())  # noqa: E731
        back = lambda x, of=number: (of(x & 255), of(x >> 8))  # noqa: E731
        yield Case(f"cvt.satfinite.{t}x2.f32", f"cvt.satfinite.{t}x2.f32 {holes(2)};", "u16", ("f32", "f32"), two)
        yield Case(f"cvt.satfinite.{t}x2.f16x2", f"cvt.satfinite.{t}x2.f16x2 {{}}, {{}};", "u16", ("f16x2",), pair)
        yield Case(f"cvt.f16x2.{t}x2", f"cvt.f16x2.{t}x2 {{}}, {{}};", "f16x2", ("u16",), back)


FAMILIES = {
    **{t: lambda t=t: whole(t) for t in ("u16", "s16", "u32", "s32", "u64", "s64")}, "bits": of_bits,
    **{t: lambda t=t: of_floats(t) for t in ("f16", "bf16", "f32", "f64", "ftz.f32")}, "pairs": of_pairs,
    "functions": of_functions, "of integers": of_integers, "of floats": of_numbers, "eight bits": of_eight,
}  # fmt: skip

"""Numbers as PTX has them: formats, operands that are likely to show a fault, and results compared with a reference."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from ptx_text import each


class Format(NamedTuple):
    """A floating-point format: bits, digits of the mantissa with the leading one, the exponent of the least subnormal
    number, and the largest number."""

    bits: int
    digits: int
    least: int
    largest: float


FORMATS = {
    "f16": Format(16, 11, -24, 65504.0),
    "bf16": Format(16, 8, -133, float(torch.finfo(torch.bfloat16).max)),
    "f32": Format(32, 24, -149, float(torch.finfo(torch.float32).max)),
    "f64": Format(64, 53, -1074, float(torch.finfo(torch.float64).max)),
    "tf32": Format(32, 11, -136, (2 - 2.0**-10) * 2.0**127),
}


def width(t):
    if t.endswith("x2"):
        return 2 * width(t[:-2])
    return 1 if t == "pred" else FORMATS[t].bits if t in FORMATS else int(t[1:])


def dtype_of(t):
    return bool if t == "pred" else np.dtype(f"u{width(t) // 8}")


def halves(bits, t):
    """The low and the high halves of packed pairs."""
    n = width(t[:-2])
    return (bits.astype(dtype_of(t[:-2])), (bits >> n).astype(dtype_of(t[:-2])))


def floats(bits, t):
    """The values of a format's bits, each exact in float64."""
    if t == "f16":
        return bits.view(np.float16).astype(np.float64)
    if t == "f64":
        return bits.view(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return (bits.astype(np.uint32) << 16 if t == "bf16" else bits).view(np.float32).astype(np.float64)


def values(bits, t):
    """Bits as Python's numbers; packed ones as pairs of them, the low one first."""
    if t.endswith("x2"):
        return list(zip(*(values(x, t[:-2]) for x in halves(bits, t)), strict=True))
    if t in FORMATS:
        return floats(bits, t).tolist()
    if t[0] == "s":
        bits = bits.view(f"i{bits.itemsize}")
    return bits.tolist()


def rounded(x, t, how=round):
    """An exact number in a format, as a float64: to nearest even unless told."""
    if not isinstance(x, Fraction):
        if math.isnan(x) or math.isinf(x) or x == 0:
            return x
        x = Fraction(x)
    _, digits, least, largest = FORMATS[t]
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    y = how(abs(x) / unit) * unit
    y = (math.inf if how is round or how is away else largest) if y > largest else float(y)
    return y if x > 0 else -y


def away(x):
    return math.floor(x + Fraction(1, 2))


def flush(x, t="f32"):
    """Zero of its sign for a subnormal number."""
    least = Fraction(2) ** (FORMATS[t].least + FORMATS[t].digits - 1)
    return math.copysign(0.0, x) if abs(x) < least else x


def pool(t, count, number, rng):
    """Operand `number` of `count`: each edge with each other one's edges, then random bits, then ordinary values."""
    if t == "pred":
        return rng.integers(0, 2, 600).astype(bool)
    if t.endswith("x2"):
        low = pool(t[:-2], count, number, rng).astype(dtype_of(t))
        return low | low[::-1] << width(t[:-2])
    bits, dtype = width(t), dtype_of(t)
    if t in FORMATS:
        _, digits, least, largest = FORMATS[t]
        normal = 2.0 ** (least + digits - 1)
        some = [0.0, 1.0, 1.5, math.inf, 2.0**least, normal - 2.0**least, normal, largest, 1 + 2.0 ** (1 - digits), 0.3]
        some = [rounded(sign * x, t) for x in some for sign in (1, -1)] + [math.nan]
        near = [rounded(x, t) for x in rng.standard_normal(150)]
        edges, near = (encoded(x, t) for x in (some, near))
    else:
        half, full = 1 << (bits - 1), (1 << bits) - 1
        edges = np.array([0, 1, 2, 7, 31, 32, 33, half - 1, half, half + 1, full - 1, full], dtype)
        near = rng.integers(0, 100, 150).astype(dtype)
    noise = rng.integers(0, 1 << bits, 300, dtype)
    n = len(edges)
    crossed = edges if count == 1 else np.tile(np.repeat(edges, n if number == 0 else 1), 1 if number == 0 else n)
    if number == 2:
        crossed = rng.permutation(np.tile(edges, n))
    return np.concatenate([crossed, noise, rng.permutation(near)])


def encoded(numbers, t):
    """The bits of numbers in a format, or of integers modulo its size."""
    if t.endswith("x2"):
        low, high = (encoded(x, t[:-2]).astype(dtype_of(t)) for x in zip(*numbers, strict=True))
        return low | high << width(t[:-2])
    if t == "pred":
        return np.array([bool(x) for x in numbers])
    if t not in FORMATS:
        return np.array([int(x) & ((1 << width(t)) - 1) for x in numbers], dtype_of(t))
    exact = np.array([rounded(x, t) for x in numbers], np.float64)
    if t == "f64":
        return exact.view(np.uint64)
    with np.errstate(all="ignore"):
        if t == "f16":
            return exact.astype(np.float16).view(np.uint16)
        found = exact.astype(np.float32).view(np.uint32)
    return (found >> 16).astype(np.uint16) if t == "bf16" else found


def is_same(found, right, t, error):
    """True where bits are equal, or both NaN, or within the relative error."""
    if t.endswith("x2"):
        low, high = map(is_same, halves(found, t), halves(right, t), [t[:-2]] * 2, [error] * 2)
        return low & high
    same = found == right
    if t in FORMATS:
        x, y = floats(found, t), floats(right, t)
        with np.errstate(all="ignore"):
            same |= (np.isnan(x) & np.isnan(y)) | ((abs(x - y) <= error * abs(y)) & (y != 0))
    return same


class Case(NamedTuple):
    """A row: its key, the instruction, types of the result and of the operands, the function of the operands' values;
    the relative error that an approximation may have."""

    key: str
    text: str
    result: str
    operands: tuple[str, ...]
    function: Callable
    error: float = 0.0


def exactly(op):
    """An operation on floats with no rounding, where the result is finite and not 0."""

    def compute(*x):
        if all(map(math.isfinite, x)) and not (op is operator.truediv and x[1] == 0):
            found = op(*map(Fraction, x))
            if found:
                return found
        with np.errstate(all="ignore"):
            return float(op(*map(np.float64, x)))

    return compute


def least_of(x, y, nan=False):
    """The smaller; -0 is less than 0; the number if one is NaN, or NaN."""
    if math.isnan(x) or math.isnan(y):
        return math.nan if nan or (math.isnan(x) and math.isnan(y)) else y if math.isnan(x) else x
    return min(x, y, key=lambda v: (v, math.copysign(1, v)))


def largest_of(x, y, nan=False):
    return -least_of(-x, -y, nan)


def relu(x):
    return x if x != x or x > 0 else 0.0


def fused(x, y, z):
    """The product of finite numbers is finite, however large: it is not rounded."""
    return z if math.isinf(z) and math.isfinite(x) and math.isfinite(y) else x * y + z


ARITHMETIC = {"add": exactly(operator.add), "sub": exactly(operator.sub), "mul": exactly(operator.mul),
              "div": exactly(operator.truediv), "fma": exactly(fused)}  # fmt: skip
for _name, _of in (("min", least_of), ("max", largest_of)):
    ARITHMETIC |= {_name: _of, f"{_name}.NaN": lambda x, y, of=_of: of(x, y, True)}
    ARITHMETIC |= {f"{_name}3": lambda x, y, z, of=_of: of(of(x, y), z)}
    ARITHMETIC |= {f"{_name}3.NaN": lambda x, y, z, of=_of: of(of(x, y, True), z, True)}
COMPARED = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
            "ge": operator.ge}  # fmt: skip


def compared(name):
    """A comparison of floats: false with NaN, or true if it ends in u."""
    nan = lambda x, y: math.isnan(x) or math.isnan(y)  # noqa: E731
    if name in ("num", "nan"):
        return lambda x, y: nan(x, y) == (name == "nan")
    plain = COMPARED[name.removesuffix("u")]
    return lambda x, y: name.endswith("u") if nan(x, y) else plain(x, y)


FLOATS_COMPARED = {name: compared(name) for name in (*COMPARED, *(f"{name}u" for name in COMPARED), "num", "nan")}
# Operands whose sum is close to the middle of two numbers, so that it must not be rounded twice, by row.
CLOSE = {
    "fma.f16": [(1 + 2.0**-10, 2.0**-11 * (1 - 2.0**-10), 1 + 2.0**-10), (-1 - 2.0**-10, 1.5 * 2.0**-11, 65504.0)],
    "fma.bf16": [(7.0, 37.0, 2.0**-60), (7.0, 37.0, -(2.0**-60)), (-7.0, 37.0, 2.0**-60), (1.0, 2.0**-8, 2.0**-90)],
    "cvt.bf16.s64 64": [(2**60 + 2**52 + 1,), (2**60 + 3 * 2**52 - 1,), (-(2**60) - 2**52 - 1,)],
    "cvt.bf16.u64 64": [(2**63 + 2**55 + 1,), (2**63 + 3 * 2**55 - 1,)],
    "cvt.f16.f64": [(1 + 2.0**-11 + 2.0**-40,), (1 + 3 * 2.0**-11 - 2.0**-40,)],
    "cvt.bf16.f64": [(1 + 2.0**-8 + 2.0**-40,), (-1 - 3 * 2.0**-8 + 2.0**-40,)],
}
for _t in ("f16", "bf16"):
    CLOSE |= {f"fma.relu.{_t}": CLOSE[f"fma.{_t}"]}
    CLOSE |= {
        key: [tuple((x, x) for x in row) for row in CLOSE[f"fma.{_t}"]] for key in (f"fma.{_t}x2", f"fma.relu.{_t}x2")
    }


def wrong(case):
    """The first operands for which a row is wrong, with both results, or None."""
    rng = np.random.default_rng(1)
    operands = [pool(t, len(case.operands), i, rng) for i, t in enumerate(case.operands)]
    count = max(map(len, operands))
    operands = [np.resize(x, count) for x in operands]
    for row in CLOSE.get(case.key, ()):
        operands = [np.append(x, encoded([y], t)) for x, y, t in zip(operands, row, case.operands, strict=True)]
    found = each(case.text, dtype_of(case.result), *operands)
    given = list(zip(*(values(x, t) for x, t in zip(operands, case.operands, strict=True)), strict=True))
    right = encoded([case.function(*x) for x in given], case.result)
    same = is_same(found, right, case.result, case.error)
    if same.all():
        return None
    i = int(np.argmin(same))
    return case.key, given[i], values(found[i : i + 1], case.result), values(right[i : i + 1], case.result)

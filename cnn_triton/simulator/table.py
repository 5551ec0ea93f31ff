"""The instructions that work on each thread's registers alone: a table of C expressions, from which C is generated.

    TABLE["add.s32"] = Row("s32", ("s32", "s32"), "a + b")

A key is PTX's opcode without what changes nothing here (`key_of`). The types are C's, of the registers: a byte for a
predicate, u16 for f16 and bf16, u32 for two of them (x2). F, D, h2f ... read numbers from bits, U, Q, f2h ... write
them (engine/numbers.h).
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["TABLE", "Row", "key_of", "source"]


class Row(NamedTuple):
    """One instruction: C types of its result and its operands, and the result as a C expression of a, b, c, d."""

    result: str
    operands: tuple[str, ...]
    expression: str


TABLE: dict[str, Row] = {}

INTEGERS = {"u16": 16, "s16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64", "u64": "u128", "s64": "s128"}


class Float(NamedTuple):
    """A floating-point type: its register's type, and how it is read from bits and written to them."""

    register: str
    read: str
    write: str


FLOATS = {
    "f32": Float("u32", "F({})", "U({})"),
    "f64": Float("u64", "D({})", "Q({})"),
    "f16": Float("u16", "h2f({})", "f2h({})"),
    "bf16": Float("u16", "b2f({})", "f2b({})"),
    "ftz.f32": Float("u32", "FZ(F({}))", "U(FZ({}))"),  # subnormal numbers flushed to 0
}
_SAME = {"rn", "approx", "full", "uni"}  # modifiers that change nothing here: results are rounded to nearest


def key_of(opcode: str, sources: int) -> str:
    """Return the key of an opcode with so many source operands."""
    base, *modifiers = opcode.split(".")
    modifiers = [each for each in modifiers if each not in _SAME]
    if base in ("selp", "mov", "not", "and", "or", "xor", "shl", "popc", "clz", "brev", "bfi"):
        modifiers[-1] = modifiers[-1].replace("pred", "b1").replace("bf", "b").translate(str.maketrans("fus", "bbb"))
    elif base in ("setp", "shr", "add", "sub", "neg") and modifiers[-1][0] == "b" and modifiers[-1][1] != "f":
        modifiers[-1] = f"u{modifiers[-1][1:]}"
    if base in ("min", "max") and sources == 3:
        base += "3"
    if base == "mad" and modifiers[-1][0] == "f":
        base = "fma"
    return ".".join((base, *modifiers))


def _add(key: str, result: str, operands: str, expression: str) -> None:
    TABLE[key] = Row(result, tuple(operands.split()), expression)


def _add_integers() -> None:
    for t, bits in INTEGERS.items():
        wide, two = WIDER[t], f"{t} {t}"
        signed = t[0] == "s"
        _add(f"add.{t}", t, two, "a + b")
        _add(f"sub.{t}", t, two, "a - b")
        _add(f"mul.lo.{t}", t, two, "a * b")
        _add(f"mul.hi.{t}", t, two, f"(({wide})a * ({wide})b) >> {bits}")
        _add(f"mad.lo.{t}", t, f"{two} {t}", "a * b + c")
        _add(f"mad.hi.{t}", t, f"{two} {t}", f"((({wide})a * ({wide})b) >> {bits}) + c")
        if bits < 64:
            _add(f"mul.wide.{t}", wide, two, f"({wide})a * ({wide})b")
            _add(f"mad.wide.{t}", wide, f"{two} {wide}", f"({wide})a * ({wide})b + c")
        _add(f"div.{t}", t, two, "b == 0 ? -1 : " + (f"b == -1 ? ({t})(0 - a) : a / b" if signed else "a / b"))
        _add(f"rem.{t}", t, two, "b == 0 ? -1 : " + ("b == -1 ? 0 : a % b" if signed else "a % b"))
        _add(f"neg.{t}", t, t, "0 - a")
        if signed:
            _add(f"abs.{t}", t, t, "a < 0 ? 0 - a : a")
        _add(f"shr.{t}", t, f"{t} u32", f"a >> (b < {bits} ? b : {bits - 1})" if signed else f"b < {bits} ? a >> b : 0")
        for name, sign in (("min", "<"), ("max", ">")):
            _add(f"{name}.{t}", t, two, f"a {sign} b ? a : b")
            _add(f"{name}3.{t}", t, f"{two} {t}", f"(a {sign} b ? a : b) {sign} c ? (a {sign} b ? a : b) : c")
        for name, sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
            _add(f"setp.{name}.{t}", "u8", two, f"a {sign} b")
        for name, other in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            if not signed:
                TABLE[f"setp.{name}.{t}"] = TABLE[f"setp.{other}.{t}"]


def _add_bits() -> None:
    for bits, t in ((1, "u8"), (16, "u16"), (32, "u32"), (64, "u64")):
        for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
            _add(f"{name}.b{bits}", t, f"{t} {t}", f"a {sign} b")
        _add(f"not.b{bits}", t, t, "!a" if bits == 1 else "~a")
        _add(f"selp.b{bits}", t, f"{t} {t} u8", "c ? a : b")
        _add(f"mov.b{bits}", t, t, "a")
        if bits > 1:
            _add(f"shl.b{bits}", t, f"{t} u32", f"b < {bits} ? a << b : 0")
    for bits in (32, 64):
        t = f"u{bits}"
        _add(f"popc.b{bits}", "u32", t, "__builtin_popcountll(a)")
        _add(f"clz.b{bits}", "u32", t, f"a ? __builtin_clzll(a) - {64 - bits} : {bits}")
        _add(f"brev.b{bits}", t, t, f"brev64(a) >> {64 - bits}")
        _add(f"bfi.b{bits}", t, f"{t} {t} u32 u32", f"bfi_{bits}(a, b, c, d)")
        _add(f"bfind.u{bits}", "u32", t, "a ? 63 - __builtin_clzll(a) : ~0u")
        for kind in (f"u{bits}", f"s{bits}"):
            _add(f"bfe.{kind}", kind, f"{kind} u32 u32", f"bfe_{kind}(a, b, c)")
    _add("lop3.b32", "u32", "u32 u32 u32 u32", "lop3(a, b, c, d)")
    _add("prmt.b32", "u32", "u32 u32 u32", "prmt(a, b, c)")
    for mode, count in (("wrap", "(c & 31)"), ("clamp", "(c < 32 ? c : 32)")):
        _add(f"shf.l.{mode}.b32", "u32", "u32 u32 u32", f"((u64)b << 32 | a) << {count} >> 32")
        _add(f"shf.r.{mode}.b32", "u32", "u32 u32 u32", f"((u64)b << 32 | a) >> {count}")
    # A vector of registers into one, its first in the lowest bits, and back: "mov.b32 2" packs, "mov.b32 2.0" unpacks.
    for bits, parts in ((32, 2), (64, 2), (64, 4)):
        part = bits // parts
        packed = " | ".join(f"(u{bits}){x} << {part * i}" for i, x in enumerate("abcd"[:parts]))
        _add(f"mov.b{bits} {parts}", f"u{bits}", " ".join([f"u{part}"] * parts), packed)
        for i in range(parts):
            _add(f"mov.b{bits} {parts}.{i}", f"u{part}", f"u{bits}", f"a >> {part * i}")


_COMPARISONS = {"eq": "x == y", "ne": "x < y || x > y", "lt": "x < y", "le": "x <= y", "gt": "x > y", "ge": "x >= y"}
_COMPARISONS |= {f"{name}u": f"x != x || y != y || {text}" for name, text in _COMPARISONS.items()}
_COMPARISONS |= {"num": "x == x && y == y", "nan": "x != x || y != y"}
_BINARY = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "min": "MINNUM({}, {})",
           "max": "MAXNUM({}, {})", "min.NaN": "MINNAN({}, {})", "max.NaN": "MAXNAN({}, {})"}  # fmt: skip
_TERNARY = {f"{name}3{nan}": f"{name.upper()}{rule}({name.upper()}{rule}({{}}, {{}}), {{}})"
            for name in ("min", "max") for nan, rule in (("", "NUM"), (".NaN", "NAN"))}  # fmt: skip
_UNARY = {"ex2": "exp2f({})", "lg2": "log2f({})", "rcp": "1.0f / {}", "sqrt": "sqrtf({})", "rsqrt": "1.0f / sqrtf({})",
          "sin": "sinf({})", "cos": "cosf({})", "tanh": "tanhf({})"}  # fmt: skip


def _fma(t: str) -> str:
    """Return the C expression of x·y + z in one rounding; of 16 bits, rounded to odd before."""
    return {"f64": "fma({}, {}, {})", "f32": "fmaf({}, {}, {})", "ftz.f32": "fmaf({}, {}, {})"}.get(
        t, "odd(odd_sum((f64){} * {}, {}))"
    )


def _add_floats() -> None:
    for t, (register, read, write) in FLOATS.items():
        base, modifier = t.split(".")[-1], t.removesuffix(t.split(".")[-1])

        def add(name: str, count: int, expression: str, t: str = t) -> None:
            numbers = [FLOATS[t].read.format(x) for x in "abc"[:count]]
            _add(f"{name}.{t}", FLOATS[t].register, " ".join([FLOATS[t].register] * count),
                 FLOATS[t].write.format(expression.format(*numbers)))  # fmt: skip

        for name, text in _BINARY.items():
            add(name, 2, text)
        for name, text in _TERNARY.items():
            add(name, 3, text)
        add("fma", 3, _fma(t))
        _add(f"fma.{modifier}relu.{base}", register, f"{register} {register} {register}",
             write.format(f"RELU({_fma(t).format(*(read.format(x) for x in 'abc'))})"))  # fmt: skip
        sign = f"(({register})1 << (8 * sizeof({register}) - 1))"
        kept = "U(FZ(F(a)))" if modifier else "a"
        _add(f"neg.{t}", register, register, f"{kept} ^ {sign}")
        _add(f"abs.{t}", register, register, f"{kept} & ({register})~{sign}")
        _add(f"copysign.{t}", register, f"{register} {register}", f"(a & {sign}) | (b & ({register})~{sign})")
        kind = "f64" if t == "f64" else "f32"
        for name, text in _COMPARISONS.items():
            expression = f"({{{kind} x = {read.format('a')}, y = {read.format('b')}; {text};}})"
            _add(f"setp.{name}.{t}", "u8", f"{register} {register}", expression)
    for t, name in itertools.product(("f32", "ftz.f32"), _UNARY):
        _add(f"{name}.{t}", "u32", "u32", FLOATS[t].write.format(_UNARY[name].format(FLOATS[t].read.format("a"))))
    for t, name in itertools.product(("f16", "bf16"), ("ex2", "tanh")):
        text = FLOATS[t].write.format(_UNARY[name].format(FLOATS[t].read.format("a")))
        _add(f"{name}.{t}", "u16", "u16", text)
        _add(f"{name}.ftz.{t}", "u16", "u16", text)
    for name, text in (("sqrt", "sqrt(D(a))"), ("rcp", "1.0 / D(a)"), ("rsqrt", "1.0 / sqrt(D(a))")):
        for modifier in ("", "ftz."):
            _add(f"{name}.{modifier}f64", "u64", "u64", f"Q({text})")


def _halves(count: int, read: str, bits: int) -> Iterable[list[str]]:
    """Yield, for the low and for the high half of packed operands, the halves as numbers."""
    for shift in (0, bits):
        yield [read.format(f"(u{bits})({x} >> {shift})") for x in "abc"[:count]]


def _add_pairs() -> None:
    """Instructions on two numbers in a register, and those of a float32 sum with 16-bit operands."""
    for t, bits, register in (("f16", 16, "u32"), ("bf16", 16, "u32"), ("f32", 32, "u64")):
        write = FLOATS[t].write
        for name, text in {**_BINARY, "fma": _fma(t), "fma.relu": f"RELU({_fma(t)})"}.items():
            count = 3 if name.startswith("fma") else 2
            low, high = (write.format(text.format(*each)) for each in _halves(count, FLOATS[t].read, bits))
            expression = f"({register})({low}) | ({register})({high}) << {bits}"
            _add(f"{name}.{t}x2", register, " ".join([register] * count), expression)
        if bits == 16:
            _add(f"neg.{t}x2", "u32", "u32", "a ^ 0x80008000u")
            _add(f"abs.{t}x2", "u32", "u32", "a & 0x7fff7fffu")
            for (name, text), (i, each) in itertools.product(
                _COMPARISONS.items(), enumerate(_halves(2, FLOATS[t].read, 16))
            ):
                _add(f"setp.{name}.{t}x2 {i}", "u8", "u32 u32", f"({{f32 x = {each[0]}, y = {each[1]}; {text};}})")
            for name, text in _BINARY.items():
                _add(f"{name}.f32.{t}", "u32", "u16 u32", f"U({text.format(FLOATS[t].read.format('a'), 'F(b)')})")
            mixed = (FLOATS[t].read.format("a"), FLOATS[t].read.format("b"), "F(c)")
            _add(f"fma.f32.{t}", "u32", "u16 u16 u32", f"U({_fma('f32').format(*mixed)})")
    for t in ("u16", "s16"):
        for name, text in (("add", "{0} + {1}"), ("sub", "{0} - {1}"), ("min", "{0} < {1} ? {0} : {1}"),
                           ("max", "{0} > {1} ? {0} : {1}")):  # fmt: skip
            low, high = (text.format(f"({t})(a >> {s})", f"({t})(b >> {s})") for s in (0, 16))
            _add(f"{name}.{t}x2", "u32", "u32 u32", f"(u32)(u16)({low}) | (u32)(u16)({high}) << 16")


def _wide(kind: str) -> list[int]:
    """Return the bits of registers that can hold an integer of this type."""
    return [bits for bits in (16, 32, 64) if bits >= int(kind[1:])]


def _add_conversions() -> None:
    """Conversions. Of an integer the register may be wider than the type: "cvt.s32.s8 32.16" is into one of 32 bits,
    from one of 16."""
    types = ("u8", "s8", *INTEGERS)
    for target, origin in itertools.product(types, types):
        for to, of in itertools.product(_wide(target), _wide(origin)):
            expression = f"({target[0]}{to})({target})({origin})a"
            _add(f"cvt.{target}.{origin} {to}.{of}", f"u{to}", f"u{of}", expression)
    floats = {t: FLOATS[t] for t in ("f32", "f64", "f16", "bf16")}
    for origin, (register, read, _) in floats.items():
        number = read.format("a")
        for target in floats:
            narrow = origin == "f64" and target in ("f16", "bf16")
            text = f"d2{target[0]}({number})" if narrow else floats[target].write.format(number)
            if origin != target:
                _add(f"cvt.{target}.{origin}", floats[target].register, register, text)
        for mode, function in (("rni", "rint"), ("rzi", "trunc"), ("rmi", "floor"), ("rpi", "ceil")):
            _add(
                f"cvt.{mode}.{origin}.{origin}",
                register,
                register,
                floats[origin].write.format(f"{function}({number})"),
            )
            for target in types:
                high = int(origin == "f64" or target[1:] == "64")  # what NaN is
                for to in _wide(target):
                    expression = f"({target[0]}{to})sat_{target}({function}({number}), {high})"
                    _add(f"cvt.{mode}.{target}.{origin} {to}", f"u{to}", register, expression)
    for origin, target in itertools.product(types, floats):
        for of in _wide(origin):
            text = {"f32": "U((f32)({}))", "f64": "Q((f64)({}))", "f16": "d2h({})", "bf16": "d2b(odd_whole({}))"}[
                target
            ]
            _add(f"cvt.{target}.{origin} {of}", floats[target].register, f"u{of}", text.format(f"({origin})a"))
    for t, relu in itertools.product(("f16", "bf16"), ("", "relu.")):
        first, second = (floats[t].write.format(f"RELU(F({x}))" if relu else f"F({x})") for x in "ab")
        _add(f"cvt.{relu}{t}x2.f32", "u32", "u32 u32", f"(u32)({first}) << 16 | (u32)({second})")
        _add(f"cvt.relu.{t}.f32", "u16", "u32", floats[t].write.format("RELU(F(a))"))
    for t in ("e4m3", "e5m2"):
        _add(f"cvt.satfinite.{t}x2.f32", "u16", "u32 u32", f"(u16)f2{t}(F(a)) << 8 | f2{t}(F(b))")
        _add(f"cvt.satfinite.{t}x2.f16x2", "u16", "u32", f"(u16)f2{t}(h2f(a >> 16)) << 8 | f2{t}(h2f((u16)a))")
        _add(f"cvt.f16x2.{t}x2", "u32", "u16", f"(u32)f2h({t}2f(a >> 8)) << 16 | f2h({t}2f((u8)a))")
    for t in ("f16", "bf16"):
        _add(f"cvt.rz.{t}.f32", "u16", "u32", f"rz_{t}(F(a))")
        _add(f"cvt.rz.{t}x2.f32", "u32", "u32 u32", f"(u32)rz_{t}(F(a)) << 16 | rz_{t}(F(b))")
    _add("cvt.rz.f32.f64", "u32", "u64", "U(rz_f64(D(a)))")
    _add("cvt.rna.tf32.f32", "u32", "u32", "rna_tf32(a)")
    _add("cvt.tf32.f32", "u32", "u32", "rn_tf32(a)")
    _add("cvt.sat.f32.f32", "u32", "u32", "U(F(a) > 0 ? F(a) < 1 ? F(a) : 1.0f : 0.0f)")
    _add("cvt.ftz.f32.f32", "u32", "u32", "U(FZ(F(a)))")


for _part in (_add_integers, _add_bits, _add_floats, _add_pairs, _add_conversions):
    _part()


def source(number: int, row: Row) -> str:
    """Return the C function of the table's instruction of this number: a loop over all threads, or over those of m."""
    names = "abcd"[: len(row.operands)]
    operands = [*enumerate(zip(row.operands, names, strict=True), 1)]
    pointers = "".join(f"const {t} *p{x} = REG({t}, {i}); " for i, (t, x) in operands)
    values = "".join(f"{t} {x} = p{x}[i]; " for _, (t, x) in operands)
    one = f"{{ {values}r[i] = ({row.result})({row.expression}); }}"
    return (
        f"HANDLER(t{number}) {{ {row.result} *r = REG({row.result}, 0); {pointers}int n = c->threads; (void)op;\n"
        f"  if (!m) {{ IVDEP for (int i = 0; i < n; i++) {one} }} else for (int i = 0; i < n; i++) if (m[i]) {one} }}"
    )

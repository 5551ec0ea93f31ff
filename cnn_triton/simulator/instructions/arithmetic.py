"""Arithmetic, comparison, selection and conversion: what the table computes, and how its keys come about."""

from ..decoder import Decoder, instruction, vector
from ..ptx import BYTES, Statement, Unsupported
from ..table import key_of

_FLOATS = ("f16", "bf16", "f32", "f64", "tf32", "f16x2", "bf16x2", "e4m3x2", "e5m2x2")


@instruction(
    "add", "sub", "mul", "mad", "div", "rem", "min", "max", "neg", "abs", "fma", "copysign", "ex2", "lg2", "rcp",
    "sqrt", "rsqrt", "sin", "cos", "tanh", "shl", "shr", "shf", "bfe", "bfi", "bfind", "popc", "clz", "brev", "prmt",
    "selp",
)  # fmt: skip
def in_table(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """One operation of the table."""
    decoder.in_table(statement)


@instruction("and", "or", "xor", "not")
def bitwise(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Of predicates, -1 is true."""
    result, *operands = statement.operands
    if modifiers[-1] == "pred":
        operands = ["1" if each == "-1" else each for each in operands]
    decoder.row(statement, key_of(statement.opcode, len(operands)), result, operands)


@instruction("lop3")
def lop3(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Any function of three bits, by its table."""
    result, *operands = statement.operands
    decoder.row(statement, "lop3.b32", result, operands)


@instruction("setp")
def setp(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Compare: into one predicate, maybe joined with another; of two halves, into two."""
    joined = next((each for each in modifiers[1:] if each in ("and", "or", "xor")), "")
    key = key_of(".".join(("setp", *(each for each in modifiers if each != joined))), 2)
    results = statement.operands[0].split("|")
    if modifiers[-1].endswith("x2"):
        for i, result in enumerate(results):
            decoder.row(statement, f"{key} {i}", result, statement.operands[1:3])
        return
    if len(results) > 1:
        raise Unsupported("two results")
    decoder.row(statement, key, results[0], statement.operands[1:3])
    if joined:
        if statement.operands[3].startswith("!"):
            raise Unsupported("a negated predicate as operand")
        decoder.row(statement, f"{joined}.b1", results[0], [results[0], statement.operands[3]])


@instruction("mov")
def mov(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Copy a register, or take a vector of registers apart or together."""
    to, origin = statement.operands
    bits = 1 if modifiers[-1] == "pred" else 8 * BYTES[modifiers[-1]]
    if to.startswith("{"):
        parts = vector(to)
        if origin in parts:
            raise Unsupported("a register taken apart into itself")
        for i, part in enumerate(parts):
            decoder.row(statement, f"mov.b{bits} {len(parts)}.{i}", part, [origin])
    elif origin.startswith("{"):
        decoder.row(statement, f"mov.b{bits} {len(vector(origin))}", to, vector(origin))
    else:
        if (bits == 1 and origin == "-1") or origin in ("%clock64", "%globaltimer"):
            origin = "1" if bits == 1 else "0"
        decoder.row(statement, f"mov.b{bits}", to, [origin])


@instruction("cvt")
def cvt(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Convert. Registers of integers may be wider than their type."""
    *flags, target, origin = (each for each in modifiers if each != "rn")
    result, *operands = statement.operands
    to, of = (8 * decoder.bytes_of(text, "b16") for text in (result, operands[0]))
    if target not in _FLOATS and origin not in _FLOATS:
        key = f"cvt.{'.'.join((*flags, target, origin))} {to}.{of}"
    elif target not in _FLOATS:
        key = f"cvt.{'.'.join((*(each for each in flags if each not in ('sat', 'ftz')), target, origin))} {to}"
    elif origin not in _FLOATS:
        key = f"cvt.{'.'.join((*flags, target, origin))} {of}"
    elif target == origin and not flags:
        key = f"mov.b{to}"
    else:
        keep = flags if target == origin else [each for each in flags if each != "ftz"]
        key = ".".join(("cvt", *keep, target, origin))
    decoder.row(statement, key, result, operands)


@instruction("cvta")
def cvta(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Generic addresses are those of global memory here; parameters lie there, and their own addresses are offsets."""
    if not {"shared", "local", "shared::cta"}.isdisjoint(modifiers):
        raise Unsupported("generic addresses of shared memory")
    if "param" in modifiers:
        to, origin = (decoder.value(each, 8) for each in statement.operands)
        decoder.emit(statement, "add.u64", [to, origin, decoder.parameter_at(0)])
        return
    decoder.row(statement, "mov.b64", statement.operands[0], statement.operands[1:])


@instruction("createpolicy")
def createpolicy(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """There is no cache."""
    decoder.row(statement, "mov.b64", statement.operands[0], ["0"])

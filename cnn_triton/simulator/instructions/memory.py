"""Loads, stores and atomics of global and shared memory, and the kernel's parameters."""

import re

from ..decoder import Decoder, instruction, vector
from ..ptx import BYTES, Statement, Unsupported

# Where a line is kept in caches and how accesses are ordered: there is neither a cache nor another order here.
_WITHOUT_EFFECT = re.compile(
    r"L[12]::|level::|(weak|relaxed|volatile|acquire|release|acq_rel|cta|cluster|gpu|sys|nc|lu|cs|cg|ca|cv|wb|wt|noftz)$"
)
_ATOMICS = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "exch": 6, "cas": 7}
_TYPES = {"u32": 0, "b32": 0, "s32": 1, "u64": 2, "b64": 2, "s64": 3, "f32": 4, "f64": 5, "f16": 6, "bf16": 7}


def _transfer(decoder: Decoder, statement: Statement, modifiers: list[str], stores: bool) -> None:
    space, *rest, kind = (each for each in modifiers if not _WITHOUT_EFFECT.match(each))
    space = space.split("::")[0]
    if space not in ("global", "shared", "param") or len(rest) > 1:
        raise Unsupported("form")
    count = int(rest[0][1:]) if rest else 1
    size, signed = int(re.sub(r"\D", "", kind)) // 8, int(kind[0] == "s")
    first, second = statement.operands[:2]
    at, registers = (first, second) if stores else (second, first)
    names = vector(registers)
    if len(names) != count:
        raise Unsupported("number of registers")
    held = next((decoder.register(each)[1] for each in names if decoder.is_register(each)), BYTES[kind])
    places = [-1 if each == "_" else decoder.value(each, held) for each in names]
    if space == "param":
        found = re.match(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]$", at)
        if not found or stores:
            raise Unsupported("parameter")
        start = decoder.parameters[found[1]].offset + int(found[2] or 0)
        for i, place in enumerate(places):
            decoder.emit(statement, "ld_param", [start + i * size, size, signed, held, place])
        return
    if any(not decoder.is_register(each) for each in statement.operands[2:]):  # a register: a cache policy
        raise Unsupported("third operand")
    name = f"{'st' if stores else 'ld'}_{space}"
    decoder.emit(statement, name, [*decoder.address(at), size, signed, count, held, *places])


@instruction("ld")
def ld(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Load a register, or a vector of them."""
    _transfer(decoder, statement, modifiers, stores=False)


@instruction("st")
def st(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Store a register, or a vector of them."""
    _transfer(decoder, statement, modifiers, stores=True)


@instruction("atom", "red")
def atom(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Read, combine and write in one; red has no result."""
    space, what, *rest, kind = (each for each in modifiers if not _WITHOUT_EFFECT.match(each))
    space = space.split("::")[0]
    if space not in ("global", "shared") or rest:
        raise Unsupported("form")
    to, *operands = statement.operands if statement.opcode.startswith("atom") else ("_", *statement.operands)
    size = BYTES[kind]
    place = -1 if to == "_" else decoder.value(to, size)
    values = [decoder.value(each, size) for each in operands[1:]]
    arguments = [*decoder.address(operands[0]), _ATOMICS[what], _TYPES[kind], place, size, *values]
    decoder.emit(statement, f"atom_{space}", arguments)


@instruction("redux")
def redux(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Combine a value over a warp."""
    _, what, *flags, kind = modifiers
    if kind not in ("u32", "s32", "b32", "f32") or (kind == "f32" and what not in ("min", "max")):
        raise Unsupported("form")
    to, value = (decoder.value(each, 4) for each in statement.operands[:2])
    flagged = [int("NaN" in flags), int("abs" in flags)]
    decoder.emit(statement, "redux", [_ATOMICS[what], _TYPES[kind], to, value, *flagged])


@instruction("prefetch", "discard", "membar", "nanosleep", "setmaxnreg", "griddepcontrol")
def without_effect(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """There is no cache and no time here, and memory is ordered as the text is."""
    decoder.emit(statement, "nop", [])

"""Matrix instructions of a warp (mma) and of a warp group (wgmma), and what brings their operands into registers."""

import re

from ..decoder import Decoder, instruction, literal, vector
from ..ptx import Statement, Unsupported

KINDS = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 3, "e5m2": 4, "s8": 5, "u8": 6}
"""Types of operands, by number in engine/numbers.h."""
BITS = (16, 16, 32, 8, 8, 8, 8)


def _shape(modifiers: list[str]) -> tuple[int, int, int]:
    m, n, k = re.findall(r"\d+", next(each for each in modifiers if re.match(r"m\d+n\d+k\d+$", each)))
    return int(m), int(n), int(k)


def _move_matrices(decoder: Decoder, statement: Statement, modifiers: list[str], stores: bool) -> None:
    number = next(int(each[1:]) for each in modifiers if re.match(r"x\d$", each))
    if "m8n8" not in modifiers or modifiers[-1] != "b16":
        raise Unsupported("form")
    first, second = statement.operands
    at, registers = (first, second) if stores else (second, first)
    places = decoder.values(registers, 4)
    if len(places) != number:
        raise Unsupported("number of registers")
    arguments = [*decoder.address(at), int("trans" in modifiers), number, *places]
    decoder.emit(statement, "stmatrix" if stores else "ldmatrix", arguments)


@instruction("ldmatrix")
def ldmatrix(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Load 8 x 8 matrices of 16-bit elements from shared memory, each row by the address of one thread."""
    _move_matrices(decoder, statement, modifiers, stores=False)


@instruction("stmatrix")
def stmatrix(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Store 8 x 8 matrices of 16-bit elements."""
    _move_matrices(decoder, statement, modifiers, stores=True)


@instruction("mma")
def mma(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """D = A B + C by a warp, all in registers."""
    m, n, k = _shape(modifiers)
    d, a, b, c = modifiers[-4:]
    registers = [each for operand in statement.operands for each in vector(operand)]
    if "row" not in modifiers or "col" not in modifiers or n != 8 or a != b or c != d:
        raise Unsupported("form")
    if a == "f64":
        if len(registers) != 2 * (m // 4) + m * k // 32 + k // 4:
            raise Unsupported("number of registers")
        decoder.emit(statement, "mma_f64", [m, k, *(decoder.value(each, 8) for each in registers)])
        return
    kind = KINDS[a]
    sums, operands = 2 if d == "f16" else 4, 16 * k * BITS[kind] // 1024
    if m != 16 or d not in ("f32", "f16", "s32") or len(registers) != 2 * sums + operands + operands // 2:
        raise Unsupported("form")
    decoder.emit(statement, "mma", [kind, k, int(d == "f16"), *(decoder.value(each, 4) for each in registers)])


@instruction("wgmma")
def wgmma(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """D += A B by four warps, asynchronous: B, and mostly A, from shared memory."""
    if modifiers[0] == "fence":
        decoder.emit(statement, "nop", [])
    elif modifiers[0] == "commit_group":
        decoder.emit(statement, "wgmma_commit", [])
    elif modifiers[0] == "wait_group":
        decoder.emit(statement, "wgmma_wait", [literal(statement.operands[0])])
    else:
        _, n, k = _shape(modifiers)
        d, a, b = modifiers[-3:]
        kind = KINDS[a]
        if d != "f32" or a != b or k * BITS[kind] != 256 or kind > 4:
            raise Unsupported("form")
        sums, first, second, scale, *numbers = statement.operands
        in_registers = first.startswith("{")
        sources = decoder.values(first, 4 if in_registers else 8)
        results = decoder.values(sums, 4)
        signs, transposed = [literal(each) for each in numbers[:2]], [literal(each) for each in numbers[2:]]
        if signs != [1, 1] or len(results) != n // 2 or len(sources) != (4 if in_registers else 1):
            raise Unsupported("operands")
        transposed = [0] * (2 - len(transposed)) + transposed  # only of matrices in shared memory, of 16 bits
        adds = decoder.value("1" if scale in ("1", "-1") else scale, 1)
        decoder.accumulators |= {*results}
        head = [kind, n, k, *transposed, int(in_registers), adds, decoder.value(second, 8)]
        decoder.emit(statement, "wgmma", [*head, *sources, *results])

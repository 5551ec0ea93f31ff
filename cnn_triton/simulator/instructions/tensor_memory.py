"""Tensor memory and its matrix instructions (tcgen05), of chips from sm_100."""

import re

from ..decoder import Decoder, instruction, literal
from ..ptx import Statement, Unsupported

# How a warp's registers lie in tensor memory: the number in engine/tcgen05.c, and the registers of ".x1".
_SHAPES = {"32x32b": (0, 1), "16x32bx2": (1, 1), "16x128b": (2, 2), "16x256b": (3, 4)}
_KINDS = {"kind::f16": 0, "kind::tf32": 1, "kind::f8f6f4": 2}


@instruction("tcgen05")
def tcgen05(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Allocation, loads and stores by warps; products by one thread, whose end an mbarrier tells."""
    what, operands = modifiers[0], statement.operands
    if "cta_group::2" in modifiers:
        raise Unsupported("pairs of blocks")
    if what == "alloc":
        columns = decoder.value(operands[1], 4)
        decoder.emit(statement, "tcgen05_alloc", [*decoder.address(operands[0]), columns])
    elif what == "dealloc":
        decoder.emit(statement, "tcgen05_dealloc", [decoder.value(each, 4) for each in operands])
    elif what in ("ld", "st"):
        _move(decoder, statement, modifiers, stores=what == "st")
    elif what in ("wait::ld", "wait::st"):
        decoder.emit(statement, "tcgen05_wait", [int(what == "wait::st")])
    elif what == "mma":
        _mma(decoder, statement, modifiers)
    elif what == "commit":
        if "mbarrier::arrive::one" not in modifiers or len(operands) > 1:
            raise Unsupported("form")
        decoder.emit(statement, "tcgen05_commit", decoder.address(operands[0]))
    elif what in ("relinquish_alloc_permit", "fence::before_thread_sync", "fence::after_thread_sync"):
        decoder.emit(statement, "nop", [])
    else:
        raise Unsupported("form")


def _move(decoder: Decoder, statement: Statement, modifiers: list[str], stores: bool) -> None:
    shape = next(each for each in modifiers if re.match(r"\d+x\d+b", each))
    count = next(int(each[1:]) for each in modifiers if re.match(r"x\d+$", each))
    if shape not in _SHAPES or modifiers[-1] != "b32" or {"pack::16b", "unpack::16b"} & {*modifiers}:
        raise Unsupported("form")
    at = next(each for each in statement.operands if each.startswith("["))
    registers = next(each for each in statement.operands if not each.startswith("[") and not each.isdigit())
    split = next((literal(each) for each in statement.operands if each.isdigit()), 0)
    places = decoder.values(registers, 4)
    number, each = _SHAPES[shape]
    if len(places) != each * count:
        raise Unsupported("number of registers")
    if not stores:
        decoder.loaded |= {*places}
    name = "tcgen05_st" if stores else "tcgen05_ld"
    decoder.emit(statement, name, [*decoder.address(at), number, split, len(places), *places])


def _mma(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    kind = next((each for each in modifiers if each.startswith("kind::")), "")
    if kind not in _KINDS or len(modifiers) != 3 or len(statement.operands) != 5:
        raise Unsupported("form")
    to, first, second, description, adds = statement.operands
    in_cells = first.startswith("[")
    a = decoder.address(first) if in_cells else (decoder.value(first, 8), 8, 0)
    numbers = [decoder.value(second, 8), decoder.value(description, 4), decoder.value(adds, 1)]
    decoder.emit(statement, "tcgen05_mma", [*decoder.address(to), _KINDS[kind], *a, *numbers, int(in_cells)])

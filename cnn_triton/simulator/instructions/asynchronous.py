"""Asynchronous copies, tensor maps, mbarriers, and the fences between the copy engine and threads."""

import re

from ..decoder import Decoder, instruction, literal, vector
from ..ptx import Statement, Unsupported

# Fields of a tensor map, by number in engine/tma.c.
_FIELDS = {"global_address": 0, "rank": 1, "box_dim": 2, "global_dim": 3, "global_stride": 4, "element_stride": 5,
           "elemtype": 6, "interleave_layout": 7, "swizzle_mode": 8, "fill_mode": 9}  # fmt: skip
_TENSOR = {"shared::cta", "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes", "bulk_group",
           "L2::cache_hint", "add"}  # fmt: skip


@instruction("cp")
def cp(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Copies of 4 to 16 bytes a thread, in groups; boxes of tensors by the copy engine (TMA)."""
    form = ".".join(modifiers)
    operands = statement.operands
    if form == "async.commit_group":
        decoder.emit(statement, "cp_async_commit", [])
    elif form == "async.wait_group":
        decoder.emit(statement, "cp_async_wait", [literal(operands[0])])
    elif form == "async.wait_all":
        decoder.emit(statement, "cp_async_wait", [-1])
    elif form == "async.bulk.commit_group":
        decoder.emit(statement, "bulk_commit", [])
    elif form.startswith("async.bulk.wait_group"):
        decoder.emit(statement, "bulk_wait", [literal(operands[0])])
    elif form.startswith("async.bulk.tensor."):
        _box(decoder, statement, modifiers[2:], adds=False)
    elif form.startswith("reduce.async.bulk.tensor."):
        _box(decoder, statement, modifiers[3:], adds=True)
    elif re.match(r"async\.c[ag]\.shared(::cta)?\.global", form):
        to, origin = decoder.address(operands[0]), decoder.address(operands[1])
        size = decoder.value(operands[3], 4) if len(operands) > 3 else -1
        if len(operands) > 4 and "cache_hint" not in form:
            raise Unsupported("operands")
        places = [to.register, to.offset, origin.register, origin.offset, literal(operands[2]), size, to.bytes]
        decoder.emit(statement, "cp_async", places)
    else:
        raise Unsupported("form")


def _box(decoder: Decoder, statement: Statement, modifiers: list[str], adds: bool) -> None:
    """A copy of a box; the modifiers are tensor, the rank, target, origin and others."""
    rank, flags = int(modifiers[1][0]), modifiers[2:]
    if {*flags} - _TENSOR:
        raise Unsupported(", ".join({*flags} - _TENSOR))
    found = re.match(r"\[\s*([^,]+?)\s*,\s*(\{.*\})\s*\]$", next(each for each in statement.operands if "{" in each))
    if not found or len(vector(found[2])) != rank:
        raise Unsupported("box")
    tensor, at = decoder.address(f"[{found[1]}]"), decoder.values(found[2], 4)
    if flags[0].startswith("shared"):
        to, barrier = decoder.address(statement.operands[0]), decoder.address(statement.operands[2])
        decoder.emit(statement, "tma_load", [*to, *tensor, *barrier, rank, *at])
    else:
        origin = decoder.address(statement.operands[1])
        decoder.emit(statement, "tma_store", [*tensor, *origin, int(adds), rank, *at])


@instruction("tensormap")
def tensormap(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Change a field of a tensor map, or copy a map to global memory."""
    operands = statement.operands
    if modifiers[0] == "replace":
        size = 8 if modifiers[-1] == "b64" else 4
        ordinal = literal(operands[1]) if len(operands) == 3 else 0
        where = [*decoder.address(operands[0]), int("shared::cta" in modifiers)]
        value = decoder.value(operands[-1], size)
        decoder.emit(statement, "tensormap_replace", [*where, _FIELDS[modifiers[2]], ordinal, value, size])
    elif modifiers[0] == "cp_fenceproxy":
        to, origin = decoder.address(operands[0]), decoder.address(operands[1])
        decoder.emit(statement, "tensormap_copy", [*to, *origin, literal(operands[2])])
    else:
        raise Unsupported("form")


@instruction("fence")
def fence(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Between threads' accesses and those of the copy engine and the tensor cores; others have no effect here."""
    if modifiers[:2] == ["proxy", "async"] or modifiers[:2] == ["proxy", "async::generic"]:
        decoder.emit(statement, "fence_async", [])
    elif modifiers[:2] == ["proxy", "tensormap::generic"] and "acquire" in modifiers:
        decoder.emit(statement, "tensormap_acquire", decoder.address(statement.operands[0]))
    else:
        decoder.emit(statement, "nop", [])


@instruction("mbarrier")
def mbarrier(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Barriers in shared memory, which count arrivals of threads and bytes of the copy engine."""
    what, operands = modifiers[0], statement.operands
    if what == "init":
        decoder.emit(statement, "mbar_init", [*decoder.address(operands[0]), decoder.value(operands[1], 4)])
    elif what == "inval":
        decoder.emit(statement, "mbar_inval", decoder.address(operands[0]))
    elif what == "arrive":
        if operands[0] != "_" and decoder.register(operands[0])[1] != 8:
            raise Unsupported("state")
        expects = "expect_tx" in modifiers
        last = decoder.value(operands[2], 4) if len(operands) > 2 else -1
        counts = [-1, last] if expects else [last, -1]  # arrivals, bytes
        decoder.emit(statement, "mbar_arrive", [*decoder.address(operands[1]), *counts, 1])
    elif what == "expect_tx":
        decoder.emit(statement, "mbar_arrive", [*decoder.address(operands[0]), -1, decoder.value(operands[1], 4), 0])
    elif what in ("try_wait", "test_wait") and "parity" in modifiers:
        place = decoder.value(operands[0], 1)
        decoder.emit(statement, "", [place, *decoder.address(operands[1]), decoder.value(operands[2], 4)], "try_wait")
    else:
        raise Unsupported("form")

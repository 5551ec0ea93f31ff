"""From statements to the engine's operations: registers, constants, addresses, and the list of operations.

Each register is an array with an element for each thread of the block, at a multiple of 64 bytes in the register file.
Literals, addresses of shared memory and special registers are registers, too, which are filled once.
"""

import re
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .ptx import BYTES, Kernel, Statement, Unsupported, split
from .table import TABLE, key_of

__all__ = ["CONTROL", "HANDLERS", "SHARED_BASE", "SPECIAL", "Address", "Decoder", "Operation", "Program", "instruction"]

SHARED_BASE = 1024  # where a block's shared memory begins; the first kilobyte is the system's
# Operations of the engine that are not in the table, each a function of engine/*.c.
SPECIAL = (
    "ld_global", "st_global", "ld_shared", "st_shared", "ld_param", "atom_global", "atom_shared", "cp_async",
    "cp_async_commit", "cp_async_wait", "shfl", "elect", "vote", "activemask", "redux", "bar_warp", "nop", "trap",
    "fence_async", "ldmatrix", "stmatrix", "mma", "mma_f64", "wgmma", "wgmma_commit", "wgmma_wait", "mbar_init",
    "mbar_inval", "mbar_arrive", "tensormap_replace", "tensormap_copy", "tensormap_acquire", "tma_load", "tma_store",
    "bulk_commit", "bulk_wait", "tcgen05_alloc", "tcgen05_dealloc", "tcgen05_ld", "tcgen05_st", "tcgen05_wait",
    "tcgen05_mma", "tcgen05_commit",
)  # fmt: skip
HANDLERS = {name: i for i, name in enumerate((*TABLE, *SPECIAL))}
_OPERANDS_FROM = {HANDLERS["st_global"]: 7, HANDLERS["st_shared"]: 7, HANDLERS["tcgen05_st"]: 6}  # among arguments
_MOVES = {number for name, number in HANDLERS.items() if name.startswith("mov.")}
# What the scheduler itself does, by number in engine/engine.h.
CONTROL = {"bra": 1, "exit": 2, "bar": 3, "try_wait": 4, "bar_arrive": 5, "brx": 6}
# Special registers of 32 bits. The engine fills %ctaid; the others are filled once a program or a launch.
_SPECIAL_REGISTERS = {f"%{name}.{axis}" for name in ("tid", "ctaid", "nctaid", "ntid") for axis in "xyz"} | {
    "%laneid", "%warpid", "%cluster_ctarank", "%cluster_nctarank", "%clusterid.x", "%nclusterid.x", "%smid", "%clock",
    "%globaltimer_lo", "%lanemask_lt",
}  # fmt: skip


class Operation(NamedTuple):
    """One operation as the engine reads it (Op in engine/engine.h): its handler's number; the place of its predicate's
    register or -1, and whether that is negated; where its arguments begin in the pool, and how many they are; flags;
    what the scheduler does; the line of the text."""

    handler: int
    predicate: int
    negated: int
    arguments: int
    length: int
    flags: int
    control: int
    line: int


class Address(NamedTuple):
    """An operand in brackets: the register's place and bytes, and the offset. Three arguments of an operation."""

    register: int
    bytes: int
    offset: int


class Program(NamedTuple):
    """A decoded kernel.

    operations, pool: the operations, and all their arguments one after the other
    statements:       by line of the text
    units:            of the register file, 64 bytes each
    constants:        (place, bytes, value) of registers that hold one
    special:          places of special registers by name
    parameter_bytes:  of all parameters
    parameters_at:    (place, offset) of registers that hold a parameter's address
    shared:           bytes of shared memory with a fixed size
    """

    kernel: Kernel
    operations: list[Operation]
    pool: list[int]
    statements: dict[int, Statement]
    units: int
    constants: list[tuple[int, int, int]]
    special: dict[str, int]
    parameter_bytes: int
    parameters_at: list[tuple[int, int]]
    shared: int


class Decoder:
    """The state of decoding one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.units = 0
        self.operations: list[Operation] = []
        self.pool: list[int] = []
        self.constants: list[tuple[int, int, int]] = []
        self.special: dict[str, int] = {}
        self.parameters = {each.name: each for each in kernel.parameters}
        self.parameters_at: list[tuple[int, int]] = []
        self.branches: list[tuple[int, str]] = []  # places in the pool that get a label's operation
        self.tables: dict[str, tuple[str, ...]] = {}  # labels that an indexed branch may go to, by the table's name
        self.accumulators: set[int] = set()  # registers that asynchronous matrix instructions write
        self.loaded: set[int] = set()  # registers that loads from tensor memory write
        self._registers: dict[str, tuple[int, int]] = {}
        self._known: dict[tuple[int, int], int] = {}
        self._shared_at: dict[str, int] = {}
        end = 0
        for name, (alignment, size) in kernel.shared.items():
            if size:
                self._shared_at[name] = -(-end // alignment) * alignment
                end = self._shared_at[name] + size
        self.shared = -(-end // 16) * 16
        self._shared_at |= {name: self.shared for name, (_, size) in kernel.shared.items() if not size}

    def new(self, size: int) -> int:
        """Return the place of a new register of so many bytes."""
        place = self.units
        self.units += -(-self.kernel.threads * size // 64)
        return place

    def constant(self, value: int, size: int) -> int:
        """Return the place of a register that holds a value."""
        value &= (1 << 8 * size) - 1
        if (value, size) not in self._known:
            self._known[value, size] = self.new(size)
            self.constants.append((self._known[value, size], size, value))
        return self._known[value, size]

    def is_register(self, text: str) -> bool:
        """True if an operand names a register."""
        return text.startswith("%") or text in self.kernel.registers

    def register(self, name: str) -> tuple[int, int]:
        """Return the place and the bytes of a register."""
        if name not in self._registers:
            stem = re.match(r"(%?[A-Za-z_]+)\d+$", name)
            if name in _SPECIAL_REGISTERS:
                size = 4
                self.special[name] = self.units
            elif name in self.kernel.registers:
                size = self.kernel.registers[name]
            elif stem and stem[1] in self.kernel.registers:
                size = self.kernel.registers[stem[1]]
            else:
                raise Unsupported(f"register {name}")
            self._registers[name] = self.new(size), size
        return self._registers[name]

    def bytes_of(self, text: str, kind: str) -> int:
        """Return the bytes of an operand's register; of a literal those of the type, 2 at least."""
        return self.register(text)[1] if self.is_register(text) else BYTES[kind]

    def value(self, text: str, size: int) -> int:
        """Return the place of an operand with so many bytes: a register, or a constant's."""
        if self.is_register(text):
            place, held = self.register(text)
            if held != size:
                raise Unsupported(f"{text} has {held} bytes, not {size}")
            return place
        if text in self._shared_at:
            return self.constant(SHARED_BASE + self._shared_at[text], size)
        if text in self.parameters:
            return self.constant(self.parameters[text].offset, size)  # an address in the space of parameters
        return self.constant(literal(text), size)

    def parameter_at(self, offset: int) -> int:
        """Return the place of a register with a parameter's generic address."""
        place = self.new(8)
        self.parameters_at.append((place, offset))
        return place

    def values(self, text: str, size: int) -> list[int]:
        """Return the places of a vector's registers, or of one register's."""
        return [self.value(each, size) for each in vector(text)]

    def address(self, text: str) -> Address:
        """Return an operand [register + offset] or [name + offset]."""
        found = re.match(r"\[\s*([%\w$@]+)\s*(?:\+\s*(-?\w+))?\s*\]$", text)
        if not found:
            raise Unsupported(f"address {text}")
        base, offset = found[1], int(found[2] or "0", 0)
        if self.is_register(base):
            return Address(*self.register(base), offset)
        if base in self.parameters:
            return Address(self.parameter_at(self.parameters[base].offset), 8, offset)
        return Address(self.value(base, 4), 4, offset)

    def emit(self, statement: Statement, handler: str, arguments: Sequence[int], control: str = "") -> None:
        """Add an operation."""
        guard = statement.predicate
        place = self.register(guard.lstrip("!"))[0] if guard else -1
        number = 0 if control else HANDLERS[handler]
        row = (number, place, int(guard.startswith("!")), len(self.pool), len(arguments), 0, CONTROL.get(control, 0))
        self.operations.append(Operation(*row, statement.line))
        self.pool += arguments

    def row(self, statement: Statement, key: str, result: str, operands: Sequence[str]) -> None:
        """Add an operation of the table."""
        if key not in TABLE:
            raise Unsupported(f"{key} is not in the table")
        row = TABLE[key]
        if len(row.operands) != len(operands):
            raise Unsupported(f"{key} with {len(operands)} operands")
        places = [self.value(text, _size(kind)) for text, kind in zip(operands, row.operands, strict=True)]
        if result != "_":
            self.emit(statement, key, [self.value(result, _size(row.result)), *places])

    def marked(self) -> list[Operation]:
        """Return the operations, marked for the engine: 1 if one touches what a wgmma writes, other than wgmma, 2 if it
        is a mov from what a tcgen05.ld writes, 4 if it reads that otherwise."""
        marked = []
        for each in self.operations:
            registers = self.pool[each.arguments : each.arguments + each.length]
            by_wgmma = each.handler != HANDLERS["wgmma"] and not self.accumulators.isdisjoint(registers)
            first = 1 if each.handler < len(TABLE) else _OPERANDS_FROM.get(each.handler, len(registers))
            by_load = not each.control and not self.loaded.isdisjoint(registers[first:])
            marked.append(each._replace(flags=by_wgmma + by_load * (2 if each.handler in _MOVES else 4)))
        return marked

    def in_table(self, statement: Statement) -> None:
        """Add an operation of the table, by the statement's own opcode and operands."""
        result, *operands = statement.operands
        self.row(statement, key_of(statement.opcode, len(operands)), result, operands)


def _size(kind: str) -> int:
    return int(kind[1:]) // 8


def vector(text: str) -> list[str]:
    """Return the elements of a vector in braces, or the one operand."""
    return split(text[1:-1]) if text.startswith("{") else [text]


def literal(text: str) -> int:
    """Return a number's bits."""
    if found := re.match(r"0[fF]([0-9a-fA-F]{8})$|0[dD]([0-9a-fA-F]{16})$", text):
        return int(found[1] or found[2], 16)
    if re.match(r"-?\d+\.\d+$", text):
        return int(struct.unpack("<I", struct.pack("<f", float(text)))[0])
    if found := re.match(r"(-?)(0[xX][0-9a-fA-F]+|\d+)[uU]?$", text):
        return int(found[1] + found[2], 0)
    raise Unsupported(f"operand {text}")


Decode = Callable[[Decoder, Statement, list[str]], None]
INSTRUCTIONS: dict[str, Decode] = {}
"""What decodes a statement, by the first word of its opcode; the list is of the other words."""


def instruction(*names: str) -> Callable[[Decode], Decode]:
    """Register what decodes instructions of these names."""

    def register(decode: Decode) -> Decode:
        INSTRUCTIONS.update(dict.fromkeys(names, decode))
        return decode

    return register

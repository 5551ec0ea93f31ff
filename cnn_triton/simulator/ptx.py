"""PTX text, read: a kernel's declarations and statements, each with its place in the Python source."""

import re
from typing import NamedTuple

__all__ = ["BYTES", "Kernel", "Parameter", "Place", "Statement", "Unsupported", "parse", "split"]

# Bytes of a register by its type; a predicate has a byte here.
BYTES = {"pred": 1, "b128": 16} | {f"{kind}{8 * n}": max(n, 2) for n in (1, 2, 4, 8) for kind in "bus"}
BYTES |= {"f16": 2, "f32": 4, "f64": 8}


class Unsupported(Exception):
    """An instruction, or a form of one, that the simulator does not know."""


class Place(NamedTuple):
    """A line of the Python source, file in full."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{'/'.join(self.file.split('/')[-2:])}:{self.line}"


class Statement(NamedTuple):
    """One instruction of the text.

    line:      its number in the text
    predicate: "", or the guard's register, "%p1" or "!%p1"
    opcode:    "ld.global.v4.b32"
    operands:  as written, braces and brackets in them
    place:     where in the Python source it comes from, None where the compiler does not say
    """

    line: int
    predicate: str
    opcode: str
    operands: tuple[str, ...]
    place: Place | None

    def __str__(self) -> str:
        guard = f"@{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


class Parameter(NamedTuple):
    """A parameter of the kernel: its name, where it begins among the parameters' bytes, and how many it has."""

    name: str
    offset: int
    bytes: int


class Kernel(NamedTuple):
    """A kernel's text, read.

    name, threads: the kernel's name, and the threads of a block
    parameters:    in order
    shared:        arrays in shared memory by name, (alignment, bytes); 0 bytes for the one that a launch sizes
    registers:     bytes by register name, or by the stem of numbered ones ("%r")
    body:          statements, and labels as strings, in order
    lines:         the text
    """

    name: str
    threads: int
    parameters: tuple[Parameter, ...]
    shared: dict[str, tuple[int, int]]
    registers: dict[str, int]
    body: tuple[Statement | str, ...]
    lines: tuple[str, ...]


def split(text: str) -> list[str]:
    """Return the parts of a list, split at commas that are outside of brackets and braces."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def parse(text: str) -> Kernel:
    """Return the one kernel of a module. Errors: Unsupported for a text with functions, or without a kernel."""
    return _Reader(text).read()


_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
_STATEMENT = re.compile(r"(?:@(!?)([%\w$@]+)\s+)?([\w.:]+)\s*(.*)$", re.S)
_LABEL = re.compile(r"([\w$.]+):(?!:)\s*")
_SKIPPED = (".version", ".target", ".address_size", ".file", ".pragma", ".visible .global", ".global")


class _Scope(NamedTuple):
    """A block in braces, as inline assembly has it: its number, and its own names' unique ones."""

    number: int
    names: dict[str, str]


class _Reader:
    """Reads a module line by line."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.files = {int(n): f"{a}/{b}" if b else a for n, a, b in _FILE.findall(text)}
        self.strings = {*re.findall(r"^\.global\s.*\.b8\s+(\w+)\[", text, re.M)}  # what assertions say
        self.name, self.threads = "", 0
        self.parameters: list[Parameter] = []
        self.shared: dict[str, tuple[int, int]] = {}
        self.registers: dict[str, int] = {}
        self.body: list[Statement | str] = []
        self.place: Place | None = None
        self.scopes: list[_Scope] = []
        self.blocks, self.ended = 0, False

    def read(self) -> Kernel:
        depth, pending, began = 0, "", 0  # pending: a statement that goes on in the next line
        for number, raw in enumerate(self.lines, 1):
            line = raw.split("//")[0].strip()
            if line.startswith(".section"):
                break
            if line.startswith(".loc"):
                _, file, at, *_ = line.split()
                self.place = Place(self.files.get(int(file), file), int(at)) if int(at) else None
            elif not line or (not pending and line.startswith(_SKIPPED)):
                continue
            elif not depth:
                depth = self._declaration(number, line)
            else:
                began = began if pending else number
                pending = self._code(began, f"{pending} {line}".strip())
                if self.ended:
                    break
        if not self.name:
            raise Unsupported("a text without a kernel")
        return Kernel(
            self.name, self.threads, tuple(self.parameters), self.shared, self.registers, tuple(self.body),
            tuple(self.lines),
        )  # fmt: skip

    def _declaration(self, number: int, line: str) -> int:
        """Read a line before the kernel's body; return 1 if the body begins."""
        if found := re.search(r"\.entry\s+([\w$]+)", line):
            self.name = found[1]
        if re.search(r"\.func\b", line) and "__assertfail" not in line:
            raise Unsupported(f"line {number}: a function besides the kernel: {line}")
        self._shared(line)
        if (found := _PARAMETER.search(line)) and self.name:
            size = {"b8": 1, "u8": 1, "s8": 1}.get(found[2], BYTES[found[2]])
            end = self.parameters[-1].offset + self.parameters[-1].bytes if self.parameters else 0
            align = int(found[1] or size)
            self.parameters.append(Parameter(found[3], -(-end // align) * align, size * int(found[4] or 1)))
        if found := re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", line):
            self.threads = int(found[1])
        return int(line.startswith("{"))

    def _shared(self, line: str) -> bool:
        found = _SHARED.search(line)
        if found:
            self.shared[found[2]] = int(found[1]), int(found[3] or 0)
        return bool(found)

    def _code(self, number: int, text: str) -> str:
        """Read the statements in a piece of the body; return the last one's beginning if its end is missing."""
        while text:
            if text[0] == "{":
                self.blocks += 1
                self.scopes.append(_Scope(self.blocks, {}))
                text = text[1:].strip()
            elif text[0] == "}":
                if not self.scopes:
                    self.ended = True
                    return ""
                self.scopes.pop()
                text = text[1:].strip()
            elif found := _LABEL.match(text):
                self.body.append(self._own(found[1]))
                text = text[found.end() :]
            else:
                statement, semicolon, rest = text.partition(";")
                if not semicolon:
                    return text
                if statement.strip():
                    self._statement(number, statement.strip())
                text = rest.strip()
        return ""

    def _own(self, name: str) -> str:
        """Return a block's own name for one that is declared in it; a label is declared where it stands or is used."""
        if not self.scopes:
            return name
        return self.scopes[-1].names.setdefault(name, f"{name}@{self.scopes[-1].number}")

    def _resolved(self, name: str) -> str:
        return next((each.names[name] for each in reversed(self.scopes) if name in each.names), name)

    def _statement(self, number: int, text: str) -> None:
        if text.startswith(".reg"):
            _, kind, names = text.split(None, 2)
            for name in map(str.strip, names.split(",")):
                numbered = re.match(r"(.*)<(\d+)>$", name)
                if numbered and not self.scopes:
                    self.registers[numbered[1]] = BYTES[kind[1:]]
                    continue
                for each in [f"{numbered[1]}{i}" for i in range(int(numbered[2]))] if numbered else [name]:
                    self.registers[self._own(each)] = BYTES[kind[1:]]
            return
        if text.startswith(".branchtargets") and isinstance(self.body[-1], str):
            targets = (self.body[-1], *split(text.removeprefix(".branchtargets")))
            self.body.append(Statement(number, "", "branchtargets", targets, self.place))
            return
        if text.startswith((".param", "st.param")):  # of the call of an assertion
            return
        if re.match(r"call\S*\s+__assertfail\b", text):
            text = re.sub(r"call\S*\s.*", "trap", text)
        text = re.sub(r"\w+$", lambda found: "0" if found[0] in self.strings else found[0], text)
        if text.startswith("."):
            if not self._shared(text) and not text.startswith(".pragma"):
                raise Unsupported(f"line {number}: {text}")
            return
        if self.scopes:
            target = text.split()[-1]
            if " bra" in f" {text}" and re.match(r"[A-Za-z_]\w*$", target):
                self._own(target)
            text = re.sub(r"%?[A-Za-z_$][\w$]*", lambda found: self._resolved(found[0]), text)
        found = _STATEMENT.match(text)
        if not found:
            raise Unsupported(f"line {number}: {text}")
        predicate = f"{found[1]}{found[2]}" if found[2] else ""
        self.body.append(Statement(number, predicate, found[3], tuple(split(found[4])), self.place))

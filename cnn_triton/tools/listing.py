"""A kernel's source beside its code; each line of code has the places in the source that it is from."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..kernels.compiler import figures

__all__ = ["Line", "Source", "listings", "sources"]

Place = tuple[str, int]  # a file, and a line of it


class Line(NamedTuple):
    """A line of code, and the places in the source that it is from: its own, then those of its callers, outwards."""

    text: str
    places: tuple[Place, ...]


class Source(NamedTuple):
    """The functions of a file that code is from. lines: (number, text) of each."""

    path: str
    lines: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        """The file's name with its folder's."""
        return "/".join(Path(self.path).parts[-2:])


_CHAIN = re.compile(r"([^\s\[\]]*):(\d+):\d+")
_FILE = re.compile(r'\s*\.file\s+(\d+) "([^"]*)"(?: "([^"]*)")?')
_LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) [^/;]*(?://|;)?(.*)")
_SASS_LINE = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
_SASS = re.compile(r"\s*(?:/\*[0-9a-f]{4,}\*/.*;|\.L_\w+:)")


def listings(chip: str, texts: dict[str, Any]) -> dict[str, list[Line]]:
    """Return the listings of a kernel by name, "PTX" and "SASS", or "AMDGCN", from its texts (aot.recording)."""
    if not chip.startswith("sm_"):
        return {"AMDGCN": _assembly(texts["amdgcn"])}
    ptx = _assembly(texts["ptx"])
    return {"PTX": ptx, "SASS": _sass(figures.disassembled(chip, texts), ptx)}


def _assembly(text: str) -> list[Line]:
    """Return the lines of PTX or of AMD's assembly. The comment behind a .loc has a place's callers, for example
    "device.py:63:23 @[ conv2d.py:77:73 ]"; lines without a place are the compiler's own."""
    files: dict[str, str] = {}
    for line in text.splitlines():
        if found := _FILE.match(line):
            number, folder, name = found.groups()
            files[number] = f"{folder}/{name}" if name else folder
    names = Counter(Path(path).name for path in set(files.values()))
    by_name = {Path(path).name: path for path in files.values() if names[Path(path).name] == 1}
    lines: list[Line] = []
    places: tuple[Place, ...] = ()
    for line in text.split("\t.section\t.debug")[0].split(".Lfunc_end0:")[0].splitlines():
        if found := _LOC.match(line):
            number, row, comment = found.groups()
            outer = _CHAIN.findall(comment)[1:]
            chain = ((files.get(number, ""), int(row)), *((by_name.get(name, name), int(at)) for name, at in outer))
            places = tuple(place for place in chain if place[1] > 0)
        elif not re.match(r"\s*\.file\s|\s*(?:\$L__|\.L)(?:tmp|func)\S*:|\s*(?:;|//)|\s*$", line):
            instruction = re.match(r"\s+(?:@!?%p\d+\s+)?[a-z]", line) and not re.match(r"\s*\.", line)
            lines.append(Line(re.sub(r"\s+(?://|;).*", "", line).expandtabs(8), places if instruction else ()))
    return lines


def _sass(text: str, ptx: list[Line]) -> list[Line]:
    """Return the lines of machine code. The disassembler names only a line's own place; its callers are those that all
    the PTX from that place has."""
    callers: dict[Place, Counter[Place]] = {}
    count: Counter[Place] = Counter()
    for line in ptx:
        if line.places:
            count[line.places[0]] += 1
            callers.setdefault(line.places[0], Counter()).update(dict.fromkeys(line.places[1:], 1))
    lines: list[Line] = []
    places: tuple[Place, ...] = ()
    for row in text.splitlines():
        if found := _SASS_LINE.match(row):
            own = (found[1], int(found[2]))
            always = [caller for caller, times in callers.get(own, Counter()).items() if times == count[own]]
            places = (own, *always)
        elif _SASS.match(row):
            lines.append(Line(row.strip("\n").expandtabs(8), places if "/*" in row else ()))
    return lines


def sources(listed: list[list[Line]], first: str) -> list[Source]:
    """Return the functions that listings are from, by file, the kernel's first."""
    found: dict[str, set[int]] = {first: set()}
    for lines in listed:
        for line in lines:
            for path, row in line.places:
                found.setdefault(path, set()).add(row)
    return [each for path, rows in found.items() if (each := _functions(path, rows)).lines]


def _functions(path: str, rows: set[int]) -> Source:
    """Return the functions of a file that have one of these lines, each as a whole."""
    try:
        text = Path(path).read_text()
        tree = ast.parse(text)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return Source(path, ())
    kept: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            span = range(start, (node.end_lineno or node.lineno) + 1)
            kept |= {*span} if rows & {*span} else set()
    lines = text.splitlines()
    return Source(path, tuple((row, lines[row - 1]) for row in sorted(kept)))

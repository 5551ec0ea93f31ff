"""Disassembled machine code of NVIDIA and AMD: the main loop, its instructions, loads and FLOPs.

An instruction is a `Step`: its name, and the steps that may follow it. Loops are the strongly connected parts of this
graph, so a wait that the compiler put behind the kernel's end still belongs to the loop that jumps there and back.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple


class Step(NamedTuple):
    """One instruction: its name with modifiers, the steps it may jump to, and True if the next one may follow."""

    name: str
    jumps: tuple[int, ...] = ()
    falls: bool = True


_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+ )? *([A-Z][\w.]*)([^;\n]*)")
_JUMPS = ("BRA", "JMP", "CALL", "BSSY", "WARPSYNC")  # BSSY names where its BSYNC goes on
_ENDS = ("EXIT", "RET", "BRX")
_AMD_ENDS = ("s_branch", "s_endpgm", "s_setpc_b64")


def nvidia(text: str) -> list[Step]:
    """Return the steps of a kernel disassembled by nvdisasm --binary, where jumps name addresses."""
    lines = _SASS.findall(text)
    at = {int(address, 16): index for index, (address, *_) in enumerate(lines)}
    steps = []
    for _, guard, name, operands in lines:
        base = name.split(".")[0]
        named = re.findall(r"0x[0-9a-f]+", operands) if base in _JUMPS else []
        jumps = tuple(at[a] for a in (int(n, 16) for n in named) if a in at)
        always = base in _ENDS or (base in ("BRA", "JMP") and operands.lstrip().startswith("0x"))
        steps.append(Step(name, jumps, bool(guard) or not always))
    return steps


def amd(text: str) -> list[Step]:
    """Return the steps of a kernel in LLVM's assembly, where jumps name labels."""
    lines = re.findall(r"^(?:(\.LBB\w+):|[ \t]+([a-z]\w+)([^;\n]*))", text.split(".Lfunc_end")[0], re.MULTILINE)
    labels, count = {}, 0
    for label, name, _ in lines:
        if label:
            labels[label] = count
        count += bool(name)
    return [
        Step(
            name,
            tuple(labels[label] for label in re.findall(r"\.LBB\w+", operands)),
            name not in _AMD_ENDS,
        )
        for label, name, operands in lines
        if not label
    ]


def listed(lines: Iterable[str]) -> list[Step]:
    """Return the steps of the instructions in a listing (is_instruction), in which jumps name labels."""
    found: list[tuple[str, str, str]] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            found.append((instruction[1] or "", instruction[2], instruction[3]))
    steps = []
    for guard, name, operands in found:
        base = name.split(".")[0]
        always = base in (*_ENDS, *_AMD_ENDS) or (base in ("BRA", "JMP") and operands.lstrip().startswith("`"))
        jumps = tuple(labels[each] for each in re.findall(r"\.L\w+", operands) if each in labels)
        steps.append(Step(name, jumps, bool(guard) or not always))
    return steps


_INSTRUCTION = re.compile(r"\s+(?:/\*[0-9a-f]{4,}\*/\s+)?(@!?U?P\w+\s+)?([A-Za-z][\w.]*)([^;]*)")


def is_instruction(line: str) -> bool:
    """True if the line of a listing is an instruction."""
    return bool(_INSTRUCTION.match(line))


def depths(steps: list[Step]) -> list[int]:
    """Return for each step how many loops it is in."""
    found = [0] * len(steps)
    for loop in _loops(steps):
        for i in loop:
            found[i] += 1
    return found


def main_loop(steps: list[Step]) -> tuple[list[str], bool]:
    """Return (names, True): the instructions of the innermost loop with the most matrix instructions; in a kernel
    without them, with the most fused multiply-adds; without those, with the most global loads. (names, False), those of
    the whole kernel, if no loop has any."""
    names = [step.name for step in steps]
    for works in (is_matrix, is_fma, load_bytes):
        if any(map(works, names)):
            break
    else:
        return names, False
    inner: list[list[int]] = []
    for loop in _loops(steps):  # from the outside inwards
        if any(works(names[i]) for i in loop):
            inner = [other for other in inner if not set(loop) < set(other)] + [loop]
    if not inner:
        return names, False
    return [names[i] for i in max(inner, key=lambda loop: sum(bool(works(names[i])) for i in loop))], True


def _loops(steps: list[Step]) -> Iterator[list[int]]:
    """Yield every loop's steps, those of an outer loop before those of the loops inside it."""
    starts = {0} | {jump for step in steps for jump in step.jumps}
    starts |= {i + 1 for i, step in enumerate(steps[:-1]) if step.jumps or not step.falls}
    blocks = [range(*pair) for pair in pairwise([*sorted(starts), len(steps)])]
    number = {block.start: n for n, block in enumerate(blocks)}
    after = []  # for each block, a bit for every block that may follow
    for block in blocks:
        last = steps[block.stop - 1]
        follow = [*last.jumps, block.stop] if last.falls else last.jumps
        after.append(sum({1 << number[start] for start in follow if start in number}))
    reached, seen = 1, 0
    while reached != seen:
        reached, seen = reached | _union(after[n] for n in _bits(reached & ~seen)), reached
    todo = [reached]
    while todo:
        for part in _cycles(after, todo.pop()):
            yield [i for n in _bits(part) for i in blocks[n]]
            entries = part & (1 | _union(after[n] for n in _bits(reached & ~part)))
            todo.append(part & ~entries)  # a cycle without the entries is an inner loop


def _cycles(after: list[int], within: int) -> set[int]:
    """Return the strongly connected parts of the blocks `within`, as bits, by Warshall's algorithm."""
    nodes = list(_bits(within))
    reach = {n: after[n] & within for n in nodes}
    for middle in nodes:
        for n in nodes:
            if reach[n] >> middle & 1:
                reach[n] |= reach[middle]
    return {_union(1 << m for m in _bits(reach[n]) if reach[m] >> n & 1) for n in nodes if reach[n] >> n & 1}


def _bits(mask: int) -> Iterator[int]:
    """Yield the positions of a mask's bits."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _union(masks: Iterable[int]) -> int:
    """Return the bits that any of the masks has."""
    total = 0
    for mask in masks:
        total |= mask
    return total


_WARPGROUP = re.compile(r"[A-Z]GMMA\.(\d+)x(\d+)x(\d+)")  # four warps together
_WARP = re.compile(r"[A-Z]MMA\.(?:[A-Z]+\.)*(8|16)x?(8)x?(\d+)|v_(?:mfma|wmma)\w*?_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?")
_BLOCK = re.compile(r"UTC\w*MMA")  # issued by one thread for all warps; its shape is in a register
_FMA = re.compile(r"[DF]FMA(2?)\b|v_(pk_)?fma(?:c|mk|ak)?_f(?:32|64)")


def is_matrix(name: str) -> bool:
    """True if a tensor core (AMD: a matrix core) executes the instruction."""
    return bool(_WARPGROUP.match(name) or _WARP.match(name) or _BLOCK.match(name))


def is_fma(name: str) -> bool:
    """True if the instruction is a fused multiply-add of floats."""
    return bool(_FMA.match(name))


def flops(name: str) -> float:
    """Return the FLOPs of an instruction that one warp issues; 0 if its name doesn't have its shape."""
    if found := _WARPGROUP.match(name):
        m, n, k = map(int, found.groups())
        return 2 * m * n * k / 4
    if found := _WARP.match(name):
        m, n, k, *several = (int(size) for size in found.groups() if size)
        return 2 * m * n * k * (several or [1])[0]
    if found := _FMA.match(name):
        return (128 if name.startswith("v_") else 64) * (2 if any(found.groups()) else 1)
    return 0


def tcgen05_flops(ptx: str) -> int:
    """Return the FLOPs of one tcgen05.mma of a kernel, 0 without one: its descriptor holds M and N, and K is 32 bytes.

    Source: "Instruction descriptor" in the PTX ISA.
    """
    found = re.search(r"tcgen05\.mma\.cta_group::(\d)\.kind::(\w+).*?, (%r\d+), %p", ptx)
    value = found and re.search(rf"mov\.b32\s+{found[3]}, (\d+);", ptx)
    if not value:
        return 0
    n, m = (int(value[1]) >> 17 & 0x3F) * 8, (int(value[1]) >> 24 & 0x1F) * 16
    return 2 * m * n * {"f16": 16, "tf32": 8, "f8f6f4": 32, "i8": 32}[found[2]] // int(found[1])


def per_flop(names: list[str], warps: int, tcgen05: int) -> float | None:
    """Return the instructions that `warps` warps issue for 1000 FLOPs if each runs these; None without arithmetic."""
    arithmetic = warps * sum(map(flops, names)) + tcgen05 * sum(bool(_BLOCK.match(name)) for name in names)
    return float(f"{1000 * warps * len(names) / arithmetic:.3g}") if arithmetic else None


_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_AMD_WIDTHS = {"dwordx4": 16, "b128": 16, "dwordx3": 12, "b96": 12, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}


def load_bytes(name: str) -> int:
    """Return the bytes that a thread loads from global memory by it; 16 for a load by TMA, 0 for no load."""
    return _access_bytes(name, ("LDG", "LDGSTS"), "load", "UTMALDG")


def store_bytes(name: str) -> int:
    """Return the bytes that a thread stores to global memory by it; 16 for a store by TMA, 0 for no store."""
    return _access_bytes(name, ("STG",), "store", "UTMASTG")


def _access_bytes(name: str, plain: tuple[str, ...], verb: str, tma: str) -> int:
    """Return the bytes of an access: NVIDIA's by the names `plain` and `tma`, AMD's by the verb."""
    base, *modifiers = name.split(".")
    if base in plain:
        return next((_WIDTHS[word] for word in modifiers if word in _WIDTHS), 4)
    if found := re.match(rf"(?:global|buffer|flat)_{verb}_(?:lds_)?(\w+?)(?:_|$)", name):
        return _AMD_WIDTHS.get(found[1], 1 if "byte" in found[1] or found[1][1:] == "8" else 2)
    return 16 if base == tma else 0


def widths(names: list[str], bytes_of: Callable[[str], int]) -> str:
    """Return in words how many accesses of each width there are, for example "tma x 4, 16 B x 12"."""
    found = Counter("tma" if name.startswith("UTMA") else f"{bytes_of(name)} B" for name in names if bytes_of(name))
    return ", ".join(f"{width} x {found[width]}" for width in sorted(found, key=_width, reverse=True))


def atomics(names: list[str]) -> str:
    """Return in words how many atomics there are, for example "atomic x 8"."""
    count = sum(bool(re.match(r"(?:RED|ATOMG?)(?:\.|$)|(?:global|buffer|flat)_atomic_", name)) for name in names)
    return f"atomic x {count}" if count else ""


def _width(word: str) -> int:
    """Return the sort key of a width in words."""
    return 64 if word == "tma" else int(word.split()[0])

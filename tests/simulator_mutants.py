"""Kernels without one of their synchronizing instructions: does the simulator notice? If not, why is it not needed?"""

import contextlib
import ctypes
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cnn_triton.simulator import driver
from cnn_triton.simulator.ptx import Statement, parse

SYNCHRONIZING = re.compile(
    r"(bar|barrier)(\.cta)?\.(sync|arrive|warp)|cp\.async\.(bulk\.)?(wait|commit)|wgmma\.(wait|commit|fence)|"
    r"mbarrier\.(init|arrive|expect_tx|try_wait)|fence\.(proxy\.(async|tensormap)|mbarrier_init)|tcgen05\.(wait|commit|fence)"
)
LIMIT = "beyond the model"
LIMITS = {
    "wgmma.fence": f"{LIMIT}: it runs a warp's instructions in order; the assembler asks for this one",
    "bar.warp": f"{LIMIT}: order within a warp is taken for granted",
}
NOTHING_BEGUN = "nothing that it could wait for has begun"
ORDERS_NOTHING = "it orders no two accesses that the next barriers don't"


class Mutant(NamedTuple):
    """A kernel without one instruction.

    noticed: "finding ...", "stopped ..." or "another result"; "" if it was not
    reason:  why it was not: what the instruction is not needed for
    """

    chip: str
    kernel: str
    removed: Statement
    noticed: str
    reason: str = ""

    @property
    def family(self) -> str:
        """The instruction without its modifiers."""
        return SYNCHRONIZING.match(self.removed.opcode)[0]

    def __str__(self) -> str:
        how = self.noticed or f"redundant: {self.reason}" if self.noticed or self.reason else "NOT NOTICED"
        return f"{self.chip} {self.kernel:22} {self.removed.line:5} {str(self.removed)[:48]:48} {how}"


def without(text: str, removed: list[Statement]) -> str:
    """Return the text without some statements. A wait at an mbarrier says that it has ended."""
    lines = text.split("\n")
    for each in removed:
        line = lines[each.line - 1]
        found = re.search(rf"(@!?[%\w$]+\s+)?(?<![\w.]){re.escape(each.opcode)}(?![\w.:])\s*([^\s,;]*)[^;]*;", line)
        assert found, f"line {each.line} has no {each.opcode}: {line}"
        instead = f"setp.eq.u32 {found[2]}, 0, 0;" if "try_wait" in each.opcode else ""
        lines[each.line - 1] = line[: found.start()] + instead + line[found.end() :]
    return "\n".join(lines)


class _Flow:
    """The statements of a kernel by number, and which follow which."""

    def __init__(self, text: str) -> None:
        self.statements: list[Statement] = []
        labels: dict[str, int] = {}
        for each in parse(text).body:
            if isinstance(each, str):
                labels[each] = len(self.statements)
            else:
                self.statements.append(each)
        self.after: list[list[int]] = []
        for i, each in enumerate(self.statements):
            ends = each.opcode.startswith(("bra", "ret", "exit")) and not each.predicate
            jumps = [labels[each.operands[0]]] if each.opcode.startswith("bra") else []
            self.after.append(jumps + ([] if ends else [i + 1]))
        last = len(self.statements)
        self.after = [[to for to in follow if to < last] for follow in self.after]
        self.before: list[list[int]] = [[] for _ in self.statements]
        for i, follow in enumerate(self.after):
            for to in follow:
                self.before[to].append(i)

    def reached(self, i: int, forward: bool, to_barriers: bool = True) -> list[Statement]:
        """Return the statements that follow one, or come before it; up to the block's next barriers, or all."""
        edges, seen, left = self.after if forward else self.before, set(), [i]
        while left:
            for to in edges[left.pop()]:
                if to not in seen and not (to_barriers and _is_barrier(self.statements[to])):
                    seen.add(to)
                    left.append(to)
        return [self.statements[k] for k in sorted(seen)]

    def fewest(self, i: int, opcode: str) -> dict[int, int]:
        """Return, by the number of each statement that follows one, the fewest with this opcode on the way to it."""
        found: dict[int, int] = {}
        left = [(0, to) for to in self.after[i]]
        while left:
            left.sort()
            count, k = left.pop(0)
            if k not in found:
                found[k] = count
                count += self.statements[k].opcode == opcode
                left += [(count, to) for to in self.after[k]]
        return found


def _is_barrier(statement: Statement) -> bool:
    return statement.opcode.startswith(("bar.sync", "barrier.sync")) and not statement.predicate


# What a statement did before a barrier that others may rely on behind it, and what it does behind one, by memory: r or
# w, of shared memory ("s"), mbarriers ("b"), tensor memory ("t"), global memory ("g") and tensor maps ("m"); "p" is the
# fence that orders what threads did before what the copy engine and the tensor cores do. What is asynchronous has done
# nothing before it is waited for. At an mbarrier all threads wait for themselves (`_all_wait`). That mbarriers and
# tensor maps have memory of their own shows in the run: the simulator tells races by addresses.
_ACCESSES = (
    (r"ld\.shared|ldmatrix", "sr", "sr"),
    (r"st\.shared|stmatrix|atom\.shared|red\.shared|tensormap\.replace", "sw", "sw"),
    (r"ld\.global", "gr", "gr"),
    (r"st\.global|atom\.global|red\.global", "gw", "gw"),
    (r"cp\.async\.(ca|cg)", "", "sw gr"),
    (r"cp\.async\.wait", "sw", ""),
    (r"cp\.async\.bulk\.tensor.*shared::(cta|cluster)\.global", "", "sw gr br pr mr"),
    (r"cp\.(reduce\.)?async\.bulk\.tensor.*global\.shared", "", "sr gw pr mr"),
    (r"cp\.async\.bulk\.wait_group\.read", "sr", ""),
    (r"cp\.async\.bulk\.wait_group$", "sr gw", ""),
    (r"tensormap\.cp", "sr mw", "sr mw"),
    (r"fence\.proxy\.tensormap", "mw", ""),
    (r"fence\.proxy\.async", "pw", ""),
    (r"mbarrier\.(init|inval)", "bw", "bw"),
    (r"mbarrier\.(arrive|expect_tx|try_wait)", "br", "br"),
    (r"wgmma\.mma", "", "sr pr"),
    (r"wgmma\.wait", "sr", ""),
    (r"tcgen05\.alloc", "sw tw", "sw tw"),
    (r"tcgen05\.dealloc", "tw", "tw"),
    (r"tcgen05\.ld", "", "tr"),
    (r"tcgen05\.st", "", "tw"),
    (r"tcgen05\.wait::ld", "tr", ""),
    (r"tcgen05\.wait::st", "tw", ""),
    (r"tcgen05\.mma", "", "sr tw pr"),
    (r"tcgen05\.commit", "", "br"),
)


def _accesses(statements: list[Statement], behind: bool) -> set[str]:
    found: set[str] = set()
    for each in statements:
        rows = [row for row in _ACCESSES if re.match(row[0], each.opcode)]
        found |= {word for row in rows for word in row[1 + behind].split()}
    return found


def _not_ordered(text: str, flow: _Flow, i: int, notice: Callable[..., str]) -> str:
    """Return why a barrier is not needed: what is there from the last barriers to it, and from it to the next."""
    sides = [flow.reached(i, forward=side) for side in (False, True)]
    before, after = (_accesses(sides[side], behind=bool(side)) for side in (0, 1))
    memories = {a[0] for a in before for b in after if a[0] == b[0] and "w" in (a[1], b[1])}
    if not memories:
        return ORDERS_NOTHING
    lines = text.split("\n")
    there = [
        each for side in (0, 1) for each in sides[side] if memories & {a[0] for a in _accesses([each], bool(side))}
    ]
    for each in dict.fromkeys(there):  # a trap for threads of other warps than the first
        guard, copied = each.predicate.lstrip("!"), "not" if each.predicate.startswith("!") else "mov"
        holds = f"{copied}.pred p, {guard}; and.pred q, q, p; " if guard else ""
        check = "{ .reg .pred p, q; .reg .b32 t; mov.u32 t, %tid.x; setp.gt.u32 q, t, 31; " + holds + "@q trap; } "
        lines[each.line - 1] = check + lines[each.line - 1]
    return "" if notice("\n".join(lines)) else "what it orders is all by one warp"


def _reason(text: str, flow: _Flow, removed: Statement, notice: Callable[..., str]) -> str:
    """Return why an instruction is not needed, by the kernel's text."""
    i, opcode = flow.statements.index(removed), removed.opcode
    for name, words in LIMITS.items():
        if opcode.startswith(name):
            return words
    if _is_barrier(removed):
        return _not_ordered(text, flow, i, notice)
    earlier = flow.reached(i, forward=False, to_barriers=False)
    if "async.bulk" in opcode and not any("bulk.tensor" in e.opcode and "global.shared" in e.opcode for e in earlier):
        return NOTHING_BEGUN
    if "commit_group" in opcode:
        wait = opcode.replace("commit_group", "wait_group")
        waits = [(count, flow.statements[k]) for k, count in flow.fewest(i, opcode).items()
                 if flow.statements[k].opcode.startswith(wait)]  # fmt: skip
        if waits and all(count > int(each.operands[0]) for count, each in waits):
            return "each wait that waits for its group waits for the next one too"
    note = notice(without(text, [removed]), notes=True)
    return f"{note}; the assembler waits" if note else ""


class _Memory:
    """Bytes of a launch's allocations."""

    def __init__(self, spans) -> None:
        self.spans = [span for span in spans if span.end > span.begin]
        self.held = self.read()

    def read(self) -> list[bytes]:
        return [ctypes.string_at(span.begin, span.end - span.begin) for span in self.spans]

    def write(self) -> None:
        for span, held in zip(self.spans, self.held, strict=True):
            ctypes.memmove(span.begin, held, len(held))


def _all_wait(text: str, flow: _Flow, notice: Callable[[str], str]) -> None:
    """Assert that all threads of a block wait at mbarriers together: they would at a barrier, too."""
    for each in flow.statements:
        if "try_wait" in each.opcode:
            lines = text.split("\n")
            lines[each.line - 1] = f"bar.sync 7; {lines[each.line - 1]}"
            assert not notice("\n".join(lines)), f"not all threads wait in line {each.line}"


def _covered(text: str, removed: Statement, others: list[Statement], notice: Callable[[str], str]) -> str:
    """Return which others do what an instruction does: without them nothing is noticed either, without all of them it
    is. The nearest come first."""
    group: list[Statement] = []
    others = sorted((each for each in others if each is not removed), key=lambda each: abs(each.line - removed.line))
    for each in others:
        if noticed := notice(without(text, [each, removed])):
            return f"so does line {each.line}; without it, too: {noticed}"
    for each in others:
        if notice(without(text, [*group, each])):
            continue
        group.append(each)
        if noticed := notice(without(text, [*group, removed])):
            needed = list(group)
            for one in group[:-1]:
                rest = [other for other in needed if other is not one]
                if notice(without(text, [*rest, removed])):
                    needed = rest
            lines = ", ".join(str(other.line) for other in sorted(needed))
            return f"so do lines {lines}; without them, too: {noticed}"
    return ""


def mutants(chip: str, text: str, notice: Callable[..., str]) -> list[Mutant]:
    """Return the kernel's mutants. notice(text): how a text is noticed; all_orders: of warps; notes: by notes, too."""
    kernel, flow = parse(text).name, _Flow(text)
    found = []
    _all_wait(text, flow, notice)
    for each in filter(lambda each: SYNCHRONIZING.match(each.opcode), flow.statements):
        noticed = notice(without(text, [each]), all_orders=True)
        found.append(Mutant(chip, kernel, each, noticed, "" if noticed else _reason(text, flow, each, notice)))
    quiet = [each.removed for each in found if not each.noticed and not each.reason.startswith(LIMIT)]
    return [
        each if each.noticed or each.reason else each._replace(reason=_covered(text, each.removed, quiet, notice))
        for each in found
    ]


@contextlib.contextmanager
def mutating(chip: str, blocks: int, change: Callable[[str], str] = lambda text: text) -> Iterator[list[Mutant]]:
    """Yield the mutants of the kernels that are launched within, each run on so many blocks of the first launch; of
    their texts, changed first."""
    found: list[Mutant] = []
    texts, launch = set(), driver.launch

    def launching(text, grid, parameters, spans, shared, checks):
        text = change(text)
        if text not in texts:
            texts.add(text)
            memory = _Memory(spans)

            def run(text, **changed):
                memory.write()
                how = checks._replace(sample=blocks, races=True, **changed)
                return *launch(text, grid, parameters, spans, shared, how), memory.read()

            launched, stopped, expected = run(text)
            assert not stopped, launched.findings
            assert all(each.is_note for each in launched.findings), launched.findings
            known = {each[:5] for each in launched.findings}
            share = min(1, blocks / math.prod(grid))  # of what was counted for all blocks
            limit = int(4 * share * sum(launched.instructions.values())) + 1000

            def notice(text, all_orders=False, notes=False):
                for order in (0, 1, 2) if all_orders else (0,):
                    launched, stopped, result = run(text, order=order, limit=limit)
                    findings = [each for each in launched.findings if notes or not each.is_note]
                    if findings := [each.kind for each in findings if each[:5] not in known]:
                        return f"{'stopped' if stopped else 'note' if notes else 'finding'}: {findings[0]}"
                    if result != expected:
                        return "another result"
                return ""

            found.extend(mutants(chip, text, notice))
            memory.write()
        return launch(text, grid, parameters, spans, shared, checks)

    driver.launch = launching
    try:
        yield found
    finally:
        driver.launch = launch

"""Control flow, barriers, and what the threads of a warp do together."""

from ..decoder import Decoder, instruction
from ..ptx import Statement, Unsupported


@instruction("bra")
def bra(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Go on at a label."""
    decoder.branches.append((len(decoder.pool), statement.operands[0]))
    decoder.emit(statement, "", [0], "bra")


@instruction("branchtargets")
def branchtargets(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """A list of labels, with its name."""
    name, *labels = statement.operands
    decoder.tables[name] = tuple(labels)


@instruction("brx")
def brx(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Go on at one of a list's labels."""
    index, name = statement.operands
    labels = decoder.tables[name]
    start = len(decoder.pool) + 2
    decoder.branches += [(start + i, label) for i, label in enumerate(labels)]
    decoder.emit(statement, "", [decoder.value(index, 4), len(labels), *[0] * len(labels)], "brx")


@instruction("ret", "exit")
def end(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """The thread ends."""
    decoder.emit(statement, "", [], "exit")


@instruction("trap")
def trap(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """The kernel fails, as by an assertion."""
    decoder.emit(statement, "trap", [])


@instruction("bar", "barrier")
def bar(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Wait until so many threads have arrived, or arrive only."""
    what = next(each for each in modifiers if each not in ("cta", "aligned"))
    if what == "warp":
        decoder.emit(statement, "bar_warp", [])
        return
    if what not in ("sync", "arrive"):
        raise Unsupported("form")
    number, *count = statement.operands
    threads = decoder.value(count[0], 4) if count else -1
    decoder.emit(statement, "", [decoder.value(number, 4), threads], "bar" if what == "sync" else "bar_arrive")


@instruction("shfl")
def shfl(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Read another thread's register."""
    mode = {"bfly": 0, "idx": 1, "up": 2, "down": 3}[modifiers[1]]
    to, _, inside = statement.operands[0].partition("|")
    places = [decoder.value(each, 4) for each in statement.operands[1:4]]
    decoder.emit(statement, "shfl", [mode, decoder.value(to, 4), decoder.value(inside, 1) if inside else -1, *places])


@instruction("elect")
def elect(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Choose one thread of those that are here: the first."""
    lane, _, chosen = statement.operands[0].partition("|")
    place = -1 if lane == "_" else decoder.value(lane, 4)
    decoder.emit(statement, "elect", [place, decoder.value(chosen, 1), decoder.value(statement.operands[1], 4)])


@instruction("vote")
def vote(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """Combine a predicate over a warp."""
    kind = {"all": 0, "any": 1, "uni": 2, "ballot": 3}[modifiers[1]]
    to, value = statement.operands[:2]
    if value.startswith("!"):
        raise Unsupported("a negated predicate as operand")
    decoder.emit(statement, "vote", [kind, decoder.value(to, 4 if kind == 3 else 1), decoder.value(value, 1)])


@instruction("activemask")
def activemask(decoder: Decoder, statement: Statement, modifiers: list[str]) -> None:
    """The threads of the warp that are here."""
    decoder.emit(statement, "activemask", [decoder.value(statement.operands[0], 4)])

"""PTX's instructions, a file for each chapter of its manual; decode() turns a kernel's text into a program."""

from ..decoder import INSTRUCTIONS, Decoder, Program
from ..ptx import Statement, Unsupported, parse
from . import arithmetic, asynchronous, matrix, memory, tensor_memory, threads

__all__ = ["decode"]

_ = (arithmetic, asynchronous, matrix, memory, tensor_memory, threads)  # imported for the instructions they register


def decode(text: str) -> Program:
    """Return the program of a module's one kernel. Errors: Unsupported, with the line and the instruction."""
    kernel = parse(text)
    if not kernel.threads or kernel.threads % 32:
        raise Unsupported(f"{kernel.name} with {kernel.threads} threads; a multiple of 32 would do")
    decoder = Decoder(kernel)
    labels: dict[str, int] = {}
    statements: dict[int, Statement] = {}
    for each in kernel.body:
        if isinstance(each, str):
            labels[each] = len(decoder.operations)
            continue
        statements[each.line] = each
        name, *modifiers = each.opcode.split(".")
        try:
            if name not in INSTRUCTIONS:
                raise Unsupported("unknown instruction")
            INSTRUCTIONS[name](decoder, each, modifiers)
        except (Unsupported, ValueError, KeyError, IndexError, StopIteration) as error:
            raise Unsupported(f"{kernel.name}, line {each.line}: {each}: {type(error).__name__} {error}") from None
    decoder.emit(Statement(0, "", "exit", (), None), "", [], "exit")
    for place, label in decoder.branches:
        decoder.pool[place] = labels[label]
    end = kernel.parameters[-1].offset + kernel.parameters[-1].bytes if kernel.parameters else 0
    return Program(
        kernel, decoder.marked(), decoder.pool, statements, decoder.units, decoder.constants, decoder.special, end,
        decoder.parameters_at, decoder.shared,
    )  # fmt: skip

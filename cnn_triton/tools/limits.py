"""Limits: the least time of an operator by datasheets, and how a grid goes through a chip in waves."""

from collections.abc import Iterable
from typing import NamedTuple

from ..kernels.core.chips import BOARDS, CHIPS, Board
from ..kernels.tiles import pick, shapes
from .calls import DTYPES
from .inspection import CompiledLaunch, OperatorCall

__all__ = ["Roof", "roofs", "waves"]


class Roof(NamedTuple):
    """An operator's least time on a board, in microseconds, at its rate, in TFLOP/s, and the bound: arithmetic or
    memory."""

    board: Board
    rate: float
    microseconds: float
    bound: str


def roofs(operator: OperatorCall, dtype: str, chips: Iterable[str]) -> list[Roof]:
    """Return the least time of an operator on every board with one of these chips: the longer of its arithmetic, at the
    datasheet's rate, and its compulsory memory traffic; nothing where that traffic isn't known."""
    if operator.bytes is None:
        return []
    kind = DTYPES[dtype].kind if operator.product or dtype == "float64" else "float"
    found = []
    for board in (board for board in BOARDS if board.chip in chips):
        rate = getattr(board.rates, kind) or board.rates.float
        computing = (operator.flops or 0) / rate / 1e6
        moving = operator.bytes / board.bandwidth / 1e3
        bound = "arithmetic" if computing > moving else "memory" if operator.flops is not None else "memory at least"
        found.append(Roof(board, rate, max(computing, moving), bound))
    return found


def waves(launch: CompiledLaunch) -> str:
    """Return in words how the grid of a launch goes through the chip: the number of waves of resident programs, the
    share of the last one that is filled, and, for programs that take several tiles, the number of turns."""
    code, choice = launch.code, launch.choice
    if not code.resident:
        return "unknown" if code.resident is None else "does not fit"
    said = _turns(code.grid, CHIPS[code.chip].multiprocessors * code.resident, "wave")
    if choice and choice.tile.programs == code.grid and isinstance(choice.problem, shapes.Product):
        said += f"; tiles {_turns(pick.tile_count(choice.problem, choice.tile), code.grid, 'turn')}"
    return said


def _turns(count: int, slots: int, word: str) -> str:
    """Return in words how many waves or turns `count` makes on `slots`."""
    whole, rest = divmod(count, slots)
    share = f"{100 * rest // slots}%" if 100 * rest >= slots else "<1%"
    if not rest:
        return f"{whole:,} full {word}{'s' * (whole != 1)}"
    return f"{share} of a {word}" if not whole else f"{whole:,} {word}{'s' * (whole > 1)} and {share} of one"

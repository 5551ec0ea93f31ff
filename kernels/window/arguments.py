"""Checks of arguments as users give them: integers, numbers, pairs, shapes; errors name the argument."""

from collections.abc import Sequence
from typing import Any

Pair = tuple[int, int]


def _is_int(value: Any) -> bool:
    """True for an integer, PyTorch's symbolic ones and NumPy's too; not for bool."""
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (hasattr(value, "__index__") and not getattr(value, "shape", ()))


def integer(argument: str, value: Any) -> int:
    """Return the integer itself. Errors: TypeError."""
    if not _is_int(value):
        raise TypeError(f"{argument} must be an int, but got {value!r}")
    return value  # type: ignore[no-any-return]


def real(argument: str, value: Any) -> float:
    """Return the number itself, PyTorch's symbolic ones too. Errors: TypeError."""
    symbolic = type(value).__name__ in ("SymFloat", "SymInt")
    if isinstance(value, bool) or not (symbolic or isinstance(value, int | float)):
        raise TypeError(f"{argument} must be a number, but got {value!r}")
    # torch.compile may let a number vary, which no operator takes; it fixes and guards what is in a set.
    return next(iter({float(value)}))


def flag(argument: str, value: Any) -> bool:
    """Return the truth value itself. Errors: TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, but got {value!r}")
    return value


def pair(argument: str, value: Any, least: int, dims: int = 2) -> Pair:
    """Return (vertical, horizontal) of an argument that is one integer, or one for each of `dims` directions, none
    below `least`; a single direction is the horizontal one. Errors: TypeError, RuntimeError (length, value)."""
    if type(value) is int and value >= least:  # as it is nearly always
        return (value if dims == 2 else least, value)
    values = (value,) if _is_int(value) else value
    if not isinstance(values, Sequence) or isinstance(value, str) or not all(_is_int(v) for v in values):
        raise TypeError(f"{argument} must be an int or a sequence of {dims} ints, but got {value!r}")
    if len(values) not in (1, dims):
        raise RuntimeError(f"{argument} must be one int, or one for each of {dims} directions, but got {tuple(value)}")
    values = tuple(values) * (dims // len(values))
    if min(values) < least:
        raise RuntimeError(f"{argument} must be at least {least}, but got {values}")
    return (least, values[0]) if dims == 1 else values  # a row has as little vertically as there can be


def sizes(pair: Sequence[int], dims: int) -> str:
    """Return (vertical, horizontal) in words, as the user has it."""
    return " x ".join(map(str, pair[2 - dims :]))


def shape(images: Sequence[int], dims: int) -> tuple[int, ...]:
    """Return the shape of images as the user has it: rows have no height."""
    return tuple(images) if dims == 2 else (*images[:-2], images[-1])


def same_shape(argument: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Errors: RuntimeError unless the argument has the expected shape."""
    if tuple(shape) != tuple(expected):
        raise RuntimeError(f"{argument} must have shape {tuple(expected)}, but got {tuple(shape)}")

"""Which dtypes and memory formats each case is tested in.

Index arithmetic knows no dtype and accumulation no format, so they are not multiplied out. A case is tested in every
dtype once and in every format at least once, and an operator's cases, in turn, in every combination. The seed turns the
rotation: four seeds test every case in every combination, and `--exhaustive` does so at once.
"""

from collections import Counter

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FORMATS = ("contiguous", "channels_last", "strided")
# Strided tensors in two dtypes, a wide and a narrow one.
KINDS = tuple((d, f) for d in DTYPES for f in FORMATS if f != "strided" or d in (torch.float32, torch.bfloat16))
# The rows of the rotation: the four dtypes' formats.
ROWS = tuple(
    tuple(zip(DTYPES, formats, strict=True))
    for formats in (
        ("contiguous", "strided", "channels_last", "contiguous"),
        ("channels_last", "contiguous", "contiguous", "strided"),
        ("contiguous", "channels_last", "contiguous", "strided"),
        ("channels_last", "strided", "contiguous", "channels_last"),
    )
)


def turns(cases, group, seed):
    """(case, its place among the cases of its group, turned by the seed)."""
    places = Counter()
    for case in cases:
        yield case, places[group(case)] + seed
        places[group(case)] += 1


def rotated(cases, group, rows, seed):
    """(case, one of the rows) in turn within each group of cases; without a seed (case, what is in any row)."""
    every = tuple(dict.fromkeys(each for row in rows for each in row))
    for case, turn in turns(cases, group, seed or 0):
        yield case, every if seed is None else rows[turn % len(rows)]


def two(kinds, turn):
    """The kind whose turn it is, and the next one that differs in dtype and format, or at least in one of them."""
    turn %= len(kinds)
    first, *others = kinds[turn:] + kinds[:turn]
    apart = [kind for kind in others if kind[0] != first[0] and kind[1] != first[1]]
    return first, (apart or others)[0]


def dtype_name(dtype):
    """A dtype as test names have it."""
    return str(dtype).removeprefix("torch.")

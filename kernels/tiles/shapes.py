"""The tiles that there are: block sizes, what a tile is picked for, and the shapes that the picks choose from. Data."""

from typing import NamedTuple

import torch

Box = tuple[int, int, int]  # batch, rows, columns


class Tile(NamedTuple):
    """A kernel's block sizes.

    m, n, k:    rows and columns of results, and terms of the reduction in a step
    warps, stages: of a program, and of its pipeline
    packed:     True if taps and channels of a window are one flat reduction (few channels)
    parts:      of the reduction, which a second kernel sums in order
    box:        its pixels are a box that the tensor memory accelerator (TMA) fetches; None: they are gathered
    programs:   how many run at once, each for several tiles; 0: one program a tile
    registers:  the most that a thread may take; 0: the compiler decides
    groups:     products side by side
    taps:       of a weight gradient, each with n columns of its own: what all of them multiply is fetched once
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 2
    packed: bool = False
    parts: int = 1
    box: Box | None = None
    programs: int = 0
    registers: int = 0
    groups: int = 1
    taps: int = 1

    @property
    def columns(self) -> int:
        """Columns of results, of all taps."""
        return self.n * self.taps

    @property
    def options(self) -> dict[str, int]:
        """Launch options for Triton's compiler."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | {"maxnreg": self.registers} if self.registers else options


class StripShape(NamedTuple):
    """Block sizes of a kernel that streams: a program takes a strip of `pixels` x `channels` elements."""

    pixels: int
    channels: int
    warps: int = 4


class Product(NamedTuple):
    """The problem that the tile of a convolution or of its input gradient is picked for.

    images:     (n, p, q) of a phase of the result
    columns, channels, taps: outputs, and a reduction of taps x channels, in each of `groups`
    tma:        True if the operands can be fetched by TMA
    whole:      True if a step's channels must not reach over their end, where the next tap's weights stand. (With
                phases a tile's columns never may.)
    extra_registers: what a thread holds besides its sums, a word of EXTRA_REGISTERS
    per_pixel_weights: True if each pixel has weights of its own: the images are one pixel's, its place a group
    pooled:     rows and columns of the windows that are pooled, the images' pixels; their taps are counted in `taps`
    """

    images: Box
    columns: int
    channels: int
    taps: int
    phases: int = 1
    groups: int = 1
    tma: bool = False
    whole: bool = False
    extra_registers: str = ""
    per_pixel_weights: bool = False
    pooled: tuple[int, int] = (1, 1)

    @property
    def at_once(self) -> int:
        """Number of pixels that a tile of boxes computes for each of the images' pixels: the taps of its window, if a
        thread holds them all, or 1."""
        taps = self.pooled[0] * self.pooled[1]
        return taps if taps in (2, 4) and self.pooled[1] <= 2 else 1


class WeightGrad(NamedTuple):
    """The problem that the tile of a weight gradient is picked for: outputs x (taps x channels) results in each of
    `groups`, each a sum over all pixels of `images` (n, p, q). The other fields are those of Product."""

    images: Box
    outputs: int
    channels: int
    taps: int
    groups: int = 1
    tma: bool = False
    per_pixel_weights: bool = False
    extra_registers: str = ""


class Grouped(NamedTuple):
    """The problem that the tile of a product in many narrow groups is picked for: rows x columns results in each of
    `groups`, each a sum of `terms`.

    has_epilogue: True if a thread holds an epilogue's values besides its sums
    may_split:    True if the sums may be cut into parts
    """

    groups: int
    rows: int
    columns: int
    terms: int
    has_epilogue: bool = False
    may_split: bool = False


NARROW = 32  # channels or outputs of a group, at most, for a tile that takes several groups
UNROLLED = 7  # rows of a window, at most, that a direct kernel takes at once

# Arithmetic of a product: bytes per operand element. "float" is full float32.
BYTES = {"half": 2, "tf32": 4, "float": 4, "double": 8}
ARITHMETIC = tuple(BYTES)


def arithmetic(dtype: torch.dtype, precision: str) -> str:
    """Return the word of ARITHMETIC for a dtype and its dots' precision, "tf32" or "ieee".

    Errors: NotImplementedError for a dtype that no kernel takes."""
    words = {torch.float16: "half", torch.bfloat16: "half", torch.float64: "double"}
    words[torch.float32] = "tf32" if precision == "tf32" else "float"
    if dtype not in words:
        raise NotImplementedError(f"the kernels have no tiles for {dtype}; they take {', '.join(map(str, words))}")
    return words[dtype]


# (m, n, warps) of the tiles, by how the operands are fetched:
#     gathered, gathered packed            by pointers; packed: few channels
#     per pixel, per pixel packed          gathered, and each pixel has weights of its own: m, in a weight gradient
#                                          k, is images
#     tma                                  boxes of a product; n is the first direction of the matrix instructions, 64
#                                          for each four warps
#     tma weight gradient, tma three taps  boxes of a weight gradient, by taps and by three neighbouring taps at once
_SMALL = ((64, 64, 8), (32, 32, 4))
_PER_PIXEL = {
    "half": ((128, 64, 4), (64, 64, 4), (32, 64, 4), (16, 64, 2)),
    "tf32": ((64, 64, 4), (32, 64, 4), (16, 64, 4)),
    "float": ((64, 64, 8), (32, 32, 4), (16, 32, 4)),
    "double": ((32, 32, 4), (16, 32, 4)),
}
SHAPES: dict[str, dict[str, tuple[tuple[int, int, int], ...]]] = {
    "gathered": {
        "half": ((128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (64, 32, 4)),
        "tf32": ((128, 128, 8), (128, 64, 8), (64, 128, 8), *_SMALL),
        "float": _SMALL,
        "double": _SMALL,
    },
    "gathered packed": {
        "half": ((128, 64, 8), (64, 64, 8), (64, 32, 4)),
        "tf32": _SMALL,
        "float": _SMALL,
        "double": _SMALL,
    },
    "per pixel": _PER_PIXEL,
    "per pixel packed": _PER_PIXEL,
    "tma": {
        "half": ((256, 128, 8), (128, 256, 8), (128, 128, 8), (256, 64, 4), (128, 64, 4), (64, 128, 8), (64, 64, 4)),
        "tf32": ((256, 128, 8), (128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4)),
    },
    "tma weight gradient": {
        "half": ((128, 128, 4), (128, 64, 4), (64, 128, 4), (64, 64, 4)),
        "tf32": ((128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4)),
    },
    "tma three taps": {"half": ((64, 64, 4),), "tf32": ()},  # Triton 3.7 gets those of TF32 wrong on sm_100
}  # fmt: skip


class MostSums(NamedTuple):
    """The most sums that a thread may hold, by how the operands are fetched; see Chip.sums, too."""

    gathered: int
    tma: int


# What a thread may hold besides its sums, and the most sums it then has.
#     epilogue                what an epilogue loads, stores or computes
#     moments                 which of the pixels exist
#     number, two numbers     what is pooled, for each sum
#     windows of ...          the same, for windows of sums that are pooled at once; boxes alone
#     code, 1 B               nothing: a gradient is read through a pooling's code, of 1 byte for each element,
#                             which takes shared memory
EXTRA_REGISTERS = {
    "": MostSums(1 << 10, 1 << 10),
    "epilogue": MostSums(1 << 10, 64),
    "moments": MostSums(1 << 10, 128),
    "number": MostSums(32, 64),
    "two numbers": MostSums(16, 32),
    "windows of a number": MostSums(0, 128),
    "windows of two numbers": MostSums(0, 64),
}
CODE = {f"code, {size} B": size for size in (1, 2, 4)}
AT_ONCE = {"number": "windows of a number", "two numbers": "windows of two numbers"}
EXTRA_REGISTERS |= dict.fromkeys(CODE, EXTRA_REGISTERS[""])

STRIPS = ((1024, 1), (256, 4), (32, 32), (16, 64), (8, 128))  # (pixels, channels)
INTERPRETED_STRIPS = (StripShape(64, 8), StripShape(256, 64), StripShape(4096, 16), StripShape(16384, 1))
INTERPRETED_ELEMENTS = 1 << 19  # of a tile: the interpreter's cost is per program, so tiles are few and large
PACK_UP_TO = 32  # channels: a tap a step would leave half of a step empty

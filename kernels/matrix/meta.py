"""The records that kernels of products take, with the same names on the host and on the device."""

from typing import Any, NamedTuple

from ..core.images import Pixel
from ..tiles.shapes import Box, Tile
from ..window.arguments import Pair
from ..window.convolution import Walk, Walks


class Pool(NamedTuple):
    """A pooling in windows side by side.

    rows, columns: of a window
    how:           "average"; "largest": a maximum, its tap in a second register; "key": a maximum of 16-bit values,
                   value and tap in one 32-bit integer
    """

    rows: int
    columns: int
    how: str

    @property
    def taps(self) -> int:
        """Number of taps in a window."""
        return self.rows * self.columns


class Taps(NamedTuple):
    """Rows and columns of a window's taps."""

    rows: int
    columns: int


class Meta(NamedTuple):
    """The constants that a product's kernel is compiled for. A kernel first names what it takes of it: `M: tl.constexpr
    = META.m`.

    down, across:    the walks of its windows
    taps:            rows and columns of a window's taps
    transposed:      True for the input gradient
    precision:       of dots, "tf32" or "ieee"
    accumulator, index: dtype of sums, and of offsets
    m, n, k, packed, box, groups, tile_taps: of the tile, see tiles.shapes.Tile
    aligned:         elements that strides and columns are multiples of, see core.tensors.alignment
    padding_mode:    what windows read outside of images
    channels:        of a group, where that is compiled for (grouped.py)
    pool:            the pooling that follows, or None
    shift:           input pixels between neighbouring taps of that pooling, (down, across)
    grad_pool:       the pooling with whose code a gradient is read (pool_code.py), or None
    bias_per_pixel:  True if each pixel has a bias of its own (per_pixel.py)
    """

    down: Walk
    across: Walk
    taps: Taps
    precision: str
    accumulator: Any
    index: Any
    m: int
    n: int
    k: int
    transposed: bool = False
    packed: bool = False
    box: Box | None = None
    groups: int = 1
    tile_taps: int = 1
    aligned: int = 1
    padding_mode: str = "zeros"
    channels: int = 0
    pool: Pool | None = None
    shift: Pair = (1, 1)
    grad_pool: Pool | None = None
    bias_per_pixel: bool = False

    @classmethod
    def of(cls, walks: Walks, taps: Pair, precision: str, tile: Tile, **others: Any) -> "Meta":
        """Return what a kernel with this tile is compiled for."""
        of_tile = {"packed": tile.packed, "box": tile.box, "groups": tile.groups, "tile_taps": tile.taps}
        others = {"accumulator": None, "index": None, **of_tile} | others
        return cls(walks.down, walks.across, Taps(*taps), precision, m=tile.m, n=tile.n, k=tile.k, **others)


class WeightStrides(NamedTuple):
    """Elements from a reduction channel, a tap, a column, a group of a weight to the next; and from a pixel's weight to
    the next pixel's."""

    channel: Any
    tap: Any
    column: Any
    group: Any
    pixel: Any = 0


class Weight(NamedTuple):
    """A weight as kernels take it: its memory and strides, WeightStrides or, in direct.py, TapStrides."""

    data: Any
    strides: Any


class Code(NamedTuple):
    """A pooling's code as kernels take it: its memory, strides (those of what was pooled), and the elements from a
    plane of bytes to the next."""

    data: Any
    strides: Any
    plane: Any


class EpilogueOperands(NamedTuple):
    """The operands of an epilogue, as kernels take them (epilogue.py): vectors over the columns, and tensors of the
    result's strides. moments: [tiles, 3, columns]."""

    bias: Any
    scale: Any
    residual: Any
    slope: Any
    preactivation: Any
    moments: Any
    columns: Any


class Results(NamedTuple):
    """A tile of results: its pixels `at` and columns k, and which of them exist. tile: its number along the pixels, at
    which its moments are stored."""

    tile: Any
    at: Pixel
    pixel_mask: Any
    k: Any
    k_mask: Any


class Terms(NamedTuple):
    """Terms of a reduction: taps (r, s), channels c, and which exist."""

    r: Any
    s: Any
    c: Any
    mask: Any

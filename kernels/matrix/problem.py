"""Products of windows as launchers see them, and the paths that compute them.

    Problem        y = epilogue(product of x and weight), forward or transposed: the input gradient
    WeightProblem  dw, the weight's gradient
    Path           one way to compute both; paths.py has them all, in order

Gathered products and those by TMA pick their tile together, so both take their images from here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from ..base.precision import accumulator
from ..core import chips
from ..core.images import Images, Size, Strides
from ..core.tensors import new
from ..streaming.repack import packed
from ..tiles import pick, shapes
from ..tiles.model import precision_on
from ..tiles.shapes import Tile
from ..window.convolution import Walks, Window, taps_meet
from ..window.layout import cdiv, row_stride
from .epilogue import Epilogue
from .meta import WeightStrides
from .pool_code import Pooled


@dataclass(frozen=True)
class Problem:
    """y = epilogue(product of x and weight by a window), forward or transposed. y may have the accumulator's dtype.

    precision: of float32 dots, "tf32" or "ieee"
    moments:   True if the tiles' moments are wanted (batch_norm.py)
    pool:      the pooling that follows (conv_pool.py), or None; y is its result
    pooled:    None, or x is the gradient of pooled images: the kernel reads the gradient of the images before pooling
               from x and the pooling's code
    """

    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    window: Window
    groups: int
    transposed: bool
    precision: str
    epilogue: Epilogue = field(default_factory=Epilogue)
    moments: bool = False
    pool: Pooled | None = None
    pooled: Pooled | None = None

    @property
    def weight_size(self) -> torch.Size:
        """Shape of the weight."""
        return self.weight.shape

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to compute."""
        return self.y.numel() == 0

    @property
    def is_pooled(self) -> bool:
        """True if a pooling follows, or x is the gradient of pooled images."""
        return self.pool is not None or self.pooled is not None

    @property
    def walks(self) -> Walks:
        """The walks of the window. A tap of a pooling that follows is a convolution by itself, whose stride is the
        window's times the pooling's side."""
        down, across = self.window.walks(self.transposed)
        if self.pool:
            down = down._replace(stride=down.stride * self.pool.pool.rows)
            across = across._replace(stride=across.stride * self.pool.pool.columns)
        return Walks(down, across)

    @property
    def channels(self) -> int:
        """Channels of a group that are summed over."""
        return self.weight.shape[0] // self.groups if self.transposed else self.weight.shape[1]

    @property
    def columns(self) -> int:
        """Channels of a group of the result."""
        return self.weight.shape[1] if self.transposed else self.weight.shape[0] // self.groups

    @property
    def extra_registers(self) -> str:
        """A word of tiles.shapes.EXTRA_REGISTERS: the values that a thread holds besides its sums."""
        if self.pool:
            return self.pool.result_registers
        if self.epilogue.takes_registers(self.y.dtype):
            return "epilogue"
        if self.moments:
            return "moments"
        return self.pooled.extra_registers if self.pooled else ""

    @cached_property
    def picked(self) -> "Picked":
        """Images and tile of the product if it is gathered, or by TMA; the tile says which."""
        return _picked(self)


@dataclass(frozen=True)
class WeightProblem:
    """dw = Σ over pixels of grad · x̂, with the memory of the matrix [K, R·S·C/groups]. pooled: None, or grad is the
    gradient of pooled images, see Problem."""

    grad: torch.Tensor
    x: torch.Tensor
    dw: torch.Tensor
    window: Window
    groups: int
    precision: str
    pooled: Pooled | None = None

    @property
    def weight_size(self) -> torch.Size:
        """Shape of the weight."""
        return self.dw.shape

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to compute."""
        return self.dw.numel() == 0

    @property
    def is_pooled(self) -> bool:
        """True if grad is the gradient of pooled images."""
        return self.pooled is not None

    @cached_property
    def picked(self) -> "PickedWeight":
        """Images and tile of the gradient if it is gathered, or by TMA; the tile says which."""
        return _picked_weight(self)


class Path(NamedTuple):
    """One way to compute products of windows.

    serves:      True if a problem of either kind can be computed so
    forward:     fills y, forward or transposed, and the code of a pooling that follows; returns the tiles' moments, if
                 they are wanted
    weight_grad: fills dw
    """

    serves: Callable[[Problem | WeightProblem], bool]
    forward: Callable[[Problem], torch.Tensor | None]
    weight_grad: Callable[[WeightProblem], None]


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight with the memory of the matrix [K, R·S·C/groups]; copied unless it is channels_last already."""
    return weight.contiguous(memory_format=torch.channels_last)


def with_dense_strides(tensor: torch.Tensor) -> Images:
    """Return a tensor as images. In a direction of one pixel, where any stride is right, it has the stride of a dense
    tensor, so that TMA's alignment rule holds."""
    at, channels = Images.of(tensor), tensor.shape[1]
    outer = (channels if size == 1 else stride for size, stride in zip(at.size, at.strides[:3], strict=True))
    return at._replace(strides=Strides(*outer, at.strides.c))


def flattened(window: Window, *tensors: torch.Tensor) -> tuple[Images, ...]:
    """Return the tensors' images; where each pixel is a product of its own, all their pixels as one row if they lie
    so."""
    every = tuple(with_dense_strides(tensor) for tensor in tensors)
    if not window.is_point:
        return every
    rows = [row_stride(each.size, each.strides[:3]) for each in every]
    if None in rows:
        return every
    pixels = math.prod(every[0].size)
    return tuple(
        Images(each.data, Strides(pixels * row, pixels * row, row, each.strides.c), Size(1, 1, pixels))
        for each, row in zip(every, rows, strict=True)
    )


def can_fetch(at: Images, spacing: tuple[int, int]) -> bool:
    """True if TMA can fetch boxes of every spacing-th pixel: channels adjacent, all else at multiples of 16 bytes."""
    outer, itemsize = at.strides[:3], at.data.element_size()
    aligned = at.data.data_ptr() % 16 == 0 and all(stride * itemsize % 16 == 0 for stride in outer)
    whole = at.size.h % spacing[0] == 0 and at.size.w % spacing[1] == 0
    whole = whole and (spacing[1] == 1 or at.strides.w == at.data.shape[1])
    return at.strides.c == 1 and aligned and min(outer) > 0 and whole


def can_fetch_copy(x: torch.Tensor, spacing: tuple[int, int]) -> bool:
    """True if TMA can fetch boxes of every spacing-th pixel of a channels_last copy of x."""
    whole = x.shape[2] % spacing[0] == 0 and x.shape[3] % spacing[1] == 0
    return whole and x.shape[1] * x.element_size() % 16 == 0


def can_fetch_weight(problem: Problem) -> bool:
    """True if TMA can fetch boxes of the weight's matrix, and what the window reads outside of images."""
    weight = problem.weight
    itemsize, copied = weight.element_size(), not weight.is_contiguous(memory_format=torch.channels_last)
    whole = problem.groups == 1 and problem.window.padding_mode == "zeros" and problem.x.numel() > 0
    aligned = weight[0].numel() * itemsize % 16 == 0 and (copied or weight.data_ptr() % 16 == 0)
    return whole and aligned


class Picked(NamedTuple):
    """A gathered product, or one by TMA: its images, its tile, the tiles of pixels that the result has, and the
    precision that the chip's dots have."""

    x: Images
    y: Images
    tile: Tile
    row_tiles: int
    precision: str


def _picked(problem: Problem) -> Picked:
    it, chip = problem, chips.chip_name()
    precision = precision_on(chip, it.precision)
    dense = (with_dense_strides(it.x), with_dense_strides(it.y))
    x, y = dense if it.is_pooled else flattened(it.window, it.x, it.y)
    steps = it.walks.result_steps
    phase = (y.size.n, cdiv(y.size.h, steps[0]), cdiv(y.size.w, steps[1]))
    pooled = (it.pool.pool.rows, it.pool.pool.columns) if it.pool else (1, 1)
    wanted = shapes.Product(
        phase, it.columns, it.channels, it.window.taps * math.prod(pooled), math.prod(steps), it.groups,
        whole=it.pool is not None or not (it.transposed or it.window.is_point), extra_registers=it.extra_registers,
        pooled=pooled,
    )  # fmt: skip
    at_once = wanted.at_once > 1
    tma = it.y.dtype == it.x.dtype and it.pooled is None and (it.pool is not None or can_fetch(y, steps))
    tma = tma and can_fetch_weight(it)
    fetched = can_fetch(x, it.window.stride if at_once else it.walks.strides)
    copied = not fetched and at_once and it.window.taps > 1 and can_fetch_copy(it.x, it.window.stride)
    arithmetic = shapes.arithmetic(it.x.dtype, precision)
    tile = pick.product(wanted._replace(tma=tma and (fetched or copied)), arithmetic, chip)
    rows = cdiv(math.prod(phase), tile.m)
    if tile.box:
        rows = math.prod(cdiv(size, side) for size, side in zip(phase, tile.box, strict=True))
        if copied:
            x = with_dense_strides(packed(it.x))
    return Picked(x, y, tile, rows, precision)


class PickedWeight(NamedTuple):
    """A weight gradient that is gathered, or fetched by TMA: its images, its tile, its programs, and the precision that
    the chip's dots have."""

    grad: Images
    x: Images
    tile: Tile
    programs: int
    precision: str


def _picked_weight(problem: WeightProblem) -> PickedWeight:
    it, chip = problem, chips.chip_name()
    walks, taps = it.window.walks(False), it.window.taps
    precision = precision_on(chip, it.precision)
    outputs, channels = it.dw.shape[0] // it.groups, it.dw.shape[1]
    if it.pooled is None:
        grad, x = flattened(it.window, it.grad, it.x)
    else:
        grad, x, pool = with_dense_strides(it.grad), with_dense_strides(it.x), it.pooled.pool
        full = Size(grad.size.n, grad.size.h * pool.rows, grad.size.w * pool.columns)
        grad = Images(it.grad, Images.of(it.grad).strides, full)
    tma = it.groups == 1 and it.window.padding_mode == "zeros" and it.grad.numel() > 0 and it.pooled is None
    tma = tma and can_fetch(grad, (1, 1)) and can_fetch(x, (1, 1))
    tma = tma and taps_meet(walks.down, x.size.h, grad.size.h) and taps_meet(walks.across, x.size.w, grad.size.w)
    extra = it.pooled.extra_registers if it.pooled else ""
    wanted = shapes.WeightGrad(tuple(grad.size), outputs, channels, taps, it.groups, tma, extra_registers=extra)
    tile = pick.weight_grad(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    across = cdiv(taps * channels, tile.n) if tile.packed else taps // tile.taps * cdiv(channels, tile.n)
    programs = cdiv(outputs, tile.m) * across * it.groups * tile.parts
    return PickedWeight(grad, x, tile, programs, precision)


def weight_strides(problem: Problem) -> WeightStrides:
    """Return the strides of the weight's matrix."""
    inputs = problem.weight.shape[1]
    term_count, outputs = problem.window.taps * inputs, problem.weight.shape[0] // problem.groups
    group = outputs * term_count
    if problem.transposed:
        return WeightStrides(channel=term_count, tap=inputs, column=1, group=group)
    return WeightStrides(channel=1, tap=inputs, column=term_count, group=group)


def new_moments(problem: Problem, row_tiles: int) -> torch.Tensor | None:
    """Return what takes the tiles' moments, [tiles, 3, columns], if they are wanted."""
    if not problem.moments:
        return None
    columns = problem.columns * problem.groups
    return new((row_tiles, 3, columns), problem.y, dtype=accumulator(problem.y.dtype))


def new_parts(problem: WeightProblem, parts: int) -> torch.Tensor:
    """Return what a weight gradient is stored in: itself, or where its sum is cut, a workspace for its parts."""
    dw = problem.dw
    return dw if parts == 1 else new((parts, dw.numel()), dw, dtype=accumulator(dw.dtype))

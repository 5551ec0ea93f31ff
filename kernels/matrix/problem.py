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
from ..tiles import pick, shapes
from ..tiles.model import precision_on
from ..tiles.shapes import Tile
from ..window.convolution import Window, taps_meet
from ..window.layout import cdiv, row_stride
from .epilogue import Epilogue
from .meta import WeightStrides
from .pool_code import Pooled


@dataclass(frozen=True)
class Problem:
    """y = epilogue(product of x and weight by a window), forward or transposed. y may have the accumulator's dtype.

    precision: of float32 dots, "tf32" or "ieee"
    moments:   True if the tiles' moments are wanted (batch_norm.py)
    unpool:    the pooling that x, a gradient, is read through: it is that of what was pooled
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
    unpool: Pooled | None = None

    @property
    def weight_size(self) -> torch.Size:
        """Shape of the weight."""
        return self.weight.shape

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to compute."""
        return self.y.numel() == 0

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
        if self.moments or self.epilogue.takes_registers:
            return "epilogue"
        return self.unpool.extra_registers if self.unpool else ""

    @cached_property
    def picked(self) -> "Picked":
        """Images and tile of the product if it is gathered, or by TMA; the tile says which."""
        return _picked(self)


@dataclass(frozen=True)
class WeightProblem:
    """dw = Σ over pixels of grad · x̂, with the memory of the matrix [K, R·S·C/groups]. unpool: the pooling that grad is
    read through."""

    grad: torch.Tensor
    x: torch.Tensor
    dw: torch.Tensor
    window: Window
    groups: int
    precision: str
    unpool: Pooled | None = None

    @property
    def weight_size(self) -> torch.Size:
        """Shape of the weight."""
        return self.dw.shape

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to compute."""
        return self.dw.numel() == 0

    @cached_property
    def picked(self) -> "PickedWeight":
        """Images and tile of the gradient if it is gathered, or by TMA; the tile says which."""
        return _picked_weight(self)


class Path(NamedTuple):
    """One way to compute products of windows.

    serves:      True if a problem of either kind can be computed so
    forward:     fills y, forward or transposed; returns the tiles' moments, if they are wanted
    weight_grad: fills dw
    """

    serves: Callable[[Problem | WeightProblem], bool]
    forward: Callable[[Problem], torch.Tensor | None]
    weight_grad: Callable[[WeightProblem], None]


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight with the memory of the matrix [K, R·S·C/groups]; copied unless it is channels_last already."""
    return weight.contiguous(memory_format=torch.channels_last)


def packed(tensor: torch.Tensor) -> Images:
    """Return a tensor as images. A direction of one pixel may have any stride, and PyTorch's are not always multiples
    of 16 bytes; here they are."""
    at, channels = Images.of(tensor), tensor.shape[1]
    outer = (channels if size == 1 else stride for size, stride in zip(at.size, at.strides[:3], strict=True))
    return at._replace(strides=Strides(*outer, at.strides.c))


def images(window: Window, *tensors: torch.Tensor) -> tuple[Images, ...]:
    """Return the tensors' images; where each pixel is a product of its own, all their pixels as one row if they lie
    so."""
    every = tuple(packed(tensor) for tensor in tensors)
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


def can_fetch(at: Images, steps: tuple[int, int]) -> bool:
    """True if TMA can fetch boxes of every steps-th pixel: channels adjacent, all else at multiples of 16 bytes."""
    outer, itemsize = at.strides[:3], at.data.element_size()
    aligned = at.data.data_ptr() % 16 == 0 and all(stride * itemsize % 16 == 0 for stride in outer)
    whole = at.size.h % steps[0] == 0 and at.size.w % steps[1] == 0
    whole = whole and (steps[1] == 1 or at.strides.w == at.data.shape[1])
    return at.strides.c == 1 and aligned and min(outer) > 0 and whole


def can_fetch_product(problem: Problem, x: Images, strides: tuple[int, int]) -> bool:
    """True if TMA can fetch boxes of x, of every strides-th pixel, and of the weight's matrix."""
    weight = problem.weight
    itemsize, copied = weight.element_size(), not weight.is_contiguous(memory_format=torch.channels_last)
    whole = problem.groups == 1 and problem.window.padding_mode == "zeros" and problem.x.numel() > 0
    aligned = weight[0].numel() * itemsize % 16 == 0 and (copied or weight.data_ptr() % 16 == 0)
    return whole and aligned and can_fetch(x, strides)


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
    walks = it.window.walks(it.transposed)
    precision = precision_on(chip, it.precision)
    x, y = images(it.window, it.x, it.y) if it.unpool is None else (packed(it.x), packed(it.y))
    steps = walks.steps
    phase = (y.size.n, cdiv(y.size.h, steps[0]), cdiv(y.size.w, steps[1]))
    tma = it.y.dtype == it.x.dtype and it.unpool is None and can_fetch(y, steps)
    tma = tma and can_fetch_product(it, x, walks.strides)
    wanted = shapes.Product(
        phase, it.columns, it.channels, it.window.taps, math.prod(steps), it.groups, tma,
        whole=not (it.transposed or it.window.is_point), extra_registers=it.extra_registers,
    )  # fmt: skip
    tile = pick.product(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    rows = cdiv(math.prod(phase), tile.m)
    if tile.box:
        rows = math.prod(cdiv(size, side) for size, side in zip(phase, tile.box, strict=True))
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
    if it.unpool is None:
        grad, x = images(it.window, it.grad, it.x)
    else:
        grad, x, pool = packed(it.grad), packed(it.x), it.unpool.pool
        full = Size(grad.size.n, grad.size.h * pool.rows, grad.size.w * pool.columns)
        grad = Images(it.grad, Images.of(it.grad).strides, full)
    tma = it.groups == 1 and it.window.padding_mode == "zeros" and it.grad.numel() > 0 and it.unpool is None
    tma = tma and can_fetch(grad, (1, 1)) and can_fetch(x, (1, 1))
    tma = tma and taps_meet(walks.down, x.size.h, grad.size.h) and taps_meet(walks.across, x.size.w, grad.size.w)
    extra = it.unpool.extra_registers if it.unpool else ""
    wanted = shapes.WeightGrad(tuple(grad.size), outputs, channels, taps, it.groups, tma, extra_registers=extra)
    tile = pick.weight_grad(wanted, shapes.arithmetic(it.x.dtype, precision), chip)
    across = cdiv(taps * channels, tile.n) if tile.packed else taps * cdiv(channels, tile.n)
    programs = cdiv(outputs, tile.m) * across * it.groups * tile.parts
    return PickedWeight(grad, x, tile, programs, precision)


def weight_strides(problem: Problem) -> WeightStrides:
    """Return the strides of the weight's matrix."""
    inputs = problem.weight.shape[1]
    terms, outputs = problem.window.taps * inputs, problem.weight.shape[0] // problem.groups
    group = outputs * terms
    if problem.transposed:
        return WeightStrides(terms, inputs, 1, group)
    return WeightStrides(1, inputs, terms, group)


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

"""Products of contiguous images as those of channels_last ones: what they read is repacked first, what they write
afterwards.

A product's threads read the channels of a pixel together, 16 bytes at once, and TMA does. In contiguous images the
channels are a plane apart, and threads would read one element at a time, for each of the window's taps. The interpreter
reads any layout alike, so nothing is repacked there.
"""

import dataclasses
from collections.abc import Callable

import torch

from ..core import chips
from ..core.tensors import new
from ..streaming.repack import channels_are_apart, packed, repack
from .problem import Path, Problem, WeightProblem


def serves(problem: Problem | WeightProblem) -> bool:
    """True if some images have channels that are apart, and those that are read have enough to fill 16 bytes."""
    if problem.is_pooled or problem.groups > 1 or chips.chip_name() == "interpreter":
        return False
    is_product = isinstance(problem, Problem)
    read, written = ([problem.x], [problem.y]) if is_product else ([problem.x, problem.grad], [])
    turned = any(channels_are_apart(each) and _fills(each) for each in read + written)
    return turned and all(map(_fills, read))


def _fills(images: torch.Tensor) -> bool:
    return images.numel() > 0 and images.shape[1] * images.element_size() % 16 == 0


def forward(problem: Problem, path_of: Callable[[Problem], Path]) -> torch.Tensor | None:
    """Launch a product; see Path. path_of: the way to compute the product of channels_last images."""
    it, epilogue = problem, problem.epilogue
    results = [each for each in (it.y, epilogue.preactivation) if each is not None]
    inner = [
        new(each.shape, each, channels_last=True) if channels_are_apart(it.y) and _fills(it.y) else each
        for each in results
    ]
    residual = None if epilogue.residual is None else packed(epilogue.residual)
    changed = epilogue._replace(residual=residual, preactivation=inner[1] if len(inner) > 1 else None)
    product = dataclasses.replace(it, x=packed(it.x), y=inner[0], epilogue=changed)
    moments = path_of(product).forward(product)
    for theirs, ours in zip(results, inner, strict=True):
        if ours is not theirs:
            repack(ours, theirs)
    return moments


def weight_grad(problem: WeightProblem, path_of: Callable[[WeightProblem], Path]) -> None:
    """Launch a weight gradient; see Path. path_of: as in `forward`."""
    gradient = dataclasses.replace(problem, grad=packed(problem.grad), x=packed(problem.x))
    path_of(gradient).weight_grad(gradient)

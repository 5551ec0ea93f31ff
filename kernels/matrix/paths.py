"""The ways to compute a convolution or a linear layer, in order: the first that serves a problem runs. Weights
per pixel (per_pixel.py) don't come here.

nothing     an empty result
direct      one channel a group: no matrix
grouped     many narrow groups: several in a tile
repacked    contiguous images, as channels_last
tma_pool    operands in boxes that the chip fetches by itself, and a pooling that follows
tma         operands in such boxes
gather      operands by pointers: everything
"""

from . import direct, gather, grouped, repacked, tma, tma_pool
from .problem import Path, Problem, WeightProblem

_NOTHING = Path(lambda problem: problem.is_empty, lambda problem: None, lambda problem: None)
_REPACKED = Path(
    repacked.serves,
    lambda problem: repacked.forward(problem, path_of),
    lambda problem: repacked.weight_grad(problem, path_of),
)
PATHS = (_NOTHING, direct.PATH, grouped.PATH, _REPACKED, tma_pool.PATH, tma.PATH, gather.PATH)


def path_of(problem: Problem | WeightProblem) -> Path:
    """Return the way that a problem is computed."""
    return next(path for path in PATHS if path.serves(problem))

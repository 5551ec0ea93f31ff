"""Autocast: the dtypes that products and pools get where it is on, as PyTorch's own get them."""

from typing import Any

import torch

from ..kernels.base.precision import autocasts


def casts(input: Any) -> bool:
    """True if autocast is on for the input's device; False for an input that is no tensor."""
    return isinstance(input, torch.Tensor) and autocasts(input)


def lowered(input: torch.Tensor, *others: Any) -> tuple[Any, ...]:
    """Return what a product takes in autocast's dtype."""
    dtype = torch.get_autocast_dtype(input.device.type)
    return tuple(t.to(dtype) if may_be_cast(t) else t for t in (input, *others))


def precise(*vectors: Any) -> tuple[Any, ...]:
    """Return vectors over channels in float32, which products take beside any dtype, so that they lose no digits."""
    return tuple(v.float() if may_be_cast(v) else v for v in vectors)


def may_be_cast(value: Any) -> bool:
    """True for a tensor of a dtype that autocast changes."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64

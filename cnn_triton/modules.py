"""Facts about PyTorch's modules: their hooks, and how a batch normalisation runs."""

from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["count_batch", "has_hooks", "statistics", "uses_batch_statistics"]


def has_hooks(module: torch.nn.Module) -> bool:
    """True if a hook sees what goes into this module or comes out of it: its own, or one of all modules."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or bool(_has_any_global_hook())


def uses_batch_statistics(norm: torch.nn.BatchNorm2d) -> bool:
    """True if it normalises by the batch's own statistics."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def statistics(norm: torch.nn.BatchNorm2d) -> dict[str, Any]:
    """Return the arguments that torch.nn.BatchNorm2d.forward calls its function with, by the names that
    `functional.conv2d_batch_norm` has for them. Call `count_batch` after that, not before."""
    momentum, tracked = norm.momentum or 0.0, not norm.training or norm.track_running_stats
    if norm.momentum is None and (count := _count(norm)) is not None:
        momentum = 1.0 / (float(count) + 1)
    return {
        "running_mean": norm.running_mean if tracked else None,
        "running_var": norm.running_var if tracked else None,
        "norm_weight": norm.weight,
        "norm_bias": norm.bias,
        "training": uses_batch_statistics(norm),
        "momentum": momentum,
        "eps": norm.eps,
    }


def count_batch(norm: torch.nn.BatchNorm2d) -> None:
    """Count a batch that the normalisation has seen."""
    if (count := _count(norm)) is not None:
        count.add_(1)


def _count(norm: torch.nn.BatchNorm2d) -> torch.Tensor | None:
    """Return the number of batches, if it is kept and these are batches to be counted."""
    return norm.num_batches_tracked if norm.training and norm.track_running_stats else None

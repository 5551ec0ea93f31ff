"""Tensors of operators: allocation, layout, alignment, checks."""

from typing import Any

import torch

from ..base.lang import tl
from ..base.precision import DTYPES
from ..window.layout import is_channels_last, span_elements


def new(shape: Any, like: torch.Tensor, channels_last: bool = False, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an uninitialised tensor on like's device: contiguous, or channels_last."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def laid_out_as(y: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor | None:
    """Return x in y's strides, copied if it has others."""
    return x if x is None or x.stride() == y.stride() else torch.empty_like(y, dtype=x.dtype).copy_(x)


def channels_last(*tensors: torch.Tensor) -> bool:
    """True if the result of an operator on these tensors is channels_last: if any of them is, as in PyTorch."""
    return any(is_channels_last(t.shape, t.stride()) for t in tensors)


def alignment(columns: int, *tensors: torch.Tensor) -> int:
    """Return the number of elements in 16 bytes, where channels are adjacent, and pixels and `columns` multiples of
    that number; 1 where they are not, or where Triton knows by itself."""
    each = 16 // tensors[0].element_size()
    apart = [columns, *(stride for tensor in tensors for stride in (*tensor.stride()[:1], *tensor.stride()[2:]))]
    adjacent = all(tensor.stride(1) == 1 for tensor in tensors)
    known = all(stride % 16 == 0 for stride in apart)
    return each if adjacent and not known and all(stride % each == 0 for stride in apart) else 1


def index_type(*tensors: torch.Tensor | None) -> Any:
    """Return the integer type of offsets into these tensors: 64 bits only where 32 are not enough."""
    span = max(span_elements(t.shape, t.stride()) for t in tensors if t is not None)
    return tl.int64 if span > 2**31 - 2**24 else tl.int32  # a tile may overhang a tensor


def tl_type(dtype: torch.dtype) -> Any:
    """Return Triton's name of an accumulator's dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def check_tensors(**tensors: Any) -> None:
    """Errors: TypeError for what is no tensor, NotImplementedError for a dtype that no kernel takes, RuntimeError
    for mixed dtypes or devices; each names the argument."""
    first = ""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but got {type(tensor).__name__}")
        if not first:
            first, dtype, device = name, tensor.dtype, tensor.device
            if dtype not in DTYPES:
                names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
                raise NotImplementedError(f"{name} has dtype {dtype}; the kernels take {names}")
        if tensor.dtype != dtype:
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}, but {first} has {dtype}; convert one with .to(), or use autocast"
            )
        if tensor.device != device:
            raise RuntimeError(f"{name} is on {tensor.device}, but {first} is on {device}; move one of them with .to()")


def check_optional(**tensors: Any) -> None:
    """Errors: TypeError, naming the argument, for what is neither a tensor nor None."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, but got {type(tensor).__name__}")


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Return the bytes of these tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)

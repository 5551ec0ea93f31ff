"""Where the operators run: Triton kernels on a GPU, in Triton's interpreter, or PyTorch's own operators."""

import contextlib
from collections.abc import Iterator

import torch

from .kernels.base.lang import INTERPRETING
from .kernels.core.op import launches as _launches

_forced = "auto"  # a plain global, as PyTorch's own backend flags are, so that torch.compile can guard on it


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within this context, where the layers run: 'aten', PyTorch's own operators; 'auto', by the tensor's device.

    auto: CUDA and ROCm tensors run Triton kernels; CPU tensors run them in Triton's interpreter where
    TRITON_INTERPRET=1 was set before the import, else PyTorch's own operators. Like torch.backends' flags it holds
    for all threads. Errors: ValueError for another name.
    """
    if name not in ("auto", "aten"):
        raise ValueError(f"backend must be 'auto' or 'aten', but got {name!r}")
    with _force(name):
        yield


@contextlib.contextmanager
def as_on_a_gpu(even_if_aten: bool = False) -> Iterator[None]:
    """Within, tensors on any device go to the operators, as those on a GPU do: where 'aten' is in force, only with
    `even_if_aten`."""
    with _force("operators" if even_if_aten or _forced == "auto" else _forced):
        yield


@contextlib.contextmanager
def _force(name: str) -> Iterator[None]:
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def runs_kernels(device: torch.device) -> bool:
    """True if tensors on this device go to the Triton kernels, here and now."""
    if _forced != "auto":
        return _forced == "operators"
    return device.type == "cuda" or (device.type == "cpu" and INTERPRETING)


def launches() -> dict[str, int]:
    """Return the number of kernel launches so far, by operator."""
    return dict(_launches)


def where(device: torch.device) -> str:
    """Return what runs the layers on this device, in a few words."""
    if not runs_kernels(device):
        return "PyTorch's own operators"
    if device.type == "cuda":
        return f"Triton kernels, compiled for {torch.cuda.get_device_name(device)}"
    return "Triton kernels in Triton's interpreter (TRITON_INTERPRET=1)"

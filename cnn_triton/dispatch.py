"""The choice of what runs the operators: Triton kernels on a GPU or in Triton's interpreter, or PyTorch's operators."""

import contextlib
from collections.abc import Iterator

import torch

from .kernels.base.lang import INTERPRETING
from .kernels.core.op import launches as _launches

_forced = "auto"  # a plain global, as PyTorch's own backend flags are; torch.compile's guards don't ask for it


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose what runs the layers within this context: 'aten', PyTorch's own operators; 'auto', by each tensor's
    device.

    auto: CUDA and ROCm tensors run Triton kernels; CPU tensors run them in Triton's interpreter where
    TRITON_INTERPRET=1 was set before the import, else PyTorch's own operators. Like torch.backends' flags it holds
    for all threads. Graphs of `convert` and of torch.compile(..., backend="cnn_triton") choose at each call; what
    another torch.compile backend has compiled keeps the operators of its first call. Errors: ValueError for another
    name.
    """
    if name not in ("auto", "aten"):
        raise ValueError(f"backend must be 'auto' or 'aten', but got {name!r}")
    with _force(name):
        yield


@contextlib.contextmanager
def as_on_a_gpu(even_if_aten: bool = False) -> Iterator[None]:
    """Send tensors on any device to the Triton operators within this context. Inside `backend('aten')` this has an
    effect only with `even_if_aten`."""
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


def where(device: torch.device | str) -> str:
    """Return in words what runs the layers on a device, for example "PyTorch's own operators". Errors: RuntimeError for
    an unknown device."""
    device = torch.device(device)
    if not runs_kernels(device):
        return "PyTorch's own operators"
    if device.type == "cuda":
        return f"Triton kernels, compiled for {torch.cuda.get_device_name(device)}"
    return "Triton kernels in Triton's interpreter (TRITON_INTERPRET=1)"

"""Layers of convolutional networks as Triton kernels: fused convolution, bias and ReLU, pooling, linear, with autograd.

Names are imported on first use, so that Triton's interpreter can be switched on before Triton is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional, nn
    from .dispatch import backend, launches, where
    from .fusion.backend import captures
    from .fusion.convert import convert, revert
    from .tools.warmup import warmup

__version__ = "0.1.0"
__all__ = [
    "__version__", "backend", "captures", "convert", "functional", "launches", "nn", "revert", "warmup", "where",
]  # fmt: skip

_FROM = {
    "backend": ".dispatch", "captures": ".fusion.backend", "convert": ".fusion.convert",
    "launches": ".dispatch", "revert": ".fusion.convert", "warmup": ".tools.warmup", "where": ".dispatch",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = importlib.import_module(_FROM.get(name, f".{name}"), __name__)
    if name in _FROM:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""Where kernels get Triton from, so that the package imports (and says what is missing) without it."""

import os
from typing import Any

__all__ = ["INTERPRETING", "MISSING", "device_function", "interpreted", "require", "tl", "triton"]

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


class _Missing:
    """Stands for Triton where it can't be imported, so that kernels can be defined: any attribute, any call."""

    def __getattr__(self, name: str) -> "_Missing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "_Missing":
        return self


try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = tl = _Missing()
    MISSING = str(error)
else:
    MISSING = ""


@triton.constexpr_function
def interpreted() -> bool:
    """True if device functions are interpreted, for them to ask. A function, since global constants change the key of
    Triton's cache of compiled kernels with the order in which a process compiles them."""
    return INTERPRETING


def require() -> None:
    """Errors: RuntimeError where Triton is missing; said when a kernel is needed, not before."""
    if MISSING:
        raise RuntimeError(
            f"this operator needs Triton, which can't be imported here ({MISSING}); install triton>=3.6 (Linux), or "
            "use cnn_triton.backend('aten') to run PyTorch's own operators"
        )


def device_function(function: Any) -> Any:
    """Return `triton.jit` of a function that kernels call."""
    jitted = triton.jit(function)
    if INTERPRETING and not MISSING:
        jitted.__class__ = interpreter.DeviceFunction
    return jitted


if INTERPRETING and not MISSING:
    from . import interpreter

"""The one place that imports Triton, so that the package imports (and says what is missing) without it."""

import dataclasses
import os
from typing import Any

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

# What device functions ask: are they being interpreted?
INTERPRETED = tl.constexpr(INTERPRETING)


def require() -> None:
    """Errors: RuntimeError where Triton is missing; said when a kernel is needed, not before."""
    if MISSING:
        raise RuntimeError(
            f"this operator needs Triton, which can't be imported here ({MISSING}); install triton>=3.6 (Linux), or "
            "use cnn_triton.backend('aten') to run PyTorch's own operators"
        )


def device_function(function: Any) -> Any:
    """`triton.jit` for a function that kernels call.

    Triton's interpreter patches its language anew at every such call (1.5 ms, and each patch wraps the last); the
    launch has patched it already, so here the call goes straight to the function.
    """
    jitted = triton.jit(function)
    if INTERPRETING and not MISSING:
        jitted.__class__ = _Interpreted
    return jitted


def check_overflow(on: bool) -> None:
    """Does the interpreter check every 32-bit integer sum and product for overflow? Half of its time goes there, so it
    does not, as compiled code does not, unless asked to; the tests ask."""
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=on)


if INTERPRETING and not MISSING:
    import torch
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpretedFunction, TensorHandle, interpreter_builder

    class _Interpreted(InterpretedFunction):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.rewrite()(*args, **kwargs)

    # The interpreter's own casts cut off the bits that bfloat16 lacks and get subnormal numbers wrong; hardware rounds.
    def _cast(source: Any, target: Any, otherwise: Any = interpreter_builder.cast_impl) -> Any:
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            data = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
        elif kinds == (tl.bfloat16, tl.float32):
            data = torch.tensor(source.data).view(torch.bfloat16).float().numpy()
        else:
            return otherwise(source, target)
        return TensorHandle(data, target.scalar)

    def _patch(tensor: Any, scope: Any, before: Any = interpreter._patch_lang_tensor) -> None:
        """Loop bounds become integers; Triton 3.6 does that in a way that NumPy 2.4 refuses."""
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter_builder.cast_impl = _cast
    interpreter._patch_lang_tensor = _patch
    check_overflow(False)

"""What Triton's interpreter does otherwise here: it rounds as hardware does, and takes less time.

lang.py imports it where the interpreter is on, before anything is interpreted. The interpreter spends most of its time
around NumPy's arithmetic, not in it: so types, and the members of Triton's language, are worked out once.
"""

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle, interpreter_builder


class DeviceFunction(InterpretedFunction):
    """A function that kernels call. Triton would patch its language anew at every call, in 1.5 ms, each patch wrapping
    the last; the launch has done so already."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)


def check_overflow(on: bool) -> None:
    """Let every sum, difference and product of integers below 64 bits be checked for overflow, or not."""
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=on)


_WIDE = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _assert_no_overflow(semantic: Any, lhs: Any, rhs: Any, operation: Any) -> None:
    """By NumPy: Triton's own check takes a dozen of its operators for each that it checks."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64 or not semantic.builder.options.sanitize_overflow:
        return
    wide = _WIDE[operation.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
    fits = kind.get_int_min_value() <= wide.min() and wide.max() <= kind.get_int_max_value()
    assert fits, f"{kind} overflow detected for operation {operation.__name__}"


def _cast(source: Any, target: Any, otherwise: Any = interpreter_builder.cast_impl) -> Any:
    """To and from bfloat16 as hardware does: Triton's own cuts off the last bits, and gets subnormal numbers wrong."""
    kinds = source.dtype.scalar, target.scalar
    if kinds == (tl.float32, tl.bfloat16):
        data = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
    elif kinds == (tl.bfloat16, tl.float32):
        data = torch.tensor(source.data).view(torch.bfloat16).float().numpy()
    else:
        return otherwise(source, target)
    return TensorHandle(data, target.scalar)


def _splat(kind: Any, value: Any, otherwise: Any = interpreter_builder.create_splat) -> Any:
    """A condition stays one: Triton gives comparisons the type of what they compare, and 3.9 takes no such mask."""
    return otherwise(kind, TensorHandle(value.data, tl.int1) if value.data.dtype == bool else value)


def _smaller(lhs: Any, rhs: Any) -> Any:
    """The smaller of two numbers, or what is one, as PropagateNan.NONE says: Triton's own gives NaN."""
    return interpreter_builder.binary_op(lhs, rhs, np.fmin)


def _patch_tensor(tensor: Any, scope: Any, before: Any = interpreter._patch_lang_tensor) -> None:
    """Loop bounds become integers; Triton 3.6 does that in a way that NumPy 2.4 refuses."""
    before(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


@functools.cache
def _builtins(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    """Triton's own looks through a whole package, at every launch."""
    for name in _builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # not patched yet
            interpreter._patch_attr(package, name, member, builder, scope)


_blocks: dict[Any, Any] = {}  # types of blocks, by what they are of and their sizes
_init_block = tl.core.block_type.__init__
_numpy: dict[str, Any] = {}


def _block_type(kind: Any, element: Any, shape: Any) -> Any:
    """One object for each type of blocks, whose name and number of elements are worked out once."""
    key = (kind, element.name, *(getattr(size, "value", size) for size in shape))
    if key not in _blocks:
        made = object.__new__(kind)
        _init_block(made, element, shape)
        _blocks[key] = made
    return _blocks[key]


def _init_tensor(tensor: Any, handle: Any, kind: Any, init: Any = tl.core.tensor.__init__) -> None:
    """What follows from the type is kept with it."""
    if not hasattr(kind, "of_tensors"):
        init(tensor, handle, kind)
        kind.of_tensors = {name: value for name, value in vars(tensor).items() if name != "handle"}
    vars(tensor).update(kind.of_tensors, handle=handle)


def _numpy_dtype(kind: Any, find: Any = interpreter._get_np_dtype) -> Any:
    if kind.name not in _numpy:
        _numpy[kind.name] = find(kind)
    return _numpy[kind.name]


tl.core.block_type.__new__ = staticmethod(_block_type)
tl.core.block_type.__init__ = lambda kind, element, shape: None
tl.core.tensor.__init__ = _init_tensor
TritonSemantic.binary_op_sanitize_overflow_impl = _assert_no_overflow
interpreter._get_np_dtype = _numpy_dtype
interpreter._patch_lang_tensor = _patch_tensor
interpreter._patch_builtin = _patch_builtin
interpreter_builder.cast_impl = _cast
interpreter_builder.create_splat = _splat
interpreter_builder.create_minnumf = _smaller
check_overflow(False)  # as in compiled code; the tests ask for it

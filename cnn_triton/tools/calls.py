"""A call in words: the name of a function, and NAME=VALUE for each argument, a tensor being given by its shape."""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from .. import functional

__all__ = ["DTYPES", "EXAMPLES", "Call", "Shape", "call_of", "function_of", "nearest", "run"]


class Arithmetic(NamedTuple):
    """The dtype of a call's tensors, and the kind of arithmetic by which products of them run."""

    dtype: torch.dtype
    kind: str


DTYPES = {
    "bfloat16": Arithmetic(torch.bfloat16, "half"),
    "float16": Arithmetic(torch.float16, "half"),
    "tf32": Arithmetic(torch.float32, "tf32"),
    "float32": Arithmetic(torch.float32, "float"),
    "float64": Arithmetic(torch.float64, "double"),
}
"""Arithmetics by the name that a call has for its dtype."""

_CONV = "input=32x64x56x56 weight=64x64x3x3 bias=64 padding=1"
_ROWS = "input=32x64x3136 weight=64x64x3 bias=64 padding=1"
_POOL = "input=32x64x112x112 kernel_size=3 stride=2 padding=1"
_LINE = "input=32x64x12544 kernel_size=3 stride=2 padding=1"
_LINEAR = "input=32x2048 weight=1000x2048 bias=1000"
EXAMPLES = {
    "conv2d": _CONV,
    "conv2d_relu": _CONV,
    "conv2d_relu_max_pool2d": _CONV,
    "conv2d_relu_avg_pool2d": _CONV,
    "conv2d_batch_norm": f"{_CONV} training=true",
    "conv_transpose2d": _CONV,
    "conv1d": _ROWS,
    "conv_transpose1d": _ROWS,
    "locally_connected2d": "input=32x64x14x14 weight=14x14x64x3x3x64 bias=14x14x64 padding=1",
    "max_pool2d": _POOL,
    "avg_pool2d": _POOL,
    "max_pool1d": _LINE,
    "avg_pool1d": _LINE,
    "max_unpool2d": "input=32x64x56x56 indices=32x64x56x56 kernel_size=2",
    "max_unpool1d": "input=32x64x3136 indices=32x64x3136 kernel_size=2",
    "adaptive_avg_pool2d": "input=32x2048x7x7 output_size=1",
    "adaptive_max_pool2d": "input=32x2048x7x7 output_size=1",
    "adaptive_avg_pool1d": "input=32x2048x49 output_size=1",
    "adaptive_max_pool1d": "input=32x2048x49 output_size=1",
    "linear": _LINEAR,
    "linear_relu": _LINEAR,
}
"""Arguments of calls without any words: layers of ResNet-50, or of that size."""


class Call(NamedTuple):
    """A function and its arguments: shapes for tensors, values for the others. dtype: a name in DTYPES."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    dtype: str = "bfloat16"
    channels_last: bool = True
    gradients: bool = False

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments.items())
        images = any(isinstance(value, Shape) and len(value) == 4 for value in self.arguments.values())
        layout = "" if not images else ", channels_last" if self.channels_last else ", contiguous"
        return f"{self.name}({shown}), {self.dtype}{layout}{', with gradients' if self.gradients else ''}"


class Shape(tuple[int, ...]):
    """The shape of a tensor among a call's arguments."""


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, Shape) else str(value)


def call_of(name: str, words: list[str], **how: Any) -> Call:
    """Return the call of a function with arguments in words, NAME=VALUE each; without words, the function's example.

    name: a function of cnn_triton.functional; or module:function or file.py:function of the user's own, which
    annotates its tensors with torch.Tensor
    words: for a tensor its shape, for example input=32x64x56x56; otherwise a number, several numbers with commas
    between them, true, false or none
    how: the call's dtype, channels_last and gradients
    errors: ValueError, with the word that is wrong and one that would be right
    """
    function = function_of(name)
    return Call(name, function, _arguments(name, function, words or EXAMPLES.get(name, "").split()), **how)


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the names that it may stand for."""
    every = list(names)
    near = difflib.get_close_matches(word.lower(), every, 3, 0.4)
    more = ", ..." if len(every) > 24 else ""
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(every[:24])}{more}"


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of a name. Errors: ValueError."""
    if name in functional.__all__:
        return getattr(functional, name)  # type: ignore[no-any-return]
    module, _, function = name.rpartition(":")
    if not module:
        raise ValueError(f"OP {name!r} is unknown; {nearest(name, functional.__all__)} Or module:function of your own")
    try:
        found = getattr(_module(module), function)
    except Exception as error:
        raise ValueError(f"OP {name!r}: {error}; it must name a function, as in file.py:function") from error
    if not isinstance(found, types.FunctionType):
        raise ValueError(f"OP {name!r} is a {type(found).__name__}; name the function that launches the kernel")
    return found


def _module(name: str) -> types.ModuleType:
    """Return the module of a name, or of a file, which may import its neighbours."""
    path, before = Path(name), [*sys.path]
    sys.path.insert(0, str(path.parent) if path.suffix == ".py" else "")
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location("_inspected", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["_inspected"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path[:] = before


def _arguments(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Return a function's arguments of NAME=VALUE words. Errors: ValueError."""
    try:
        parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    except Exception as error:
        raise ValueError(f"OP {name!r}: its annotations can't be read: {error}") from error
    found: dict[str, Any] = {}
    for word in words:
        argument, equals, value = word.partition("=")
        if not equals or argument not in parameters:
            fault = f"has no argument {argument!r}" if equals else f"takes NAME=VALUE, but got {word!r}"
            raise ValueError(f"{name} {fault}; {nearest(argument, parameters)}")
        hint = hints.get(argument)
        tensor = hint is torch.Tensor or torch.Tensor in typing.get_args(hint)
        if hint is None and re.fullmatch(r"\d+(x\d+)+", value):
            raise ValueError(f"{argument}={value}: {name} must say that it is a tensor, by {argument}: torch.Tensor")
        found[argument] = _value(argument, value, tensor)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in optional]
    if missing := [each for each in required if each not in found]:
        raise ValueError(
            f"{name} needs {', '.join(missing)}: {EXAMPLES.get(name) or 'NAME=VALUE, a shape for a tensor'}"
        )
    return found


def _value(argument: str, text: str, tensor: bool) -> Any:
    """Return the value that a text stands for. Errors: ValueError if a tensor's text is no shape."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if tensor:
        if not re.fullmatch(r"\d+(x\d+)*", text):
            raise ValueError(f"{argument} must be the shape of a tensor, as 32x64x56x56, or none, but got {text!r}")
        return Shape(map(int, text.split("x")))
    if "," in text:
        return tuple(_value(argument, each, False) for each in text.split(",") if each)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def run(
    call: Call, fill: Callable[[str, torch.Tensor], object] = lambda name, tensor: None
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """Run a call. Return (its arguments, its results), with gradients behind the results.

    fill: writes values into a tensor, by the argument's name, or "gradient" for a result's
    errors: those of the function; ValueError if gradients are wanted and there are none
    """
    dtype = DTYPES[call.dtype].dtype

    def tensor(name: str, shape: Shape) -> torch.Tensor:
        last = call.channels_last and len(shape) == 4
        layout = torch.channels_last if last else torch.contiguous_format
        kind = torch.int64 if name == "indices" else dtype
        made = torch.empty(shape, dtype=kind, memory_format=layout)
        fill(name, made)
        return made.requires_grad_(call.gradients and kind == dtype and not name.startswith("running_"))

    given = {n: tensor(n, value) if isinstance(value, Shape) else value for n, value in call.arguments.items()}
    with contextlib.nullcontext() if call.gradients else torch.no_grad():
        results = call.function(**given)
    if not call.gradients:
        return given, results
    outputs = [each for each in tree_leaves(results) if isinstance(each, torch.Tensor) and each.requires_grad]
    leaves = [each for each in given.values() if isinstance(each, torch.Tensor) and each.requires_grad]
    if not outputs:
        raise ValueError(f"{call.name} has no gradient")
    wanted = [torch.empty_like(y) for y in outputs]
    for each in wanted:
        fill("gradient", each)
    return given, (results, torch.autograd.grad(outputs, leaves, wanted, allow_unused=True))

"""A module's own forward as a torch.fx graph, with all that the graph takes for granted; else a reason why not.

A trace is what forward did once. It is what forward does again as long as what forward looked at is the same, so

    what it read of the module, or of an object there (self.training, self.config.padding), is noted: `holds` compares
    what a trace could not show, or not repeat, is refused: attributes set, other state read, calls that are no function
    of the input (random numbers, files, global switches), branches on values, tests of the input's type
"""

import builtins
import contextlib
import dis
import inspect
import math
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Granted", "Trace", "Untraceable", "holds", "trace"]


class Untraceable(Exception):
    """Why a forward can't be traced."""


class Granted(NamedTuple):
    """What a trace relies on: the value at a path of attributes; or for `children`, the names of the modules there."""

    path: tuple[str, ...]
    value: Any
    children: bool = False


class Trace(NamedTuple):
    """A forward's graph, whose submodules are single calls, and what it relies on."""

    graph: fx.Graph
    granted: tuple[Granted, ...]


def holds(module: torch.nn.Module, granted: tuple[Granted, ...]) -> bool:
    """Is all that a trace of the module relies on as it was?"""
    for path, value, children in granted:
        at: Any = module
        for name in path:
            at = getattr(at, name, Untraceable)
        if children:
            if tuple(at._modules) != value:
                return False
        elif at is not value and (type(at) is not type(value) or at != value):
            return False
    return True


def trace(module: torch.nn.Module) -> Trace:
    """The module's forward, traced in the mode that it is in. Errors: Untraceable."""
    forward = type(module).forward
    if forward.__module__.startswith("torch.") and forward is not torch.nn.Sequential.forward:
        raise Untraceable("its forward is PyTorch's own")
    if inspect.unwrap(forward) is not forward or not isinstance(forward, types.FunctionType):
        raise Untraceable("its forward is wrapped")
    for name, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.kind != parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise Untraceable(f"its forward takes {name}, which a caller may leave out")
    watch = _Watch(module)
    try:
        with watch.watching(), _NoConstants():
            graph = _Tracer().trace(module)
    except Exception as error:
        reason = watch.refused or next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Untraceable(reason) from None
    if watch.refused:
        raise Untraceable(watch.refused)
    if any("_tensor_constant" in str(node.target) for node in graph.nodes):
        raise Untraceable("it makes a tensor that is no function of the input")
    for node in graph.nodes:
        if (
            node.op == "call_module"
            and type(module.get_submodule(node.target)).__call__ is not torch.nn.Module.__call__
        ):
            raise Untraceable(f"{node.target} has a __call__ of its own")
    return Trace(graph, (*watch.granted, *_structure(module, graph)))


def _structure(module: torch.nn.Module, graph: fx.Graph) -> Iterator[Granted]:
    """The names of the modules in the module, and in each list on the way to those that it calls."""
    called = [node.target.split(".") for node in graph.nodes if node.op == "call_module"]
    for path in sorted({tuple(names[:depth]) for names in called for depth in range(len(names))}):
        yield Granted(path, tuple(module.get_submodule(".".join(path))._modules), children=True)


class _Input(fx.Proxy):
    """A value of the trace, whose type forward must not ask for, and which may be changed in place."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if _is_users(sys._getframe(1)):
            raise Untraceable("it asks for the type of its input")
        return _Input


def _in_place(function: Any) -> Callable[[Any, Any], Any]:
    return lambda value, other: value.tracer.create_proxy("call_function", function, (value, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Input, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Traces a forward whose submodules are single calls."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Input(node, self)


class _NoConstants(TorchFunctionMode):
    """Refuses functions of PyTorch that are given nothing of the trace: their results would be constants in it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_users(sys._getframe(1)) and not any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            raise Untraceable(f"it calls {getattr(func, '__name__', func)} of nothing that was given to it")
        return func(*args, **(kwargs or {}))


_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
_METHODS = (types.FunctionType, staticmethod, classmethod)
_CALLABLES = (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)
# What code of a user's may call: Python's own functions but for those with effects, mathematics, PyTorch's operators.
_EFFECTS = {"print", "input", "open", "exec", "eval", "compile", "setattr", "delattr", "globals", "locals", "vars"}
_PURE = {builtins, math, operator, torch._C._VariableFunctions, torch._C._nn}
_PURE_TYPES = (str, int, float, tuple, list, dict, set, range, torch.Size, torch.Tensor)
_TORCH = (
    "torch.nn.functional", "torch.functional", "torch.fx.", "torch._tensor", "torch.overrides", "torch._jit_internal",
    "torch.nn.modules.container", "cnn_triton.",
)  # fmt: skip
_OF_MODULES = {"__call__", "_wrapped_call_impl", "__getattr__", "children", "named_children", "modules", "parameters"}
_LIBRARIES = {"torch", "cnn_triton", *sys.stdlib_module_names} - {"__main__"}


def _is_users(frame: Any) -> bool:
    """Is this frame of neither PyTorch's, nor Python's, nor this library's code?"""
    name = frame.f_globals.get("__name__", "")
    return name.split(".")[0] not in _LIBRARIES and not name.startswith("namedtuple_")


class _Watch:
    """Notes what a forward looks at while it is traced, and the first thing that a trace can't repeat."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.granted: list[Granted] = []
        self.refused = ""
        self._forward = type(module).forward.__code__
        self._paths = {id(each): tuple(name.split(".")) if name else () for name, each in module.named_modules()}
        self._seen: set[types.CodeType] = set()
        self._thread = threading.get_ident()
        self._looking = False

    def refuse(self, reason: str) -> None:
        """Notes the first reason, and ends the trace."""
        self.refused = self.refused or reason
        raise Untraceable(reason)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, for code of the user's: attributes of modules, and calls, pass by here."""
        watch, read = self, object.__getattribute__

        def getattribute(module: torch.nn.Module, name: str) -> Any:
            if not watch._concerned(sys._getframe(1)):
                return read(module, name)
            with watch.looking():
                of_class = inspect.getattr_static(type(module), name, None)
                if name not in read(module, "__dict__") and (of_class is None or isinstance(of_class, _METHODS)):
                    return read(module, name)  # a method, or not there: a submodule, a parameter, a buffer
                if isinstance(of_class, property) or name == "__dict__":
                    watch.refuse(f"it reads self.{name}, which is computed")
                return watch.granting(watch._paths.get(id(module)), name, read(module, name))

        kind, profile = torch.nn.Module, sys.getprofile()
        sets = kind.__setattr__

        def setattribute(module: torch.nn.Module, name: str, value: Any) -> None:
            if watch._concerned(sys._getframe(1)):
                watch.refuse(f"it sets self.{name}")
            sets(module, name, value)

        kind.__getattribute__, kind.__setattr__ = getattribute, setattribute  # type: ignore[assignment, method-assign]
        sys.setprofile(self._on_call)
        try:
            yield
        finally:
            sys.setprofile(profile)
            del kind.__getattribute__
            kind.__setattr__ = sets  # type: ignore[method-assign]

    def _concerned(self, frame: Any) -> bool:
        """Is it the traced forward, or code of the user's that it calls?"""
        if self._looking or threading.get_ident() != self._thread:
            return False
        while _is_users(frame):
            if frame.f_code is self._forward:
                return True
            frame = frame.f_back
        return False

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Within, what runs is not the forward's."""
        before, self._looking = self._looking, True
        try:
            yield
        finally:
            self._looking = before

    def granting(self, path: tuple[str, ...] | None, name: str, value: Any) -> Any:
        """A value that was read; noted, if it can be compared later."""
        if path is None:
            self.refuse(f"it reads {name} of a module that is not in it")
            return value
        path = (*path, name)
        if _constant(value) or isinstance(value, _CALLABLES):
            self.granted.append(Granted(path, value))
        elif isinstance(value, list | dict | set | tuple | torch.Tensor):
            self.refuse(f"it reads self.{'.'.join(path)}, a {type(value).__name__}")
        else:
            return _Object(self, path, value)
        return value

    def _on_call(self, frame: Any, event: str, callee: Any) -> None:
        if event == "call" and self._concerned(frame):
            self._check_names(frame)
        elif event == "call" and self._concerned(frame.f_back):
            module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if not module.startswith(_TORCH) and not (module == "torch.nn.modules.module" and name in _OF_MODULES):
                self.refuse(f"it calls {name} of {module}")
        elif event == "c_call" and self._concerned(frame):
            owner, name = getattr(callee, "__self__", None), callee.__name__
            pure = owner in _PURE if isinstance(owner, types.ModuleType | type) else isinstance(owner, _PURE_TYPES)
            if name in _EFFECTS or not (pure or owner is None):
                self.refuse(f"it calls {name}")

    def _check_names(self, frame: Any) -> None:
        """Refuses names outside of a function whose values may change."""
        code = frame.f_code
        if code in self._seen:
            return
        self._seen.add(code)
        if set(code.co_freevars) - {"__class__"}:
            self.refuse(f"it reads {code.co_freevars[0]}, a variable of the function around it")
        for name in {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}:
            value = frame.f_globals.get(name, getattr(builtins, str(name), None))
            if not isinstance(value, _CALLABLES) and not callable(value):
                self.refuse(f"it reads {name}, a global variable")


def _constant(value: Any) -> bool:
    return isinstance(value, _CONSTANTS) or (isinstance(value, tuple) and all(map(_constant, value)))


class _Object:
    """An object that a module holds, a configuration say, as a traced forward sees it."""

    def __init__(self, watch: _Watch, path: tuple[str, ...], value: Any) -> None:
        self._watch, self._path, self._value = watch, path, value

    def __getattr__(self, name: str) -> Any:
        with self._watch.looking():
            return self._watch.granting(self._path, name, getattr(self._value, name))

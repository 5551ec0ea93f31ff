"""A converted model's call: it runs the graphs that TorchDynamo captured of the model, with our kernels in them.

model(x)
    if something else follows the call (torch.compile, export, jit, fx, functorch, modes, hooks of all modules):
        the layers run, one by one
    if a graph captured before fits, or Dynamo captures a new one (backend.py):
        the graph runs
    if Dynamo fails:
        the layers run, one by one; from then on at every call, unless the error is the model's own
"""

import functools
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config
from torch._dynamo.exc import TorchDynamoException, TorchRuntimeError
from torch._dynamo.utils import counters
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.hooks import RemovableHandle

from ..modules import has_hooks
from .backend import Captures, ModelCaptures, backend_of

__all__ = ["CompiledCall"]

_OWN = "_cnn_triton_call"  # in the model's __dict__, so that its copies get one of their own
# The most graphs of a model; past that, calls that need a new one run layer by layer. Dynamo's own limit is 8, and
# train, no_grad, autocast, layout and dtype need one each.
_GRAPHS = 64
# True within a TorchDispatchMode that doesn't let Dynamo capture under it.
_in_a_mode = getattr(_python_dispatch, "is_in_any_mode_without_ignore_compile_internals", is_in_torch_dispatch_mode)
_TRIES = 4  # of capturing a model as a whole
_numbers = itertools.count()
_CALLER = torch.nn.Module._wrapped_call_impl.__code__

_capturing = threading.RLock()  # held by the thread that captures: Dynamo skips code of other threads then, for good

# Dynamo's settings while it captures; for a model that has had hooks, it also guards against new and removed hooks.
_settings = {
    had_hooks: config._make_closure_patcher(skip_nnmodule_hook_guards=not had_hooks, recompile_limit=_GRAPHS)
    for had_hooks in (False, True)
}


def _forward(model: torch.nn.Module, ran: list[bool], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the model: the code that is captured. It appends to `ran`: True if a captured graph runs, False if the
    layers do; while nothing has run, `ran` is empty."""
    ran.append(torch.compiler.is_compiling())
    return model._call_impl(*args, **kwargs)


class _Code:
    """Code that Dynamo captures. Dynamo keeps graphs by their code, and after a failure skips that code for good. So
    each model has its own in each mode, and gets new code after a failure."""

    def __init__(self, backend: Callable[..., Any], captures: Captures, had_hooks: bool) -> None:
        self._backend = backend
        self._captures = captures
        self._settings = _settings[had_hooks]
        self._passed_over = 0
        self._renew()

    def _renew(self) -> None:
        code = _forward.__code__.replace(co_name=f"model_{next(_numbers)}")
        self._run = torch.compile(types.FunctionType(code, globals()), backend=self._backend)
        self._settled = False

    def __call__(self, model: torch.nn.Module, ran: list[bool], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = not self._settled
        if first and not _capturing.acquire(blocking=False):
            return model._call_impl(*args, **kwargs)
        tried, restore = counters["frames"]["total"], self._settings()
        try:
            result = self._run(model, ran, args, kwargs)
            self._passed_over = 0 if ran[0] else self._passed_over + (counters["frames"]["total"] > tried)
            return result
        finally:
            restore()
            if first:
                _capturing.release()
            self._settled = ran[:1] == [True] or self._passed_over >= _TRIES or self._captures.graphs >= _GRAPHS
            if not self._settled and ran:
                self._renew()


class CompiledCall:
    """A converted model's `__call__`, installed where torch.nn.Module.compile installs its own.

    rest:     name of the backend that compiles the calls that are not ours
    captures: of this model
    failure:  why the model can't be captured; empty if it can
    """

    def __init__(self, rest: str) -> None:
        self.rest = rest
        self.captures = ModelCaptures()
        self.failure = ""
        self._model: Callable[[], torch.nn.Module | None] = lambda: None
        self._forward: Any = None
        self._codes: dict[bool, _Code] = {}
        self._had_hooks, self._handles = False, -1

    @classmethod
    def install(cls, model: torch.nn.Module, rest: str) -> "CompiledCall":
        """Give a model its compiled call."""
        call = cls(rest)
        call._model = weakref.ref(model)
        vars(model)["_compiled_call_impl"] = vars(model)[_OWN] = call
        return call

    @classmethod
    def of(cls, model: torch.nn.Module) -> "CompiledCall | None":
        """Return the model's compiled call, None if it has none."""
        found = vars(model).get(_OWN)
        return found if isinstance(found, cls) and found._model() is model else None

    @classmethod
    def remove(cls, model: torch.nn.Module) -> None:
        """Take the compiled call from a model, if it has one."""
        if vars(model).pop(_OWN, None) is not None and isinstance(vars(model).get("_compiled_call_impl"), cls):
            del vars(model)["_compiled_call_impl"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self._model()
        if torch.compiler.is_compiling():
            return model._call_impl(*args, **kwargs)  # type: ignore[union-attr]
        caller = sys._getframe(1)
        called: Any = caller.f_locals["self"] if caller.f_code is _CALLER else model
        if called is not model:  # a copy that has the same __dict__
            return called._call_impl(*args, **kwargs)
        assert model is not None
        if self.failure or _is_followed():
            return model._call_impl(*args, **kwargs)
        ran: list[bool] = []
        try:
            return self._code(model)(model, ran, args, kwargs)
        except (TorchDynamoException, AssertionError) as error:  # Dynamo doesn't wrap its own failed assertions
            if ran:  # a part of the model has run, and must not run twice
                raise _own(error) from None
            reason = getattr(error, "inner_exception", error)
        result = model._call_impl(*args, **kwargs)  # an error of the model's own is raised here, as PyTorch has it
        self.failure = f"{type(reason).__name__}: {reason}".split("\n")[0]
        return result

    def _look_for_hooks(self, model: torch.nn.Module) -> None:
        """Look for hooks, and from the first one on have Dynamo guard every module against new ones. By itself Dynamo
        guards only the hooks that are there at a capture, since guards of every module take longer than all others
        together. A new hook shows in the number of handles that were made."""
        self._handles = RemovableHandle.next_id
        if not self._had_hooks and any(map(has_hooks, model.modules())):
            self._had_hooks, self._codes = True, {}

    def _code(self, model: torch.nn.Module) -> _Code:
        """Return the code to capture in the model's mode; new code if its class has another forward, which Dynamo
        overlooks."""
        if self._handles != RemovableHandle.next_id:
            self._look_for_hooks(model)
        forward = type(model).forward
        if forward is not self._forward and isinstance(forward, types.FunctionType):
            self._forward, self._codes = forward, {}
        code = self._codes.get(model.training)
        if code is None:
            backend = backend_of(self.rest, functools.partial(_names, self._model), self.captures)
            code = self._codes.setdefault(model.training, _Code(backend, self.captures, self._had_hooks))
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledCall":
        copied = memo.get(id(self._model()))  # the unfinished copy, if the model is copied as modules are
        return CompiledCall(self.rest) if copied is None else self.install(copied, self.rest)

    def __reduce__(self) -> Any:
        model = self._model()
        if model is None or isinstance(model, torch.fx.GraphModule):  # a GraphModule's pickle can't hold itself
            return CompiledCall, (self.rest,)
        return self.install, (model, self.rest)


def _names(model_of: Callable[[], torch.nn.Module | None]) -> dict[str, str]:
    """Return the names of a model's modules, by their id. Dynamo keeps backends for ever, so a backend gets this
    function and not the model."""
    model = model_of()
    return {} if model is None else {str(id(module)): name for name, module in model.named_modules()}


def _own(error: BaseException) -> BaseException:
    """Return PyTorch's own error behind one of a capture, if an operator raised one."""
    inner: BaseException | None = error
    while isinstance(error, TorchRuntimeError) and _is_dynamos(inner):
        inner = inner.__cause__ or inner.__context__  # type: ignore[union-attr]
    return inner or error


def _is_dynamos(error: BaseException | None) -> bool:
    """True if Dynamo made the error, to report another one."""
    return isinstance(error, TorchDynamoException) or str(error).startswith("Dynamo failed to run FX node")


def _is_followed() -> bool:
    """True if torch.jit, torch.fx, functorch or a mode follows the call, or a hook of all modules, which Dynamo
    overlooks."""
    return bool(
        torch._C._is_tracing()
        or _in_a_mode()
        or _has_any_global_hook()
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )

"""Conversion: makes a model's layers this library's, in place, and back.

a layer    becomes ours by its class: parameters, buffers, hooks, mode, identity, state_dict stay as they are
the model  gets a call of its own (compiled.py): it runs the graph that TorchDynamo captures, in which one kernel stands
           for a convolution or a linear layer and the calls that follow it. The model's own classes stay as they are
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from .. import nn
from ..kernels.base.precision import DTYPES
from .backend import Captures, check_backend
from .compiled import CompiledCall
from .fakes import arguments, faked

__all__ = ["Conversion", "Layer", "convert", "revert"]

_OURS: dict[type, type] = {getattr(torch.nn, n): getattr(nn, n) for n in nn.__all__ if hasattr(torch.nn, n)}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_MARK = "_cnn_triton_converted"  # in a swapped layer's __dict__, so that copies have it too


class Layer(NamedTuple):
    """A layer of torch.nn that this library has, too. outcome: "swapped" or "left"; why: the reason if it was left."""

    name: str
    kind: str
    outcome: str
    why: str


@dataclass
class Conversion:
    """The result of `convert`; str() is a report, of all that has been captured until then.

    layers: the model's layers of torch.nn that this library has, too
    call: the model's compiled call, with `call.captures` and, if nothing can be captured, the reason in `call.failure`;
    None if the model has another compiled call
    """

    layers: list[Layer]
    call: CompiledCall | None

    @property
    def captures(self) -> Captures:
        """The captures of the model until now; a call that is captured again, for another mode or size, counts once."""
        return self.call.captures if self.call else Captures()

    def count(self, outcome: str) -> int:
        """Return how many layers are "swapped" or "left"."""
        return sum(layer.outcome == outcome for layer in self.layers)

    def __str__(self) -> str:
        kinds = Counter(layer.kind for layer in self.layers if layer.outcome == "swapped")
        said = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        count = self.count("swapped")
        lines = [f"{count} layer{'s' * (count != 1)} swapped" + (f": {said}" if said else "")]
        lines += [f"  {each.name} ({each.kind}) is {each.outcome}: {each.why}" for each in self.layers if each.why]
        if self.call is None:
            said = "not captured: the model is compiled already; torch.compile's backend fuses, too"
            return "\n".join([*lines, said])
        if self.call.failure:
            return "\n".join([*lines, f"not captured, the layers run one by one: {self.call.failure}"])
        if not self.captures.graphs:
            return "\n".join([*lines, "captures come with the first call, or with convert(model, example)"])
        return "\n".join([*lines, str(self.captures)])


def convert(model: torch.nn.Module, example: Any = None, *, rest: str = "eager") -> Conversion:
    """Make the layers of a model this library's, in place, and run each convolution and linear layer as one kernel with
    the calls that follow it. Results stay the same up to rounding, in training and in eval mode.

    Layers of torch.nn that `cnn_triton.nn` has are swapped. In the graphs that TorchDynamo captures of the model, as
    with torch.compile(model, backend="cnn_triton"), calls are fused, and functions of torch.nn.functional replaced; see
    docs/fusing.md. The first call captures a graph, and so does the first in another mode, memory format or dtype, up
    to 64 graphs. Later changes of the model are noticed, new hooks too, but not a method replaced in the class of a
    submodule. Names, parameters (also tied ones), buffers, hooks, modes and requires_grad stay. Copies (copy.deepcopy,
    pickle, torch.save) are converted, too. The layers run one by one, ours but not fused, where Dynamo can't follow the
    model, and where the model is called under torch.jit.trace, torch.fx, torch.export, a transform of torch.func, or
    another torch.compile, which then sees the layers. DistributedDataParallel may come before or after; convert before
    torch.distributed's fully_shard.

    Equivalent to: model.compile(backend="cnn_triton"), for its results

    model: any torch.nn.Module; its layers run as `cnn_triton.functional` says: our kernels on a GPU
    example: the model's argument or arguments: a tensor, a tuple of arguments or a dict of keyword arguments. With an
    example the report has the captures of the present mode; nothing is computed, as in `cnn_triton.warmup`
    rest: the backend of torch.compile for the calls that are not ours: "eager" runs them as they are, and can be
    differentiated twice; "aot_eager", "inductor"
    returns: a Conversion, with the swapped layers, the fused calls, and the reasons for calls that are left
    errors: TypeError if model or example is something else; ValueError for an unknown backend; RuntimeError for a model
    that needs the example's values
    """
    check_backend("rest", rest)
    args, kwargs = ((), {}) if example is None else arguments(model, example)
    layers = [_converted(name, module) for name, module in _modules(model).items()]
    root = model.module if isinstance(model, DistributedDataParallel) else model  # Dynamo skips DDP's own forward
    for module in model.modules():
        if module is not root:
            CompiledCall.remove(module)  # from a part that was converted before: the whole model has it now
    call = CompiledCall.of(root)
    if root._compiled_call_impl is not None and not isinstance(root._compiled_call_impl, CompiledCall):
        call = None  # that of torch.nn.Module.compile stays in force
    elif call is None or call.failure or call.rest != rest:
        call = CompiledCall.install(root, rest)
    if example is not None:
        with faked(model, args, kwargs) as run:
            run()
    return Conversion([layer for layer in layers if layer], call)


def revert(model: torch.nn.Module) -> None:
    """Undo `convert`: every module gets back its class, and keeps its present weights.

    errors: TypeError if model is no module
    """
    for module in _modules(model).values():
        CompiledCall.remove(module)
        if vars(module).pop(_MARK, False):
            _become(module, _THEIRS[_base(module)])


def _modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return a model's modules by name. Errors: TypeError."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    return dict(model.named_modules())


def _converted(name: str, module: torch.nn.Module) -> Layer | None:
    """Swap a layer if this library has it, and it can be swapped; None if this library doesn't have it."""
    kind = next((kind for kind in type(module).__mro__ if kind in _OURS), None)
    if kind is None:
        return None
    why = _unfit(module, kind)
    row = Layer(name or "(model)", _base(module).__name__, "left" if why else "swapped", why)
    if not why and _base(module) is kind:
        _become(module, _OURS[kind])
        vars(module)[_MARK] = True
    return row


def _unfit(module: torch.nn.Module, kind: type) -> str:
    """Return why a layer can't be swapped; nothing if it can, or is ours already."""
    base = _base(module)
    if getattr(nn, base.__name__, None) is base:
        return ""
    if base is not kind:
        return f"a subclass of {kind.__name__}, whose forward may do something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    dtypes = {p.dtype for p in module.parameters(recurse=False)} - DTYPES.keys()
    return f"no kernel takes {dtypes.pop()}" if dtypes else ""


def _base(module: torch.nn.Module) -> type:
    """Return the module's class; for a parametrized module, the class that it had before."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized(module) else kind


def _become(module: torch.nn.Module, kind: type) -> None:
    """Change the module's class; a parametrized module gets a new subclass with the properties of its old one."""
    if is_parametrized(module):
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        kind = type(type(module).__name__, (kind,), own)
    module.__class__ = kind

"""Makes a model's layers ours, in place, and back.

a layer    becomes ours by its class: parameters, buffers, hooks, mode, identity, state_dict stay as they are
the model  gets a call of its own (compiled.py): what TorchDynamo captures of it, with our kernels in the place of a
           convolution or a linear layer and what follows it. No class of the model's is touched
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from .. import nn
from ..kernels.base.precision import PRECISION
from ..tools.warmup import arguments, faked
from .capture import Captures
from .compiled import CompiledCall

__all__ = ["Conversion", "Layer", "convert", "revert"]

_OURS: dict[type, type] = {getattr(torch.nn, n): getattr(nn, n) for n in nn.__all__ if hasattr(torch.nn, n)}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_MARK = "_cnn_triton_converted"  # in a swapped layer's __dict__, so that copies have it too


class Layer(NamedTuple):
    """What became of a layer that this library has: `outcome` is "swapped" or "left"; `why` says more, if there is."""

    name: str
    kind: str
    outcome: str
    why: str


@dataclass
class Conversion:
    """What `convert` did; str() is a report for people, of what has been captured until then.

    layers: those of torch.nn's that this library has
    call: the model's call; `call.captures` has what was captured, and fused with what; `call.failure`, why nothing is.
    None where the model has another one
    """

    layers: list[Layer]
    call: CompiledCall | None

    @property
    def captures(self) -> Captures:
        """What was captured of the model until now; what is captured again, for another mode or size, counts once."""
        return self.call.captures if self.call else Captures()

    def count(self, outcome: str) -> int:
        """How many layers are "swapped" or "left"."""
        return sum(layer.outcome == outcome for layer in self.layers)

    def __str__(self) -> str:
        kinds = Counter(layer.kind for layer in self.layers if layer.outcome == "swapped")
        said = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        count = self.count("swapped")
        lines = [f"{count} layer{'s' * (count != 1)} swapped" + (f": {said}" if said else "")]
        lines += [f"  {each.name} ({each.kind}) is {each.outcome}: {each.why}" for each in self.layers if each.why]
        if self.call is None:
            return "\n".join(
                [*lines, "not captured: the model is compiled already; torch.compile's backend fuses, too"]
            )
        if self.call.failure:
            return "\n".join([*lines, f"not captured, the layers run one by one: {self.call.failure}"])
        if not self.captures.graphs:
            return "\n".join([*lines, "what is fused is known after the first call, or of convert(model, example)"])
        return "\n".join([*lines, str(self.captures)])


def convert(model: torch.nn.Module, example: Any = None, *, rest: str = "eager") -> Conversion:
    """Makes the layers of a model this library's, in place, and has each convolution and linear layer run as one kernel
    with what follows it; results stay the same, in training and in eval mode.

    Swapped: the layers of torch.nn that `cnn_triton.nn` has. Fused, and functions of torch.nn.functional replaced: in
    what TorchDynamo captures of the model, as by torch.compile(model, backend="cnn_triton"); see docs/fusing.md. The
    first call captures, as does one in another mode, memory format or dtype; up to 64 graphs. What changes in the model
    later, hooks too, is noticed. Names, parameters (tied ones, too), buffers, hooks, modes and requires_grad stay.
    Copies (copy.deepcopy, pickle, torch.save) are converted, too. The layers run one by one, ours but not fused, where
    the model is called under torch.jit.trace, torch.fx, torch.export, a transform of torch.func, or within another
    torch.compile, which then sees them; and where Dynamo can't follow it. DistributedDataParallel may come before or
    after; convert before torch.distributed's fully_shard.

    Equivalent to: model.compile(backend="cnn_triton"), for its results

    model: any torch.nn.Module; its layers run as `cnn_triton.functional` says: our kernels on a GPU
    example: what the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments. The report
    then says what is fused in the present mode; nothing is computed, as in `cnn_triton.warmup`
    rest: the backend of torch.compile that compiles what is not ours: "eager", which runs it as it is and can be
    differentiated twice; "aot_eager", "inductor"
    returns: a Conversion, which says what was swapped, what is fused, and why what might be is not
    errors: TypeError for what is no module or no example; ValueError for a backend that there is not; RuntimeError for
    an example whose values the model needs
    """
    backends = torch._dynamo.list_backends(exclude_tags=())
    if rest not in backends:
        raise ValueError(f"rest must be one of {', '.join(backends)}, but got {rest!r}")
    args, kwargs = ((), {}) if example is None else arguments(model, example)
    layers = [_converted(name, module) for name, module in _modules(model).items()]
    root = model.module if isinstance(model, DistributedDataParallel) else model  # whose own forward Dynamo passes over
    for module in model.modules():
        if module is not root:
            CompiledCall.remove(module)  # of a part that was converted before: the whole has it now
    call = CompiledCall.of(root)
    if root._compiled_call_impl is not None and not isinstance(root._compiled_call_impl, CompiledCall):
        call = None  # torch.nn.Module.compile's is in force
    elif call is None or call.failure or call.rest != rest:
        call = CompiledCall.install(root, rest)
    if example is not None:
        with faked(model, args, kwargs) as run:
            run()
    return Conversion([layer for layer in layers if layer], call)


def revert(model: torch.nn.Module) -> None:
    """Undoes `convert`: every module is of the class that it was, with the weights that it has now.

    errors: TypeError for what is no module
    """
    for module in _modules(model).values():
        CompiledCall.remove(module)
        if vars(module).pop(_MARK, False):
            _become(module, _THEIRS[_base(module)])


def _modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """A model's modules by name; errors: TypeError."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    return dict(model.named_modules())


def _converted(name: str, module: torch.nn.Module) -> Layer | None:
    """Swaps a layer, unless it is none of those that this library has, or it can't be."""
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
    """Why a layer can't be ours; nothing if it can, or is."""
    base = _base(module)
    if base.__module__ == nn.__name__:
        return ""
    if base is not kind:
        return f"a subclass of {kind.__name__}, whose forward may do something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    dtypes = {p.dtype for p in module.parameters(recurse=False)} - PRECISION.keys()
    return f"no kernel takes {dtypes.pop()}" if dtypes else ""


def _base(module: torch.nn.Module) -> type:
    """The module's class, or the one that torch.nn.utils.parametrize made its class of."""
    kind = type(module)
    return kind.__bases__[0] if is_parametrized(module) else kind


def _become(module: torch.nn.Module, kind: type) -> None:
    """Changes the module's class; a parametrized module's is made anew, with its properties."""
    if is_parametrized(module):
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        kind = type(type(module).__name__, (kind,), own)
    module.__class__ = kind

"""Swaps the layers of a model for ours, in place, and back.

a layer      becomes ours by its class: parameters, buffers, hooks, mode, identity, state_dict stay as they are
a container  whose forward can be traced (tracing.py) gets one that calls a convolution, its batch normalisation and
             its ReLU as one (fused.py), and ours in place of torch.nn.functional's; while what the trace relies on
             has changed, its own forward runs
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx
from torch.nn.utils.parametrize import is_parametrized

from . import functional, fused, nn
from .kernels.precision import PRECISION
from .tracing import Granted, Untraceable, holds, trace

__all__ = ["Conversion", "Layer", "convert", "revert"]

_OURS: dict[type, type] = {getattr(torch.nn, n): getattr(nn, n) for n in nn.__all__ if hasattr(torch.nn, n)}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_FUNCTIONS = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_}
_MARK = "_cnn_triton_converted"  # in a swapped layer's __dict__, so that copies have it too
_Notes = dict[torch.nn.Module, tuple[str, list[str]]]  # what becomes of a module, and what is to be said of it


class Layer(NamedTuple):
    """What became of one module: `outcome` is "swapped", "fused" or "left"; `why` says with what, or why not."""

    name: str
    kind: str
    outcome: str
    why: str


@dataclass
class Conversion:
    """What `convert` did, module by module; str() is a table."""

    layers: list[Layer] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        """How many modules are "swapped", "fused" or "left"."""
        return sum(layer.outcome == outcome for layer in self.layers)

    def __str__(self) -> str:
        rows = [Layer._fields, *self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows]
        totals = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("swapped", "fused", "left"))
        return "\n".join((*lines, totals))


def convert(model: torch.nn.Module) -> Conversion:
    """Makes the layers of a model this library's, in place; results stay the same, in training and in eval mode.

    Swapped: the layers of torch.nn that `cnn_triton.nn` has, and calls of torch.nn.functional's in a forward that can
    be traced. Fused in such a forward: Conv2d and ReLU, Linear and ReLU; Conv2d and BatchNorm2d (and ReLU), in eval
    mode only: the normalisation's scale and shift are computed at every call. Both modules stay where they are, so that
    train() stays right and state_dict is the same. Not fused: what has a hook, now or later, and what another also
    reads. Names, parameters (tied ones too), buffers, hooks, modes and requires_grad stay. Convert before
    torch.distributed's fully_shard; DistributedDataParallel and torch.compile may come before or after.

    model: any torch.nn.Module; its layers run as `cnn_triton.functional` says: our kernels on a GPU
    returns: a Conversion, which lists every layer as swapped, fused or left, and why
    errors: TypeError for what is no module. What can't be traced is left, and said
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    modules = dict(model.named_modules())
    notes: _Notes = {}
    for module in modules.values():
        if kind := _kind(module):
            reason = _unfit(module, kind)
            notes[module] = ("left", [reason]) if reason else ("swapped", _swap(module, kind))
    for name, module in modules.items():
        if any(True for _ in module.children()) or type(module).__module__.split(".")[0] != "torch":
            _fuse(module, f"{name}." if name else "", notes)
    return Conversion([*_rows(modules, notes)])


def revert(model: torch.nn.Module) -> None:
    """Undoes `convert`: every module is of the class that it was, with the weights that it has now.

    errors: TypeError for what is no module
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, _Fused):
            module.__class__ = module._original
        if module.__dict__.pop(_MARK, False):
            _become(module, _THEIRS[_base(module)])


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


def _kind(module: torch.nn.Module) -> type | None:
    """The layer of torch.nn that the module is, by its class or the one next above that has a kernel."""
    return next((kind for kind in type(module).__mro__ if kind in _OURS), None)


def _unfit(module: torch.nn.Module, kind: type) -> str:
    """Why a layer can't be ours; nothing if it can."""
    base = _base(module)
    if base is not kind and base is not _OURS[kind]:
        return f"{base.__name__} is a subclass of {kind.__name__}, whose forward may do something else"
    if "forward" in vars(module):
        return "its forward was replaced"
    dtypes = {p.dtype for p in module.parameters(recurse=False)} - PRECISION.keys()
    return f"no kernel takes {dtypes.pop()}" if dtypes else ""


def _swap(module: torch.nn.Module, kind: type) -> list[str]:
    """Makes the layer ours, unless it is already."""
    if _base(module) is _OURS[kind]:
        return ["" if _MARK in vars(module) else "already was this library's"]
    _become(module, _OURS[kind])
    vars(module)[_MARK] = True
    return []


def _rows(modules: dict[str, torch.nn.Module], notes: _Notes) -> Iterator[Layer]:
    """A row for every layer, and for each container of which there is something to say."""
    for name, module in modules.items():
        outcome, said = notes.get(module, ("left", []))
        if module not in notes:
            if any(True for _ in module.children()):
                continue
            alone = isinstance(module, torch.nn.ReLU | torch.nn.BatchNorm2d)
            said = ["not right after a layer that it can be fused with" if alone else "no kernel of this library's"]
        kind = _base(module).__name__
        yield Layer(name or "(model)", kind, outcome, "; ".join(dict.fromkeys(filter(None, said))))


class _Fused:
    """A module whose forward calls several layers as one."""

    _original: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is not to be found under a name: it is made anew from the original."""
        return _rebuilt, (self._original, self.__getstate__())


def _rebuilt(kind: type, state: Any) -> torch.nn.Module:
    module: torch.nn.Module = object.__new__(kind)
    module.__setstate__(state)
    _fuse(module, "", {})
    return module


def _fuse(module: torch.nn.Module, prefix: str, notes: _Notes) -> None:
    """Gives a module a forward that calls layers as one, if its own can be traced and has such layers."""
    if isinstance(module, _Fused):
        module.__class__ = module._original
    if isinstance(module, fx.GraphModule | torch.jit.ScriptModule) or not hasattr(type(module), "forward"):
        return
    if type(module).forward is torch.nn.Module.forward:
        return
    plans, failed = [], ""
    try:
        if "forward" in vars(module):
            raise Untraceable("its forward was replaced")
        for training in (module.training, not module.training):
            granted, call = _plan(module, training, prefix, notes)
            if call:
                plans.append((granted, call))
            if not any(each.path[-1:] == ("training",) for each in granted):
                break
    except Untraceable as error:
        failed = str(error)
    if plans:
        _derive(module, tuple(plans))
    elif failed and any(_kind(child) for child in module.children()):
        _note(notes, module, "left", f"its layers are called one by one: {failed}")


def _derive(module: torch.nn.Module, plans: tuple[tuple[tuple[Granted, ...], Callable[..., Any]], ...]) -> None:
    """Gives the module a class of its own, with these plans for its forward."""
    original: Any = type(module)

    @functools.wraps(original.forward)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        for granted, call in plans:
            if holds(self, granted):
                return call(self, *args, **kwargs)
        return original.forward(self, *args, **kwargs)

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"_original": original, "forward": forward, **names}
    module.__class__ = type(original)(original.__name__, (_Fused, original), own)


def _plan(
    module: torch.nn.Module, training: bool, prefix: str, notes: _Notes
) -> tuple[tuple[Granted, ...], Callable[..., Any] | None]:
    """What a trace of forward relies on, and a forward with layers called as one; None if there are none such.
    Errors: Untraceable."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        for each, _ in modes:
            vars(each)["training"] = training
        graph, granted = trace(module)
    finally:
        for each, mode in modes:
            vars(each)["training"] = mode
    changed = False
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _FUNCTIONS:
            name = node.target.__name__
            _note(notes, module, "swapped", f"its calls of {name}")
            node.target, changed = _FUNCTIONS[node.target], True
        elif node.op == "call_module":
            changed |= _chain(module, node, prefix, notes)
    if not changed:
        return granted, None
    return granted, type(fx.GraphModule(module, graph)).forward


def _chain(module: torch.nn.Module, node: fx.Node, prefix: str, notes: _Notes) -> bool:
    """Makes a layer's call, and those of the normalisation and of the ReLU that follow it, one; says whether it did."""
    layer = module.get_submodule(str(node.target))
    conv = fused.is_conv(layer)
    if not (conv or fused.is_linear(layer)) or len(node.args) != 1 or node.kwargs:
        return False
    graph, links = node.graph, [node]
    norm = _follower(module, links, _is_norm, notes, prefix) if conv else None
    relu = _follower(module, links, _is_relu, notes, prefix)
    if len(links) == 1:
        return False
    with graph.inserting_before(links[-1]):
        arguments = [node.args[0], *(_argument(link) for link in ((node, norm, relu) if conv else (node, relu)))]
        call = graph.call_function(fused.convolution if conv else fused.dense, tuple(arguments))
    links[-1].replace_all_uses_with(call)
    for link in reversed(links):
        graph.erase_node(link)
    mode = " in eval mode" if norm else ""
    _note(notes, layer, "fused", "with " + " and ".join(_name(link, prefix) for link in links[1:]) + mode)
    for link in links[1:]:
        if link.op == "call_module":
            _note(notes, module.get_submodule(str(link.target)), "fused", f"into {prefix}{node.target}{mode}")
    return True


def _follower(
    module: torch.nn.Module,
    links: list[fx.Node],
    fits: Callable[[torch.nn.Module, fx.Node], bool],
    notes: _Notes,
    prefix: str,
) -> fx.Node | None:
    """The call that fits of those that read the last link; added to the links, unless something else needs to see what
    is between."""
    last = links[-1]
    after = next((user for user in last.users if fits(module, user) and user.args[0] is last), None)
    if after is None:
        return None
    ends = [module.get_submodule(str(link.target)) for link in (links[0], after) if link.op == "call_module"]
    reason = "something else reads its output too" if len(last.users) > 1 else ""
    reason = reason or ("one of them has a hook" if any(map(fused.hooked, ends)) else "")
    if reason:
        _note(notes, ends[0], "swapped", f"not fused with {_name(after, prefix)}: {reason}")
        return None
    links.append(after)
    return after


def _is_norm(module: torch.nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    norm = module.get_submodule(str(node.target))
    return fused.is_norm(norm) and norm.running_mean is not None and "forward" not in vars(norm)


def _is_relu(module: torch.nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        relu = module.get_submodule(str(node.target))
        return type(relu) is torch.nn.ReLU and not node.kwargs and "forward" not in vars(relu)
    named = node.op == "call_method" and node.target in ("relu", "relu_")
    return (named or (node.op == "call_function" and node.target in _RELUS)) and bool(node.args)


def _argument(link: fx.Node | None) -> Any:
    """What a fused call takes for this link: its module; True for a function, False for none."""
    if link is None or link.op != "call_module":
        return link is not None
    return link.graph.get_attr(str(link.target))


def _name(link: fx.Node, prefix: str) -> str:
    return f"{prefix}{link.target}" if link.op == "call_module" else "a relu"


def _note(notes: _Notes, module: torch.nn.Module, outcome: str, said: str) -> None:
    """Adds to what is said of a module; what is fused stays fused."""
    before, all_said = notes.get(module, (outcome, []))
    notes[module] = ("fused" if "fused" in (before, outcome) else before, [*all_said, said])

"""Swaps the layers of a model for ours, in place, and back.

a layer      becomes ours by its class: parameters, buffers, hooks, mode, identity, state_dict stay as they are
a container  whose forward can be traced (tracing.py) gets one that calls a convolution or a linear layer, and what
             follows it, as one (fused.py), and ours in place of torch.nn.functional's; while what the trace relies on
             has changed, its own forward runs
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn.utils.parametrize import is_parametrized

from . import fused, nn
from .fusing import OURS, WORDS
from .kernels.precision import PRECISION
from .tracing import Granted, Untraceable, holds, trace

__all__ = ["Conversion", "Layer", "convert", "revert"]

_OURS: dict[type, type] = {getattr(torch.nn, n): getattr(nn, n) for n in nn.__all__ if hasattr(torch.nn, n)}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
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
    be traced. Fused in such a forward: Conv2d or Linear and an activation that `functional.conv2d` has; between Conv2d
    and it, BatchNorm2d in either mode; after Conv2d and ReLU, MaxPool2d or AvgPool2d whose windows lie side by side,
    with BatchNorm2d in eval mode only. The modules stay where they are, and are read at every call, so that train()
    stays right and state_dict is the same. Not fused: what has a hook, now or later, and what another also reads.
    Names, parameters (tied ones too), buffers, hooks, modes and requires_grad stay. Convert before torch.distributed's
    fully_shard; DistributedDataParallel and torch.compile may come before or after.

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
            alone = bool(fused.words(module))
            known = _base(module).__module__ == nn.__name__
            said = ["already was this library's" if known else "no kernel of this library's"]
            said = ["not fused with a layer before it"] if alone else said
        yield Layer(name or "(model)", _base(module).__name__, outcome, "; ".join(dict.fromkeys(filter(None, said))))


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
    if isinstance(module, nn.ConvBatchNorm2d):
        _note(notes, module[1], "fused", f"into {prefix}0")
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
    with _as(module, training):
        graph, granted = trace(module)
    with _as(module, False):  # where the longest chains are
        chains = [_chain(module, node, prefix, notes) for node in list(graph.nodes) if node.op == "call_module"]
    changed = any(chains)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in OURS:
            _note(notes, module, "swapped", f"its calls of {node.target.__name__}")
            node.target, changed = OURS[node.target], True
    if not changed:
        return granted, None
    return granted, type(fx.GraphModule(module, graph)).forward


@contextlib.contextmanager
def _as(module: torch.nn.Module, training: bool) -> Iterator[None]:
    """Within, all is in this mode."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        for each, _ in modes:
            vars(each)["training"] = training
        yield
    finally:
        for each, mode in modes:
            vars(each)["training"] = mode


def _chain(module: torch.nn.Module, node: fx.Node, prefix: str, notes: _Notes) -> bool:
    """Makes a layer's call, and the calls after it that fit into its kernel, one; says whether it did."""
    layer = module.get_submodule(str(node.target))
    calls: list[tuple[fx.Node, fused.Link]] = [(node, layer)]
    if not fused.follows((), fused.words(layer)) or len(node.args) != 1 or node.kwargs:
        return False
    apart = ""
    while not apart and (after := _follower(module, calls)):
        if why := _why_apart(calls[-1][0], layer, after[1]):
            apart = f"not fused with {_name(*after, prefix)}: {why}"
        else:
            calls.append(after)
    names = [_name(*call, prefix) for call in calls[1:]]
    kinds = [fused.words(link)[0] for _, link in calls]
    eval_only = "batch_norm" in kinds and "pool" in kinds[-1]
    if names:
        last = f", and in eval mode {names.pop()}" if eval_only else ""
        _note(notes, layer, "fused", f"with {' and '.join(names)}{last}")
        _replace(calls)
    _note(notes, layer, "swapped", apart)
    for _, link in calls[1:]:
        if isinstance(link, torch.nn.Module):
            mode = " in eval mode" if eval_only and link is calls[-1][1] else ""
            _note(notes, link, "fused", f"into {prefix}{node.target}{mode}")
    return len(calls) > 1


def _replace(calls: list[tuple[fx.Node, fused.Link]]) -> None:
    """One call of `fused.chain` in place of these."""
    (first, _), (last, _) = calls[0], calls[-1]
    graph = first.graph
    with graph.inserting_before(first):  # not later: what comes between may change the input in place
        links = [link if isinstance(link, tuple) else graph.get_attr(str(node.target)) for node, link in calls]
        call = graph.call_function(fused.chain, (first.args[0], *links))
    last.replace_all_uses_with(call)
    for node, _ in reversed(calls):
        graph.erase_node(node)


def _follower(module: torch.nn.Module, calls: list[tuple[fx.Node, fused.Link]]) -> tuple[fx.Node, fused.Link] | None:
    """The call that reads the last one's result and may come next in the kernel."""
    steps = [fused.words(link) for _, link in calls]
    for user in calls[-1][0].users:
        link = _link(module, user)
        if link is not None and fused.follows(steps, fused.words(link)):
            return user, link
    return None


def _link(module: torch.nn.Module, node: fx.Node) -> fused.Link | None:
    """What a chain takes for a call of a single tensor, and of constants; None if it can't be in one."""
    if len(node.all_input_nodes) != 1 or node.args[:1] != tuple(node.all_input_nodes):
        return None
    if node.op == "call_module":
        return module.get_submodule(str(node.target)) if len(node.args) == 1 and not node.kwargs else None
    function = getattr(torch, node.target, None) if isinstance(node.target, str) else node.target
    try:
        return WORDS[function](*node.args[1:], **node.kwargs) if function in WORDS else None
    except TypeError:
        return None


def _why_apart(last: fx.Node, layer: torch.nn.Module, link: fused.Link) -> str:
    """Why what may come next isn't fused; nothing if it is."""
    if len(last.users) > 1:
        return "something else reads its output too"
    if fused.watched(layer) or fused.watched(link):
        return "one of them has a hook"
    return fused.unfit(fused.words(link))


def _name(node: fx.Node, link: fused.Link, prefix: str) -> str:
    return f"{'an' if link[0][0] == 'a' else 'a'} {link[0]}" if isinstance(link, tuple) else f"{prefix}{node.target}"


def _note(notes: _Notes, module: torch.nn.Module, outcome: str, said: str) -> None:
    """Adds to what is said of a module; what is fused stays fused."""
    before, all_said = notes.get(module, (outcome, []))
    notes[module] = ("fused" if "fused" in (before, outcome) else before, [*all_said, said])

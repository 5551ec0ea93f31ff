"""Effects: the memory that calls of a captured graph write, and the calls that may therefore not change places."""

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .. import functional
from .nodes import (
    BATCH_NORM,
    Node,
    function_of,
    has_kernel_dtype,
    is_in_place,
    named_arguments,
    storages,
    value_of,
)

__all__ = ["Effects", "changed_arguments"]

_UPDATED = (
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift",
    "irshift", "iconcat",
)  # fmt: skip
_UPDATES = {getattr(operator, name) for name in _UPDATED}
# Functions that write only as their names and arguments say; any other function may do anything.
_KNOWN = {
    each for home in (torch, F, torch._C._nn, torch.special, torch.linalg, torch.fft, operator, math)
    for each in vars(home).values() if callable(each) and not isinstance(each, type)
} | {getattr(functional, name) for name in functional.__all__} | {getattr}  # fmt: skip
_STATEFUL = ("batch_norm", "instance_norm", "embedding", "quant")  # words in names of functions that may write others
_UNKNOWN_METHODS = {"backward", "register_hook", "retain_grad", "register_post_accumulate_grad_hook", "set_"}


class Effects:
    """The storages that each call of a graph writes, and the limits that follow for the order of calls."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        inputs = [node for node in self.nodes if node.op == "placeholder" and has_kernel_dtype(node)]
        self.inputs = frozenset[int]().union(*(storages(node) or () for node in inputs))
        self.writes = {node: self._with_inputs(node, self._written(node)) for node in self.nodes}

    def _with_inputs(self, node: Node, written: frozenset[int] | None) -> frozenset[int] | None:
        """Return all inputs, too, if one is written: in another call they may share their memory. Running statistics
        don't share it."""
        if written and node.target is not F.batch_norm and written & self.inputs:
            return written | self.inputs
        return written

    def _written(self, node: Node) -> frozenset[int] | None:
        """Return the storages that a call writes; None if it may do anything, or change how later calls run."""
        nothing: frozenset[int] = frozenset()
        if node.op in ("placeholder", "output", "get_attr"):
            return nothing
        function = function_of(node)
        if isinstance(function, torch._ops.OpOverload):
            return self._by_schema(node, function)
        if node.op == "call_method":
            if function is None or node.target in _UNKNOWN_METHODS:
                return None
            name = str(node.target)
            changes = (name.endswith("_") and not name.endswith("__")) or name.strip("_") in ("setitem", *_UPDATED)
            return storages(node.args[0]) if changes else nothing
        if node.op != "call_function" or function not in _KNOWN:
            return None
        if function is F.batch_norm:
            given = named_arguments(node, BATCH_NORM)
            own = (given.get("running_mean"), given.get("running_var")) if given.get("training", False) else ()
            return storages(*own)
        if value_of(node) is None and function is not operator.setitem:
            return None
        name = getattr(function, "__name__", "_")
        written: list[Any] = [node.kwargs.get("out")]
        if (
            function in _UPDATES or function is operator.setitem or (name.endswith("_") and not name.endswith("__"))
            or is_in_place(node)
        ):  # fmt: skip
            written += node.args[:1]
        if any(word in name for word in _STATEFUL):
            written += [each for each in node.all_input_nodes if each not in node.args[:1]]
        return storages(*written)

    def _by_schema(self, node: Node, function: Any) -> frozenset[int] | None:
        """Return the storages that an operator writes by its schema."""
        written = []
        for i, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.append(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name))
        return storages(*written)

    def _between(self, first: Node, last: Node, own: list[Node]) -> Iterator[Node]:
        """Yield the calls between two, without those of a chain."""
        for node in self.nodes[self.place[first] + 1 : self.place[last]]:
            if node not in own:
                yield node

    def may_write(self, value: Node, since: Node, until: Node, own: list[Node]) -> bool:
        """True if a call between these two, none of the chain's own, may write this value."""
        return any(_may_overlap(self.writes[node], storages(value)) for node in self._between(since, until, own))

    def may_read(self, value: Node, since: Node, until: Node, own: list[Node]) -> bool:
        """True if a call between these two, none of the chain's own, may read this value."""
        return any(
            self.writes[node] is None or _may_overlap(storages(node.all_input_nodes), storages(value))
            for node in self._between(since, until, own)
        )

    def is_last_use(self, call: Node, value: Any) -> bool:
        """True if the graph itself made the memory of a value, and nothing after the call uses it."""
        for node in self.nodes[: self.place[call]]:
            if _may_overlap(storages(node), storages(value)) and (
                node.op in ("placeholder", "get_attr")
                or any(self.place[user] > self.place[call] for user in node.users)
            ):
                return False
        return True

    def may_change_later(self, node: Node) -> bool:
        """True if the result of a call may be changed in place, by the graph or by the caller, who gets it."""
        later = self.nodes[self.place[node] + 1 :]
        return _may_overlap(storages(later[-1].args), storages(node)) or any(
            _may_overlap(self.writes[each], storages(node)) for each in later
        )


def _may_overlap(a: frozenset[int] | None, b: frozenset[int] | None) -> bool:
    """True if two sets of storages may have one in common; None is a set that isn't known."""
    return a is None or b is None or bool(a & b)


def changed_arguments(module: fx.GraphModule) -> list[int]:
    """Return the positions of the arguments that a graph writes."""
    effects = Effects(module.graph)
    written = frozenset[int]().union(*(each for each in effects.writes.values() if each))
    placeholders = [node for node in effects.nodes if node.op == "placeholder"]
    return [i for i, node in enumerate(placeholders) if written & (storages(node) or frozenset())]

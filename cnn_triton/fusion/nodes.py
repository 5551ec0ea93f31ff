"""Nodes of a captured graph: the function that each calls, its arguments, and an example of its result."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from ..kernels.base.precision import DTYPES

__all__ = [
    "BATCH_NORM", "Node", "function_form", "function_of", "has_kernel", "has_kernel_dtype", "is_in_place", "is_plain",
    "modules_of", "named_arguments", "parts", "storages", "value_of",
]  # fmt: skip

Node = fx.Node

BATCH_NORM = inspect.signature(F.batch_norm)


def function_of(node: Node) -> Any:
    """Return the function that a node calls; for a method, torch.Tensor's."""
    return getattr(torch.Tensor, node.target, None) if isinstance(node.target, str) else node.target


def function_form(node: Node) -> Any:
    """Return the function that a node calls; for a method, torch's function of that name, None if there is none."""
    if node.op == "call_method":
        return getattr(torch, str(node.target), None)
    return node.target if node.op == "call_function" else None


def named_arguments(node: Node, signature: inspect.Signature) -> dict[str, Any]:
    """Return a call's arguments by name. Errors: TypeError."""
    return signature.bind(*node.args, **node.kwargs).arguments


def value_of(node: Any) -> Any:
    """Return the example of a node's result; an argument that is no node as it is."""
    return node.meta.get("example_value") if isinstance(node, Node) else node


def is_plain(tensor: torch.Tensor) -> bool:
    """True if the tensor is strided, and of no subclass."""
    return tensor.layout == torch.strided and type(tensor) in (torch.Tensor, torch.nn.Parameter, FakeTensor)


def has_kernel_dtype(node: Any) -> bool:
    """True if the node returns a tensor of a dtype that kernels take."""
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype in DTYPES


def has_kernel(node: Node) -> bool:
    """True if the call's first argument is a tensor that kernels take."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return has_kernel_dtype(first) and is_plain(value_of(first))


def storages(*nodes: Any) -> frozenset[int] | None:
    """Return the storages of the tensors that nodes return, a view's being its base's; None if they can't be told."""
    found: set[int] = set()
    for node in tree_leaves(nodes):
        value = value_of(node)
        if value is None and isinstance(node, Node):
            return None
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                if not is_plain(tensor):
                    return None
                found.add(tensor.untyped_storage()._cdata)
    return frozenset(found)


def is_in_place(node: Node) -> bool:
    """True if an argument `inplace`, wherever it stands, has the call change its first argument."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    try:
        given = inspect.signature(function_of(node)).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # a built-in function, which has no such argument
        return False
    return bool(given.get("inplace", False))


def modules_of(node: Node) -> dict[str, tuple[str, type]]:
    """Return the modules that made a call, the innermost last: by their id, the way from the graph to each, and its
    class."""
    return node.meta.get("nn_module_stack") or {}


def parts(module: fx.GraphModule) -> list[fx.GraphModule]:
    """Return the graphs that a graph calls, for example those that torch.utils.checkpoint runs."""
    return [child for child in module.children() if isinstance(child, fx.GraphModule)]

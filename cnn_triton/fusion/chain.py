"""A chain in a captured graph: a convolution or a linear layer, and the calls after it that its kernel takes on."""

import inspect
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F

from .. import functional
from ..kernels.matrix import activations
from .nodes import BATCH_NORM, Node, has_kernel, modules_of, named_arguments

__all__ = ["OURS", "Chain", "Fused", "FusedPool", "NotFused", "begin", "module_name"]

OURS: dict[Any, Any] = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
"""PyTorch's functions, with ours that compute the same."""

_PRODUCTS: set[Any] = {
    functional.conv1d, functional.conv2d, functional.conv_transpose1d, functional.conv_transpose2d, functional.linear
}  # fmt: skip
_SIGNATURES: dict[Any, inspect.Signature] = {function: inspect.signature(function) for function in _PRODUCTS}
# Dimensions of a product's result when it has a batch, the second of them being its channels; 4 for the others.
_DIMENSIONS: dict[Any, int] = {functional.linear: 2, functional.conv1d: 3, functional.conv_transpose1d: 3}


@dataclass
class Fused:
    """A product and the calls in its kernel.

    calls:  the names of all of them, in order
    places: the modules that made them
    apart:  why the call that follows isn't in the kernel, if it is one that might have been
    """

    calls: list[str]
    places: list[str]
    apart: str = ""

    @property
    def module(self) -> str:
        """The module that made the product's call."""
        return self.places[0]

    def __str__(self) -> str:
        return " + ".join(self.calls)


class NotFused(Exception):
    """A call that stays out of a kernel. str() is the reason; empty if no kernel ever takes it on.

    call: the node that is left
    """

    call: Node | None = None


class FusedPool(NamedTuple):
    """A pool in a kernel: its function's name, and the size of its windows."""

    name: str
    kernel_size: Any


@dataclass
class Chain:
    """A product, and the calls that are in its kernel so far.

    function:   our function that computes the product
    nodes:      the calls by their part: "product", "norm", "residual", "activation", "pool"
    activation: in the words that our functions take
    applied:    the activation as the table of activations has it; None for a PReLU
    reads:      values, each with the call that reads it
    """

    function: Any
    nodes: dict[str, Node]
    fused: Fused
    activation: tuple[Any, ...] | None = None
    applied: activations.Applied | None = None
    pool: FusedPool | None = None
    reads: tuple[tuple[Node, Node], ...] = ()

    @property
    def last(self) -> Node:
        """The last of its calls."""
        return next(reversed(self.nodes.values()))

    @property
    def dimensions(self) -> int:
        """The number of dimensions of a batched result."""
        return _DIMENSIONS.get(self.function, 4)

    def given(self, part: str) -> dict[str, Any]:
        """Return the arguments of its "product" or its "norm", by name, as they are in the graph now."""
        return named_arguments(self.nodes[part], BATCH_NORM if part == "norm" else _SIGNATURES[self.function])

    @property
    def by_batch(self) -> bool:
        """True if a normalisation uses the batch's own statistics; it is a second kernel then."""
        return "norm" in self.nodes and self.given("norm").get("training", False) is not False


def begin(node: Node, names: dict[str, str]) -> Chain | None:
    """Return the chain that begins with this call; None if it is no product, or one that has something fused already.

    names: the names of the model's modules, by their id
    """
    function: Any = OURS.get(node.target, node.target) if node.op == "call_function" else None
    if function not in _PRODUCTS or not has_kernel(node):
        return None
    try:
        given = named_arguments(node, _SIGNATURES[function])
    except TypeError:
        return None
    if any(given.get(name) is not None for name in ("activation", "residual", "scale")):
        return None
    reads = tuple((each, node) for each in node.all_input_nodes)
    return Chain(function, {"product": node}, Fused([function.__name__], [module_name(node, names)]), reads=reads)


def module_name(node: Node, names: dict[str, str]) -> str:
    """Return the name of the module that made a call; without one the way to the module, or its class."""
    stack = modules_of(node)
    if not stack:
        return ""
    key, (path, kind) = list(stack.items())[-1]
    path = re.sub(r"^L\['\w+'\]\.?|\._modules(?=\[)", "", path)
    path = re.sub(r"\['?(\w+)'?\]", r".\1", path).strip(".")
    return names.get(key) or path or str(getattr(kind, "__name__", kind))

"""Links of a chain: the calls that may follow a product in its kernel, and the conditions on each.

A link's `join` raises NotFused where a condition fails: with the reason, which the report gives, or without one where a
reader of the report would not expect the call in the kernel.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .. import functional
from ..kernels.matrix import activations
from ..kernels.window import arguments
from .chain import Chain, FusedPool, NotFused
from .nodes import Node, function_form, function_of, value_of

__all__ = ["ADDS_IN_PLACE", "Link", "link_of", "other_operand"]

_ADDS = {operator.add, torch.add, torch.Tensor.add}
ADDS_IN_PLACE = {operator.iadd, torch.Tensor.add_}
# The names of pools' arguments after the input.
_POOL_ARGUMENTS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
_POOLS: dict[Any, str] = {getattr(home, name): name for home in (F, functional) for name in _POOL_ARGUMENTS}
# Other arguments of pools, the value that a convolution's kernel needs, and the reason where there is another.
_POOL_NEEDS = (
    ("padding", 0, "it pads"), ("dilation", 1, "its windows have holes"), ("ceil_mode", False, "it keeps ragged edges"),
    ("return_indices", False, "it returns indices"), ("divisor_override", None, "it has a divisor of its own"),
)  # fmt: skip


class Link(NamedTuple):
    """A call that may follow a chain.

    part: its place in the chain: "norm", "residual", "activation", "pool"
    name: of the call, in reports
    join: join(chain, the chain with this call) checks the conditions, and notes an activation or a pool in the second.
          Errors: NotFused
    """

    part: str
    name: str
    join: Callable[[Chain, Chain], None]


def link_of(node: Node, value: Node) -> Link | None:
    """Return the link by which a call may follow a chain with the result `value`; None if no kernel takes it on."""
    if node.op == "call_function" and node.target is F.batch_norm:
        return Link("norm", "batch_norm", _join_norm) if node.args[:1] == (value,) else None
    if node.op in ("call_function", "call_method") and function_of(node) in _ADDS | ADDS_IN_PLACE:
        return Link("residual", "add", _join_residual) if other_operand(node, value) is not None else None
    if node.args[:1] != (value,):
        return None
    if (pool := _pool_of(node)) is not None:
        name, given = pool
        return Link("pool", name, functools.partial(_join_pool, name, given))
    words = _activation_of(node)
    return None if words is None else Link("activation", words[0], functools.partial(_join_activation, words))


def _pool_of(node: Node) -> tuple[str, dict[str, Any]] | None:
    """Return a pool's name, and its arguments after the input by name; None for any other call."""
    name = _POOLS.get(function_form(node))
    return None if name is None else (name, dict(zip(_POOL_ARGUMENTS[name], node.args[1:], strict=False)) | node.kwargs)


def _activation_of(node: Node) -> tuple[Any, ...] | None:
    """Return an activation in the words that our functions take; None for any other call, or for arguments that the
    activation's function doesn't have."""
    function = function_form(node)
    try:
        if function == F.prelu:
            return _prelu(*node.args[1:], **node.kwargs)
        return activations.meant(function, *node.args[1:], **node.kwargs)
    except TypeError:
        return None


def _prelu(weight: Any) -> tuple[Any, ...]:
    """Return a PReLU's name and its slope."""
    return "prelu", weight


def other_operand(node: Node, value: Node) -> Node | None:
    """Return the operand of an addition to `value`; None if it is no node."""
    operands = [*node.args[:2], *([node.kwargs["other"]] if "other" in node.kwargs else [])]
    if len(operands) != 2:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return other if isinstance(other, Node) else None


def _join_norm(chain: Chain, longer: Chain) -> None:
    training = longer.given("norm").get("training", False)
    if chain.nodes.keys() & {"residual", "activation"}:
        raise NotFused
    if not isinstance(training, bool):
        raise NotFused("whether it is in training is not fixed")
    if training and chain.function is not functional.conv2d:
        raise NotFused("in training only the kernel of a convolution of images sums the statistics")
    if value_of(chain.last).dim() != chain.dimensions:
        raise NotFused("its channels are not those of the product, or there is no batch")


def _join_residual(chain: Chain, longer: Chain) -> None:
    node = longer.last
    mine, its = value_of(chain.last), value_of(other_operand(node, chain.last))
    if "activation" in chain.nodes:
        raise NotFused
    if set(node.kwargs) - {"other"} or len(node.args) > 2:
        raise NotFused("it is scaled")
    if not isinstance(its, torch.Tensor) or not isinstance(mine, torch.Tensor):
        raise NotFused("it adds no tensor")
    alike = (its.shape, its.dtype, its.device) == (mine.shape, mine.dtype, mine.device)
    if not alike or value_of(node).shape != mine.shape:
        raise NotFused("the other tensor has another shape or dtype")


def _join_activation(words: tuple[Any, ...], chain: Chain, longer: Chain) -> None:
    has_slope = words[0] == "prelu"
    if len(longer.last.all_input_nodes) > 1 and not has_slope:
        raise NotFused("its numbers are not fixed")
    if "pool" in chain.nodes:
        raise NotFused
    if has_slope:
        _check_slope(words[1], chain)
    applied = None if has_slope else _applied(words)
    keeps_input = applied is None or applied.saves == "input"
    if chain.by_batch and "residual" in chain.nodes and keeps_input:
        raise NotFused("in training the kernel would keep the other tensor, which may be changed in place")
    longer.activation, longer.applied = words, applied


def _applied(words: tuple[Any, ...]) -> activations.Applied:
    """Return the activation as the table of activations has it. Errors: NotFused for words that no activation has."""
    try:
        return activations.of(activations.spell(words))
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotFused(str(error)) from None


def _check_slope(slope: Any, chain: Chain) -> None:
    """Errors: NotFused for a PReLU's slope that the kernel can't take."""
    mine, its = value_of(chain.last), value_of(slope)
    if not isinstance(its, torch.Tensor) or (its.dtype, its.device) != (mine.dtype, mine.device):
        raise NotFused("its slope is of another dtype")
    if its.numel() > 1 and mine.dim() != chain.dimensions:
        raise NotFused("its channels are not those of the product, or there is no batch")


def _join_pool(name: str, given: dict[str, Any], chain: Chain, longer: Chain) -> None:
    if chain.function is not functional.conv2d or chain.activation != ("relu",):
        raise NotFused
    if "residual" in chain.nodes:
        raise NotFused("the kernel that pools adds nothing")
    if chain.by_batch:
        raise NotFused("in training the normalisation is a second kernel, which pools nothing")
    if len(longer.last.all_input_nodes) > 1 or value_of(chain.last).dim() != 4:
        raise NotFused("its windows are not fixed, or the image has no batch")
    if reason := _pool_misfit(**given):
        raise NotFused(reason)
    longer.pool = FusedPool(name, given["kernel_size"])


def _pool_misfit(kernel_size: Any, stride: Any = None, **others: Any) -> str:
    """Return why a pool with these arguments can't be in a convolution's kernel; nothing if it can."""
    try:
        size = arguments.pair("kernel_size", kernel_size, 1)
        step = size if stride in (None, (), []) else arguments.pair("stride", stride, 1)
    except (TypeError, RuntimeError) as error:
        return str(error)
    if step != size:
        overlap = any(a < b for a, b in zip(step, size, strict=True))
        return "its windows overlap" if overlap else "its windows leave gaps"
    for name, usual, why in _POOL_NEEDS:
        if others.get(name, usual) not in (usual, (usual, usual), [usual, usual]):
            return why
    return ""

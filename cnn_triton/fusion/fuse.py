"""Our kernels in a graph that TorchDynamo captured: a convolution or a linear layer and the calls after it as one call.

    for each convolution, transposed convolution and linear layer in the graph (chain.py):
        take on the call that alone reads its result, and so on, as far as one kernel goes (links.py):
            batch norm -> + another tensor -> activation -> pool
        put one call in place of all of them, where the last one stood

The one call reads everything where the last one stood, which is later than the graph did. So a call is taken on only if
nothing in between writes a value that the calls before it read, or reads a value that they write (effects.py).
"""

import dataclasses
import operator
from typing import Any

import torch.nn.functional as F
from torch import fx
from torch.utils._pytree import tree_leaves

from .. import functional
from ..functional.normalized import norm_scale
from .chain import OURS, Chain, Fused, NotFused, begin, module_name
from .effects import Effects
from .links import ADDS_IN_PLACE, link_of, other_operand
from .nodes import Node, function_of, has_kernel, is_in_place, modules_of, parts, value_of

__all__ = ["fuse", "use_pytorch"]

_THEIRS = {ours: theirs for theirs, ours in OURS.items()}
_ONLY_OURS = {"padding_mode", "activation", "scale", "residual"}  # arguments that PyTorch's functions don't have


def fuse(module: fx.GraphModule, names: dict[str, str]) -> list[Fused]:
    """Put our kernels into the module's graph, in place.

    names:   the names of the model's modules, by their id
    returns: each product, with the calls in its kernel
    """
    effects = Effects(module.graph)
    taken: set[Node] = set()
    ends: list[tuple[Chain, NotFused]] = []
    chains = [chain for node in effects.nodes if (chain := begin(node, names))]
    for chain in chains:
        try:
            while True:
                _take_on(chain, effects, taken)
                taken.add(chain.last)
                chain.fused.places.append(module_name(chain.last, names))
        except NotFused as reason:
            ends.append((chain, reason))
    for chain, end in ends:
        chain.fused.apart = str(end) if end.call not in taken else ""  # another product's kernel may have it
    for chain in chains:
        _replace(chain)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in OURS and has_kernel(node):
            node.target = OURS[node.target]
    module.graph.lint()
    module.recompile()
    return [*(chain.fused for chain in chains), *(each for part in parts(module) for each in fuse(part, names))]


def use_pytorch(module: fx.GraphModule) -> None:
    """Put PyTorch's functions in place of those of ours that compute the same."""
    for node in module.graph.nodes:
        theirs = _THEIRS.get(node.target) if node.op == "call_function" else None
        if theirs and all(value in ("zeros", None) for name, value in node.kwargs.items() if name in _ONLY_OURS):
            node.target = theirs
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in _ONLY_OURS}
    module.recompile()
    for part in parts(module):
        use_pytorch(part)


def _take_on(chain: Chain, effects: Effects, taken: set[Node]) -> None:
    """Take the next call into the chain. Errors: NotFused."""
    users = [user for user in chain.last.users if user not in taken]
    links = [(user, link) for user in users if (link := link_of(user, chain.last))]
    if not links:
        raise NotFused
    (user, link), *_ = links
    longer = dataclasses.replace(chain, nodes={**chain.nodes, link.part: user})
    longer.reads = (*chain.reads, *((each, user) for each in user.all_input_nodes if each is not chain.last))
    try:
        if link.part in chain.nodes:
            raise NotFused
        link.join(chain, longer)
        _check_order(chain, longer, effects)
        if link.part == "activation":
            _check_saved(longer, effects)
    except NotFused as reason:
        left = NotFused(f"{link.name} is left: {reason}" if str(reason) else "")
        left.call = user
        raise left from None
    vars(chain).update(vars(longer))
    chain.fused.calls.append(link.name)


def _check_order(chain: Chain, longer: Chain, effects: Effects) -> None:
    """Check that the chain's calls may run where the longer one's last call stands. Errors: NotFused."""
    user, own = longer.last, list(longer.nodes.values())
    uses = [leaf for leaf in tree_leaves((user.args, user.kwargs)) if leaf is chain.last]
    if len(chain.last.users) > 1 or len(uses) > 1:
        raise NotFused("something else also reads its input")
    if any(effects.may_write(value, reader, user, own) for value, reader in longer.reads):
        raise NotFused("a value that it reads, or that a call before it reads, may change in between")
    if longer.by_batch:
        norm, given = longer.nodes["norm"], longer.given("norm")
        for value in (given["running_mean"], given["running_var"]):
            if isinstance(value, Node) and effects.may_read(value, norm, user, own):
                raise NotFused("the running statistics are read in between")
    into_other = function_of(user) in ADDS_IN_PLACE and user.args[0] is not chain.last
    if into_other and not effects.is_last_use(user, user.args[0]):  # later users of that tensor would miss the sum
        raise NotFused("it changes the other tensor")


def _check_saved(chain: Chain, effects: Effects) -> None:
    """Check that nothing may change the output of an activation for which our kernel keeps the output and PyTorch keeps
    the input. Errors: NotFused."""
    node, applied = chain.last, chain.applied
    keeps = applied is not None and applied.saves == "output" and applied.rule.torch_saves == "input"
    theirs = node.target is F.leaky_relu and is_in_place(node)  # for which PyTorch keeps the output, too
    if keeps and not theirs and getattr(value_of(node), "requires_grad", True) and effects.may_change_later(node):
        raise NotFused("its output, which the kernel would keep, may be changed in place")


def _replace(chain: Chain) -> None:
    """Put one call in place of the chain's."""
    graph, nodes, function = chain.last.graph, chain.nodes, chain.function
    given = chain.given("product")
    with graph.inserting_before(chain.last):
        if "residual" in nodes:
            before = list(nodes.values())[list(nodes).index("residual") - 1]
            given["residual"] = other_operand(nodes["residual"], before)
        if "norm" in nodes and chain.by_batch:
            function = functional.conv2d_batch_norm
            norm = _norm_arguments(chain)
            given |= {{"weight": "norm_weight", "bias": "norm_bias"}.get(name, name): norm[name] for name in norm}
        elif "norm" in nodes:
            norm = _norm_arguments(chain)
            statistics = (given.get("bias"), norm["running_mean"], norm["running_var"])
            affine = (norm.get("weight"), norm.get("bias"), norm.get("eps", 1e-5))
            both = graph.call_function(norm_scale, (*statistics, *affine))
            given["scale"], given["bias"] = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
        if chain.pool:
            function = getattr(functional, f"conv2d_relu_{chain.pool.name}")
            given["pool_size"] = chain.pool.kernel_size
        elif chain.activation:
            given["activation"] = chain.activation
        call = graph.call_function(function, (), given)
    call.meta = dict(chain.last.meta) | {"nn_module_stack": modules_of(nodes["product"])}
    chain.last.replace_all_uses_with(call)
    for node in reversed(nodes.values()):
        graph.erase_node(node)


def _norm_arguments(chain: Chain) -> dict[str, Any]:
    """Return the arguments of the chain's normalisation, without its input."""
    norm = chain.given("norm")
    del norm["input"]
    return norm

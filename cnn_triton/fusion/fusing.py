"""Our kernels in a graph that TorchDynamo captured: a convolution or a linear layer, and what follows it, as one call.

    for each convolution, transposed convolution and linear layer in the graph:
        take on the call that alone reads its result, and so on, as far as one kernel goes:
            batch norm -> + another tensor -> activation -> pool
        put one call in place of all of them, where the last one stood

The one call reads everything where the last one stood, which is later than the graph did. So a call is taken on only if
nothing in between writes what the calls before it read, or reads what they write (`Effects`).
"""

import dataclasses
import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from .. import functional
from ..kernels.base.precision import PRECISION
from ..kernels.matrix import activations
from ..kernels.window import arguments

__all__ = ["Fused", "changed", "fuse", "modules_of", "plain"]

Node = fx.Node

# PyTorch's functions that a kernel stands for alone, and those of ours that begin a chain.
_OURS: dict[Any, Any] = {getattr(F, name): getattr(functional, name) for name in functional.__all__ if hasattr(F, name)}
_PRODUCTS: set[Any] = {
    functional.conv1d, functional.conv2d, functional.conv_transpose1d, functional.conv_transpose2d, functional.linear
}  # fmt: skip
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_ONLY_OURS = {"padding_mode", "activation", "scale", "residual"}  # arguments that PyTorch's have not
# Pools, and the names of their arguments but the input.
_POOLS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
# Other arguments of pools, what they must be in a convolution's kernel, and what is said of the others.
_PLAIN = (
    ("padding", 0, "it pads"), ("dilation", 1, "its windows have holes"), ("ceil_mode", False, "it keeps ragged edges"),
    ("return_indices", False, "it returns indices"), ("divisor_override", None, "it has a divisor of its own"),
)  # fmt: skip


def _pool(word: str, *given: Any, **named: Any) -> tuple[Any, ...]:
    """The words of a pool."""
    return word, dict(zip(_POOLS[word], given, strict=False)) | named


def _slope(weight: Any) -> tuple[Any, ...]:
    """The words of a PReLU."""
    return "prelu", weight


# Functions that may follow a product in its kernel besides the activations': their words, of their other arguments.
_WORDS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    F.prelu: _slope,
    **dict.fromkeys((F.max_pool2d, functional.max_pool2d), functools.partial(_pool, "max_pool2d")),
    **dict.fromkeys((F.avg_pool2d, functional.avg_pool2d), functools.partial(_pool, "avg_pool2d")),
}


def _words_of(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...] | None:
    """What a call does that may follow a product, in words and numbers, by its other arguments; None if nothing.
    Errors: TypeError for arguments that it doesn't have."""
    rule = _WORDS.get(function)
    return rule(*args, **kwargs) if rule else activations.meant(function, *args, **kwargs)


_ADDS = {operator.add, torch.add, torch.Tensor.add}
_ADDS_IN_PLACE = {operator.iadd, torch.Tensor.add_}
_UPDATED = (
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "ilshift",
    "irshift", "iconcat",
)  # fmt: skip
_UPDATES = {getattr(operator, name) for name in _UPDATED}
# Without effects on tensors; what is none of these may do anything.
_KNOWN = {
    each for home in (torch, F, torch._C._nn, torch.special, torch.linalg, torch.fft, operator, math)
    for each in vars(home).values() if callable(each) and not isinstance(each, type)
} | {getattr(functional, name) for name in functional.__all__} | {getattr}  # fmt: skip
_STATEFUL = ("batch_norm", "instance_norm", "embedding", "quant")  # in names of those that may write other arguments
_UNKNOWN_METHODS = {"backward", "register_hook", "retain_grad", "register_post_accumulate_grad_hook", "set_"}


def function_of(node: Node) -> Any:
    """What a node calls; of a method, Tensor's."""
    return getattr(torch.Tensor, node.target, None) if isinstance(node.target, str) else node.target


def _function_form(node: Node) -> Any:
    """What a node calls; of a method torch's function of that name, if there is one."""
    if node.op == "call_method":
        return getattr(torch, str(node.target), None)
    return node.target if node.op == "call_function" else None


def value_of(node: Any) -> Any:
    """The example of what a node returns."""
    return node.meta.get("example_value") if isinstance(node, Node) else node


def memories(*nodes: Any) -> frozenset[int] | None:
    """The storages of the tensors that these nodes return, a view's being its base's; None if they can't be told."""
    found: set[int] = set()
    for node in tree_leaves(nodes):
        value = value_of(node)
        if value is None and isinstance(node, Node):
            return None
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                if not _plain(tensor):
                    return None
                found.add(tensor.untyped_storage()._cdata)
    return frozenset(found)


def _plain(tensor: torch.Tensor) -> bool:
    """Is it strided, and of no class of its own?"""
    return tensor.layout == torch.strided and type(tensor) in (torch.Tensor, torch.nn.Parameter, FakeTensor)


def _named(node: Node, names: inspect.Signature) -> dict[str, Any]:
    """A call's arguments by name; errors: TypeError."""
    return names.bind(*node.args, **node.kwargs).arguments


_BATCH_NORM = inspect.signature(F.batch_norm)
_SIGNATURES: dict[Any, inspect.Signature] = {function: inspect.signature(function) for function in _PRODUCTS}


class Effects:
    """What each call of a graph does to memory beside what it returns."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        inputs = [node for node in self.nodes if node.op == "placeholder" and _has_kernel_dtype(node)]
        self.inputs = frozenset[int]().union(*(memories(node) or () for node in inputs))
        self.writes = {node: self._widened(node, self._written(node)) for node in self.nodes}

    def _widened(self, node: Node, written: frozenset[int] | None) -> frozenset[int] | None:
        """With all inputs, if one is written: in another call they may share their memory. Statistics don't."""
        if written and node.target is not F.batch_norm and written & self.inputs:
            return written | self.inputs
        return written

    def _written(self, node: Node) -> frozenset[int] | None:
        """The memories that it writes; None: it may do anything, or hold for what comes after it."""
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
            return memories(node.args[0]) if changes else nothing
        if node.op != "call_function" or function not in _KNOWN:
            return None
        if function is F.batch_norm:
            given = _named(node, _BATCH_NORM)
            own = (given.get("running_mean"), given.get("running_var")) if given.get("training", False) else ()
            return memories(*own)
        if value_of(node) is None and function is not operator.setitem:
            return None
        name = getattr(function, "__name__", "_")
        written: list[Any] = [node.kwargs.get("out")]
        if (
            function in _UPDATES or function is operator.setitem or (name.endswith("_") and not name.endswith("__"))
            or _in_place(node)
        ):  # fmt: skip
            written += node.args[:1]
        if any(word in name for word in _STATEFUL):
            written += [each for each in node.all_input_nodes if each not in node.args[:1]]
        return memories(*written)

    def _by_schema(self, node: Node, function: Any) -> frozenset[int] | None:
        written = []
        for i, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.append(node.args[i] if i < len(node.args) else node.kwargs.get(argument.name))
        return memories(*written)

    def between(self, first: Node, last: Node, own: list[Node]) -> Iterator[Node]:
        """The calls between two, but for those of a chain."""
        for node in self.nodes[self.place[first] + 1 : self.place[last]]:
            if node not in own:
                yield node

    def changed(self, value: Node, since: Node, until: Node, own: list[Node]) -> bool:
        """May a call between these two write this value?"""
        return any(_meet(self.writes[node], memories(value)) for node in self.between(since, until, own))

    def looked_at(self, value: Node, since: Node, until: Node, own: list[Node]) -> bool:
        """May a call between these two read this value?"""
        return any(
            self.writes[node] is None or _meet(memories(node.all_input_nodes), memories(value))
            for node in self.between(since, until, own)
        )

    def last_sees(self, call: Node, value: Any) -> bool:
        """Is a call the last to see the memory of a value, which the graph itself made?"""
        for node in self.nodes[: self.place[call]]:
            if _meet(memories(node), memories(value)) and (
                node.op in ("placeholder", "get_attr")
                or any(self.place[user] > self.place[call] for user in node.users)
            ):
                return False
        return True

    def changed_after(self, node: Node) -> bool:
        """May what a call returns be changed in place, by the graph or by who gets it?"""
        later = self.nodes[self.place[node] + 1 :]
        return _meet(memories(later[-1].args), memories(node)) or any(
            _meet(self.writes[each], memories(node)) for each in later
        )


def _meet(some: frozenset[int] | None, others: frozenset[int] | None) -> bool:
    """May the memories be partly the same?"""
    return some is None or others is None or bool(some & others)


def _in_place(node: Node) -> bool:
    """Does it change its first argument? By the argument of that name, wherever it stands."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    try:
        given = inspect.signature(function_of(node)).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # a built-in function, which has no such argument
        return False
    return bool(given.get("inplace", False))


@dataclass
class Fused:
    """A product and what is in its kernel. `words`: of all of it, as people say them; `places`: the modules that called
    them; `apart`: why what follows isn't in it, if it might have been."""

    words: list[str]
    places: list[str]
    apart: str = ""

    @property
    def where(self) -> str:
        """The module that the product is of."""
        return self.places[0]

    def __str__(self) -> str:
        return " + ".join(self.words)


@dataclass
class _Chain:
    """A product on its way: the calls in it, by what they are; `reads`: values, each with the call that reads it."""

    function: Any
    nodes: dict[str, Node]
    fused: Fused
    activation: tuple[Any, ...] | None = None
    pool: tuple[str, dict[str, Any]] | None = None
    reads: tuple[tuple[Node, Node], ...] = ()

    @property
    def last(self) -> Node:
        return next(reversed(self.nodes.values()))

    def given(self, what: str) -> dict[str, Any]:
        """The arguments of its product or its normalisation, by name, as they are in the graph now."""
        return _named(self.nodes[what], _BATCH_NORM if what == "norm" else _SIGNATURES[self.function])

    @property
    def by_batch(self) -> bool:
        """Does a normalisation use the batch's own statistics? Then it is a second kernel."""
        return "norm" in self.nodes and self.given("norm").get("training", False) is not False


class _Apart(Exception):
    """Why a call can't be in the kernel; without words, that it is none that ever is. `call`: the one that is left."""

    call: Node | None = None


def fuse(module: fx.GraphModule, names: dict[str, str]) -> list[Fused]:
    """Puts our kernels into the module's graph, in place; says what is in each. `names`: of modules, by their id."""
    effects = Effects(module.graph)
    taken: set[Node] = set()
    left: list[tuple[_Chain, _Apart]] = []
    chains = [chain for node in effects.nodes if (chain := _begun(node, names))]
    for chain in chains:
        try:
            while True:
                _take_on(chain, effects, taken)
                taken.add(chain.last)
                chain.fused.places.append(_where(chain.last, names))
        except _Apart as reason:
            left.append((chain, reason))
    for chain, apart in left:
        chain.fused.apart = str(apart) if apart.call not in taken else ""  # another product's kernel may have it
    for chain in chains:
        _replace(chain)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _OURS and _has_kernel(node):
            node.target = _OURS[node.target]
    module.graph.lint()
    module.recompile()
    return [*(chain.fused for chain in chains), *(each for part in _parts(module) for each in fuse(part, names))]


def _parts(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graphs that a graph calls: what torch.utils.checkpoint was given, for one."""
    return [child for child in module.children() if isinstance(child, fx.GraphModule)]


def changed(module: fx.GraphModule) -> list[int]:
    """Which of its arguments a graph writes."""
    effects = Effects(module.graph)
    written = frozenset[int]().union(*(each for each in effects.writes.values() if each))
    placeholders = [node for node in effects.nodes if node.op == "placeholder"]
    return [i for i, node in enumerate(placeholders) if written & (memories(node) or frozenset())]


def _has_kernel(node: Node) -> bool:
    """Is its first argument a tensor of a dtype and kind that kernels take?"""
    first = node.args[0] if node.args else node.kwargs.get("input")
    return _has_kernel_dtype(first) and _plain(value_of(first))


def _has_kernel_dtype(node: Any) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype in PRECISION


def plain(module: fx.GraphModule) -> None:
    """Puts PyTorch's functions in the place of ours that are the same, in place."""
    for node in module.graph.nodes:
        theirs = _THEIRS.get(node.target) if node.op == "call_function" else None
        if theirs and all(value in ("zeros", None) for name, value in node.kwargs.items() if name in _ONLY_OURS):
            node.target = theirs
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in _ONLY_OURS}
    module.recompile()
    for part in _parts(module):
        plain(part)


def _begun(node: Node, names: dict[str, str]) -> _Chain | None:
    """The chain that begins with this call, if it is a product by itself."""
    function: Any = _OURS.get(node.target, node.target) if node.op == "call_function" else None
    if function not in _PRODUCTS or not _has_kernel(node):
        return None
    try:
        given = _named(node, _SIGNATURES[function])
    except TypeError:
        return None
    if any(given.get(name) is not None for name in ("activation", "residual", "scale")):
        return None
    reads = tuple((each, node) for each in node.all_input_nodes)
    return _Chain(function, {"product": node}, Fused([function.__name__], [_where(node, names)]), reads=reads)


def modules_of(node: Node) -> dict[str, tuple[str, type]]:
    """The modules that a call was made in, the innermost last: by their id, how the graph came to them, and their
    class."""
    return node.meta.get("nn_module_stack") or {}


def _where(node: Node, names: dict[str, str]) -> str:
    """The name of the module that called, else the way to it, or its class."""
    stack = modules_of(node)
    if not stack:
        return ""
    key, (path, kind) = list(stack.items())[-1]
    path = re.sub(r"^L\['\w+'\]\.?|\._modules(?=\[)", "", path)
    path = re.sub(r"\['?(\w+)'?\]", r".\1", path).strip(".")
    return names.get(key) or path or str(getattr(kind, "__name__", kind))


def _take_on(chain: _Chain, effects: Effects, taken: set[Node]) -> None:
    """Takes the next call into the chain; errors: _Apart."""
    users = [user for user in chain.last.users if user not in taken]
    steps = [(user, step) for user in users if (step := _step(user, chain.last))]
    if not steps:
        raise _Apart
    (user, step), *_ = steps
    longer = dataclasses.replace(chain, nodes={**chain.nodes, step.what: user})
    longer.reads = (*chain.reads, *((each, user) for each in user.all_input_nodes if each is not chain.last))
    own = list(longer.nodes.values())
    try:
        if step.what in chain.nodes:
            raise _Apart
        step.tell(chain, longer)
        uses = [leaf for leaf in tree_leaves((user.args, user.kwargs)) if leaf is chain.last]
        if len(chain.last.users) > 1 or len(uses) > 1:
            raise _Apart("something else reads what it is given, too")
        if any(effects.changed(value, reader, user, own) for value, reader in longer.reads):
            raise _Apart("what is read for it, or before it, may change in between")
        if longer.by_batch:
            norm, given = longer.nodes["norm"], longer.given("norm")
            for value in (given["running_mean"], given["running_var"]):
                if isinstance(value, Node) and effects.looked_at(value, norm, user, own):
                    raise _Apart("the running statistics are read in between")
        into_other = function_of(user) in _ADDS_IN_PLACE and user.args[0] is not chain.last
        if into_other and not effects.last_sees(user, user.args[0]):  # who else sees that would miss the sum
            raise _Apart("it changes the other tensor")
        if step.what == "activation":
            _check_saved(longer, effects)
    except _Apart as reason:
        apart = _Apart(f"{step.word} is left: {reason}" if str(reason) else "")
        apart.call = user
        raise apart from None
    vars(chain).update(vars(longer))
    chain.fused.words.append(step.word)


def _check_saved(chain: _Chain, effects: Effects) -> None:
    """An activation of ours that keeps its output where PyTorch's keeps its input must leave its users free to change
    that output."""
    node = chain.last
    differs = chain.activation is not None and chain.activation[0] in ("leaky_relu", "hardtanh", "relu6")
    keeps = differs and activations.of(activations.spell(chain.activation)).saves == "output"
    theirs = node.target is F.leaky_relu and _in_place(node)  # which keeps its output, too
    if keeps and not theirs and getattr(value_of(node), "requires_grad", True) and effects.changed_after(node):
        raise _Apart("its output, which the kernel would keep, may be changed in place")


class _Step(NamedTuple):
    """What a call is to a chain: as what, its word, and `tell`: (chain, the longer one) -> None; errors: _Apart."""

    what: str
    word: str
    tell: Callable[[_Chain, _Chain], None]


def _step(node: Node, value: Node) -> _Step | None:
    """What a call that reads `value` is to a chain; None if it is nothing that a kernel could do."""
    if node.op == "call_function" and node.target is F.batch_norm:
        return _Step("norm", "batch_norm", _tell_norm) if node.args[:1] == (value,) else None
    if node.op in ("call_function", "call_method") and function_of(node) in _ADDS | _ADDS_IN_PLACE:
        return _Step("residual", "add", _tell_residual) if _other(node, value) is not None else None
    if node.args[:1] != (value,):
        return None
    try:
        words = _words_of(_function_form(node), *node.args[1:], **node.kwargs)
    except TypeError:
        return None
    if words is None:
        return None
    what, tell = ("pool", _tell_pool) if words[0].endswith("pool2d") else ("activation", _tell_activation)
    return _Step(what, words[0], functools.partial(tell, words))


def _other(node: Node, value: Node) -> Node | None:
    """The operand of an addition that is not this one."""
    operands = [*node.args[:2], *([node.kwargs["other"]] if "other" in node.kwargs else [])]
    if len(operands) != 2:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    return other if isinstance(other, Node) else None


def _tell_norm(chain: _Chain, longer: _Chain) -> None:
    training = longer.given("norm").get("training", False)
    if chain.nodes.keys() & {"residual", "activation"}:
        raise _Apart
    if not isinstance(training, bool):
        raise _Apart("whether it is in training is not fixed")
    if training and chain.function is not functional.conv2d:
        raise _Apart("in training only the kernel of a convolution of images sums the statistics")
    if value_of(chain.last).dim() != _batched(chain):
        raise _Apart("its channels are not those of the product, or there is no batch")


def _tell_residual(chain: _Chain, longer: _Chain) -> None:
    node = longer.last
    mine, its = value_of(chain.last), value_of(_other(node, chain.last))
    if "activation" in chain.nodes:
        raise _Apart
    if set(node.kwargs) - {"other"} or len(node.args) > 2:
        raise _Apart("it is scaled")
    if not isinstance(its, torch.Tensor) or not isinstance(mine, torch.Tensor):
        raise _Apart("it adds no tensor")
    if (its.shape, its.dtype, its.device) != (mine.shape, mine.dtype, mine.device) or value_of(
        node
    ).shape != mine.shape:
        raise _Apart("the other tensor has another shape or dtype")


def _tell_activation(words: tuple[Any, ...], chain: _Chain, longer: _Chain) -> None:
    has_slope = words[0] == "prelu"
    if len(longer.last.all_input_nodes) > 1 and not has_slope:
        raise _Apart("its numbers are not fixed")
    if "pool" in chain.nodes:
        raise _Apart
    saves = _slope_saves(words[1], chain) if has_slope else _word_saves(words)
    if chain.by_batch and "residual" in chain.nodes and saves == "input":
        raise _Apart("in training the kernel would keep the other tensor, which may be changed in place")
    longer.activation = words


def _word_saves(words: tuple[Any, ...]) -> str:
    """What an activation's derivatives are computed from; errors: _Apart, if there is none of these words."""
    try:
        return activations.of(activations.spell(words)).saves
    except (TypeError, ValueError, RuntimeError) as error:
        raise _Apart(str(error)) from None


def _slope_saves(slope: Any, chain: _Chain) -> str:
    """The same of PReLU; errors: _Apart, if the kernel can't take its slope."""
    mine, its = value_of(chain.last), value_of(slope)
    if not isinstance(its, torch.Tensor) or (its.dtype, its.device) != (mine.dtype, mine.device):
        raise _Apart("its slope is of another dtype")
    if its.numel() > 1 and mine.dim() != _batched(chain):
        raise _Apart("its channels are not those of the product, or there is no batch")
    return "input"


def _batched(chain: _Chain) -> int:
    """The dimensions of what the product returns, of which the second are its channels."""
    return {functional.linear: 2, functional.conv1d: 3, functional.conv_transpose1d: 3}.get(chain.function, 4)


def _tell_pool(words: tuple[Any, ...], chain: _Chain, longer: _Chain) -> None:
    if chain.function is not functional.conv2d or chain.activation != ("relu",):
        raise _Apart
    if "residual" in chain.nodes:
        raise _Apart("the kernel that pools adds nothing")
    if chain.by_batch:
        raise _Apart("in training the normalisation is a second kernel, which pools nothing")
    if len(longer.last.all_input_nodes) > 1 or value_of(chain.last).dim() != 4:
        raise _Apart("its windows are not fixed, or the image has no batch")
    if reason := _unfit(**words[1]):
        raise _Apart(reason)
    longer.pool = words[0], words[1]


def _unfit(kernel_size: Any, stride: Any = None, **others: Any) -> str:
    """Why a pool of these windows can't be in a convolution's kernel; nothing if it can."""
    try:
        size = arguments.pair("kernel_size", kernel_size, 1)
        step = size if stride in (None, (), []) else arguments.pair("stride", stride, 1)
    except (TypeError, RuntimeError) as error:
        return str(error)
    if step != size:
        overlap = any(a < b for a, b in zip(step, size, strict=True))
        return "its windows overlap" if overlap else "its windows leave gaps"
    for name, usual, why in _PLAIN:
        if others.get(name, usual) not in (usual, (usual, usual), [usual, usual]):
            return why
    return ""


def _replace(chain: _Chain) -> None:
    """One call in place of the chain's."""
    graph, nodes, function = chain.last.graph, chain.nodes, chain.function
    given = chain.given("product")
    with graph.inserting_before(chain.last):
        if "residual" in nodes:
            before = list(nodes.values())[list(nodes).index("residual") - 1]
            given["residual"] = _other(nodes["residual"], before)
        if "norm" in nodes:
            norm = chain.given("norm")
            del norm["input"]
            if chain.by_batch:
                function = functional.conv2d_batch_norm
                given |= {{"weight": "norm_weight", "bias": "norm_bias"}.get(name, name): norm[name] for name in norm}
            else:
                known = (given.get("bias"), norm["running_mean"], norm["running_var"])
                more = (norm.get("weight"), norm.get("bias"), norm.get("eps", 1e-5))
                both = graph.call_function(functional.norm_scale, (*known, *more))
                given["scale"], given["bias"] = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
        if chain.pool:
            function = getattr(functional, f"conv2d_relu_{chain.pool[0]}")
            given["pool_size"] = chain.pool[1]["kernel_size"]
        elif chain.activation:
            given["activation"] = chain.activation
        call = graph.call_function(function, (), given)
    call.meta = dict(chain.last.meta) | {"nn_module_stack": modules_of(nodes["product"])}
    chain.last.replace_all_uses_with(call)
    for node in reversed(nodes.values()):
        graph.erase_node(node)

"""torch.compile's backend: what TorchDynamo captures of any model, with our kernels put in.

torch.compile(model, backend="cnn_triton")
    Dynamo      follows the model's forward, guards what it relied on, breaks the graph at what it can't follow
    fusing.py   puts our kernels into each graph
    `Captured`  runs that where kernels run, and the graph as it was where they don't, chosen at each call
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._higher_order_ops.wrap import tag_activation_checkpoint
from torch.utils.checkpoint import checkpoint

from ..dispatch import runs_kernels
from .fusing import Fused, changed, fuse, plain

__all__ = ["Captures", "backend_of", "captures", "compile_graph", "eagerly", "node_by_node"]

Interpreter = Callable[[fx.GraphModule], fx.Interpreter]


class Captures:
    """What the backend was given and made of it, since the start or `clear`; str() is a report for people.

    graphs: how many graphs were captured
    fused:  every convolution and linear layer in them, with what is in its kernel
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets what was captured."""
        with self._lock:
            self.graphs, self.fused = 0, list[Fused]()

    def add(self, found: list[Fused]) -> None:
        """Notes a graph."""
        with self._lock:
            self.graphs += 1
            self.fused += found

    @property
    def patterns(self) -> Counter[str]:
        """How often each pattern is there, as in "conv2d + batch_norm + relu"."""
        return Counter(map(str, self.fused))

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Why calls that a kernel might have taken on are left, each with the module it follows."""
        return [(each.apart, each.where) for each in self.fused if each.apart]

    def __str__(self) -> str:
        lines = [f"{self.graphs} graph{'s' * (self.graphs != 1)} captured"]
        lines += [f"  {pattern}: {count}" for pattern, count in self.patterns.most_common()]
        reasons: dict[str, list[str]] = {}
        for reason, where in self.apart:
            reasons.setdefault(reason, []).append(where)
        for reason, places in reasons.items():
            names = [name for name in dict.fromkeys(places) if name]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {reason}: {len(places)}" + (f" ({shown})" if shown else ""))
        return "\n".join(lines)


class OfOne(Captures):
    """The captures of one model: what is captured again, for another mode or size, counts once."""

    def add(self, found: list[Fused]) -> None:
        """Notes a graph."""
        before = Counter(map(_key, self.fused))
        again = Counter[Any]()
        new = []
        for each in found:
            again[_key(each)] += 1
            if again[_key(each)] > before[_key(each)]:
                new.append(each)
        super().add(new)


def _key(fused: Fused) -> tuple[str, str, str]:
    return fused.where, str(fused), fused.apart


captures = Captures()
"""What this process captured."""

_interpreter: Interpreter | None = None


@contextlib.contextmanager
def node_by_node(interpreter: Interpreter) -> Iterator[None]:
    """Within, what runs a captured graph is made by this, from the graph; for those who watch."""
    global _interpreter
    before, _interpreter = _interpreter, interpreter
    try:
        yield
    finally:
        _interpreter = before


_eagerly = False


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Within, what is not ours is not compiled: for tensors that have no memory."""
    global _eagerly
    before, _eagerly = _eagerly, True
    try:
        yield
    finally:
        _eagerly = before


class Captured:
    """A captured graph: `theirs` as it was, `ours` with our kernels in it, for tensors on these devices."""

    def __init__(self, theirs: fx.GraphModule, ours: fx.GraphModule, devices: tuple[torch.device, ...]) -> None:
        self.theirs = theirs
        self.ours = ours
        self.devices = devices

    @property
    def chosen(self) -> fx.GraphModule:
        """The one to run here and now."""
        return self.ours if any(map(runs_kernels, self.devices)) else self.theirs

    def __call__(self, *args: Any) -> Any:
        # Not a call of the module, which is none of the model's: it has no part in hooks of all modules.
        run = self.chosen.forward if _interpreter is None else _interpreter(self.chosen).run
        return run(*args)


def compile_graph(
    graph_module: fx.GraphModule, example_inputs: list[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend "cnn_triton" of torch.compile: convolutions, transposed convolutions and linear layers run as our
    kernels, each with the batch normalisation, the addition, the activation and the pool that follow it; pools too.

    Equivalent to: torch.compile(model, backend="eager"), to rounding

    options: {"rest": name of a backend} compiles what is not ours: "eager" unless given, which runs it as it is and can
    be differentiated twice; "aot_eager", "inductor"
    returns: what runs the graph; `captures` says what was fused with what
    errors: ValueError for options that there are not
    """
    rest = dict(options or {})
    name = rest.pop("rest", "eager")
    if rest:
        raise ValueError(f"options must be {{'rest': the name of a backend}}, but got {sorted(rest)}")
    return backend_of(name)(graph_module, example_inputs)


def backend_of(
    rest: str, names: Callable[[], dict[str, str]] = dict, own: Captures | None = None
) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """The backend whose rest is compiled by this one. `names`: of modules, by their id; `own`: notes the captures,
    too."""

    def cnn_triton(graph_module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        ours = _copied(graph_module)
        found = fuse(ours, names())
        for each in filter(None, (captures, own)):
            each.add(found)
        plain(graph_module)
        devices = tuple({each.device for each in example_inputs if isinstance(each, torch.Tensor)})
        captured = Captured(graph_module, ours, devices)
        if rest != "eager" and not _eagerly:
            return lookup_backend(rest)(captured.chosen, example_inputs)
        for graph in (captured.ours, captured.theirs):
            _run_checkpoints(graph, captured.theirs)
        return captured

    return cnn_triton


def _copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The graph, and those in it, once more, with what is known of its nodes."""
    graph = fx.Graph()
    output: Any = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    graph.output(output[0])
    copied = fx.GraphModule(graph_module, graph, type(graph_module).__name__)
    copied.meta = dict(graph_module.meta)
    for name, child in graph_module.named_children():
        if isinstance(child, fx.GraphModule):
            setattr(copied, name, _copied(child))
    return copied


def _run_checkpoints(graph_module: fx.GraphModule, original: fx.GraphModule) -> None:
    """Has a graph that runs as it is call torch.utils.checkpoint itself: the operator that Dynamo puts in its place is
    for backends that take it apart, and neither keeps random numbers nor lets a part change its statistics."""
    for node in graph_module.graph.find_nodes(op="call_function", target=tag_activation_checkpoint):
        body, *args = node.args
        node.target, node.args = _checkpointed, (body, changed(getattr(original, body.target)), *args)
    graph_module.recompile()
    for name, part in graph_module.named_children():
        if isinstance(part, fx.GraphModule):
            _run_checkpoints(part, getattr(original, name))


def _checkpointed(body: fx.GraphModule, changed: list[int], *args: Any, **how: Any) -> Any:
    """torch.utils.checkpoint of a body, without the arguments that it changes, which count as its own."""
    own = {i: args[i] for i in changed}

    def run(*given: Any) -> Any:
        others = iter(given)
        return body.forward(*(own[i] if i in own else next(others) for i in range(len(args))))

    if "_checkpoint_context_fn" in body.meta:
        how["context_fn"] = body.meta["_checkpoint_context_fn"]
    return checkpoint(run, *(value for i, value in enumerate(args) if i not in own), **how)

"""torch.compile's backend: our kernels in the graphs that TorchDynamo captures of any model.

torch.compile(model, backend="cnn_triton")
    Dynamo      follows the model's forward, guards its assumptions, breaks the graph at code that it can't follow
    fuse.py     puts our kernels into each graph
    `Captured`  runs that graph where kernels run, and the graph as it was elsewhere; each call chooses anew
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
from .chain import Fused
from .effects import changed_arguments
from .fuse import fuse, use_pytorch

__all__ = [
    "Captured", "Captures", "ModelCaptures", "backend_of", "captures", "check_backend", "compile_graph", "eagerly",
    "node_by_node",
]  # fmt: skip

Interpreter = Callable[[fx.GraphModule], fx.Interpreter]


class Captures:
    """The captured graphs, and the calls that were fused in them, since the start or `clear`. str() is a report.

    graphs: how many graphs were captured
    fused:  every convolution and linear layer in them, with the calls in its kernel
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all captures."""
        with self._lock:
            self.graphs, self.fused = 0, list[Fused]()

    def add(self, found: list[Fused]) -> None:
        """Note a graph."""
        with self._lock:
            self.graphs += 1
            self.fused += found

    @property
    def patterns(self) -> Counter[str]:
        """The number of occurrences of each pattern, for example "conv2d + batch_norm + relu"."""
        return Counter(map(str, self.fused))

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Reasons for calls left out of a kernel that might have had them, each with the module of the product."""
        return [(each.apart, each.module) for each in self.fused if each.apart]

    def __str__(self) -> str:
        lines = [f"{self.graphs} graph{'s' * (self.graphs != 1)} captured"]
        lines += [f"  {pattern}: {count}" for pattern, count in self.patterns.most_common()]
        reasons: dict[str, list[str]] = {}
        for reason, module in self.apart:
            reasons.setdefault(reason, []).append(module)
        for reason, places in reasons.items():
            names = [name for name in dict.fromkeys(places) if name]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {reason}: {len(places)}" + (f" ({shown})" if shown else ""))
        return "\n".join(lines)


class ModelCaptures(Captures):
    """The captures of one model; a call that is captured again, for another mode or size, counts once."""

    def add(self, found: list[Fused]) -> None:
        """Note a graph."""
        before = Counter(map(_key, self.fused))
        again = Counter[Any]()
        new = []
        for each in found:
            again[_key(each)] += 1
            if again[_key(each)] > before[_key(each)]:
                new.append(each)
        super().add(new)


def _key(fused: Fused) -> tuple[str, str, str]:
    return fused.module, str(fused), fused.apart


captures = Captures()
"""All captures of this process."""

_interpreter: Interpreter | None = None


@contextlib.contextmanager
def node_by_node(interpreter: Interpreter) -> Iterator[None]:
    """Run captured graphs within the context by the interpreter that this function makes of each; for profilers."""
    global _interpreter
    before, _interpreter = _interpreter, interpreter
    try:
        yield
    finally:
        _interpreter = before


_eagerly = False


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run the calls that are not ours as they are within the context, instead of compiling them: for tensors without
    memory."""
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
        """The graph to run here and now."""
        return self.ours if any(map(runs_kernels, self.devices)) else self.theirs

    def __call__(self, *args: Any) -> Any:
        # `forward` instead of a call: hooks of all modules must not see a module that the model doesn't have.
        run = self.chosen.forward if _interpreter is None else _interpreter(self.chosen).run
        return run(*args)

    def compiled(self, rest: str, example_inputs: list[Any]) -> Callable[..., Any]:
        """Return a function that runs the graph chosen now, compiled by the backend `rest`, and the other graph, as it
        is, in calls that choose that one."""
        first = self.chosen
        other = self.theirs if first is self.ours else self.ours
        _run_checkpoints(other, self.theirs)
        run = lookup_backend(rest)(first, example_inputs)
        return lambda *args: (run if self.chosen is first else other.forward)(*args)


def compile_graph(
    graph_module: fx.GraphModule, example_inputs: list[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph: the backend "cnn_triton" of torch.compile. Convolutions, transposed convolutions and linear
    layers run as our kernels, each with the batch normalisation, the addition, the activation and the pool that follow
    it; other pools run as our kernels, too.

    Equivalent to: torch.compile(model, backend="eager"), up to rounding

    options: {"rest": name of a backend} compiles the calls that are not ours: "eager", the default, runs them as they
    are and can be differentiated twice; "aot_eager", "inductor"
    returns: a function that runs the graph; `captures` has the calls that were fused
    errors: ValueError for unknown options; torch.compile raises it as torch._dynamo.exc.BackendCompilerFailed
    """
    rest = dict(options or {})
    name = rest.pop("rest", "eager")
    if rest:
        raise ValueError(f"options must be {{'rest': the name of a backend}}, but got {sorted(rest)}")
    check_backend("options['rest']", name)
    return backend_of(name)(graph_module, example_inputs)


def check_backend(argument: str, name: Any) -> None:
    """Errors: ValueError unless the argument is the name of a backend of torch.compile."""
    if name not in torch._dynamo.list_backends(exclude_tags=()):
        raise ValueError(
            f"{argument} must be a backend of torch.compile, such as 'eager', 'aot_eager' or 'inductor', "
            f"but got {name!r}"
        )


def backend_of(
    rest: str, names: Callable[[], dict[str, str]] = dict, own: Captures | None = None
) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """Return the backend that has another one, `rest`, compile the calls that are not ours.

    names: returns the names of the model's modules, by their id
    own:   notes the captures, beside `captures`
    """

    def cnn_triton(graph_module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        ours = _copied(graph_module)
        found = fuse(ours, names())
        for each in filter(None, (captures, own)):
            each.add(found)
        use_pytorch(graph_module)
        devices = tuple({each.device for each in example_inputs if isinstance(each, torch.Tensor)})
        captured = Captured(graph_module, ours, devices)
        if rest != "eager" and not _eagerly:
            return captured.compiled(rest, example_inputs)
        for graph in (captured.ours, captured.theirs):
            _run_checkpoints(graph, captured.theirs)
        return captured

    return cnn_triton


def _copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph and of the graphs that it calls, with the metadata of their nodes."""
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
    """Put torch.utils.checkpoint itself in place of the operator by which Dynamo captures it. That operator is for
    backends that take it apart: run as it is, it neither keeps random numbers nor lets its body change statistics."""
    for node in graph_module.graph.find_nodes(op="call_function", target=tag_activation_checkpoint):
        body, *args = node.args
        node.target, node.args = _checkpointed, (body, changed_arguments(getattr(original, body.target)), *args)
    graph_module.recompile()
    for name, part in graph_module.named_children():
        if isinstance(part, fx.GraphModule):
            _run_checkpoints(part, getattr(original, name))


def _checkpointed(body: fx.GraphModule, changed: list[int], *args: Any, **how: Any) -> Any:
    """Run torch.utils.checkpoint of a body that owns the arguments it changes: the checkpoint is given the others."""
    own = {i: args[i] for i in changed}

    def run(*given: Any) -> Any:
        others = iter(given)
        return body.forward(*(own[i] if i in own else next(others) for i in range(len(args))))

    if "_checkpoint_context_fn" in body.meta:
        how["context_fn"] = body.meta["_checkpoint_context_fn"]
    return checkpoint(run, *(value for i, value in enumerate(args) if i not in own), **how)

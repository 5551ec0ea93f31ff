"""torch.compile's backend: what TorchDynamo captures of any model, with our kernels put in.

torch.compile(model, backend="cnn_triton")
    Dynamo      follows the model's forward, guards what it relied on, breaks the graph at what it can't follow
    fusing.py   puts our kernels into each graph
    `Captured`  runs that where kernels run, and the graph as it was where they don't, chosen at each call
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend

from . import functional
from .dispatch import runs_kernels
from .fusing import Fused, fuse

__all__ = ["Captures", "captures", "compile_graph"]

# Dynamo doesn't look into these, so that a graph has our layers as single calls.
for _name in (*functional.__all__, "norm_scale"):
    torch.compiler.allow_in_graph(getattr(functional, _name))


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

    def __str__(self) -> str:
        lines = [f"{self.graphs} graph{'s' * (self.graphs != 1)} captured"]
        lines += [f"  {pattern}: {count}" for pattern, count in self.patterns.most_common()]
        reasons: dict[str, list[str]] = {}
        for each in self.fused:
            if each.apart:
                reasons.setdefault(each.apart, []).append(each.where)
        for reason, places in reasons.items():
            names = [name for name in dict.fromkeys(places) if name]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {reason}: {len(places)}" + (f" ({shown})" if shown else ""))
        return "\n".join(lines)


captures = Captures()
"""What this process captured."""


class Captured:
    """A captured graph: `theirs` as it was, `ours` with our kernels in it."""

    def __init__(self, theirs: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self.theirs = theirs
        self.ours = ours

    def __call__(self, *args: Any) -> Any:
        kernels = any(isinstance(arg, torch.Tensor) and runs_kernels(arg.device) for arg in args)
        return (self.ours if kernels else self.theirs)(*args)


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
    theirs = graph_module
    ours = fx.GraphModule(graph_module, fx.Graph(), graph_module.__class__.__name__)
    ours.graph = _copy(graph_module)
    captures.add(fuse(ours))
    if name == "eager":
        return Captured(theirs, ours)
    here = any(isinstance(t, torch.Tensor) and runs_kernels(t.device) for t in example_inputs)
    return lookup_backend(name)(ours if here else theirs, example_inputs)  # type: ignore[no-any-return]


def _copy(graph_module: fx.GraphModule) -> fx.Graph:
    """The module's graph once more, with what is known of its nodes."""
    graph = fx.Graph()
    output = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    assert output is not None
    graph.output(output[0])
    return graph

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

from .dispatch import runs_kernels
from .fusing import Fused, fuse

__all__ = ["Captures", "captures", "compile_graph"]


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


captures = Captures()
"""What this process captured."""


class Captured:
    """A captured graph: `theirs` as it was, `ours` with our kernels in it, for tensors on these devices."""

    def __init__(self, theirs: fx.GraphModule, ours: fx.GraphModule, devices: tuple[torch.device, ...]) -> None:
        self.theirs = theirs
        self.ours = ours
        self.devices = devices

    @property
    def runs_kernels(self) -> bool:
        """Do kernels run on these devices, here and now?"""
        return any(map(runs_kernels, self.devices))

    def __call__(self, *args: Any) -> Any:
        return (self.ours if self.runs_kernels else self.theirs)(*args)


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
    ours = fx.GraphModule(graph_module, _copy(graph_module), type(graph_module).__name__)
    captures.add(fuse(ours))
    devices = tuple({each.device for each in example_inputs if isinstance(each, torch.Tensor)})
    captured = Captured(graph_module, ours, devices)
    if name == "eager":
        return captured
    chosen = captured.ours if captured.runs_kernels else captured.theirs
    return lookup_backend(name)(chosen, example_inputs)


def _copy(graph_module: fx.GraphModule) -> fx.Graph:
    """The module's graph once more, with what is known of its nodes."""
    graph = fx.Graph()
    output: Any = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    graph.output(output[0])
    return graph

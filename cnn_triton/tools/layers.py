"""The layer at work: the module to which each operator of a step, and its time, are counted.

Forward, a module is at work during its call, or while a captured graph runs the nodes of its call; backward, while the
autograd nodes run that its call made.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..dispatch import launches
from ..fusion.backend import node_by_node
from ..fusion.compiled import CompiledCall
from ..fusion.nodes import modules_of
from ..kernels.registry import op_of
from .clock import Clock
from .tensors import tensors_in

__all__ = ["Layers", "OperatorTimes", "Row"]

_CALL = "_compiled_call_impl"  # the attribute in which torch.nn.Module looks for another call than its own
_REST = "(rest)"  # the layer of operators outside of all modules: the loss, sums of gradients


@dataclass
class Row:
    """A layer's operator in one pass of a step: calls, milliseconds in all, FLOPs and compulsory memory traffic."""

    layer: str
    kind: str
    phase: str  # forward, backward
    operator: str
    calls: int = 0
    launches: int = 0
    milliseconds: float = 0.0
    flops: int = 0
    bytes: int = 0


class Layers:
    """The modules of a model; `stack` has the (name, phase) of those at work while `watching`.

    Modules get other calls, and no hooks: with hooks, graphs captured without them would be captured anew.

    ranges: True to name ranges of the profiler's trace after the modules
    """

    def __init__(self, model: torch.nn.Module, ranges: bool) -> None:
        self.ranges = ranges
        self.model = model
        self.names = {str(id(module)): name or "(model)" for name, module in model.named_modules()}
        self.stack: list[tuple[str, str]] = []
        self._claimed: set[Any] = set()
        self._open: list[Any] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep `stack` within the context."""
        layers = self

        class Nodes(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                """Run a node for the module that made its call."""
                return layers._run_for(next(reversed(modules_of(n)), ""), super().run_node, n)

        converted = [module for module in self.model.modules() if CompiledCall.of(module)]
        captured = {part for module in converted for part in module.modules()} - set(converted)
        before = {module: vars(module).get(_CALL) for module in self.model.modules() if module not in captured}
        try:
            for module, call in before.items():
                vars(module)[_CALL] = functools.partial(self._run_for, str(id(module)), call or module._call_impl)
            with node_by_node(Nodes):
                yield
        finally:
            for module, call in before.items():
                vars(module)[_CALL] = call
                if call is None:
                    del vars(module)[_CALL]

    def _run_for(self, module: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the function's result; the module with this id is at work meanwhile."""
        name = self.names.get(module)
        if name is None:
            return function(*args, **kwargs)
        parent = self.stack[-1][0] if self.stack else _REST
        self._claim((args, list(kwargs.values())), parent)  # nodes that were there before are not this module's
        self._enter(name, "forward")
        try:
            output = function(*args, **kwargs)
        finally:
            self._leave()
        self._claim(output, name)
        return output

    def step_ends(self) -> None:
        """Forget the step's autograd nodes, which hold its tensors."""
        self._claimed.clear()

    def _claim(self, value: Any, name: str) -> None:
        """Give the module all autograd nodes behind the value's tensors that no module has yet."""
        nodes = [tensor.grad_fn for tensor in tensors_in(value)]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._claimed or type(node).__name__ == "AccumulateGrad":
                continue
            self._claimed.add(node)
            node.register_prehook(lambda grads, name=name: self._enter(name, "backward"))
            node.register_hook(lambda *grads: self._leave())
            nodes += [each for each, _ in node.next_functions]

    def _enter(self, name: str, phase: str) -> None:
        self.stack.append((name, phase))
        if self.ranges:
            said = name if phase == "forward" else f"{name}, backward"
            scope = torch.profiler.record_function(said)
            scope.__enter__()
            self._open.append(scope)
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_push(said)

    def _leave(self) -> None:
        if self.ranges:
            if torch.cuda.is_available():
                torch.cuda.nvtx.range_pop()
            self._open.pop().__exit__(None, None, None)
        self.stack.pop()


class OperatorTimes(TorchDispatchMode):
    """A mode that puts each operator between two marks of the clock, and counts it to the layer at work.

    kinds: the class of each layer by its name
    """

    def __init__(self, layers: Layers, clock: Clock, kinds: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self.clock, self.kinds = layers, clock, kinds
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.marks: list[tuple[Row, Any, Any]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: the mode is off while TorchDynamo captures, and graphs that it captured may run."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        layer, phase = self.layers.stack[-1] if self.layers.stack else (_REST, "")
        before, start = sum(launches().values()), self.clock.mark()
        result = func(*args, **kwargs)
        end = self.clock.mark()
        if _is_free(func):
            return result
        name = func.name().partition("::")[2].split(".")[0]
        row = self.rows.setdefault((layer, phase, name), Row(layer, self.kinds.get(layer, ""), phase, name))
        row.calls += 1
        row.launches += sum(launches().values()) - before
        flops, moved = _work(func, args, kwargs, result)
        row.flops += flops
        row.bytes += moved
        self.marks.append((row, start, end))
        return result

    def finished(self, steps: int) -> list[Row]:
        """Return the rows of one step, the mean of `steps` that ran under the mode."""
        self.clock.wait()
        for row, start, end in self.marks:
            row.milliseconds += self.clock.between(start, end) / steps
        for row in self.rows.values():
            row.calls, row.launches = row.calls // steps, row.launches // steps
            row.flops, row.bytes = row.flops // steps, row.bytes // steps
        return list(self.rows.values())


def _is_free(func: Any) -> bool:
    """True if an operator computes nothing: it is a view, an allocation, or only reads."""
    name = func.name()
    asks = not func._schema.returns and not func._schema.is_mutable
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return views or asks or name.startswith(("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view"))


def _work(func: Any, args: Any, kwargs: Any, result: Any) -> tuple[int, int]:
    """Return (FLOPs of products, bytes of the tensors that are read and written)."""
    op = op_of(func)
    if op is not None:
        return op.flops(*args) if op.product else 0, op.bytes(*args)
    formula = flop_registry.get(func._overloadpacket)
    flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
    tensors = {id(t): t for t in tensors_in((args, list(kwargs.values()), result))}
    return flops, sum(t.numel() * t.element_size() for t in tensors.values())

"""A call, run on random values by the simulator: is its compiled code right, and what does it do to memory?

the call
    each of our operators on the way:   its kernels run, and its results are compared with PyTorch's in float64
        each launch:                    what is wrong with it, and its counters by line of Python
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..dispatch import as_on_a_gpu
from ..kernels.base.precision import DTYPES, ERROR_EPS, ERROR_RATIO, TF32_EPS, float32_precision
from ..kernels.core.op import Op
from ..kernels.registry import op_of
from ..kernels.tiles import pick, shapes
from ..simulator import Launch, Simulation, simulating
from .calls import Call, run
from .inspection import OperatorCall, Ran, Substitute

__all__ = ["Comparison", "Execution", "execute_call", "with_runs"]


class Comparison(NamedTuple):
    """Results beside PyTorch's.

    error, pytorch_error: the largest against float64, as parts of the largest value; PyTorch's in the same dtype
    differing: integers that differ from PyTorch's, of `integers`; codes of a pool may, where values are nearly equal
    is_right: the error is at most what the library allows itself (kernels.base.precision)
    """

    error: float
    pytorch_error: float
    differing: int
    integers: int
    is_right: bool


class Execution(NamedTuple):
    """An operator, or the user's own function, that was run.

    comparison: None without a reference
    bytes:      compulsory memory traffic, None where it isn't known
    """

    name: str
    comparison: Comparison | None
    launches: list[Launch]
    bytes: int | None = None


class _Executing(TorchDispatchMode):
    """A mode under which our operators run in a simulation; `operators` lists them, and which launches are theirs."""

    def __init__(self, simulation: Simulation, eps: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.simulation, self.eps = simulation, eps
        self.operators: list[tuple[Op, tuple[Any, ...], Comparison | None, range]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op, first = op_of(func), len(self.simulation.launches)
        if op is None:
            return func(*args, **(kwargs or {}))
        result = op.launch(*args)
        eps = self.eps if op.product else None
        compared = None if self.simulation.checks.sample else _compared(result, op.reference, args, eps)
        self.operators.append((op, tuple(args), compared, range(first, len(self.simulation.launches))))
        return result


def execute_call(
    call: Call, chip: str, instead: Substitute | None = None, reference: Callable[..., Any] | None = None,
    sample: int = 0,
) -> list[Execution]:  # fmt: skip
    """Return the operators that a call runs on a chip, as `inspect_call` does, after running them in the simulator.

    instead:   replaces a pick
    reference: what PyTorch would do in place of the user's own function, with the same arguments
    sample:    run so many blocks of a launch at most, and compare nothing; 0: all
    errors:    those of `simulating` and of the function; SimulationError for a kernel that cannot go on
    """

    def choose(picked: shapes.Tile, problem: Any, kind: str, chip: str) -> shapes.Tile:
        return instead.of(picked, problem) if instead else picked

    eps = TF32_EPS if call.dtype == "tf32" else None
    precision = float32_precision("tf32" if call.dtype == "tf32" else "ieee")
    with (
        simulating(chip, races=not sample, sample=sample) as simulation, as_on_a_gpu(), precision,
        pick.overriding(choose), _Executing(simulation, eps) as mode,
    ):  # fmt: skip
        given, results = run(call, _fill)
    found = [
        Execution(op.name, compared, simulation.launches[span.start : span.stop], op.bytes(*args))
        for op, args, compared, span in mode.operators
    ]
    ours = {i for *_, span in mode.operators for i in span}
    own = [launched for i, launched in enumerate(simulation.launches) if i not in ours]
    if own:  # the user's function launched these itself
        compared = None if reference is None else _compared(results, reference, tuple(given.values()), eps)
        found.append(Execution(call.name.rpartition(":")[2], compared, own))
    return found


def with_runs(operators: list[OperatorCall], executions: list[Execution]) -> list[OperatorCall]:
    """Return the operators with what their launches did, out of all that ran."""
    names = {operator.name for operator in operators}
    for operator, execution in zip(operators, [each for each in executions if each.name in names], strict=True):
        launches = zip(operator.launches, execution.launches, strict=True)
        operator.launches = [
            launch._replace(ran=Ran(done, operator.flops, operator.bytes)) for launch, done in launches
        ]  # fmt: skip
    return operators


def _fill(name: str, tensor: torch.Tensor) -> None:
    """Fill an argument with random values, as its name wants them."""
    with torch.no_grad():
        if name == "indices":  # of pixels, each once
            tensor.copy_(torch.arange(tensor[0, 0].numel()).view(tensor.shape[2:]).expand_as(tensor))
        elif name.startswith("running_var"):
            tensor.uniform_(0.5, 2)
        else:
            tensor.normal_()


def _compared(ours: Any, reference: Callable[..., Any], args: tuple[Any, ...], eps: float | None) -> Comparison:
    """Compare results with a reference's, in the same dtype and in float64."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def tensors(value: Any) -> list[torch.Tensor]:
        return [each.detach() for each in tree_leaves(value) if isinstance(each, torch.Tensor)]

    with torch.no_grad():
        theirs, exact = tensors(reference(*args)), tensors(reference(*tree_map(wide, args)))
    compared = Comparison(0, 0, 0, 0, True)
    for our, their, right in zip(tensors(ours), theirs, exact, strict=True):
        compared = _joined(compared, _of_tensor(our, their, right, eps))
    return compared


def _of_tensor(our: torch.Tensor, their: torch.Tensor, right: torch.Tensor, eps: float | None) -> Comparison:
    if not our.is_floating_point():
        return Comparison(0, 0, int((our != their).sum()), our.numel(), True)
    largest = max(right.abs().max().item(), torch.finfo(torch.float64).tiny) if right.numel() else 1.0
    ours, theirs = (
        ((each.double() - right).abs().max().item() if right.numel() else 0) / largest for each in (our, their)
    )
    allowed = ERROR_RATIO * theirs + ERROR_EPS * (eps or DTYPES[our.dtype].eps)
    return Comparison(ours, theirs, 0, 0, ours <= allowed)  # NaN is not


def _joined(a: Comparison, b: Comparison) -> Comparison:
    def worse(x: float, y: float) -> float:
        return x if x > y or x != x else y  # NaN is the worst

    return Comparison(
        worse(a.error, b.error), worse(a.pytorch_error, b.pytorch_error), a.differing + b.differing,
        a.integers + b.integers, a.is_right and b.is_right,
    )  # fmt: skip

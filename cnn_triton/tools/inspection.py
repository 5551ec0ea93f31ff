"""The code that a call compiles to on any chip, without having one.

the call, on tensors that have shapes and strides but no values
    each of our operators on the way:   its launcher picks its tile as always
        each launch:                    Triton's compiler makes the code that the chip would run

kernels.compiler.figures.Code explains the figures of a code.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..dispatch import as_on_a_gpu
from ..kernels.base.precision import float32_precision
from ..kernels.compiler import aot
from ..kernels.compiler.figures import Code
from ..kernels.core.op import Op
from ..kernels.registry import op_of
from ..kernels.tiles import pick, shapes
from ..simulator import Launch
from .calls import Call, run

__all__ = [
    "Choice", "CompiledLaunch", "Launching", "OperatorCall", "Ran", "Substitute", "float32_as", "inspect_call",
]  # fmt: skip


class Choice(NamedTuple):
    """A tile, and the problem, the arithmetic and the chip that it was picked for."""

    tile: shapes.Tile
    problem: shapes.Product | shapes.WeightGrad
    kind: str
    chip: str


class Substitute(NamedTuple):
    """A tile that stands in for the pick of a problem."""

    problem: Any
    tile: shapes.Tile

    def of(self, picked: shapes.Tile, problem: Any) -> shapes.Tile:
        """Return the tile for a problem: this one if it is its problem, else the picked one."""
        return self.tile if self.problem == problem else picked


class Ran(NamedTuple):
    """What a launch did in the simulator; its operator's arithmetic and compulsory traffic, None if unknown."""

    launch: Launch
    flops: int | None
    bytes: int | None


class CompiledLaunch(NamedTuple):
    """A launched kernel.

    choice: of its tile; None if its blocks follow from the shapes
    ran:    None if it was compiled only
    """

    code: Code
    choice: Choice | None
    ran: Ran | None = None


@dataclass
class OperatorCall:
    """An operator of a call, with its launches in order.

    flops, bytes: arithmetic, and compulsory memory traffic; None where they aren't known
    product:  True if matrix instructions could do the arithmetic
    op, args: its record and arguments, to be launched again; empty for the launches of the user's own function
    """

    name: str
    flops: int | None
    bytes: int | None
    product: bool
    launches: list[CompiledLaunch]
    op: Op | None = None
    args: tuple[Any, ...] = ()

    @property
    def choice(self) -> Choice | None:
        """The choice of the first launch that has one."""
        return next((launch.choice for launch in self.launches if launch.choice), None)


class Launching(TorchDispatchMode):
    """A mode under which our operators launch their kernels on any tensors, fake ones too; `operators` lists them.

    codes: gets the code of each launch (aot.recording)
    """

    def __init__(self, codes: list[Code], instead: Substitute | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codes = codes
        self.instead = instead
        self.operators: list[tuple[OperatorCall, range]] = []
        self.choices: dict[int, Choice] = {}  # by the number of the launch that has the tile

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op, first = op_of(func), len(self.codes)
        if op is None:
            return func(*args, **(kwargs or {}))
        result = op.launch(*args)
        operator = OperatorCall(op.name, op.flops(*args), op.bytes(*args), op.product, [], op, tuple(args))
        self.operators.append((operator, range(first, len(self.codes))))
        return result

    def choose(self, picked: shapes.Tile, problem: Any, kind: str, chip: str) -> shapes.Tile:
        """Return the picked tile, or the one that stands in for it, and note it."""
        tile = self.instead.of(picked, problem) if self.instead else picked
        self.choices[len(self.codes)] = Choice(tile, problem, kind, chip)
        return tile

    def launches(self, span: Iterable[int]) -> list[CompiledLaunch]:
        """Return the launches with these numbers, once the codes have their figures."""
        return [CompiledLaunch(self.codes[i], self.choices.get(i)) for i in span]


@contextlib.contextmanager
def float32_as(dtype: str) -> Iterator[None]:
    """Round float32 products as this dtype says within the context, and allow fake tensors, addresses included."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with float32_precision("tf32" if dtype == "tf32" else "ieee"), warnings.catch_warnings(), fake:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


def inspect_call(
    call: Call, chip: str, texts: aot.Texts | None = None, instead: Substitute | None = None
) -> list[OperatorCall]:
    """Return the operators that a call runs on a chip, each with the kernels that it launches, in order.

    texts:   gets the texts of the compiler's stages
    instead: replaces a pick
    errors:  those of the function; RuntimeError in Triton's interpreter
    """
    with aot.recording(chip, texts=texts) as codes, as_on_a_gpu(), float32_as(call.dtype):
        mode = Launching(codes, instead)
        with mode, pick.overriding(mode.choose):
            given, results = run(call)
        tensors = [each for each in tree_leaves((given, results)) if isinstance(each, torch.Tensor)]
        moved = sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())
    for operator, span in mode.operators:
        operator.launches = mode.launches(span)
    operators = [operator for operator, _ in mode.operators]
    ours = {i for _, span in mode.operators for i in span}
    own = [i for i in range(len(codes)) if i not in ours]
    if own:  # the user's function launched these itself
        name = call.name.rpartition(":")[2]
        operators.append(OperatorCall(name, None, None if operators else moved, True, mode.launches(own)))
    return operators

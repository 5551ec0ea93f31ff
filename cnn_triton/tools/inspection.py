"""What a call compiles to on any chip, without having one, and what limits it there.

    the call, on tensors that have shapes and strides, and no values
        each of our operators on the way:   its launcher picks its tile as ever
            each launch:                    Triton's compiler makes the code that the chip would run

kernels.aot says what the figures of a code are.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import functional
from ..dispatch import as_on_a_gpu
from ..kernels.base.precision import float32_precision
from ..kernels.compiler import aot
from ..kernels.compiler.aot import Code
from ..kernels.core.chips import BOARDS, CHIPS, Board
from ..kernels.core.op import Op
from ..kernels.registry import op_of
from ..kernels.tiles import pick, shapes

__all__ = [
    "DTYPES",
    "EXAMPLES",
    "Call",
    "Choice",
    "Launch",
    "Operator",
    "Roof",
    "call_of",
    "candidates",
    "chosen",
    "inspect_call",
    "nearest",
    "roofs",
    "tile_name",
    "waves",
]

DTYPES = {
    "bfloat16": (torch.bfloat16, "half"), "float16": (torch.float16, "half"), "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "float"), "float64": (torch.float64, "double"),
}  # fmt: skip
"""Arithmetics: what tensors hold, and the rate that counts."""

_CONV = "input=32x64x56x56 weight=64x64x3x3 bias=64 padding=1"
_ROWS = "input=32x64x3136 weight=64x64x3 bias=64 padding=1"
_POOL = "input=32x64x112x112 kernel_size=3 stride=2 padding=1"
_LINE = "input=32x64x12544 kernel_size=3 stride=2 padding=1"
_LINEAR = "input=32x2048 weight=1000x2048 bias=1000"
EXAMPLES = {
    "conv2d": _CONV,
    "conv2d_relu": _CONV,
    "conv2d_relu_max_pool2d": _CONV,
    "conv2d_relu_avg_pool2d": _CONV,
    "conv2d_batch_norm": f"{_CONV} training=true",
    "conv_transpose2d": _CONV,
    "conv1d": _ROWS,
    "conv_transpose1d": _ROWS,
    "locally_connected2d": "input=32x64x14x14 weight=14x14x64x3x3x64 bias=14x14x64 padding=1",
    "max_pool2d": _POOL,
    "avg_pool2d": _POOL,
    "max_pool1d": _LINE,
    "avg_pool1d": _LINE,
    "max_unpool2d": "input=32x64x56x56 indices=32x64x56x56 kernel_size=2",
    "max_unpool1d": "input=32x64x3136 indices=32x64x3136 kernel_size=2",
    "adaptive_avg_pool2d": "input=32x2048x7x7 output_size=1",
    "adaptive_max_pool2d": "input=32x2048x7x7 output_size=1",
    "adaptive_avg_pool1d": "input=32x2048x49 output_size=1",
    "adaptive_max_pool1d": "input=32x2048x49 output_size=1",
    "linear": _LINEAR,
    "linear_relu": _LINEAR,
}
"""Arguments of a call that gives none: layers of ResNet-50, or as large."""


class Call(NamedTuple):
    """A function and its arguments: shapes for tensors, values for the rest. dtype: one of DTYPES."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    dtype: str = "bfloat16"
    channels_last: bool = True
    gradients: bool = False

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments.items())
        images = any(isinstance(value, Shape) and len(value) == 4 for value in self.arguments.values())
        layout = "" if not images else ", channels_last" if self.channels_last else ", contiguous"
        return f"{self.name}({shown}), {self.dtype}{layout}{', with gradients' if self.gradients else ''}"


class Shape(tuple[int, ...]):
    """The shape of a tensor among a call's arguments."""


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, Shape) else str(value)


class Choice(NamedTuple):
    """A tile, and what it was picked for: a problem of kernels.tiles, its arithmetic, the chip."""

    tile: shapes.Tile
    problem: shapes.Product | shapes.WeightGrad
    kind: str
    chip: str


class Launch(NamedTuple):
    """A kernel as it is launched; the choice of its tile, None for one whose blocks follow from the shapes."""

    code: Code
    choice: Choice | None


@dataclass
class Operator:
    """What one operator of a call launches, in order.

    flops, bytes: arithmetic, and compulsory memory traffic; None where they aren't known
    product: is the arithmetic that of matrix instructions?
    op, args: its record and arguments, to be launched again; none of what the user's function launches itself
    """

    name: str
    flops: int | None
    bytes: int | None
    product: bool
    launches: list[Launch]
    op: Op | None = None
    args: tuple[Any, ...] = ()

    @property
    def choice(self) -> Choice | None:
        """Of its first launch that has one."""
        return next((launch.choice for launch in self.launches if launch.choice), None)


def call_of(name: str, words: list[str], **how: Any) -> Call:
    """The call of a function's name and of NAME=VALUE words, or of its example without any.

    name: a function of cnn_triton.functional; or module:function or file.py:function, the user's own, whose parameters
    for tensors are annotated so
    words: of a tensor its shape, as input=32x64x56x56; else a number, several with commas between, true, false, none
    Errors: ValueError, which says what was given and what would do
    """
    function = _function(name)
    return Call(name, function, _arguments(name, function, words or EXAMPLES.get(name, "").split()), **how)


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: what it may have been meant to be."""
    every = list(names)
    near = difflib.get_close_matches(word.lower(), every, 3, 0.4)
    more = ", ..." if len(every) > 24 else ""
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(every[:24])}{more}"


def _function(name: str) -> Callable[..., Any]:
    if name in functional.__all__:
        return getattr(functional, name)  # type: ignore[no-any-return]
    module, _, function = name.rpartition(":")
    if not module:
        raise ValueError(f"OP {name!r} is unknown; {nearest(name, functional.__all__)} Or module:function of your own")
    try:
        found = getattr(_module(module), function)
    except Exception as error:
        raise ValueError(f"OP {name!r}: {error}; it must name a function, as in file.py:function") from error
    if not isinstance(found, types.FunctionType):
        raise ValueError(f"OP {name!r} is a {type(found).__name__}; name the function that launches the kernel")
    return found


def _module(name: str) -> types.ModuleType:
    """A module by its name, or a file, which may import its neighbours."""
    path, before = Path(name), [*sys.path]
    sys.path.insert(0, str(path.parent) if path.suffix == ".py" else "")
    try:
        if path.suffix != ".py":
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location("_inspected", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["_inspected"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path[:] = before


def _arguments(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    try:
        known, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    except Exception as error:
        raise ValueError(f"OP {name!r}: its annotations can't be read: {error}") from error
    found: dict[str, Any] = {}
    for word in words:
        argument, equals, value = word.partition("=")
        if not equals or argument not in known:
            what = f"has no argument {argument!r}" if equals else f"takes NAME=VALUE, but got {word!r}"
            raise ValueError(f"{name} {what}; {nearest(argument, known)}")
        hint = hints.get(argument)
        tensor = hint is torch.Tensor or torch.Tensor in typing.get_args(hint)
        if hint is None and re.fullmatch(r"\d+(x\d+)+", value):
            raise ValueError(f"{argument}={value}: {name} must say that it is a tensor, by {argument}: torch.Tensor")
        found[argument] = _value(argument, value, tensor)
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in known.values() if p.default is p.empty and p.kind not in optional and p.name not in found]
    if needed:
        raise ValueError(
            f"{name} needs {', '.join(needed)}: {EXAMPLES.get(name) or 'NAME=VALUE, a shape for a tensor'}"
        )
    return found


def _value(argument: str, text: str, tensor: bool) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if tensor:
        if not re.fullmatch(r"\d+(x\d+)*", text):
            raise ValueError(f"{argument} must be the shape of a tensor, as 32x64x56x56, or none, but got {text!r}")
        return Shape(map(int, text.split("x")))
    if "," in text:
        return tuple(_value(argument, each, False) for each in text.split(",") if each)
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class _Launching(TorchDispatchMode):
    """Within: our operators launch their kernels on whichever tensors they get, and `operators` lists them."""

    def __init__(self, codes: list[Code], instead: tuple[Any, shapes.Tile] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codes = codes
        self.instead = instead
        self.operators: list[tuple[Operator, range]] = []
        self.choices: dict[int, Choice] = {}  # by the number of the launch that follows

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op, first = op_of(func), len(self.codes)
        if op is None:
            return func(*args, **(kwargs or {}))
        result = op.launch(*args)
        operator = Operator(op.name, op.flops(*args), op.bytes(*args), op.product, [], op, tuple(args))
        self.operators.append((operator, range(first, len(self.codes))))
        return result

    def choose(self, picked: shapes.Tile, problem: Any, kind: str, chip: str) -> shapes.Tile:
        """The pick, or the tile instead; noted."""
        tile = self.instead[1] if self.instead and self.instead[0] == problem else picked
        self.choices[len(self.codes)] = Choice(tile, problem, kind, chip)
        return tile

    def launches(self, span: Iterable[int]) -> list[Launch]:
        """These of the launches, in the end."""
        return [Launch(self.codes[i], self.choices.get(i)) for i in span]


@contextlib.contextmanager
def _arithmetic(dtype: str) -> Iterator[None]:
    """Within: float32 products round as this dtype says, and fake tensors may be asked for their addresses."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with float32_precision("tf32" if dtype == "tf32" else "ieee"), warnings.catch_warnings(), fake:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


def inspect_call(
    call: Call, chip: str, texts: aot.Texts | None = None, instead: tuple[Any, shapes.Tile] | None = None
) -> list[Operator]:
    """The operators that a call runs on a chip, each with the kernels that it launches, in order.

    texts: gets what the compiler makes on its way
    instead: a problem, and the tile that it is given instead of its pick
    Errors: what the function raises; RuntimeError in Triton's interpreter
    """
    with aot.recording(chip, texts=texts) as codes, as_on_a_gpu(), _arithmetic(call.dtype):
        mode = _Launching(codes, instead)
        with mode, pick.overriding(mode.choose):
            given, results = _run(call)
        tensors = [each for each in tree_leaves((given, results)) if isinstance(each, torch.Tensor)]
        moved = sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())
    for operator, span in mode.operators:
        operator.launches = mode.launches(span)
    operators = [operator for operator, _ in mode.operators]
    ours = {i for _, span in mode.operators for i in span}
    own = [i for i in range(len(codes)) if i not in ours]
    if own:  # the user's function launched these itself
        name = call.name.rpartition(":")[2]
        operators.append(Operator(name, None, None if operators else moved, True, mode.launches(own)))
    return operators


def _run(call: Call) -> tuple[dict[str, Any], Any]:
    """The call's arguments and results, gradients in the end."""
    dtype = DTYPES[call.dtype][0]

    def tensor(name: str, shape: Shape) -> torch.Tensor:
        last = call.channels_last and len(shape) == 4
        layout = torch.channels_last if last else torch.contiguous_format
        kind = torch.int64 if name == "indices" else dtype
        made = torch.empty(shape, dtype=kind, memory_format=layout)
        return made.requires_grad_(call.gradients and kind == dtype and not name.startswith("running_"))

    given = {n: tensor(n, value) if isinstance(value, Shape) else value for n, value in call.arguments.items()}
    with contextlib.nullcontext() if call.gradients else torch.no_grad():
        results = call.function(**given)
    if not call.gradients:
        return given, results
    outputs = [each for each in tree_leaves(results) if isinstance(each, torch.Tensor) and each.requires_grad]
    leaves = [each for each in given.values() if isinstance(each, torch.Tensor) and each.requires_grad]
    if not outputs:
        raise ValueError(f"{call.name} has no gradient")
    grads = torch.autograd.grad(outputs, leaves, [torch.empty_like(y) for y in outputs], allow_unused=True)
    return given, (results, grads)


def candidates(
    call: Call, operator: Operator, texts: aot.Texts | None = None,
    progress: Callable[[list[shapes.Tile]], Iterable[shapes.Tile]] = iter,
) -> list[tuple[Choice, Launch]]:  # fmt: skip
    """Every tile that could serve an operator's choice, its own first, and the kernel that it makes; but for weight
    gradients one number of parts, which make no other code. Errors: ValueError without a choice."""
    choice, op = _choice(operator), operator.op
    assert op is not None
    every = [each for each in serving(choice) if each.parts == choice.tile.parts]
    with aot.recording(choice.chip, texts=texts) as codes, as_on_a_gpu(), _arithmetic(call.dtype):
        modes = []
        for tile in progress(every):
            mode = _Launching(codes, (choice.problem, tile))
            with pick.overriding(mode.choose):
                op.launch(*operator.args)
            modes.append(mode)
    found = []
    for mode in modes:
        number = next(i for i, each in mode.choices.items() if each.problem == choice.problem)
        found.append((mode.choices[number], Launch(codes[number], mode.choices[number])))
    return found


def _choice(operator: Operator) -> Choice:
    if operator.choice is None:
        raise ValueError(f"{operator.name}: there is no other tile to choose for it here")
    return operator.choice


def serving(choice: Choice) -> list[shapes.Tile]:
    """Every tile that could serve what this one was picked for, itself first, also in as many parts."""
    every = list(pick.serving(choice.problem, choice.kind, choice.chip))
    return list(dict.fromkeys([choice.tile, *(tile._replace(parts=choice.tile.parts) for tile in every), *every]))


def tile_name(tile: shapes.Tile) -> str:
    """A tile in the words that choose it."""
    how = "boxes" if tile.box else "packed" if tile.packed else "gathered"
    parts = f",parts={tile.parts}" if tile.parts > 1 else ""
    return f"{tile.m}x{tile.n}x{tile.k},warps={tile.warps},stages={tile.stages},{how}{parts}"


def chosen(operator: Operator, words: str) -> tuple[Any, shapes.Tile]:
    """The problem of an operator's choice, and the tile of these words that could serve it, else like its pick: as
    128x64x64, or 128x64x64,stages=3,gathered. Errors: ValueError if none could."""
    choice = _choice(operator)
    own, wanted = tile_name(choice.tile).split(","), set(words.lower().split(","))
    named = {tile_name(tile): tile for tile in serving(choice)}
    fitting = [name for name in named if wanted <= set(name.split(","))]
    if not fitting:
        sides = ",".join(sorted(wanted, key=lambda word: "x" not in word))
        raise ValueError(
            f"--tile {words}: not one that serves {operator.name} on {choice.chip}; {nearest(sides, named)}"
        )
    return choice.problem, named[max(fitting, key=lambda name: len({*own} & {*name.split(",")}))]


class Roof(NamedTuple):
    """What a board could do at best with an operator: microseconds, and what bounds them."""

    board: Board
    rate: float
    microseconds: float
    bound: str


def roofs(operator: Operator, dtype: str, chips: Iterable[str]) -> list[Roof]:
    """The least time of an operator on every board with one of these chips: the longer of its arithmetic, at the
    datasheet's rate, and its compulsory memory traffic; nothing where that isn't known."""
    if operator.bytes is None:
        return []
    kind = DTYPES[dtype][1] if operator.product or dtype == "float64" else "float"
    found = []
    for board in (board for board in BOARDS if board.chip in chips):
        rate = board.rates[shapes.ARITHMETIC.index(kind)] or board.rates[shapes.ARITHMETIC.index("float")]
        computing = (operator.flops or 0) / rate / 1e6
        moving = operator.bytes / board.bandwidth / 1e3
        bound = "arithmetic" if computing > moving else "memory" if operator.flops is not None else "memory at least"
        found.append(Roof(board, rate, max(computing, moving), bound))
    return found


def waves(launch: Launch) -> str:
    """How the grid of a launch goes through the chip: in how many waves of resident programs, how full the last one
    is; and for programs that take tiles in turns, how many each takes."""
    code, choice = launch
    if not code.resident:
        return "unknown" if code.resident is None else "does not fit"
    said = _turns(code.grid, CHIPS[code.chip].multiprocessors * code.resident, "wave")
    if choice and choice.tile.programs == code.grid and isinstance(choice.problem, shapes.Product):
        said += f"; tiles {_turns(pick.count_of(choice.problem, choice.tile), code.grid, 'turn')}"
    return said


def _turns(count: int, slots: int, word: str) -> str:
    whole, rest = divmod(count, slots)
    share = f"{100 * rest // slots}%" if 100 * rest >= slots else "<1%"
    if not rest:
        return f"{whole:,} full {word}{'s' * (whole != 1)}"
    return f"{share} of a {word}" if not whole else f"{whole:,} {word}{'s' * (whole > 1)} and {share} of one"

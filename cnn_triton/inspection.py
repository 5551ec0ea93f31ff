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
import math
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import functional
from .dispatch import as_on_a_gpu
from .kernels import aot, tiles
from .kernels.aot import Code
from .kernels.chips import BOARDS, CHIPS, Board
from .kernels.op import nbytes
from .kernels.registry import OPS

__all__ = ["DTYPES", "EXAMPLES", "Call", "Operator", "Roof", "call_of", "candidates", "inspect_call", "roofs", "waves"]

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

_OPS = {op.name: op for op in OPS}


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
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.name}({shown}), {self.dtype}, {layout}{', with gradients' if self.gradients else ''}"


class Shape(tuple[int, ...]):
    """The shape of a tensor among a call's arguments."""


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, Shape) else str(value)


@dataclass
class Operator:
    """What one operator of a call launches; `codes` in order.

    flops, bytes: arithmetic (None where it isn't known), and compulsory memory traffic
    product: is the arithmetic that of matrix instructions?
    asked: what tiles were picked for: (pick, problem, arithmetic, chip), none where there was no choice
    args: its arguments, to be launched again
    """

    name: str
    flops: int | None
    bytes: int
    product: bool
    codes: list[Code]
    asked: list[tuple[tiles.Tile, Any, str, str]] = field(default_factory=list)
    args: tuple[Any, ...] = ()


def call_of(name: str, words: list[str], **how: Any) -> Call:
    """The call of a function's name and of NAME=VALUE words, or of its example without any.

    name: a function of cnn_triton.functional; or module:function or file.py:function, the user's own, whose parameters
    for tensors are annotated so
    words: of a tensor its shape, as input=32x64x56x56; else a number, several with commas between, true, false, none
    Errors: ValueError, which says what was given and what would do
    """
    function = _function(name)
    return Call(name, function, _arguments(name, function, words or EXAMPLES.get(name, "").split()), **how)


def _nearest(word: str, names: Any) -> str:
    near = difflib.get_close_matches(word, names, 3, 0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


def _function(name: str) -> Callable[..., Any]:
    if name in functional.__all__:
        return getattr(functional, name)  # type: ignore[no-any-return]
    module, _, function = name.rpartition(":")
    if not module:
        raise ValueError(f"OP {name!r} is unknown; {_nearest(name, functional.__all__)} Or module:function of your own")
    try:
        return getattr(_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(f"OP {name!r}: {error}; it must name a function, as in file.py:function") from error


def _module(name: str) -> types.ModuleType:
    if not name.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove("")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arguments(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    try:
        known, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise ValueError(f"OP {name!r}: {error}") from error
    found: dict[str, Any] = {}
    for word in words:
        argument, equals, value = word.partition("=")
        if not equals or argument not in known:
            what = f"has no argument {argument!r}" if equals else f"takes NAME=VALUE, but got {word!r}"
            raise ValueError(f"{name} {what}; {_nearest(argument, list(known))}")
        hint = hints.get(argument)
        tensor = hint is torch.Tensor or torch.Tensor in typing.get_args(hint)
        found[argument] = _value(argument, value, tensor)
    needed = [each.name for each in known.values() if each.default is each.empty and each.name not in found]
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
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d+(,-?\d+)*,?", text):
        return tuple(int(number) for number in text.split(",") if number)
    try:
        return float(text)
    except ValueError:
        return text


class _Launching(TorchDispatchMode):
    """Within: our operators launch their kernels on whichever tensors they get, and `operators` lists them."""

    def __init__(self, codes: list[Code]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codes = codes
        self.operators: list[Operator] = []
        self.spans: list[tuple[int, int]] = []
        self.asked: list[tuple[tiles.Tile, Any, str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace != "cnn_triton":
            return func(*args, **(kwargs or {}))
        op, first = _OPS[name.split(".")[0]], len(self.codes)
        self.asked = []
        result = op.launch(*args)
        self.spans.append((first, len(self.codes)))
        self.operators.append(
            Operator(op.name, op.flops(*args), op.bytes(*args), op.product, [], self.asked, tuple(args))
        )
        return result

    def choose(self, pick: tiles.Tile, problem: Any, kind: str, chip: str) -> tiles.Tile:
        """The pick; noted."""
        self.asked.append((pick, problem, kind, chip))
        return pick


@contextlib.contextmanager
def _arithmetic(dtype: str) -> Iterator[None]:
    """Within: float32 products round as this dtype says, and fake tensors may be asked for their addresses."""
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined, unused-ignore]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def inspect_call(call: Call, chip: str, texts: aot.Texts | None = None) -> list[Operator]:
    """The operators that a call runs on a chip, each with the kernels that it launches, in order; `texts` gets what
    the compiler makes on its way. Errors: what the function raises; RuntimeError in Triton's interpreter."""
    with aot.recording(chip, texts=texts) as codes, as_on_a_gpu(), _arithmetic(call.dtype):
        mode = _Launching(codes)
        with mode, tiles.picking(mode.choose):
            given, results = _run(call)
        moved = nbytes(*(each for each in tree_leaves((given, results)) if isinstance(each, torch.Tensor)))
    for operator, span in zip(mode.operators, mode.spans, strict=True):
        operator.codes = codes[slice(*span)]
    ours = {i for span in mode.spans for i in range(*span)}
    own = [code for i, code in enumerate(codes) if i not in ours]  # the user's function launched these itself
    if own:
        mode.operators.append(Operator(call.name.rpartition(":")[2], None, moved, True, own))
    return mode.operators


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
    call: Call, operator: Operator, chip: str, chosen: str | None = None, texts: aot.Texts | None = None,
    progress: Callable[[list[tiles.Tile]], Any] = iter,
) -> list[tuple[tiles.Tile, Operator]]:  # fmt: skip
    """Every tile that could serve an operator, its pick first, and what it launches with it; or the `chosen` one alone,
    as 128x64x64, or with words behind: 128x64x64,stages=3,gathered. Errors: ValueError, for what can't be chosen."""
    if not operator.asked:
        raise ValueError(f"{operator.name} has no choice of tiles here: its blocks follow from the shapes alone")
    pick, problem, kind, _ = operator.asked[-1]
    every = [each for each in tiles.serving(problem, kind, chip) if each.parts in (1, pick.parts)]
    every = list(dict.fromkeys([pick, *every]))
    if chosen is not None:
        every = [_matching(chosen, every, operator.name, chip)]
    spans = []
    with aot.recording(chip, texts=texts) as codes, as_on_a_gpu(), _arithmetic(call.dtype):
        op = _OPS[operator.name]
        for tile in progress(every):
            first = len(codes)
            with tiles.picking(lambda pick, *asked, tile=tile: tile):
                op.launcher(op.fake(*operator.args), *operator.args)
            spans.append((first, len(codes)))
    found = []
    for tile, span in zip(every, spans, strict=True):
        own = Operator(operator.name, operator.flops, operator.bytes, operator.product, codes[slice(*span)])
        own.asked, own.args = [(tile, problem, kind, chip)], operator.args
        found.append((tile, own))
    return found


def tile_name(tile: tiles.Tile) -> str:
    """A tile in the words that choose it."""
    how = "boxes" if tile.box else "packed" if tile.packed else "gathered"
    parts = f",parts={tile.parts}" if tile.parts > 1 else ""
    return f"{tile.m}x{tile.n}x{tile.k},warps={tile.warps},stages={tile.stages},{how}{parts}"


def _matching(chosen: str, every: list[tiles.Tile], operator: str, chip: str) -> tiles.Tile:
    wanted = set(chosen.split(","))
    for tile in every:  # the pick is the first
        if wanted <= set(tile_name(tile).split(",")):
            return tile
    names = list(dict.fromkeys(map(tile_name, every)))
    raise ValueError(f"--tile {chosen}: not one that serves {operator} on {chip}; {_nearest(chosen, names)}")


class Roof(NamedTuple):
    """What a board could do at best with an operator: microseconds, and what bounds them."""

    board: Board
    rate: float
    microseconds: float
    bound: str


def roofs(operator: Operator, dtype: str, chips: list[str]) -> list[Roof]:
    """The least time of an operator on every board with one of these chips: the longer of its arithmetic, at the
    datasheet's rate, and its compulsory memory traffic."""
    kind = DTYPES[dtype][1] if operator.product or dtype == "float64" else "float"
    found = []
    for board in (board for board in BOARDS if board.chip in chips):
        rate = board.rates[tiles.ARITHMETIC.index(kind)] or board.rates[tiles.ARITHMETIC.index("float")]
        computing = (operator.flops or 0) / rate / 1e6
        moving = operator.bytes / board.bandwidth / 1e3
        found.append(Roof(board, rate, max(computing, moving), "arithmetic" if computing > moving else "memory"))
    return found


def waves(operator: Operator, code: Code) -> str:
    """How the grid of a launch goes through the chip: in how many waves of resident programs, how full the last one
    is; and for programs that take tiles in turns, how many each takes."""
    if code.resident is None:
        return "unknown"
    if not code.resident:
        return "does not fit"
    slots = CHIPS[code.chip].multiprocessors * code.resident
    said = _turns(code.grid, slots, "wave")
    if operator.asked and operator.asked[-1][0].programs == code.grid:
        tile, problem, *_ = operator.asked[-1]
        said += f"; tiles {_turns(tiles.count(problem, tile), code.grid, 'turn')}"
    return said


def _turns(count: int, slots: int, word: str) -> str:
    whole, rest = divmod(count, slots)
    if not rest:
        return f"{whole} full {word}{'s' * (whole != 1)}"
    share = math.floor(100 * rest / slots)
    return f"{share}% of a {word}" if not whole else f"{whole} {word}{'s' * (whole > 1)} and {share}% of one"

"""The tiles that could serve a product: their names, and the kernel that each makes."""

from collections.abc import Callable, Iterable

from ..dispatch import as_on_a_gpu
from ..kernels.compiler import aot
from ..kernels.tiles import pick, shapes
from .calls import Call, nearest
from .inspection import Choice, CompiledLaunch, Launching, OperatorCall, Substitute, float32_as

__all__ = ["candidates", "chosen", "serving", "tile_name"]


def candidates(
    call: Call, operator: OperatorCall, texts: aot.Texts | None = None,
    progress: Callable[[list[shapes.Tile]], Iterable[shapes.Tile]] = iter,
) -> list[tuple[Choice, CompiledLaunch]]:  # fmt: skip
    """Return every tile that could serve an operator's choice, its own first, and the kernel that each makes. Weight
    gradients keep their number of parts, on which the code doesn't depend. Errors: ValueError without a choice."""
    choice, op = _choice(operator), operator.op
    assert op is not None
    every = [each for each in serving(choice) if each.parts == choice.tile.parts]
    with aot.recording(choice.chip, texts=texts) as codes, as_on_a_gpu(), float32_as(call.dtype):
        modes = []
        for tile in progress(every):
            mode = Launching(codes, Substitute(choice.problem, tile))
            with pick.overriding(mode.choose):
                op.launch(*operator.args)
            modes.append(mode)
    found = []
    for mode in modes:
        number = next(i for i, each in mode.choices.items() if each.problem == choice.problem)
        found.append((mode.choices[number], CompiledLaunch(codes[number], mode.choices[number])))
    return found


def _choice(operator: OperatorCall) -> Choice:
    """Return an operator's choice. Errors: ValueError."""
    if operator.choice is None:
        raise ValueError(f"{operator.name}: there is no other tile to choose for it here")
    return operator.choice


def serving(choice: Choice) -> list[shapes.Tile]:
    """Return every tile that could serve a choice's problem: the chosen one, all with its number of parts, the rest."""
    every = list(pick.serving(choice.problem, choice.kind, choice.chip))
    return list(dict.fromkeys([choice.tile, *(tile._replace(parts=choice.tile.parts) for tile in every), *every]))


def tile_name(tile: shapes.Tile) -> str:
    """Return a tile in the words that choose it."""
    how = "tma" if tile.box else "packed" if tile.packed else "gathered"
    counts = "".join(f",{name}={getattr(tile, name)}" for name in ("taps", "parts") if getattr(tile, name) > 1)
    return f"{tile.m}x{tile.n}x{tile.k},warps={tile.warps},stages={tile.stages},{how}{counts}"


def chosen(operator: OperatorCall, words: str) -> Substitute:
    """Return the tile that has these words, 128x64x64 or 128x64x64,stages=3,gathered for example, and is otherwise most
    like the pick, for the problem of an operator's choice. Errors: ValueError if no tile that could serve has them."""
    choice = _choice(operator)
    own, wanted = tile_name(choice.tile).split(","), set(words.lower().split(","))
    named = {tile_name(tile): tile for tile in serving(choice)}
    fitting = [name for name in named if wanted <= set(name.split(","))]
    if not fitting:
        sides = ",".join(sorted(wanted, key=lambda word: "x" not in word))
        raise ValueError(
            f"--tile {words}: not one that serves {operator.name} on {choice.chip}; {nearest(sides, named)}"
        )
    return Substitute(choice.problem, named[max(fitting, key=lambda name: len({*own} & {*name.split(",")}))])

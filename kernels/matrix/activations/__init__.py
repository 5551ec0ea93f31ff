"""Activations y = act(x): each is two device functions, PyTorch's, and one row of the table; all else follows from it.

A matrix kernel ends in act(x), on the sums in registers. The derivative is computed from what was saved, x or y:

    dx = act'(x) · dy                                 `backward(dy, saved)`
    ∂dx/∂saved = dy · `second_derivative(saved)`      for the gradient of a gradient

A call names its activation by a word, and numbers where it has any: "relu", "leaky_relu 0.1", "clamp -1 inf".
"""

import difflib
from functools import cache
from typing import Any, NamedTuple

import torch

from ...core.replay import apart
from ...window.arguments import real
from . import exponential, piecewise, smooth
from .record import Activation, Alias, DeviceActivation

ACTIVATIONS: dict[str, Activation] = {**piecewise.ROWS, **smooth.ROWS, **exponential.ROWS}
ALIASES: dict[str, Alias] = piecewise.ALIASES


class Applied(NamedTuple):
    """An activation with its numbers. saves: as Activation.saves, but "input" for a hardtanh whose bounds some dtype
    rounds."""

    rule: Activation
    numbers: tuple[float, ...]
    saves: str

    @property
    def has_second_derivative(self) -> bool:
        """True if act'(x) is not constant on pieces."""
        return self.rule.second_derivative is not None

    def _halves(self, results: torch.dtype) -> tuple[Any, Any] | None:
        return self.rule.halves if results.itemsize == 2 else None

    def takes_registers(self, results: torch.dtype) -> bool:
        """True if act(x) takes registers for each result of a dtype."""
        return self.has_second_derivative and self._halves(results) is None

    @property
    def vectors_at_once(self) -> int:
        """The most vectors of 16 bytes that a thread of a streaming kernel takes at once: few where act takes
        registers."""
        return 2 if self.has_second_derivative else 4

    def on_device(self, results: torch.dtype, saved: torch.dtype | None = None) -> DeviceActivation:
        """Return what kernels are compiled for; `results`: the dtype of what is stored; `saved`: of what its derivative
        is computed from."""
        numbers = self.numbers
        if saved is not None and self.rule.rounded:
            with apart():
                numbers = tuple(torch.tensor(numbers, dtype=saved).tolist())
        forward, backward = self._halves(results) or (self.rule.forward, self.rule.backward)
        return DeviceActivation(forward, backward, self.saves, numbers)

    def reference_grad(self, grad: torch.Tensor, saved: torch.Tensor) -> Any:
        """Return act'(x) · grad, by PyTorch."""
        return self.rule.reference_grad(grad, saved, *self.numbers)

    def second_derivative(self, saved: torch.Tensor) -> torch.Tensor | None:
        """Return the derivative of act'(x) in what is saved; None where that is 0."""
        second = self.rule.second_derivative
        return None if second is None else second(saved, *self.numbers)


@cache
def of(activation: str) -> Applied:
    """Return the activation that a call names."""
    word, *numbers = activation.split()
    rule, values = ACTIVATIONS[word], tuple(map(float, numbers))
    saves = rule.saves
    if word == "hardtanh" and not all(map(_exact, values)):
        saves = "input"  # an output on a bound may have been rounded onto it
    return Applied(rule, values, saves)


def reference(activation: str, x: torch.Tensor) -> Any:
    """Return act(x), by PyTorch. It asks no cache: torch.compile, which traces it, warns of those."""
    word, *numbers = activation.split()
    return ACTIVATIONS[word].reference(x, *map(float, numbers))


def _exact(number: float) -> bool:
    """True if every dtype has this number."""
    with apart():
        return all(torch.tensor(number, dtype=dtype).item() == number for dtype in (torch.float16, torch.bfloat16))


def words() -> list[str]:
    """Return the words of all activations, as the public functions take them."""
    return [*ACTIVATIONS, *ALIASES]


def described() -> str:
    """Return all activations in words, as they stand in docstrings."""
    named = [repr(word) for word in words() if word != "none"]
    numbered = [f"({word!r}, {row.numbers.words})" for word, row in ACTIVATIONS.items() if row.numbers.usual]
    return f"{', '.join(named)}; with numbers {', '.join(numbered)}"


def meant(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...] | None:
    """Return the (word, numbers...) that a call of one of PyTorch's functions means, by its other arguments; None if it
    is no activation. Errors: TypeError for arguments that it doesn't have."""
    for word, alias in ALIASES.items():
        if function in alias.functions:
            return (word,)
    for word, row in ACTIVATIONS.items():
        if function in row.functions and (numbers := row.arguments(*args, **kwargs)) is not None:
            return (word, *numbers)
    return None


def spell(activation: Any) -> str:
    """Return the activation of a call, from an argument as the public functions take it: None, a word, or
    (word, numbers...). Errors: TypeError, ValueError."""
    if activation is None:
        return "none"
    word, *numbers = activation if isinstance(activation, tuple | list) and activation else (activation,)
    if not isinstance(word, str):
        raise TypeError(f"activation must be None, a word, or a word and numbers, but got {activation!r}")
    if word in ALIASES:
        if numbers:
            raise ValueError(f"activation {word!r} takes 0 numbers, but got {len(numbers)}")
        word, numbers = ALIASES[word].word, [*ALIASES[word].numbers]
    if word == "prelu":
        raise ValueError(
            "activation 'prelu' has a slope, which functions take, as ('prelu', slope), and layers don't: put "
            "torch.nn.PReLU after one, and cnn_triton.convert makes them one kernel"
        )
    if word not in ACTIVATIONS:
        near = difflib.get_close_matches(word, words(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"activation must be one of {', '.join(words())}, but got {word!r}{hint}")
    takes = ACTIVATIONS[word].numbers
    if numbers and len(numbers) != len(takes.usual):
        raise ValueError(f"activation {word!r} takes {len(takes.usual)} numbers, but got {len(numbers)}")
    numbers = [real(f"each number of activation {word!r}", number) for number in numbers or takes.usual]
    if any(number != number for number in numbers) or not takes.fit(*numbers):
        raise ValueError(f"activation {word!r} takes {takes.words}, but got {tuple(numbers)}")
    return " ".join([word, *map(repr, numbers)])

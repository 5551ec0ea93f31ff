"""One activation as a record, on the host and as kernels take it."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Numbers(NamedTuple):
    """The numbers that an activation takes: the usual ones, what they are in words, and if given ones are that."""

    usual: tuple[float, ...] = ()
    words: str = ""
    fit: Callable[..., bool] = lambda *numbers: True


class Activation(NamedTuple):
    """One activation; P are its numbers.

    forward, backward: device functions, act(x, P) and act'(x)·grad of (grad, saved, P)
    saves:             what the derivatives are computed from, "input" (x) or "output" (y); "" for nothing
    reference, reference_grad: the same by PyTorch, (x, *P) and (grad, saved, *P)
    second_derivative: by PyTorch, the derivative of act'(x) in what is saved, (saved, *P); None where that is 0
    functions:         PyTorch's functions of x that are it
    arguments:         of their other arguments: P; None for those that mean another activation
    numbers:           what P are
    torch_saves:       what PyTorch's backward keeps, if not what ours keeps
    halves:            forward and backward for results of 16 bits, if others are as good as rounded
    rounded:           True if P are to be rounded as what is saved is, before they are compared with it
    """

    forward: Any
    backward: Any
    saves: str
    reference: Callable[..., Any]
    reference_grad: Callable[..., Any]
    second_derivative: Callable[..., Any] | None
    functions: tuple[Any, ...] = ()
    arguments: Callable[..., tuple[Any, ...] | None] = lambda inplace=False: ()
    numbers: Numbers = Numbers()
    torch_saves: str = ""
    rounded: bool = False
    halves: tuple[Any, Any] | None = None


class Alias(NamedTuple):
    """A word for another activation with certain numbers, and PyTorch's functions that are it."""

    word: str
    numbers: tuple[float, ...]
    functions: tuple[Any, ...]


class DeviceActivation(NamedTuple):
    """An activation as kernels are compiled for it."""

    forward: Any
    backward: Any
    saves: str
    numbers: tuple[float, ...]

    @property
    def cache_key(self) -> str:
        """The key of Triton's cache of compiled kernels: it holds the text of the functions, too."""
        return f"{self.forward.cache_key} {self.backward.cache_key} {self.saves} {self.numbers}"

"""Activations y = act(x): each is two device functions, PyTorch's, and one row of ACTIVATIONS.

A matrix kernel ends in act(x), on the sums in registers. The derivative is computed from what was saved, x or y:

    dx = act'(x) · dy        `backward(dy, saved)`
    and along a second gradient  ∂dx/∂saved = dy · `curve(saved)`

A call names its activation by a word, and numbers where it has any: "relu", "leaky_relu 0.1", "clamp -1 inf".
"""

import difflib
import math
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .geometry import real
from .lang import device_function, tl
from .plan import apart
from .precision import accumulator


@device_function
def identity(x, P: tl.constexpr):
    """y = x."""
    return x


@device_function
def identity_grad(grad, saved, P: tl.constexpr):
    """1"""
    return grad


@device_function
def relu(x, P: tl.constexpr):
    """y = max(x, 0), NaN kept."""
    return tl.where(x <= 0, 0.0, x).to(x.dtype)


@device_function
def relu_grad(grad, y, P: tl.constexpr):
    """0 where y is 0, else 1 (at NaN too), as PyTorch has it."""
    return tl.where(y <= 0, 0.0, grad).to(grad.dtype)


@device_function
def leaky_relu(x, P: tl.constexpr):
    """y = x where that is positive, else P·x."""
    return tl.where(x > 0, x, x * P[0])


@device_function
def leaky_relu_grad(grad, y, P: tl.constexpr):
    """1 where y, and so x, is positive, else P."""
    return tl.where(y > 0, grad, grad * P[0])


@device_function
def bounds(x, P: tl.constexpr):
    """P₀ and P₁ in x's precision: compared as they are, they would be float32."""
    return tl.full(x.shape, P[0], x.dtype), tl.full(x.shape, P[1], x.dtype)


@device_function
def clamp(x, P: tl.constexpr):
    """y = min(max(x, P₀), P₁), NaN kept."""
    low, high = bounds(x, P)
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@device_function
def clamp_grad(grad, x, P: tl.constexpr):
    """1 within the bounds and on them; 0 outside and at NaN."""
    low, high = bounds(x, P)
    return tl.where((x >= low) & (x <= high), grad, 0.0).to(grad.dtype)


@device_function
def hardtanh_grad(grad, y, P: tl.constexpr):
    """1 within the bounds and at NaN, as on CUDA; 0 on them."""
    low, high = bounds(y, P)
    return tl.where((y <= low) | (y >= high), 0.0, grad).to(grad.dtype)


@device_function
def sigmoid(x, P: tl.constexpr):
    """y = 1 / (1 + exp(−x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@device_function
def sigmoid_grad(grad, y, P: tl.constexpr):
    """y·(1 − y)"""
    return grad * (1.0 - y) * y


@device_function
def tanh(x, P: tl.constexpr):
    """y = (1 − t) / (1 + t) with t = exp(−2|x|), and x's sign; near 0, where that cancels, Taylor's series."""
    t = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - t) / (1.0 + t)
    z = x * x
    near = x * (1.0 - z * (1.0 / 3 - z * (2.0 / 15 - z * (17.0 / 315 - z * (62.0 / 2835)))))
    return tl.where(z < 0.0036, near, tl.where(x < 0, -y, y))


@device_function
def tanh_grad(grad, y, P: tl.constexpr):
    """1 − y²"""
    return grad * (1.0 - y * y)


@device_function
def silu(x, P: tl.constexpr):
    """y = x·σ(x), σ the sigmoid."""
    return x / (1.0 + tl.exp(-x))


@device_function
def silu_grad(grad, x, P: tl.constexpr):
    """σ(x)·(1 + x·(1 − σ(x)))"""
    s = 1.0 / (1.0 + tl.exp(-x))
    return grad * s * (1.0 + x * (1.0 - s))


@device_function
def gelu(x, P: tl.constexpr):
    """y = x·Φ(x), Φ the normal distribution: ½·(1 + erf(x/√2))."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@device_function
def gelu_grad(grad, x, P: tl.constexpr):
    """Φ(x) + x·φ(x), φ the normal density."""
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return grad * (0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density)


@device_function
def gelu_tanh(x, P: tl.constexpr):
    """y = ½·x·(1 + tanh(v/2)) = x·σ(v) with v = √(8/π)·(x + 0.044715·x³)."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@device_function
def gelu_tanh_grad(grad, x, P: tl.constexpr):
    """σ(v) + x·σ(v)·(1 − σ(v))·v', with t = exp(−|v|) so that nothing cancels: σ(|v|) = 1 / (1 + t)."""
    v = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    t = tl.exp(-tl.abs(v))
    s = 1.0 / (1.0 + t)
    slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    return grad * (tl.where(v < 0, t * s, s) + x * (t * s * s) * slope)


def _silu_curve(x):
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _gelu_curve(x):
    return torch.exp(-0.5 * x * x) * (2 - x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_curve(x):
    k = math.sqrt(2 / math.pi)
    t = torch.tanh(k * (x + 0.044715 * x * x * x))
    slope, bend = k * (1 + 0.134145 * x * x), k * 0.26829 * x
    return (1 - t * t) * (slope + 0.5 * x * (bend - 2 * t * slope * slope))


def _silu_reference_grad(grad, x):
    """Not aten's, which has no derivative of its own."""
    wide = accumulator(x.dtype)
    s = torch.sigmoid(x.to(wide))
    return (grad.to(wide) * s * (1 + x.to(wide) * (1 - s))).to(grad.dtype)


_aten = torch.ops.aten


class Activation(NamedTuple):
    """One activation; P are its numbers.

    forward, backward: on the device, act(x, P) and act'(x)·grad of (grad, saved, P)
    saves:             what the derivatives are computed from, "input" (x) or "output" (y); "" for nothing
    reference, reference_grad: the same by PyTorch, (x, *P) and (grad, saved, *P)
    curve:             by PyTorch, the derivative of act'(x) in what is saved, (saved, *P); None where that is 0
    bounded:           are P compared with what is saved after rounding as it is rounded, as PyTorch has it?
    """

    forward: Any
    backward: Any
    saves: str
    reference: Any
    reference_grad: Any
    curve: Any = None
    bounded: bool = False


def _hardtanh_reference_grad(grad, y, low, high):
    return torch.where((y <= low) | (y >= high), 0, grad)


# By the words that calls use; `defaults` has the numbers of those that take any.
ACTIVATIONS = {
    "none": Activation(identity, identity_grad, "", lambda x: x, lambda grad, _: grad),
    "relu": Activation(relu, relu_grad, "output", torch.relu, lambda grad, y: torch.where(y <= 0, 0, grad)),
    "leaky_relu": Activation(
        leaky_relu, leaky_relu_grad, "output", F.leaky_relu, lambda grad, y, s: torch.where(y > 0, grad, grad * s)
    ),
    "hardtanh": Activation(clamp, hardtanh_grad, "output", F.hardtanh, _hardtanh_reference_grad),
    "clamp": Activation(
        clamp, clamp_grad, "input", torch.clamp,
        lambda grad, x, low, high: torch.where((x >= low) & (x <= high), grad, 0), bounded=True,
    ),
    "sigmoid": Activation(sigmoid, sigmoid_grad, "output", torch.sigmoid, _aten.sigmoid_backward, lambda y: 1 - 2 * y),
    "tanh": Activation(tanh, tanh_grad, "output", torch.tanh, _aten.tanh_backward, lambda y: -2 * y),
    "silu": Activation(silu, silu_grad, "input", F.silu, _silu_reference_grad, _silu_curve),
    "gelu": Activation(gelu, gelu_grad, "input", F.gelu, _aten.gelu_backward, _gelu_curve),
    "gelu_tanh": Activation(
        gelu_tanh, gelu_tanh_grad, "input", partial(F.gelu, approximate="tanh"),
        partial(_aten.gelu_backward, approximate="tanh"), _gelu_tanh_curve,
    ),
}  # fmt: skip
DEFAULTS = {"leaky_relu": (0.01,), "hardtanh": (-1.0, 1.0), "clamp": (-math.inf, math.inf)}


class Applied(NamedTuple):
    """An activation with its numbers."""

    rule: Activation
    numbers: tuple[float, ...]

    @property
    def saves(self) -> str:
        """What its derivatives are computed from: see Activation."""
        return self.rule.saves

    def numbers_as(self, dtype: torch.dtype) -> tuple[float, ...]:
        """The numbers beside something saved in this dtype."""
        if not self.rule.bounded:
            return self.numbers
        with apart():
            return tuple(torch.tensor(self.numbers, dtype=dtype).tolist())

    def reference_grad(self, grad: torch.Tensor, saved: torch.Tensor) -> Any:
        """act'(x) · grad, by PyTorch."""
        return self.rule.reference_grad(grad, saved, *self.numbers)

    def curve(self, saved: torch.Tensor) -> torch.Tensor | None:
        """The derivative of act'(x) in what is saved; None where that is 0."""
        return None if self.rule.curve is None else self.rule.curve(saved, *self.numbers)


@cache
def of(activation: str) -> Applied:
    """The activation that a call names."""
    word, *numbers = activation.split()
    rule, values = ACTIVATIONS[word], tuple(map(float, numbers))
    if word == "hardtanh" and not all(map(_exact, values)):
        rule = rule._replace(saves="input")  # an output on a bound may have been rounded onto it
    return Applied(rule, values)


def reference(activation: str, x: torch.Tensor) -> Any:
    """act(x), by PyTorch. It asks no cache: torch.compile, which traces it, warns of those."""
    word, *numbers = activation.split()
    return ACTIVATIONS[word].reference(x, *map(float, numbers))


def _exact(number: float) -> bool:
    """Has every dtype this number?"""
    with apart():
        return all(torch.tensor(number, dtype=dtype).item() == number for dtype in (torch.float16, torch.bfloat16))


def spell(activation: Any) -> str:
    """The activation of a call, from an argument as the public functions take it: None, a word, or (word, numbers...).
    Errors: TypeError, ValueError."""
    if activation is None:
        return "none"
    word, *numbers = activation if isinstance(activation, tuple | list) and activation else (activation,)
    if not isinstance(word, str):
        raise TypeError(f"activation must be None, a word, or a word and numbers, but got {activation!r}")
    if word == "relu6":
        if numbers:
            raise ValueError(f"activation 'relu6' takes 0 numbers, but got {len(numbers)}")
        word, numbers = "hardtanh", [0.0, 6.0]
    if word not in ACTIVATIONS:
        near = difflib.get_close_matches(word, [*ACTIVATIONS, "relu6"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"activation must be one of {', '.join([*ACTIVATIONS, 'relu6'])}, but got {word!r}{hint}")
    usual = DEFAULTS.get(word, ())
    if numbers and len(numbers) != len(usual):
        raise ValueError(f"activation {word!r} takes {len(usual)} numbers, but got {len(numbers)}")
    numbers = [real(f"each number of activation {word!r}", number) for number in numbers or usual]
    if any(number != number for number in numbers) or (word == "leaky_relu" and not 0 <= numbers[0] < math.inf):
        raise ValueError(f"activation {word!r} takes {'a slope of 0 or more' if usual[1:] == () else 'two bounds'}, "
                         f"but got {tuple(numbers)}")  # fmt: skip
    if word == "hardtanh" and numbers[0] > numbers[1]:
        raise ValueError(f"activation 'hardtanh' takes a lower bound and an upper one, but got {tuple(numbers)}")
    return " ".join([word, *map(repr, numbers)])

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

from ..base.lang import device_function, tl
from ..base.precision import accumulator
from ..core.replay import apart
from ..window.convolution import real


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
def clamp_inner_grad(grad, x, P: tl.constexpr):
    """1 between the bounds; 0 on them, outside and at NaN."""
    low, high = bounds(x, P)
    return tl.where((x > low) & (x < high), grad, 0.0).to(grad.dtype)


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


@device_function
def hardsigmoid(x, P: tl.constexpr):
    """y = min(max(x + 3, 0), 6) / 6, NaN kept."""
    return clamp(x + 3.0, (0.0, 6.0)) / 6.0


@device_function
def hardsigmoid_grad(grad, x, P: tl.constexpr):
    """1/6 between −3 and 3; 0 on them, outside and at NaN."""
    return tl.where((x > -3.0) & (x < 3.0), grad / 6.0, 0.0).to(grad.dtype)


@device_function
def hardswish(x, P: tl.constexpr):
    """y = x·min(max(x + 3, 0), 6) / 6."""
    return x * clamp(x + 3.0, (0.0, 6.0)) / 6.0


@device_function
def hardswish_grad(grad, x, P: tl.constexpr):
    """0 up to −3, x/3 + ½ up to 3, then 1."""
    return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, grad * (x / 3.0 + 0.5), grad)).to(grad.dtype)


@device_function
def expm1(x):
    """exp(x) − 1 for x up to 0, to full precision: 2t / (1 − t) with t = tanh(x/2)."""
    t = tanh(0.5 * x, ())
    return 2.0 * t / (1.0 - t)


@device_function
def log1p(x):
    """log(1 + x) for x from 0 to 1, to full precision: near 0 by Taylor's series."""
    near = x * (1.0 - x * (0.5 - x * (1.0 / 3 - x * (0.25 - x * (0.2 - x / 6.0)))))
    return tl.where(x < 0.003, near, tl.log(1.0 + x))


@device_function
def elu(x, P: tl.constexpr):
    """y = x where that is positive, else P·(exp(x) − 1)."""
    return tl.where(x > 0, x, P[0] * expm1(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)))


@device_function
def elu_grad(grad, x, P: tl.constexpr):
    """P·exp(x) up to 0, else 1."""
    return tl.where(x <= 0, grad * P[0] * tl.exp(x), grad)


@device_function
def selu(x, P: tl.constexpr):
    """y = 1.0507·elu(x), with 1.6733 for P."""
    return 1.0507009873554805 * elu(x, (1.6732632423543772,))


@device_function
def selu_grad(grad, x, P: tl.constexpr):
    """1.0507·1.6733·exp(x) up to 0, else 1.0507."""
    return elu_grad(1.0507009873554805 * grad, x, (1.6732632423543772,))


@device_function
def softplus(x, P: tl.constexpr):
    """y = log(1 + exp(P₀·x)) / P₀, or x where P₀·x is above P₁."""
    v = P[0] * x
    y = (tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p(tl.exp(-tl.abs(v)))) / P[0]
    return tl.where(v > P[1], x, y)


@device_function
def softplus_grad(grad, x, P: tl.constexpr):
    """σ(P₀·x), or 1 where P₀·x is above P₁."""
    v = P[0] * x
    return tl.where(v > P[1], grad, grad / (1.0 + tl.exp(-v)))


@device_function
def mish(x, P: tl.constexpr):
    """y = x·tanh(log(1 + exp(x)))."""
    return x * tanh_softplus(x)


@device_function
def tanh_softplus(x):
    """tanh(log(1 + exp(x))) = (e² + 2e) / (e² + 2e + 2) with e = exp(x); by exp(−x) where that is smaller."""
    e = tl.exp(-tl.abs(x))
    up, down = 1.0 + 2.0 * e, e * (e + 2.0)
    return tl.where(x > 0, up / (up + 2.0 * e * e), down / (down + 2.0))


@device_function
def mish_grad(grad, x, P: tl.constexpr):
    """t + x·σ(x)·(1 − t²) with t = tanh(log(1 + exp(x)))."""
    t = tanh_softplus(x)
    return grad * (t + x / (1.0 + tl.exp(-x)) * (1.0 - t * t))


@device_function
def softsign(x, P: tl.constexpr):
    """y = x / (1 + |x|)."""
    return x / (1.0 + tl.abs(x))


@device_function
def softsign_grad(grad, x, P: tl.constexpr):
    """1 / (1 + |x|)²; NaN at infinity, as PyTorch has it."""
    d = 1.0 + tl.abs(x)
    return tl.where(d < float("inf"), grad / (d * d), x / d * grad)


@device_function
def log_sigmoid(x, P: tl.constexpr):
    """y = log(σ(x)) = min(x, 0) − log(1 + exp(−|x|))."""
    return tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - log1p(tl.exp(-tl.abs(x)))


@device_function
def log_sigmoid_grad(grad, x, P: tl.constexpr):
    """σ(−x)"""
    return grad / (1.0 + tl.exp(x))


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


def _mish_curve(x):
    s, t = torch.sigmoid(x), torch.tanh(F.softplus(x))
    return s * (1 - t * t) * (2 + x * (1 - s - 2 * s * t))


def _mish_reference_grad(grad, x):
    """Not aten's, which has no derivative of its own."""
    wide = accumulator(x.dtype)
    x, kind = x.to(wide), grad.dtype
    t = torch.tanh(F.softplus(x))
    return (grad.to(wide) * (t + x * torch.sigmoid(x) * (1 - t * t))).to(kind)


def _softsign_reference_grad(grad, x):
    d = 1 + x.abs()
    return torch.where(d < math.inf, grad / (d * d), x / d * grad)


def _softplus_curve(x, beta, threshold):
    s = torch.sigmoid(beta * x)
    return torch.where(beta * x > threshold, 0, beta * s * (1 - s))


def _log_sigmoid_curve(x):
    s = torch.sigmoid(x)
    return -s * (1 - s)


_SELU = 1.0507009873554805, 1.6732632423543772


def _silu_reference_grad(grad, x):
    """Not aten's, which has no derivative of its own."""
    wide = accumulator(x.dtype)
    s = torch.sigmoid(x.to(wide))
    return (grad.to(wide) * s * (1 + x.to(wide) * (1 - s))).to(grad.dtype)


_aten = torch.ops.aten
# Does clamp's derivative hold on its bounds, as in PyTorch up to 2.13?
_CLOSED = torch.torch_version.TorchVersion(torch.__version__) < (2, 14)


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


def _clamp_reference_grad(grad, x, low, high):
    return torch.where((x >= low) & (x <= high) if _CLOSED else (x > low) & (x < high), grad, 0)


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
        clamp, clamp_grad if _CLOSED else clamp_inner_grad, "input", torch.clamp, _clamp_reference_grad, bounded=True
    ),
    "sigmoid": Activation(sigmoid, sigmoid_grad, "output", torch.sigmoid, _aten.sigmoid_backward, lambda y: 1 - 2 * y),
    "tanh": Activation(tanh, tanh_grad, "output", torch.tanh, _aten.tanh_backward, lambda y: -2 * y),
    "silu": Activation(silu, silu_grad, "input", F.silu, _silu_reference_grad, _silu_curve),
    "gelu": Activation(gelu, gelu_grad, "input", F.gelu, _aten.gelu_backward, _gelu_curve),
    "gelu_tanh": Activation(
        gelu_tanh, gelu_tanh_grad, "input", partial(F.gelu, approximate="tanh"),
        partial(_aten.gelu_backward, approximate="tanh"), _gelu_tanh_curve,
    ),
    "hardsigmoid": Activation(
        hardsigmoid, hardsigmoid_grad, "input", F.hardsigmoid,
        lambda grad, x: torch.where((x > -3) & (x < 3), grad / 6, 0),  # aten's sixth is float32's in float64, too
    ),
    "hardswish": Activation(
        hardswish, hardswish_grad, "input", F.hardswish, _aten.hardswish_backward,
        lambda x: torch.where((x > -3) & (x < 3), torch.full_like(x, 1 / 3), 0),
    ),
    "mish": Activation(mish, mish_grad, "input", F.mish, _mish_reference_grad, _mish_curve),
    "elu": Activation(
        elu, elu_grad, "input", F.elu, lambda grad, x, a: _aten.elu_backward(grad, a, 1.0, 1.0, False, x),
        lambda x, a: torch.where(x <= 0, a * torch.exp(x), 0),
    ),
    "selu": Activation(
        selu, selu_grad, "input", F.selu,
        lambda grad, x: _aten.elu_backward(grad, _SELU[1], _SELU[0], 1.0, False, x),
        lambda x: torch.where(x <= 0, _SELU[0] * _SELU[1] * torch.exp(x), 0),
    ),
    "softplus": Activation(
        softplus, softplus_grad, "input", F.softplus, _aten.softplus_backward, _softplus_curve,
    ),
    "softsign": Activation(
        softsign, softsign_grad, "input", F.softsign, _softsign_reference_grad,
        lambda x: -2 * torch.sign(x) / (1 + x.abs()) ** 3,
    ),
    "log_sigmoid": Activation(
        log_sigmoid, log_sigmoid_grad, "input", F.logsigmoid,
        lambda grad, x: grad * torch.sigmoid(-x), _log_sigmoid_curve,
    ),
}  # fmt: skip
# Of those that take numbers: the usual ones, what they are, and whether given ones are that.
_NUMBERS: dict[str, tuple[tuple[float, ...], str, Any]] = {
    "leaky_relu": ((0.01,), "a slope of 0 or more", lambda slope: 0 <= slope < math.inf),
    "hardtanh": ((-1.0, 1.0), "a lower bound and an upper one", lambda low, high: low <= high),
    "clamp": ((-math.inf, math.inf), "two bounds", lambda low, high: True),
    "elu": ((1.0,), "an alpha", lambda alpha: True),
    "softplus": ((1.0, 20.0), "a beta other than 0 and a threshold", lambda beta, threshold: beta != 0),
}
DEFAULTS = {word: usual for word, (usual, *_) in _NUMBERS.items()}


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
    if word == "prelu":
        raise ValueError(
            "activation 'prelu' has a slope, which functions take, as ('prelu', slope), and layers don't: put "
            "torch.nn.PReLU after one, and cnn_triton.convert makes them one kernel"
        )
    if word not in ACTIVATIONS:
        near = difflib.get_close_matches(word, [*ACTIVATIONS, "relu6"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"activation must be one of {', '.join([*ACTIVATIONS, 'relu6'])}, but got {word!r}{hint}")
    usual = DEFAULTS.get(word, ())
    if numbers and len(numbers) != len(usual):
        raise ValueError(f"activation {word!r} takes {len(usual)} numbers, but got {len(numbers)}")
    numbers = [real(f"each number of activation {word!r}", number) for number in numbers or usual]
    if word in _NUMBERS:
        _, what, right = _NUMBERS[word]
        if any(number != number for number in numbers) or not right(*numbers):
            raise ValueError(f"activation {word!r} takes {what}, but got {tuple(numbers)}")
    return " ".join([word, *map(repr, numbers)])

"""Smooth activations: sigmoid, tanh, silu, gelu, gelu_tanh, softsign."""

import math
from functools import partial

import torch
import torch.nn.functional as F

from ...base.lang import device_function, tl
from ...base.precision import accumulator
from .halves import FORWARD, GRADIENTS
from .record import Activation

_aten = torch.ops.aten


@device_function
def sigmoid(x, P: tl.constexpr):
    """y = 1 / (1 + exp(−x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@device_function
def sigmoid_grad(grad, y, P: tl.constexpr):
    """Return grad times y·(1 − y)."""
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
    """Return grad times 1 − y²."""
    return grad * (1.0 - y * y)


@device_function
def silu(x, P: tl.constexpr):
    """y = x·σ(x), σ the sigmoid."""
    return x / (1.0 + tl.exp(-x))


@device_function
def silu_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(x)·(1 + x·(1 − σ(x)))."""
    s = 1.0 / (1.0 + tl.exp(-x))
    return grad * s * (1.0 + x * (1.0 - s))


@device_function
def gelu(x, P: tl.constexpr):
    """y = x·Φ(x), Φ the normal distribution: ½·(1 + erf(x/√2))."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@device_function
def gelu_grad(grad, x, P: tl.constexpr):
    """Return grad times Φ(x) + x·φ(x), φ the normal density."""
    e = tl.exp(-0.5 * x * x)
    if x.dtype == tl.float64:
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tail = 0.5 * e * tail_over_density(tl.abs(x))
        below = tl.where(x < 0, tail, 1.0 - tail)
    return grad * (below + 0.3989422804014327 * x * e)


@device_function
def tail_over_density(x):
    """(1 − erf(x/√2))·exp(x²/2) for x from 0: a polynomial in t = 1 / (1 + 0.55·x/√2) without constant, whose error
    times exp(−x²/2) is at most 1.8e-8 (least squares, weighted until all peaks were alike)."""
    t = 1.0 / (1.0 + 0.38890872965260115 * x)
    rest = 0.7598329472835168 + t * (-0.5181112523430141 + t * 0.10734232910907768)
    return t * (0.30157738403437623 + t * (0.3908802749209636 + t * (-0.04152166583507322 + t * rest)))


@device_function
def gelu_tanh(x, P: tl.constexpr):
    """y = ½·x·(1 + tanh(v/2)) = x·σ(v) with v = √(8/π)·(x + 0.044715·x³)."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@device_function
def gelu_tanh_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(v) + x·σ(v)·(1 − σ(v))·v'. With t = exp(−|v|) nothing cancels: σ(|v|) = 1 / (1 + t)."""
    v = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    t = tl.exp(-tl.abs(v))
    s = 1.0 / (1.0 + t)
    slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    return grad * (tl.where(v < 0, t * s, s) + x * (t * s * s) * slope)


@device_function
def softsign(x, P: tl.constexpr):
    """y = x / (1 + |x|)."""
    return x / (1.0 + tl.abs(x))


@device_function
def softsign_grad(grad, x, P: tl.constexpr):
    """Return grad times 1 / (1 + |x|)²; NaN at infinity, as PyTorch has it."""
    d = 1.0 + tl.abs(x)
    return tl.where(d < float("inf"), grad / (d * d), x / d * grad)


def _silu_second_derivative(x):
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _silu_reference_grad(grad, x):
    """act'(x)·grad, differentiable; aten's own operator has no derivative."""
    dtype = accumulator(x.dtype)
    s = torch.sigmoid(x.to(dtype))
    return (grad.to(dtype) * s * (1 + x.to(dtype) * (1 - s))).to(grad.dtype)


def _gelu_second_derivative(x):
    return torch.exp(-0.5 * x * x) * (2 - x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_second_derivative(x):
    k = math.sqrt(2 / math.pi)
    t = torch.tanh(k * (x + 0.044715 * x * x * x))
    slope, bend = k * (1 + 0.134145 * x * x), k * 0.26829 * x
    return (1 - t * t) * (slope + 0.5 * x * (bend - 2 * t * slope * slope))


def _softsign_reference_grad(grad, x):
    d = 1 + x.abs()
    return torch.where(d < math.inf, grad / (d * d), x / d * grad)


ROWS = {
    "sigmoid": Activation(
        sigmoid, sigmoid_grad, "output", torch.sigmoid, _aten.sigmoid_backward, lambda y: 1 - 2 * y,
        functions=(F.sigmoid, torch.sigmoid, torch.sigmoid_), arguments=lambda: (),
        halves=(FORWARD["sigmoid"], sigmoid_grad),
    ),
    "tanh": Activation(
        tanh, tanh_grad, "output", torch.tanh, _aten.tanh_backward, lambda y: -2 * y,
        functions=(F.tanh, torch.tanh, torch.tanh_), arguments=lambda: (), halves=(FORWARD["tanh"], tanh_grad),
    ),
    "silu": Activation(
        silu, silu_grad, "input", F.silu, _silu_reference_grad, _silu_second_derivative, functions=(F.silu,),
        halves=(FORWARD["silu"], GRADIENTS["silu"]),
    ),
    "gelu": Activation(
        gelu, gelu_grad, "input", F.gelu, _aten.gelu_backward, _gelu_second_derivative,
        functions=(F.gelu,), arguments=lambda approximate="none": () if approximate == "none" else None,
        halves=(FORWARD["gelu"], GRADIENTS["gelu"]),
    ),
    "gelu_tanh": Activation(
        gelu_tanh, gelu_tanh_grad, "input", partial(F.gelu, approximate="tanh"),
        partial(_aten.gelu_backward, approximate="tanh"), _gelu_tanh_second_derivative,
        functions=(F.gelu,), arguments=lambda approximate="none": () if approximate == "tanh" else None,
        halves=(FORWARD["gelu_tanh"], GRADIENTS["gelu_tanh"]),
    ),
    "softsign": Activation(
        softsign, softsign_grad, "input", F.softsign, _softsign_reference_grad,
        lambda x: -2 * torch.sign(x) / (1 + x.abs()) ** 3, functions=(F.softsign,), arguments=lambda: (),
    ),
}  # fmt: skip

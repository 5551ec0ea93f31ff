"""Activations of exponentials and logarithms: elu, selu, softplus, mish, log_sigmoid."""

import torch
import torch.nn.functional as F

from ...base.lang import device_function, tl
from ...base.precision import accumulator
from .record import Activation, Numbers
from .smooth import tanh

_aten = torch.ops.aten
_SELU = 1.0507009873554805, 1.6732632423543772


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
    """Return grad times P·exp(x) up to 0, else 1."""
    return tl.where(x <= 0, grad * P[0] * tl.exp(x), grad)


@device_function
def selu(x, P: tl.constexpr):
    """y = 1.0507·elu(x), with 1.6733 for P."""
    return 1.0507009873554805 * elu(x, (1.6732632423543772,))


@device_function
def selu_grad(grad, x, P: tl.constexpr):
    """Return grad times 1.0507·1.6733·exp(x) up to 0, else 1.0507."""
    return elu_grad(1.0507009873554805 * grad, x, (1.6732632423543772,))


@device_function
def softplus(x, P: tl.constexpr):
    """y = log(1 + exp(P₀·x)) / P₀, or x where P₀·x is above P₁."""
    v = P[0] * x
    y = (tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p(tl.exp(-tl.abs(v)))) / P[0]
    return tl.where(v > P[1], x, y)


@device_function
def softplus_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(P₀·x), or 1 where P₀·x is above P₁."""
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
    """Return grad times t + x·σ(x)·(1 − t²) with t = tanh(log(1 + exp(x)))."""
    t = tanh_softplus(x)
    return grad * (t + x / (1.0 + tl.exp(-x)) * (1.0 - t * t))


@device_function
def log_sigmoid(x, P: tl.constexpr):
    """y = log(σ(x)) = min(x, 0) − log(1 + exp(−|x|))."""
    return tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - log1p(tl.exp(-tl.abs(x)))


@device_function
def log_sigmoid_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(−x)."""
    return grad / (1.0 + tl.exp(x))


def _mish_second_derivative(x):
    s, t = torch.sigmoid(x), torch.tanh(F.softplus(x))
    return s * (1 - t * t) * (2 + x * (1 - s - 2 * s * t))


def _mish_reference_grad(grad, x):
    """act'(x)·grad, differentiable; aten's own operator has no derivative."""
    dtype = accumulator(x.dtype)
    x, kind = x.to(dtype), grad.dtype
    t = torch.tanh(F.softplus(x))
    return (grad.to(dtype) * (t + x * torch.sigmoid(x) * (1 - t * t))).to(kind)


def _softplus_second_derivative(x, beta, threshold):
    s = torch.sigmoid(beta * x)
    return torch.where(beta * x > threshold, 0, beta * s * (1 - s))


def _log_sigmoid_second_derivative(x):
    s = torch.sigmoid(x)
    return -s * (1 - s)


ROWS = {
    "mish": Activation(
        mish, mish_grad, "input", F.mish, _mish_reference_grad, _mish_second_derivative, functions=(F.mish,)
    ),
    "elu": Activation(
        elu, elu_grad, "input", F.elu, lambda grad, x, a: _aten.elu_backward(grad, a, 1.0, 1.0, False, x),
        lambda x, a: torch.where(x <= 0, a * torch.exp(x), 0),
        functions=(F.elu, F.elu_), arguments=lambda alpha=1.0, inplace=False: (alpha,),
        numbers=Numbers((1.0,), "an alpha"),
    ),
    "selu": Activation(
        selu, selu_grad, "input", F.selu,
        lambda grad, x: _aten.elu_backward(grad, _SELU[1], _SELU[0], 1.0, False, x),
        lambda x: torch.where(x <= 0, _SELU[0] * _SELU[1] * torch.exp(x), 0),
        functions=(F.selu, torch.selu, torch.selu_),
    ),
    "softplus": Activation(
        softplus, softplus_grad, "input", F.softplus, _aten.softplus_backward, _softplus_second_derivative,
        functions=(F.softplus,), arguments=lambda beta=1.0, threshold=20.0: (beta, threshold),
        numbers=Numbers((1.0, 20.0), "a beta other than 0 and a threshold", lambda beta, threshold: beta != 0),
    ),
    "log_sigmoid": Activation(
        log_sigmoid, log_sigmoid_grad, "input", F.logsigmoid, lambda grad, x: grad * torch.sigmoid(-x),
        _log_sigmoid_second_derivative, functions=(F.logsigmoid,), arguments=lambda: (),
    ),
}  # fmt: skip

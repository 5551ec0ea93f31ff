"""Activations of straight pieces: relu, leaky_relu, hardtanh, clamp, hardsigmoid, hardswish."""

import math

import torch
import torch.nn.functional as F

from ...base.lang import device_function, tl
from .record import Activation, Alias, Numbers

_aten = torch.ops.aten
# True if clamp's derivative holds on its bounds, as in PyTorch up to 2.13.
_CLOSED = torch.torch_version.TorchVersion(torch.__version__) < (2, 14)


@device_function
def identity(x, P: tl.constexpr):
    """y = x."""
    return x


@device_function
def identity_grad(grad, saved, P: tl.constexpr):
    """Return grad."""
    return grad


@device_function
def relu(x, P: tl.constexpr):
    """y = max(x, 0), NaN kept."""
    return tl.where(x <= 0, 0.0, x).to(x.dtype)


@device_function
def relu_grad(grad, y, P: tl.constexpr):
    """Return 0 where y is 0, else grad (at NaN too), as PyTorch has it."""
    return tl.where(y <= 0, 0.0, grad).to(grad.dtype)


@device_function
def leaky_relu(x, P: tl.constexpr):
    """y = x where that is positive, else P·x."""
    return tl.where(x > 0, x, x * P[0])


@device_function
def leaky_relu_grad(grad, y, P: tl.constexpr):
    """Return grad where y, and so x, is positive, else grad times P."""
    return tl.where(y > 0, grad, grad * P[0])


@device_function
def bounds(x, P: tl.constexpr):
    """Return P₀ and P₁ in x's precision: as plain numbers they would be compared in float32."""
    return tl.full(x.shape, P[0], x.dtype), tl.full(x.shape, P[1], x.dtype)


@device_function
def clamp(x, P: tl.constexpr):
    """y = min(max(x, P₀), P₁), NaN kept."""
    low, high = bounds(x, P)
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@device_function
def clamp_grad(grad, x, P: tl.constexpr):
    """Return grad within the bounds and on them; 0 outside and at NaN."""
    low, high = bounds(x, P)
    return tl.where((x >= low) & (x <= high), grad, 0.0).to(grad.dtype)


@device_function
def clamp_inner_grad(grad, x, P: tl.constexpr):
    """Return grad between the bounds; 0 on them, outside and at NaN."""
    low, high = bounds(x, P)
    return tl.where((x > low) & (x < high), grad, 0.0).to(grad.dtype)


@device_function
def hardtanh_grad(grad, y, P: tl.constexpr):
    """Return grad between the bounds and at NaN, as on CUDA; 0 on them and outside."""
    low, high = bounds(y, P)
    return tl.where((y <= low) | (y >= high), 0.0, grad).to(grad.dtype)


@device_function
def hardsigmoid(x, P: tl.constexpr):
    """y = min(max(x + 3, 0), 6) / 6, NaN kept."""
    return clamp(x + 3.0, (0.0, 6.0)) / 6.0


@device_function
def hardsigmoid_grad(grad, x, P: tl.constexpr):
    """Return grad times 1/6 between −3 and 3; 0 on them, outside and at NaN."""
    return tl.where((x > -3.0) & (x < 3.0), grad / 6.0, 0.0).to(grad.dtype)


@device_function
def hardswish(x, P: tl.constexpr):
    """y = x·min(max(x + 3, 0), 6) / 6."""
    return x * clamp(x + 3.0, (0.0, 6.0)) / 6.0


@device_function
def hardswish_grad(grad, x, P: tl.constexpr):
    """Return grad times 0 up to −3, x/3 + ½ up to 3, then 1."""
    return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, grad * (x / 3.0 + 0.5), grad)).to(grad.dtype)


def _clamp_reference_grad(grad, x, low, high):
    return torch.where((x >= low) & (x <= high) if _CLOSED else (x > low) & (x < high), grad, 0)


def _hardtanh_reference_grad(grad, y, low, high):
    return torch.where((y <= low) | (y >= high), 0, grad)


def _ordered(low, high):
    return low <= high


ROWS = {
    "none": Activation(identity, identity_grad, "", lambda x: x, lambda grad, _: grad, None),
    "relu": Activation(
        relu, relu_grad, "output", torch.relu, lambda grad, y: torch.where(y <= 0, 0, grad), None,
        functions=(F.relu, torch.relu, torch.relu_),
    ),
    "leaky_relu": Activation(
        leaky_relu, leaky_relu_grad, "output", F.leaky_relu,
        lambda grad, y, s: torch.where(y > 0, grad, grad * s), None,
        functions=(F.leaky_relu,), arguments=lambda negative_slope=0.01, inplace=False: (negative_slope,),
        numbers=Numbers((0.01,), "a slope of 0 or more", lambda slope: 0 <= slope < math.inf), torch_saves="input",
    ),
    "hardtanh": Activation(
        clamp, hardtanh_grad, "output", F.hardtanh, _hardtanh_reference_grad, None,
        functions=(F.hardtanh,), arguments=lambda min_val=-1.0, max_val=1.0, inplace=False: (min_val, max_val),
        numbers=Numbers((-1.0, 1.0), "a lower bound and an upper one", _ordered), torch_saves="input",
    ),
    "clamp": Activation(
        clamp, clamp_grad if _CLOSED else clamp_inner_grad, "input", torch.clamp, _clamp_reference_grad, None,
        functions=(torch.clamp, torch.clamp_),
        arguments=lambda min=None, max=None: (-math.inf if min is None else min, math.inf if max is None else max),
        numbers=Numbers((-math.inf, math.inf), "two bounds"),
        rounded=True,
    ),
    "hardsigmoid": Activation(
        hardsigmoid, hardsigmoid_grad, "input", F.hardsigmoid,
        lambda grad, x: torch.where((x > -3) & (x < 3), grad / 6, 0),  # aten's sixth is float32's in float64, too
        None, functions=(F.hardsigmoid,),
    ),
    "hardswish": Activation(
        hardswish, hardswish_grad, "input", F.hardswish, _aten.hardswish_backward,
        lambda x: torch.where((x > -3) & (x < 3), torch.full_like(x, 1 / 3), 0), functions=(F.hardswish,),
    ),
}  # fmt: skip
ALIASES = {"relu6": Alias("hardtanh", (0.0, 6.0), (F.relu6,))}

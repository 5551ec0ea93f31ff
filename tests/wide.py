"""What sums float64 numbers that lie on no grid, in NumPy's longer floating point: float64's wider reference."""

import mpmath
import numpy as np
import torch

from cnn_triton.kernels.matrix import activation_grad, activations, batch_norm, conv2d, linear, locally_connected2d

PI = np.longdouble("3.14159265358979323846264")


def _long(tensor):
    return tensor.numpy().astype(np.longdouble)


def _double(*arrays):
    return tuple(torch.from_numpy(np.ascontiguousarray(array).astype(np.float64)) for array in arrays)


def _sum(x):
    return x.sum((0, 2, 3))


def _erf(x):
    """By mpmath at the nearest float64, and the slope from there."""
    near = x.astype(np.float64)
    at = np.vectorize(lambda v: np.longdouble(mpmath.nstr(mpmath.erf(v), 25)), otypes=[np.longdouble])(near)
    return at + 2 / np.sqrt(PI) * np.exp(-(x * x)) * (x - near)


def _gelu_tanh(x):
    k, a = np.sqrt(2 / PI), np.longdouble("0.044715")
    t = np.tanh(k * (x + a * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) * k * (1 + 3 * a * x * x) / 2


def _gelu(x):
    normal = (1 + _erf(x / np.sqrt(np.longdouble(2)))) / 2
    return x * normal, normal + x * np.exp(-(x * x) / 2) / np.sqrt(2 * PI)


def _silu(x):
    s = 1 / (1 + np.exp(-x))
    return x * s, s * (1 + x * (1 - s))


def _mish(x):
    s, t = 1 / (1 + np.exp(-x)), np.tanh(np.logaddexp(0, x))
    return x * t, t + x * s * (1 - t * t)


def _elu(x, alpha, scale):
    low = np.minimum(x, 0)
    return scale * np.where(x > 0, x, alpha * np.expm1(low)), scale * np.where(x > 0, 1, alpha * np.exp(low))


def _softplus(x, beta, threshold):
    linear = beta * x > threshold
    y = np.logaddexp(0, beta * x) / beta
    return np.where(linear, x, y), np.where(linear, 1, 1 / (1 + np.exp(-beta * x)))


def _activation(x, name):
    """act(x) and act'(x); by PyTorch in float64, of an activation that is not here."""
    word, *numbers = name.split()
    low, high = (np.longdouble(float(n)) for n in numbers) if len(numbers) == 2 else (0, 0)
    inside = (x > low) & (x < high) if word == "hardtanh" else (x >= low) & (x <= high)
    slope = float(numbers[0]) if len(numbers) == 1 else 0
    known = {
        "none": lambda: (x, np.ones_like(x)),
        "relu": lambda: (np.maximum(x, 0), (x > 0) * np.ones_like(x)),
        "leaky_relu": lambda: (np.where(x > 0, x, x * slope), np.where(x > 0, 1, slope)),
        "hardtanh": lambda: (np.clip(x, low, high), inside * np.ones_like(x)),
        "clamp": lambda: (np.clip(x, low, high), inside * np.ones_like(x)),
        "sigmoid": lambda: (1 / (1 + np.exp(-x)), None),
        "tanh": lambda: (np.tanh(x), None),
        "silu": lambda: _silu(x),
        "gelu": lambda: _gelu(x),
        "gelu_tanh": lambda: _gelu_tanh(x),
        "hardsigmoid": lambda: (np.clip(x + 3, 0, 6) / 6, (np.abs(x) < 3) / np.longdouble(6)),
        "hardswish": lambda: (x * np.clip(x + 3, 0, 6) / 6, np.where(np.abs(x) < 3, x / 3 + 0.5, x > 0)),
        "mish": lambda: _mish(x),
        "elu": lambda: _elu(x, slope, 1),
        "selu": lambda: _elu(x, np.longdouble("1.6732632423543772"), np.longdouble("1.0507009873554805")),
        "softplus": lambda: _softplus(x, low, high),
        "softsign": lambda: (x / (1 + np.abs(x)), (1 + np.abs(x)) ** -2),
        "log_sigmoid": lambda: (-np.logaddexp(0, -x), 1 / (1 + np.exp(x))),
    }
    return known[word]() if word in known else _by_pytorch(x, name)


def _by_pytorch(x, name):
    (given,), rule = _double(x), activations.of(name)
    y = activations.reference(name, given)
    slope = rule.reference_grad(torch.ones_like(given), y if rule.saves == "output" else given)
    return _long(y), _long(slope)


def _prelu(x, slope):
    return np.where(x > 0, x, x * _long(slope).reshape(-1, *(1,) * (x.ndim - 2)))


def _product(op):
    """A product's results, with what follows it: the product alone is exact, its terms lie on a grid."""

    def wide(input, weight, bias, scale, residual, slope, *rest):
        bare = op.reference(input, weight, None, None, None, None, *rest[:-1], "none")
        x = _long(bare[0] if isinstance(bare, tuple) else bare)
        columns = (-1, *(1,) * (x.ndim - 2))
        x = x if scale is None else x * _long(scale).reshape(columns)
        beside = bias if bias is None or bias.dim() == 1 else bias.permute(2, 0, 1)
        x = x if bias is None else x + _long(beside).reshape(beside.shape if beside.dim() > 1 else columns)
        x = x if residual is None else x + _long(residual)
        y = _activation(x, rest[-1])[0] if slope is None else _prelu(x, slope)
        return _double(y, x) if isinstance(bare, tuple) else _double(y)

    return wide


def _activation_grad(grad, saved, activation):
    s = _long(saved)
    if activation == "sigmoid":
        slope = s * (1 - s)
    elif activation == "tanh":
        slope = 1 - s * s
    else:  # of x, or of an output that has its slope where x has it
        slope = _activation(s, activation)[1]
    masked = _long(grad) * slope
    return _double(masked, _sum(masked))


def _moments(*args):
    z = batch_norm.CONV2D_MOMENTS.reference(*args)[0]
    x = _long(z)
    mean = _sum(x) / np.longdouble(x[:, 0].size)
    return z, *_double(mean, _sum((x - mean[:, None, None]) ** 2) / np.longdouble(x[:, 0].size))


def _normal(input, mean, var, weight, bias, eps):
    """(ẑ, 1/√(var + eps), what goes into the activation)."""
    s = 1 / np.sqrt(_long(var) + np.longdouble(eps))
    z = (_long(input) - _long(mean)[:, None, None]) * s[:, None, None]
    x = z if weight is None else z * _long(weight)[:, None, None]
    return z, s, x if bias is None else x + _long(bias)[:, None, None]


def _norm(*args):
    *rest, residual, slope, eps, activation = args
    x = _normal(*rest, eps)[2]
    x = x if residual is None else x + _long(residual)
    return _double(_activation(x, activation)[0] if slope is None else _prelu(x, slope))


def _norm_grad(grad, *args):
    *rest, activation = args
    z, s, x = _normal(*rest)
    g = _long(grad) * _activation(x, activation)[1]
    total, product = _sum(g), _sum(g * z)
    count = np.longdouble(g[:, 0].size)
    dz = (g - (total[:, None, None] + z * product[:, None, None]) / count) * s[:, None, None]
    dz = dz if rest[3] is None else dz * _long(rest[3])[:, None, None]
    return _double(dz, np.stack((total, product)))


PRODUCTS = (
    conv2d.CONV2D,
    conv2d.CONV2D_WITH_PREACTIVATION,
    conv2d.CONV_TRANSPOSE2D,
    conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION,
)
PRODUCTS += (linear.LINEAR, linear.LINEAR_WITH_PREACTIVATION)
PRODUCTS += (locally_connected2d.LOCALLY_CONNECTED2D, locally_connected2d.LOCALLY_CONNECTED2D_WITH_PREACTIVATION)
WIDE = {op: _product(op) for op in PRODUCTS} | {
    activation_grad.ACTIVATION_GRAD: _activation_grad,
    batch_norm.CONV2D_MOMENTS: _moments,
    batch_norm.BATCH_NORM: _norm,
    batch_norm.BATCH_NORM_GRAD: _norm_grad,
}


def exact(op, args):
    """The operator's results of float64 arguments, as exact as float64 can be."""
    if op in WIDE and args[0].numel() and args[1].numel():
        cpu = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        return tuple(result.to(args[0].device) for result in WIDE[op](*cpu))
    value = op.reference(*args)
    return value if isinstance(value, tuple) else (value,)

"""Smooth activations for results of 16 bits: fewer instructions than smooth.py's.

Values are at most 2⁻¹⁶ of themselves off, a sixteenth of float16's rounding. Derivatives, which are also summed in
float32, are as precise as that, 1e-7. NaN and infinity are as in smooth.py. What chips compute at once is 2ˣ and 1/√x,
whose square takes the place of a division; what is subnormal is 0 to both.
"""

from ...base.lang import device_function, tl


@device_function
def exp(x):
    """exp(x)."""
    return tl.exp2(1.4426950408889634 * x)


@device_function
def over(x, d):
    """x / d for a positive d."""
    r = tl.rsqrt(d)
    return x * r * r


@device_function
def sigmoid(x, P: tl.constexpr):
    """y = 1 / (1 + exp(−x))."""
    return over(1.0, 1.0 + exp(-x))


@device_function
def tanh(x, P: tl.constexpr):
    """y = 1 − 1 / (½ + ½·exp(2x)), or where that cancels x − 0.3316·x³, which is up to 5.6e-6 off."""
    z = x * x
    return tl.where(z < 0.015625, x * (1.0 - 0.33161659357802453 * z), 1.0 - over(1.0, 0.5 + 0.5 * exp(2.0 * x)))


@device_function
def silu(x, P: tl.constexpr):
    """y = x·σ(x), σ the sigmoid."""
    return over(x, 1.0 + exp(-x))


@device_function
def silu_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(x) + x·σ(x)·(1 − σ(x)). With t = exp(−|x|) nothing cancels: σ(|x|) = 1 / (1 + t)."""
    t = exp(-tl.abs(x))
    s = over(1.0, 1.0 + t)
    return grad * (tl.where(x < 0, t * s, s) + x * (t * s * s))


@device_function
def bell(x):
    """exp(−x²/2)."""
    return tl.exp2(-0.7213475204444817 * (x * x))


@device_function
def tail_over_bell(x):
    """Φ(−|x|)·exp(x²/2), Φ the normal distribution: a polynomial in r = 1 / √(x² + 6.389·|x| + 11.5) without
    constant. Its error is at most 1.3e-5 of it, and 6.4e-8 of exp(x²/2) (least squares, weighted until all peaks were
    alike)."""
    r = tl.rsqrt(x * x + (6.389263993888044 * tl.abs(x) + 11.501095160923171))
    rest = 4.756918814287807 + r * (3.68054666563021 + r * 56.30651684017695)
    return r * (0.3999555244885245 + r * (1.2278680459772906 + r * rest))


@device_function
def gelu(x, P: tl.constexpr):
    """y = x·Φ(x)."""
    tail = bell(x) * tail_over_bell(x)
    return x * tl.where(x < 0, tail, 1.0 - tail)


@device_function
def gelu_grad(grad, x, P: tl.constexpr):
    """Return grad times Φ(x) + x·φ(x), φ the normal density."""
    tail = bell(x) * (tail_over_bell(x) - 0.3989422804014327 * tl.abs(x))
    return grad * tl.where(x < 0, tail, 1.0 - tail)


@device_function
def gelu_tanh(x, P: tl.constexpr):
    """y = x·σ(v) with v = √(8/π)·(x + 0.044715·x³)."""
    return over(x, 1.0 + exp(-x * (1.5957691216057308 + 0.07135481627159874 * (x * x))))


@device_function
def gelu_tanh_grad(grad, x, P: tl.constexpr):
    """Return grad times σ(v) + x·σ(v)·(1 − σ(v))·v', computed as silu's."""
    z = x * x
    v = x * (1.5957691216057308 + 0.07135481627159874 * z)
    t = exp(-tl.abs(v))
    s = over(1.0, 1.0 + t)
    return grad * (tl.where(v < 0, t * s, s) + x * (t * s * s) * (1.5957691216057308 + 0.21406444881479622 * z))


FORWARD = {"sigmoid": sigmoid, "tanh": tanh, "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}
GRADIENTS = {"silu": silu_grad, "gelu": gelu_grad, "gelu_tanh": gelu_tanh_grad}

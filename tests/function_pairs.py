"""The public functions beside PyTorch's, with the shapes of their tensors: what test_gradients.py differentiates."""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from checks import unfolded
from cnn_triton import functional
from cnn_triton.kernels.matrix import activations, conv_pool, pool_code
from cnn_triton.kernels.window import convolution
from cnn_triton.ops import operator
from tables import ACTIVATIONS, ADAPTIVES, BLOCKS, CONVS, LINEARS, LOCALS, POOLS, TRANSPOSED


class Pair(NamedTuple):
    """A function of ours, and PyTorch's: `plain`, and what ours does `after` it; the tensors' shapes, other arguments.

    masked: of something after it that has kinks, the gradient that goes on to `plain`, (grad, our output, tensors): a
    value within rounding of a kink may be on either side of it
    smooth: its values lie on no grid, so that float64 has no exact reference: its gradients are left to gradcheck, and
    to the operators' tests
    kinked: it has kinks and no `masked`: where 16 bits round, a value may be on either side of them; gradcheck and the
    operators' tests have it
    """

    ours: Any
    plain: Any
    shapes: tuple[tuple[int, ...], ...]
    rest: tuple[Any, ...]
    after: Any = lambda y: y
    masked: Any = None
    smooth: bool = False
    kinked: bool = False

    def theirs(self, *args):
        return self.after(self.plain(*args))


def conv2d_of(layer):
    """PyTorch's conv2d with the layer's padding mode, which it doesn't know; then scale and residual, if given."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation)
    sides, mode = (*window.pads[2:], *window.pads[:2]), layer.padding_mode.replace("zeros", "constant")

    def plain(x, w, b, *rest):
        (*more, stride, _, dilation, groups) = rest
        y = F.conv2d(F.pad(x, sides, mode), w, None if more else b, stride, 0, dilation, groups)
        return y * more[0][:, None, None] + b[:, None, None] + more[1] if more else y

    return plain


def relu_masked(grad, output, tensors):
    return torch.where(output <= 0, 0, grad).to(grad.dtype)


def by_rule(name):
    return lambda grad, output, tensors: activations.of(name).reference_grad(grad, output)


def pool_masked(layer, pool, average):
    """The gradient of what was pooled, as the forward pass had it in the precision that it ran in."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    how = (*window[1:4], layer.groups, layer.padding_mode)

    def masked(grad, output, tensors):
        _, code = operator(conv_pool.CONV2D_POOL)(*tensors, None, *how, pool, average)
        size = conv_pool.full_size(*tensors[:2], *how)
        return pool_code.input_grad_aten(grad, code, size, pool, average, False)[0]

    return masked


def batch_norm_of(layer):
    """conv2d and batch normalisation in training."""
    plain = conv2d_of(layer)
    return lambda x, w, s, t, *rest: F.batch_norm(plain(x, w, None, *rest), None, None, s, t, True)


def of_convolutions():
    for label, layer in CONVS.items():
        shapes = (layer.input, (layer.k, layer.input[1] // layer.groups, *layer.size), (layer.k,))
        rest, mode = (layer.stride, layer.padding, layer.dilation, layer.groups), layer.padding_mode
        for name in ("conv2d", "conv2d_relu"):
            ours = functools.partial(getattr(functional, name), padding_mode=mode)
            after = (torch.relu, relu_masked) if name == "conv2d_relu" else ()
            yield f"{name} {label}", Pair(ours, conv2d_of(layer), shapes, rest, *after)
        if label in BLOCKS:
            pool = BLOCKS[label]
            for kind in ("max", "avg"):
                name = f"conv2d_relu_{kind}_pool2d"
                ours = functools.partial(getattr(functional, name), padding_mode=mode, pool_size=pool)
                after = lambda y, of=f"{kind}_pool2d", pool=pool: getattr(F, of)(y.relu(), pool)  # noqa: E731
                masked = pool_masked(layer, pool, kind == "avg")
                shares = kind == "avg" and math.prod(pool).bit_count() > 1  # a third of a number is on no grid
                yield f"{name} {label}", Pair(ours, conv2d_of(layer), shapes, rest, after, masked, shares)
        if label in ("3x3", "groups", "circular", "33 channels", "no image"):
            ours = lambda x, w, s, t, *rest, mode=mode: functional.conv2d_batch_norm(  # noqa: E731
                x, w, None, *rest, norm_weight=s, norm_bias=t, training=True, activation="relu", padding_mode=mode
            )
            each = (*shapes[:2], *(shapes[2],) * 2)
            if label == "groups":  # its second derivatives are the longest way through the formulas
                silu = lambda x, w, s, t, *rest, mode=mode: functional.conv2d_batch_norm(  # noqa: E731
                    x, w, None, *rest, norm_weight=s, norm_bias=t, training=True, activation="silu", padding_mode=mode
                )
                yield (
                    f"conv2d_batch_norm {label}, silu",
                    Pair(silu, batch_norm_of(layer), each, rest, F.silu, None, True),
                )
                normed = batch_norm_of(layer)
                output = tuple(normed(*(torch.zeros(shape) for shape in each), *rest).shape)
                for word, after in (("relu", torch.relu), ("silu", F.silu), (None, lambda y: y)):
                    added = lambda x, w, s, t, r, *rest, mode=mode, word=word: functional.conv2d_batch_norm(  # noqa: E731
                        x, w, None, *rest, norm_weight=s, norm_bias=t, training=True, activation=word,
                        padding_mode=mode, residual=r,
                    )  # fmt: skip
                    plain = lambda x, w, s, t, r, *rest, of=normed: of(x, w, s, t, *rest) + r  # noqa: E731
                    masked = relu_masked if word == "relu" else None
                    yield (
                        f"conv2d_batch_norm {label}, added, {word}",
                        Pair(added, plain, (*each, output), rest, after, masked, True),
                    )
            pair = Pair(ours, batch_norm_of(layer), each, rest, torch.relu, relu_masked, True)
            yield f"conv2d_batch_norm {label}", pair


def of_activations():
    """Every activation after scale, bias and residual: products of three numbers lie on no grid."""
    layer = CONVS["3x3"]
    weight = (layer.k, layer.input[1], *layer.size)
    output = (layer.input[0], layer.k, *layer.input[2:])
    for name in ACTIVATIONS:
        rule, (word, *numbers) = activations.of(name), name.split()

        def ours(x, w, b, s, r, *rest, word=word, numbers=numbers):
            spelled = (word, *map(float, numbers))
            return functional.conv2d(x, w, b, *rest, activation=spelled, scale=s, residual=r)

        shapes, rest = (layer.input, weight, (layer.k,), (layer.k,), output), (1, layer.padding, 1, 1)
        label = f"{'conv2d_with_preactivation' if rule.saves == 'input' else 'conv2d'} 3x3, {name}"
        masked = by_rule(name) if rule.saves == "output" else None
        after = functools.partial(activations.reference, name)
        kinked = masked is None and not rule.has_second_derivative
        yield label, Pair(ours, conv2d_of(layer), shapes, rest, after, masked, True, kinked)


def of_prelu():
    """PReLU after a product and all that may stand between them, and after a normalisation: with a slope for each
    column, and with one."""
    layer = CONVS["groups"]
    weight, output = (layer.k, layer.input[1] // layer.groups, *layer.size), (layer.input[0], layer.k, *layer.input[2:])
    columns, rest = (layer.k,), (1, 1, 1, layer.groups)

    def pair(ours, plain, shapes, rest=rest):
        """Of functions whose first argument is the slope."""
        theirs = lambda a, *args: F.prelu(plain(*args), a)  # noqa: E731
        return Pair(ours, theirs, shapes, rest, smooth=True, kinked=True)

    def conv(a, x, w, b, s, r, *rest):
        return functional.conv2d(x, w, b, *rest, activation=("prelu", a), scale=s, residual=r)

    def norm(a, x, w, s, t, r, *rest):
        how = {"norm_weight": s, "norm_bias": t, "training": True, "residual": r}
        return functional.conv2d_batch_norm(x, w, None, *rest, **how, activation=("prelu", a))

    def transposed(a, x, w, b, *rest):
        return functional.conv_transpose2d(x, w, b, *rest, activation=("prelu", a))

    def linear(a, x, w, b):
        return functional.linear(x, w, b, activation=("prelu", a))

    normal, beside = batch_norm_of(layer), (layer.input, weight, columns, columns)
    for each, a in (("", columns), (", one slope", (1,))):
        shapes = (a, *beside, output)
        yield f"conv2d_with_preactivation groups, PReLU{each}", pair(conv, conv2d_of(layer), shapes)
        added = lambda x, w, s, t, r, *rest: normal(x, w, s, t, *rest) + r  # noqa: E731
        yield f"conv2d_batch_norm groups, PReLU{each}, added", pair(norm, added, shapes)
    alone = lambda a, x, w, s, t, *rest: norm(a, x, w, s, t, None, *rest)  # noqa: E731
    yield "conv2d_batch_norm groups, PReLU", pair(alone, normal, (columns, *beside))
    of, (m, c, k, _) = TRANSPOSED["groups"], LINEARS["odd"]
    shapes = ((of.c,), of.input, (of.input[1], of.c // of.groups, *of.size), (of.c,))
    yield "conv_transpose2d_with_preactivation groups, PReLU", pair(transposed, F.conv_transpose2d, shapes, of[3:])
    yield "linear_with_preactivation odd, PReLU", pair(linear, F.linear, ((k,), (m, c), (k, c), (k,)), ())
    of = LOCALS["two groups"]
    window = convolution.conv_window(of.size, of.stride, of.padding, of.dilation)
    p, q = convolution.conv_output(window, of.input[2:])

    def local(a, x, w, b, *rest):
        return functional.locally_connected2d(x, w, b, *rest, activation=("prelu", a))

    sides = (*window.pads[2:], *window.pads[:2])
    plain = lambda x, w, b, stride, _, *rest: unfolded(F.pad(x, sides), w, b, stride, 0, *rest)  # noqa: E731
    shapes = ((of.k,), of.input, (p, q, of.k, *of.size, of.input[1] // of.groups), (p, q, of.k))
    how = (of.stride, of.padding, of.dilation, of.groups)
    yield "locally_connected2d_with_preactivation two groups, PReLU", pair(local, plain, shapes, how)


def of_locals():
    """Locally connected layers, with a bias for each output pixel or channel; of some a smooth activation after it."""
    for label, layer in LOCALS.items():
        window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation)
        (k, p, q), channels = (
            (layer.k, *convolution.conv_output(window, layer.input[2:])),
            layer.input[1] // layer.groups,
        )
        weight, sides = (p, q, k, *layer.size, channels), (*window.pads[2:], *window.pads[:2])

        def plain(x, w, b, stride, _, dilation, groups, sides=sides):
            return unfolded(F.pad(x, sides), w, b, stride, 0, dilation, groups)

        rest = (layer.stride, layer.padding, layer.dilation, layer.groups)
        ours, shapes = functional.locally_connected2d, (layer.input, weight, (p, q, k))
        yield f"locally_connected2d {label}", Pair(ours, plain, (*shapes[:2], (k,)), rest)
        relu = functools.partial(ours, activation="relu")
        yield f"locally_connected2d {label}, ReLU", Pair(relu, plain, shapes, rest, torch.relu, relu_masked)
        if label in ("3x3", "two groups"):
            scaled = lambda x, w, b, s, r, *rest: functional.locally_connected2d(  # noqa: E731
                x, w, b, *rest, activation="silu", scale=s, residual=r
            )
            whole = lambda x, w, b, s, r, *rest, plain=plain: (  # noqa: E731
                plain(x, w, None, *rest) * s[:, None, None] + b[:, None, None] + r
            )
            shapes = (layer.input, weight, (k,), (k,), (layer.input[0], k, p, q))
            yield (
                f"locally_connected2d_with_preactivation {label}",
                Pair(scaled, whole, shapes, rest, F.silu, None, True),
            )


FUNCTIONS = {**dict(of_convolutions()), **dict(of_activations()), **dict(of_prelu()), **dict(of_locals())}
for label, layer in TRANSPOSED.items():
    shapes = (layer.input, (layer.input[1], layer.c // layer.groups, *layer.size), (layer.c,))
    FUNCTIONS[f"conv_transpose2d {label}"] = Pair(functional.conv_transpose2d, F.conv_transpose2d, shapes, layer[3:])
    ours = lambda x, w, s, *rest: functional.conv_transpose2d(x, w, None, *rest, activation="silu", scale=s)  # noqa: E731
    theirs = lambda x, w, s, *rest: F.conv_transpose2d(x, w, None, *rest) * s[:, None, None]  # noqa: E731
    FUNCTIONS[f"conv_transpose2d_with_preactivation {label}"] = Pair(
        ours, theirs, shapes, layer[3:], F.silu, smooth=True
    )
for label, layer in POOLS.items():
    shape, *rest, ceil, include, divisor = layer
    FUNCTIONS[f"max_pool2d {label}"] = Pair(functional.max_pool2d, F.max_pool2d, (shape,), (*rest, ceil))
    if layer.dilation == 1:
        rest = (*rest[:-1], ceil, include, divisor)
        FUNCTIONS[f"avg_pool2d {label}"] = Pair(functional.avg_pool2d, F.avg_pool2d, (shape,), rest)
for label, (shape, output) in ADAPTIVES.items():
    for name in ("adaptive_max_pool2d", "adaptive_avg_pool2d"):
        FUNCTIONS[f"{name} {label}"] = Pair(getattr(functional, name), getattr(F, name), (shape,), (output,))
for label, (m, c, k, groups) in LINEARS.items():
    if groups > 1:  # not of the public functions
        continue
    shapes = ((m, c), (k, c), (k,))
    FUNCTIONS[f"linear {label}"] = Pair(functional.linear, F.linear, shapes, ())
    FUNCTIONS[f"linear_relu {label}"] = Pair(functional.linear_relu, F.linear, shapes, (), torch.relu, relu_masked)
    ours = lambda x, w, b, s, r: functional.linear(x, w, b, activation="gelu", scale=s, residual=r)  # noqa: E731
    theirs = lambda x, w, b, s, r: F.linear(x, w) * s + b + r  # noqa: E731
    FUNCTIONS[f"linear_with_preactivation {label}"] = Pair(
        ours, theirs, (*shapes, (k,), (m, k)), (), F.gelu, smooth=True
    )

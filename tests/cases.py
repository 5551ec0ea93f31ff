"""What every operator is tested on: each layer of tables.py gives cases of its forward and its gradients."""

from typing import Any

import torch

from cnn_triton.kernels.base.precision import accumulator
from cnn_triton.kernels.core.op import Op
from cnn_triton.kernels.matrix import (
    activation_grad,
    activations,
    batch_norm,
    conv2d,
    conv_pool,
    linear,
    locally_connected2d,
    pool_code,
    prelu,
)  # fmt: skip
from cnn_triton.kernels.pool import avg_pool2d, max_pool2d, unpool2d
from cnn_triton.kernels.window import convolution, pooling
from tables import (
    ACTIVATIONS,
    ADAPTIVES,
    BLOCKS,
    CONVS,
    FOLLOWED,
    GRADS,
    LINEARS,
    LOCALS,
    POOLS,
    TRANSPOSED,
    Case,
    Conv,
    Pool,
    Transposed,
)


def draw(shape: Any, dtype: torch.dtype, form: str) -> torch.Tensor:
    """Fresh normal values in one of FORMATS; "strided" is every second element of a transposed, offset buffer.

    The values are multiples of 2^-16: float64 adds up their products exactly, in any order, so that its results are
    the exact ones, for float64 too.
    """
    x = (torch.randn(tuple(shape), dtype=torch.float64) * 2**16).round().div(2**16).to(dtype)
    if x.dim() == 4 and form == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if form == "strided" and x.dim() > 1:
        buffer = torch.randn(*x.shape[:-2], x.shape[-1], 2 * x.shape[-2] + 1, dtype=torch.float64).to(dtype)
        view = buffer[..., 1::2].transpose(-1, -2)
        return view.copy_(x)
    return x


def _window(layer: Conv) -> tuple[Any, ...]:
    """Stride, pads, dilation, groups and padding mode, as operators take them."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    return (*window[1:4], layer.groups, layer.padding_mode)


def _sizes(layer: Conv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the weight and the output."""
    window = convolution.conv_window(layer.size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    weight = (layer.k, layer.input[1] // layer.groups, *layer.size)
    return weight, convolution.conv_shape(layer.input, weight, None, window, layer.groups)


def _forward(layer: Conv, activation: str, *beside: str) -> Any:
    weight, output = _sizes(layer)

    def make(dtype, form):
        more = beside_product(layer.k, output, dtype, form, beside)
        return (draw(layer.input, dtype, form), draw(weight, dtype, form), *more, *_window(layer), activation)

    return make


def _conv(layer: Conv) -> dict[Op, Any]:
    args, (weight, output) = _window(layer), _sizes(layer)

    def input_grad(dtype, form):
        return (draw(output, dtype, form), draw(weight, dtype, form), layer.input, *args, form == "channels_last")

    def weight_grad(dtype, form):
        grad = draw(output, dtype, form)
        return (grad, draw(layer.input, dtype, form), weight, *args, form == "channels_last")

    return {
        (conv2d.CONV2D, ""): _forward(layer, "none"),
        (conv2d.CONV2D, ", bias, ReLU"): _forward(layer, "relu", "bias"),
        (conv2d.CONV2D_INPUT_GRAD, ""): input_grad,
        (conv2d.CONV2D_WEIGHT_GRAD, ""): weight_grad,
    }


def _followed(layer: Conv) -> dict[Op, Any]:
    def moments(dtype, form):
        input, weight, bias, *_ = _forward(layer, "none", "bias")(dtype, form)
        return (input, weight, bias, *_window(layer))

    return {
        (conv2d.CONV2D, ", all"): _forward(layer, "leaky_relu 0.125", "bias", "scale", "residual"),
        (conv2d.CONV2D, ", PReLU"): _forward(layer, "none", "bias", "slope"),
        (conv2d.CONV2D_WITH_PREACTIVATION, ""): _forward(layer, "gelu", "bias", "residual"),
        (conv2d.CONV2D_WITH_PREACTIVATION, ", PReLU"): _forward(layer, "none", "scale", "residual", "slope"),
        (batch_norm.CONV2D_MOMENTS, ""): moments,
    }


def beside_product(columns: int, output: Any, dtype: torch.dtype, form: str, wanted: Any) -> list[torch.Tensor | None]:
    """Bias, scale, residual and slope of a product's epilogue, those that are wanted."""
    shapes = {"bias": (columns,), "scale": (columns,), "residual": output, "slope": (columns,)}
    return [draw(shape, dtype, form) if name in wanted else None for name, shape in shapes.items()]


def _block(named: tuple[Conv, tuple[int, int]]) -> dict[Op, Any]:
    """A convolution that is pooled, and the way back."""
    layer, pool = named
    args, (weight, output) = _window(layer), _sizes(layer)
    cases = {}
    for average, name in ((False, ", maximum"), (True, ", average")):

        def tensors(dtype, form):
            return draw(layer.input, dtype, form), draw(weight, dtype, form)

        def forward(dtype, form, average=average):
            vectors = (draw((layer.k,), dtype, form) for _ in range(2))
            return (*tensors(dtype, form), *vectors, *args, pool, average)

        def pooled(dtype, form, average=average):
            """A gradient, each of its shares a multiple as `draw`'s values are, and a code as a forward leaves it."""
            y, code = conv_pool.CONV2D_POOL.reference(*tensors(dtype, form), None, None, *args, pool, average)
            return draw(y.shape, dtype, form).mul_(pool[0] * pool[1] if average else 1), code

        def grad(written, needs_input=True, pooled=pooled, average=average):
            def make(dtype, form):
                how = (*args, pool, average, needs_input, True, written)
                return (*pooled(dtype, form), *tensors(dtype, form), *how)

            return make

        def spread(dtype, form, pooled=pooled, average=average):
            return (*pooled(dtype, form), output, pool, average, form == "channels_last")

        def at_open(dtype, form, pooled=pooled, average=average):
            return (draw(output, dtype, form), pooled(dtype, form)[1], pool, average)

        cases |= {
            (conv_pool.CONV2D_POOL, name): forward,
            (conv_pool.CONV2D_POOL_GRAD, name): grad(False),
            (conv_pool.CONV2D_POOL_GRAD, f"{name}, written, weight alone"): grad(True, False),
            (pool_code.RELU_POOL2D_INPUT_GRAD, name): spread,
            (pool_code.RELU_POOL2D_AT_OPEN, name): at_open,
        }
    return cases


def _local(layer: Conv) -> dict[Op, Any]:
    (k, c, r, s), (n, _, p, q) = _sizes(layer)
    weight, args = (p, q, k, r, s, c), _window(layer)[:-1]

    def forward(activation, *beside, places=()):
        def make(dtype, form):
            more = beside_product(k, (n, k, p, q), dtype, form, beside)
            more[0] = draw((*places, k), dtype, form) if "bias" in beside else None
            return (draw(layer.input, dtype, form), draw(weight, dtype, form), *more, *args, activation)

        return make

    def input_grad(dtype, form):
        grad = draw((n, k, p, q), dtype, form)
        return (grad, draw(weight, dtype, form), layer.input, *args, form == "channels_last")

    def weight_grad(dtype, form):
        return (draw((n, k, p, q), dtype, form), draw(layer.input, dtype, form), weight, *args)

    operators = locally_connected2d
    return {
        (operators.LOCALLY_CONNECTED2D, ""): forward("none"),
        (operators.LOCALLY_CONNECTED2D, ", bias, ReLU"): forward("relu", "bias", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D, ", all"): forward("leaky_relu 0.125", "bias", "scale", "residual"),
        (operators.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, ""): forward("gelu", "bias", "residual", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D_WITH_PREACTIVATION, ", PReLU"): forward("none", "bias", "slope", places=(p, q)),
        (operators.LOCALLY_CONNECTED2D_INPUT_GRAD, ""): input_grad,
        (operators.LOCALLY_CONNECTED2D_WEIGHT_GRAD, ""): weight_grad,
    }


def _transposed(layer: Transposed) -> dict[Op, Any]:
    window = convolution.transposed_window(
        layer.size, layer.stride, layer.padding, layer.output_padding, layer.dilation
    )  # fmt: skip
    args = (window.stride, window.pads, window.dilation, layer.groups, "zeros")
    weight = (layer.input[1], layer.c // layer.groups, *layer.size)
    output = convolution.transposed_shape(layer.input, weight, None, window, layer.groups)

    def forward(activation, *beside):
        def make(dtype, form):
            more = beside_product(layer.c, output, dtype, form, beside)
            tensors = (draw(layer.input, dtype, form), draw(weight, dtype, form), *more)
            return (*tensors, output, *args[:-1], form == "channels_last", activation)

        return make

    return {
        (conv2d.CONV_TRANSPOSE2D, ""): forward("none", "bias"),
        (conv2d.CONV_TRANSPOSE2D, ", all"): forward("relu", "bias", "scale", "residual"),
        (conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION, ""): forward("silu", "scale"),
        (conv2d.CONV_TRANSPOSE2D_WITH_PREACTIVATION, ", PReLU"): forward("none", "bias", "slope"),
    }


def _pool(layer: Pool) -> dict[Op, Any]:
    window = pooling.pool_window(layer.size, layer.stride, layer.padding, layer.dilation)
    output = pooling.pool_output(window, layer.input[2:], layer.ceil_mode)
    counted = (layer.count_include_pad, layer.divisor_override)
    return _windows(layer.input, output, window, counted if layer.dilation == 1 else None)


def _adaptive(sizes: tuple[tuple[int, ...], tuple[int, int]]) -> dict[Op, Any]:
    return _windows(*sizes, (), (True, None))


def _windows(input: Any, output: Any, window: Any, counted: Any) -> dict[Op, Any]:
    """Both pools with this window; no average if its padding is `counted` in no way."""

    def maximum(winner, indices):
        return lambda dtype, form: (draw(input, dtype, form), output, window, winner, indices)

    def winner(dtype, form):
        return max_pool2d.MAX_POOL2D.reference(*maximum(True, False)(dtype, form))[1]

    def max_grad(dtype, form):
        grad = draw((*input[:2], *output), dtype, form)
        return (grad, winner(dtype, form), input, window, form == "channels_last")

    def at_winner(dtype, form):
        return (draw(input, dtype, form), winner(dtype, form), window)

    def unpool(dtype, form):
        indices = max_pool2d.MAX_POOL2D.reference(*maximum(False, True)(dtype, form))[2]
        return (draw(indices.shape, dtype, form), indices, input[2:])

    def unpool_grad(dtype, form):
        return (draw(input, dtype, form), unpool(dtype, form)[1])

    def average(dtype, form):
        return (draw(input, dtype, form), output, window, *counted)

    def avg_grad(dtype, form):
        return (draw((*input[:2], *output), dtype, form), input, window, *counted, form == "channels_last")

    cases = {
        (max_pool2d.MAX_POOL2D, ""): maximum(True, False),
        (max_pool2d.MAX_POOL2D, ", indices"): maximum(True, True),
        (max_pool2d.MAX_POOL2D, ", values alone"): maximum(False, False),
        (max_pool2d.MAX_POOL2D_INPUT_GRAD, ""): max_grad,
        (max_pool2d.MAX_POOL2D_AT_WINNER, ""): at_winner,
        (unpool2d.MAX_UNPOOL2D, ""): unpool,
        (unpool2d.MAX_UNPOOL2D_INPUT_GRAD, ""): unpool_grad,
    }
    if counted:
        cases |= {(avg_pool2d.AVG_POOL2D, ""): average, (avg_pool2d.AVG_POOL2D_INPUT_GRAD, ""): avg_grad}
    return cases


def _linear(layer: tuple[int, int, int, int]) -> dict[Op, Any]:
    rows, c, k, groups = layer
    weight = (k, c // groups)

    def forward(activation, *beside):
        def make(dtype, form):
            more = beside_product(k, (rows, k), dtype, form, beside)
            return (draw((rows, c), dtype, form), draw(weight, dtype, form), *more, groups, activation)

        return make

    return {
        (linear.LINEAR, ""): forward("none"),
        (linear.LINEAR, ", bias, ReLU"): forward("relu", "bias"),
        (linear.LINEAR, ", all"): forward("sigmoid", "bias", "scale", "residual"),
        (linear.LINEAR_WITH_PREACTIVATION, ""): forward("gelu_tanh", "bias"),
        (linear.LINEAR_WITH_PREACTIVATION, ", PReLU"): forward("none", "residual", "slope"),
        (linear.LINEAR_INPUT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw(weight, d, f), groups),
        (linear.LINEAR_WEIGHT_GRAD, ""): lambda d, f: (draw((rows, k), d, f), draw((rows, c), d, f), groups),
    }


def _epilogue(shape: tuple[int, int, int, int]) -> dict[Op, Any]:
    def activation(name):
        def make(dtype, form):
            x, rule = draw(shape, dtype, form), activations.of(name)
            return (draw(shape, dtype, form), activations.reference(name, x) if rule.saves == "output" else x, name)

        return make

    def norm(activation, affine, added=False, slope=False):
        def make(dtype, form):
            x = draw(shape, dtype, form)
            var, mean = torch.var_mean(x.to(accumulator(dtype)), (0, 2, 3), correction=0)
            vectors = (draw(shape[1:2], dtype, form) if affine else None for _ in range(2))
            residual = draw(shape, dtype, form) if added else None
            below = draw(shape[1:2], dtype, form) if slope else None
            return (x, mean, var, *vectors, residual, below, 1e-3, activation)

        return make

    def norm_grad(name, affine):
        def make(dtype, form):
            *vectors, _, _, eps, activation = norm(name, affine)(dtype, form)
            return (draw(shape, dtype, form), *vectors, eps, activation)

        return make

    cases = {(activation_grad.ACTIVATION_GRAD, f", {name}"): activation(name) for name in ACTIVATIONS if name != "none"}
    for name, affine in (("relu", True), ("none", False), ("gelu", True)):
        cases[batch_norm.BATCH_NORM, f", {name}"] = norm(name, affine)
        cases[batch_norm.BATCH_NORM, f", {name}, added"] = norm(name, affine, added=True)
        cases[batch_norm.BATCH_NORM_GRAD, f", {name}"] = norm_grad(name, affine)
    cases[batch_norm.BATCH_NORM, ", PReLU"] = norm("none", True, added=True, slope=True)
    images = lambda dtype, form: [draw(shape, dtype, form) for _ in range(2)]  # noqa: E731
    cases[prelu.PRELU_GRAD, ""] = lambda dtype, form: (*images(dtype, form), draw(shape[1:2], dtype, form))
    return cases | {(activation_grad.BIAS_GRAD, ""): lambda dtype, form: (draw(shape, dtype, form),)}


CASES = [
    Case(op, label + more, make)
    for table, derive in (
        (CONVS, _conv),
        ({label: CONVS[label] for label in FOLLOWED}, _followed),
        ({label: (CONVS[label], pool) for label, pool in BLOCKS.items()}, _block),
        (TRANSPOSED, _transposed),
        (LOCALS, _local),
        (POOLS, _pool),
        (ADAPTIVES, _adaptive),
        (LINEARS, _linear),
        (GRADS, _epilogue),
    )
    for label, layer in table.items()
    for (op, more), make in derive(layer).items()
]

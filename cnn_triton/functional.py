"""The layers as functions, with the names, arguments and defaults of torch.nn.functional.

The kernels are two-dimensional: a function of one dimension runs them over images that are one row high.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves, tree_map_only

from . import autograd
from .autograd.function import transforming
from .dispatch import operators, runs_kernels
from .kernels.base.precision import accumulator, autocasts
from .kernels.core.tensors import channels_last, check_optional, check_tensors
from .kernels.matrix import activations
from .kernels.matrix.epilogue import activated, check_fit, completed
from .kernels.matrix.locally_connected2d import LOCALLY_CONNECTED2D
from .kernels.pool.unpool2d import check_indices
from .kernels.window import arguments, convolution, pooling

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv2d_batch_norm",
    "conv2d_relu",
    "conv2d_relu_avg_pool2d",
    "conv2d_relu_max_pool2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "linear",
    "linear_relu",
    "locally_connected2d",
    "max_pool1d",
    "max_pool2d",
    "max_unpool1d",
    "max_unpool2d",
]

_TRACED = (FakeTensor, FunctionalTensor)  # which take any operator for what it is
_Ints = int | tuple[int, ...] | list[int]
_Sizes = int | None | Sequence[int | None]
_Activation = str | tuple[Any, ...] | None
_Maxima = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _overridable(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, of which tensors of other classes may say what it does, as they may of PyTorch's own
    (__torch_function__); torch.fx's proxies, for one, note the call. TorchDynamo takes it for one call, and doesn't
    look into it where it runs. What is wrong with its arguments is told in our words wherever it runs."""

    @torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)  # type: ignore[no-any-return, unused-ignore]
        try:
            return function(*args, **kwargs)
        except Exception as error:
            ours = _told(function, args, kwargs, error)
            if ours is None:
                raise
            raise ours from error

    return call  # type: ignore[no-any-return]


def _told(function: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception | None:
    """What the operators say, in an error of this type, where PyTorch's own raised it; None if they say nothing."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    if not tensors or any(map(_foreign, tensors)) or transforming() or runs_kernels(tensors[0].device):
        return None
    if len({t.device for t in tensors}) == 1 and all(t.is_floating_point() for t in tensors):  # not indices
        shape_alone = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")  # noqa: E731
        args, kwargs = tree_map_only(torch.Tensor, shape_alone, (args, kwargs))
    try:
        with operators(), torch.no_grad():
            function(*args, **kwargs)
    except Exception as ours:
        return ours if isinstance(ours, type(error)) else None
    return None


@_overridable
def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution (cross-correlation), and what follows it in the same kernel.

    x[n,k,p,q] = Σ_{c,r,s} input[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation] · w[k,c,r,s]
    y = act(scale[k] · x + b[k] + residual)

    Equivalent to: torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups); with a
    padding_mode 'reflect', 'replicate' or 'circular', of torch.nn.functional.pad(input, ..., padding_mode), which is
    never formed

    activation: None, or a word: 'relu', 'relu6', 'leaky_relu', 'hardtanh', 'clamp', 'sigmoid', 'tanh', 'silu', 'gelu',
    'gelu_tanh', 'hardsigmoid', 'hardswish', 'mish', 'elu', 'selu', 'softplus', 'softsign', 'log_sigmoid'; with numbers
    where PyTorch's function takes any, ('leaky_relu', slope), ('hardtanh', low, high), ('clamp', low, high),
    ('elu', alpha), ('softplus', beta, threshold). For its derivative 'relu', 'leaky_relu', 'hardtanh', 'sigmoid' and
    'tanh' keep the output alone, the others what stands before them. And ('prelu', slope), whose slope of negative
    values is a tensor, (K,) or (1,), of input's dtype
    scale: (K,), of input's dtype or float32 (then bias, too); residual: of the result's shape
    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (K, C/groups, R, S); bias: (K,); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input or weight is
    dtypes: float16, bfloat16, float32, float64, all tensors alike; sums in float32 (float64 for float64). float32
    uses TF32 as torch.backends.cudnn.conv.fp32_precision says
    errors: RuntimeError (shapes, dtypes, devices, impossible windows), TypeError (types), ValueError (padding_mode)
    """
    window = (stride, padding, dilation, groups, padding_mode)
    return _conv(2, F.conv2d, input, weight, bias, *window, activation, scale, residual)


@_overridable
def conv2d_relu(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """2-D convolution, bias and ReLU in one kernel: y = max(conv2d(...), 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups))

    Arguments, shapes, dtypes and errors as in `conv2d`. Saves its output for the backward pass, and nothing else
    of its size.
    """
    return _conv(2, F.conv2d, input, weight, bias, stride, padding, dilation, groups, padding_mode, "relu", None, None)


@_overridable
def conv1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """1-D convolution: y[n,k,q] = b[k] + Σ_{c,s} x[n, c, q·stride − padding + s·dilation] · w[k,c,s].

    Equivalent to: torch.nn.functional.conv1d(input, weight, bias, stride, padding, dilation, groups)

    input: (N, C, W) or (C, W); weight: (K, C/groups, S); returns (N, K, Q) or (K, Q). Otherwise as `conv2d`.
    """
    window = (stride, padding, dilation, groups, padding_mode)
    return _conv(1, F.conv1d, input, weight, bias, *window, activation, scale, residual)


def _conv(
    dims: int,
    aten: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: _Ints,
    padding: _Ints | str,
    dilation: _Ints,
    groups: int,
    padding_mode: str,
    activation: _Activation,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    spelled, slope = _spelled(activation)
    if _on_aten(input, weight, bias, residual, scale, slope):
        shown, left = _padded(dims, input, weight, stride, padding, dilation, padding_mode)
        product = lambda bias: aten(shown, weight, bias, stride, left, dilation, groups)  # noqa: E731
        return completed(product, bias, scale, residual, slope, spelled, dims)
    input, weight, bias, residual, slope, scale = _lowered(input, weight, bias, residual, slope, scale)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, scale=scale, residual=residual)
    kernel = _image("weight", weight, dims, batched=True)
    window = convolution.conv_window((kernel.shape[2], kernel.shape[3]), stride, padding, dilation, padding_mode, dims)
    images = _image("input", _row(input, dims), dims)
    beside = None if residual is None else _image("residual", residual, dims)
    groups = arguments.integer("groups", groups)
    if dims == 1:  # the operator would speak of images
        convolution.conv_shape(images.shape, kernel.shape, None if bias is None else bias.shape, window, groups)
    how = (*window[1:4], groups, padding_mode, spelled)
    y = autograd.conv2d(images, kernel, bias, scale, beside, _columns(slope, kernel.shape[0]), *how)
    return _like(y, input, dims)


def _padded(
    dims: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: _Ints,
    padding: _Ints | str,
    dilation: _Ints,
    padding_mode: str,
) -> tuple[torch.Tensor, _Ints | str]:
    """The input with padding that PyTorch's convolutions don't know, and the padding that is left for them."""
    if padding_mode == "zeros":
        return input, padding
    size = (1 if dims == 1 else weight.shape[-2], weight.shape[-1])
    pads = convolution.conv_window(size, stride, padding, dilation, padding_mode, dims).pads
    return F.pad(input, (*pads[2:], *pads[:2])[: 2 * dims], padding_mode), 0


@_overridable
def conv2d_relu_max_pool2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    pool_size: _Ints = 2,
    padding_mode: str = "zeros",
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, bias, ReLU and maximum pooling in one kernel: the images between them never are in memory.

    y[n,k,p,q] = max over windows of pool_size, side by side, of max(scale[k] · conv2d(...)[n,k,...] + b[k], 0)

    Equivalent to: torch.nn.functional.max_pool2d(torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride,
    padding, dilation, groups)), pool_size), NaN and ties too; pixels beyond the last whole window are not computed

    Arguments, shapes, dtypes and errors as in `conv2d`. For the backward pass it keeps, besides input and weight, one
    byte per output (windows of up to 255 pixels): which pixel won, or that ReLU is closed.
    """
    window = (stride, padding, dilation, groups, padding_mode)
    return _conv_pool(F.max_pool2d, input, weight, bias, *window, pool_size, scale)


@_overridable
def conv2d_relu_avg_pool2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    pool_size: _Ints = 2,
    padding_mode: str = "zeros",
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, bias, ReLU and average pooling in one kernel: the images between them never are in memory.

    y[n,k,p,q] = mean over windows of pool_size, side by side, of max(scale[k] · conv2d(...)[n,k,...] + b[k], 0)

    Equivalent to: torch.nn.functional.avg_pool2d(torch.relu(torch.nn.functional.conv2d(input, weight, bias, stride,
    padding, dilation, groups)), pool_size); pixels beyond the last whole window are not computed

    Arguments, shapes, dtypes and errors as in `conv2d`. For the backward pass it keeps, besides input and weight, one
    bit per pixel of each window (a byte for every eight): whether ReLU is open.
    """
    window = (stride, padding, dilation, groups, padding_mode)
    return _conv_pool(F.avg_pool2d, input, weight, bias, *window, pool_size, scale)


def _conv_pool(
    aten: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: _Ints,
    padding: _Ints | str,
    dilation: _Ints,
    groups: int,
    padding_mode: str,
    pool_size: _Ints,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    pool = arguments.pair("pool_size", pool_size, 1)
    if _on_aten(input, weight, bias, scale):
        window = (stride, padding, dilation, groups, padding_mode)
        return aten(_conv(2, F.conv2d, input, weight, bias, *window, "relu", scale, None), pool)
    input, weight, bias, _, _, scale = _lowered(input, weight, bias, None, None, scale)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, scale=scale)
    kernel, images = _image("weight", weight, 2, batched=True), _image("input", input, 2)
    sizes = convolution.conv_window((kernel.shape[2], kernel.shape[3]), stride, padding, dilation, padding_mode)
    groups = arguments.integer("groups", groups)
    how = (*sizes[1:4], groups, padding_mode, pool, aten is F.avg_pool2d)
    return _like(autograd.conv2d_pool(images, kernel, bias, scale, *how)[0], input, 2)


@_overridable
def conv2d_batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    padding_mode: str = "zeros",
    activation: _Activation = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D convolution, batch normalisation, a residual and activation: in training the convolution's kernel sums the
    statistics, and a second pass does the rest; otherwise one kernel does it all.

    x = conv2d(...)        y = act((x − mean[k]) / √(var[k] + eps) · norm_weight[k] + norm_bias[k] + residual)

    Equivalent to: act(torch.nn.functional.batch_norm(torch.nn.functional.conv2d(input, weight, bias, stride, padding,
    dilation, groups), running_mean, running_var, norm_weight, norm_bias, training, momentum, eps) + residual)

    In training mean and var are x's over batch and pixels, and running_mean and running_var, where they are, move to
    them by momentum (var with Bessel's correction); otherwise mean and var are those. norm_weight, norm_bias, and the
    running statistics: (K,), of input's dtype or float32; residual: of the result's shape. Keeps x and the input for
    the backward pass; with a residual also the output, or where `conv2d` would not keep that, the residual.

    Other arguments, shapes, dtypes as in `conv2d`; input: (N, C, H, W)
    errors: as in `conv2d`; ValueError for one value per channel in training, RuntimeError for missing statistics
    """
    window = (stride, padding, dilation, groups, padding_mode)
    check_optional(running_mean=running_mean, running_var=running_var)
    if (running_mean is None or running_var is None) and not training:
        raise RuntimeError("running_mean and running_var must be tensors unless training is True, but got None")
    spelled, slope = _spelled(activation)
    if _on_aten(input, weight, bias, residual, slope):
        x = _conv(2, F.conv2d, input, weight, bias, *window, None, None, None)
        y = F.batch_norm(x, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
        check_fit(y, None, residual, slope, 2)
        return activated(y if residual is None else y + residual, slope, spelled)  # type: ignore[no-any-return]
    if not training:
        assert running_mean is not None
        assert running_var is not None
        _image("input", input, 2, batched=True)
        scale, shift = norm_scale(bias, running_mean, running_var, norm_weight, norm_bias, eps)
        return _conv(2, F.conv2d, input, weight, shift, *window, activation, scale, residual)
    eps, momentum = arguments.real("eps", eps), arguments.real("momentum", momentum)
    norm_weight, norm_bias = _precise(input, norm_weight, norm_bias)
    input, weight, bias, residual, slope = _low(input, weight, bias, residual, slope)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, norm_weight=norm_weight, norm_bias=norm_bias, residual=residual)
    kernel, images = _image("weight", weight, 2, batched=True), _image("input", input, 2, batched=True)
    sizes = convolution.conv_window((kernel.shape[2], kernel.shape[3]), stride, padding, dilation, padding_mode)
    how = (*sizes[1:4], arguments.integer("groups", groups), padding_mode)
    x, mean, var = autograd.conv2d_moments(images, kernel, bias, *how)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    for name, vector in (("running_mean", running_mean), ("running_var", running_var)):
        if vector is not None:
            arguments.same_shape(name, vector.shape, mean.shape)
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    slope = _columns(slope, kernel.shape[0])
    result: torch.Tensor = autograd.batch_norm(x, mean, var, norm_weight, norm_bias, residual, slope, eps, spelled)
    if count:
        for running, new in ((running_mean, mean), (running_var, var * count / (count - 1))):
            if running is not None:  # as PyTorch's own operator, which counts no change of it in place
                kept = running.detach() if transforming() else running.data
                kept.copy_((1 - momentum) * kept.to(new.dtype) + momentum * new)
    return result


@_overridable
def norm_scale(
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the shift that a batch normalisation in eval mode is, after a convolution with this bias.

    scale = norm_weight / √(var + eps)        shift = norm_bias + (bias − mean)·scale
    """
    dtype = accumulator(mean.dtype)
    scale = torch.rsqrt(var.to(dtype) + eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    mean = mean.to(dtype) if bias is None else mean.to(dtype) - bias
    shift = -mean * scale if norm_bias is None else torch.addcmul(norm_bias.to(dtype), mean, scale, value=-1)
    return scale, shift


@_overridable
def locally_connected2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
    *,
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D locally connected layer: a convolution in which each output pixel has weights of its own, and what follows it
    in the same kernel.

    x[n,k,p,q] = Σ_{c,r,s} input[n, c, p·stride − padding + r·dilation, ...] · w[p,q,k,r,s,c]
    y = act(scale[k] · x + b[k] + residual), or with b[p,q,k]

    Equivalent to: torch.einsum of torch.nn.functional.unfold(input, (R, S), dilation, padding, stride) and the weight,
    with unfold's copies, which are never formed

    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (P, Q, K, R, S, C/groups) for an output of P x Q pixels; its memory in this order is the fast one
    bias: (K,), or (P, Q, K); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input is
    activation, scale, residual, dtypes, float32's precision and errors as in `conv2d`
    Source: LeCun, "Generalization and network design strategies", 1989; PyTorch's issue 499.
    """
    spelled, slope = _spelled(activation)
    input, weight, bias, residual, slope, scale = _lowered(input, weight, bias, residual, slope, scale)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, scale=scale, residual=residual)
    if weight.dim() != 6:
        raise RuntimeError(f"weight must be 6-D (P, Q, K, R, S, C/groups), but got shape {tuple(weight.shape)}")
    window = convolution.conv_window((weight.shape[3], weight.shape[4]), stride, padding, dilation)
    images = _image("input", input, 2)
    beside = None if residual is None else _image("residual", residual, 2)
    groups = arguments.integer("groups", groups)
    args = (images, weight, bias, scale, beside, _columns(slope, weight.shape[2]), *window[1:4], groups, spelled)
    if _on_aten(input, weight, bias, residual, scale, slope):
        last = channels_last(LOCALLY_CONNECTED2D.fake(*args))  # which checks them
        layout = torch.channels_last if last else torch.contiguous_format
        return _like(LOCALLY_CONNECTED2D.aten(*args).contiguous(memory_format=layout), input, 2)
    return _like(autograd.locally_connected2d(*args), input, 2)


@_overridable
def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints = 0,
    output_padding: _Ints = 0,
    groups: int = 1,
    dilation: _Ints = 1,
    *,
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D transposed convolution, the input gradient of a convolution: each input pixel adds its window to the output.

    y[n,c,h,w] = b[c] + Σ_k Σ over (p,r), (q,s) with p·stride − padding + r·dilation = h, the same for w, of
                 x[n,k,p,q] · w[k,c,r,s]

    Equivalent to: torch.nn.functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups,
    dilation)

    input: (N, K, P, Q) or (K, P, Q); weight: (K, C/groups, R, S); bias: (C,)
    returns: (N, C, H, W) or (C, H, W), H = (P − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1
    activation, scale, residual, dtypes, memory formats and errors as in `conv2d`
    """
    args = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv_transpose(2, F.conv_transpose2d, *args, activation, scale, residual)


@_overridable
def conv_transpose1d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints = 0,
    output_padding: _Ints = 0,
    groups: int = 1,
    dilation: _Ints = 1,
    *,
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """1-D transposed convolution.

    Equivalent to: torch.nn.functional.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups,
    dilation)

    input: (N, K, Q) or (K, Q); weight: (K, C/groups, S); returns (N, C, W) or (C, W). Otherwise as `conv_transpose2d`.
    """
    args = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv_transpose(1, F.conv_transpose1d, *args, activation, scale, residual)


def _conv_transpose(
    dims: int,
    aten: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: _Ints,
    padding: _Ints,
    output_padding: _Ints,
    groups: int,
    dilation: _Ints,
    activation: _Activation,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    spelled, slope = _spelled(activation)
    if _on_aten(input, weight, bias, residual, scale, slope):
        product = lambda bias: aten(input, weight, bias, stride, padding, output_padding, groups, dilation)  # noqa: E731
        return completed(product, bias, scale, residual, slope, spelled, dims)
    input, weight, bias, residual, slope, scale = _lowered(input, weight, bias, residual, slope, scale)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, scale=scale, residual=residual)
    groups = arguments.integer("groups", groups)
    images, kernel = _image("input", _row(input, dims), dims), _image("weight", weight, dims, batched=True)
    window = convolution.transposed_window(
        (kernel.shape[2], kernel.shape[3]), stride, padding, output_padding, dilation, dims
    )
    shape = convolution.transposed_shape(
        images.shape, kernel.shape, bias if bias is None else bias.shape, window, groups
    )
    beside = None if residual is None else _image("residual", residual, dims)
    how = (shape, *window[1:4], groups, channels_last(images, kernel), spelled)
    args = (images, kernel, bias, scale, beside, _columns(slope, shape[1]), *how)
    return _like(autograd.conv_transpose2d(*args), input, dims)


@_overridable
def max_pool2d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    dilation: _Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Maxima:
    """Maximum over 2-D windows.

    y[n,c,p,q] = max over (r,s) of x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation]

    Equivalent to: torch.nn.functional.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode,
    return_indices)

    input: (N, C, H, W) or (C, H, W); stride: the kernel size unless given
    returns: (N, C, P, Q) or (C, P, Q) in input's memory format; with return_indices also the winners' places
    h·W + w, int64. NaN wins (the last one); of equal values the first
    The backward pass keeps one byte per output (windows of up to 255 taps), and is deterministic.
    errors: RuntimeError (shapes, windows, padding over half of the window), TypeError (types)
    """
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(2, F.max_pool2d, *args)


@_overridable
def max_pool1d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    dilation: _Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Maxima:
    """Maximum over 1-D windows: y[n,c,q] = max over s of x[n, c, q·stride − padding + s·dilation].

    Equivalent to: torch.nn.functional.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode,
    return_indices)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `max_pool2d`.
    """
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _max_pool(1, F.max_pool1d, *args)


def _max_pool(
    dims: int,
    aten: Callable[..., _Maxima],
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None,
    padding: _Ints,
    dilation: _Ints,
    ceil_mode: bool,
    return_indices: bool,
) -> _Maxima:
    if _on_aten(input):
        return aten(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    check_tensors(input=input)
    window = pooling.pool_window(kernel_size, stride, padding, dilation, dims)
    images = _image("input", input, dims)
    pooling.check_images(images.shape, dims=dims)
    return _maxima(
        images,
        pooling.pool_output(window, images.shape[2:], ceil_mode, dims),
        window,
        return_indices,
        input,
        dims,
    )


def _maxima(
    images: torch.Tensor,
    output_size: convolution.Pair,
    window: tuple[int, ...],
    return_indices: bool,
    input: torch.Tensor,
    dims: int,
) -> _Maxima:
    """Maxima of windows over images, and with return_indices their places; in the shape of the input."""
    return_indices = bool(return_indices)
    y, _, indices = autograd.max_pool2d(images, output_size, window, return_indices)
    y = _like(y, input, dims)
    return (y, _like(indices, input, dims)) if return_indices else y


@_overridable
def max_unpool2d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """The values back at the places where `max_pool2d` found them: y[n,c, indices[n,c,p,q]] = x[n,c,p,q], else 0.

    Equivalent to: torch.nn.functional.max_unpool2d(input, indices, kernel_size, stride, padding, output_size)

    input, indices: (N, C, P, Q) or (C, P, Q), indices int64: places h·W + w; where several are the same, the value that
    is last in scan order stays
    returns: (N, C, H, W) or (C, H, W), H = (P − 1)·stride − 2·padding + kernel_size, or output_size
    errors: RuntimeError (shapes, dtypes, places outside of the output), ValueError (output_size)
    """
    return _max_unpool(2, F.max_unpool2d, input, indices, kernel_size, stride, padding, output_size)


@_overridable
def max_unpool1d(
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    output_size: Sequence[int] | None = None,
) -> torch.Tensor:
    """The values back at the places where `max_pool1d` found them.

    Equivalent to: torch.nn.functional.max_unpool1d(input, indices, kernel_size, stride, padding, output_size)

    input, indices: (N, C, Q) or (C, Q); returns (N, C, W) or (C, W). Otherwise as `max_unpool2d`.
    """
    return _max_unpool(1, F.max_unpool1d, input, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    dims: int,
    aten: Callable[..., torch.Tensor],
    input: torch.Tensor,
    indices: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None,
    padding: _Ints,
    output_size: Sequence[int] | None,
) -> torch.Tensor:
    if _on_aten(input):
        return aten(input, indices, kernel_size, stride, padding, output_size)
    check_tensors(input=input)
    if input.device.type == "cpu" and autocasts(input) and _may_be_cast(input):
        input = input.float()  # PyTorch's autocast on a CPU, and there alone
    check_indices(indices, input, input.shape)
    images = _image("input", _row(input, dims), dims)
    size = pooling.unpool_output(kernel_size, stride, padding, output_size, images.shape[2:], dims)
    args = (images, _image("indices", indices, dims), size)
    return _like(autograd.max_unpool2d(*args), input, dims)


@_overridable
def avg_pool2d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Average over 2-D windows.

    y[n,c,p,q] = 1/divisor · Σ_{r,s} x[n, c, p·stride − padding + r, q·stride − padding + s]

    divisor: divisor_override, or the number of the window's pixels within the input, with count_include_pad within
    the padded input.

    Equivalent to: torch.nn.functional.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
    divisor_override)

    Shapes, memory formats and errors as in `max_pool2d`, but IndexError for an input of fewer than 3 dimensions.
    """
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if _on_aten(input):
        return F.avg_pool2d(*args)
    check_tensors(input=input)
    if input.dim() < 3:
        raise IndexError(f"input must be 4-D (N, C, H, W) or 3-D (C, H, W), but got shape {tuple(input.shape)}")
    return _avg_pool(2, *args)


@_overridable
def avg_pool1d(
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> torch.Tensor:
    """Average over 1-D windows: y[n,c,q] = 1/divisor · Σ_s x[n, c, q·stride − padding + s].

    Equivalent to: torch.nn.functional.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `avg_pool2d`.
    """
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if _on_aten(input):
        return F.avg_pool1d(*args)  # type: ignore[arg-type, unused-ignore]
    return _avg_pool(1, *args, None)


def _avg_pool(
    dims: int,
    input: torch.Tensor,
    kernel_size: _Ints,
    stride: _Ints | None,
    padding: _Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    check_tensors(input=input)
    window = pooling.pool_window(kernel_size, stride, padding, 1, dims)
    images = _image("input", input, dims)
    pooling.check_images(images.shape, dims=dims)
    size = pooling.pool_output(window, images.shape[2:], ceil_mode, dims)
    if divisor_override is not None:
        divisor_override = arguments.integer("divisor_override", divisor_override)
    args = (images, size, window, arguments.flag("count_include_pad", count_include_pad), divisor_override)
    return _like(autograd.avg_pool2d(*args), input, dims)


@_overridable
def adaptive_avg_pool2d(input: torch.Tensor, output_size: _Sizes) -> torch.Tensor:
    """Average over windows that are even shares of the image; with output_size 1, over the whole image.

    y[n,c,p,q] = mean of x[n,c,h,w] over ⌊p·H/P⌋ ≤ h < ⌈(p + 1)·H/P⌉, ⌊q·W/Q⌋ ≤ w < ⌈(q + 1)·W/Q⌉

    Equivalent to: torch.nn.functional.adaptive_avg_pool2d(input, output_size)

    input: (N, C, H, W) or (C, H, W); output_size: (P, Q), one int for both, None for the input's own
    returns: (N, C, P, Q) or (C, P, Q) in input's memory format. The backward pass is deterministic
    errors: RuntimeError (shapes, output_size), ValueError (an input of fewer than 3 dimensions), TypeError (types)
    """
    if _on_aten(input):
        return F.adaptive_avg_pool2d(input, output_size)  # type: ignore[arg-type, unused-ignore]
    return _adaptive_avg_pool(2, input, output_size)


@_overridable
def adaptive_avg_pool1d(input: torch.Tensor, output_size: _Ints) -> torch.Tensor:
    """Average over windows that are even shares of a row.

    Equivalent to: torch.nn.functional.adaptive_avg_pool1d(input, output_size)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `adaptive_avg_pool2d`.
    """
    if _on_aten(input):
        return F.adaptive_avg_pool1d(input, output_size)  # type: ignore[arg-type, no-any-return, unused-ignore]
    return _adaptive_avg_pool(1, input, output_size)


def _adaptive_avg_pool(dims: int, input: torch.Tensor, output_size: _Sizes) -> torch.Tensor:
    check_tensors(input=input)
    size = pooling.adaptive_output(output_size, input.shape, dims)
    args = (_image("input", input, dims), size, (), True, None)
    return _like(autograd.avg_pool2d(*args), input, dims)


@_overridable
def adaptive_max_pool2d(input: torch.Tensor, output_size: _Sizes, return_indices: bool = False) -> _Maxima:
    """Maximum over windows that are even shares of the image (see `adaptive_avg_pool2d`).

    Equivalent to: torch.nn.functional.adaptive_max_pool2d(input, output_size, return_indices)

    Indices, NaN and the backward pass as in `max_pool2d`, shapes and errors as in `adaptive_avg_pool2d`.
    """
    return _adaptive_max_pool(2, F.adaptive_max_pool2d, input, output_size, return_indices)


@_overridable
def adaptive_max_pool1d(input: torch.Tensor, output_size: _Ints, return_indices: bool = False) -> _Maxima:
    """Maximum over windows that are even shares of a row.

    Equivalent to: torch.nn.functional.adaptive_max_pool1d(input, output_size, return_indices)

    input: (N, C, W) or (C, W); returns (N, C, Q) or (C, Q). Otherwise as `adaptive_max_pool2d`.
    """
    return _adaptive_max_pool(1, F.adaptive_max_pool1d, input, output_size, return_indices)


def _adaptive_max_pool(
    dims: int, aten: Callable[..., _Maxima], input: torch.Tensor, output_size: _Sizes, return_indices: bool
) -> _Maxima:
    if _on_aten(input):
        return aten(input, output_size, return_indices)
    check_tensors(input=input)
    size = pooling.adaptive_output(output_size, input.shape, dims)
    images = _image("input", input, dims)
    pooling.check_images(images.shape, (0,) if input.dim() == dims + 2 else (0, 1), dims)
    return _maxima(images, size, (), return_indices, input, dims)


@_overridable
def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: _Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Linear layer, and what follows it in the same kernel: y = act(scale · (x · wᵀ) + b + residual).

    Equivalent to: torch.nn.functional.linear(input, weight, bias)

    input: (*, in_features); weight: (out_features, in_features), or (in_features,) without a bias;
    bias: (out_features,), or one element; returns (*, out_features), or (*) for a weight of one dimension
    activation, scale (out_features,), residual (of the result's shape), dtypes as in `conv2d`, but float32 uses TF32 as
    torch.backends.cuda.matmul.fp32_precision says
    errors: RuntimeError (shapes, dtypes, devices), TypeError (types), ValueError (activation)
    """
    return _dense(input, weight, bias, activation, scale, residual)


@_overridable
def linear_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Linear layer and ReLU in one kernel: y = max(x · wᵀ + b, 0), NaN kept.

    Equivalent to: torch.relu(torch.nn.functional.linear(input, weight, bias))

    Arguments, shapes, dtypes and errors as in `linear`.
    """
    return _dense(input, weight, bias, "relu", None, None)


def _dense(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: _Activation,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    if isinstance(weight, torch.Tensor) and weight.dim() == 1 and bias is None and not _foreign(weight):
        beside = residual if residual is None else residual[..., None]
        return _dense(input, weight[None], None, activation, scale, beside)[..., 0]
    spelled, slope = _spelled(activation)
    if _on_aten(input, weight, bias, residual, scale, slope):
        return completed(lambda bias: F.linear(input, weight, bias), bias, scale, residual, slope, spelled, 0)
    input, weight, bias, residual, slope, scale = _lowered(input, weight, bias, residual, slope, scale)
    check_tensors(input=input, weight=weight)
    check_optional(bias=bias, scale=scale, residual=residual)
    if input.dim() == 0:
        raise RuntimeError("input must have at least one dimension (*, in_features), but got a scalar")
    if bias is not None and bias.numel() == 1 and weight.dim() == 2:
        bias = bias.reshape(1).expand(weight.shape[0])
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    if residual is not None:
        arguments.same_shape("residual", residual.shape, (*input.shape[:-1], weight.shape[0]))
        residual = residual.reshape(rows.shape[0], weight.shape[0])
    slope = _columns(slope, weight.shape[0])
    result: torch.Tensor = autograd.linear(rows, weight, bias, scale, residual, slope, 1, spelled)
    return result.view(*input.shape[:-1], weight.shape[0])


def _spelled(activation: _Activation) -> tuple[str, torch.Tensor | None]:
    """The words of an activation, and the slope of ("prelu", slope). Errors: TypeError, ValueError."""
    if not isinstance(activation, (tuple, list)) or activation[:1] not in (("prelu",), ["prelu"]):
        return activations.spell(activation), None
    if len(activation) != 2:
        raise ValueError(f"activation 'prelu' takes a slope, but got {len(activation) - 1} values")
    if not isinstance(activation[1], torch.Tensor):
        raise TypeError(f"the slope of 'prelu' must be a torch.Tensor, but got {type(activation[1]).__name__}")
    return "none", activation[1]


def _columns(slope: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """A slope for each column."""
    return slope.reshape(1).expand(columns) if slope is not None and slope.numel() == 1 else slope


def _on_aten(input: torch.Tensor, *others: Any) -> bool:
    """Does PyTorch's own operator run? (What is no tensor gets its error from ours.)"""
    if not isinstance(input, torch.Tensor):
        return False
    return not runs_kernels(input.device) or _foreign(input) or any(map(_foreign, others))


def _foreign(tensor: Any) -> bool:
    """Is it a tensor that kernels can't read: sparse, nested, or of a class that says itself what operators do?"""
    if tensor is None or not isinstance(tensor, torch.Tensor):
        return False
    if tensor.layout is not torch.strided or tensor.is_nested:
        return True
    kind: Any = type(tensor)
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and kind not in _TRACED


def _low(*tensors: Any) -> tuple[Any, ...]:
    """What a product takes; where autocast is on, in its dtype, as PyTorch's own products have it."""
    input = tensors[0]
    if not isinstance(input, torch.Tensor) or not autocasts(input):
        return tensors
    low = torch.get_autocast_dtype(input.device.type)
    return tuple(t.to(low) if isinstance(t, torch.Tensor) and _may_be_cast(t) else t for t in tensors)


def _lowered(input: Any, weight: Any, bias: Any, residual: Any, slope: Any, scale: Any) -> tuple[Any, ...]:
    """The same for a product with an epilogue, whose scale, and whose bias beside it, stay as precise as they are."""
    low = _low(input, weight, bias, residual, slope)
    if scale is None:
        return (*low, None)
    bias, scale = _precise(input, bias, scale)
    return (*low[:2], bias, *low[3:], scale)


def _precise(input: torch.Tensor, *vectors: Any) -> tuple[Any, ...]:
    """Values a channel that autocast takes no digits from: float32, which products take beside any dtype."""
    if not isinstance(input, torch.Tensor) or not autocasts(input):
        return vectors
    return tuple(v.float() if isinstance(v, torch.Tensor) and _may_be_cast(v) else v for v in vectors)


def _may_be_cast(tensor: torch.Tensor) -> bool:
    """Does autocast touch this dtype?"""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def _row(input: torch.Tensor, dims: int) -> torch.Tensor:
    """The input; rows contiguous, as PyTorch makes them for all but its pools: there is no channels_last for them."""
    return input.contiguous() if dims == 1 else input


def _image(argument: str, tensor: torch.Tensor, dims: int, batched: bool = False) -> torch.Tensor:
    """The tensor as 4-D images; a row is an image one pixel high. Errors: RuntimeError."""
    if tensor.dim() == dims + 1 and not batched:
        tensor = tensor[None]
    elif tensor.dim() != dims + 2:
        names = ("N, C, H, W", "C, H, W") if dims == 2 else ("N, C, W", "C, W")
        shapes = " or ".join(f"{n.count(',') + 1}-D ({n})" for n in names)
        if batched:
            shapes = "4-D (K, C/groups, R, S)" if dims == 2 else "3-D (K, C/groups, S)"
        raise RuntimeError(f"{argument} must be {shapes}, but got shape {tuple(tensor.shape)}")
    return tensor if dims == 2 else tensor[:, :, None]


def _like(y: torch.Tensor, input: torch.Tensor, dims: int) -> torch.Tensor:
    """The way back from `_image`."""
    y = y if dims == 2 else y[:, :, 0]
    return y[0] if input.dim() == dims + 1 else y

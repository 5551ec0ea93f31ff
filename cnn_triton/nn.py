"""The layers as torch.nn.Modules: subclasses of PyTorch's own, with their constructors and state_dict."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from . import functional
from .kernels.matrix import activations
from .kernels.window import arguments, convolution
from .modules import counted, hooked, statistics

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvAct2d",
    "ConvBatchNorm2d",
    "ConvReLU2d",
    "ConvReLUAvgPool2d",
    "ConvReLUMaxPool2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvReLU2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyLinear",
    "LazyLinearReLU",
    "Linear",
    "LinearAct",
    "LinearReLU",
    "LocallyConnected2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool1d",
    "MaxUnpool2d",
]

_Call = Callable[..., Any]


class _Conv:
    """A convolution's call of its function; the padding mode is the kernel's."""

    _function: _Call

    def _conv_forward(
        self: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **more: Any
    ) -> torch.Tensor:
        padding, mode = self.padding, self.padding_mode
        if (
            mode != "zeros" and padding != "same"
        ):  # PyTorch's layer pads by what this says, whatever its padding is by now
            pads = self._reversed_padding_repeated_twice
            if pads[::2] == pads[1::2]:
                padding = tuple(reversed(pads[::2]))
            else:
                input, padding, mode = F.pad(input, pads, mode), 0, "zeros"
        window = (self.stride, padding, self.dilation, self.groups)
        return self._function(input, weight, bias, *window, padding_mode=mode, **more)  # type: ignore[no-any-return]


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` through `cnn_triton.functional.conv2d`, every padding_mode without a padded copy.

    Equivalent to: torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
    padding_mode, device, dtype), its state_dict too. Shapes, dtypes and errors: see `functional.conv2d`.
    """

    _function: _Call = staticmethod(functional.conv2d)


class ConvReLU2d(Conv2d):
    """Convolution, bias and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Conv2d. Shapes, dtypes and errors: see `functional.conv2d_relu`.
    """

    _function = staticmethod(functional.conv2d_relu)


class _ConvReLUPool2d(Conv2d):
    """A convolution with ReLU and a pool after it."""

    def __init__(self, *args: Any, pool_size: int | tuple[int, int] = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        arguments.pair("pool_size", pool_size, 1)
        self.pool_size = pool_size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K, P, Q), pooled; see the function."""
        return self._conv_forward(input, self.weight, self.bias, pool_size=self.pool_size)

    def extra_repr(self) -> str:
        """The convolution's arguments, and pool_size."""
        return f"{super().extra_repr()}, pool_size={self.pool_size}"  # type: ignore[no-untyped-call]


class ConvReLUMaxPool2d(_ConvReLUPool2d):
    """Convolution, bias, ReLU and maximum pooling, windows side by side, in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU(), torch.nn.MaxPool2d(pool_size)), with the
    constructor of torch.nn.Conv2d and `pool_size`, 2 or (2, 2) for instance, and the state_dict of torch.nn.Conv2d.
    Shapes, dtypes and errors: see `functional.conv2d_relu_max_pool2d`.
    """

    _function = staticmethod(functional.conv2d_relu_max_pool2d)


class ConvReLUAvgPool2d(_ConvReLUPool2d):
    """Convolution, bias, ReLU and average pooling, windows side by side, in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU(), torch.nn.AvgPool2d(pool_size)), with the
    constructor of torch.nn.Conv2d and `pool_size`, 2 or (2, 2) for instance, and the state_dict of torch.nn.Conv2d.
    Shapes, dtypes and errors: see `functional.conv2d_relu_avg_pool2d`.
    """

    _function = staticmethod(functional.conv2d_relu_avg_pool2d)


class ConvAct2d(Conv2d):
    """Convolution, bias, a residual and any activation in one kernel.

    Equivalent to: act(torch.nn.Conv2d(...)(input) + residual), with the constructor of torch.nn.Conv2d and
    `activation`, as `functional.conv2d` takes it, and the state_dict of torch.nn.Conv2d.
    errors: TypeError, ValueError for what is no activation; otherwise see `functional.conv2d`
    """

    def __init__(self, *args: Any, activation: str | tuple[Any, ...] | None = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        activations.spell(activation)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) to (N, K, P, Q), the residual's shape; see `functional.conv2d`."""
        more = {"activation": self.activation, "residual": residual}
        return self._conv_forward(input, self.weight, self.bias, **more)

    def extra_repr(self) -> str:
        """The convolution's arguments, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"  # type: ignore[no-untyped-call]


class ConvBatchNorm2d(torch.nn.Module):
    """Convolution, batch normalisation and, if wanted, any activation: one kernel in eval mode; in training the
    convolution's kernel sums the statistics, and a second one normalises.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.BatchNorm2d(out_channels, eps, momentum, affine,
    track_running_stats)) and the activation; its state_dict too, and the layers [0] and [1]. The constructor is
    torch.nn.Conv2d's, with eps and what follows it, and `activation` as `functional.conv2d` takes it, by keyword.
    errors: TypeError, ValueError for what is no activation; otherwise see `functional.conv2d_batch_norm`
    """

    def __init__(
        self,
        *args: Any,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str | tuple[Any, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        activations.spell(activation)
        conv = Conv2d(*args, **kwargs)
        made: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        norm = torch.nn.BatchNorm2d(conv.out_channels, eps, momentum, affine, track_running_stats, **made)
        super().__init__()
        self.add_module("0", conv)
        self.add_module("1", norm)
        self.activation = activation

    def __getitem__(self, index: int) -> torch.nn.Module:
        """The convolution, or the normalisation."""
        return tuple(self.children())[index]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K, P, Q); see `functional.conv2d_batch_norm`."""
        conv: Any
        norm: Any
        conv, norm = self.children()
        plain = isinstance(conv, Conv2d) and type(conv)._function is functional.conv2d
        plain = plain and type(conv).forward is Conv2d.forward and type(norm) is torch.nn.BatchNorm2d
        if not plain or any(hooked(layer) or "forward" in vars(layer) for layer in (conv, norm)):
            return activations.reference(activations.spell(self.activation), norm(conv(input)))  # type: ignore[no-any-return]
        norm._check_input_dim(input)
        window = (conv.stride, conv.padding, conv.dilation, conv.groups)
        how = {"padding_mode": conv.padding_mode, "activation": self.activation, **statistics(norm)}
        y = functional.conv2d_batch_norm(input, conv.weight, conv.bias, *window, **how)
        counted(norm)
        return y

    def extra_repr(self) -> str:
        """The activation, beside the layers."""
        return f"activation={self.activation!r}"


class LocallyConnected2d(torch.nn.Module):
    """2-D locally connected layer: a convolution whose windows have a weight each, for images of one size.

    input_size: (H, W); bias: True or "pixel", one per output pixel and channel; "channel", one per channel; or False
    activation: what follows, as `functional.conv2d` takes it. The other arguments are torch.nn.Conv2d's

    weight: (P, Q, out_channels, R, S, in_channels/groups), for an output of P x Q pixels; bias: (P, Q, out_channels) or
    (out_channels,). Both start as torch.nn.Conv2d's do. Shapes, dtypes: see `functional.locally_connected2d`.
    errors: ValueError for sizes that don't fit or an unknown bias, TypeError, RuntimeError for an impossible window
    """

    bias: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: tuple[int, int],
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | str = True,
        *,
        activation: str | tuple[Any, ...] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            arguments.integer(name, number)
        if groups < 1 or in_channels < 0 or out_channels < 0 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels and out_channels must be multiples of groups, 0 or more, but got {in_channels}, "
                f"{out_channels} and groups={groups}"
            )
        if not isinstance(bias, bool | str) or bias not in (True, False, "pixel", "channel"):
            raise ValueError(f"bias must be True, False, 'pixel' or 'channel', but got {bias!r}")
        activations.spell(activation)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.input_size = arguments.pair("input_size", input_size, 1)
        self.kernel_size = arguments.pair("kernel_size", kernel_size, 1)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.activation = activation
        window = convolution.conv_window(self.kernel_size, stride, padding, dilation)
        self.output_size = convolution.conv_output(window, self.input_size)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (*self.output_size, out_channels, *self.kernel_size, in_channels // groups)
        self.weight = torch.nn.Parameter(torch.empty(shape, **made))
        places = () if bias == "channel" else self.output_size
        vector = torch.nn.Parameter(torch.empty(*places, out_channels, **made)) if bias else None
        self.register_parameter("bias", vector)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias uniformly from ±1/√(window · in_channels/groups), as torch.nn.Conv2d does."""
        terms = math.prod(self.weight.shape[3:])
        bound = 1 / math.sqrt(terms) if terms else 0.0
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, K, P, Q); see the function. Errors: RuntimeError for images of another size."""
        if isinstance(input, torch.Tensor) and tuple(input.shape[-2:]) != self.input_size:
            raise RuntimeError(f"input must be images of {self.input_size}, (H, W), but got shape {tuple(input.shape)}")
        window = (self.stride, self.padding, self.dilation, self.groups)
        return functional.locally_connected2d(input, self.weight, self.bias, *window, activation=self.activation)

    def load_keras(self, kernel: Any, bias: Any = None, data_format: str = "channels_last") -> None:
        """Takes the weights of a Keras LocallyConnected2D (implementation 1), arrays or tensors.

        kernel: (P·Q, R·S·C, K), a row of Keras' data_format: (r, s, c) for 'channels_last', (c, r, s) for
        'channels_first'; bias: (P, Q, K), which Keras takes for 'channels_first' in its memory's order as (K, P, Q)
        errors: ValueError for another shape, data_format or layer than Keras has
        """
        (p, q, k, r, s, c), kernel = self.weight.shape, torch.as_tensor(kernel)
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(f"data_format must be 'channels_last' or 'channels_first', but got {data_format!r}")
        if self.groups != 1 or tuple(kernel.shape) != (p * q, r * s * c, k):
            raise ValueError(
                f"kernel must have shape {(p * q, r * s * c, k)}, (P·Q, R·S·C, K), for a layer with groups=1, but got "
                f"{tuple(kernel.shape)} for groups={self.groups}"
            )
        last = data_format == "channels_last"
        rows = kernel.view(p, q, r, s, c, k) if last else kernel.view(p, q, c, r, s, k).permute(0, 1, 3, 4, 2, 5)
        own = self.bias
        if (bias is None) != (own is None):
            raise ValueError(f"bias must be {'None' if own is None else 'given'}, as the layer has it")
        with torch.no_grad():
            if own is not None:
                vectors = torch.as_tensor(bias)
                if vectors.shape != own.shape:
                    raise ValueError(f"bias must have shape {tuple(own.shape)}, but got {tuple(vectors.shape)}")
                vectors = vectors if last else vectors.reshape(k, p, q).permute(1, 2, 0)
                own.copy_(vectors)
            self.weight.copy_(rows.permute(0, 1, 5, 2, 3, 4))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "activation")
        sizes = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}"
        bias = False if self.bias is None else "channel" if self.bias.dim() == 1 else "pixel"
        return ", ".join([sizes, *(f"{name}={getattr(self, name)!r}" for name in names), f"bias={bias!r}"])


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` through `cnn_triton.functional.conv1d`.

    Equivalent to: torch.nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
    padding_mode, device, dtype), its state_dict too.
    """

    _function = staticmethod(functional.conv1d)


class _ConvTranspose:
    """A transposed convolution's call of its function."""

    _function: _Call

    def forward(self: Any, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """The output, of `output_size` where several are possible; see the function."""
        if self.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode must be 'zeros' for a transposed convolution, but got {self.padding_mode!r}"
            )
        dims = len(self.kernel_size)
        extra = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )  # fmt: skip
        window = (self.stride, self.padding, extra, self.groups, self.dilation)
        return self._function(input, self.weight, self.bias, *window)  # type: ignore[no-any-return]


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` through `cnn_triton.functional.conv_transpose2d`.

    Equivalent to: torch.nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, output_padding,
    groups, bias, dilation, padding_mode, device, dtype), its state_dict and `output_size` too.
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` through `cnn_triton.functional.conv_transpose1d`.

    Equivalent to: torch.nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride, padding, output_padding,
    groups, bias, dilation, padding_mode, device, dtype), its state_dict and `output_size` too.
    """

    _function = staticmethod(functional.conv_transpose1d)


class _MaxPool:
    """A maximum pooling's call of its function."""

    _function: _Call

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        """The maxima, or with return_indices (maxima, indices); see the function."""
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        return self._function(input, *window, self.ceil_mode, self.return_indices)  # type: ignore[no-any-return]


class MaxPool2d(_MaxPool, torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` through `cnn_triton.functional.max_pool2d`.

    Equivalent to: torch.nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
    """

    _function = staticmethod(functional.max_pool2d)


class MaxPool1d(_MaxPool, torch.nn.MaxPool1d):
    """`torch.nn.MaxPool1d` through `cnn_triton.functional.max_pool1d`.

    Equivalent to: torch.nn.MaxPool1d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
    """

    _function = staticmethod(functional.max_pool1d)


class _MaxUnpool:
    """A maximum unpooling's call of its function."""

    _function: _Call

    def forward(
        self: Any, input: torch.Tensor, indices: torch.Tensor, output_size: list[int] | None = None
    ) -> torch.Tensor:
        """The values at their places; see the function."""
        return self._function(  # type: ignore[no-any-return]
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


class MaxUnpool2d(_MaxUnpool, torch.nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` through `cnn_triton.functional.max_unpool2d`.

    Equivalent to: torch.nn.MaxUnpool2d(kernel_size, stride, padding)
    """

    _function = staticmethod(functional.max_unpool2d)


class MaxUnpool1d(_MaxUnpool, torch.nn.MaxUnpool1d):
    """`torch.nn.MaxUnpool1d` through `cnn_triton.functional.max_unpool1d`.

    Equivalent to: torch.nn.MaxUnpool1d(kernel_size, stride, padding)
    """

    _function = staticmethod(functional.max_unpool1d)


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` through `cnn_triton.functional.avg_pool2d`.

    Equivalent to: torch.nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The averages; see `functional.avg_pool2d`."""
        window = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool2d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AvgPool1d(torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d` through `cnn_triton.functional.avg_pool1d`.

    Equivalent to: torch.nn.AvgPool1d(kernel_size, stride, padding, ceil_mode, count_include_pad)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The averages; see `functional.avg_pool1d`."""
        window = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool1d(input, *window, self.ceil_mode, self.count_include_pad)


class _AdaptiveMaxPool:
    """An adaptive maximum pooling's call of its function."""

    _function: _Call

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        """The maxima, or with return_indices (maxima, indices); see the function."""
        return self._function(input, self.output_size, self.return_indices)  # type: ignore[no-any-return]


class AdaptiveMaxPool2d(_AdaptiveMaxPool, torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` through `cnn_triton.functional.adaptive_max_pool2d`.

    Equivalent to: torch.nn.AdaptiveMaxPool2d(output_size, return_indices)
    """

    _function = staticmethod(functional.adaptive_max_pool2d)


class AdaptiveMaxPool1d(_AdaptiveMaxPool, torch.nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d` through `cnn_triton.functional.adaptive_max_pool1d`.

    Equivalent to: torch.nn.AdaptiveMaxPool1d(output_size, return_indices)
    """

    _function = staticmethod(functional.adaptive_max_pool1d)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` through `cnn_triton.functional.adaptive_avg_pool2d`; global pooling: output_size 1.

    Equivalent to: torch.nn.AdaptiveAvgPool2d(output_size)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The averages; see `functional.adaptive_avg_pool2d`."""
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` through `cnn_triton.functional.adaptive_avg_pool1d`.

    Equivalent to: torch.nn.AdaptiveAvgPool1d(output_size)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The averages; see `functional.adaptive_avg_pool1d`."""
        return functional.adaptive_avg_pool1d(input, self.output_size)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` through `cnn_triton.functional.linear`.

    Equivalent to: torch.nn.Linear(in_features, out_features, bias, device, dtype), its state_dict too.
    """

    _function: _Call = staticmethod(functional.linear)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(*, in_features) to (*, out_features); see `functional.linear`."""
        return self._function(input, self.weight, self.bias)  # type: ignore[no-any-return]


class LinearReLU(Linear):
    """Linear layer and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Linear(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Linear.
    """

    _function = staticmethod(functional.linear_relu)


class LinearAct(Linear):
    """Linear layer, a residual and any activation in one kernel.

    Equivalent to: act(torch.nn.Linear(...)(input) + residual), with the constructor of torch.nn.Linear and
    `activation`, as `functional.linear` takes it, and the state_dict of torch.nn.Linear.
    errors: TypeError, ValueError for what is no activation; otherwise see `functional.linear`
    """

    def __init__(self, *args: Any, activation: str | tuple[Any, ...] | None = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        activations.spell(activation)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(*, in_features) to (*, out_features), the residual's shape; see `functional.linear`."""
        return functional.linear(input, self.weight, self.bias, activation=self.activation, residual=residual)

    def extra_repr(self) -> str:
        """The layer's arguments, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


# Lazy modules take their input's channels from the first batch. They inherit ours as well, because the first call
# already runs a method of the lazy class.


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """`Conv2d` that takes in_channels from its first input, as torch.nn.LazyConv2d does."""

    cls_to_become = Conv2d


class LazyConvReLU2d(torch.nn.LazyConv2d, ConvReLU2d):  # type: ignore[misc]
    """`ConvReLU2d` that takes in_channels from its first input, with the constructor of torch.nn.LazyConv2d."""

    cls_to_become = ConvReLU2d


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """`Conv1d` that takes in_channels from its first input, as torch.nn.LazyConv1d does."""

    cls_to_become = Conv1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """`ConvTranspose2d` that takes in_channels from its first input, as torch.nn.LazyConvTranspose2d does."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """`ConvTranspose1d` that takes in_channels from its first input, as torch.nn.LazyConvTranspose1d does."""

    cls_to_become = ConvTranspose1d


class LazyLinear(torch.nn.LazyLinear, Linear):
    """`Linear` that takes in_features from its first input, as torch.nn.LazyLinear does."""

    cls_to_become = Linear


class LazyLinearReLU(torch.nn.LazyLinear, LinearReLU):
    """`LinearReLU` that takes in_features from its first input, with the constructor of torch.nn.LazyLinear."""

    cls_to_become = LinearReLU

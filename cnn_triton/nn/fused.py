"""Convolutions with what follows them in the same kernel: an activation, a pool, a batch normalisation."""

from typing import Any, Literal

import torch

from .. import functional
from ..functional.calling import Activation
from ..kernels.matrix import activations
from ..kernels.window import arguments
from ..modules import count_batch, has_hooks, statistics
from .convolution import Conv2d

Size = int | tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class ConvReLU2d(Conv2d):
    """Convolution, bias and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Conv2d. Shapes, dtypes and errors: see `functional.conv2d_relu`.
    """

    _function = staticmethod(functional.conv2d_relu)


class _ConvReLUPool2d(Conv2d):
    """Convolution, bias, ReLU and a pool: the constructor and the call of both."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        pool_size: Size = 2,
    ) -> None:
        window = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *window, bias, padding_mode, device, dtype)
        arguments.pair("pool_size", pool_size, 1)
        self.pool_size = pool_size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (N, K, P, Q), pooled, of (N, C, H, W); see the function."""
        return self._conv_forward(input, self.weight, self.bias, pool_size=self.pool_size)

    def extra_repr(self) -> str:
        """Return the convolution's arguments, and pool_size."""
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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "relu",
    ) -> None:
        window = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *window, bias, padding_mode, device, dtype)
        activations.spell(activation)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return (N, K, P, Q), the residual's shape, of (N, C, H, W); see `functional.conv2d`."""
        return self._conv_forward(input, self.weight, self.bias, activation=self.activation, residual=residual)

    def extra_repr(self) -> str:
        """Return the convolution's arguments, and the activation."""
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
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: Activation = None,
    ) -> None:
        activations.spell(activation)
        window = (kernel_size, stride, padding, dilation, groups)
        conv = Conv2d(in_channels, out_channels, *window, bias, padding_mode, device, dtype)
        made: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        norm = torch.nn.BatchNorm2d(conv.out_channels, eps, momentum, affine, track_running_stats, **made)
        super().__init__()
        self.add_module("0", conv)
        self.add_module("1", norm)
        self.activation = activation

    def __getitem__(self, index: int) -> torch.nn.Module:
        """Return the convolution, or the normalisation."""
        return tuple(self.children())[index]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (N, K, P, Q) of (N, C, H, W); see `functional.conv2d_batch_norm`."""
        conv: Any
        norm: Any
        conv, norm = self.children()
        plain = isinstance(conv, Conv2d) and type(conv)._function is functional.conv2d
        plain = plain and type(conv).forward is Conv2d.forward and type(norm) is torch.nn.BatchNorm2d
        if not plain or any(has_hooks(layer) or "forward" in vars(layer) for layer in (conv, norm)):
            return activations.reference(activations.spell(self.activation), norm(conv(input)))  # type: ignore[no-any-return]
        norm._check_input_dim(input)
        window = (conv.stride, conv.padding, conv.dilation, conv.groups)
        how = {"padding_mode": conv.padding_mode, "activation": self.activation, **statistics(norm)}
        y = functional.conv2d_batch_norm(input, conv.weight, conv.bias, *window, **how)
        count_batch(norm)
        return y

    def extra_repr(self) -> str:
        """Return the activation, which stands beside the layers."""
        return f"activation={self.activation!r}"

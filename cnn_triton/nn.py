"""The layers as torch.nn.Modules: subclasses of PyTorch's own, with their constructors and state_dict."""

from collections.abc import Callable
from typing import Any

import torch

from . import functional

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvReLU2d",
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
    "LinearReLU",
    "MaxPool1d",
    "MaxPool2d",
    "MaxUnpool1d",
    "MaxUnpool2d",
]

_Call = Callable[..., Any]


class _Conv:
    """A convolution's call of its function; the padding mode is the kernel's."""

    _function: _Call

    def _conv_forward(self: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        window = (self.stride, self.padding, self.dilation, self.groups)
        return self._function(input, weight, bias, *window, padding_mode=self.padding_mode)  # type: ignore[no-any-return]


class Conv2d(_Conv, torch.nn.Conv2d):
    """`torch.nn.Conv2d` through `cnn_triton.functional.conv2d`, every padding_mode without a padded copy.

    Equivalent to: torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
    padding_mode, device, dtype), its state_dict too. Shapes, dtypes and errors: see `functional.conv2d`.
    """

    _function = staticmethod(functional.conv2d)


class ConvReLU2d(Conv2d):
    """Convolution, bias and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Conv2d. Shapes, dtypes and errors: see `functional.conv2d_relu`.
    """

    _function = staticmethod(functional.conv2d_relu)


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

    _function = staticmethod(functional.linear)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(*, in_features) to (*, out_features); see `functional.linear`."""
        return self._function(input, self.weight, self.bias)


class LinearReLU(Linear):
    """Linear layer and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Linear(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Linear.
    """

    _function = staticmethod(functional.linear_relu)


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

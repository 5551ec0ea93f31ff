"""The layers as torch.nn.Modules: subclasses of PyTorch's own, with their constructors and state_dict."""

import torch
import torch.nn.functional as F

from . import functional

__all__ = ["AvgPool2d", "Conv2d", "ConvReLU2d", "Linear", "LinearReLU", "MaxPool2d"]


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` through `cnn_triton.functional.conv2d`.

    Equivalent to: torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
    padding_mode, device, dtype), its state_dict too. Shapes, dtypes and errors: see `functional.conv2d`.
    """

    _function = staticmethod(functional.conv2d)

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.padding_mode == "zeros":
            return self._function(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        padded = F.pad(input, self._reversed_padding_repeated_twice, self.padding_mode)
        return self._function(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


class ConvReLU2d(Conv2d):
    """Convolution, bias and ReLU in one kernel.

    Equivalent to: torch.nn.Sequential(torch.nn.Conv2d(...), torch.nn.ReLU()), with the constructor and the
    state_dict of torch.nn.Conv2d. Shapes, dtypes and errors: see `functional.conv2d_relu`.
    """

    _function = staticmethod(functional.conv2d_relu)


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` through `cnn_triton.functional.max_pool2d`.

    Equivalent to: torch.nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The maxima, or with return_indices (maxima, indices); see `functional.max_pool2d`."""
        return functional.max_pool2d(  # type: ignore[return-value]
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` through `cnn_triton.functional.avg_pool2d`.

    Equivalent to: torch.nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The averages; see `functional.avg_pool2d`."""
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


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

"""Pools and unpooling, as torch.nn has them."""

from collections.abc import Callable
from typing import Any

import torch

from .. import functional


class _MaxPool:
    """The forward pass of maximum pooling: a call of its function."""

    _function: Callable[..., Any]

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        """Return the maxima, or with return_indices (maxima, indices); see the function."""
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
    """The forward pass of maximum unpooling: a call of its function."""

    _function: Callable[..., Any]

    def forward(
        self: Any, input: torch.Tensor, indices: torch.Tensor, output_size: list[int] | None = None
    ) -> torch.Tensor:
        """Return the values at their places; see the function."""
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
        """Return the averages; see `functional.avg_pool2d`."""
        window = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool2d(input, *window, self.ceil_mode, self.count_include_pad, self.divisor_override)


class AvgPool1d(torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d` through `cnn_triton.functional.avg_pool1d`.

    Equivalent to: torch.nn.AvgPool1d(kernel_size, stride, padding, ceil_mode, count_include_pad)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the averages; see `functional.avg_pool1d`."""
        window = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool1d(input, *window, self.ceil_mode, self.count_include_pad)


class _AdaptiveMaxPool:
    """The forward pass of adaptive maximum pooling: a call of its function."""

    _function: Callable[..., Any]

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:
        """Return the maxima, or with return_indices (maxima, indices); see the function."""
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
        """Return the averages; see `functional.adaptive_avg_pool2d`."""
        return functional.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` through `cnn_triton.functional.adaptive_avg_pool1d`.

    Equivalent to: torch.nn.AdaptiveAvgPool1d(output_size)
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the averages; see `functional.adaptive_avg_pool1d`."""
        return functional.adaptive_avg_pool1d(input, self.output_size)

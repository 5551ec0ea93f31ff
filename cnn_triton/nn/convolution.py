"""Convolutions and transposed convolutions, as torch.nn has them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .. import functional


class _Conv:
    """The forward pass of convolutions: a call of their function, which knows the padding modes."""

    _function: Callable[..., Any]

    def _conv_forward(
        self: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **more: Any
    ) -> torch.Tensor:
        padding, mode = self.padding, self.padding_mode
        if mode != "zeros" and padding != "same":
            # PyTorch's layer pads by what its constructor made of `padding`, whatever that is by now.
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

    _function: Callable[..., Any] = staticmethod(functional.conv2d)


class Conv1d(_Conv, torch.nn.Conv1d):
    """`torch.nn.Conv1d` through `cnn_triton.functional.conv1d`.

    Equivalent to: torch.nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
    padding_mode, device, dtype), its state_dict too.
    """

    _function = staticmethod(functional.conv1d)


class _ConvTranspose:
    """The forward pass of transposed convolutions: a call of their function."""

    _function: Callable[..., Any]

    def forward(self: Any, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Return the output, of `output_size` where several are possible; see the function."""
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

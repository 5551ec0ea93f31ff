"""The locally connected layer."""

import math
from typing import Any

import torch

from .. import functional
from ..functional.calling import Activation
from ..kernels.matrix import activations
from ..kernels.window import arguments, convolution


class LocallyConnected2d(torch.nn.Module):
    """2-D locally connected layer: a convolution whose windows have a weight each, for images of one size.

    Equivalent to: functional.locally_connected2d(input, weight, bias, stride, padding, dilation, groups,
    activation=activation)

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
        activation: Activation = None,
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
        """Draw weight and bias uniformly from ±1/√(window · in_channels/groups), as torch.nn.Conv2d does."""
        terms = math.prod(self.weight.shape[3:])
        bound = 1 / math.sqrt(terms) if terms else 0.0
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (N, K, P, Q) of (N, C, H, W); see the function. Errors: RuntimeError for images of another size."""
        if isinstance(input, torch.Tensor) and tuple(input.shape[-2:]) != self.input_size:
            raise RuntimeError(f"input must be images of {self.input_size}, (H, W), but got shape {tuple(input.shape)}")
        window = (self.stride, self.padding, self.dilation, self.groups)
        return functional.locally_connected2d(input, self.weight, self.bias, *window, activation=self.activation)

    def load_keras(self, kernel: Any, bias: Any = None, data_format: str = "channels_last") -> None:
        """Take the weights of a Keras LocallyConnected2D (implementation 1), arrays or tensors.

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
            fits = "None" if own is None else f"an array of shape {tuple(own.shape)}"
            raise ValueError(f"bias must be {fits} for this layer, but got {'None' if bias is None else 'an array'}")
        with torch.no_grad():
            if own is not None:
                vectors = torch.as_tensor(bias)
                if vectors.shape != own.shape:
                    raise ValueError(f"bias must have shape {tuple(own.shape)}, but got {tuple(vectors.shape)}")
                vectors = vectors if last else vectors.reshape(k, p, q).permute(1, 2, 0)
                own.copy_(vectors)
            self.weight.copy_(rows.permute(0, 1, 5, 2, 3, 4))

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "activation")
        sizes = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}"
        bias = False if self.bias is None else "channel" if self.bias.dim() == 1 else "pixel"
        return ", ".join([sizes, *(f"{name}={getattr(self, name)!r}" for name in names), f"bias={bias!r}"])

"""Linear layers, and with what follows them in the same kernel."""

from collections.abc import Callable
from typing import Any

import torch

from .. import functional
from ..functional.calling import Activation
from ..kernels.matrix import activations


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` through `cnn_triton.functional.linear`.

    Equivalent to: torch.nn.Linear(in_features, out_features, bias, device, dtype), its state_dict too.
    """

    _function: Callable[..., Any] = staticmethod(functional.linear)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (*, out_features) of (*, in_features); see `functional.linear`."""
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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        activations.spell(activation)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return (*, out_features), the residual's shape, of (*, in_features); see `functional.linear`."""
        return functional.linear(input, self.weight, self.bias, activation=self.activation, residual=residual)

    def extra_repr(self) -> str:
        """Return the layer's arguments, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"

"""The arguments of products, as records: the operands, and a convolution's window as the user gives it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..kernels.core.tensors import check_optional, check_tensors
from ..kernels.matrix import activations
from ..kernels.matrix.epilogue import completed
from ..kernels.window.arguments import Pair
from ..kernels.window.convolution import Window, conv_window
from .autocast import casts, lowered, precise
from .calling import Activation, Ints, on_aten


class Operands(NamedTuple):
    """A product's two arguments and the operands of its epilogue.

    slope: that of ("prelu", slope); activation: its word and numbers, as operators take them
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    slope: torch.Tensor | None = None
    activation: str = "none"

    @classmethod
    def of(
        cls, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation = None,
        scale: torch.Tensor | None = None, residual: torch.Tensor | None = None,
    ) -> "Operands":  # fmt: skip
        """Return the operands of a public function's arguments. Errors: TypeError, ValueError (activation)."""
        spelled, slope = _spelled(activation)
        return cls(input, weight, bias, scale, residual, slope, spelled)

    @property
    def on_aten(self) -> bool:
        """True if PyTorch's own operators run the product."""
        return on_aten(self.input, self.weight, self.bias, self.residual, self.scale, self.slope)

    @property
    def bare(self) -> "Operands":
        """The product and its bias alone."""
        return Operands(self.input, self.weight, self.bias)

    def lowered(self) -> "Operands":
        """Return the operands in the dtypes that autocast gives them, if it is on: the scale, and the bias beside a
        scale, in float32."""
        if not casts(self.input):
            return self
        bias, scale = self.bias, self.scale
        input, weight, bias, residual, slope = lowered(self.input, self.weight, bias, self.residual, self.slope)
        if scale is not None:
            bias, scale = precise(self.bias, scale)
        return Operands(input, weight, bias, scale, residual, slope, self.activation)

    def checked(self) -> "Operands":
        """Return the operands for our operators, in autocast's dtypes. Errors: TypeError, RuntimeError,
        NotImplementedError for what is no tensor of a fitting dtype and device."""
        given = self.lowered()
        check_tensors(input=given.input, weight=given.weight)
        check_optional(bias=given.bias, scale=given.scale, residual=given.residual)
        return given

    def slopes(self, columns: int) -> torch.Tensor | None:
        """Return the slope of each column; None if there is no slope."""
        slope = self.slope
        return slope.reshape(1).expand(columns) if slope is not None and slope.numel() == 1 else slope

    def completed(self, product: Callable[[Any], torch.Tensor], dims: int) -> torch.Tensor:
        """Return product(bias) by PyTorch, which has `dims` dimensions behind its columns, and the epilogue of it."""
        result: torch.Tensor = completed(
            product, self.bias, self.scale, self.residual, self.slope, self.activation, dims
        )  # fmt: skip
        return result


def _spelled(activation: Activation) -> tuple[str, torch.Tensor | None]:
    """Return an activation's words and, of ("prelu", slope), the slope. Errors: TypeError, ValueError."""
    if not isinstance(activation, (tuple, list)) or activation[:1] not in (("prelu",), ["prelu"]):
        return activations.spell(activation), None
    if len(activation) != 2:
        raise ValueError(f"activation 'prelu' takes a slope, but got {len(activation) - 1} values")
    if not isinstance(activation[1], torch.Tensor):
        raise TypeError(f"the slope of 'prelu' must be a torch.Tensor, but got {type(activation[1]).__name__}")
    return "none", activation[1]


class WindowArguments(NamedTuple):
    """A convolution's window as the user gives it, and its groups."""

    stride: Ints
    padding: Ints | str
    dilation: Ints
    groups: int
    padding_mode: str

    def window(self, size: Pair, dims: int) -> Window:
        """Return the window of taps (R, S). Errors: TypeError, RuntimeError, ValueError (padding_mode)."""
        return conv_window(size, self.stride, self.padding, self.dilation, self.padding_mode, dims)

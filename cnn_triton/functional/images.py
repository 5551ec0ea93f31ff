"""Tensors as the kernels take them, 4-D images, and back."""

from collections.abc import Sequence

import torch

from ..kernels.window import arguments


def image(argument: str, tensor: torch.Tensor, dims: int, batched: bool = False) -> torch.Tensor:
    """Return the tensor as 4-D images; a row is an image one pixel high. Errors: RuntimeError."""
    if tensor.dim() == dims + 1 and not batched:
        tensor = tensor[None]
    elif tensor.dim() != dims + 2:
        names = ("N, C, H, W", "C, H, W") if dims == 2 else ("N, C, W", "C, W")
        shapes = " or ".join(f"{n.count(',') + 1}-D ({n})" for n in names)
        if batched and argument == "weight":
            shapes = "4-D (K, C/groups, R, S)" if dims == 2 else "3-D (K, C/groups, S)"
        elif batched:
            shapes = "4-D (N, C, H, W)" if dims == 2 else "3-D (N, C, W)"
        raise RuntimeError(f"{argument} must be {shapes}, but got shape {tuple(tensor.shape)}")
    return tensor if dims == 2 else tensor[:, :, None]


def optional_image(argument: str, tensor: torch.Tensor | None, dims: int) -> torch.Tensor | None:
    """Return the same of a tensor that may be None."""
    return None if tensor is None else image(argument, tensor, dims)


def check_row(argument: str, tensor: torch.Tensor | None, images: Sequence[int]) -> None:
    """Errors: RuntimeError, in shapes of rows, unless a tensor of rows, if it is given, becomes these images."""
    if tensor is not None:
        given = image(argument, tensor, 1).shape
        arguments.same_shape(argument, arguments.shape(given, 1), arguments.shape(images, 1))


def like(y: torch.Tensor, input: torch.Tensor, dims: int) -> torch.Tensor:
    """Return images as a tensor of the input's dimensions: undo `image`."""
    y = y if dims == 2 else y[:, :, 0]
    return y[0] if input.dim() == dims + 1 else y


def row(input: torch.Tensor, dims: int) -> torch.Tensor:
    """Return the input; rows contiguous, as PyTorch's functions but for pools make them: they have no channels_last."""
    return input.contiguous() if dims == 1 else input

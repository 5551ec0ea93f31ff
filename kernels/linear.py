"""Linear layer with bias and activation, and its gradients: the convolution of 1 x 1 images with a 1 x 1 window.

    y[m,k] = act( b[k] + Σ_c x[m,c] · w[k,c] )

A row is an image of one pixel, so the kernels are conv2d's; float32 follows PyTorch's matrix-product switch.
"""

import torch
import torch.nn.functional as F

from .conv2d import product, weight_product
from .epilogue import ACTIVATIONS
from .geometry import Window, same_shape
from .op import Op, check_tensors, nbytes, new
from .precision import matmul_dot

_UNIT = Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))


def images(matrix: torch.Tensor) -> torch.Tensor:
    """Rows [M, C] as images [M, C, 1, 1]; a view."""
    return matrix[:, :, None, None]


def linear_fake(input, weight, bias, activation):
    check_tensors(input=input, weight=weight, bias=bias)
    if weight.dim() != 2:
        raise RuntimeError(f"weight must be 2-D (out_features, in_features), but got shape {tuple(weight.shape)}")
    if input.dim() != 2 or input.shape[1] != weight.shape[1]:
        raise RuntimeError(
            f"input must have {weight.shape[1]} features, as weight of shape {tuple(weight.shape)} has, but got "
            f"shape {tuple(input.shape)}"
        )
    if bias is not None:
        same_shape("bias", bias.shape, weight.shape[:1])
    return new((input.shape[0], weight.shape[0]), input)


def linear_launch(y, input, weight, bias, activation):
    dot = matmul_dot(input.dtype)
    product(images(input), images(weight), bias, images(y), _UNIT, 1, False, activation, dot)


def linear_aten(input, weight, bias, activation):
    return ACTIVATIONS[activation].reference(F.linear(input, weight, bias))


def input_grad_fake(grad, weight):
    check_tensors(grad=grad, weight=weight)
    same_shape("grad", grad.shape, (grad.shape[0], weight.shape[0]))
    return new((grad.shape[0], weight.shape[1]), grad)


def input_grad_launch(dx, grad, weight):
    product(images(grad), images(weight), None, images(dx), _UNIT, 1, True, "none", matmul_dot(grad.dtype))


def weight_grad_fake(grad, input):
    check_tensors(grad=grad, input=input)
    same_shape("grad", grad.shape, (input.shape[0], grad.shape[1]))
    return new((grad.shape[1], input.shape[1]), grad)


def weight_grad_launch(dw, grad, input):
    weight_product(images(grad), images(input), images(dw), _UNIT, 1, matmul_dot(grad.dtype))
    return dw


def _flops(rows: torch.Tensor, columns: int) -> int:
    return 2 * rows.numel() * columns


LINEAR = Op(
    name="linear",
    schema="(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor",
    fake=linear_fake,
    launcher=linear_launch,
    aten=linear_aten,
    flops=lambda input, weight, bias, activation: _flops(input, weight.shape[0]),
    bytes=lambda *args: nbytes(*args[:3], linear_fake(*args)),
)

LINEAR_INPUT_GRAD = Op(
    name="linear_input_grad",
    schema="(Tensor grad, Tensor weight) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=lambda grad, weight: grad @ weight,
    flops=lambda grad, weight: _flops(grad, weight.shape[1]),
    bytes=lambda grad, weight: nbytes(grad, weight, input_grad_fake(grad, weight)),
)

LINEAR_WEIGHT_GRAD = Op(
    name="linear_weight_grad",
    schema="(Tensor grad, Tensor input) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=lambda grad, input: grad.T @ input,
    flops=lambda grad, input: _flops(grad, input.shape[1]),
    bytes=lambda grad, input: nbytes(grad, input, weight_grad_fake(grad, input)),
)

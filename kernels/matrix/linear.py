"""Linear layer with an epilogue (epilogue.py), and its gradients: the convolution of 1 x 1 images with a 1 x 1 window.

    y[m,k] = epilogue( Σ_c x[m,c] · w[k,c] )

A row is an image of one pixel, so the kernels are conv2d's; float32 follows PyTorch's matrix-product switch. As there,
k and c may stand in groups, layers side by side: a batch of layers is such a layer (vmap).
"""

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, matmul_precision
from ..core.op import Op, VmapRule
from ..core.tensors import check_tensors, nbytes, new
from ..window.arguments import same_shape
from ..window.convolution import Window
from .epilogue import BY_COLUMN, OPERANDS, Epilogue, check_epilogue, completed, with_preactivation
from .paths import path_of
from .problem import Problem, WeightProblem

_POINT = Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))


def as_images(matrix: torch.Tensor) -> torch.Tensor:
    """Return rows [M, C] as images [M, C, 1, 1]; a view."""
    return matrix[:, :, None, None]


def _grouped(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """Return [M, G·C] as [G, M, C]."""
    return rows.unflatten(1, (groups, rows.shape[1] // groups)).transpose(0, 1)


def _side_by_side(rows: torch.Tensor) -> torch.Tensor:
    """Return [G, M, C] as [M, G·C]."""
    return rows.transpose(0, 1).flatten(1)


def _layers(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return [G·K, C] as [G, K, C]."""
    return weight.unflatten(0, (groups, weight.shape[0] // groups))


def linear_fake(input, weight, bias, scale, residual, slope, groups, activation):
    check_tensors(input=input, weight=weight)
    if weight.dim() != 2:
        raise RuntimeError(f"weight must be 2-D (out_features, in_features), but got shape {tuple(weight.shape)}")
    if input.dim() != 2 or input.shape[1] != weight.shape[1] * groups:
        raise RuntimeError(
            f"input must have {weight.shape[1] * groups} features, as weight of shape {tuple(weight.shape)} has, but "
            f"got shape {tuple(input.shape)}"
        )
    shape = (input.shape[0], weight.shape[0])
    check_epilogue(bias, scale, residual, slope, input, shape, weight.shape[0])
    return new(shape, input)


def linear_launch(y, input, weight, bias, scale, residual, slope, groups, activation, preactivation=None):
    residual, preactivation = (each if each is None else as_images(each) for each in (residual, preactivation))
    epilogue = Epilogue(bias, scale, residual, slope, activation, preactivation)
    _multiply(as_images(input), weight, as_images(y), groups, False, epilogue)


def _multiply(x, weight, y, groups, transposed, epilogue):
    precision = matmul_precision(x.dtype)
    problem = Problem(x, as_images(weight), y, _POINT, groups, transposed, precision, epilogue)
    path_of(problem).forward(problem)


def linear_aten(input, weight, bias, scale, residual, slope, groups, activation):
    def product(bias):
        if groups == 1:
            return F.linear(input, weight, bias)
        y = _side_by_side(_grouped(input, groups) @ _layers(weight, groups).mT)
        return y if bias is None else y + bias

    return completed(product, bias, scale, residual, slope, activation, 0)


def input_grad_fake(grad, weight, groups):
    check_tensors(grad=grad, weight=weight)
    same_shape("grad", grad.shape, (grad.shape[0], weight.shape[0]))
    return new((grad.shape[0], weight.shape[1] * groups), grad)


def input_grad_launch(dx, grad, weight, groups):
    _multiply(as_images(grad), weight, as_images(dx), groups, True, Epilogue())


def input_grad_aten(grad, weight, groups):
    return _side_by_side(_grouped(grad, groups) @ _layers(weight, groups))


def weight_grad_fake(grad, input, groups, accumulate_dtype=False):
    check_tensors(grad=grad, input=input)
    same_shape("grad", grad.shape, (input.shape[0], grad.shape[1]))
    return new(
        (grad.shape[1], input.shape[1] // groups), grad, dtype=accumulator(grad.dtype) if accumulate_dtype else None
    )


def weight_grad_launch(dw, grad, input, groups, accumulate_dtype=False):
    precision = matmul_precision(grad.dtype)
    problem = WeightProblem(as_images(grad), as_images(input), as_images(dw), _POINT, groups, precision)
    path_of(problem).weight_grad(problem)


def weight_grad_aten(grad, input, groups, accumulate_dtype=False):
    return (_grouped(grad, groups).mT @ _grouped(input, groups)).flatten(0, 1)


LINEAR = Op(
    name="linear",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, int groups, str activation) -> Tensor",
    fake=linear_fake,
    launcher=linear_launch,
    aten=linear_aten,
    flops=lambda input, weight, *args: 2 * input.shape[0] * weight.numel(),
    bytes=lambda *args: nbytes(*args[:6], linear_fake(*args)),
    vmap=(
        VmapRule({"input": 0, "residual": 0}, (0,)),
        VmapRule({**BY_COLUMN, "input": 1, "weight": 0, "groups": 0}, (1,)),
    ),
    product=True,
)
LINEAR_WITH_PREACTIVATION = with_preactivation(LINEAR)

LINEAR_INPUT_GRAD = Op(
    name="linear_input_grad",
    schema="(Tensor grad, Tensor weight, int groups) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, groups: 2 * grad.shape[0] * weight.numel(),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
    vmap=(VmapRule({"grad": 0}, (0,)), VmapRule({"grad": 1, "weight": 0, "groups": 0}, (1,))),
    product=True,
)

LINEAR_WEIGHT_GRAD = Op(
    name="linear_weight_grad",
    schema="(Tensor grad, Tensor input, int groups, bool accumulate_dtype=False) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, groups, *_: 2 * grad.numel() * (input.shape[1] // groups),
    bytes=lambda *args: nbytes(*args[:2], weight_grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "input": 1, "groups": 0}, (0,)),),
    product=True,
)

"""Convolution, ReLU and pooling in one kernel, and its gradients, without the images between them.

    x[n,k,h,w] = scale[k] · conv[n,k,h,w] + b[k]          conv2d.py
    y, code    = ReLU and pooling of x                    relu_pool.py

A tap of the pooling is a convolution by itself, whose stride is the convolution's times the window's side: the kernel
goes through them one after the other and keeps the largest, or the sum, in registers.

    for each tile of the result:                                  pooled pixels x columns
        for each tap t of the pooling:
            x = epilogue(the convolution at tap t)                loop.main_loop
            (y, code) = (y, code) with x                          relu_pool.pool_step
        store y and code

dx, the gradient of what was pooled, is dy where the code says so. The convolution's gradients can read it so, from dy
and the code, or `materialized`, in one pass that also sums the bias' gradient. A window of one tap reads each
element once, and is bound by memory: materialized, it would be several times the traffic. A larger window reads each
once for every tap: to work it out each time takes more instructions than the product itself, so it is materialized.
"""

import math

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, conv_precision
from ..core import chips
from ..core.op import Op, VmapRule, launch
from ..core.tensors import alignment, channels_last, check_tensors, index_type, nbytes, new, tl_type
from ..tiles import pick, shapes
from ..tiles.model import precision_on
from ..window.arguments import same_shape
from ..window.convolution import Walks, Window, conv_shape
from ..window.layout import cdiv
from ..window.pooling import check_images
from . import conv2d
from .activation_grad import bias_grad_fake
from .conv2d import conv2d_aten
from .epilogue import Epilogue, check_epilogue
from .gather import conv_pool_kernel
from .meta import Meta, Weight
from .pool_code import Pooled, aligned, input_grad_aten, new_code, spread
from .problem import Problem, can_fetch_product, matrix, packed, weight_strides
from .tma import conv_pool_tma_kernel


def full_size(input, weight, stride, padding, dilation, groups, padding_mode):
    """Return the size of the images that are pooled."""
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    return conv_shape(input.shape, weight.shape, None, window, groups)


def conv2d_pool_fake(input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average):
    check_tensors(input=input, weight=weight)
    shape = full_size(input, weight, stride, padding, dilation, groups, padding_mode)
    check_epilogue(bias, scale, None, None, input, shape, weight.shape[0])
    check_images(shape)
    pooled = tuple(size // k for size, k in zip(shape[2:], pool, strict=True))
    if min(pooled) < 1:
        raise RuntimeError(
            f"pool_size {tuple(pool)} doesn't fit into the convolution's output of {shape[2]} x {shape[3]} pixels"
        )
    y = new((*shape[:2], *pooled), input, channels_last(input, weight))
    return y, new_code(y, pool, average)


def conv2d_pool_launch(
    results, input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average
):  # fmt: skip
    y, code = results
    if y.numel() == 0:
        return
    window = Window.of(weight.shape[2:], stride, padding, dilation, padding_mode)
    # A tap of the pooling is a convolution by itself, whose stride is this one's times the window's side.
    taps = (walk._replace(stride=walk.stride * k) for walk, k in zip(window.walks(False), pool, strict=True))
    walks, chip = Walks(*taps), chips.chip_name()
    precision = precision_on(chip, conv_precision(input.dtype))
    pooled = Pooled.of(code, pool, average, input.dtype)
    problem = Problem(input, weight, y, window, groups, False, precision, Epilogue(bias, scale, activation="none"))
    x, results, matrix_of = packed(input), packed(y), matrix(weight)
    wanted = shapes.Product(
        tuple(results.size), problem.columns, problem.channels, window.taps * math.prod(pool), 1, groups,
        can_fetch_product(problem, x, walks.strides), whole=True,
        extra_registers="number" if pooled.pool.how == "key" else "two numbers",
    )  # fmt: skip
    tile = pick.product(wanted, shapes.arithmetic(input.dtype, precision), chip)
    meta = Meta.of(
        walks, window.size, precision, tile, pool=pooled.pool, shift=window.stride,
        index=index_type(input, weight, code),
    )  # fmt: skip
    how = {"ACTIVATION": problem.epilogue.on_device, **tile.options}
    last = (results, pooled.code, problem.epilogue.operands(y), problem.channels, problem.columns)
    if tile.box:
        meta = meta._replace(aligned=alignment(problem.columns, y))
        launch(conv_pool_tma_kernel, tile.programs, x, matrix_of, *last, META=meta, **how)
    else:
        meta = meta._replace(accumulator=tl_type(accumulator(y.dtype)), padding_mode=padding_mode)
        programs = cdiv(math.prod(results.size), tile.m) * cdiv(problem.columns, tile.n) * groups
        weights = Weight(matrix_of, weight_strides(problem))
        launch(conv_pool_kernel, programs, x, weights, *last, META=meta, **how)


def conv2d_pool_aten(input, weight, bias, scale, stride, padding, dilation, groups, padding_mode, pool, average):
    x = conv2d_aten(input, weight, bias, scale, None, None, stride, padding, dilation, groups, padding_mode, "relu")
    pool = tuple(pool)
    if average:
        whole = x[:, :, : x.shape[2] // pool[0] * pool[0], : x.shape[3] // pool[1] * pool[1]]
        opens = ~(whole.unflatten(3, (-1, pool[1])).unflatten(2, (-1, pool[0])) <= 0)
        taps = opens.permute(3, 5, 0, 1, 2, 4).flatten(0, 1)  # [taps, N, K, P, Q]
        taps = F.pad(taps, (0, 0) * 4 + (0, -len(taps) % 8)).unflatten(0, (-1, 8))
        bits = torch.arange(8, device=x.device)[:, None, None, None, None]
        return F.avg_pool2d(x, pool), (taps.long() << bits).sum(1)
    y, index = F.max_pool2d(x, pool, return_indices=True)
    tap = index // x.shape[3] % pool[0] * pool[1] + index % x.shape[3] % pool[1]
    return y, torch.where(y <= 0, math.prod(pool), tap)[None]


def grad_fake(
    grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, of_input, of_weight,
    materialized, accumulate_dtype=False,
):  # fmt: skip
    check_tensors(grad=grad, input=input, weight=weight)
    shape = full_size(input, weight, stride, padding, dilation, groups, padding_mode)
    same_shape("grad", grad.shape, (*shape[:2], *(size // k for size, k in zip(shape[2:], pool, strict=True))))
    same_shape("code", code.shape[1:], grad.shape)
    kind = accumulator(weight.dtype) if accumulate_dtype else weight.dtype
    dx = new((input.shape[0] * of_input, *input.shape[1:]), input, channels_last(input))
    dw = new((weight.shape[0] * of_weight, *weight.shape[1:]), weight, channels_last(weight), kind)
    return dx, dw, bias_grad_fake(grad)


def grad_launch(
    results, grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, of_input,
    of_weight, materialized, accumulate_dtype=False,
):  # fmt: skip
    dx, dw, bias = results
    how = (stride, padding, dilation, groups, padding_mode)
    full = None
    if materialized is None:
        materialized = math.prod(weight.shape[2:]) > 1
    if materialized or input.dtype == torch.float64:  # whose products Triton can't compile with what comes of bytes
        full = new(full_size(input, weight, *how), grad, channels_last(grad))
    spread(bias, full, grad, code, pool, average)
    pooled = None
    if full is None:
        grad, code = aligned(grad, code)
        pooled = Pooled.of(code, pool, average, input.dtype)
    else:
        grad = full
    if of_input:
        conv2d.input_grad_launch(dx, grad, weight, input.shape, *how, channels_last(input), pooled)
    if of_weight:
        conv2d.weight_grad_launch(dw, grad, input, weight.shape, *how, channels_last(weight), accumulate_dtype, pooled)


def grad_aten(
    grad, code, input, weight, stride, padding, dilation, groups, padding_mode, pool, average, of_input, of_weight,
    materialized, accumulate_dtype=False,
):  # fmt: skip
    how = (stride, padding, dilation, groups, padding_mode)
    full, bias = input_grad_aten(grad, code, full_size(input, weight, *how), pool, average, False)
    dx = conv2d.input_grad_aten(full, weight, input.shape, *how, False) if of_input else None
    dw = conv2d.weight_grad_aten(full, input, weight.shape, *how, False) if of_weight else None
    return dx, dw, bias


def _flops(input, weight, *how) -> int:
    n, _, p, q = full_size(input, weight, *how)
    return 2 * n * p * q * weight.numel()


_POOL = "int[2] pool, bool average"

CONV2D_POOL = Op(
    name="conv2d_pool",
    schema=f"(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, {conv2d.WINDOW}, {_POOL}) -> (Tensor, Tensor)",
    fake=conv2d_pool_fake,
    launcher=conv2d_pool_launch,
    aten=conv2d_pool_aten,
    flops=lambda input, weight, bias, scale, *args: _flops(input, weight, *args[:5]),
    bytes=lambda *args: nbytes(*args[:4], *conv2d_pool_fake(*args)),
    vmap=(
        VmapRule({"input": 0}, (0, 1)),
        VmapRule({"input": 1, "weight": 0, "bias": 0, "scale": 0, "groups": 0}, (1, 2)),
    ),
    product=True,
)

CONV2D_POOL_GRAD = Op(
    name="conv2d_pool_grad",
    schema=f"(Tensor grad, Tensor code, Tensor input, Tensor weight, {conv2d.WINDOW}, {_POOL}, bool of_input, "
    "bool of_weight, bool? materialized, bool accumulate_dtype=False) -> (Tensor, Tensor, Tensor)",
    fake=grad_fake,
    launcher=grad_launch,
    aten=grad_aten,
    flops=lambda grad, code, input, weight, *args: _flops(input, weight, *args[:5]) * (args[7] + args[8]),
    bytes=lambda *args: nbytes(*args[:4], *grad_fake(*args)),
    vmap=(VmapRule({"grad": 1, "code": 2, "input": 1, "weight": 0, "groups": 0}, (1, 0, 0)),),
    product=True,
)

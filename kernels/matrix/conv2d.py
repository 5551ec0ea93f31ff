"""2-D convolution with an epilogue, its input gradient and its weight gradient, as implicit matrix products.

    y[n,k,p,q] = epilogue( Σ_{c,r,s} x[n, c, p·stride − pad + r·dilation, ...] · w[k,c,r,s] )      epilogue.py

As a product of matrices that are never formed, with (n,p,q) = pixel and (r,s,c) = term:

    forward:          Y[pixel, k]    = X̂[pixel, term] · Ŵ[term, k]        X̂: what taps read, 0 outside
    input gradient:   dX[pixel, c]   = Ĝ[pixel, (r,s,k)] · Ŵ'[(r,s,k), c]  the same along another walk (geometry.Walk)
    weight gradient:  dW[k, term]    = Gᵀ[k, pixel] · X̂[pixel, term]       the reduction is over pixels

The weight is read as the matrix [K, R·S·C]: a channels_last weight is one already, others are copied. Where each pixel
is a product of its own (1 x 1, stride 1) the images are one row of pixels, a plain product of matrices.

What taps read outside of the images is 0, or what the window's padding mode shows there. A transposed convolution is
the input gradient, with an epilogue.

The kernels differ in how they fetch the operands' tiles: conv2d_gather.py's by pointers, on any chip; conv2d_box.py's
in boxes of pixels that the chip fetches by itself. tiles.py picks. They share one main loop, device.main_loop. Where a
group has one channel there is no matrix: conv2d_direct.py. Of narrow groups a tile takes several: conv2d_grouped.py.
Source: implicit GEMM, as in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", arXiv:1410.0759.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..base.precision import accumulator, conv_dot
from ..core import chips
from ..core.op import Fold, Op, channels_last, check_tensors, index_type, launch, nbytes, new, nhwc, tl_type, unit
from ..tiles import model, pick, shapes
from ..window import convolution
from .direct import direct_product, direct_weight_product, is_direct
from .epilogue import BY_COLUMN, OPERANDS, Epilogue, check_epilogue, completed, saving, sum_parts
from .gather import conv_kernel, weight_grad_kernel
from .grouped import grouped_product, grouped_weight_product, is_grouped
from .padding import unpad
from .pool_code import Pooled
from .tma import conv_box_kernel, weight_grad_box_kernel


def matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight with the memory of the matrix [K, R·S·C/groups]; copied unless it is channels_last already."""
    return weight.contiguous(memory_format=torch.channels_last)


class Images(NamedTuple):
    """Images as kernels take them: size (n, h, w) and strides (n, h, w, c)."""

    size: tuple[int, int, int]
    strides: tuple[int, int, int, int]

    def boxed(self, tensor: torch.Tensor, steps: tuple[int, int]) -> bool:
        """Can boxes of every steps-th pixel be fetched: channels adjacent, all else at multiples of 16 bytes?"""
        (_, h, w), (*outer, adjacent), channels = self.size, self.strides, tensor.shape[1]
        aligned = tensor.data_ptr() % 16 == 0 and all(stride * tensor.element_size() % 16 == 0 for stride in outer)
        whole = h % steps[0] == 0 and w % steps[1] == 0 and (steps[1] == 1 or outer[2] == channels)
        return adjacent == 1 and aligned and min(outer) > 0 and whole


def images_of(tensor: torch.Tensor) -> Images:
    n, c, h, w = tensor.shape
    strides = nhwc(tensor)
    # A direction of one pixel may have any stride; PyTorch's are not always multiples of 16 bytes.
    outer = (c if size == 1 else stride for size, stride in zip((n, h, w), strides, strict=False))
    return Images((n, h, w), (*outer, strides[3]))


def images(window: convolution.Window, *tensors: torch.Tensor) -> tuple[Images, ...]:
    """The tensors' images; where each pixel is a product of its own, all their pixels as one row if they lie so."""
    every = tuple(images_of(tensor) for tensor in tensors)
    if not window.is_point:
        return every
    rows = [convolution.row_stride(each.size, each.strides[:3]) for each in every]
    if None in rows:
        return every
    pixels = math.prod(every[0].size)
    return tuple(
        Images((1, 1, pixels), (pixels * row, pixels * row, row, each.strides[3]))
        for each, row in zip(every, rows, strict=True)
    )


def fetches(
    x: torch.Tensor,
    weight: torch.Tensor,
    of_x: Images,
    window: convolution.Window,
    groups: int,
    strides: tuple[int, int],
) -> bool:
    """Can boxes of the images, of every strides-th pixel, and of the weight's matrix be fetched?"""
    terms = window.taps * weight.shape[1]
    whole = groups == 1 and window.padding_mode == "zeros" and x.numel() > 0
    aligned = terms * weight.element_size() % 16 == 0 and weight.data_ptr() % 16 == 0
    return whole and aligned and of_x.boxed(x, strides)


_BARE = Epilogue()


def product(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, window: convolution.Window, groups: int, transposed: bool,
    dot: str, epilogue: Epilogue = _BARE, moments: bool = False, pooled: Pooled | None = None,
) -> torch.Tensor | None:  # fmt: skip
    """y = epilogue(window product of x and weight), forward or transposed (the input gradient); y may have the
    accumulator's dtype. `pooled`: x was pooled so, and what is given is what came out. Returns the tiles' moments
    (epilogue.py), if they are wanted."""
    if y.numel() == 0:
        return None
    window = window.of_outputs((x if transposed else y).shape[2:]) if pooled is None else window
    if pooled is None and is_direct(weight.shape, groups):
        return direct_product(x, weight, y, window, groups, transposed, epilogue, moments)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    terms = window.taps * inputs
    channels, columns = (outputs, inputs) if transposed else (inputs, outputs)
    walks = window.walks(transposed)
    steps, strides = zip(*(walk[:2] for walk in walks), strict=True)
    weight = matrix(weight)
    if pooled is None and is_grouped(weight.shape, groups):
        dot = model.precision_on(chips.chip_name(), dot)
        return grouped_product(x, weight, y, window, groups, transposed, dot, epilogue, moments)
    of_x, of_y = images(window, x, y) if pooled is None else (images_of(x), images_of(y))
    chip = chips.chip_name()
    dot = model.precision_on(chip, dot)
    n, *pixels = of_y.size
    phase = [convolution.cdiv(size, step) for size, step in zip(pixels, steps, strict=True)]
    boxed = y.dtype == x.dtype and pooled is None and of_y.boxed(y, steps)
    boxed = boxed and fetches(x, weight, of_x, window, groups, strides)
    tile = pick.product(
        shapes.Product(
            (n, *phase), columns, channels, window.taps, math.prod(steps),
            groups, boxed, whole=not (transposed or window.is_point),
            extra_registers="epilogue" if moments or epilogue.extra_registers
            else pooled.extra_registers if pooled else "",
        ),
        shapes.arithmetic(x.dtype, dot), chip,
    )  # fmt: skip
    rows = convolution.cdiv(n * math.prod(phase), tile.m)
    if tile.box:
        rows = math.prod(convolution.cdiv(size, side) for size, side in zip((n, *phase), tile.box, strict=True))
    parts = new((rows, 3, columns * groups), y, dtype=accumulator(y.dtype)) if moments else None
    terms_of_y = epilogue.terms(y, parts)
    same = {
        "DOWN": walks[0].constants(), "ACROSS": walks[1].constants(), "TRANSPOSED": transposed, "PRECISION": dot,
        "N": tile.n, "K": tile.k, **epilogue.constants, **tile.options,
    }  # fmt: skip
    if tile.box:
        launch(
            conv_box_kernel, tile.programs, x, weight, y, terms_of_y, of_x.strides[:3], of_y.strides, of_x.size,
            of_y.size, channels, columns, WINDOW=window.size, BOX=tile.box, UNIT=unit(columns, y), **same,
        )  # fmt: skip
    else:
        launch(
            conv_kernel, rows * convolution.cdiv(columns, tile.n) * groups * math.prod(steps), x,
            pooled and pooled.code, weight, y, terms_of_y, of_x.strides,
            (terms if transposed else 1, inputs, 1 if transposed else terms, outputs * terms), of_y.strides,
            of_x.size[1:], of_y.size, channels, columns, S=window.size[1], POOL=pooled and pooled.pool,
            INDEX=index_type(x, weight, y, pooled and pooled.code[0]), ACC=tl_type(accumulator(y.dtype)), M=tile.m,
            PACKED=tile.packed, PADDING=window.padding_mode, **same,
        )  # fmt: skip
    return parts


def weight_product(
    grad: torch.Tensor, x: torch.Tensor, dw: torch.Tensor, window: convolution.Window, groups: int, dot: str,
    pooled: Pooled | None = None,
) -> None:  # fmt: skip
    """dw = Σ over pixels of grad · x̂, with the memory of the matrix [K, R·S·C/groups]; split sums meet in a
    workspace and are added in order. `pooled`: grad's images were pooled so, and it is that of what came out."""
    if dw.numel() == 0:
        return
    window = window.of_outputs(grad.shape[2:]) if pooled is None else window
    if pooled is None and is_direct(dw.shape, groups):
        direct_weight_product(grad, x, dw, window, groups)
        return
    if pooled is None and is_grouped(dw.shape, groups):
        grouped_weight_product(grad, x, dw, window, groups, model.precision_on(chips.chip_name(), dot))
        return
    outputs, channels = dw.shape[0] // groups, dw.shape[1]
    terms = window.taps * channels
    walks = window.walks(False)
    if pooled is None:
        of_grad, of_x = images(window, grad, x)
    else:
        n, h, w = images_of(grad).size
        of_grad, of_x = Images((n, h * pooled.pool[0], w * pooled.pool[1]), nhwc(grad)), images_of(x)
    chip = chips.chip_name()
    dot = model.precision_on(chip, dot)
    boxed = groups == 1 and window.padding_mode == "zeros" and grad.numel() > 0 and pooled is None
    boxed = boxed and of_grad.boxed(grad, (1, 1)) and of_x.boxed(x, (1, 1))
    boxed = boxed and all(
        convolution.taps_meet(*axis) for axis in zip(walks, of_x.size[1:], of_grad.size[1:], strict=True)
    )
    problem = shapes.WeightGrad(
        of_grad.size,
        outputs,
        channels,
        window.taps,
        groups,
        boxed,
        extra_registers=pooled.extra_registers if pooled else "",
    )
    tile = pick.weight_grad(problem, shapes.arithmetic(x.dtype, dot), chip)
    parts = dw if tile.parts == 1 else new((tile.parts, dw.numel()), dw, dtype=accumulator(dw.dtype))
    same = {
        "DOWN": walks[0].constants(), "ACROSS": walks[1].constants(), "PRECISION": dot, "M": tile.m, "N": tile.n,
        "INDEX": index_type(grad, x, parts, pooled and pooled.code[0]), **tile.options,
    }  # fmt: skip
    across = convolution.cdiv(terms, tile.n) if tile.packed else window.taps * convolution.cdiv(channels, tile.n)
    programs = convolution.cdiv(outputs, tile.m) * across * groups * tile.parts
    if tile.box:
        launch(
            weight_grad_box_kernel, programs, grad, x, parts, of_grad.strides[:3], of_x.strides[:3], of_grad.size,
            of_x.size, outputs, channels, tile.parts, WINDOW=window.size, BOX=tile.box, UNIT=unit(channels, x), **same,
        )  # fmt: skip
    else:
        launch(
            weight_grad_kernel, programs, grad, pooled and pooled.code, x, parts, of_grad.strides, of_x.strides,
            of_grad.size, of_x.size[1:], outputs, channels, groups, tile.parts, POOL=pooled and pooled.pool,
            ACC=tl_type(accumulator(x.dtype)), K=tile.k, PACKED=tile.packed, PADDING=window.padding_mode, **same,
        )  # fmt: skip
    if parts is not dw:
        sum_parts(parts, dw)


def window_of(size: Sequence[int], stride: Any, padding: Any, dilation: Any, padding_mode: str) -> convolution.Window:
    """The window of a weight of this size."""
    return convolution.Window((size[2], size[3]), tuple(stride), tuple(padding), tuple(dilation), padding_mode)


def _pad(input: torch.Tensor, padding: Sequence[int], padding_mode: str) -> torch.Tensor:
    """The images with their padding; negative: without so many of their pixels."""
    top, bottom, left, right = padding
    return F.pad(input, (left, right, top, bottom), "constant" if padding_mode == "zeros" else padding_mode)


def conv2d_fake(
    input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
):
    check_tensors(input=input, weight=weight)
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    shape = convolution.conv_shape(input.shape, weight.shape, bias if bias is None else bias.shape, window, groups)
    check_epilogue(bias, scale, residual, slope, input, shape, weight.shape[0])
    return new(shape, input, channels_last(input, weight))


def conv2d_launch(
    y, input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation,
    before=None,
):  # fmt: skip
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    epilogue = Epilogue(bias, scale, residual, slope, activation, before)
    product(input, weight, y, window, groups, False, conv_dot(input.dtype), epilogue)


def conv2d_aten(
    input, weight, bias, scale, residual, slope, stride, padding, dilation, groups, padding_mode, activation
):
    padded = _pad(input, padding, padding_mode)
    product = lambda bias: F.conv2d(padded, weight, bias, stride, 0, dilation, groups)  # noqa: E731
    return completed(product, bias, scale, residual, slope, activation)


def _input_grad_size(grad, weight, input_size, stride, padding, dilation, groups, padding_mode):
    check_tensors(grad=grad, weight=weight)
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    convolution.same_shape("grad", grad.shape, convolution.conv_shape(input_size, weight.shape, None, window, groups))


def input_grad_fake(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
    _input_grad_size(grad, weight, input_size, stride, padding, dilation, groups, padding_mode)
    return new(input_size, grad, channels_last)


def input_grad_launch(
    dx, grad, weight, input_size, stride, padding, dilation, groups, padding_mode, last, pooled=None
):  # fmt: skip
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    padded = dx
    if padding_mode != "zeros":
        padded = new((*input_size[:2], *window.padded(input_size[2:])), dx, last, accumulator(dx.dtype))
    inner = window if padded is dx else window.unpadded
    product(grad, weight, padded, inner, groups, True, conv_dot(grad.dtype), pooled=pooled)
    if padded is not dx:
        unpad(padded, dx, window)


def input_grad_aten(grad, weight, input_size, stride, padding, dilation, groups, padding_mode, channels_last):
    window = window_of(weight.shape, stride, padding, dilation, padding_mode)
    size = (*input_size[:2], *window.padded(input_size[2:]))
    dx = torch.nn.grad.conv2d_input(size, weight, grad, stride, 0, dilation, groups)
    if padding_mode == "zeros":
        return _pad(dx, [-pad for pad in padding], "zeros")
    for dim, pads in ((2, padding[:2]), (3, padding[2:])):
        pixel = torch.arange(input_size[dim], dtype=torch.float64, device=dx.device)
        shown = F.pad(pixel[None, None], tuple(pads), padding_mode)[0, 0].long()
        shape = (*dx.shape[:dim], input_size[dim], *dx.shape[dim + 1 :])
        dx = dx.new_zeros(shape).index_add_(dim, shown, dx)
    return dx


def transpose_fake(
    input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
    activation,
):  # fmt: skip
    _input_grad_size(input, weight, output_size, stride, padding, dilation, groups, "zeros")
    check_epilogue(bias, scale, residual, slope, input, output_size, output_size[1])
    return new(output_size, input, channels_last)


def transpose_launch(
    y, input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, last, activation,
    before=None,
):  # fmt: skip
    window = window_of(weight.shape, stride, padding, dilation, "zeros")
    epilogue = Epilogue(bias, scale, residual, slope, activation, before)
    product(input, weight, y, window, groups, True, conv_dot(input.dtype), epilogue)


def transpose_aten(
    input, weight, bias, scale, residual, slope, output_size, stride, padding, dilation, groups, channels_last,
    activation,
):  # fmt: skip

    def product(bias):
        y = input_grad_aten(input, weight, output_size, stride, padding, dilation, groups, "zeros", channels_last)
        return y if bias is None else y + bias[:, None, None]

    return completed(product, bias, scale, residual, slope, activation)


def weight_grad_fake(
    grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, wide=False
):
    check_tensors(grad=grad, input=input)
    window = window_of(weight_size, stride, padding, dilation, padding_mode)
    convolution.same_shape("grad", grad.shape, convolution.conv_shape(input.shape, weight_size, None, window, groups))
    return new(weight_size, grad, channels_last, accumulator(grad.dtype) if wide else None)


def weight_grad_launch(
    dw, grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, wide=False,
    pooled=None,
):  # fmt: skip
    matrix = dw if dw.is_contiguous(memory_format=torch.channels_last) else new(weight_size, dw, True)
    window = window_of(weight_size, stride, padding, dilation, padding_mode)
    weight_product(grad, input, matrix, window, groups, conv_dot(grad.dtype), pooled)
    if matrix is not dw:
        dw.copy_(matrix)


def weight_grad_aten(
    grad, input, weight_size, stride, padding, dilation, groups, padding_mode, channels_last, wide=False
):
    padded = _pad(input, padding, padding_mode)
    return torch.nn.grad.conv2d_weight(padded, weight_size, grad, stride, 0, dilation, groups)


def _flops(pixels_by_outputs: int, weight_size: Sequence[int]) -> int:
    return 2 * pixels_by_outputs * math.prod(weight_size[1:])


def _seen(input: torch.Tensor, taps: Sequence[int], image: Sequence[int]) -> int:
    """Bytes of the input that windows see: not all, where strides are wider than windows."""
    n, c, h, w = input.shape
    return n * c * min(h, taps[0] * image[0]) * min(w, taps[1] * image[1]) * input.element_size()


def _bytes(input: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    y = conv2d_fake(input, weight, *rest)
    return _seen(input, weight.shape[2:], y.shape[2:]) + nbytes(weight, *rest[:4], y)


WINDOW = "int[2] stride, int[4] padding, int[2] dilation, int groups, str padding_mode"

CONV2D = Op(
    name="conv2d",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, {WINDOW}, str activation) -> Tensor",
    fake=conv2d_fake,
    launcher=conv2d_launch,
    aten=conv2d_aten,
    flops=lambda input, weight, *args: _flops(conv2d_fake(input, weight, *args).numel(), weight.shape),
    bytes=_bytes,
    folds=(
        Fold({"input": 0, "residual": 0}, (0,)),
        Fold({**BY_COLUMN, "input": 1, "weight": 0, "groups": 0}, (1,)),
    ),
    product=True,
)
CONV2D_SAVING = saving(CONV2D)

CONV2D_INPUT_GRAD = Op(
    name="conv2d_input_grad",
    schema=f"(Tensor grad, Tensor weight, SymInt[4] input_size, {WINDOW}, bool channels_last) -> Tensor",
    fake=input_grad_fake,
    launcher=input_grad_launch,
    aten=input_grad_aten,
    flops=lambda grad, weight, *args: _flops(grad.numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:2], input_grad_fake(*args)),
    folds=(
        Fold({"grad": 0, "input_size": 0}, (0,)),
        Fold({"grad": 1, "weight": 0, "input_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)

CONV_TRANSPOSE2D = Op(
    name="conv_transpose2d",
    schema=f"(Tensor input, Tensor weight, {OPERANDS}, SymInt[4] output_size, int[2] stride, int[4] padding, "
    "int[2] dilation, int groups, bool channels_last, str activation) -> Tensor",
    fake=transpose_fake,
    launcher=transpose_launch,
    aten=transpose_aten,
    flops=lambda input, weight, *args: _flops(input.numel(), weight.shape),
    bytes=lambda *args: nbytes(*args[:6], transpose_fake(*args)),
    folds=(
        Fold({"input": 0, "residual": 0, "output_size": 0}, (0,)),
        Fold({**BY_COLUMN, "input": 1, "weight": 0, "output_size": 1, "groups": 0}, (1,)),
    ),
    product=True,
)
CONV_TRANSPOSE2D_SAVING = saving(CONV_TRANSPOSE2D)

CONV2D_WEIGHT_GRAD = Op(
    name="conv2d_weight_grad",
    schema=f"(Tensor grad, Tensor input, SymInt[4] weight_size, {WINDOW}, bool channels_last, "
    "bool wide=False) -> Tensor",
    fake=weight_grad_fake,
    launcher=weight_grad_launch,
    aten=weight_grad_aten,
    flops=lambda grad, input, weight_size, *args: _flops(grad.numel(), weight_size),
    bytes=lambda grad, input, weight_size, *args: (
        _seen(input, weight_size[2:], grad.shape[2:]) + nbytes(grad, weight_grad_fake(grad, input, weight_size, *args))
    ),
    folds=(Fold({"grad": 1, "input": 1, "weight_size": 0, "groups": 0}, (0,)),),
    product=True,
)

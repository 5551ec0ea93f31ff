"""Maximum unpooling: values put back where a pooling found them; and its gradient.

    y[n,c, indices[n,c,p,q]] = x[n,c,p,q],  0 elsewhere                indices: h·W + w
    dx[n,c,p,q] = dy[n,c, indices[n,c,p,q]]

Where several values have one place, the last in scan order (p, then q) stays, as in a loop over them. In two passes,
which any order of the programs leads to the same result, since a maximum of integers does not depend on it:

    claim:   owner[n,c,h,w] = max p·Q + q over all (p,q) whose place is (h,w), −1 without one
    settle:  y[n,c,h,w] = x[n,c, owner], 0 without one

The gradient is read by every value, also by those that were written over: as in PyTorch.
"""

from collections.abc import Sequence

import torch

from ..base.lang import device_function, tl, triton
from ..core.device import offsets, offsets_each, strip
from ..core.op import Fold, Op, channels_last, check_tensors, index_type, nbytes, new, nhwc
from ..streaming.strips import stream
from ..window import convolution, pooling


@device_function
def at_place(at, c, place, width, strides):
    """Offsets of the elements that stand at places h·W + w of the same images and channels. [pixels, channels]"""
    place = place.to(c.dtype)
    return offsets_each(at[0], place // width, place % width, c, strides)


@triton.jit
def claim_kernel(
    indices, owner, indices_strides, owner_strides, image, size, channels,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """owner[place] = max of the positions p·Q + q that name it."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    place = tl.load(indices + offsets(at, c, indices_strides), mask=exists, other=-1)
    exists = exists & (place >= 0) & (place < image[0] * image[1])
    position = tl.broadcast_to((at[1] * size[2] + at[2]).to(tl.int32)[:, None], [PIXELS, CHANNELS])
    tl.atomic_max(owner + at_place(at, c, place, image[1], owner_strides), position, mask=exists, sem="relaxed")


@triton.jit
def settle_kernel(
    x, owner, y, x_strides, owner_strides, y_strides, pooled, size, channels,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = x of the owner, 0 without one."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    position = tl.load(owner + offsets(at, c, owner_strides), mask=exists, other=-1).to(INDEX)
    owned = exists & (position >= 0)
    value = tl.load(x + at_place(at, c, position, pooled[1], x_strides), mask=owned, other=0.0)
    tl.store(y + offsets(at, c, y_strides), value, mask=exists)


@triton.jit
def at_indices_kernel(
    grad, indices, dx, grad_strides, indices_strides, dx_strides, image, size, channels,
    ACC: tl.constexpr, INDEX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx = grad at its place."""
    at, c, exists = strip(size, channels, INDEX, PIXELS, CHANNELS)
    place = tl.load(indices + offsets(at, c, indices_strides), mask=exists, other=-1)
    inside = exists & (place >= 0) & (place < image[0] * image[1])
    value = tl.load(grad + at_place(at, c, place, image[1], grad_strides), mask=inside, other=0.0)
    tl.store(dx + offsets(at, c, dx_strides), value, mask=exists)


def check_indices(indices: torch.Tensor, values: torch.Tensor, shape: Sequence[int]) -> None:
    """Errors: TypeError, RuntimeError unless these are int64 places of this shape, where the values are."""
    if not isinstance(indices, torch.Tensor):
        raise TypeError(f"indices must be a torch.Tensor, but got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise RuntimeError(f"indices must have dtype torch.int64, but got {indices.dtype}")
    if indices.device != values.device:
        raise RuntimeError(f"indices are on {indices.device}, but their values on {values.device}; move one with .to()")
    convolution.same_shape("indices", indices.shape, shape)


def unpool_fake(input, indices, output_size):
    check_tensors(input=input)
    check_indices(indices, input, input.shape)
    pooling.check_images(input.shape)
    return new((*input.shape[:2], *output_size), input, channels_last(input))


def unpool_launch(y, input, indices, output_size):
    if input.numel() == 0:
        y.zero_()
        return
    height, width = output_size
    inside = ((indices >= 0) & (indices < height * width)).all()
    torch._assert_async(inside, f"indices must lie in the output of {height} x {width}: from 0 to {height * width - 1}")
    owner = new(y.shape, y, channels_last(y), torch.int32).fill_(-1)
    index = index_type(input, indices, y)
    stream(claim_kernel, input, indices, owner, nhwc(indices), nhwc(owner), (height, width), INDEX=index)
    stream(
        settle_kernel, y, input, owner, y, nhwc(input), nhwc(owner), nhwc(y), tuple(input.shape[2:]), INDEX=index
    )  # fmt: skip


def unpool_aten(input, indices, output_size):
    return torch.ops.aten.max_unpool2d(input.contiguous(), indices.contiguous(), output_size)


def unpool_grad_fake(grad, indices):
    check_tensors(grad=grad)
    check_indices(indices, grad, (*grad.shape[:2], *indices.shape[2:]))
    return new(indices.shape, grad, channels_last(indices))


def unpool_grad_launch(dx, grad, indices):
    stream(
        at_indices_kernel, dx, grad, indices, dx, nhwc(grad), nhwc(indices), nhwc(dx), tuple(grad.shape[2:]),
        INDEX=index_type(grad, indices, dx),
    )  # fmt: skip


def unpool_grad_aten(grad, indices):
    return grad.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


MAX_UNPOOL2D = Op(
    name="max_unpool2d",
    schema="(Tensor input, Tensor indices, SymInt[2] output_size) -> Tensor",
    fake=unpool_fake,
    launcher=unpool_launch,
    aten=unpool_aten,
    flops=lambda input, *args: input.numel(),
    bytes=lambda *args: nbytes(*args[:2], unpool_fake(*args)),
    folds=(Fold({"input": 0, "indices": 0}, (0,)),),
)

MAX_UNPOOL2D_INPUT_GRAD = Op(
    name="max_unpool2d_input_grad",
    schema="(Tensor grad, Tensor indices) -> Tensor",
    fake=unpool_grad_fake,
    launcher=unpool_grad_launch,
    aten=unpool_grad_aten,
    flops=lambda grad, indices: indices.numel(),
    bytes=lambda *args: nbytes(args[1]) + 2 * nbytes(unpool_grad_fake(*args)),
    folds=(Fold({"grad": 0, "indices": 0}, (0,)),),
)

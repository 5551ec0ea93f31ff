"""Maximum unpooling: values put back where a pooling found them; and its gradient.

    y[n,c, indices[n,c,p,q]] = x[n,c,p,q],  0 elsewhere                indices: h·W + w
    dx[n,c,p,q] = dy[n,c, indices[n,c,p,q]]

Where several values have one place, the last in scan order (p, then q) stays, as in a loop over them. Two passes find
it. Their result does not depend on the order of the programs, since a maximum of integers doesn't:

    claim:   owner[n,c,h,w] = max p·Q + q over all (p,q) whose place is (h,w), −1 without one
    settle:  y[n,c,h,w] = x[n,c, owner], 0 without one

The gradient is read by every value, also by those that were written over: as in PyTorch.
"""

from collections.abc import Sequence

import torch

from ..base.lang import device_function, tl, triton
from ..core.images import Images, Size, offsets, offsets_each
from ..core.op import Op, VmapRule
from ..core.tensors import channels_last, check_tensors, index_type, nbytes, new
from ..streaming.strips import stream, strip
from ..window import pooling
from ..window.arguments import same_shape


@device_function
def at_place(at, c, place, images, ROWS: tl.constexpr):
    """Return offsets of the elements at places h·W + w of the same images and channels. [pixels, channels]"""
    place = place.to(c.dtype)
    if ROWS:
        return offsets_each(at.n, place // images.size.w, place % images.size.w, c, images.strides)
    else:
        return offsets_each(at.n, tl.zeros_like(place), place, c, images.strides)


@triton.jit
def claim_kernel(indices, owner, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """owner[place] = max of the positions p·Q + q that name it."""
    PIXELS: tl.constexpr = BLOCK.pixels
    CHANNELS: tl.constexpr = BLOCK.channels
    s = strip(indices.size, channels, BLOCK)
    place = tl.load(indices.data + offsets(s.at, s.c, indices.strides), mask=s.mask, other=-1)
    mask = s.mask & (place >= 0) & (place < owner.size.h * owner.size.w)
    position = tl.broadcast_to((s.at.h * indices.size.w + s.at.w).to(tl.int32)[:, None], [PIXELS, CHANNELS])
    tl.atomic_max(owner.data + at_place(s.at, s.c, place, owner, ROWS), position, mask=mask, sem="relaxed")


@triton.jit
def settle_kernel(x, owner, y, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x of the owner, 0 without one."""
    INDEX: tl.constexpr = BLOCK.index
    s = strip(y.size, channels, BLOCK)
    position = tl.load(owner.data + offsets(s.at, s.c, owner.strides), mask=s.mask, other=-1).to(INDEX)
    owned = s.mask & (position >= 0)
    value = tl.load(x.data + at_place(s.at, s.c, position, x, ROWS), mask=owned, other=0.0)
    tl.store(y.data + offsets(s.at, s.c, y.strides), value, mask=s.mask)


@triton.jit
def at_indices_kernel(grad, indices, dx, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """dx = grad at its place."""
    s = strip(dx.size, channels, BLOCK)
    place = tl.load(indices.data + offsets(s.at, s.c, indices.strides), mask=s.mask, other=-1)
    inside = s.mask & (place >= 0) & (place < grad.size.h * grad.size.w)
    value = tl.load(grad.data + at_place(s.at, s.c, place, grad, ROWS), mask=inside, other=0.0)
    tl.store(dx.data + offsets(s.at, s.c, dx.strides), value, mask=s.mask)


def in_rows(*tensors: torch.Tensor) -> tuple[tuple[Images, ...], bool]:
    """Return tensors as images, of one row each if rows lie one after the other in all of them; and whether they have
    several rows, which a place must be divided by."""
    images = [Images.of(t) for t in tensors]
    if any(it.size.h > 1 and it.strides.h != it.size.w * it.strides.w for it in images):
        return tuple(images), True
    return tuple(it._replace(size=Size(it.size.n, 1, it.size.h * it.size.w)) for it in images), False


def check_indices(indices: torch.Tensor, values: torch.Tensor, shape: Sequence[int]) -> None:
    """Errors: TypeError, RuntimeError unless these are int64 places of this shape, where the values are."""
    if not isinstance(indices, torch.Tensor):
        raise TypeError(f"indices must be a torch.Tensor, but got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise RuntimeError(f"indices must have dtype torch.int64, but got {indices.dtype}")
    if indices.device != values.device:
        raise RuntimeError(f"indices are on {indices.device}, but their values on {values.device}; move one with .to()")
    same_shape("indices", indices.shape, shape)


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
    (x, places, owners, pixels), rows = in_rows(input, indices, owner, y)
    stream(claim_kernel, input, places, owners, index=index, ROWS=rows)
    stream(settle_kernel, y, x, owners, pixels, index=index, ROWS=rows)


def unpool_aten(input, indices, output_size):
    return torch.ops.aten.max_unpool2d(input.contiguous(), indices.contiguous(), output_size)


def unpool_grad_fake(grad, indices):
    check_tensors(grad=grad)
    check_indices(indices, grad, (*grad.shape[:2], *indices.shape[2:]))
    return new(indices.shape, grad, channels_last(indices))


def unpool_grad_launch(dx, grad, indices):
    images, rows = in_rows(grad, indices, dx)
    stream(at_indices_kernel, dx, *images, index=index_type(grad, indices, dx), ROWS=rows)


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
    vmap=(VmapRule({"input": 0, "indices": 0}, (0,)),),
)

MAX_UNPOOL2D_INPUT_GRAD = Op(
    name="max_unpool2d_input_grad",
    schema="(Tensor grad, Tensor indices) -> Tensor",
    fake=unpool_grad_fake,
    launcher=unpool_grad_launch,
    aten=unpool_grad_aten,
    flops=lambda grad, indices: indices.numel(),
    bytes=lambda *args: nbytes(args[1]) + 2 * nbytes(unpool_grad_fake(*args)),
    vmap=(VmapRule({"grad": 0, "indices": 0}, (0,)),),
)

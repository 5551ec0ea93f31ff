"""The locally connected layer: a convolution whose pixels have weights of their own."""

import torch

from .. import autograd
from ..kernels.core.tensors import channels_last
from ..kernels.matrix.locally_connected2d import LOCALLY_CONNECTED2D
from ..kernels.window import arguments
from .calling import Activation, Ints, overridable
from .images import image, like, optional_image
from .operands import Operands, WindowArguments


@overridable
def locally_connected2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: Activation = None,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """2-D locally connected layer: a convolution in which each output pixel has weights of its own, and what follows it
    in the same kernel.

    z[n,k,p,q] = scale[k] · Σ_{c,r,s} x[n, c, p·stride − padding + r·dilation, q·stride − padding + s·dilation]
                 · w[p,q,k,r,s,c] + b[k] + residual[n,k,p,q], or with b[p,q,k] for b[k]
    y = act(z)

    Equivalent to, with groups=1: torch.einsum("ntl,lkt->nkl", torch.nn.functional.unfold(input, (R, S), dilation,
    padding, stride), weight.permute(0, 1, 2, 5, 3, 4).reshape(P * Q, K, -1)).unflatten(2, (P, Q)), without unfold's
    copies

    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (P, Q, K, R, S, C/groups) for an output of P x Q pixels; its memory in this order is the fast one
    bias: (K,), or (P, Q, K); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input is
    activation, scale, residual, dtypes, float32's precision and errors as in `conv2d`
    Source: LeCun, "Generalization and network design strategies", 1989; https://github.com/pytorch/pytorch/issues/499.
    """
    given = Operands.of(input, weight, bias, activation, scale, residual).checked()
    input, weight = given.input, given.weight
    if weight.dim() != 6:
        raise RuntimeError(f"weight must be 6-D (P, Q, K, R, S, C/groups), but got shape {tuple(weight.shape)}")
    sliding = WindowArguments(stride, padding, dilation, groups, "zeros").window((weight.shape[3], weight.shape[4]), 2)
    images = image("input", input, 2)
    residual = optional_image("residual", given.residual, 2)
    operands = (images, weight, given.bias, given.scale, residual, given.slopes(weight.shape[2]))
    groups = arguments.integer("groups", groups)
    args = (*operands, sliding.stride, sliding.pads, sliding.dilation, groups, given.activation)
    if given.on_aten:
        last = channels_last(LOCALLY_CONNECTED2D.fake(*args))  # which checks them
        layout = torch.channels_last if last else torch.contiguous_format
        return like(LOCALLY_CONNECTED2D.aten(*args).contiguous(memory_format=layout), input, 2)
    return like(autograd.locally_connected2d(*args), input, 2)

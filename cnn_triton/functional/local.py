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

    x[n,k,p,q] = Σ_{c,r,s} input[n, c, p·stride − padding + r·dilation, ...] · w[p,q,k,r,s,c]
    y = act(scale[k] · x + b[k] + residual), or with b[p,q,k]

    Equivalent to: torch.einsum of torch.nn.functional.unfold(input, (R, S), dilation, padding, stride) and the weight,
    with unfold's copies, which are never formed

    input: (N, C, H, W) or (C, H, W); channels_last is the fast memory format, any strides are right
    weight: (P, Q, K, R, S, C/groups) for an output of P x Q pixels; its memory in this order is the fast one
    bias: (K,), or (P, Q, K); padding: int, pair, 'same' or 'valid'
    returns: (N, K, P, Q) or (K, P, Q), channels_last if input is
    activation, scale, residual, dtypes, float32's precision and errors as in `conv2d`
    Source: LeCun, "Generalization and network design strategies", 1989; PyTorch's issue 499.
    """
    given = Operands.of(input, weight, bias, activation, scale, residual).checked()
    input, weight = given.input, given.weight
    if weight.dim() != 6:
        raise RuntimeError(f"weight must be 6-D (P, Q, K, R, S, C/groups), but got shape {tuple(weight.shape)}")
    sliding = WindowArguments(stride, padding, dilation, groups, "zeros").window((weight.shape[3], weight.shape[4]), 2)
    images = image("input", input, 2)
    beside = optional_image("residual", given.residual, 2)
    operands = (images, weight, given.bias, given.scale, beside, given.slopes(weight.shape[2]))
    groups = arguments.integer("groups", groups)
    args = (*operands, sliding.stride, sliding.pads, sliding.dilation, groups, given.activation)
    if given.on_aten:
        last = channels_last(LOCALLY_CONNECTED2D.fake(*args))  # which checks them
        layout = torch.channels_last if last else torch.contiguous_format
        return like(LOCALLY_CONNECTED2D.aten(*args).contiguous(memory_format=layout), input, 2)
    return like(autograd.locally_connected2d(*args), input, 2)

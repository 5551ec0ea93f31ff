"""What runs in a converted model in place of several layers: one kernel, or the layers one by one where it can't be."""

import torch
import torch.nn.functional as F
from torch.nn.modules.module import _has_any_global_hook

from . import functional, nn
from .dispatch import runs_kernels
from .kernels.precision import accumulator

__all__ = ["convolution", "dense", "folded", "hooked", "is_conv", "is_linear", "is_norm"]


def is_conv(module: torch.nn.Module) -> bool:
    """Is it a 2-D convolution of ours and nothing more?"""
    return isinstance(module, nn.Conv2d) and type(module)._function is functional.conv2d


def is_linear(module: torch.nn.Module) -> bool:
    """Is it a linear layer of ours and nothing more?"""
    return isinstance(module, nn.Linear) and type(module)._function is functional.linear


def is_norm(module: torch.nn.Module) -> bool:
    """Is it a batch normalisation that, in eval mode, is a scale and a shift of each channel?"""
    return type(module) is torch.nn.BatchNorm2d


def hooked(module: torch.nn.Module) -> bool:
    """Does anyone want to see what goes into this module, or comes out of it?"""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or bool(_has_any_global_hook())


def folded(
    weight: torch.Tensor, bias: torch.Tensor | None, norm: torch.nn.BatchNorm2d
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight and the bias of a convolution that is followed by a batch normalisation in eval mode.

        norm(conv(x, w) + b) = conv(x, w·s) + (b − mean)·s + shift        s = scale / √(var + eps)

    Computed at every call, of what is there then: gradients of all of it follow.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = accumulator(weight.dtype)
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -mean * scale if norm.bias is None else torch.addcmul(norm.bias.to(wide), mean.to(wide), scale, value=-1)
    return (weight * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def convolution(
    input: torch.Tensor,
    conv: torch.nn.Module,
    norm: torch.nn.Module | bool,
    relu: torch.nn.Module | bool,
) -> torch.Tensor:
    """relu(norm(conv(input))): one kernel where the norm is in eval mode and no hook wants to see what is between.

    norm: False if there is none; relu: False if there is none, True for one that is no module
    """
    whole = is_conv(conv) and _in_one(input, conv, norm, relu)
    if isinstance(norm, torch.nn.Module):
        whole = whole and is_norm(norm) and not norm.training and norm.running_var is not None
    if not whole:
        y: torch.Tensor = conv(input)
        return _relu(norm(y) if isinstance(norm, torch.nn.Module) else y, relu)
    weight, bias = conv.weight, conv.bias
    if norm:
        weight, bias = folded(weight, bias, norm)  # type: ignore[arg-type]
    function = functional.conv2d_relu if relu else functional.conv2d
    window = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return function(input, weight, bias, *window, padding_mode=conv.padding_mode)  # type: ignore[arg-type]


def dense(input: torch.Tensor, layer: torch.nn.Module, relu: torch.nn.Module | bool) -> torch.Tensor:
    """relu(layer(input)): one kernel where no hook wants to see what is between."""
    if not (is_linear(layer) and _in_one(input, layer, relu)):
        return _relu(layer(input), relu)
    return functional.linear_relu(input, layer.weight, layer.bias)  # type: ignore[arg-type]


def _in_one(input: torch.Tensor, layer: torch.nn.Module, *others: torch.nn.Module | bool) -> bool:
    """May these run as one kernel here? Modules may have been replaced, and got hooks, since they were converted."""
    modules = [layer, *(other for other in others if isinstance(other, torch.nn.Module))]
    known = all(type(other) in (torch.nn.ReLU, torch.nn.BatchNorm2d) for other in modules[1:])
    return known and not any(map(hooked, modules)) and runs_kernels(input.device)


def _relu(y: torch.Tensor, relu: torch.nn.Module | bool) -> torch.Tensor:
    if isinstance(relu, torch.nn.Module):
        return relu(y)  # type: ignore[no-any-return]
    return F.relu(y) if relu else y

"""What runs in a converted model in place of several layers: one kernel, or the layers one by one where it can't be.

A chain is a convolution or a linear layer and what follows it. Each of its links is a module, or a function's words:
its name and its arguments but the input, ("leaky_relu", 0.1). A module's words are read at every call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import functional, nn
from .dispatch import runs_kernels
from .kernels import activations, geometry
from .modules import by_batch, counted, hooked, statistics

__all__ = ["Link", "chain", "follows", "gelu", "is_conv", "is_linear", "pool", "unfit", "watched", "words"]

Link = torch.nn.Module | tuple[Any, ...]

# Pools, and the names of their arguments but the input.
_POOLS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
# Other arguments of pools, what they must be in a convolution's kernel, and what is said of the others.
_PLAIN = (
    ("padding", 0, "it pads"), ("dilation", 1, "its windows have holes"), ("ceil_mode", False, "it keeps ragged edges"),
    ("return_indices", False, "it returns indices"), ("divisor_override", None, "it has a divisor of its own"),
)  # fmt: skip


_WORDS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    torch.nn.BatchNorm2d: lambda m: ("batch_norm", m) if (m.running_mean is None) == (m.running_var is None) else (),
    torch.nn.ReLU: lambda m: ("relu",),
    torch.nn.ReLU6: lambda m: ("hardtanh", m.min_val, m.max_val),
    torch.nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    torch.nn.Hardtanh: lambda m: ("hardtanh", m.min_val, m.max_val),
    torch.nn.GELU: lambda m: gelu(m.approximate),
    torch.nn.SiLU: lambda m: ("silu",),
    torch.nn.Hardswish: lambda m: ("hardswish",),
    torch.nn.Hardsigmoid: lambda m: ("hardsigmoid",),
    torch.nn.Mish: lambda m: ("mish",),
    torch.nn.ELU: lambda m: ("elu", m.alpha),
    torch.nn.SELU: lambda m: ("selu",),
    torch.nn.Softplus: lambda m: ("softplus", m.beta, m.threshold),
    torch.nn.Softsign: lambda m: ("softsign",),
    torch.nn.LogSigmoid: lambda m: ("log_sigmoid",),
    torch.nn.Sigmoid: lambda m: ("sigmoid",),
    torch.nn.Tanh: lambda m: ("tanh",),
    **dict.fromkeys((torch.nn.MaxPool2d, nn.MaxPool2d), lambda m: _pool("max_pool2d", m)),
    **dict.fromkeys((torch.nn.AvgPool2d, nn.AvgPool2d), lambda m: _pool("avg_pool2d", m)),
}


def _pool(word: str, module: torch.nn.Module) -> tuple[Any, ...]:
    return pool(word, *(getattr(module, name) for name in _POOLS[word]))


def pool(word: str, *given: Any, **named: Any) -> tuple[Any, ...]:
    """The words of a pool."""
    return word, dict(zip(_POOLS[word], given, strict=False)) | named


def gelu(approximate: str) -> tuple[str, ...]:
    """The words of GELU."""
    return ("gelu" if approximate == "none" else f"gelu_{approximate}",)


def is_conv(module: torch.nn.Module) -> bool:
    """Is it a 2-D convolution of ours and nothing more?"""
    kind: Any = type(module)
    known = isinstance(module, nn.Conv2d) and kind._function is functional.conv2d
    return known and kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward


def is_linear(module: torch.nn.Module) -> bool:
    """Is it a linear layer of ours and nothing more?"""
    kind: Any = type(module)
    return isinstance(module, nn.Linear) and kind._function is functional.linear and kind.forward is nn.Linear.forward


def watched(link: Link) -> bool:
    """Does anyone want to see what goes into this link, or comes out of it?"""
    return isinstance(link, torch.nn.Module) and hooked(link)


def words(link: Link) -> tuple[Any, ...]:
    """A link's words; none if it is no layer that we know."""
    if isinstance(link, tuple):
        return link
    if not isinstance(link, torch.nn.Module) or "forward" in vars(link):
        return ()
    if is_conv(link) or is_linear(link):
        return "conv2d" if is_conv(link) else "linear", link
    known = _WORDS.get(type(link))
    return known(link) if known else ()


def follows(before: Sequence[tuple[Any, ...]], step: tuple[Any, ...]) -> bool:
    """May these words come next in a kernel? A convolution, its normalisation, an activation; after ReLU, a pool, but
    not where the normalisation is by the batch's own statistics: it is a second kernel that normalises then."""
    if not before or not step:
        return step[:1] in (("conv2d",), ("linear",))
    last = before[-1][0]
    if step[0] == "batch_norm":
        return bool(last == "conv2d")
    if step[0] in _POOLS:
        own = any(word == "batch_norm" and by_batch(*rest) for word, *rest in before)
        return before[0][0] == "conv2d" and last == "relu" and not own
    return last in ("conv2d", "linear", "batch_norm") and step[0] not in ("conv2d", "linear")


def unfit(step: tuple[Any, ...]) -> str:
    """Why words that may come next can't be in a kernel all the same, for their arguments; nothing if they can."""
    try:
        if step[0] in _POOLS:
            return _unfit_pool(**step[1])
        if step[0] != "batch_norm":
            activations.spell(step)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def _unfit_pool(kernel_size: Any, stride: Any = None, **others: Any) -> str:
    size = geometry.pair("kernel_size", kernel_size, 1)
    step = size if stride in (None, (), []) else geometry.pair("stride", stride, 1)
    if step != size:
        return (
            "its windows overlap" if any(a < b for a, b in zip(step, size, strict=True)) else "its windows leave gaps"
        )
    for name, plain, why in _PLAIN:
        if others.get(name, plain) not in (plain, (plain, plain), [plain, plain]):
            return why
    return ""


def chain(input: torch.Tensor, *links: Link) -> torch.Tensor:
    """The links, one after the other; in the first one's kernel as many as fit, those left over one by one.

    Modules may have been replaced, changed, and got hooks, since they were converted: it is all looked at here.
    """
    steps: list[tuple[Any, ...]] = []
    if runs_kernels(input.device):
        for link in links:
            step = () if watched(link) else words(link)
            if not follows(steps, step) or (steps and unfit(step)):
                break
            steps.append(step)
    if len(steps) > 1:
        input = _kernel(input, steps)
    for link in links[len(steps) if len(steps) > 1 else 0 :]:
        input = _alone(input, link) if isinstance(link, tuple) else link(input)
    return input


def _alone(input: torch.Tensor, step: tuple[Any, ...]) -> Any:
    if step[0] in _POOLS:
        return getattr(functional, step[0])(input, **step[1])
    return activations.reference(activations.spell(step), input)


def _kernel(input: torch.Tensor, steps: Sequence[tuple[Any, ...]]) -> torch.Tensor:
    """What these words say, in the first one's kernel."""
    (word, layer), *after = steps
    pooling = after.pop()[1] if after[-1][0] in _POOLS else None
    norm = after.pop(0)[1] if after[0][0] == "batch_norm" else None
    activation = after[0] if after else None
    if word == "linear":
        return functional.linear(input, layer.weight, layer.bias, activation=activation)
    if norm is not None:
        norm._check_input_dim(input)
    window: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    how: dict[str, Any] = {"padding_mode": layer.padding_mode}
    if pooling is not None:
        bias, scale = layer.bias, None
        if norm is not None:
            known = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
            scale, bias = functional.norm_scale(bias, *known)
        average = steps[-1][0] == "avg_pool2d"
        pooled = functional.conv2d_relu_avg_pool2d if average else functional.conv2d_relu_max_pool2d
        how |= {"pool_size": pooling["kernel_size"], "scale": scale}
        return pooled(input, layer.weight, bias, *window, **how)
    how["activation"] = activation
    if norm is None:
        return functional.conv2d(input, layer.weight, layer.bias, *window, **how)
    y = functional.conv2d_batch_norm(input, layer.weight, layer.bias, *window, **how | statistics(norm))
    counted(norm)
    return y

"""What is measured: layers of ResNet-50, VGG-16, LeNet-5 and the demo, in parts, and a whole training step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from cnn_triton import functional
from cnn_triton.models import LeNet5

Call = Callable[..., Any]
LAST = torch.channels_last


class Problem(NamedTuple):
    """A function of ours and PyTorch's on the same tensors, and what of it is timed.

    mode: "forward" without gradients; "training", forward and backward; or "backward" alone
    wrt: which of the tensors' gradients are taken
    """

    ours: Call
    theirs: Call
    tensors: tuple[torch.Tensor, ...]
    mode: str
    wrt: tuple[int, ...]


class Layer(NamedTuple):
    """A convolution layer: input (n, c, h, h), k outputs, window, stride, padding."""

    n: int
    c: int
    h: int
    k: int
    size: int
    stride: int
    padding: int


CONVS = {
    "resnet50 conv1": Layer(32, 3, 224, 64, 7, 2, 3),
    "resnet50 1x1 64-256": Layer(32, 64, 56, 256, 1, 1, 0),
    "resnet50 3x3 64": Layer(32, 64, 56, 64, 3, 1, 1),
    "resnet50 3x3 128 stride 2": Layer(32, 128, 56, 128, 3, 2, 1),
    "resnet50 3x3 256": Layer(32, 256, 14, 256, 3, 1, 1),
    "vgg16 3x3 256": Layer(32, 256, 56, 256, 3, 1, 1),
    "lenet5 conv2": Layer(32, 6, 14, 16, 5, 1, 0),
}
POOLS = {"vgg16 2x2": (32, 64, 224, 2, 2, 0), "resnet50 3x3 stride 2": (32, 64, 112, 3, 2, 1)}
LINEARS = {"vgg16 fc2": (32, 4096, 4096), "resnet50 fc": (32, 2048, 1000)}
FEW = ("resnet50 1x1 64-256", "resnet50 3x3 64", "vgg16 3x3 256", "vgg16 2x2", "vgg16 fc2")  # for fp16 and TF32

# torch.compile tunes each of its kernels for tens of seconds: only these are worth the wait.
COMPILED = (
    "bf16 conv2d_relu resnet50 3x3 64, forward",
    "bf16 max_pool2d vgg16 2x2, forward",
    "bf16 linear_relu vgg16 fc2, forward",
    "bf16 LeNet5 256x3x64x64, training",
)
CONV_MODES = ("forward", "training", "input grad", "weight grad")


def conv(layer: Layer, mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """conv2d_relu forward or training; or one gradient of the bare convolution, alone."""
    n, c, h, k, size, stride, padding = layer
    x = torch.randn(n, c, h, h, device=device).to(dtype).to(memory_format=LAST)
    w = (torch.randn(k, c, size, size, device=device) / (c * size * size) ** 0.5).to(dtype).to(memory_format=LAST)
    if mode in ("input grad", "weight grad"):
        wrt = (0,) if mode == "input grad" else (1,)
        ours = lambda x, w: functional.conv2d(x, w, None, stride, padding)  # noqa: E731
        return Problem(ours, lambda x, w: F.conv2d(x, w, None, stride, padding), (x, w), "backward", wrt)
    b = torch.randn(k, device=device).to(dtype)
    return Problem(
        lambda x, w, b: functional.conv2d_relu(x, w, b, stride, padding),
        lambda x, w, b: F.relu(F.conv2d(x, w, b, stride, padding)),
        (x, w, b),
        mode,
        (0, 1, 2),
    )


def pool(kind: str, shape: tuple[int, ...], mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """max_pool2d or avg_pool2d, forward or backward."""
    n, c, h, size, stride, padding = shape
    x = torch.randn(n, c, h, h, device=device).to(dtype).to(memory_format=LAST)
    ours, theirs = getattr(functional, f"{kind}_pool2d"), getattr(F, f"{kind}_pool2d")
    return Problem(
        lambda x: ours(x, size, stride, padding), lambda x: theirs(x, size, stride, padding), (x,), mode, (0,)
    )


def dense(shape: tuple[int, int, int], mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """linear_relu, forward or training."""
    m, c, k = shape
    x, w = torch.randn(m, c, device=device).to(dtype), (torch.randn(k, c, device=device) / c**0.5).to(dtype)
    b = torch.randn(k, device=device).to(dtype)
    return Problem(functional.linear_relu, lambda x, w, b: F.relu(F.linear(x, w, b)), (x, w, b), mode, (0, 1, 2))


def network(shape: tuple[int, int, int], width: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """A training step's forward and backward of the LeNet-5-like network; PyTorch's on the same weights."""
    batch, channels, size = shape
    model = LeNet5(channels, (size, size), 10, width).to(device, dtype, memory_format=LAST)
    names, weights = zip(*model.named_parameters(), strict=True)
    x = torch.randn(batch, channels, size, size, device=device).to(dtype).to(memory_format=LAST)

    def ours(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))

    def theirs(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        w = dict(zip(names, weights, strict=True))
        for i in ("0", "2"):
            x = F.max_pool2d(F.relu(F.conv2d(x, w[f"features.{i}.weight"], w[f"features.{i}.bias"], padding=1)), 2)
        x = x.flatten(1)
        for i in ("0", "1"):
            x = F.relu(F.linear(x, w[f"classifier.{i}.weight"], w[f"classifier.{i}.bias"]))
        return F.linear(x, w["classifier.2.weight"], w["classifier.2.bias"])

    tensors = (x, *(w.detach() for w in weights))
    return Problem(ours, theirs, tensors, "training", tuple(range(1, len(tensors))))


def _layers(
    prefix: str, convs: dict, dense_layers: dict, pools: dict, modes: tuple[str, ...], *to: Any
) -> Iterator[tuple[str, Call]]:
    for mode in modes:
        for name, layer in convs.items():
            what = "conv2d_relu" if mode in ("forward", "training") else "conv2d"
            yield f"{prefix} {what} {name}, {mode}", lambda a=(layer, mode, *to): conv(*a)
    for mode in ("forward", "training"):
        for name, rows in dense_layers.items():
            yield f"{prefix} linear_relu {name}, {mode}", lambda a=(rows, mode, *to): dense(*a)
    for mode in ("forward", "backward"):
        for kind in ("max", "avg"):
            for name, shape in pools.items():
                yield f"{prefix} {kind}_pool2d {name}, {mode}", lambda a=(kind, shape, mode, *to): pool(*a)


def _demo(batch: int, device: torch.device) -> Iterator[tuple[str, Call]]:
    convs = {"demo conv1": Layer(batch, 1, 8, 16, 3, 1, 1), "demo conv2": Layer(batch, 16, 4, 32, 3, 1, 1)}
    dense_layers = {f"demo fc{i}": (batch, c, k) for i, (c, k) in enumerate([(128, 120), (120, 84), (84, 10)], 1)}
    pools = {"demo pool1": (batch, 16, 8, 2, 2, 0), "demo pool2": (batch, 32, 4, 2, 2, 0)}
    step = ((batch, 1, 8), 16, torch.float32, device)
    yield f"fp32 LeNet5 {batch}x1x8x8, training", lambda: network(*step)
    yield from _layers("fp32", convs, dense_layers, pools, CONV_MODES, torch.float32, device)


def _gpu(device: torch.device) -> Iterator[tuple[str, Call]]:
    def few(layers: dict) -> dict:
        return {name: layer for name, layer in layers.items() if name in FEW}

    step = ((256, 3, 64), 64, torch.bfloat16, device)
    yield "bf16 LeNet5 256x3x64x64, training", lambda: network(*step)
    yield from _layers("bf16", CONVS, LINEARS, POOLS, CONV_MODES, torch.bfloat16, device)
    yield from _layers("tf32", few(CONVS), few(LINEARS), few(POOLS), CONV_MODES, torch.float32, device)
    # pools read bytes: float16's are bfloat16's
    yield from _layers("fp16", few(CONVS), few(LINEARS), {}, ("forward", "training"), torch.float16, device)


def problems(device: torch.device, batch: int = 128) -> dict[str, Callable[[], Problem]]:
    """Makers of the problems by name: on a GPU real layers in bf16, TF32 and fp16; else the demo's, at this batch.

    The first word of a name is the arithmetic, and names the ceiling that its rate is compared with.
    """
    return dict(_gpu(device) if device.type == "cuda" else _demo(batch, device))

"""What is measured: layers of ResNet-50, VGG-16 and the demo's network, forward and training, and a training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from cnn_triton import functional
from cnn_triton.kernels import conv2d, geometry, linear, pool2d
from cnn_triton.models import LeNet5

Call = Callable[..., Any]
LAST = torch.channels_last


class Problem(NamedTuple):
    """A function of ours and PyTorch's on the same tensors; `flops` and `bytes` are the compulsory ones of a call."""

    name: str
    ours: Call
    theirs: Call
    tensors: tuple[torch.Tensor, ...]
    training: bool
    flops: int
    bytes: int


class Layer(NamedTuple):
    """A convolution layer: input (n, c, h, w), k outputs, window, stride, padding."""

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
}
POOLS = {"vgg16 2x2": (32, 64, 224, 2, 2, 0), "resnet50 3x3 stride 2": (32, 64, 112, 3, 2, 1)}
LINEARS = {"vgg16 fc2": (256, 4096, 4096), "resnet50 fc": (256, 2048, 1000)}

DEMO_CONVS = {"demo conv1": Layer(128, 1, 8, 16, 3, 1, 1), "demo conv2": Layer(128, 16, 4, 32, 3, 1, 1)}
DEMO_POOLS = {"demo pool1": (128, 16, 8, 2, 2, 0), "demo pool2": (128, 32, 4, 2, 2, 0)}
DEMO_LINEARS = {"demo fc1": (128, 128, 120), "demo fc2": (128, 120, 84), "demo fc3": (128, 84, 10)}


def conv(name: str, layer: Layer, training: bool, dtype: torch.dtype, device: torch.device) -> Problem:
    n, c, h, k, size, stride, padding = layer
    x = torch.randn(n, c, h, h, device=device).to(dtype).to(memory_format=LAST)
    w = (torch.randn(k, c, size, size, device=device) / (c * size * size) ** 0.5).to(dtype).to(memory_format=LAST)
    b = torch.randn(k, device=device).to(dtype)
    window = geometry.conv_window((size, size), stride, padding, 1)
    args = (x, w, b, window.stride, window.pads, window.dilation, 1, "relu")
    times = 3 if training else 1  # two gradients cost what the forward does, each
    return Problem(
        f"conv2d_relu {name}",
        lambda *t: functional.conv2d_relu(*t, stride, padding),
        lambda *t: F.relu(F.conv2d(*t, stride, padding)),
        (x, w, b),
        training,
        times * conv2d.CONV2D.flops(*args),
        times * conv2d.CONV2D.bytes(*args),
    )


def pool(
    kind: str, name: str, shape: tuple[int, ...], training: bool, dtype: torch.dtype, device: torch.device
) -> Problem:
    n, c, h, size, stride, padding = shape
    x = torch.randn(n, c, h, h, device=device).to(dtype).to(memory_format=LAST)
    window = ((size, size), (stride, stride), (padding, padding))
    if kind == "max":
        args = (x, *window, (1, 1), False, training, False)
        op, y = pool2d.MAX_POOL2D, pool2d.MAX_POOL2D.fake(x, *window, (1, 1), False, True, False)
        back = pool2d.MAX_POOL2D_INPUT_GRAD.bytes(y[0], y[1], x.shape, *window, (1, 1), True)
    else:
        args = (x, *window, False, True, None)
        op, y = pool2d.AVG_POOL2D, pool2d.AVG_POOL2D.fake(x, *window, False, True, None)
        back = pool2d.AVG_POOL2D_INPUT_GRAD.bytes(y, x.shape, *window, False, True, None, True)
    return Problem(
        f"{kind}_pool2d {name}",
        lambda t: getattr(functional, f"{kind}_pool2d")(t, size, stride, padding),
        lambda t: getattr(F, f"{kind}_pool2d")(t, size, stride, padding),
        (x,),
        training,
        op.flops(*args),
        op.bytes(*args) + (back if training else 0),
    )


def dense(name: str, shape: tuple[int, int, int], training: bool, dtype: torch.dtype, device: torch.device) -> Problem:
    m, c, k = shape
    x, w = torch.randn(m, c, device=device).to(dtype), (torch.randn(k, c, device=device) / c**0.5).to(dtype)
    b = torch.randn(k, device=device).to(dtype)
    times = 3 if training else 1
    return Problem(
        f"linear_relu {name}",
        functional.linear_relu,
        lambda *t: F.relu(F.linear(*t)),
        (x, w, b),
        training,
        times * linear.LINEAR.flops(x, w, b, "relu"),
        times * linear.LINEAR.bytes(x, w, b, "relu"),
    )


def network(batch: int, size: int, width: int, dtype: torch.dtype, device: torch.device) -> Problem:
    """A training step's forward and backward of the LeNet-5-like network; PyTorch's on the same weights."""
    torch.manual_seed(0)
    model = LeNet5(3, (size, size), 10, width).to(device, dtype, memory_format=LAST)
    names, weights = zip(*model.named_parameters(), strict=True)
    x = torch.randn(batch, 3, size, size, device=device).to(dtype).to(memory_format=LAST)

    def ours(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))

    def theirs(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        w = dict(zip(names, weights, strict=True))
        for i in ("0", "2"):
            x = F.max_pool2d(F.relu(F.conv2d(x, w[f"features.{i}.weight"], w[f"features.{i}.bias"], padding="same")), 2)
        x = x.flatten(1)
        for i in ("0", "1"):
            x = F.relu(F.linear(x, w[f"classifier.{i}.weight"], w[f"classifier.{i}.bias"]))
        return F.linear(x, w["classifier.2.weight"], w["classifier.2.bias"])

    tensors = (x, *(w.detach() for w in weights))
    return Problem(f"LeNet5 {batch}x3x{size}x{size} width {width}", ours, theirs, tensors, True, 0, 0)


def problems(device: torch.device) -> dict[str, Callable[[], Problem]]:
    """Makers of the problems by name: on a GPU real layers in bf16, fp16 and TF32; else the demo's, in float32."""
    made: dict[str, Callable[[], Problem]] = {}
    gpu = device.type == "cuda"
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if gpu else (torch.float32,):
        for training in (False, True):
            label = f"{str(dtype).removeprefix('torch.')} {'training' if training else 'forward'}"
            for name, layer in (CONVS if gpu else DEMO_CONVS).items():
                made[f"conv2d_relu {name} {label}"] = lambda a=(name, layer, training, dtype, device): conv(*a)
            for name, rows in (LINEARS if gpu else DEMO_LINEARS).items():
                made[f"linear_relu {name} {label}"] = lambda a=(name, rows, training, dtype, device): dense(*a)
            if dtype == torch.float16:
                continue  # pools read bytes: float16's are bfloat16's
            for name, shape in (POOLS if gpu else DEMO_POOLS).items():
                for kind in ("max", "avg"):
                    made[f"{kind}_pool2d {name} {label}"] = lambda a=(kind, name, shape, training, dtype, device): pool(
                        *a
                    )
    step = (256, 64, 64, torch.bfloat16, device) if gpu else (16, 8, 8, torch.float32, device)
    made["training step"] = lambda: network(*step)
    return made

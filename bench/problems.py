"""What is measured: the layers of bench/layers.py, pools, the demo's layers, in parts, and a whole training step.

Every layer is measured with bias and ReLU, whatever its network puts between: the figures compare like with like.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import cnn_triton
from cnn_triton import functional
from cnn_triton.classifier.models import LeNet5
from cnn_triton.kernels.matrix import conv_pool
from cnn_triton.ops import operator

from . import cudnn_graph
from .layers import BATCH, BY_NAME, LAYERS, Layer
from .layers import conv as conv_layer
from .networks import NETWORKS

Call = Callable[..., Any]
LAST = torch.channels_last


class Problem(NamedTuple):
    """A function of ours and PyTorch's on the same tensors, and what of it is timed.

    mode: "forward" without gradients; "training", forward and backward; or "backward" alone
    wrt: which of the tensors' gradients are taken
    others: further baselines of a forward pass, by name
    images: of a whole model's step, whose rate is to be said
    sample: makes the tensors that results are verified on, where all of `tensors` in float64 would be too many
    """

    ours: Call
    theirs: Call
    tensors: tuple[torch.Tensor, ...]
    mode: str
    wrt: tuple[int, ...]
    others: dict[str, Call] = {}  # noqa: RUF012
    images: int = 0
    sample: Callable[[], tuple[torch.Tensor, ...]] | None = None


POOLS = {"vgg16 2x2": (BATCH, 64, 224, 2, 2, 0), "resnet50 3x3 stride 2": (BATCH, 64, 112, 3, 2, 1)}
# VGG-16's convolutions that a 2 x 2 maximum follows.
POOLED = {
    f"vgg16 {k} @{h}": conv_layer(k, h, k, 3) for k, h in ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))
}
# Locally connected layers.
PLACED = {f"{layer.name} local": layer for layer in (conv_layer(32, 28, 32, 3), conv_layer(64, 14, 64, 3))}
BATCHES = (BATCH, 256)
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp16": torch.float16}
PARTS = ("conv", "linear", "pool", "block", "local", "model")
CONV_MODES = ("forward", "training", "input grad", "weight grad")
NCHW = " in NCHW"  # of a mode: on contiguous tensors, PyTorch's default, not channels_last
NCHW_MODES = tuple(mode + NCHW for mode in CONV_MODES[:2])
# torch.compile tunes each of its kernels for tens of seconds: only these are worth the wait, in this order.
COMPILED = (
    "bf16 conv2d_relu 3x3 64-64 @56 s1, forward",
    "bf16 max_pool2d vgg16 2x2, forward",
    *(f"bf16 conv2d_relu_max_pool2d {name}, {mode}" for mode in ("forward", "training") for name in POOLED),
    "bf16 linear_relu fc 4096-4096, forward",
    "bf16 LeNet5 256x3x64x64, training",
    *(f"bf16 {name} n{BATCH}, {mode}" for mode in CONV_MODES[:2] for name in NETWORKS),
    *(f"bf16 conv2d_relu {layer.name}, {mode}" for mode in CONV_MODES[:2] for layer in LAYERS if layer.heavy),
)


def conv(layer: Layer, n: int, mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """conv2d_relu forward or training; or one gradient of the bare convolution, alone."""
    images, weight, _ = layer.shapes(n)
    layout, mode = torch.contiguous_format if mode.endswith(NCHW) else LAST, mode.removesuffix(NCHW)
    x = torch.randn(images, device=device).to(dtype).to(memory_format=layout)
    w = (torch.randn(weight, device=device) / (layer.weights / layer.k) ** 0.5).to(dtype).to(memory_format=layout)
    how = (layer.stride, layer.padding, 1, layer.groups)
    if mode in ("input grad", "weight grad"):
        wrt = (0,) if mode == "input grad" else (1,)
        ours = lambda x, w: functional.conv2d(x, w, None, *how)  # noqa: E731
        return Problem(ours, lambda x, w: F.conv2d(x, w, None, *how), (x, w), "backward", wrt)
    b = torch.randn(layer.k, device=device).to(dtype)
    others: dict[str, Call] = {}
    if device.type == "cuda" and mode == "forward":
        others["cudnn"] = lambda x, w, b: torch.cudnn_convolution_relu(x, w, b, *map(_pair, how[:3]), how[3])
        if cudnn_graph.INSTALLED:
            others["cudnn graph"] = cudnn_graph.conv2d_relu(layer.stride, layer.padding)
    return Problem(
        lambda x, w, b: functional.conv2d_relu(x, w, b, *how),
        lambda x, w, b: F.relu(F.conv2d(x, w, b, *how)),
        (x, w, b),
        mode,
        (0, 1, 2),
        others,
        sample=(lambda: (x[:BATCH], w, b)) if n > BATCH else None,
    )


def _pair(number: int) -> tuple[int, int]:
    return number, number


def pool(kind: str, shape: tuple[int, ...], mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """max_pool2d or avg_pool2d, forward or backward."""
    n, c, h, size, stride, padding = shape
    x = torch.randn(n, c, h, h, device=device).to(dtype).to(memory_format=LAST)
    ours, theirs = getattr(functional, f"{kind}_pool2d"), getattr(F, f"{kind}_pool2d")
    return Problem(
        lambda x: ours(x, size, stride, padding), lambda x: theirs(x, size, stride, padding), (x,), mode, (0,)
    )


def block(layer: Layer, n: int, mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """conv2d_relu_max_pool2d of 2 x 2, forward or training; or its gradients alone, by what is pooled being written out
    (ours), and by reading it through the code (theirs): the ratio says which is faster."""
    x, w, b = conv(layer, n, "training", dtype, device).tensors
    padding = layer.padding
    if mode != "gradients, written":
        ours = lambda x, w, b: functional.conv2d_relu_max_pool2d(x, w, b, 1, padding)  # noqa: E731
        theirs = lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b, 1, padding)), 2)  # noqa: E731
        return Problem(ours, theirs, (x, w, b), mode, (0, 1, 2))
    how = ((1, 1), (padding,) * 4, (1, 1), 1, "zeros", (2, 2), False)
    y, code = operator(conv_pool.CONV2D_POOL)(x, w, b, None, *how)
    grads = operator(conv_pool.CONV2D_POOL_GRAD)

    def by(written: bool) -> Call:
        return lambda x, w, g: torch.cat([t.flatten() for t in grads(g, code, x, w, *how, True, True, written)])

    return Problem(by(True), by(False), (x, w, torch.randn_like(y)), "forward", ())


def placed(layer: Layer, n: int, mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """locally_connected2d, forward or training; PyTorch's unfold, and a product for each output pixel."""
    c, size, padding = layer.c, layer.size, layer.padding
    x = torch.randn(n, c, layer.h, layer.h, device=device).to(dtype).to(memory_format=LAST)
    w = (torch.randn(layer.p, layer.p, layer.k, size, size, c, device=device) / (size**2 * c) ** 0.5).to(dtype)
    b = torch.randn(layer.p, layer.p, layer.k, device=device).to(dtype)

    def theirs(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        columns = F.unfold(x, size, padding=padding).view(n, c, size, size, layer.p, layer.p)
        return torch.einsum("ncrspq,pqkrsc->nkpq", columns, w) + b.permute(2, 0, 1)

    ours = lambda x, w, b: functional.locally_connected2d(x, w, b, padding=padding)  # noqa: E731
    return Problem(ours, theirs, (x, w, b), mode, (0, 1, 2))


def dense(shape: tuple[int, int, int], mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """linear_relu, forward or training."""
    m, c, k = shape
    x, w = torch.randn(m, c, device=device).to(dtype), (torch.randn(k, c, device=device) / c**0.5).to(dtype)
    b = torch.randn(k, device=device).to(dtype)
    return Problem(functional.linear_relu, lambda x, w, b: F.relu(F.linear(x, w, b)), (x, w, b), mode, (0, 1, 2))


def whole(name: str, n: int, mode: str, dtype: torch.dtype, device: torch.device) -> Problem:
    """A network of torch.nn's layers, and the same converted, on the same weights."""
    make, shape = NETWORKS[name]
    with device:
        original = make()
    original.to(device, dtype, memory_format=LAST).train(mode == "training")
    converted = copy.deepcopy(original)
    cnn_triton.convert(converted)
    weights, rest = dict(original.named_parameters()), dict(original.named_buffers())
    names = (*weights, *rest)
    x = torch.randn(n, *shape, device=device).to(dtype).to(memory_format=LAST)
    tensors = (x, *(t.detach().clone() for t in (*weights.values(), *rest.values())))

    def of(model: torch.nn.Module) -> Call:
        call = torch.func.functional_call
        return lambda x, *tensors: call(model, dict(zip(names, tensors, strict=True)), (x,))

    if device.type == "cuda":
        cnn_triton.warmup(converted, x)  # in parallel, or the first step would take minutes
    wrt = tuple(range(1, 1 + len(weights)))

    def sample() -> tuple[torch.Tensor, ...]:
        few = (x[:4], *tensors[1:])
        # In 16 bits PyTorch's own gradients of many layers are far from float64's.
        return few if mode == "forward" else tuple(t.float() for t in few)

    return Problem(of(converted), of(original), tensors, mode, wrt, images=n, sample=sample)


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
    prefix: str, named: dict[str, Layer], n: int, modes: tuple[str, ...], *to: Any
) -> Iterator[tuple[str, Call]]:
    many = f" n{n}" if n != BATCH and all(BY_NAME.get(name) for name in named) else ""
    for mode in modes:
        for name, layer in named.items():
            if layer.kind == "conv":
                what = "conv2d_relu" if mode.removesuffix(NCHW) in ("forward", "training") else "conv2d"
                yield f"{prefix} {what} {name}{many}, {mode}", lambda a=(layer, n, mode, *to): conv(*a)
            elif mode in ("forward", "training"):
                rows = (layer.shapes(n).input[0], layer.c, layer.k)
                yield f"{prefix} linear_relu {name}{many}, {mode}", lambda a=(rows, mode, *to): dense(*a)


def _pools(prefix: str, pools: dict[str, tuple[int, ...]], *to: Any) -> Iterator[tuple[str, Call]]:
    for mode in ("forward", "backward"):
        for kind in ("max", "avg"):
            for name, shape in pools.items():
                yield f"{prefix} {kind}_pool2d {name}, {mode}", lambda a=(kind, shape, mode, *to): pool(*a)


def _blocks(prefix: str, layers: dict[str, Layer], n: int, *to: Any) -> Iterator[tuple[str, Call]]:
    for mode in ("forward", "training", "gradients, written"):
        for name, layer in layers.items():
            yield f"{prefix} conv2d_relu_max_pool2d {name}, {mode}", lambda a=(layer, n, mode, *to): block(*a)


def _placed(prefix: str, layers: dict[str, Layer], n: int, *to: Any) -> Iterator[tuple[str, Call]]:
    for mode in CONV_MODES[:2]:
        for name, layer in layers.items():
            yield f"{prefix} locally_connected2d {name}, {mode}", lambda a=(layer, n, mode, *to): placed(*a)


def _demo(batch: int, device: torch.device) -> Iterator[tuple[str, Call]]:
    layers = {"demo conv1": conv_layer(1, 8, 16, 3), "demo conv2": conv_layer(16, 4, 32, 3)}
    layers |= {f"demo fc{i}": Layer("linear", c, 1, k) for i, (c, k) in enumerate([(128, 120), (120, 84), (84, 10)], 1)}
    pools = {"demo pool1": (batch, 16, 8, 2, 2, 0), "demo pool2": (batch, 32, 4, 2, 2, 0)}
    to = (torch.float32, device)
    yield f"fp32 LeNet5 {batch}x1x8x8, training", lambda: network((batch, 1, 8), 16, *to)
    yield from (each for each in _whole("fp32", 2, *to) if "LeNet" in each[0])
    yield from _layers("fp32", layers, batch, CONV_MODES, *to)
    yield from _layers("fp32", {"demo conv1": layers["demo conv1"]}, batch, NCHW_MODES, *to)
    yield from _pools("fp32", pools, *to)
    yield from _blocks("fp32", {name: layers[name] for name in ("demo conv1", "demo conv2")}, batch, *to)
    yield from _placed("fp32", {"demo conv1": layers["demo conv1"]}, batch, *to)


def _whole(prefix: str, n: int, *to: Any) -> Iterator[tuple[str, Call]]:
    for mode in CONV_MODES[:2]:
        for name in NETWORKS:
            yield f"{prefix} {name} n{n}, {mode}", lambda a=(name, n, mode, *to): whole(*a)


def _every(device: torch.device) -> Iterator[tuple[str, Call]]:
    step = ((256, 3, 64), 64, torch.bfloat16, device)
    yield "bf16 LeNet5 256x3x64x64, training", lambda: network(*step)
    for prefix, dtype in DTYPES.items():
        for n in BATCHES:
            yield from _layers(prefix, BY_NAME, n, CONV_MODES[:2], dtype, device)
    bf16 = (torch.bfloat16, device)
    yield from _layers("bf16", BY_NAME, BATCH, CONV_MODES[2:], *bf16)
    yield from _layers("bf16", {layer.name: layer for layer in LAYERS if layer.heavy}, BATCH, NCHW_MODES, *bf16)
    yield from _pools("bf16", POOLS, *bf16)
    yield from _pools("tf32", POOLS, torch.float32, device)  # pools read bytes: float16's are bfloat16's
    yield from _blocks("bf16", POOLED, BATCH, *bf16)
    yield from _placed("bf16", PLACED, BATCH, *bf16)
    for n in BATCHES:
        yield from _whole("bf16", n, *bf16)


def part_of(problem: str) -> str:
    """Which of PARTS a problem is of, by its name."""
    word = problem.split()[1]
    if "conv2d_relu_" in word:
        return "block"
    kinds = {"conv2d": "conv", "conv2d_relu": "conv", "linear_relu": "linear", "locally_connected2d": "local"}
    return kinds.get(word, "pool" if word.endswith("_pool2d") else "model")


def layer_of(problem: str) -> Layer | None:
    """The network's layer that a problem measures, by the problem's name; None for a pool, a network, the demo."""
    _, _, rest = problem.partition(" ")
    return BY_NAME.get(rest.rpartition(", ")[0].partition(" ")[2].partition(" n")[0])


def first(problem: str) -> bool:
    """Is it one of those that say the most, where minutes are short? In bf16 at the usual batch: heavy layers, forward
    and in training, in both layouts; ResNet-50 and VGG-16; pools, pooled blocks, locally connected layers. All of a
    CPU's."""
    if problem.startswith("fp32 "):
        return True
    part, layer = part_of(problem), layer_of(problem)
    named = {
        "conv": layer is not None and layer.heavy and " n" not in problem and "grad" not in problem,
        "model": any(f" {network} n{BATCH}," in problem for network in ("ResNet-50", "VGG-16")),
    }
    return problem.startswith("bf16 ") and part != "linear" and named.get(part, True)


def _turn(problem: str) -> int:
    """When a problem's turn comes, for time may run out: heavy layers, those of ResNet-50 and VGG-16, the rest."""
    layer = layer_of(problem)
    if layer is None:
        return 0 if part_of(problem) == "model" else 2
    later = 3 * (not problem.startswith("bf16") or " n" in problem)
    if layer.heavy:
        return 1 + later
    return later + (2 if layer.times("ResNet-50") or layer.times("VGG-16") else 3)


def _gpu(device: torch.device) -> list[tuple[str, Call]]:
    return sorted(_every(device), key=lambda named: _turn(named[0]))


def problems(device: torch.device, batch: int = 128, part: str = "") -> dict[str, Callable[[], Problem]]:
    """Makers of the problems by name, of all parts unless one is named: on a GPU real layers and networks in bf16, TF32
    and fp16, the important ones first, also on the meta device; else the demo's, at this batch.

    The first word of a name is the arithmetic, and names the ceiling that its rate is compared with.
    """
    every = _gpu(device) if device.type in ("cuda", "meta") else _demo(batch, device)
    return {name: make for name, make in every if part in ("", part_of(name))}

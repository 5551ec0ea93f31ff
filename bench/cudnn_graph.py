"""cuDNN's own fusion of convolution, bias and ReLU, as a graph of its frontend (pip install nvidia-cudnn-frontend).

PyTorch doesn't call it; cuDNN compiles it at run time into one kernel, where it can.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

INSTALLED = importlib.util.find_spec("cudnn") is not None


def conv2d_relu(stride: int, padding: int) -> Callable[..., torch.Tensor]:
    """ReLU(conv2d(x, w, b)) for GPU tensors of one dtype; the first call with a shape builds its graph.

    Errors: what cuDNN raises where it has no such kernel.
    """
    built: dict[Any, Any] = {}

    def call(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        key = (x.shape, x.stride(), x.dtype)
        if key not in built:
            built[key] = _graph(x, w, b, stride, padding)
        graph, (image, weight, bias, output), workspace = built[key]
        p, q = output.get_dim()[2:]
        y = x.new_empty((x.shape[0], w.shape[0], p, q)).contiguous(memory_format=_layout(x))
        graph.execute({image: x, weight: w, bias: b.view(1, -1, 1, 1), output: y}, workspace)
        return y

    return call


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _graph(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, stride: int, padding: int) -> tuple[Any, Any, Any]:
    """(graph, its image, weight, bias and output, workspace)."""
    import cudnn

    kinds = {
        torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF,
        torch.float32: cudnn.data_type.FLOAT,
    }  # fmt: skip
    kind, wide = kinds[x.dtype], cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide)
    image, weight, bias = (
        graph.tensor(name=name, dim=list(t.shape), stride=list(t.stride()), data_type=kind)
        for name, t in (("x", x), ("w", w), ("b", b.view(1, -1, 1, 1)))
    )
    found = graph.conv_fprop(
        image=image, weight=weight, padding=[padding] * 2, stride=[stride] * 2, dilation=[1, 1]
    )  # fmt: skip
    output = graph.relu(input=graph.bias(input=found, bias=bias))
    output.set_output(True).set_data_type(kind)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=x.device)
    return graph, (image, weight, bias, output), workspace

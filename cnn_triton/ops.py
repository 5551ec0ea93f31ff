"""Each Op record as a torch.library operator, `torch.ops.cnn_triton.<name>`: the only torch.library code."""

from typing import Any

import torch

from .kernels.lang import INTERPRETING
from .kernels.op import Op
from .kernels.registry import OPS

_library = torch.library.Library("cnn_triton", "DEF")


def _register(op: Op) -> None:
    _library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op.name, op.launch, "CUDA")
    # On a CPU the kernels run in Triton's interpreter, where it is on; otherwise PyTorch computes the same.
    _library.impl(op.name, op.launch if INTERPRETING else op.reference, "CPU")
    torch.library.register_fake(f"cnn_triton::{op.name}", op.fake, lib=_library)


for _op in OPS:
    _register(_op)


def operator(op: Op) -> Any:
    """The torch.library operator of a record."""
    return getattr(torch.ops.cnn_triton, op.name).default

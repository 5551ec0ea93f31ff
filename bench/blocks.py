"""What convolution + ReLU + pooling compiles to: python -m bench.blocks [--out FILE], without a GPU.

For VGG-16's pooled layers in bfloat16, on every chip: the forward kernel, and the gradients with what is pooled written
out and read through its code. Registers, spills, and instructions for 1000 FLOPs in the main loops (figures.Code).
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: it is to compile

import torch

from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.core.op import Op
from cnn_triton.kernels.matrix import conv_pool

from .calls import empty
from .layers import BATCH
from .ledger import CHIPS
from .problems import POOLED
from .report import environment

FIGURES = ("registers", "spills", "shared", "resident", "instruction", "tma", "per_flop")


def calls(layer: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, tuple[Op, tuple[Any, ...]]]:
    """(operator, arguments) by what they do, on untouched memory."""
    x, w, _ = (empty(shape, dtype) for shape in layer.shapes(BATCH))
    how = ((layer.stride,) * 2, (layer.padding,) * 4, (1, 1), layer.groups, "zeros", (2, 2), False)
    forward = (x, w, empty((layer.k,), dtype), None, *how)
    y, code = conv_pool.CONV2D_POOL.fake(*forward)
    grads = {
        f"gradients, {what}": (conv_pool.CONV2D_POOL_GRAD, (y, code, x, w, *how, True, True, written))
        for what, written in (("written", True), ("read", False))
    }
    return {"forward": (conv_pool.CONV2D_POOL, forward), **grads}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--layers", nargs="*", default=list(POOLED), choices=list(POOLED), help="all unless named")
    parser.add_argument("--chips", nargs="*", default=list(CHIPS), help="all unless named")
    options = parser.parse_args()
    rows = []
    for chip in options.chips:
        for name in options.layers:
            for what, (op, args) in calls(POOLED[name]).items():
                for code in aot.compile_op(op, args, chip):
                    row = {"chip": chip, "layer": name, "what": what, "kernel": code.kernel, "options": code.options}
                    rows.append(row | {figure: getattr(code, figure) for figure in FIGURES})
                    print(*rows[-1].values(), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        part = options.out.with_name(f"{options.out.name}.part")
        part.write_text(json.dumps({"environment": environment(torch.device("cpu")), "rows": rows}, indent=1) + "\n")
        part.replace(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

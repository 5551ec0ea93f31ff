"""Each Op record as a torch.library operator, `torch.ops.cnn_triton.<name>`: the only torch.library code.

With it come PyTorch's other registries: a rule for torch.func.vmap, and the formulas of torch's FlopCounterMode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .kernels.base.lang import INTERPRETING
from .kernels.core.op import Op, VmapRule
from .kernels.registry import OPS

_library = torch.library.Library("cnn_triton", "DEF")


def operator(op: Op) -> Any:
    """Return the torch.library operator of a record."""
    return getattr(torch.ops.cnn_triton, op.name).default


def _register(op: Op) -> None:
    _library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op.name, op.launch, "CUDA")
    # On a CPU the kernels run in Triton's interpreter, where it is on; otherwise PyTorch computes the same.
    _library.impl(op.name, op.launch if INTERPRETING else op.reference, "CPU")
    name = f"cnn_triton::{op.name}"
    torch.library.register_fake(name, op.fake, lib=_library)
    call = operator(op)
    names = [argument.name for argument in call._schema.arguments]
    torch.library.register_vmap(
        name, lambda info, dims, *args: batched(op, call, names, info.batch_size, dims, args), lib=_library
    )
    if op.product:
        packet = getattr(torch.ops.cnn_triton, op.name)
        register_flop_formula(packet, get_raw=True)(lambda *args, out_val=None: op.flops(*args))


def batched(
    op: Op, call: Callable[..., Any], names: Sequence[str], batch: int, dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    """Return the results of a batch of calls of an operator, made as one `call`, and the batch's dimension in each.

    call: takes the operator's arguments, by these names; names, dims, args: one for each argument: dims its batch's
    dimension, None for what all calls share
    """
    differ = {name for name, dim in zip(names, dims, strict=True) if isinstance(dim, int)}
    rule = next(rule for rule in op.vmap if differ <= rule.args.keys())
    results = call(*(_batched(rule, batch, *each) for each in zip(names, dims, args, strict=True)))
    if isinstance(results, torch.Tensor):
        return _unbatched(results, rule.results[0], batch), rule.results[0]
    return tuple(map(_unbatched, results, rule.results, [batch] * len(results))), rule.results


def _batched(rule: VmapRule, batch: int, name: str, dim: Any, value: Any) -> Any:
    """Return an argument for the whole batch."""
    if name not in rule.args or value is None:
        return value
    axis = rule.args[name]
    if isinstance(value, torch.Tensor):
        each = value.expand(batch, *value.shape).movedim(0, axis) if dim is None else value.movedim(dim, axis)
        return each.flatten(axis, axis + 1)
    if isinstance(value, int):
        return value * batch
    return [size * batch if i == axis else size for i, size in enumerate(value)]


def _unbatched(result: torch.Tensor, axis: int, batch: int) -> torch.Tensor:
    """Return a result whose batch is a dimension of its own."""
    parts: torch.Tensor = result.unflatten(axis, (batch, result.shape[axis] // batch))
    return parts


for _op in OPS:
    _register(_op)

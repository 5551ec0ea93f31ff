"""A model's call on fake tensors, which have shapes and strides but no memory: nothing is computed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_map_only

from .backend import eagerly
from .compiled import CompiledCall

__all__ = ["FakesForDynamo", "ForDynamo", "arguments", "faked"]


def arguments(model: Any, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that an example for a model stands for. Errors: TypeError for
    anything but a model and an example, RuntimeError for a model with parameters that have no shapes yet."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise RuntimeError(f"model has no shape for {name} yet; call the model once on real tensors first")
    if not isinstance(example, torch.Tensor | tuple | dict):
        raise TypeError(
            "example must be a tensor, a tuple of arguments or a dict of keyword arguments, "
            f"but got {type(example).__name__}"
        )
    if isinstance(example, dict) and not all(isinstance(key, str) for key in example):
        raise TypeError(f"example must have strings as keys, the model's keyword arguments, but got {list(example)}")
    if isinstance(example, dict):
        return (), example
    return (example,) if isinstance(example, torch.Tensor) else example, {}


class ForDynamo:
    """A mode under which TorchDynamo captures; under other modes it doesn't."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: the mode is off while TorchDynamo captures."""
        return True


class FakesForDynamo(ForDynamo, FakeTensorMode):
    """A mode under which tensors have shapes and strides but no memory, and TorchDynamo captures."""


@contextlib.contextmanager
def faked(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """Yield a call of the model on fake copies of its tensors and of the arguments. Errors: RuntimeError for a model
    that needs their values."""
    mode = FakesForDynamo if CompiledCall.of(model) else FakeTensorMode  # other compilers would compute
    with eagerly(), mode(allow_non_fake_inputs=True) as fake:  # tensors that are neither parameters nor buffers
        named = (*model.named_parameters(), *model.named_buffers())
        state: dict[str, torch.Tensor] = {name: fake.from_tensor(tensor) for name, tensor in named}
        args, kwargs = tree_map_only(torch.Tensor, fake.from_tensor, (args, kwargs))
        try:
            yield lambda: torch.func.functional_call(model, state, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise RuntimeError(
                f"model's forward needs the values of its tensors ({error.func}), and an example gives only shapes; "
                "pass a submodule that does not need them"
            ) from error

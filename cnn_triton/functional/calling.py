"""The call of a public function: tensors of other classes, the errors, and where PyTorch's own operators run."""

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves, tree_map_only

from ..autograd.function import transforming
from ..dispatch import as_on_a_gpu, runs_kernels
from ..kernels.matrix import activations

Ints = int | tuple[int, ...] | list[int]
Sizes = int | None | Sequence[int | None]
Activation = str | tuple[Any, ...] | None

_TRACED = (FakeTensor, FunctionalTensor)  # classes of tensors that stand for those of any device
_WIDTH = 120
_P = ParamSpec("_P")
_T = TypeVar("_T")


def overridable(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function as users call it.

    Tensors of other classes may replace it by their __torch_function__, as they may replace PyTorch's own functions;
    torch.fx's proxies, for one, record the call. TorchDynamo takes it for one call and doesn't trace it. Errors in its
    arguments have our messages, also where PyTorch's operators find them. Its docstring lists the activations.
    """
    function.__doc__ = _with_activations(function.__doc__)

    @torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        given = (*args, *kwargs.values()) if kwargs else args
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)  # type: ignore[no-any-return, unused-ignore]
        try:
            return function(*args, **kwargs)
        except Exception as error:
            ours = _own_error(function, args, kwargs, error)
            if ours is None:
                raise
            raise ours from error

    return call  # type: ignore[no-any-return]


def _with_activations(docstring: str | None) -> str | None:
    """Return a docstring that has texts of the table of activations for {activations} and {activations_by_output}."""
    if docstring is None:  # Python's option -OO
        return None
    by_output = [repr(word) for word, row in activations.ACTIVATIONS.items() if row.saves == "output"]
    text = docstring.replace("{activations}", activations.described())
    text = text.replace("{activations_by_output}", ", ".join(by_output))
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, _WIDTH, subsequent_indent=indent) if len(line) > _WIDTH else [line]
    return "\n".join(lines)


def _own_error(function: Callable[..., Any], args: Any, kwargs: Any, error: Exception) -> Exception | None:
    """Return the operators' error for a call that PyTorch's own operators refused; None unless it is of that type."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    if not tensors or any(map(foreign, tensors)) or transforming() or runs_kernels(tensors[0].device):
        return None
    if len({t.device for t in tensors}) == 1 and all(t.is_floating_point() for t in tensors):  # not indices
        shape_alone = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")  # noqa: E731
        args, kwargs = tree_map_only(torch.Tensor, shape_alone, (args, kwargs))
    try:
        with as_on_a_gpu(even_if_aten=True), torch.no_grad():
            function(*args, **kwargs)
    except Exception as ours:
        return ours if isinstance(ours, type(error)) else None
    return None


def on_aten(input: Any, *others: Any) -> bool:
    """True if PyTorch's own operators run a call with these arguments. False for an input that is no tensor: our
    operators say what is wrong with it."""
    if not isinstance(input, torch.Tensor):
        return False
    return not runs_kernels(input.device) or foreign(input) or any(map(foreign, others))


def foreign(tensor: Any) -> bool:
    """True for a tensor that kernels can't read: sparse, nested, or of a class that replaces operators itself."""
    if tensor is None or not isinstance(tensor, torch.Tensor):
        return False
    if tensor.layout is not torch.strided or tensor.is_nested:
        return True
    kind: Any = type(tensor)
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and kind not in _TRACED

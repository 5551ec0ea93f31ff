"""torch.autograd.Functions over the operators: what they all have.

Backward passes are made of differentiable functions again, and rules for derivatives along tangents and for batches
follow from each one's operator.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from ..kernels.core.op import Op
from ..ops import batched, operator

Args = Sequence[Any]

__all__ = [
    "Args",
    "Formula",
    "Function",
    "along",
    "apply",
    "differentiable",
    "names_of",
    "needs_grad",
    "total",
    "transforming",
]


class Function(torch.autograd.Function):
    """A Function that calls the operator `OP`, by the operator's names of arguments; `forward` is the operator itself.
    Its result is linear in the first argument, and in each of the first `PARTS` with the others kept; what else it
    depends on, `tangent` says."""

    OP: Op
    PARTS = 1

    def __init_subclass__(cls) -> None:
        """Make the operator the forward pass, and keep TorchDynamo from tracing the backward pass."""
        if "OP" in vars(cls):
            cls.forward = staticmethod(operator(cls.OP))  # type: ignore[method-assign]
        method = vars(cls).get("backward")  # a class method or a static one
        if method is not None:
            cls.backward = type(method)(torch.compiler.disable(method.__func__))  # type: ignore[method-assign]

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        """Return the derivative along `tangents`, one for each of the inputs, or None: Σ of the function with one
        argument replaced by its tangent."""
        steps = [(i, tangent) for i, tangent in enumerate(tangents[: cls.PARTS]) if tangent is not None]
        terms = [apply(cls, *inputs[:i], tangent, *inputs[i + 1 :]) for i, tangent in steps]
        return terms[0] if len(terms) == 1 else total(*terms)


class Formula(Function):
    """A Function whose own derivatives are PyTorch's: those of `formula`, which computes the same results."""

    formula: Callable[..., Any]

    @classmethod
    def tangent(cls, inputs: Args, outputs: Args, tangents: Args) -> Any:
        return along(cls.formula, inputs, tangents)[1]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value if isinstance(value, torch.Tensor) else None for value in inputs))

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        inputs = [other if saved is None else saved for saved, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        results, back = _vjp(cls.formula, inputs)
        given = (torch.zeros_like(y) if grad is None else grad for y, grad in zip(results, grads, strict=True))
        back = iter(back(tuple(given)))
        return tuple(next(back) if isinstance(value, torch.Tensor) else None for value in inputs)


def along(function: Callable[..., Any], args: Args, steps: Args) -> tuple[Any, Any]:
    """Return the function's results, and their derivative along the arguments' steps. By reverse mode twice: forward
    mode can't be nested in every way that this may be called."""
    steps = tuple(
        torch.zeros_like(arg) if step is None else step
        for arg, step in zip(args, steps, strict=True)
        if isinstance(arg, torch.Tensor)
    )
    results, back = _vjp(function, args)
    several = isinstance(results, tuple)
    like = map(torch.zeros_like, results if several else (results,))
    _, forth = _vjp(lambda *grads: back(grads if several else grads[0]), tuple(like))
    tangents = forth(steps)
    return results, tangents if several else tangents[0]


def _vjp(function: Callable[..., Any], args: Args) -> tuple[Any, Any]:
    """Return the function's results, and their gradients in those arguments that are tensors as a function of the
    results'."""

    def call(*tensors: torch.Tensor) -> Any:
        each = iter(tensors)
        return function(*(next(each) if isinstance(arg, torch.Tensor) else arg for arg in args))

    both: Any = torch.func.vjp(call, *(arg for arg in args if isinstance(arg, torch.Tensor)))
    results, back = both
    return results, back


def apply(function: type[Function], *args: Any) -> Any:
    """Return the function's results, differentiable."""
    if transforming():
        return _transformable(function).apply(*args)  # type: ignore[no-untyped-call]
    # Function.apply would look up forward's signature, which takes longer than all the rest of a call.
    args = unwrap_dead_wrappers(args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def transforming() -> bool:
    """True within a transform of torch.func, or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@functools.cache
def names_of(function: type[Function]) -> list[str]:
    """Return the names of a function's arguments, its operator's."""
    return [argument.name for argument in operator(function.OP)._schema.arguments]


@functools.cache
def _transformable(function: type[Function]) -> type[Function]:
    """Return the function with rules for derivatives along tangents and for batches."""
    names = names_of(function)

    class Transformable(function):  # type: ignore[valid-type, misc]
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            function.setup_context(ctx, inputs, output)
            ctx.set_materialize_grads(False)  # or PyTorch makes zeros for what has no tangent
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.constants = [None if isinstance(value, torch.Tensor) else value for value in inputs]
            ctx.save_for_forward(*(value if isinstance(value, torch.Tensor) else None for value in inputs), *outputs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (None,) * len(names) if all(grad is None for grad in grads) else function.backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            tensors = zip(ctx.saved_tensors, ctx.constants, strict=False)
            inputs = [constant if tensor is None else tensor for tensor, constant in tensors]
            return function.tangent(inputs, ctx.saved_tensors[len(names) :], tangents)

        @staticmethod
        def vmap(info: Any, dims: Args, *args: Any) -> Any:
            return batched(function.OP, lambda *args: apply(function, *args), names, info.batch_size, dims, args)

    return Transformable


def total(*terms: Any) -> Any:
    """Return the sum of those terms that are not None; None if all are."""
    terms = tuple(term for term in terms if term is not None)
    return functools.reduce(torch.add, terms) if terms else None


def needs_grad(args: tuple[Any, ...]) -> bool:
    """True if anything asks for derivatives, or transforms the call."""
    leaves = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    return leaves or transforming()


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """Return the function as the layers call it: the operator alone where nothing asks for derivatives.
    torch.compile keeps the call whole and differentiates what it does, which goes for torch.func's transforms too; of
    a Function it would trace forward and backward, and transforms of those not, or as if they were constant."""
    run = operator(function.OP)

    def call(*args: Any) -> Any:
        return apply(function, *args) if needs_grad(args) else run(*args)

    return torch.compiler.allow_in_graph(call)  # type: ignore[no-any-return]

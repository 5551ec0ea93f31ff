"""The common part of all torch.autograd.Functions over the operators.

Each backward pass calls differentiable functions again. The rules for vmap and for forward-mode differentiation follow
from each function's operator.
"""

import functools
from collections import namedtuple
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
    "apply",
    "differentiable",
    "grads_by_name",
    "jvp",
    "named",
    "names_of",
    "needs_grad",
    "total",
    "transforming",
]


class Function(torch.autograd.Function):
    """A Function whose forward pass is the operator `OP`.

    The result is linear in each of the first `PARTS` arguments; override `tangent` where it depends on others.
    """

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
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        """Return the tangents of the outputs: Σ of the function with one argument replaced by its tangent.

        inputs, tangents: by the operator's argument names, see `named`; a tangent that is 0 is None
        """
        given = [(i, tangent) for i, tangent in enumerate(tangents[: cls.PARTS]) if tangent is not None]
        terms = [apply(cls, *inputs[:i], tangent, *inputs[i + 1 :]) for i, tangent in given]
        return terms[0] if len(terms) == 1 else total(*terms)


class Formula(Function):
    """A Function whose own derivatives are PyTorch's: those of `formula`, which computes the same results."""

    formula: Callable[..., Any]

    @classmethod
    def tangent(cls, inputs: Any, outputs: Args, tangents: Any) -> Any:
        return jvp(cls.formula, inputs, tangents)[1]

    @classmethod
    def setup_context(cls, ctx: Any, inputs: Args, output: Any) -> None:
        ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value if isinstance(value, torch.Tensor) else None for value in inputs))

    @classmethod
    def backward(cls, ctx: Any, *grads: Any) -> Any:
        inputs = [other if saved is None else saved for saved, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        results, vjp = _vjp(cls.formula, inputs)
        given = (torch.zeros_like(y) if grad is None else grad for y, grad in zip(results, grads, strict=True))
        input_grads = iter(vjp(tuple(given)))
        return tuple(next(input_grads) if isinstance(value, torch.Tensor) else None for value in inputs)


def jvp(function: Callable[..., Any], args: Args, tangents: Args) -> tuple[Any, Any]:
    """Return the function's results and their tangents, from those of the arguments; None for 0.

    By reverse mode twice: forward mode can't be nested in every way that this may be called.
    """
    tangents = tuple(
        torch.zeros_like(arg) if tangent is None else tangent
        for arg, tangent in zip(args, tangents, strict=True)
        if isinstance(arg, torch.Tensor)
    )
    results, vjp = _vjp(function, args)
    several = isinstance(results, tuple)
    like = map(torch.zeros_like, results if several else (results,))
    # The vjp is linear in the results' gradients; its own vjp is its transpose, the jvp.
    _, transpose = _vjp(lambda *grads: vjp(grads if several else grads[0]), tuple(like))
    result_tangents = transpose(tangents)
    return results, result_tangents if several else result_tangents[0]


def _vjp(function: Callable[..., Any], args: Args) -> tuple[Any, Any]:
    """Return the function's results, and its vjp: from the results' gradients to those of the arguments that are
    tensors."""

    def call(*tensors: torch.Tensor) -> Any:
        each = iter(tensors)
        return function(*(next(each) if isinstance(arg, torch.Tensor) else arg for arg in args))

    both: Any = torch.func.vjp(call, *(arg for arg in args if isinstance(arg, torch.Tensor)))
    results, vjp = both
    return results, vjp


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
def _arguments(function: type[Function]) -> Any:
    """Return the type of a named tuple of a function's arguments, those of its operator, each None unless given."""
    names = [argument.name for argument in operator(function.OP)._schema.arguments]
    return namedtuple("Arguments", names, defaults=[None] * len(names))


def names_of(function: type[Function]) -> tuple[str, ...]:
    """Return the names of a function's arguments."""
    names: tuple[str, ...] = _arguments(function)._fields
    return names


def named(function: type[Function], values: Args) -> Any:
    """Return values that belong to a function's arguments, one for each, as a named tuple."""
    return _arguments(function)._make(values)


def grads_by_name(function: type[Function], ctx: Any, **grads: Any) -> tuple[Any, ...]:
    """Return what `backward` returns: a function's gradients, those that are needed, None for all others."""
    every = _arguments(function)(**grads)
    return tuple([grad if needed else None for grad, needed in zip(every, ctx.needs_input_grad, strict=True)])


@functools.cache
def _transformable(function: type[Function]) -> type[Function]:
    """Return the function with rules for forward-mode differentiation and for vmap."""
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
            outputs = ctx.saved_tensors[len(names) :]
            return function.tangent(named(function, inputs), outputs, named(function, tangents))

        @staticmethod
        def vmap(info: Any, dims: Args, *args: Any) -> Any:
            return batched(function.OP, lambda *args: apply(function, *args), names, info.batch_size, dims, args)

    return Transformable


def total(*terms: Any) -> Any:
    """Return the sum of those terms that are not None; None if all are."""
    terms = tuple(term for term in terms if term is not None)
    return functools.reduce(torch.add, terms) if terms else None


def needs_grad(args: tuple[Any, ...]) -> bool:
    """True if a derivative may be needed: of an argument, or by a transform."""
    leaves = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    return leaves or transforming()


def differentiable(function: type[Function]) -> Callable[..., Any]:
    """Return the function as the layers call it: the operator alone where no derivative is needed.

    torch.compile keeps the call as one node of its graph. It would trace a Function's forward and backward, and lose
    vmap and jvp.
    """
    run = operator(function.OP)

    def call(*args: Any) -> Any:
        return apply(function, *args) if needs_grad(args) else run(*args)

    return torch.compiler.allow_in_graph(call)  # type: ignore[no-any-return]

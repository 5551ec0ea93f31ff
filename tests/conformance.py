"""PyTorch's own conformance data, which ships with it (op_db, module_db), and how a function is held to it.

op_db takes seconds to import, so that happens when a test first asks for it.
"""

import contextlib
import functools

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from checks import assert_accurate, kernels_only
from cnn_triton import functional, nn

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of functions that op_db has many samples of: how many tests these are dealt out to.
_MANY = {"max_pool1d": 24, "max_pool2d": 36, "max_unpool1d": 4, "max_unpool2d": 8}
_VARIANTS = ("max_unpool1d grad", "max_unpool2d grad")  # further sets of samples
# The functions of PyTorch's that are ours too, and the variants that op_db has of them; in how many tests.
PARTS = {name: _MANY.get(name, 1) for name in functional.__all__ if hasattr(torch.nn.functional, name)}
PARTS |= dict.fromkeys(_VARIANTS, 1)
# PyTorch's modules of which ours are, but for those that module_db lacks.
_UNLISTED = {"LazyLinear", "MaxUnpool1d", "MaxUnpool2d"}
MODULES = [name for name in nn.__all__ if hasattr(torch.nn, name) and name not in _UNLISTED]


@functools.cache
def operators():
    """op_db's entries by name and variant."""
    from torch.testing._internal.common_methods_invocations import op_db

    prefix = "nn.functional."
    found = {
        f"{op.name.removeprefix(prefix)} {op.variant_test_name}".strip(): op
        for op in op_db
        if op.name.startswith(prefix) and op.name.removeprefix(prefix) in {part.split()[0] for part in PARTS}
    }
    assert found.keys() == PARTS.keys(), "op_db has other variants than those tested"
    return found


@functools.cache
def modules():
    """module_db's entries by the module's name."""
    from torch.testing._internal.common_modules import module_db

    found = {info.module_cls.__name__: info for info in module_db}
    assert not _UNLISTED & found.keys(), "module_db has come to list these"
    return found


def samples(name, device, dtype, part=0):
    """(number, sample) of an operator's part of op_db's sample inputs."""
    op = operators()[name]
    every = op.sample_inputs(str(device), dtype, requires_grad=dtype in FLOATS)
    return [each for each in enumerate(every) if each[0] % PARTS[name] == part]


def on_a_grid(tensor):
    """The tensor; float64 in multiples of 2^-10, whose products and sums it computes exactly, in any order, so that its
    results are the exact ones, for float64 too."""
    if tensor.dtype == torch.float64:
        with torch.no_grad():
            tensor.mul_(1024).round_().div_(1024)
    return tensor


class Call:
    """Arguments of a function, any nest of tensors and other values, and the random values that go with them."""

    def __init__(self, *args, **kwargs):
        self.flat, self.spec = tree_flatten((args, kwargs))
        floats = [v for v in self.flat if isinstance(v, torch.Tensor) and v.is_floating_point()]
        self.dtype = floats[0].dtype
        for value in floats:
            on_a_grid(value)
        self.drawn = []

    def draw(self, number, like):
        """The same values for every function that is called so, whatever it computes in."""
        if number == len(self.drawn):
            self.drawn.append(on_a_grid(torch.randn(like.shape, device=like.device).to(self.dtype)))
        return self.drawn[number].to(like.dtype)

    def results(self, function):
        """The function's results, of the arguments as they are."""
        args, kwargs = tree_unflatten(self.flat, self.spec)
        y = function(*args, **kwargs)
        return y if isinstance(y, tuple) else (y,)

    def derivatives(self, function, dtype=None):
        """The function's results, first and second gradients, with floating-point tensors converted to dtype.

        First gradients: of Σ g·y, by the tensors that ask for them. Second: of Σ v·(first gradient), by those tensors
        and by g; g and v are drawn.
        """
        leaves, flat = [], []
        for value in self.flat:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                asked = value.requires_grad
                value = value.detach().to(dtype or value.dtype).requires_grad_(asked)
                leaves += [value] if asked else []
            flat.append(value)
        args, kwargs = tree_unflatten(flat, self.spec)
        y = function(*args, **kwargs)
        y = y if isinstance(y, tuple) else (y,)
        draws = iter(range(1000))
        floats = [each for each in y if each.requires_grad]
        seeds = [self.draw(next(draws), each).requires_grad_() for each in floats]
        first = self._grads(floats, leaves, seeds, create_graph=True)
        onward = [each for each in first if each.requires_grad]
        wrt = leaves + seeds
        second = self._grads(onward, wrt, [self.draw(next(draws), each) for each in onward])
        return {"result": y, "gradient": first, "second gradient": second}

    @staticmethod
    def _grads(of, wrt, seeds, **options):
        """Gradients, 0 where nothing depends on a tensor."""
        if not of or not wrt:
            return [torch.zeros_like(each) for each in wrt]
        return torch.autograd.grad(of, wrt, seeds, allow_unused=True, materialize_grads=True, **options)


def hold(ours, theirs, call, *others):
    """Our function's results and gradients on a call, and on `others`, which have the same values in other memory,
    against PyTorch's and float64: kernels alone run in ours."""
    exact, right = call.derivatives(theirs, torch.float64), call.derivatives(theirs)
    work = all(value.numel() for value in call.flat if isinstance(value, torch.Tensor)) and right["result"][0].numel()
    for each in (call, *others):
        each.drawn = call.drawn
        placed = each.results(theirs) if each is not call else right["result"]
        with kernels_only() if work else contextlib.nullcontext():
            mine = each.derivatives(ours)
        for what, values in mine.items():
            for i, (our, their, best) in enumerate(zip(values, right[what], exact[what], strict=True)):
                name = f"{what} {i}"
                if our.is_floating_point():
                    assert_accurate(our, their, best, name)
                else:
                    assert our.dtype == their.dtype, f"{name}: dtype {our.dtype}, PyTorch's is {their.dtype}"
                    assert torch.equal(our, their), f"{name}: {int((our != their).sum())} integers differ"
                if what == "result" and our.numel():
                    wanted = placed[i].stride()
                    assert our.stride() == wanted, f"{name}: strides {our.stride()}, not {wanted}"


def shown(*args, **kwargs):
    """A call's arguments in short: the shapes of its tensors, its other values."""
    flat, spec = tree_flatten((args, kwargs))
    args, kwargs = tree_unflatten([tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in flat], spec)
    return ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])

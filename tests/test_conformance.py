"""Our functions and modules on PyTorch's own conformance data: results, gradients, second gradients, exceptions.

Every test says what it covered (record_property), and conftest.py sums it up in a table.
"""

import inspect
import re

import pytest
import torch

from cnn_triton import functional, nn
from combinations import dtype_name, rotated
from conformance import FLOATS, MODULES, PARTS, Call, hold, modules, operators, samples, shown

OPERATORS = sorted({name.split()[0] for name in PARTS})
# Everything in float32, and in turn in one of the others.
ROWS = tuple((torch.float32, dtype) for dtype in FLOATS if dtype != torch.float32)


def in_turn(cases):
    """The rows of `rotated`: each case in the dtypes whose turn it is; a case is a name, or a tuple."""

    def rows(seed):
        for case, dtypes in rotated(cases, lambda case: None, ROWS, seed):
            values = case if isinstance(case, tuple) else (case,)
            for dtype in dtypes:
                yield pytest.param(*values, dtype, id="-".join(map(str, (*values, dtype_name(dtype)))))

    return rows


SAMPLES = [(name, part) for name, parts in PARTS.items() for part in range(parts)]


def ours(name):
    return getattr(functional, name.split()[0])


def together(checks):
    """Runs (what, check) pairs to the end, then fails with all that failed; returns how many there were."""
    count, failures = 0, []
    for what, check in checks:
        count += 1
        try:
            check()
        except (Exception, pytest.fail.Exception) as error:  # the second: pytest.raises saw none
            failures.append(f"{what}: {type(error).__name__}: {str(error) or repr(error)}")
    assert not failures, f"{len(failures)} of {count} failed:\n" + "\n".join(failures)
    assert count, "nothing to test"
    return count


@pytest.mark.cover
@pytest.mark.rotated("name, part, dtype", in_turn(SAMPLES))
def test_samples(name, part, dtype, device, request, record_property):
    """Each sample input: in float32 as it is, in other dtypes in memory that is not contiguous; each way, if all."""
    theirs, both = operators()[name].op, request.config.getoption("exhaustive")

    def check(sample):
        plain = [sample] if both or dtype == torch.float32 else []
        strided = [sample.noncontiguous()] if both or dtype != torch.float32 else []
        hold(ours(name), theirs, *(Call(s.input, *s.args, **s.kwargs) for s in plain + strided))

    drawn = samples(name, device, dtype, part)
    count = together(
        (f"sample {i} ({shown(s.input, *s.args, **s.kwargs)})", lambda s=s: check(s)) for i, s in drawn
    )  # fmt: skip
    record_property("conformance", (name.split()[0], "samples", count))


def raises(kind, function, args, kwargs, names):
    """The function raises this kind of exception, and names one of its arguments."""
    with pytest.raises(kind) as raised:
        function(*args, **kwargs)
    words = set(re.findall(r"\w+", str(raised.value)))
    assert words & set(names), f"{raised.value} names no argument of {sorted(names)}"


@pytest.mark.parametrize("name", OPERATORS)
def test_errors(name, device, record_property):
    """Each error input: the exception type that op_db says and PyTorch raises."""
    op, function = operators()[name], ours(name)

    def check(error):
        sample = error.sample_input
        args = (sample.input, *sample.args)
        with pytest.raises(error.error_type):
            op.op(*args, **sample.kwargs)
        raises(error.error_type, function, args, sample.kwargs, inspect.signature(function).parameters)

    if op.error_inputs_func is None:
        record_property("conformance", (name, "errors", 0))
        return
    inputs = [(e, e.sample_input) for e in op.error_inputs(str(device))]
    count = together((f"{shown(s.input, *s.args, **s.kwargs)}", lambda e=e: check(e)) for e, s in inputs)
    record_property("conformance", (name, "errors", count))


@pytest.mark.parametrize("name", OPERATORS)
def test_refused_dtypes(name, device, record_property):
    """Integers and complex numbers, of which PyTorch takes some on a CPU: a clear error, for every sample."""

    def check(sample, dtype):
        with pytest.raises(NotImplementedError, match=f"input has dtype {dtype}; the kernels take float16"):
            ours(name)(sample.input, *sample.args, **sample.kwargs)

    count = 0
    for variant in (key for key in PARTS if key.split()[0] == name):
        for dtype in sorted(operators()[variant].supported_dtypes(device.type) - set(FLOATS), key=str):
            every = list(operators()[variant].sample_inputs(str(device), dtype))
            count += together((f"{dtype} sample {i}", lambda s=s, d=dtype: check(s, d)) for i, s in enumerate(every))
    record_property("conformance", (name, "refused", count))


@pytest.mark.cover
@pytest.mark.rotated("name, dtype", in_turn(MODULES))
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_modules(name, dtype, device, record_property):
    """Each module of module_db, with PyTorch's weights: called as a function of these and of its inputs."""
    info = modules()[name]

    def check(given):
        right, mine = (
            kind(*given.constructor_input.args, **given.constructor_input.kwargs).to(device, dtype)
            for kind in (info.module_cls, getattr(nn, name))
        )
        args, kwargs = given.forward_input.args, given.forward_input.kwargs
        with torch.no_grad():
            right(*args, **kwargs)  # a lazy one has its weights now
        mine.load_state_dict(right.state_dict())
        weights = {key: value.detach().requires_grad_() for key, value in right.named_parameters()}

        def of(module):
            return lambda weights, args, kwargs: torch.func.functional_call(module, weights, args, kwargs)

        hold(of(mine), of(right), Call(weights, args, kwargs))

    inputs = info.module_inputs_func(info, device=str(device), dtype=dtype, requires_grad=True, training=True)
    count = together((f"{name} {given.desc}", lambda g=given: check(g)) for given in inputs)
    record_property("conformance", (name, "modules", count))


@pytest.mark.parametrize("name", [name for name in MODULES if "Lazy" not in name])
def test_module_errors(name, device, record_property):
    """Each error input of module_db: PyTorch's exception type, from the constructor or the call."""
    info = modules()[name]
    if info.module_error_inputs_func is None:
        record_property("conformance", (name, "module errors", 0))
        return
    given = info.module_error_inputs_func(
        info, device=str(device), dtype=torch.float32, requires_grad=False, training=True
    )

    def check(error):
        constructor, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input
        for kind in (info.module_cls, getattr(nn, name)):
            with pytest.raises(error.error_type):
                kind(*constructor.args, **constructor.kwargs).to(device)(*forward.args, **forward.kwargs)

    count = together((f"{name} {number}", lambda e=error: check(e)) for number, error in enumerate(given))
    record_property("conformance", (name, "module errors", count))


# op_db's images are tiny: these go over the edges of tiles, and are channels_last where they are images.
LARGE = {
    "conv1d": (((3, 35, 150), (67, 35, 5), (67,)), {"stride": 2, "padding": 3}),
    "conv2d": (((3, 36, 19, 17), (70, 36, 3, 3), (70,)), {"stride": (1, 2), "padding": (2, 1)}),
    "conv_transpose1d": (((2, 36, 70), (36, 33, 4), (33,)), {"stride": 3, "output_padding": 2}),
    "conv_transpose2d": (((2, 36, 9, 11), (36, 33, 4, 4), (33,)), {"stride": 2, "padding": 1, "output_padding": 1}),
    "max_pool1d": (((3, 70, 300),), {"kernel_size": 5, "stride": 3, "padding": 2, "return_indices": True}),
    "max_pool2d": (((2, 70, 33, 35),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "avg_pool1d": (((3, 70, 300),), {"kernel_size": 5, "stride": 3, "padding": 2}),
    "avg_pool2d": (((2, 70, 33, 35),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "adaptive_avg_pool1d": (((3, 70, 300),), {"output_size": 77}),
    "adaptive_avg_pool2d": (((2, 70, 33, 35),), {"output_size": (10, 1)}),
    "adaptive_max_pool1d": (((3, 70, 300),), {"output_size": 77}),
    "adaptive_max_pool2d": (((2, 70, 33, 35),), {"output_size": (10, 4), "return_indices": True}),
    "linear": (((70, 3, 130), (67, 130), (67,)), {}),
}


@pytest.mark.cover
@pytest.mark.rotated("name, dtype", in_turn(LARGE))
def test_large(name, dtype, device):
    shapes, options = LARGE[name]

    def draw(shape):
        x = torch.randn(shape, device=device) / (shape[1] if len(shape) > 1 else 1) ** 0.5
        x = x.to(dtype, memory_format=torch.channels_last if len(shape) == 4 else torch.preserve_format)
        return x.requires_grad_()

    hold(ours(name), getattr(torch.nn.functional, name), Call(*map(draw, shapes), **options))


@pytest.mark.cover
@pytest.mark.rotated("name, dtype", in_turn(("max_unpool1d", "max_unpool2d")))
def test_large_unpool(name, dtype, device):
    x = torch.randn((3, 70, 60) if "1d" in name else (2, 70, 17, 20), device=device).to(dtype)
    y, indices = getattr(torch.nn.functional, name.replace("un", ""))(x, 2, return_indices=True)
    y = y.to(memory_format=torch.channels_last) if y.dim() == 4 else y
    hold(ours(name), getattr(torch.nn.functional, name), Call(y.requires_grad_(), indices, kernel_size=2))

"""Calls that repeat an earlier one's steps: the same bits as those that decide anew; and when no plan may be kept."""

import os
import random
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from cases import CASES
from checks import fresh_is_nan, moved
from cnn_triton.kernels.base.lang import tl, triton
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.core import replay, tape
from cnn_triton.kernels.core.op import Op, launch, launches
from cnn_triton.ops import operator
from combinations import DTYPES, FORMATS, turns

ROOT = Path(__file__).parents[1]


def tensors(result):
    return result if isinstance(result, tuple) else (result,)


def same(mine, right):
    """The same bits, strides and dtype; NaN in the same places."""
    return all(
        a.stride() == b.stride() and a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a[~a.isnan()], b[~b.isnan()]) and torch.equal(a[~a.isnan()].signbit(), b[~b.isnan()].signbit())
        for a, b in zip(tensors(mine), tensors(right), strict=True)
    )  # fmt: skip


def half(seed):
    """Every second case of each operator, in turn. Without a seed, all."""
    for case, turn in turns(CASES, lambda case: case.op, seed or 0):
        if seed is None or turn % 2 == 0:
            yield pytest.param(case, id=repr(case))


@pytest.mark.cover
@pytest.mark.rotated("case", half)
def test_repeats(case, device):
    """A third call, on other values, into NaN; in one of the dtypes and formats."""
    dtype, form = random.choice(DTYPES), random.choice(FORMATS)
    plans, call = case.op.plans, operator(case.op)

    def draw():
        return [moved(a, device) for a in case.make(dtype, form)]

    plans.clear()
    first, second = draw(), draw()
    with fresh_is_nan():
        assert same(call(*first), kept := call(*first))
        (made,) = plans.values()
        before = launches[case.op.name]
        mine = call(*second)
        assert launches[case.op.name] - before == made.launches
        assert len(plans) == 1
        with replay.deciding():
            assert same(mine, call(*second))
            assert same(kept, call(*first))


@triton.jit
def double_kernel(x, y, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < size), mask=i < size)


def op_of(launcher):
    """An operator of two vectors that nothing registers."""
    fake = lambda x, *rest: torch.empty(x.shape, dtype=x.dtype, device=x.device)  # noqa: E731
    return Op("twice", "", fake, launcher, fake, lambda *args: 0, lambda *args: 0, ())


def twice(y, x, *rest):
    launch(double_kernel, 1, x.contiguous(), y, x.numel(), BLOCK=16)


def repeated(launcher, *calls):
    """Whether a plan was kept, after calls that are alike; each result must be the launcher's."""
    op = op_of(launcher)
    for args in (calls[0], *calls, calls[0]):
        got = op.launch(*args)
        with replay.deciding():
            assert torch.equal(got, op.launch(*args))
    return [isinstance(kept, replay.Plan) for kept in op.plans.values()]


def vectors(device, count=2):
    return [torch.randn(8, device=device) for _ in range(count)]


def test_other_steps_are_repeated(device):
    """PyTorch's operators on the way: copies, views, what writes in place, with arguments by name."""

    def launcher(y, x, other):
        both = torch.stack([x, other], dim=1).t().contiguous()
        launch(double_kernel, 1, both[1], y, x.numel(), BLOCK=16)
        y[2:4].add_(other[:2], alpha=3)
        y.view(2, 4).t()[0] = x[-2:]

    assert repeated(launcher, *(vectors(device) for _ in range(3))) == [True]


def test_values_are_not_repeated(device):
    """What depends on values, or takes memory from elsewhere."""
    hidden = torch.ones(8, device=device)

    def by_value(y, x):
        y.fill_(1 if x[0].item() > 0 else 2)

    def from_elsewhere(y, x):
        launch(double_kernel, 1, hidden, y, x.numel(), BLOCK=16)

    assert repeated(by_value, *([x] for x in (hidden, -hidden))) == [False]
    assert repeated(from_elsewhere, *([x] for x in vectors(device))) == [False]


def test_arguments_that_share_memory(device):
    """Whose is which can't be told of them; but a plan of others serves them."""
    x, other = vectors(device)

    def launcher(y, x, other):
        launch(double_kernel, 1, other, y, x.numel(), BLOCK=16)

    assert repeated(launcher, (x, x), (x, x)) == [False]
    assert repeated(launcher, (x, x), vectors(device)) == [True]
    assert repeated(launcher, (x, other), (x, x), (other, x)) == [True]


def test_what_a_plan_depends_on(device):
    """A call of another size, strides, dtype, alignment, number or precision is decided for itself."""
    op, x = op_of(twice), torch.randn(9, device=device)
    calls = [
        (x[:8],), (x[:7],), (x[1:],), (x[::2],), (x.double(),), (x[:8], 1), (x[:8], 2.0), (x[:8], [1, 2]), (x[:8], "a"),
    ]  # fmt: skip
    with float32_precision("tf32"):
        for args in (*calls, *calls, *calls):
            assert torch.equal(op.launch(*args), 2 * args[0])
    assert len(op.plans) == len(calls)
    for precision in ("tf32", "ieee"):
        with float32_precision(precision):
            op.launch(x[:8])
            op.launch(x.double())
    assert len(op.plans) == len(calls) + 1


def test_not_too_many_are_kept(monkeypatch, device):
    monkeypatch.setattr(replay, "_MOST", 3)
    op = op_of(twice)
    for size in (1, 2, 3, 4, 1, 1, 1, 5, 6, 7, 8):
        x = torch.randn(size, device=device)
        assert torch.equal(op.launch(x), 2 * x)
        assert len(op.plans) <= 3


def test_errors_are_not_kept(device):
    def launcher(y, x):
        raise RuntimeError("not today")

    op, (x,) = op_of(launcher), vectors(device, 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not today"):
            op.launch(x)
    assert not op.plans


def test_an_error_on_the_tape_leaves_nothing(device):
    """One at the second sight: the third call is noted as the second would have been, and no mode is left behind."""
    days = iter((True, False, True, True))

    def launcher(y, x):
        if not next(days, True):
            raise RuntimeError("not today")
        twice(y, x)

    op, (x,) = op_of(launcher), vectors(device, 1)
    op.launch(x)
    with pytest.raises(RuntimeError, match="not today"):
        op.launch(x)
    assert tape.current.get() is None
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    for _ in range(3):
        assert torch.equal(op.launch(x), 2 * x)
    assert [isinstance(kept, replay.Plan) for kept in op.plans.values()] == [True]


def by_a_workspace(y, x):
    """Twice x, by way of a workspace that the last step doesn't take."""
    parts = torch.empty(2, 8, device=x.device)
    launch(double_kernel, 1, x, parts[1], x.numel(), BLOCK=16)
    launch(double_kernel, 1, parts[1], y, x.numel(), BLOCK=16)
    launch(double_kernel, 1, x, y, x.numel(), BLOCK=16)


def test_workspaces_are_freed(device):
    """In a repeated call a workspace lives until the last step that takes it, as in the launcher."""

    op, (x,) = op_of(by_a_workspace), vectors(device, 1)
    for _ in range(3):
        assert torch.equal(op.launch(x), 2 * x)
    (kept,) = op.plans.values()
    assert [ends for _, ends in kept.steps] == [(), (), (2,), ()]


def test_a_freed_workspace_is_gone(device, monkeypatch):
    """While a plan's last step runs, a workspace that it doesn't take is not in memory."""

    op, (x,) = op_of(by_a_workspace), vectors(device, 1)
    for _ in range(3):
        op.launch(x)
    (kept,) = op.plans.values()
    made, alive, (step, ends) = [], [], kept.steps[-1]

    def empty(*args, make=torch.empty_strided, **options):
        tensor = make(*args, **options)
        made.append(weakref.ref(tensor))
        return tensor

    def watched(tensors):
        alive.extend(each() is not None for each in made)
        step(tensors)

    monkeypatch.setattr(torch, "empty_strided", empty)
    assert torch.equal(kept._replace(steps=(*kept.steps[:-1], (watched, ends)))((x,)), 2 * x)
    assert alive == [True, False], "the result is, the workspace isn't"


COMPILED = """
import contextlib
import torch
from bench.host import launching_nothing
from cnn_triton.kernels.core import replay
from cnn_triton.kernels.matrix import conv2d
from cnn_triton.kernels.base.lang import triton

given = []
with launching_nothing("sm_90"):
    compiled = triton.compiler.CompiledKernel
    inner = compiled._init_handles
    def init(kernel):
        inner(kernel)
        kernel._run = lambda *args: given.append((kernel.name, *args[:3], *args[9:]))
    compiled._init_handles = init
    window = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros")
    def call(decide):
        given.clear()
        x, w, y = (torch.randn(*s) for s in ((2, 16, 6, 6), (8, 16, 3, 3), (2, 8, 6, 6)))
        b = torch.randn(8)
        pointers = {t.data_ptr(): name for t, name in ((x, "x"), (w, "w"), (b, "b"), (y, "y"))}
        with replay.deciding() if decide else contextlib.nullcontext():
            conv2d.CONV2D.launch(x, w, b, None, None, None, *window, "relu")
            conv2d.CONV2D_WEIGHT_GRAD.launch(y, x, w.shape, *window, False)
        def shown(value):
            if isinstance(value, torch.Tensor):
                return pointers.get(value.data_ptr(), "new"), value.dtype
            return tuple(map(shown, value)) if isinstance(value, tuple) else str(value)
        return [shown(args) for args in given]
    first, taped, planned, anew = call(False), call(False), call(False), call(True)
    plans = [*conv2d.CONV2D.plans.values(), *conv2d.CONV2D_WEIGHT_GRAD.plans.values()]
    assert len(plans) == 2 and all(isinstance(each, replay.Plan) for each in plans), plans
    assert len(first) >= 2 and first == taped == planned == anew, (first, taped, planned, anew)
    assert "'x'" in str(first) and "'b'" in str(first) and "'new'" in str(first)
print("done")
"""


def test_compiled(tmp_path):
    """Compiled kernels are given the same, on the same grid, by a plan as by a launcher."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]

"""Networks that others wrote, converted and compiled: as near to float64 as PyTorch, fused as docs/fusing.md says."""

import copy
import io
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn as tn

import cnn_triton
from cnn_triton.kernels.base.precision import DTYPES, ERROR_EPS, ERROR_RATIO

for library in ("transformers", "timm"):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed here", allow_module_level=True)

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT)
    from bench.zoo import SMALL, TIMM, network, said

# Of timm those that take less than a minute here; the others with --exhaustive.
BRIEF = (
    "mobilenetv3_small_100", "regnety_002", "repvgg_a0", "ghostnet_100", "dla46_c", "convnext_atto",
    "edgenext_xx_small", "rexnet_100",
)  # fmt: skip


def rows(seed):
    """Networks, training or not, dtypes: of float32 and bfloat16 each has one in turn; without a seed, all have all."""
    names = (*SMALL, *(TIMM if seed is None else BRIEF))
    dtypes = (torch.float32, torch.bfloat16, torch.float32)[(seed or 0) % 2 :]
    found = []
    for i, name in enumerate(names):
        some = dtypes[:2] if seed is None else dtypes[i % 2 : i % 2 + 1]
        found += [(name, train, dtype) for dtype in some for train in (False, True)]
        found.append((name, True, torch.float64))
    return found


def settled(name, device):
    """A network whose batch normalisations are as after some training, and eight images: statistics of fewer values
    multiply rounding errors."""
    model, x = network(name)
    for module in model.modules():
        if isinstance(module, tn.BatchNorm2d):
            tn.init.normal_(module.running_mean, 0, 0.1)
            tn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.to(device), torch.randn(8, *x.shape[1:], device=device)


def results(model, run, x, train):
    """Output, buffers, and in float64 the gradients of all parameters."""
    model.train(train)
    grads = ()
    with torch.set_grad_enabled(train):
        y = run(x)
        if train and x.dtype == torch.float64:
            parameters = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(y.square().mean(), parameters, allow_unused=True)
    return [[y.detach()], list(model.buffers()), [g for g in grads if g is not None]]


def distance(found, exact):
    """How far tensors are from float64's, as one vector, relative to that."""
    vectors = [torch.cat([each.double().flatten() for each in side]) for side in (found, exact)] if found else []
    return ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item() if found else 0.0


def assert_near(model, run, theirs, x, train, captures):
    """Our error is at most ERROR_RATIO times PyTorch's: of the output, and of all buffers. Gradients are compared in
    float64: with fewer digits rounding decides now and then which of two values is the largest, and they jump."""
    wide, dtype = copy.deepcopy(theirs).double(), x.dtype
    found, usual = results(model, run, x, train), results(theirs, theirs, x, train)
    if dtype == torch.float64:
        sixth = any("hardsigmoid" in pattern for pattern in captures.patterns)  # PyTorch's gradient has float32's 1/6
        for mine, others, most in zip(found, usual, (1e-9, 1e-9, 2.0**-24 if sixth else 1e-9), strict=True):
            assert distance(mine, others) <= most
        return
    for mine, others, exact in zip(found, usual, results(wide, wide, x.double(), train)[:2], strict=False):
        mine, others = distance(mine, exact), distance(others, exact)
        assert mine <= ERROR_RATIO * others + ERROR_EPS * DTYPES[dtype].eps


def assert_as_said(name, train, captures):
    """The row of docs/fusing.md."""
    lines = (ROOT / "docs" / "fusing.md").read_text().splitlines()
    (row,) = (line.strip("|").split("|") for line in lines if line.startswith(f"| {name} |"))
    patterns, left = said(captures)
    expected = [cell.strip() for cell in row]
    assert expected[3:] == [patterns] if train else expected[1:3] == [patterns, left]


@pytest.mark.cover
@pytest.mark.rotated("name, train, dtype", rows)
def test_converted(name, train, dtype, device):
    """Output, statistics, gradients; what is fused; its state loads into the original; reverted: the same bits."""
    model, x = settled(name, device)
    model, x = model.to(dtype), x.to(dtype)
    theirs = copy.deepcopy(model)
    kinds = [type(module) for module in model.modules()]
    report = cnn_triton.convert(model)
    assert not [layer for layer in report.layers if layer.outcome == "left" and "subclass" not in layer.why]
    before = cnn_triton.launches()
    assert_near(model, model, theirs, x, train, report.captures)
    ran = {op: count - before.get(op, 0) for op, count in cnn_triton.launches().items()}
    products = sum(ran.get(op, 0) for op in ("conv2d", "conv2d_with_preactivation", "conv2d_moments", "conv2d_pool"))
    assert products >= sum(isinstance(module, tn.Conv2d) for module in model.modules())
    assert report.captures.graphs == 1
    assert_as_said(name, train, report.captures)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file), strict=True)
    cnn_triton.revert(model)
    assert [type(module) for module in model.modules()] == kinds
    with torch.no_grad():
        assert torch.equal(model.eval()(x), theirs.eval()(x))


def compiled_rows(seed):
    """Transformers' networks and, in turn, one of timm's; without a seed, all of them."""
    some = TIMM if seed is None else BRIEF[seed % len(BRIEF) :][:1]
    return [(name, train) for name in (*SMALL, *some) for train in (False, True)]


@pytest.mark.cover
@pytest.mark.rotated("name, train", compiled_rows)
def test_compiled(name, train, device):
    """The same by torch.compile."""
    model, x = settled(name, device)
    theirs = copy.deepcopy(model)
    torch._dynamo.reset()
    cnn_triton.captures.clear()
    run = torch.compile(model, backend="cnn_triton", fullgraph=True)
    assert_near(model, run, theirs, x, train, cnn_triton.captures)
    assert cnn_triton.captures.graphs == 1
    assert_as_said(name, train, cnn_triton.captures)

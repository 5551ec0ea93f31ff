"""Whoever else follows a converted model's call: exporters, torch.func, modes, compilers, DDP and FSDP2."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch import nn as tn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import cnn_triton
from cnn_triton import nn
from cnn_triton.kernels.base.lang import INTERPRETING
from converted import PATTERNS, Parent, images, make, same


@pytest.mark.parametrize("whole", [True, False], ids=["alone", "as a part"])
@pytest.mark.parametrize("way", ["compile", "compile, ours", "jit.trace", "fx", "export", "export, strict"])
def test_others_see_the_layers(way, whole, device):
    """One by one, ours; the model itself stays as it was."""
    model, report, twin = make(device)
    x = images(device)
    if not whole:
        model, twin = Parent(model), Parent(twin)
    right = twin(x)
    torch._dynamo.reset()
    with torch.no_grad() if way == "jit.trace" else torch.enable_grad():
        if way == "compile":
            run = torch.compile(model, backend="aot_eager", fullgraph=True)
        elif way == "compile, ours":
            cnn_triton.captures.clear()
            run = torch.compile(model, backend="cnn_triton", fullgraph=True)
        elif way == "jit.trace":
            run = torch.jit.trace(model, (x,))
        elif way == "fx":
            run = fx.symbolic_trace(model)
        else:
            run = torch.export.export(model, (x,), strict=way.endswith("strict")).module()
        torch.testing.assert_close(run(x), right)
    if way == "compile, ours":
        assert dict(cnn_triton.captures.patterns) == PATTERNS
    assert report.captures.graphs == 0 or way == "jit.trace"  # which calls the model to compare
    torch.testing.assert_close(model(x), right)
    if whole or way == "jit.trace":
        same(report)


@pytest.mark.parametrize("dynamo", [True, False], ids=["by export", "by trace"])
def test_onnx(dynamo, device):
    """Both exporters, where no kernel runs: PyTorch's own operators, as the original's."""
    pytest.importorskip("onnxscript", reason="ONNX's packages are not installed here")
    model, report, twin = make(device)
    x = images(device)
    with cnn_triton.backend("aten"):
        programs = []
        for each in (model, twin):
            file = io.BytesIO()
            torch.onnx.export(each, (x,), file, dynamo=dynamo)
            programs.append(file.getvalue())
    assert len(programs[0]) > 0
    assert b"Conv" in programs[0]
    assert report.captures.graphs == 0


@pytest.mark.parametrize("way", ["grad", "vmap", "jvp", "functional_call", "stack of models"])
def test_functorch(way, device):
    """A transform from outside gets the layers; functional_call what is fused."""
    model, report, twin = make(device)
    x, state = images(device), dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def results(module):
        def loss(parameters):
            return torch.func.functional_call(module, (parameters, buffers), (x,)).square().sum()

        if way == "grad":
            return torch.func.grad(loss)(state)
        if way == "vmap":
            return torch.func.vmap(lambda image: module(image[None]))(x)
        if way == "jvp":
            return torch.func.jvp(module, (x,), (torch.ones_like(x),))
        if way == "functional_call":
            return torch.func.functional_call(module, {k: v * 2 for k, v in (state | buffers).items()}, (x,))
        stacked = {name: torch.stack([value, 2 * value]) for name, value in state.items()}
        return torch.func.vmap(lambda p: torch.func.functional_call(module, (p, buffers), (x,)))(stacked)

    torch.testing.assert_close(results(model), results(twin))
    assert report.captures.graphs == (way == "functional_call")
    model(x)
    same(report)
    graphs = report.captures.graphs
    torch.testing.assert_close(results(model), results(twin))
    model(x)
    assert report.captures.graphs == graphs  # what was captured before is good still


class Sees(TorchDispatchMode):
    """Notes operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class SeesCaptured(Sees):
    """Lets TorchDynamo work."""

    @classmethod
    def ignore_compile_internals(cls):
        return True


def test_modes(device):
    """A mode sees the layers, one that lets Dynamo work what was captured; neither is in the way of what follows. FLOPs
    are what they were."""
    model, report, twin = make(device)
    x = images(device)
    with torch.no_grad():
        model(x)
        for kind, activations in ((Sees, 2), (SeesCaptured, 0)):
            with kind() as mode:
                model(x)
            assert mode.names.count("cnn_triton::conv2d") == 2
            assert sum("relu" in name or "silu" in name for name in mode.names) == activations
        counted = []
        for each in (model, twin):
            with FlopCounterMode(display=False) as flops:
                each(x)
            counted.append(flops.get_total_flops())
        assert counted[0] == counted[1] > 0
        model(x)
    assert report.captures.graphs == 1


def test_a_part_that_was_converted_before(device):
    """The whole has the call; reverted, none has."""
    part, _, twin = make(device)
    x = images(device)
    part(x)
    model = tn.Sequential(part, tn.Conv2d(2, 2, 1).to(x), tn.ReLU())
    twin = tn.Sequential(twin, *copy.deepcopy(model[1:]))
    whole = cnn_triton.convert(model)
    torch.testing.assert_close(model(x), twin(x))
    assert dict(whole.captures.patterns) == PATTERNS | {"conv2d + relu": 1}
    assert "_compiled_call_impl" not in vars(part)
    cnn_triton.revert(model)
    assert type(part[0]) is tn.Conv2d
    assert torch.equal(model(x), twin(x))


def test_a_part_that_is_converted_later(device):
    part, _, twin = make(device)
    cnn_triton.revert(part)
    model, x = Parent(part), images(device)
    whole = cnn_triton.convert(model)
    report = cnn_triton.convert(part)
    torch.testing.assert_close(model(x), Parent(twin)(x))
    same(whole)
    torch.testing.assert_close(part(x), twin(x))
    same(report)


def test_a_model_that_is_compiled_already(device):
    """Its own call stays."""
    model, _, twin = make(device)
    cnn_triton.revert(model)
    model.compile(backend="eager")
    mine = model._compiled_call_impl
    report = cnn_triton.convert(model)
    assert "not captured: the model is compiled already" in str(report)
    torch.testing.assert_close(model(images(device)).shape, twin(images(device)).shape)
    cnn_triton.revert(model)
    assert model._compiled_call_impl is mine


def test_compiled_later(device):
    """torch.nn.Module.compile replaces the call, and reverting leaves it there."""
    model, report, twin = make(device)
    model.compile(backend="aot_eager")
    x = images(device)
    torch.testing.assert_close(model(x), twin(x))
    mine = model._compiled_call_impl
    cnn_triton.revert(model)
    assert model._compiled_call_impl is mine
    assert report.captures.graphs == 0


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def ddp(model):
    return DistributedDataParallel(model)


def sharded(model):
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=DeviceMesh("cpu", [0]))
    return model


@pytest.mark.skipif(not INTERPRETING, reason="its group is of CPUs")
@pytest.mark.parametrize("order", ["converted, then wrapped", "wrapped, then converted", "converted within"])
@pytest.mark.parametrize("wrap", [ddp, sharded])
def test_distributed(wrap, order, alone, device):
    """A training step under DDP and FSDP2."""
    model, report, twin = make(device, training=True)
    if order == "converted, then wrapped":
        wrapped = wrap(model)
    else:
        cnn_triton.revert(model)
        wrapped = wrap(model)
        report = cnn_triton.convert(wrapped if order == "wrapped, then converted" else model)
    for _ in range(2):
        x = images(device)
        y, right = wrapped(x), twin(x)
        torch.testing.assert_close(y, right)
        y.square().mean().backward()
        right.square().mean().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            grad = mine.grad.full_tensor() if hasattr(mine.grad, "full_tensor") else mine.grad
            torch.testing.assert_close(grad, theirs.grad)
    torch.testing.assert_close(list(model.buffers()), list(twin.buffers()))
    assert isinstance(model[0], nn.Conv2d) or wrap is sharded
    if wrap is ddp:  # FSDP2's hooks break the graph
        assert {"conv2d + batch_norm + relu", "conv2d + silu"} <= report.captures.patterns.keys(), str(report)

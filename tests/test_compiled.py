"""A converted model's call: who else may follow it, threads, captures, and what can't be captured."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import fx
from torch import nn as tn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cnn_triton
from cnn_triton import nn
from cnn_triton.fusion import capture, compiled
from cnn_triton.kernels.base.lang import INTERPRETING

X = (2, 3, 6, 7)
PATTERNS = {"conv2d + batch_norm + relu": 1, "conv2d + silu": 1}


def make(device, training=False):
    """A network, converted, what was said of it, and its twin, float64."""
    torch.manual_seed(torch.initial_seed())
    model = tn.Sequential(tn.Conv2d(3, 4, 3), tn.BatchNorm2d(4), tn.ReLU(), tn.Conv2d(4, 2, 1), tn.SiLU())
    model = model.to(device).double().train(training)
    tn.init.normal_(model[1].running_mean)
    twin = copy.deepcopy(model)
    return model, cnn_triton.convert(model), twin


def images(device):
    return torch.randn(X, dtype=torch.float64, device=device)


class Parent(tn.Module):
    """Has a model as a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) * 2


def same(report):
    """Is all of it captured as one would have it?"""
    assert dict(report.captures.patterns) == PATTERNS, str(report)


# Who else follows a call


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


# Threads


def test_threads(device):
    """Eight convert, train and revert models of one class while a ninth serves."""
    server, report, twin = make(device)
    x = images(device)
    with torch.no_grad():
        right = twin(x)
    stop, wrong = threading.Event(), []

    def guarded(work):
        def run():
            try:
                work()
            except BaseException as error:
                wrong.append(error)

        return threading.Thread(target=run)

    def serve():
        while not stop.is_set():
            with torch.no_grad():
                torch.testing.assert_close(server(x), right)

    def work():
        model = copy.deepcopy(twin).train()
        other = copy.deepcopy(model)
        mine = cnn_triton.convert(model)
        torch.testing.assert_close(model(x), other(x))
        torch.testing.assert_close(list(model.buffers()), list(other.buffers()))
        while not mine.captures.graphs:  # the layers run, while another thread captures
            torch.testing.assert_close(model(x), other(x))
        assert dict(mine.captures.patterns) == PATTERNS
        cnn_triton.revert(model)
        assert type(model[0]) is tn.Conv2d
        torch.testing.assert_close(model.eval()(x), other.eval()(x))

    serving, working = guarded(serve), [guarded(work) for _ in range(8)]
    before = vars(tn.Module).copy()
    for thread in (serving, *working):
        thread.start()
    for thread in working:
        thread.join()
    stop.set()
    serving.join()
    assert not wrong, wrong
    assert vars(tn.Module) == before
    same(report)


def test_a_thread_captures(device):
    """Meanwhile another's first call waits for nothing: it runs the layers."""
    model, report, twin = make(device)
    x, found = images(device), []
    other = threading.Thread(target=lambda: found.append(model(x)), daemon=True)
    with compiled._capturing:
        other.start()
        other.join(timeout=60)
        assert not other.is_alive()
    torch.testing.assert_close(found, [twin(x)])
    assert report.captures.graphs == 0
    torch.testing.assert_close(model(x), twin(x))
    same(report)


# Captures


def test_example(device):
    """Says what is fused without computing anything: statistics, gradients and random numbers stay."""
    model, _, twin = make(device, training=True)
    cnn_triton.revert(model)
    before, launched, state = copy.deepcopy(model.state_dict()), cnn_triton.launches(), torch.get_rng_state()
    report = cnn_triton.convert(model, torch.empty(X, dtype=torch.float64, device=device))
    same(report)
    assert cnn_triton.launches() == launched
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    x = images(device)
    torch.testing.assert_close(model(x), twin(x))
    same(report)
    for wrong, error in ((3, TypeError), ((), TypeError), (torch.empty(2, 4, 6, 7), RuntimeError)):
        with pytest.raises(error):
            cnn_triton.convert(model, wrong)


@pytest.mark.cover
@pytest.mark.parametrize("rest", ["eager", "aot_eager"])
def test_rest(rest, device):
    model, _, twin = make(device)
    cnn_triton.revert(model)
    report = cnn_triton.convert(model, rest=rest)
    x = images(device).requires_grad_()
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(*(torch.autograd.grad(each(x).square().sum(), x) for each in (model, twin)))
    same(report)
    if rest == "eager":
        assert torch.autograd.gradgradcheck(model, (images(device)[:1, :, :4, :4].requires_grad_(),))
    again = cnn_triton.convert(model, rest="eager")
    assert (again.call is report.call) == (rest == "eager")


def test_bad_rest(device):
    model = tn.Sequential(tn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"rest must be one of .*eager.*, but got 'fast'"):
        cnn_triton.convert(model, rest="fast")
    assert type(model[0]) is tn.Conv2d


def test_many_captures(device):
    """Train and eval mode, gradients or none, autocast, layouts and dtypes: each is captured once, and none is lost for
    there being many; what is captured again counts once."""
    model, report, twin = make(device)
    x = images(device)

    def turn():
        for training in (True, False):
            for dtype in (torch.float64, torch.float32):
                for layout in (torch.contiguous_format, torch.channels_last):
                    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
                        for each in (model, twin):
                            each.train(training).to(dtype)
                        given = x.to(dtype, memory_format=layout)
                        with context():
                            torch.testing.assert_close(model(given), twin(given), rtol=1e-3, atol=1e-3)

    turn()
    graphs = report.captures.graphs
    assert graphs >= 16  # twice Dynamo's own limit
    turn()
    assert report.captures.graphs == graphs
    same(report)


@pytest.mark.cover
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_changing_sizes(training, device):
    model, report, twin = make(device, training)
    for n, h, w in ((2, 6, 7), (3, 6, 7), (4, 6, 7), (7, 6, 7), (2, 8, 9), (5, 11, 7), (1, 6, 7)):
        x = torch.randn(n, 3, h, w, dtype=torch.float64, device=device)
        torch.testing.assert_close(model(x), twin(x))
    assert 0 < report.captures.graphs <= 4
    torch.testing.assert_close(list(model.buffers()), list(twin.buffers()))
    same(report)


class Checkpointed(tn.Module):
    """Keeps nothing of its layers for the backward pass."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_checkpoint(training, device):
    """Gradients, and the statistics, of a checkpointed part."""
    model, _, twin = make(device, training)
    cnn_triton.revert(model)
    model, twin = Checkpointed(model), Checkpointed(twin)
    report = cnn_triton.convert(model)
    x = images(device).requires_grad_()
    grads = [torch.autograd.grad(each(x).square().sum(), [x, *each.parameters()]) for each in (model, twin)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(list(model.buffers()), list(twin.buffers()))
    same(report)


# What can't be captured


class Fails(tn.Module):
    """Raises what it is told to."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.error, self.calls = tn.Conv2d(3, 4, 3), error, 0

    def forward(self, x):
        self.calls += 1
        y = F.relu(self.conv(x))
        if x.shape[0] == 1:
            raise self.error
        return y


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("wrong"), StopIteration(), torch.OutOfMemoryError("much")])
def test_errors_of_the_model(error, device):
    """They keep their types, happen once, and the next call is captured as ever."""
    model = Fails(error).to(device).double()
    report, x = cnn_triton.convert(model), images(device)
    for _ in range(2):
        with pytest.raises(type(error)):
            model(x[:1])
    assert model.calls == 2
    torch.testing.assert_close(model(x), F.relu(F.conv2d(x, model.conv.weight, model.conv.bias)))
    assert not report.call.failure
    assert report.captures.patterns["conv2d + relu"] == 1


def test_errors_of_operators(device):
    """PyTorch's own types and words, as of the original."""
    model, report, twin = make(device, training=True)
    x = images(device)
    for wrong in (x[:, :2], x[0], x.float(), x[:, :, :2], x[:1, :, :3, :3], None, [x]):
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            twin(wrong)
        with pytest.raises(theirs.type):
            model(wrong)
    assert model[1].num_batches_tracked == twin[1].num_batches_tracked
    assert not report.call.failure
    torch.testing.assert_close(model(x), twin(x))
    assert PATTERNS.items() <= dict(report.captures.patterns).items()


@pytest.mark.parametrize(
    "where", ["cnn_triton.fusion.capture.fuse", "torch._dynamo.symbolic_convert.InstructionTranslator.run"]
)
def test_a_crash_of_the_capture(where, device, monkeypatch):
    """The layers run, from then on, and the report says why."""
    model, report, twin = make(device)
    x, tries = images(device), []

    def crash(*args):
        tries.append(1)
        raise AssertionError("a defect")

    monkeypatch.setattr(where, crash)
    before = cnn_triton.launches().get("conv2d", 0)
    for _ in range(3):
        torch.testing.assert_close(model(x), twin(x))
    assert cnn_triton.launches()["conv2d"] == before + 6
    assert len(tries) == 1
    assert "not captured, the layers run one by one: AssertionError: a defect" in str(report)


class Breaks(tn.Module):
    """Does what Dynamo breaks a graph at, between two layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.seen = layers, []

    def forward(self, x):
        x = self.layers[:3](x)
        self.seen.append(x.sum().item())
        torch._dynamo.graph_break()
        return self.layers[3:](x)


def test_graph_breaks(device):
    """Around a break all is fused, as far as that goes; names are those of the model."""
    model, _, twin = make(device)
    cnn_triton.revert(model)
    model, twin = Breaks(model), Breaks(twin)
    report, x = cnn_triton.convert(model), images(device)
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(model.seen, twin.seen)
    assert report.captures.graphs == 2
    same(report)
    assert [each.where for each in report.captures.fused] == ["layers.0", "layers.3"]


def test_errors_after_a_graph_break(device, monkeypatch):
    """What has run is not run again: an operator's error comes as PyTorch's own, a crash of the capture as it is."""
    layers = (tn.Conv2d(3, 4, 3), tn.ReLU(), tn.Identity(), tn.BatchNorm2d(4))
    model = Breaks(tn.Sequential(*layers)).to(device).double()
    cnn_triton.convert(model)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(images(device)[:1, :, :3, :3])
    assert len(model.seen) == 1
    assert model(images(device)).isfinite().all()
    assert len(model.seen) == 2
    model.eval()
    fuse = capture.fuse

    def crash(module, names):
        if any(node.target is F.batch_norm for node in module.graph.nodes):
            raise AssertionError("a defect")
        return fuse(module, names)

    monkeypatch.setattr("cnn_triton.fusion.capture.fuse", crash)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="a defect"):
        model(images(device))
    assert len(model.seen) == 3


class Force(tn.Module):
    """Differentiates on its way."""

    def __init__(self):
        super().__init__()
        self.linear = tn.Linear(3, 4)

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = torch.tanh(self.linear(x)).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_gradients_within(device):
    """Dynamo keeps out of backward passes that run in what it follows."""
    model = Force().to(device).double()
    twin, x = copy.deepcopy(model), torch.randn(5, 3, dtype=torch.float64, device=device)
    report = cnn_triton.convert(model)
    for _ in range(2):
        y, right = model(x), twin(x)
        torch.testing.assert_close(y, right)
        grads = [
            torch.autograd.grad(each.square().sum(), m.linear.weight)[0] for each, m in ((y, model), (right, twin))
        ]
        torch.testing.assert_close(*grads)
    assert report.captures.graphs > 0


class Tagged(tn.Module):
    """Reads an attribute that is another at each call."""

    def __init__(self):
        super().__init__()
        self.conv, self.tag = tn.Conv2d(3, 4, 1), ""

    def forward(self, x):
        return F.relu(self.conv(x)) * (1 if self.tag != "zz" else 2)


def test_captures_end(device, monkeypatch):
    """At the limit the layers run, rather than another capture at each call."""
    monkeypatch.setattr("cnn_triton.fusion.compiled._GRAPHS", 3)
    settings = torch._dynamo.config._make_closure_patcher(skip_nnmodule_hook_guards=True, recompile_limit=3)
    monkeypatch.setitem(compiled._settings, False, settings)
    model = Tagged().to(device).double()
    report, x = cnn_triton.convert(model), images(device)
    right = F.relu(model.conv(x))
    for i in range(12):
        model.tag = str(i)
        torch.testing.assert_close(model(x), right)
    assert report.captures.graphs == 3


def test_a_part_that_brings_a_hook(device):
    """It counts until it is gone, and so do those that come later, elsewhere. (They keep nothing of a call: what they
    keep would be guarded.)"""
    model, _, twin = make(device)
    x, part = images(device), tn.Sigmoid()
    handle = part.register_forward_hook(lambda module, given, y: y * 2)
    model(x)
    model[4] = twin[4] = part
    torch.testing.assert_close(model(x), twin(x))
    handle.remove()
    torch.testing.assert_close(model(x), twin(x))
    for place in (0, 3, 1):
        for each in (model, twin):
            each[place].register_forward_hook(lambda module, given, y: y * 3)
        torch.testing.assert_close(model(x), twin(x))


def test_forward_of_the_class(device, monkeypatch):
    """Another one, put there later, runs."""
    model = Tagged().to(device).double()
    cnn_triton.convert(model)
    x = images(device)
    model(x)
    monkeypatch.setattr(Tagged, "forward", lambda self, x: self.conv(x).sin())
    torch.testing.assert_close(model(x), model.conv(x).sin())


def test_what_copies_the_dict(device):
    """Replicas of torch.nn.DataParallel, copy.copy and a __deepcopy__ of one's own run with their own weights."""
    model, report, twin = make(device)
    x = images(device)
    right = twin(x)
    torch.testing.assert_close(model(x), right)
    copies = [model._replicate_for_data_parallel(), copy.copy(model)]
    last = model[3]._replicate_for_data_parallel()
    for name, weight in model[3]._parameters.items():
        setattr(last, name, weight.detach() * 2)
    for each in copies:
        each._modules = {**each._modules, "3": last}
        torch.testing.assert_close(each(x), F.silu(2 * twin[3](twin[:3](x))))
    torch.testing.assert_close(model(x), right)
    for each in copies:
        assert cnn_triton.convert(each).call not in (report.call, None)

    class Own(tn.Module):
        def __init__(self):
            super().__init__()
            self.conv = tn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.relu(self.conv(x))

        def __deepcopy__(self, memo):
            copied = type(self).__new__(type(self))
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return copied

    model = Own().to(device).double()
    cnn_triton.convert(model)
    copied = copy.deepcopy(model)
    copied.conv.weight.data.zero_()
    assert not torch.equal(copied(x), model(x))


def test_a_graph_module(device):
    """torch.fx's own modules, their pickles and what is edited in them."""
    graph = fx.symbolic_trace(tn.Sequential(tn.Conv2d(3, 4, 3), tn.ReLU())).to(device).double()
    report, x = cnn_triton.convert(graph), images(device)
    right = F.relu(graph.get_submodule("0")(x))
    torch.testing.assert_close(graph(x), right)
    assert dict(report.captures.patterns) == {"conv2d + relu": 1}
    torch.testing.assert_close(pickle.loads(pickle.dumps(graph))(x), right)
    torch.testing.assert_close(copy.deepcopy(graph)(x), right)
    for node in graph.graph.nodes:
        if node.op == "output":
            with graph.graph.inserting_before(node):
                node.args = (graph.graph.call_function(torch.neg, node.args),)
    graph.recompile()
    torch.testing.assert_close(graph(x), -right)


def test_dynamo_is_off(device):
    """The layers run."""
    model, report, twin = make(device)
    x = images(device)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(model(x), twin(x))
    assert report.captures.graphs == 0
    torch.testing.assert_close(model(x), twin(x))
    same(report)


def test_collected(device):
    """A model that nobody has any more is freed at once, and its graphs with it."""
    model, report, _ = make(device)
    model(images(device))
    gone = [weakref.ref(model[0].weight), weakref.ref(report.call)]
    gc.collect()
    gc.disable()
    try:
        del model, report
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(not INTERPRETING, reason="on a GPU other devices are there")
def test_ours_in_an_original(device):
    """A converted part of a model that is not."""
    part, report, twin = make(device)
    model = Parent(part)
    x = images(device)
    torch.testing.assert_close(model(x), Parent(twin)(x))
    same(report)
    assert isinstance(part[0], nn.Conv2d)

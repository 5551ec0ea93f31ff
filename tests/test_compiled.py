"""A converted model's call: threads, what is captured and when, copies, and when it is freed."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch import nn as tn
from torch.utils.checkpoint import checkpoint

import cnn_triton
from cnn_triton import nn
from cnn_triton.fusion import compiled
from cnn_triton.kernels.base.lang import INTERPRETING
from converted import PATTERNS, Parent, X, images, make, same

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
    make(device)[0](x)  # TorchDynamo changes torch.nn.Module itself, once, at its first use
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
    before = cnn_triton.launches()
    with cnn_triton.backend("aten"), torch.no_grad():
        torch.testing.assert_close(model(x), twin(x))
    assert cnn_triton.launches() == before
    again = cnn_triton.convert(model, rest="eager")
    assert (again.call is report.call) == (rest == "eager")


def test_bad_rest(device):
    model = tn.Sequential(tn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"rest must be a backend of torch\.compile, .*'eager'.*, but got 'fast'"):
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

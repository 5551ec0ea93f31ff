"""Where a step's time goes: layers, passes, FLOPs, launches are those of the step; the command's files and errors."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import cnn_triton
from cnn_triton import nn
from cnn_triton.kernels.base.lang import INTERPRETING
from cnn_triton.tools.profiling import profile
from small import command, refused, write_images


def network():
    """A layer that is used twice, and one whose results are a tuple."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.ConvReLU2d(3, 4, 3, padding=1)
            self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.pool = nn.MaxPool2d(2, return_indices=True)
            self.last = nn.Linear(4 * 3 * 4, 5)

        def forward(self, x):
            x = self.again(self.again(self.first(x)))
            y, _ = self.pool(x)
            return self.last(y.flatten(1))

    return Twice()


def plain(model, images, training):
    model.train(training)
    output = model(images)
    if training:
        output.square().sum().backward()


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("where", ["auto", "aten"])
def test_rows(where, training, device):
    model, x = network().to(device), torch.randn(2, 3, 6, 8, device=device)
    with cnn_triton.backend(where):
        result = profile(model, x, training=training, steps=2)
        assert model.training  # as it was
        with FlopCounterMode(display=False) as counter:
            plain(model, x, training)
    assert sum(row.flops for row in result.rows) == counter.get_total_flops() > 0
    found = {(row.layer, row.phase) for row in result.rows}
    layers = ("first", "again", "pool", "last")
    phases = ("forward", "backward") if training else ("forward",)
    assert {(layer, phase) for layer in layers for phase in phases} <= found
    assert {layer for layer, _ in found} <= {*layers, "(model)", "(rest)"}
    products = [row for row in result.rows if row.flops and row.phase == "forward"]
    assert {row.layer: row.calls for row in products} == {"first": 1, "again": 2, "last": 1}
    assert all(row.milliseconds > 0 and row.bytes > 0 for row in products)
    assert {row.kind for row in result.rows if row.layer == "again"} == {"Conv2d"}
    if where == "auto":
        assert {row.operator for row in products} == {"conv2d", "linear"}
        assert all(row.launches >= row.calls for row in products)
    assert result.host > 0
    assert result.device > 0
    assert bool(result.kernels) == (device.type == "cuda")
    assert any("no GPU" in line for line in result.unknown) == (device.type == "cpu")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_stay_right(device):
    """The nodes' hooks change nothing."""
    model, x = network().to(device), torch.randn(2, 3, 6, 8, device=device)
    plain(model, x, True)
    before = [p.grad.clone() for p in model.parameters()]
    profile(model, x, training=True, steps=1)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))


def test_files(tmp_path):
    code, said, error = command(
        "profile", "lenet5", "--input", "1x6x7", "--batch-size", "2", "--training", "--steps", "1",
        "--json", tmp_path / "out" / "figures.json", "--trace", tmp_path / "trace.json",
    )  # fmt: skip
    assert code == 0, error
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert {"features.0", "classifier.2"} <= {row["layer"] for row in figures["rows"]}
    events = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"features.0", "features.0, backward", "classifier.2"} <= events
    for word in ("features.0", "ConvReLU2d", "backward", "ms a step"):
        assert word in said


MODULE = """
import torch

def pair():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))

def number():
    return 3

def needs(size):
    return pair()
"""


@pytest.mark.cover
def test_compare(tmp_path, monkeypatch):
    """A model of the user's own, PyTorch's layers beside the converted ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE.replace("LazyLinear(", "Linear(4 * 6 * 5, "))
    code, said, error = command("profile", "mine:pair", "--input", "3x8x7", "--compare", "--steps", "1", "--training")
    assert code == 0, error
    assert "PyTorch / ours" in said
    assert "conv2d + relu: 1" in said  # the conversion's report
    for wrong, words in (
        ("mine:number", "must return a torch.nn.Module"),
        ("mine:needs", "without arguments"),
        ("mine:nothing", "no attribute"),
        ("nowhere:pair", "No module named"),
        ("lenet", "did you mean lenet5"),
        ("nothing", "there are lenet5,"),
    ):
        refused(("profile", wrong), words)
    refused(("profile", "lenet5", "--input", "28x28"), "--input must be channels x height x width")


def test_runs(tmp_path):
    """A run's folder, whose images have one size."""
    images = write_images(tmp_path / "images", ("dark", "bright"), side=6)
    run = tmp_path / "run"
    assert command("train", "--data", images, "--size", "6", "--epochs", "1", "--out", run)[0] == 0
    code, said, error = command("profile", run, "--steps", "1")
    assert code == 0, error
    assert "features.0" in said
    refused(("profile", run, "--input", "3x9x9"), "the run in")


def test_a_file_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    page = tmp_path / "file" / "figures.json"
    refused(("profile", "lenet5", "--input", "1x4x4", "--steps", "1", "--json", page), f"{page}: ")


@pytest.mark.skipif(not INTERPRETING, reason="where kernels are compiled, there are ceilings")
def test_what_the_interpreter_can_not_say(tmp_path):
    refused(
        ("profile", "lenet5", "--input", "1x4x4", "--steps", "1", "--roofline", tmp_path / "roof.png"), "interpreter"
    )
    assert list(tmp_path.iterdir()) == []


def test_ncu():
    code, said, _ = command("profile", "lenet5", "--ncu", "conv_kernel", "--training", "--device", "cpu")
    assert code == 0
    assert "ncu --kernel-name regex:conv_kernel" in said
    assert "cnn-triton profile lenet5 --device cpu --training" in said


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_what_is_profiled_is_what_runs(training, device):
    """Of a converted model the fused kernels, as without a profiler."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    ).to(device)  # fmt: skip
    cnn_triton.convert(model)
    x = torch.randn(2, 2, 8, 6, device=device)
    before = cnn_triton.launches()
    plain(model, x, training)
    after = cnn_triton.launches()
    ran = {name for name, count in after.items() if count > before.get(name, 0)}
    result = profile(model, x, training=training, steps=1)
    assert {row.operator for row in result.rows if row.launches} >= ran - {"bias_grad"}
    assert {row.operator for row in result.rows if row.layer == "0" and row.phase == "forward"} == {"conv2d_pool"}
    if training:
        assert {row.operator for row in result.rows if row.layer == "0" and row.phase == "backward"} >= {
            "conv2d_pool_grad"
        }


def test_backward_of_what_a_parent_calls(device):
    """Functions between two children are the parent's, backward too; modes of modules stay as they were."""

    class Parent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(self.first(x).exp().mean((2, 3)))

    model = Parent().to(device)
    model.first.eval()
    result = profile(model, torch.randn(2, 2, 5, 5, device=device), training=True, steps=1)
    assert (model.training, model.first.training, model.second.training) == (True, False, True)
    by_layer = {}
    for row in result.rows:
        by_layer.setdefault((row.layer, row.phase), set()).add(row.operator)
    assert {"exp", "mean"} <= by_layer["(model)", "forward"]
    assert {"mul", "div"} <= by_layer["(model)", "backward"]
    assert "conv2d_weight_grad" in by_layer["first", "backward"]
    assert "mul" not in by_layer["second", "backward"]


@dataclasses.dataclass
class Maps:
    """Results of a module, as libraries of models return them."""

    maps: torch.Tensor


class Wrapped(torch.nn.Module):
    """A function of images, or of Maps, whose result is Maps."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return Maps(self.function(x.maps if isinstance(x, Maps) else x))


class Unwrap(torch.nn.Module):
    """Returns the tensor in Maps."""

    def forward(self, x):
        return x.maps


@pytest.mark.parametrize("last", [(), (Unwrap(),)], ids=["a dataclass", "a tensor"])
def test_dataclasses(last, device):
    """The backward pass behind a dataclass is counted to the module that made it, whatever the model returns."""
    model = torch.nn.Sequential(Wrapped(torch.nn.Conv2d(2, 3, 3)), Wrapped(torch.sin), *last).to(device)
    result = profile(model, torch.randn(2, 2, 5, 5, device=device), training=True, steps=1)
    behind = {(row.layer, row.operator) for row in result.rows if row.phase == "backward"}
    assert {("0.function", "convolution_backward"), ("1", "cos")} <= behind
    assert {layer for layer, _ in behind} == {"0.function", "1"}

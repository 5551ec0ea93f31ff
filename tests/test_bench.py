"""The benchmarks as a test of themselves: every problem, baselines, both clocks, the table's rows and means."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cnn_triton  # noqa: E402
from bench import layers, measure, memory, problems, publish, report  # noqa: E402
from bench.networks import vgg16_features  # noqa: E402
from bench.run import bench, planned  # noqa: E402

CPU, META = torch.device("cpu"), torch.device("meta")
LIMITS = {"copy, GB/s": 1.0, "fp32 product, TFLOP/s": 1.0}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU `make gpu` runs the suite itself")


def small(device):
    return problems.dense((4, 8, 4), "training", torch.float32, device)


@pytest.mark.cover
@no_gpu
def test_report(tmp_path, monkeypatch):
    """Every problem gives a row with its rates, torch.compile's replace theirs, and the table has a line for each."""
    monkeypatch.setattr(measure, "COMPILE", ({"backend": "aot_eager"},))  # traced, but not compiled for seconds
    names = list(problems.problems(CPU, 4))
    found = bench(tmp_path, minutes=5, rounds=1, batch=4, compiled=(names[0], names[1]))
    assert not found["failed"]
    assert not found["left out"]
    assert [row["problem"] for row in found["rows"]] == names
    assert found["means"] == []  # the demo's layers are none of the networks'
    for row in found["rows"]:
        assert row["launches"] > 0
        assert row["flops"] > 0
        assert row["bytes"] > 0
        assert row["ratio"]["eager"] > 0
        assert row["milliseconds"]["ours"]["p20"] <= row["milliseconds"]["ours"]["p50"]
    assert [row["problem"] for row in found["rows"] if "compile" in row["ratio"]] == names[:2]
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(found))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(names) + 2  # its head is two lines


@pytest.mark.cover
@no_gpu
def test_layers_of_the_networks(tmp_path, monkeypatch):
    """LeNet-5's layers through all of it: rows, means that follow from the rows, both in the table."""
    few = {layer.name: layer for layer in layers.LAYERS if layer.times("LeNet-5") and layer.k < 120}
    made = lambda batch, device: problems._layers("fp32", few, batch, problems.CONV_MODES[:2], torch.float32, device)  # noqa: E731
    monkeypatch.setattr(problems, "_demo", made)
    found = bench(tmp_path, minutes=5, rounds=1, batch=2, compiled=())
    assert not found["failed"]
    assert len(found["rows"]) == 2 * len(few)
    publish.plots(tmp_path)
    assert all((tmp_path / f"{name}.svg").read_text().startswith("<?xml") for name in ("roofline", "ratios"))
    text = (tmp_path / "results.md").read_text()
    for mode, mean in zip(("forward", "training"), found["means"], strict=True):
        ratios = [row["ratio"]["eager"] for row in found["rows"] if row["problem"].endswith(f", {mode}")]
        assert mean["layers"] == len(ratios) == len(few)
        assert math.isclose(mean["best baseline / ours"], math.prod(ratios) ** (1 / len(ratios)))
        assert mean["batch"] == 2
        assert (
            f"| fp32 {mode}, batch 2 | {mean['best baseline / ours']:.3g} | {len(few)} of {len(layers.LAYERS)} |"
            in text
        )


@pytest.mark.cover
@no_gpu
def test_resumed(tmp_path, monkeypatch):
    """A resumed run measures what is not there yet, keeps the rest and its ceilings, and retries what failed."""
    monkeypatch.setattr(measure, "COMPILE", ({"backend": "aot_eager"},))
    names = [name for name in problems.problems(CPU, 4) if "fc" in name and "forward" in name]
    found = bench(tmp_path, 5, names[1], rounds=1, batch=4, compiled=())
    dense = problems.dense
    monkeypatch.setattr(problems, "dense", lambda *args: 1 / 0)
    with monkeypatch.context() as patch:
        patch.setattr("bench.run.ceilings", lambda *args: pytest.fail("measured anew"))
        again = bench(tmp_path, 5, "fc", rounds=1, batch=4, compiled=(), resume=True)
        assert again["rows"] == json.loads(json.dumps(found["rows"]))
        assert names[0] in again["failed"]
        assert names[1] not in again["failed"]
        none = bench(tmp_path, 0, "fc", rounds=1, batch=4, compiled=tuple(names), resume=True)
        assert set(none["left out"]) >= {names[0], names[2], f"{names[1]}, with torch.compile"}
        patch.setattr(problems, "dense", dense)
        last = bench(tmp_path, 5, "forward", rounds=1, batch=4, compiled=tuple(names[:2]), resume=True)
    assert {row["problem"] for row in last["rows"]} >= set(names)
    assert [name for name in names if name in last["failed"] or name in last["left out"]] == []
    assert [row["problem"] for row in last["rows"] if "compile" in row["ratio"]] == [names[1], names[0]]
    assert planned(names, tuple(names[:2]), last["rows"]) == {}
    assert last["ceilings"] == found["ceilings"]
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(last))
    monkeypatch.setattr("bench.report.commit", lambda: "another")
    with pytest.raises(ValueError, match="it had another commit"):
        bench(tmp_path, 0, batch=4, resume=True)


def row(problem, share=1.0, **ratio):
    return {"problem": problem, "ratio": ratio, "share of product": share}


def test_means():
    """Of the best baseline of each layer, by arithmetic, batch and mode; of heavy layers' shares; of nothing else."""
    rows = [
        row("bf16 conv2d_relu 3x3 256-256 @14 s1, forward", 0.4, eager=2.0, compile=1.0),
        row("bf16 conv2d_relu 3x3 512-512 @7 s1, forward", 0.1, eager=4.0),
        row("bf16 conv2d_relu 3x3 64-64 @56 s1, forward", 0.7, eager=8.0, compile=32.0),
        row("bf16 conv2d_relu 3x3 384-384 @14 s1 g384, forward", 0.9, eager=0.5),
        row("bf16 linear_relu fc 96-384 @56, forward", 0.5, eager=1.0),
        row("bf16 conv2d_relu 3x3 256-256 @14 s1 n256, forward", 0.6, eager=6.0, compile=9.0),
        row("bf16 conv2d_relu 3x3 256-256 @14 s1, training", 0.3, eager=3.0),
        row("bf16 conv2d 3x3 256-256 @14 s1, weight grad", 0.2, eager=5.0),
        row("tf32 conv2d_relu 3x3 64-64 @56 s1, forward", 0.7, eager=7.0),
        row("bf16 max_pool2d vgg16 2x2, forward", 0.7, eager=100.0),
        row("bf16 LeNet5 256x3x64x64, training", 0.7, eager=100.0),
        row("fp32 conv2d_relu demo conv1, forward", 0.7, eager=100.0),
    ]
    key = ("arithmetic", "batch", "mode")
    found = {tuple(map(mean.pop, key)): list(mean.values()) for mean in report.means(rows)}
    # layers, of these with torch.compile, geometric mean of the ratios; heavy layers, geometric mean of their shares
    assert found == {
        ("bf16", 32, "forward"): [5, 2, pytest.approx((1.0 * 4.0 * 8.0 * 0.5 * 1.0) ** 0.2), 2, pytest.approx(0.2)],
        ("bf16", 256, "forward"): [1, 1, pytest.approx(6.0), 1, pytest.approx(0.6)],
        ("bf16", 32, "training"): [1, 0, pytest.approx(3.0), 1, pytest.approx(0.3)],
        ("bf16", 32, "weight grad"): [1, 0, pytest.approx(5.0), 1, pytest.approx(0.2)],
        ("tf32", 32, "forward"): [1, 0, pytest.approx(7.0), 0, None],
    }
    text = "\n".join(report._means(rows))
    assert "| bf16 forward | 1.74 | 5 of 89 | 20.00% | 2 of 12 |" in text
    assert "| bf16 forward, batch 256 | 6 | 1 of 89 | 60.00% | 1 of 12 |" in text
    assert "| bf16 weight grad | 5 | 1 of 73 | 20.00% | 1 of 12 |" in text
    assert "| tf32 forward | 7 | 1 of 89 |  | 0 of 12 |" in text
    assert "torch.compile, which 3 of these 9 rows have" in text


@no_gpu
def test_no_time_leaves_a_report(tmp_path):
    found = bench(tmp_path, minutes=0, batch=4)
    assert found["rows"] == []
    assert json.loads((tmp_path / "bench.json").read_text())["left out"]
    assert "left out for want of time" in (tmp_path / "results.md").read_text()


@pytest.mark.cover
def test_gpu_problems_are_well_formed():
    """The GPU's list makes sense before a GPU sees it: shapes fit, forward and backward, on the meta device."""
    listed = problems.problems(torch.device("cuda"))
    assert set(problems.COMPILED) <= set(listed)
    made = problems.problems(META)
    assert list(made) == list(listed)
    for name, make in made.items():
        problem = make()
        assert name.split()[0] in measure.DTYPES
        assert problem.tensors[0].dtype == measure.DTYPES[name.split()[0]]
        results = measure.step(problem.theirs, problem, measure.gradient(problem))()
        if problem.mode == "forward":
            shapes = [result.shape for result in measure.step(problem.ours, problem, None)()]
        else:
            shapes = [problem.tensors[i].shape for i in problem.wrt]
        assert [result.shape for result in results[-len(shapes) :]] == shapes


def test_gpu_problems_cover_the_layers():
    """Every layer forward and in training, every convolution's gradients alone; the important layers first."""
    listed = list(problems.problems(torch.device("cuda")))

    def found(start, mode, large):
        names = [n for n in listed if n.startswith(start) and n.endswith(f", {mode}") and (" n256," in n) == large]
        return [layer for layer in map(problems.layer_of, names) if layer]

    for arithmetic in ("bf16", "tf32", "fp16"):
        for mode in problems.CONV_MODES:
            for large in (False, True):
                each, gradient = found(arithmetic, mode, large), mode in problems.CONV_MODES[2:]
                wanted = [layer for layer in layers.LAYERS if layer.kind == "conv" or not gradient]
                assert set(each) == set(wanted if not gradient or (arithmetic, large) == ("bf16", False) else ())
                assert len(each) == len(set(each))
    for mode in problems.NCHW_MODES:
        assert set(found("bf16", mode, False)) == {layer for layer in layers.LAYERS if layer.heavy}
    for part in problems.PARTS:
        assert (
            list(problems.problems(torch.device("cuda"), part=part))
            == [name for name in listed if problems.part_of(name) == part]
            != []
        )
    assert sum(problems.part_of(name) == "model" for name in listed) == 1 + 4 * 2 * 2
    listed = [name for name in listed if name.startswith("bf16") and " n256" not in name]
    order = [layer for layer in map(problems.layer_of, listed) if layer]
    old = {"ResNet-50", "VGG-16"}
    kinds = ["heavy" if layer.heavy else "old" if old & set(dict(layer.networks)) else "rest" for layer in order]
    assert kinds == sorted(kinds, key=["heavy", "old", "rest"].index)
    assert listed[0] == "bf16 LeNet5 256x3x64x64, training"


def test_flops_and_bytes(device):
    """A forward and a backward pass count what their operators' records say."""
    x, w, b = (4 * 8, 4 * 8, 4)
    y = 4 * 4
    with measure.Counted() as counted:
        measure.step(small(device).ours, small(device)._replace(mode="forward"), None)()
    assert (counted.flops, counted.bytes) == (2 * 4 * 8 * 4, 4 * (x + w + b + y))
    with measure.Counted() as counted:
        measure.step(small(device).ours, small(device), measure.gradient(small(device)))()
    assert counted.flops == 3 * 2 * 4 * 8 * 4 + 2 * y


def test_a_wrong_or_failing_baseline_is_not_timed(device, monkeypatch):
    clock = measure.clock_for(device)
    found = []

    def compile(function, **options):
        found.append(options)
        if len(found) == 1:
            raise RuntimeError("it can't")
        return lambda *t: 2 * function(*t)

    monkeypatch.setattr(torch, "compile", compile)
    row = measure.measure("fp32 small", small(device), clock, LIMITS, rounds=3, compile=True)
    assert "compile" not in row["milliseconds"]
    assert "failed: RuntimeError: it can't" in row["notes"][0]
    assert "not timed" in row["notes"][1]
    assert [options["mode"] for options in found] == ["max-autotune-no-cudagraphs", "default"]


def test_our_wrong_result_is_not_timed(device):
    wrong = small(device)._replace(ours=lambda *t: 1.1 * small(device).ours(*t))
    with pytest.raises(AssertionError, match="our error is"):
        measure.measure("fp32 small", wrong, measure.clock_for(device), LIMITS, rounds=3)


@no_gpu
def test_gpu_clock(monkeypatch):
    """The GPU's clock, with events that say what was queued before them: a flush before the run, nothing after."""
    queue = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(queue)

        def elapsed_time(self, end):
            return 0.5 * len(queue[self.at : end.at])

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = measure.GpuClock(CPU, size=16)
    run = lambda: queue.extend("ab")  # noqa: E731
    times = measure.interleaved({"ours": run, "eager": lambda: queue.append("c")}, clock, 5, 10.0)
    assert times["ours"]["p50"] == 1.0
    assert times["eager"]["p50"] == 0.5
    assert times["ours"]["rounds"] == 5
    assert clock.flushes >= 2


def test_memory():
    """What layers keep for the backward pass: VGG-16's features at most 0.55 of what they kept before conversion, and a
    locally connected layer no copy of its windows, nothing at all beside its input; by fake tensors, which count as
    real ones do."""
    vgg, local = memory.STACKS
    for dtype in ("fp32", "bf16"):
        assert memory.measured(vgg, 32, dtype)["ratio"]["saved"] <= 0.55
        kept = memory.measured(local, 32, dtype)["saved, bytes"]
        assert kept["PyTorch"] >= 9 * 32 * 64 * 28**2 * measure.DTYPES[dtype].itemsize
        assert kept["ours"] == 0
    small = memory.measured(vgg, 1, "fp32", (3, 32, 32))["saved, bytes"]
    model, x = vgg16_features(), torch.randn(1, 3, 32, 32)
    assert memory.saved(model, x) == small["PyTorch"]
    report = cnn_triton.convert(model, x)
    assert dict(report.captures.patterns) == {"conv2d + relu": 8, "conv2d + relu + max_pool2d": 5}
    assert report.count("left") == 0
    assert memory.saved(model, x) == small["ours"]


@pytest.mark.cover
def test_blocks(tmp_path):
    """What a pooled block compiles to, both ways back: no spills."""
    out = tmp_path / "blocks.json"
    command = [sys.executable, "-m", "bench.blocks", "--chips", "sm_90", "--layers", "vgg16 512 @14", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert {row["what"] for row in rows} == {"forward", "gradients, written", "gradients, read"}
    assert all(row["spills"] == 0 for row in rows)


@pytest.mark.cover
def test_converted(tmp_path):
    """What conversion costs on a CPU, at a tiny size, in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = tmp_path / "cpu" / "converted.json"
    command = [sys.executable, "-m", "bench.converted", "--rounds", "3", "--shape", "2", "4", "8", "8", "--out", out]
    subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["how"], row["mode"]) for row in rows] == [
        ("eager", "forward"), ("eager", "training"), ("compiled", "forward"), ("compiled", "training")
    ]  # fmt: skip
    for row in rows:
        assert row["ratio"] == row["converted"]["p50"] / row["original"]["p50"]
        assert row["converted"]["rounds"] == row["original"]["rounds"] == 3

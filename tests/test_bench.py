"""The benchmarks as a test of themselves: every problem, baselines, both clocks, files and table, and their limits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import gpu, measure, problems, report  # noqa: E402
from bench.run import bench  # noqa: E402

CPU, META = torch.device("cpu"), torch.device("meta")
LIMITS = {"copy, GB/s": 1.0, "fp32 product, TFLOP/s": 1.0}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU `make gpu` runs the suite itself")


def small(device):
    return problems.dense((4, 8, 4), "training", torch.float32, device)


@no_gpu
def test_report(tmp_path, monkeypatch):
    """Every problem gives a row with its rates, torch.compile's replace theirs, and the table has a line for each."""
    monkeypatch.setattr(measure, "COMPILE", ({"backend": "aot_eager"},))  # traced, but not compiled for seconds
    names = list(problems.problems(CPU, 4))
    found = bench(tmp_path, minutes=5, rounds=1, batch=4, compiled=(names[0], names[1]))
    assert not found["failed"]
    assert not found["left out"]
    assert [row["problem"] for row in found["rows"]] == names
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


@no_gpu
def test_no_time_leaves_a_report(tmp_path):
    found = bench(tmp_path, minutes=0, batch=4)
    assert found["rows"] == []
    assert json.loads((tmp_path / "bench.json").read_text())["left out"]
    assert "left out for want of time" in (tmp_path / "results.md").read_text()


def test_gpu_problems_are_well_formed(monkeypatch):
    """The GPU's list makes sense before a GPU sees it: shapes fit, forward and backward, on the meta device."""
    listed = problems.problems(torch.device("cuda"))
    assert set(problems.COMPILED) <= set(listed)
    monkeypatch.setattr(problems, "_demo", lambda batch, device: problems._gpu(device))
    made = problems.problems(META)
    assert list(made) == list(listed)
    for name, make in made.items():
        problem = make()
        assert name.split()[0] in measure.DTYPES
        assert problem.tensors[0].dtype == measure.DTYPES[name.split()[0]]
        results = measure.step(problem.theirs, problem, measure.gradient(problem))()
        shapes = [problem.tensors[i].shape for i in problem.wrt] if problem.mode != "forward" else []
        assert [r.shape for r in results[-len(shapes) :]] == shapes or problem.mode == "forward"


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


def test_a_part_out_of_time_leaves_its_log(tmp_path):
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    assert gpu.part("slow", command, tmp_path, 0.05).startswith("stopped after")
    assert (tmp_path / "slow.log").read_text().startswith("begun")


@no_gpu
def test_gpu_command_end_to_end(tmp_path, monkeypatch, capsys):
    """All of `bench.gpu` but the GPU: its processes run, here in the interpreter, and one folder holds the results."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some GPU")
    made = gpu.commands(tmp_path, 1)["bench"][0]
    short = [*made, "--only", "linear_relu demo fc3, forward", "--batch", "4"]
    quick = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_ops.py", "--cover", "0.01"]
    monkeypatch.setattr(
        gpu, "commands", lambda out, m: {"tests": (quick, {}), "sanitizer": ([""], {}), "bench": (short, {})}
    )
    assert gpu.main(["--out", str(tmp_path), "--minutes", "3"]) == 0, capsys.readouterr().out
    text = (tmp_path / "results.md").read_text()
    assert "| fp32 linear_relu demo fc3, forward |" in text
    assert "- tests: exit 0" in text
    assert "- sanitizer: skipped" in text
    assert {f.name for f in tmp_path.iterdir()} >= {"bench.json", "bench.log", "tests.log", "results.md", "parts.json"}


def test_table_says_what_failed():
    empty = {"environment": {"commit": report.commit()}, "ceilings": {}, "rows": [], "left out": ["b"]}
    text = report.table({**empty, "failed": {"a": "Error: x\ny"}})
    assert "- failed: a: Error: x y" in text
    assert "- left out for want of time: b" in text


@no_gpu
def test_gpu_command_says_what_it_needs():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA GPU is here")

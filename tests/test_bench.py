"""The benchmarks as a test of themselves: every problem of the demo, baselines, files and table, and torch.compile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import measure, problems  # noqa: E402
from bench.run import bench  # noqa: E402

CPU = torch.device("cpu")


def test_report(tmp_path, device):
    """Every problem gives a row with its rates, and the table has a line for each."""
    if device.type == "cuda":
        pytest.skip("on a GPU `make gpu` runs the whole suite")
    report = bench(tmp_path, minutes=5, only="", rounds=3)
    assert "failed" not in report, report["failed"]
    assert [row["label"] for row in report["rows"]] == list(problems.problems(device))
    for row in report["rows"]:
        assert row["launches"] > 0
        assert row["ratio"]["eager"] > 0
        assert row["milliseconds"]["ours"]["p20"] <= row["milliseconds"]["ours"]["p50"]
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(report))
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(report["rows"]) + 2


def test_gpu_problems_are_well_formed():
    """The GPU's list makes sense before a GPU sees it: shapes fit, FLOPs and bytes count, on the meta device."""
    with torch.device("meta"):
        for label, make in problems.problems(torch.device("cuda")).items():
            maker = make.__defaults__
            if maker is None:
                continue
            args = (*maker[0][:-1], torch.device("meta"))
            kind = {"conv2d_relu": problems.conv, "linear_relu": problems.dense}.get(label.split()[0], problems.pool)
            problem = kind(*args)
            assert problem.theirs(*problem.tensors).numel() > 0
            assert problem.flops > 0
            assert problem.bytes > 0


def test_a_wrong_baseline_is_not_timed(device, monkeypatch):
    problem = problems.dense("small", (4, 8, 4), True, torch.float32, device)
    monkeypatch.setattr(measure, "compiled", lambda function: lambda *t: 2 * function(*t))
    row = measure.measure(problem, device, rounds=3, compile=True)
    assert "compile" not in row["milliseconds"]
    assert "not timed" in row["notes"][0]
    monkeypatch.setattr(measure, "compiled", lambda function: function)
    assert measure.measure(problem, device, rounds=3, compile=True)["ratio"]["compile"] > 0


def test_our_wrong_result_is_not_timed(device):
    problem = problems.dense("small", (4, 8, 4), True, torch.float32, device)
    wrong = problem._replace(ours=lambda *t: 1.1 * problem.ours(*t))
    with pytest.raises(AssertionError, match="differs from PyTorch"):
        measure.measure(wrong, device, rounds=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")
def test_gpu_command_says_what_it_needs():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA GPU is here")

"""`make gpu` without a GPU: every step in time, an archive and logs whatever happens, the sources' version."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import gpu, layers, problems, publish, report, tune  # noqa: E402
from bench.calls import PASSES  # noqa: E402

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU `make gpu` runs the suite itself")


def test_commit_without_git(monkeypatch, tmp_path):
    """A copy of the sources knows what it is, and other sources are something else."""
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("one")
    first = report.commit()
    assert re.fullmatch("sources [0-9a-f]{16}", first)
    assert report.commit() == first
    (tmp_path / "kernels" / "a.py").write_text("two")
    assert report.commit() not in (first, "unknown")
    monkeypatch.setenv("CNN_TRITON_COMMIT", "1234")
    assert report.commit() == "1234"


@pytest.mark.cover
@pytest.mark.parametrize("heed", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_part_out_of_time_leaves_its_log(heed, tmp_path):
    """It is interrupted first, also where a shell began it all in the background, with interrupts ignored."""
    code = "import time\ntry:\n print('begun', flush=True)\n time.sleep(600)\nexcept KeyboardInterrupt:\n print('end')"
    before = signal.signal(signal.SIGINT, heed)
    try:
        assert gpu.run("slow", [sys.executable, "-c", code], tmp_path, 3).startswith("stopped, out of time, ")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "slow.log").read_text() == "begun\nend\n"


def tool(folder, name, text):
    """A command of that name, for a PATH that begins with the folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def rehearse(*words, **variables):
    """`make gpu` without a GPU: the same steps, small, in the interpreter."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not of the make around
    python = Path(sys.executable)
    command = ["make", "gpu", f"BIN={python.parent}", "READY=", f"ARGS=--rehearse {' '.join(map(str, words))}"]
    return subprocess.Popen(command, cwd=ROOT, env=alone | variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.cover
@no_gpu
def test_rehearsal(tmp_path, capsys):
    """All of `make gpu` but the GPU: every step's own processes run, and one folder and archive hold the results."""
    out, archive = tmp_path / "results" / "some-gpu", tmp_path / "back" / "all.tar.gz"
    # The memory checker runs what it is given.
    path = tool(tmp_path / "bin", "compute-sanitizer", 'while [ "${1#-}" != "$1" ]; do shift 2; done; exec "$@"')
    run = rehearse("--out", out, "--archive", archive, PATH=path, CNN_TRITON_PREPARED=str(tmp_path / "kernels"))
    said, _ = run.communicate()
    with capsys.disabled():  # each step's time
        print("", *[line for line in said.splitlines() if re.search(r": (exit|stopped|skipped)", line)], sep="\n")
    assert run.returncode == 0, said
    text = (out / "results.md").read_text()
    for name in gpu.STEPS:
        assert f"- {name}: exit 0, " in text
        assert (out / f"{name}.log").stat().st_size > 0
    assert re.search(r"sanitizer: exit 0, \d+ s; [1-9]\d* passed", text)
    with tarfile.open(archive) as file:
        assert set(file.getnames()) == {"some-gpu", *(f"some-gpu/{path.name}" for path in out.iterdir())}
    parts = {part: json.loads((out / f"{part}.json").read_text()) for part in problems.PARTS if part != "linear"}
    rows = {row["problem"]: row for found in parts.values() for row in found["rows"]}
    assert set(rows) == {name for name in problems.problems(CPU, 4) if problems.part_of(name) != "linear"}
    assert all(row["images/s"]["ours"] > 0 for name, row in rows.items() if " n2, " in name)
    assert len(json.loads((out / "tune.json").read_text())["rows"]) == len(PASSES)
    page = tmp_path / "page.md"
    page.write_text("\n".join(["# Mine", *publish.MARKS, "the end"]))
    for _ in range(2):  # the second time over what the first wrote
        assert publish.main(["--results", str(out.parent), "--page", str(page), "--arithmetic", "fp32"]) == 0
    table = page.read_text()
    assert table.startswith("# Mine\n")
    assert table.endswith("\nthe end")
    assert "| fp32, channels_last unless said | | some-gpu |" in table
    ratio = publish.mean(
        min(rows[name]["ratio"].values()) for name in rows if "conv2d_relu demo" in name and name.endswith(", forward")
    )
    assert f"| conv + bias + ReLU, forward | best baseline / ours | {ratio:.2f}x (2 of 2) |" in table
    assert "| whole networks, training step | best baseline / ours | not" not in table
    assert f"| 3x3, 128 channels or more, forward | of the product's ceiling | {publish.NONE} |" in table
    assert f"| conv2d_relu of 1x16x8x8, forward | the host's time | {publish.NONE} |" in table  # PyTorch's isn't known


@pytest.mark.cover
@no_gpu
def test_a_run_that_is_ended_leaves_its_archive(tmp_path):
    """A step that was done, the log of the one under way, and nothing still running."""
    archive = tmp_path / "all.tar.gz"
    path = tool(tmp_path / "bin", "compute-sanitizer", f"echo begun; echo $$ > {tmp_path}/pid; exec sleep 600")
    made = ["from bench import gpu", "every = gpu.STEPS", "gpu.STEPS = {n: every[n] for n in ('host', 'sanitizer')}"]
    code = "; ".join([*made, f"gpu.main(['--rehearse', '--out', '{tmp_path}/gpu', '--archive', '{archive}'])"])
    environment = os.environ | {"PATH": path, "CNN_TRITON_PREPARED": str(tmp_path / "kernels")}
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()) and run.poll() is None:
        time.sleep(0.1)
    run.terminate()
    said, _ = run.communicate()
    assert "host: exit 0, " in said
    assert "sanitizer: interrupted" in said
    with tarfile.open(archive) as file:
        held = {name: file.extractfile(f"gpu/{name}").read() for name in ("sanitizer.log", "results.md", "host.json")}
    assert held["sanitizer.log"] == b"begun\n"
    assert b"- sanitizer: interrupted" in held["results.md"]
    assert json.loads(held["host.json"])["rows"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_steps_fit_the_time(tmp_path, monkeypatch, capsys):
    """All of them, and the last ones if the first were late; one part alone gets all of the time."""
    assert sum(step.seconds for step in gpu.STEPS.values()) <= 60 * gpu.MINUTES
    assert {name: seconds for name, (_, seconds) in gpu.chosen(None, 4.5).items()} == {
        name: step.seconds / 2 for name, step in gpu.STEPS.items()
    }
    for name in (*gpu.STEPS, *gpu.ALONE):
        assert gpu.chosen(name, 2)[name][1] == 120
        words = gpu.chosen(name, 2)[name][0].command(tmp_path, 1.0)
        assert words[0] in (sys.executable, "compute-sanitizer")
    given = []
    monkeypatch.setattr(gpu, "run", lambda name, command, out, seconds, **rest: given.append(seconds) or "exit 0, 9 s")
    step = gpu.Step(0, lambda out, minutes: ["true"])
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    steps = {"a": (step, 50.0), "b": (step, 70.0), "c": (step, 10.0)}
    assert gpu.run_steps(steps, tmp_path, tmp_path / "x.tar.gz", 160.0, small=False)
    assert given == [50.0, 60.0, 10.0]
    given.clear()
    gpu.run_steps(steps, tmp_path, tmp_path / "x.tar.gz", 90.0, small=False)
    assert given == [1.0] * 3


def test_first_problems():
    """Heavy layers forward and in training in both layouts, two networks, pools, blocks, locally connected layers."""
    names = list(filter(problems.first, problems.problems(torch.device("cuda"))))
    heavy = sum(layer.heavy for layer in layers.LAYERS)
    by_part = Counter(map(problems.part_of, names))
    assert by_part["conv"] == heavy * 2 * 2
    assert by_part["model"] == 2 * 2
    assert by_part["linear"] == 0
    assert all(by_part[part] for part in ("pool", "block", "local"))
    assert all(name.startswith("bf16 ") and " n256" not in name for name in names)
    assert set(tune.FIRST) <= {layer.name for layer in layers.LAYERS}


@no_gpu
def test_gpu_command_says_what_it_needs():
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA GPU is here")

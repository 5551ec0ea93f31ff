"""The tuner: problems as launchers ask for them, best tiles, wrong ones kept out, and the rows that mend a pick."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import layers, tune  # noqa: E402
from cnn_triton.kernels.core import chips  # noqa: E402
from cnn_triton.kernels.matrix import gather  # noqa: E402
from cnn_triton.kernels.tiles import pick, shapes  # noqa: E402

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a chip and a clock of its own")
CONV, FC = layers.conv(32, 5, 32, 2, padding=0), layers.fc(16, 8)
# None of these is ever picked.
GOOD, BAD = (shapes.Tile(32, 32, 64, 4, stages) for stages in (2, 3))
BOXED = shapes.Tile(32, 32, 32, 4, 2, box=(2, 4, 4), programs=2)

pytestmark = pytest.mark.cover  # most run every tile of a problem in the interpreter


def clear():
    pick._product.cache_clear()
    pick._weight_grad.cache_clear()


@pytest.fixture
def hopper(monkeypatch):
    """The interpreter picks as Hopper does, and one tile of each way that operands come may serve."""

    def few(*asked, every=pick.serving):
        found = [tile._replace(programs=min(tile.programs, 2)) for tile in every(*asked) if tile.parts <= 2]
        return list({(tile.packed, tile.box): tile for tile in found}.values())

    monkeypatch.setattr(pick, "serving", few)
    monkeypatch.setattr("bench.report.commit", lambda: "this")
    clear()
    with chips.assuming("sm_90"):
        yield
    clear()


def known(monkeypatch, milliseconds):
    """Times are these, by tile, and none is measured."""

    def interleaved(runs, clock, rounds, seconds):
        times = {name: milliseconds(python(name)) for name in runs}
        return {name: {"p20": time, "p50": time, "p80": time} for name, time in times.items()}

    monkeypatch.setattr(tune, "interleaved", interleaved)


def python(text):
    return eval(text, dict(vars(shapes)))


@no_gpu
def test_report(hopper, tmp_path):
    """Every pass of every layer: the problem that the launcher asks for, the pick and all that can serve timed, the
    best of them; kept on disk, and not done again by a resumed run."""
    found = tune.tune(tmp_path, 5, layers=(FC, CONV), n=2)
    assert found["failed"] == {}
    assert found["left out"] == []
    names = [f"bf16 {layer.name}, {what}" for layer in (FC, CONV) for what in tune.PASSES]
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == names
    for name, row in rows.items():
        problem = python(row["problem"])
        best = pick.weight_grad if "weight" in name else pick.product
        assert python(row["pick"]) == best(problem, "half", "sm_90")
        timed = {python(tile): time for tile, time in row["milliseconds"].items()}
        assert set(timed) == {python(row["pick"]), *pick.serving(problem, "half", "sm_90")}
        assert row["failed"] == {}
        assert timed[python(row["best"])] == min(timed[python(tile)] for tile in row["p20, p80"])
        assert row["pick / best"] == timed[python(row["pick"])] / timed[python(row["best"])] >= 1
    forward, _, weight_grad = (rows[name] for name in names[3:])
    assert python(forward["problem"]) == shapes.Product((2, 4, 4), 32, 32, 4, tma=True, whole=True)
    assert python(weight_grad["problem"]) == shapes.WeightGrad((2, 4, 4), 32, 32, 4, tma=True)
    for row in (forward, weight_grad):
        assert {(bool(tile.box), tile.packed) for tile in map(python, row["milliseconds"])} == {
            (True, False), (False, True), (False, False),
        }  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {"tune.json", "tune.md"}
    assert json.loads((tmp_path / "tune.json").read_text()) == json.loads(json.dumps(found))
    lines = (tmp_path / "tune.md").read_text().splitlines()
    assert sum(line.startswith("| bf16") for line in lines) == 6
    again = tune.tune(tmp_path, 5, resume=True, layers=(CONV, FC), n=2)
    assert again["rows"] == json.loads(json.dumps(found["rows"]))


@no_gpu
@pytest.mark.parametrize("what", tune.PASSES)
def test_pasted_rows_mend_the_pick(hopper, tmp_path, monkeypatch, what):
    """What is printed for pick.TUNED is Python, and with it the best tile is picked."""
    monkeypatch.setattr(pick, "serving", lambda *asked: [GOOD, BOXED])
    known(monkeypatch, lambda tile: 1.0 if tile == BOXED else 2.0)
    (row,) = tune.tune(tmp_path, 5, what, layers=(CONV,), n=2)["rows"]
    assert (python(row["best"]), row["pick / best"]) == (BOXED, 2.0)
    assert list(row["milliseconds"]) == [row["pick"], tune.text(GOOD), row["best"]]
    assert list(row["p20, p80"]) == [row["pick"], row["best"]], "those that got further rounds"
    problem = python(row["problem"])
    _, text, _ = (tmp_path / "tune.md").read_text().split("```")
    tuned = python(f"{{{text.removeprefix('python')}}}")
    assert tuned == {("sm_90", "half", problem): BOXED}
    monkeypatch.setattr(pick, "TUNED", tuned)
    clear()
    best = pick.weight_grad if "weight" in what else pick.product
    assert best(problem, "half", "sm_90") == BOXED


@no_gpu
@pytest.mark.parametrize("fault", ["wrong", "unwritten", "raises"])
def test_a_wrong_tile_is_reported_and_not_chosen(hopper, tmp_path, monkeypatch, fault):
    """One of its values is off, or is never written, or it doesn't run: it isn't timed, though it were the fastest."""

    def launch(kernel, programs, *args, right=gather.launch, **constants):
        bad = (constants["META"].n, constants["num_stages"]) == (BAD.n, BAD.stages)
        if bad and fault == "raises":
            raise RuntimeError("out of resource: shared memory")
        right(kernel, programs - (bad and fault == "unwritten"), *args, **constants)
        if bad and fault == "wrong":
            y = args[3]
            y.data[1, 2, 3, 3] += 1

    monkeypatch.setattr(gather, "launch", launch)
    monkeypatch.setattr(pick, "serving", lambda *asked: [BAD, GOOD])
    known(monkeypatch, lambda tile: {BAD: 0.5, GOOD: 1.0}.get(tile, 2.0))
    found = tune.tune(tmp_path, 5, "forward", layers=(CONV,), n=3)
    (row,) = found["rows"]
    assert row["best"] == tune.text(GOOD)
    assert set(row["milliseconds"]) == {row["pick"], row["best"]}
    reason = "out of resource" if fault == "raises" else "wrong result"
    assert list(row["failed"]) == [tune.text(BAD)]
    assert reason in row["failed"][tune.text(BAD)]
    text = (tmp_path / "tune.md").read_text()
    assert "2 tiles were timed, 1 failed" in text
    assert f"- 1 of these as in {row['name']}, {tune.text(BAD)}: " in text
    assert reason in text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "tune", lambda **options: found)
    assert tune.main(["--out", str(tmp_path)]) == (fault != "raises")


def test_rounding_is_no_wrong_result():
    right = torch.randn(1000).bfloat16()
    tune.check(right * (1 + 2.0**-7), right)
    tune.check(right + 2.0**-8, right)
    tune.check(torch.zeros(3), torch.zeros(3))
    for value in (0.0, 4.2, math.nan, math.inf):
        wrong = right.clone()
        wrong[7], right[7] = value, 4.0
        with pytest.raises(AssertionError, match="wrong result"):
            tune.check(wrong, right)


def row(name, problem="Product((1, 1, 1), 1, 1, 1)", failed=(), **milliseconds):
    """A row in which `a` is picked."""
    best = min(milliseconds, key=milliseconds.get)
    ratio = milliseconds["a"] / milliseconds[best]
    made = {"name": name, "problem": problem, "kind": "half", "chip": "sm_90", "pick": "a", "best": best}
    return made | {"pick / best": ratio, "milliseconds": milliseconds, "failed": dict(failed)}


def test_means():
    """Geometric mean, worst and number of problems, of all and of each pass; failed tiles by kind, with an example."""
    failed = {"x": "OutOfResources: 1", "y": "AssertionError: wrong\nresult", "z": "OutOfResources: 2"}
    rows = [
        row("bf16 one, forward", a=3.0, b=3.0),
        row("bf16 two, forward", a=4.0, b=1.0, failed=failed),
        row("bf16 3, weight gradient", a=6.0, b=3.0, c=5.0),
    ]
    assert tune.summary(rows)[1:] == [
        "- all, pick / best over 3 problems: geometric mean 2.0000, worst 4.000 (bf16 two, forward)",
        "- forward, pick / best over 2 problems: geometric mean 2.0000, worst 4.000 (bf16 two, forward)",
        "- weight gradient, pick / best over 1 problems: geometric mean 2.0000, worst 2.000 (bf16 3, weight gradient)",
        "- 7 tiles were timed, 3 failed",
        "- 2 of these as in bf16 two, forward, x: OutOfResources: 1",
        "- 1 of these as in bf16 two, forward, y: AssertionError: wrong result",
    ]
    assert tune.summary([])[1:] == ["- 0 tiles were timed, 0 failed"]


def test_rows_for_slow_picks_only():
    """Of what gains more than 5%, the most first; layers that share a problem get one tile that is good for both."""
    few, many = ("Product((1, 1, 1), 8, 8, 1)", "Product((9, 1, 1), 8, 8, 1)")
    rows = [
        row("one", a=1.04, b=1.0),
        row("two", few, a=1.2, b=1.0),
        row("three", many, a=2.0, b=1.0, c=1.25, d=0.1),
        row("four", many, a=2.0, b=4.0, c=1.25),
    ]
    assert tune.mended(rows) == [
        f'    # three; four: 1.6 times as fast\n    ("sm_90", "half", {many}):\n        c,',
        f'    # two: 1.2 times as fast\n    ("sm_90", "half", {few}):\n        b,',
    ]
    assert tune.mended(rows[3:]) == [f'    # four: 1.6 times as fast\n    ("sm_90", "half", {many}):\n        c,']


@no_gpu
def test_without_time_all_is_left_out(hopper, tmp_path):
    """And the list begins with what matters most."""
    found = tune.tune(tmp_path, 0)
    assert found["rows"] == []
    left = json.loads((tmp_path / "tune.json").read_text())["left out"]
    assert len(left) == sum(each.groups == 1 for each in layers.LAYERS) * len(tune.PASSES)
    assert f"- left out: {left[0]}" in (tmp_path / "tune.md").read_text()
    order = [layers.BY_NAME[name.removeprefix("bf16 ").rpartition(",")[0]] for name in left]
    kinds = [0 if each.heavy else 1 if each.times("ResNet-50") or each.times("VGG-16") else 2 for each in order]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}


@no_gpu
def test_time_runs_out_within_a_problem(hopper, tmp_path, monkeypatch):
    """Not all of its tiles were tried, so it has no row; what another arithmetic's run left out stays in the list."""
    before = tune.tune(tmp_path, 0, arithmetic="fp16", layers=(CONV,))["left out"]
    over = SimpleNamespace(perf_counter=lambda: 1e99)
    monkeypatch.setattr(tune, "check", lambda result, right: monkeypatch.setattr(tune, "time", over))
    found = tune.tune(tmp_path, 5, resume=True, layers=(CONV,), n=2)
    assert (found["rows"], found["failed"]) == ([], {})
    assert before == [f"fp16 {CONV.name}, {what}" for what in tune.PASSES]
    assert found["left out"] == [*before, *(f"bf16 {CONV.name}, {what}" for what in tune.PASSES)]


@no_gpu
def test_a_lost_gpu_ends_the_run(hopper, tmp_path, monkeypatch):
    """What comes after is left out; a resumed run goes on with that, and comes last to what broke it."""
    tried = []

    def measured(op, args, noted, clock, end):
        tried.append(op.name)
        raise RuntimeError("CUDA error: illegal address" if len(tried) in (1, 4) else "something else")

    monkeypatch.setattr(tune, "measured", measured)
    found = tune.tune(tmp_path, 5, layers=(CONV,), n=2)
    assert list(found["failed"]) == [f"bf16 {CONV.name}, forward"]
    assert found["left out"] == [f"bf16 {CONV.name}, input gradient", f"bf16 {CONV.name}, weight gradient"]
    found = tune.tune(tmp_path, 5, resume=True, layers=(CONV,), n=2)
    assert tried == ["conv2d", "conv2d_input_grad", "conv2d_weight_grad", "conv2d"]
    assert len(found["failed"]) == 3
    monkeypatch.setattr("bench.report.commit", lambda: "another")
    with pytest.raises(ValueError, match="can't be resumed"):
        tune.tune(tmp_path, 5, resume=True)


@no_gpu
def test_the_command_says_what_it_needs(tmp_path, capsys):
    assert tune.main(["--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: no CUDA GPU is here, on which tiles could be timed"]
    assert not (tmp_path / "none").exists()


AHEAD = """
import torch
from bench import calls, layers, tune
from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.matrix import gather
from cnn_triton.kernels.tiles import shapes
from cnn_triton.kernels.base.lang import triton

triton.runtime.driver.set_active(aot._Driver("sm_90", aot.target("sm_90")))
op, args = calls.calls(layers.conv(64, 8, 64, 3), torch.bfloat16, 2)[0]
good = shapes.Tile(64, 64, 64, 4, 2)
with tune.picking() as noted:
    def launch(tile):
        noted.tile = tile
        op.launch(*args)
    tune.compile_ahead([tune.partial(launch, tile) for tile in (good, good._replace(m=48))])
    cache = gather.conv_kernel.device_caches["sm_90"][0]
    assert [type(entry).__name__ for entry in cache.values()] == ["CompiledKernel"], cache
    try:
        launch(good._replace(m=48))
    except triton.CompilationError:
        print("said")
"""


def test_compiles_ahead(tmp_path):
    """Nothing runs (there is nothing it could run on); what doesn't compile says so when it is launched."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr[-2000:]

"""A warm-up: it compiles what a step launches, all of it and once, and leaves everything else as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cnn_triton
from cnn_triton import nn

HERE = Path(__file__).parent
pytestmark = pytest.mark.cover  # each starts processes that compile


def child(tmp, *arguments):
    """What a process without the interpreter prints as JSON; nothing is in Triton's cache."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp / "cache")
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    names = ("first_and_second", "real_step", "kinds", "own_weight", "autocast", "refused", "failure")
    return json.loads(child(tmp_path_factory.mktemp("warmup"), HERE / "warmup_child.py", *names))


def test_it_compiles_each_kernel_once(seen):
    first, second = seen["first_and_second"]["first"], seen["first_and_second"]["second"]
    assert 8 <= first["kernels"] == first["new"] == first["compiled"] <= first["launches"]
    assert (second["new"], second["compiled"]) == (0, 0)
    assert (second["kernels"], second["launches"]) == (first["kernels"], first["launches"])
    assert first["chip"] == second["chip"] == "sm_90"


def test_nothing_else_changes(seen):
    unchanged = seen["first_and_second"]["unchanged"]
    assert [name for name, same in unchanged.items() if not same] == []


def test_report_reads_as_a_sentence(seen):
    first = seen["first_and_second"]["first"]
    kernels, seconds = first["kernels"], first["seconds"]
    assert first["text"] == (
        f"{kernels} kernels for sm_90 in {seconds:.1f} s, {kernels} of them new to this process; "
        f"a step launches {first['launches']}"
    )
    assert seconds > 0


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_step_on_real_tensors_finds_all_it_launches(seen, layout):
    found = seen["real_step"][layout]
    assert found["compiled"] == []
    assert found["real launches"] == found["launches"] > 8


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass", "nested", "loss", "compiled", "meta"])
def test_models_inputs_and_outputs_of_any_kind(seen, kind):
    """It is the same step, so there is nothing more to compile."""
    found, usual = seen["kinds"][kind], seen["kinds"]["tensor"]
    assert (found["launches"], found["kernels"], found["new"]) == (usual["launches"], usual["kernels"], 0)


def test_backward_only_where_gradients_are_asked_for(seen):
    launches = {name: found["launches"] for name, found in seen["kinds"].items()}
    assert 0 < launches["frozen"] == launches["no_grad"] == launches["inference_mode"]
    assert launches["frozen"] < launches["input's gradient"] < launches["tensor"]
    assert launches["twice"] == 2 * launches["tensor"]
    assert launches["checkpoint"] == launches["tensor"] + launches["frozen"]  # forward twice


def test_weights_of_the_models_own(seen):
    found, usual = seen["own_weight"], seen["kinds"]
    assert found["gradients"] == [None, [2.0]]
    assert found["launches"] == [usual["input's gradient, too"]["launches"], usual["input's gradient"]["launches"]]


def test_autocast_is_the_callers(seen):
    assert "torch.bfloat16" in seen["autocast"]["dtypes"]
    assert "torch.float32" not in seen["autocast"]["dtypes"]
    assert seen["autocast"]["on in backward"] == [False]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "nothing to compile for sm_90: the model launches no kernel of ours"),
        ("aten", "nothing to compile for sm_90: the model launches no kernel of ours"),
        ("on a CPU", "nothing to compile: on a CPU the layers are PyTorch's own operators"),
    ],
)
def test_nothing_to_compile(seen, kind, words):
    found = seen["kinds"][kind]
    assert (found["kernels"], found["launches"], found["new"]) == (0, 0, 0)
    assert found["text"].startswith(words)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("value", "RuntimeError: model's forward needs the values of its tensors (aten._local_scalar_dense.default)"),
        ("mask", "RuntimeError: model's forward needs the values of its tensors (aten.nonzero.default)"),
        ("lazy", "RuntimeError: model has no shape for weight yet; call the model once on real tensors first"),
        ("channels", "RuntimeError: input has 5 channels, but weight"),
    ],
)
def test_models_that_it_cannot_take(seen, what, words):
    assert seen["refused"][what].startswith(words)


def test_a_kernel_that_fails_is_named(seen):
    assert seen["failure"]["message"] == "RuntimeError: max_patches_kernel does not compile: ValueError: no luck"


def test_a_kernel_that_fails_among_threads_is_compiled_alone(seen):
    then, again = seen["failure"]["then"], seen["failure"]["again"]
    assert then["kernels"] == then["new"] == then["compiled"] == 2
    assert (again["new"], again["compiled"]) == (0, 0)


@pytest.mark.parametrize(
    ("error", "words", "arguments", "options"),
    [
        (TypeError, "model must be a torch.nn.Module, but got function", (lambda x: x, torch.ones(1)), {}),
        (TypeError, "example must be a tensor, a tuple .* but got list", (None, [torch.ones(1)]), {}),
        (TypeError, r"example must have strings as keys.* but got \[1\]", (None, {1: torch.ones(1)}), {}),
        (TypeError, "chip must be a string, but got int", (None, ()), {"chip": 90}),
        (ValueError, "chip must be one of sm_80, .*gfx1201, but got 'sm_91'", (None, ()), {"chip": "sm_91"}),
        (ValueError, "chip must be one of .*, but got 'interpreter'", (None, ()), {"chip": "interpreter"}),
        (TypeError, "workers must be an integer, but got bool", (None, ()), {"workers": True}),
        (ValueError, "workers must be at least 1, but got 0", (None, ()), {"workers": 0}),
    ],
)
def test_bad_arguments(error, words, arguments, options):
    model, example = arguments
    with pytest.raises(error, match=words):
        cnn_triton.warmup(model or nn.Linear(1, 1), example, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is on where there is no GPU")
def test_in_the_interpreter():
    report = cnn_triton.warmup(nn.Linear(4, 4), torch.ones(2, 4))
    assert report[:2] == (0, 0)
    assert str(report) == "nothing to compile: the kernels run in Triton's interpreter (TRITON_INTERPRET)"
    with pytest.raises(RuntimeError, match="chip is 'sm_90', but Triton's interpreter is on"):
        cnn_triton.warmup(nn.Linear(4, 4), torch.ones(2, 4), chip="sm_90")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_the_gpu_compiles_nothing(tmp_path):
    found = json.loads(child(tmp_path, HERE / "warmup_child.py", "on_gpu"))["on_gpu"]
    assert found["compiled"] == []
    assert found["launched"] == found["launches"] > 8


def test_resnet50_is_the_papers():
    """Its parameters are as many as in torchvision's, which has the same architecture."""
    from bench.networks import ResNet50

    with torch.device("meta"):
        model = ResNet50()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 53
    assert sum(m.stride == (2, 2) for m in convs) == 1 + 3 + 3  # the first, and of three stages the block's two
    with cnn_triton.backend("aten"):
        maps = model.stages(model.stem(torch.empty(2, 3, 224, 224, device="meta")))
    assert maps.shape == (2, 2048, 7, 7)


def test_bench(tmp_path):
    """The command, with a smaller network."""
    code = f"""
from bench import warmup
from cnn_triton import nn
warmup.ResNet50, warmup.SHAPE = lambda: nn.Conv2d(3, 8, 3), (2, 3, 8, 8)
warmup.main(["--chip", "sm_90", "--workers", "2", "--out", {str(tmp_path / "new" / "figures.json")!r}])
"""
    printed = child(tmp_path, "-c", code)
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert printed.startswith("Conv2d, 2 x 3 x 8 x 8, bfloat16, 2 workers: ")
    assert f" {figures['kernels']} kernels for sm_90 in {figures['seconds']:.1f} s" in printed
    assert figures["kernels"] == figures["new"] > 0
    assert figures["environment"]["kernels"] == "Triton kernels, compiled for sm_90"

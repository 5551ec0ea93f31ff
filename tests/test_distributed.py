"""Several processes train as one: its gradients and weights, its files, its lines; an error ends them all."""

import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import distributed_child
from cnn_triton.classifier import runs
from cnn_triton.classifier.distributed import Processes
from small import process, refused, write_images

CPU = torch.device("cpu")
FILES = [".lock", "config.json", "metrics.csv", "model.safetensors", "training.pt"]


def torchrun(*args, **options):
    """The exit code, output and errors of two processes that torchrun starts."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, args)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1"}, **options,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def together(*args, **options):
    """A command in two processes."""
    return torchrun("-m", "cnn_triton.cli", *args, **options)


def close(found, expected, **tolerances):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.manual_seed(0)
    return write_images(tmp_path_factory.mktemp("data") / "images", ["dark", "bright"], count=20)


def options(images, out):
    """Of the training that distributed_child begins."""
    settings = distributed_child.begun(images)[1]
    size, of = settings.batch_size, ("train", "--data", images, "--size", 8, "--device", "cpu")
    return (*of, "--epochs", 2, "--batch-size", size, "--seed", 3, "--out", out)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The whole of that training by one process: its folder."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    code, _, error = process(*options(images, out))
    assert code == 0, error
    return out


def like_alone(folder, alone):
    """Does a folder hold what one process alone writes, but for rounding?"""
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "report.html"])
    assert (folder / "config.json").read_bytes() == (alone / "config.json").read_bytes()
    close(load_file(folder / "model.safetensors"), load_file(alone / "model.safetensors"), rtol=1e-4, atol=1e-5)
    runs.load(folder, CPU)
    for row, expected in zip(runs.read_metrics(folder), runs.read_metrics(alone), strict=True):
        for name in row.keys() & {"epoch", "batch_size", "train_images", "test_images"}:
            assert row[name] == expected[name]
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4)


@pytest.fixture(scope="module")
def expected():
    """What one process finds."""
    return distributed_child.results(Processes())


@pytest.fixture(scope="module", params=distributed_child.KINDS)
def done(request, images, tmp_path_factory):
    """What distributed_child's processes left in a folder."""
    folder = tmp_path_factory.mktemp("child")
    code, _, error = torchrun(distributed_child.__file__, request.param, folder, images)
    assert code == 0, error
    return folder


@pytest.mark.cover
@pytest.mark.parametrize("step", distributed_child.STEPS)
def test_gradients_of_one_process(done, expected, step):
    found = torch.load(done / "found.pt")[step]
    assert all(gradient.abs().max() > 1e-3 for gradient in expected[step].values())
    close(found, expected[step], rtol=1e-5, atol=1e-6)


@pytest.mark.cover
def test_weights_and_figures_of_one_process(done, expected):
    """After two epochs, whose last batch has an image for one process and none for the other."""
    found, expected = torch.load(done / "found.pt")["float32"], expected["float32"]
    close(found["weights"], expected["weights"], rtol=1e-5, atol=1e-6)
    assert found["state"].keys() == expected["state"].keys()
    for one, other in zip(found["figures"], expected["figures"], strict=True):
        for name in ("epoch", "batch_size", "train_images", "test_images"):
            assert one[name] == other[name]
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


@pytest.mark.cover
def test_master_copies(done, expected):
    """Of bfloat16 weights, in float32: the model has them rounded, and learns as in one process."""
    found = torch.load(done / "found.pt")["bfloat16"]
    for weight, master in zip(found["weights"].values(), found["state"]["weights"], strict=True):
        assert master.dtype == torch.float32
        assert torch.equal(weight, master.bfloat16())
        assert not torch.equal(weight.float(), master)
    for one, other in zip(found["figures"], expected["bfloat16"]["figures"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


@pytest.mark.cover
def test_every_process_launches_kernels(done):
    each = [torch.load(done / f"launches {rank}.pt") for rank in range(2)]
    for ran in each:
        for name in (
            "conv2d",
            "conv2d_weight_grad",
            "conv2d_input_grad",
            "max_pool2d_input_grad",
            "linear_weight_grad",
        ):
            assert ran[name] > 0, f"no kernel of {name} ran"
    for epoch in torch.load(done / "found.pt")["float32"]["figures"]:
        # Of three layers: three batches and the test images, but the other process has no image of the last batch.
        assert epoch["launches"]["linear"] == 3 * (4 + 3)


@pytest.mark.cover
def test_one_process_goes_on(done, images, alone):
    """With a run that two began."""
    assert sorted(path.name for path in (done / "run").iterdir()) == FILES
    code, said, error = process(*options(images, done / "run"), "--resume")
    assert code == 0, error
    assert "Going on after epoch 1 of 2" in said
    like_alone(done / "run", alone)


@pytest.mark.cover
@pytest.mark.parametrize("flags", [(), ("--fsdp",)], ids=["DDP", "FSDP2"])
def test_two_go_on(images, alone, tmp_path, flags):
    """With a run that one process began; they say everything once."""
    distributed_child.begin(tmp_path / "run", *distributed_child.begun(images), Processes())
    code, said, error = together(*options(images, tmp_path / "run"), "--resume", *flags)
    assert code == 0, error
    for line in ("Going on after epoch 1 of 2", "Training on", "epoch  2 of 2", "Kernel launches: ", "Saved to"):
        assert said.count(line) == 1, said
    assert f"shared by 2 processes, {'FSDP2' if flags else 'DDP'}." in said
    like_alone(tmp_path / "run", alone)


def error_line(code, said, error):
    """The only line in which processes say what is wrong; torchrun's own summary follows it."""
    assert code != 0, (said, error)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert not re.search(r"cnn_triton/\w+\.py", error), error  # a traceback of ours
    return lines[0]


@pytest.mark.cover
def test_refused(images, alone, tmp_path):
    refused((*options(images, tmp_path / "new"), "--fsdp"), "error: --fsdp", "torchrun --")
    assert "nothing is overwritten" in error_line(*together(*options(images, alone)))
    said = error_line(*together(*options(images, tmp_path / "new"), "--lr", -1))
    assert said == "error: --lr must be a positive number, but got -1.0"


@pytest.mark.cover
def test_a_loss_that_is_not_finite(images, tmp_path):
    said = error_line(*together(*options(images, tmp_path / "run"), "--lr", 1e30))
    assert "loss became" in said
    assert "keeps the state after epoch 0" in said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES


@pytest.mark.cover
def test_a_full_disk(images, tmp_path):
    """Only the first process writes, and can't: the other, which goes on training, ends with it."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    said = error_line(*together(*options(images, tmp_path / "run"), "--fsdp", preexec_fn=limit))
    assert "File too large" in said
    assert "keeps the state after epoch 0" in said
    runs.load(tmp_path / "run", CPU)

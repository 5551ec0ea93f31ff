"""The command line: runs that are saved and used again, the same seed twice, and bad input in one clear line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

import cnn_triton
from cnn_triton import training
from cnn_triton.data import digits
from cnn_triton.models import LeNet5


@pytest.fixture(scope="module")
def data():
    """A few of the digits, for short runs."""
    whole = digits(0)
    return whole._replace(
        train_images=whole.train_images[:96],
        train_labels=whole.train_labels[:96],
        test_images=whole.test_images[:20],
        test_labels=whole.test_labels[:20],
    )


def config(data, **changes):
    values = {"epochs": 2, "batch_size": 48, "lr": 0.005} | changes
    return training.Config("lenet5", "digits", data.channels, *data.size, data.classes, 0.3, 0.38, **values)


def trained(data, device, **changes):
    settings = config(data, **changes)
    model = training.build(settings, device)
    return model, settings, list(training.fit(model, data, settings, device))


@pytest.fixture(scope="module")
def run(data, device, tmp_path_factory):
    """A saved run: its folder, model and epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    before = cnn_triton.launches()
    model, settings, epochs = trained(data, device, epochs=8, lr=0.02)
    after = cnn_triton.launches()
    for name in ("conv2d", "conv2d_weight_grad", "conv2d_input_grad", "max_pool2d_input_grad", "linear_weight_grad"):
        assert after[name] > before.get(name, 0), f"no kernel of {name} ran"
    training.save(model, settings, folder)
    return folder, model, epochs


def command(*args):
    """A command's exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "cnn_triton.cli", *map(str, args)],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_training_learns(run):
    epochs = run[2]
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    assert [epoch.epoch for epoch in epochs] == list(range(1, 9))
    assert all(epoch.images_per_second > 0 and 0 <= epoch.accuracy <= 1 for epoch in epochs)


def test_same_seed_same_weights(data, device):
    first, second, other = (trained(data, device, epochs=1, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(data, device, dtype):
    model, _, epochs = trained(data, device, dtype=dtype)
    assert next(model.parameters()).dtype == training.DTYPES[dtype]
    assert epochs[-1].loss < epochs[0].loss + 0.1


def test_a_loss_that_is_not_finite_ends_the_run(data, device):
    with pytest.raises(RuntimeError, match=r"the loss became (nan|inf) in epoch \d; try a lower learning rate"):
        trained(data, device, lr=1e30, epochs=4)


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (32, 20)), (2, (4, 5))])
def test_any_image(channels, size, device):
    model = LeNet5(channels, size, 7).to(device)
    assert model(torch.randn(2, channels, *size, device=device)).shape == (2, 7)
    assert [name for name, _ in model.named_children()] == ["features", "classifier"]


def test_too_small_an_image():
    with pytest.raises(ValueError, match=r"at least 4 x 4.*3 x 8"):
        LeNet5(1, (3, 8), 10)


def test_round_trip(run, data, device):
    folder, model, _ = run
    loaded, settings = training.load(folder, device)
    images = data.test_images
    assert torch.equal(
        training.probabilities(loaded, images, settings, device),
        training.probabilities(model, images, settings, device),
    )
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture
def picture(data, tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray((data.test_images[0, 0] * 255).byte().numpy()).save(path)
    return path


def test_predict(run, data, device, picture):
    code, out, _ = command("predict", run[0], picture, picture)
    assert code == 0
    shares = training.probabilities(run[1], data.test_images[:1], config(data), device)
    lines = out.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{picture}: {shares.argmax().item()} (")


def broken(folder, what, tmp_path):
    """A copy of a run with something wrong in it."""
    copy = tmp_path / what
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((folder / name).read_bytes())
    settings = json.loads((copy / "config.json").read_text())
    if what == "another model":
        (copy / "config.json").write_text(json.dumps({**settings, "height": 12}))
    elif what == "no model":
        (copy / "config.json").write_text(json.dumps({**settings, "model": "resnet"}))
    elif what == "torn configuration":
        (copy / "config.json").write_text("{")
    elif what == "torn weights":
        (copy / "model.safetensors").write_bytes(b"\0" * 9)
    elif what == "no weights":
        (copy / "model.safetensors").unlink()
    return copy


def refused(args, *words):
    code, out, error = command(*args)
    assert code == 2, (code, out, error)
    assert "Traceback" not in error + out
    for word in words:
        assert word in error, error
    return error


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("another model", "the weights of another model"),
        ("no model", "not the configuration of a run"),
        ("torn configuration", "not the configuration of a run"),
        ("torn weights", "can't be read"),
        ("no weights", "can't be read"),
    ],
)
def test_bad_run(run, what, words, picture, tmp_path):
    folder = broken(run[0], what, tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    error = refused(("predict", folder, picture), "error: ", words)
    assert len(error.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_image(run, picture, tmp_path):
    torn, text = tmp_path / "torn.png", tmp_path / "text.png"
    torn.write_bytes(picture.read_bytes()[:60])
    text.write_text("no image")
    for path, words in (
        (torn, "not a readable image"),
        (text, "not a readable image"),
        (tmp_path / "none.png", "no such"),
    ):
        error = refused(("predict", run[0], picture, path), "error: ", str(path), words)
        assert len(error.strip().splitlines()) == 1
    refused(("predict", tmp_path / "nowhere", picture), "no run is here")


def test_nothing_is_overwritten(run, tmp_path):
    before = {path: path.read_bytes() for path in run[0].iterdir()}
    refused(("train", "--out", run[0]), "error: --out", "a run is there already")
    assert {path: path.read_bytes() for path in run[0].iterdir()} == before
    file = tmp_path / "file"
    file.write_text("mine")
    refused(("train", "--out", file), "error: --out", "a file is there")
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "args",
    [
        ("--epochs", 0),
        ("--batch-size", -1),
        ("--lr", 0),
        ("--lr", "nan"),
        ("--dtype", "int8"),
        ("--device", "tpu"),
        ("--seed", -1),
    ],
    ids=str,
)
def test_bad_options(args, tmp_path):
    refused(("train", "--out", tmp_path / "new", *args), args[0])
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here, so asking for one is right")
def test_cuda_that_is_not_there(tmp_path):
    refused(("train", "--out", tmp_path / "new", "--device", "cuda"), "error: --device cuda")


def test_demo(tmp_path):
    """The whole command, for one epoch: it says where the kernels ran, how often, and what the digits are."""
    code, out, error = command("demo", "--epochs", 1, "--batch-size", 360, "--out", tmp_path / "run")
    assert code == 0, error
    assert "Triton kernels" in out
    if not torch.cuda.is_available():
        assert "Triton's interpreter" in out
    assert "images/s" in out
    assert "Kernel launches: " in out
    assert "conv2d_weight_grad" in out
    assert "test accuracy: 0." in out
    assert out.count("says ") == out.count("is   ") == 6
    assert training.is_run(tmp_path / "run")

"""Training in 16 bits, what a configuration may hold, unusual images, and refusals before any work is done."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cnn_triton
from cnn_triton import training
from cnn_triton.cli import app
from cnn_triton.data import digits, load_image


@pytest.fixture(scope="module")
def data():
    whole = digits(0)
    return whole._replace(train_images=whole.train_images[:64], train_labels=whole.train_labels[:64])


def config(data, **changes):
    values = {"epochs": 4, "batch_size": 64, "lr": 0.005} | changes
    return training.Config("lenet5", "digits", data.channels, *data.size, data.classes, 0.3, 0.38, **values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_learn(data, device, dtype):
    settings = config(data, dtype=dtype)
    model = training.build(settings, device)
    before = cnn_triton.launches()
    epochs = list(training.fit(model, data, settings, device))
    assert cnn_triton.launches()["conv2d_weight_grad"] > before.get("conv2d_weight_grad", 0)
    assert epochs[-1].loss < epochs[0].loss
    assert all(p.dtype == training.DTYPES[dtype] and p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "change",
    [{"mean": "x"}, {"std": 0}, {"mean": float("nan")}, {"epochs": 1.5}, {"classes": [1, 2]}, {"model": ["lenet5"]}],
    ids=str,
)
def test_bad_configuration(data, device, tmp_path, change):
    settings = config(data)
    training.save(training.build(settings, device), settings, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match="not the configuration of a run"):
        training.load(tmp_path, device)


def test_images_of_other_kinds(tmp_path):
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    clear = np.dstack([np.full((8, 8, 3), 255, np.uint8), grey])  # white ink on nothing
    for name, pixels in (("8", grey), ("16", grey.astype(np.uint16) << 8), ("alpha", clear)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        image = load_image(tmp_path / f"{name}.png", 1, (8, 8))
        torch.testing.assert_close(image[0], torch.from_numpy(grey) / 255, atol=0.005, rtol=0)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="no known range"):
        load_image(tmp_path / "float.tiff", 1, (8, 8))


@pytest.mark.parametrize("args", [("--lr", "inf"), ("--seed", str(2**32)), ("--out", "{file}/run")], ids=str)
def test_refused_before_training(args, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    options = ["--out", str(tmp_path / "new"), *(a.format(file=file) for a in args)]
    done = CliRunner().invoke(app, ["train", *options])
    assert done.exit_code == 2
    assert "Training on" not in done.output
    assert not (tmp_path / "new").exists()
    assert file.read_text() == "mine"

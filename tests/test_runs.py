"""Run folders: whole after a kill at any moment, continued bit for bit, used by one process, never overwritten."""

import csv
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from cnn_triton.classifier import runs, training
from cnn_triton.classifier.data import digits, read
from small import command, config, few, process, refused, same, train, trainer, write_images


@pytest.fixture(scope="module")
def data():
    return few(48, 10)


@pytest.fixture(scope="module")
def finished(data, device, tmp_path_factory):
    """A finished run's folder and weights."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    one = train(folder, data, device)
    return folder, one.model.state_dict()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


FILES = [".lock", "config.json", "metrics.csv", "model.safetensors", "training.pt"]


def test_a_run_folder(finished, data, device):
    folder, weights = finished
    assert names(folder) == FILES
    model, settings = runs.load(folder, device)
    assert settings == config(data)
    assert same(model.state_dict(), weights)
    assert same(load_file(folder / "model.safetensors"), {name: t.cpu() for name, t in weights.items()})
    rows = runs.read_metrics(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["test_accuracy"]) == training.evaluate(model, data, settings, device)[1]
    assert sum(int(rows[0][name]) for name in rows[0] if name.split("_")[0] in ("conv2d", "linear", "max")) > 0


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.cover
@pytest.mark.parametrize("moment", range(10))
def test_killed_between_any_two_renames(finished, data, device, tmp_path, monkeypatch, moment):
    """Before each rename of a training in turn, the process ends; what is on the disk loads, and goes on."""
    folder = tmp_path / "run"
    one = trainer(data, device)
    left = [moment]

    def rename(*args, do=os.replace):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        do(*args)

    run = None
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        try:
            run = runs.Run.create(folder, one)
            for _ in range(2):
                run.add(one.run_epoch(), one)
        except Killed:
            pass
    if moment < 4:  # configuration, figures, state and weights of the untrained network: the folder is not there yet
        assert not folder.exists()
        return
    runs.load(folder, device)
    if run is not None:
        run.close()
    again = trainer(data, device)
    run = runs.Run.resume(folder, again)
    assert again.epoch == (moment - 4 + 1) // 3  # per epoch: figures, state (counts from here on), weights
    assert len(run.epochs) == again.epoch
    while again.epoch < 2:
        run.add(again.run_epoch(), again)
    assert same(runs.load(folder, device).model.state_dict(), finished[1])
    assert [row["epoch"] for row in runs.read_metrics(folder)] == ["1", "2"]
    assert names(folder) == FILES


def test_an_unfinished_file_is_cleared(data, device, tmp_path):
    train(tmp_path / "run", data, device, epochs=1)
    (tmp_path / "run" / ".unfinished-abc").write_bytes(b"half")
    runs.Run.resume(tmp_path / "run", trainer(data, device, epochs=1)).close()
    assert names(tmp_path / "run") == FILES


def test_a_run_in_use(device, tmp_path):
    data = digits(0)
    folder = tmp_path / "run"
    run = runs.Run.create(folder, trainer(data, device))
    with pytest.raises(BlockingIOError, match="another process trains there"):
        runs.Run.resume(folder, trainer(data, device))
    before = {name: (folder / name).read_bytes() for name in FILES}
    refused(("train", "--out", folder, "--resume"), "error: --out", "another process trains there")
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    runs.load(folder, device)  # reading is always possible
    run.close()
    runs.Run.resume(folder, trainer(data, device)).close()


def test_nothing_is_overwritten(finished, data, device, tmp_path):
    folder = finished[0]
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        runs.Run.create(folder, trainer(data, device))
    refused(("train", "--out", folder), "error: --out", "nothing is overwritten")
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert names(folder.parent) == ["finished"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        runs.Run.create(file, trainer(data, device))
    refused(("train", "--out", file), "error: --out", "nothing is overwritten")
    assert file.read_text() == "mine"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    refused(("train", "--out", mine, "--resume"), "error: --out", "nothing is overwritten")
    assert names(mine) == ["notes.txt"]


def state_of(trained, **changes):
    """A training's state as bytes, with parts of it changed."""
    file = io.BytesIO()
    torch.save(trained.state_dict() | changes, file)
    return file.getvalue()


BAD_STATES = {
    "torn": lambda good, one: good[:1000],
    "missing": lambda good, one: None,
    "a stranger's": lambda good, one: state_of(one(), config={}),
    "of another network": lambda good, one: state_of(one(model="vgg")),
    "of another seed": lambda good, one: state_of(one(seed=5)),
    "of epoch -1": lambda good, one: state_of(one(), epoch=-1),
    "of epoch 2": lambda good, one: state_of(one(), epoch=2),
    "of epoch x": lambda good, one: state_of(one(), epoch="x"),
}
BAD_FIGURES = ("epoch,loss\n7,x\n", "epoch,loss\n", "epoch,loss\n1,2\n", "", None, "torn", "longer", "no number")


@pytest.fixture(scope="module")
def one_epoch(data, device, tmp_path_factory):
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(folder, data, device, epochs=1)
    return folder


def not_resumed(folder, data, device):
    """A run that can't be gone on with: nothing of it is changed, and its weights still load."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((ValueError, OSError), match=r"not a state of this|No such file|not the figures|has 0 epochs"):
        runs.Run.resume(folder, trainer(data, device, epochs=1))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    runs.load(folder, device)


@pytest.mark.parametrize("what", BAD_STATES)
def test_bad_state(one_epoch, data, device, tmp_path, what):
    folder = shutil.copytree(one_epoch, tmp_path / "run")
    state = folder / "training.pt"
    content = BAD_STATES[what](state.read_bytes(), lambda **changes: trainer(data, device, epochs=1, **changes))
    if content is None:
        state.unlink()
    else:
        state.write_bytes(content)
    not_resumed(folder, data, device)


@pytest.mark.parametrize("content", BAD_FIGURES)
def test_bad_figures(one_epoch, data, device, tmp_path, content):
    folder = shutil.copytree(one_epoch, tmp_path / "run")
    file = folder / "metrics.csv"
    good = file.read_text()
    changed = {"torn": good[:-40], "longer": good.rstrip() + ",1,2\n", "no number": good.replace("\n1,", "\n1,x", 1)}
    if content is None:
        file.unlink()
    else:
        file.write_text(changed.get(content, content))
        assert file.read_text() != good
    not_resumed(folder, data, device)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": "x"}, {"std": 0}, {"mean": float("nan")}, {"epochs": 1.5}, {"classes": [1, 2]}, {"model": ["lenet5"]},
        {"model": "resnet"}, {"batch_size": 0}, {"dtype": "int8"}, {"height": 0}, {"extra": 1},
        {"height": 10**7}, {"smoothing": 5.0}, {"std": 10**400}, {"std": 1e-300}, {"seed": -1}, {"lr": -0.1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_configuration(finished, device, tmp_path, change):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((finished[0] / name).read_bytes())
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match="not the configuration of a run"):
        runs.load(copy, device)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.manual_seed(0)
    return write_images(tmp_path_factory.mktemp("data") / "images", ["dark", "bright"], count=20)


def options(images, out):
    return (
        "train", "--data", images, "--size", 8, "--epochs", 6, "--batch-size", 32, "--seed", 3, "--out", out,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    """A training's weights, and the seconds from its first step to its end."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    code, _, error = command(*options(images, out))
    assert code == 0, error
    with (out / "metrics.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    return load_file(out / "model.safetensors"), seconds


def trials(seed):
    """Four of twenty, in turn. Without a seed, all."""
    return range(20) if seed is None else [(4 * seed + i) % 20 for i in range(4)]


@pytest.mark.cover
@pytest.mark.rotated("trial", trials)
def test_killed_at_a_random_moment(unbroken, images, device, tmp_path, trial):
    """kill -9 in mid-training, then --resume: the same weights, bit for bit, and a folder that always loads."""
    weights, seconds = unbroken
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cnn_triton.cli", *map(str, options(images, out))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ""
    while "Training on" not in said:
        said = process.stdout.readline()
        assert said, "the training ended before it began"
    time.sleep(random.Random(f"{torch.initial_seed()} {trial}").uniform(0, 1.3 * seconds))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    runs.load(out, device)
    finished = len(runs.read_metrics(out))
    code, said, error = command(*options(images, out), "--resume")
    assert code == 0, error
    assert f"Going on after epoch {finished} of 6" in said or f"Going on after epoch {finished - 1} of 6" in said
    assert same(load_file(out / "model.safetensors"), weights)
    assert [row["epoch"] for row in runs.read_metrics(out)] == [str(n) for n in range(1, 7)]
    assert names(out) == sorted([*FILES, "report.html"])


@pytest.mark.cover
def test_resume_begins_and_ends(images, tmp_path):
    """Where no run is, --resume begins it; a finished one stays as it is; other options are refused."""
    out = tmp_path / "run"
    brief = ("train", "--data", images, "--size", 8, "--epochs", 1, "--out", out, "--resume")
    assert command(*brief)[0] == 0
    kept = [name for name in FILES if name != "training.pt"]  # written again: the same state, packed otherwise
    before = {name: (out / name).read_bytes() for name in kept}
    code, said, _ = command("train", "--out", out, "--resume")
    assert code == 0
    assert "Going on after epoch 1 of 1" in said
    assert {name: (out / name).read_bytes() for name in kept} == before
    for option in (("--epochs", 2), ("--lr", 0.5), ("--model", "vgg"), ("--size", 9)):
        refused(("train", "--out", out, "--resume", *option), f"error: {option[0]}: the run in {out} was begun")
    moved = images.rename(images.with_name("moved"))
    refused(("train", "--out", out, "--resume"), "error: --data", "neither 'digits' nor a folder")
    assert command("train", "--out", out, "--resume", "--data", moved)[0] == 0
    assert {name: (out / name).read_bytes() for name in kept} == before
    refused(("train", "--out", out, "--resume", "--data", "digits"), "error: --data digits: these are not the images")
    moved.rename(images)
    (images / "bright" / "more.png").write_bytes((images / "bright" / "0.png").read_bytes())
    try:
        refused(("train", "--out", out, "--resume"), "error: --data", "not the images that the run in")
    finally:
        (images / "bright" / "more.png").unlink()
    assert {name: (out / name).read_bytes() for name in kept} == before
    refused(("train", "--resume"), "--resume needs --out")


@pytest.mark.cover
def test_a_full_disk(images, device, tmp_path):
    """No file may grow past 200 kB, as on a disk that is full: the state after an epoch no longer fits."""
    out = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    refused(options(images, out), "File too large", "keeps the state after epoch 0", by=process, preexec_fn=limit)
    assert names(out) == FILES
    runs.load(out, device)
    assert command(*options(images, out), "--resume")[0] == 0  # there is space again


def test_a_loss_that_is_not_finite(images, device, tmp_path):
    out = tmp_path / "run"
    refused((*options(images, out), "--lr", 1e30), "loss became", "try a lower learning rate", "keeps")
    assert names(out) == FILES
    model, settings = runs.load(out, device)
    kept = read(settings.data, settings.seed, (settings.height, settings.width))
    assert math.isfinite(training.evaluate(model, kept, settings, device)[0])


def test_a_single_step_that_breaks_the_weights(images, tmp_path):
    """The loss is finite before the only step of the only epoch, and no longer after it: nothing is saved of it."""
    brief = ("train", "--data", images, "--size", 8, "--epochs", 1, "--lr", 1e30, "--out", tmp_path / "run")
    refused(brief, "loss became", "in epoch 1; try a lower learning rate", "keeps the state after epoch 0")

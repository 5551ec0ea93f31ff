"""The command line: the user's own images learned and named, the demo's figures, and bad input in one clear line."""

import csv
import json
import os
import re

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cnn_triton.classifier import training
from cnn_triton.cli.main import app
from small import command, config, few, process, refused, train, write_images


@pytest.fixture(scope="module")
def data():
    return few()


@pytest.fixture(scope="module")
def run(data, device, tmp_path_factory):
    """A short run on a few of the digits: its folder and model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    one = train(folder, data, device, epochs=1)
    return folder, one.model


@pytest.fixture
def picture(data, tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray((data.test_images[0, 0] * 255).byte().numpy()).save(path)
    return path


def photographs(folder, mode, count=40, side=96):
    """PNGs of patches of scikit-learn's photographs, a class a photograph; returns patches of parts not used there."""
    from sklearn.datasets import load_sample_image  # seconds, which collecting the tests need not take

    unseen = []
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg")).convert(mode)
        (folder / name).mkdir(parents=True)
        for n in range(count):
            left, top = (n * 37) % (420 - side), (n * 61) % (427 - side)
            photograph.crop((left, top, left + side, top + side)).save(folder / name / f"{n}.png")
        for top in (40, 130, 220):
            path = folder.parent / f"{name} {top}.png"
            photograph.crop((450, top, 450 + side, top + side)).save(path)
            unseen.append((path, name))
    return unseen


@pytest.mark.cover
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_own_images(mode, tmp_path):
    """A folder of photographs' patches, learned; images of parts not seen are named right, and evaluated."""
    unseen = photographs(tmp_path / "images", mode)
    run = tmp_path / "run"
    code, out, error = process(
        "train", "--data", tmp_path / "images", "--size", 16, "--epochs", 12, "--batch-size", 20, "--lr", 0.005,
        "--out", run,
    )  # fmt: skip
    assert code == 0, error
    assert "Triton kernels" in out
    assert json.loads((run / "config.json").read_text())["channels"] == {"L": 1, "RGB": 3}[mode]
    accuracy = float(re.search(r"test accuracy: (\d\.\d+)\nSaved", out)[1])
    assert accuracy >= 0.8
    code, out, error = command("predict", run, *(path for path, _ in unseen))
    assert code == 0, error
    lines = out.strip().splitlines()
    assert len(lines) == len(unseen) == 6
    assert sum(line.startswith(f"{path}: {name} (") for line, (path, name) in zip(lines, unseen, strict=True)) >= 5
    code, out, error = command("evaluate", run)
    assert code == 0, error
    assert f"test accuracy: {accuracy:.3f}" in out
    assert re.search(r"china\W+8\W", out)


def test_predict(run, data, device, picture):
    code, out, _ = command("predict", run[0], picture, picture)
    assert code == 0
    shares = training.probabilities(run[1], data.test_images[:1], config(data), device)
    lines = out.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{picture}: {shares.argmax().item()} (")


@pytest.mark.cover
def test_evaluate_and_report_other_data(run, tmp_path):
    """Other images of some of the run's classes, in another order; and images that don't suit it."""
    other = write_images(tmp_path / "images", ["7", "3"])
    code, out, error = command("evaluate", run[0], "--data", other)
    assert code == 0, error
    assert sorted(re.findall(r"│ (\d) +│ (\d) ", out)) in ([("3", "1"), ("7", "2")], [("3", "2"), ("7", "1")])
    code, out, error = command("report", run[0], "--data", other, "--class", "7")
    assert code == 0, error
    assert out.strip() == str(run[0] / "report.html")
    assert 'data-class="7"' in (run[0] / "report.html").read_text()
    refused(("report", run[0], "--data", other, "--class", "x"), "error: no test image is of a class 'x'")
    refused(("evaluate", run[0], "--data", write_images(tmp_path / "b", ["7", "cat"])), "has no class 'cat'")
    refused(("evaluate", run[0], "--data", write_images(tmp_path / "c", ["7", "3"], 3)), "its images are (3, 8, 8)")


def test_changed_images(tmp_path, device):
    """A run whose images have changed since: a warning, for what was unseen may no longer be."""
    images = write_images(tmp_path / "images", ["a", "b"])
    code, _, error = command("train", "--data", images, "--size", 8, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, error
    assert command("evaluate", tmp_path / "run")[2] == ""
    (images / "a" / "new.png").write_bytes((images / "b" / "1.png").read_bytes())
    code, _, error = command("evaluate", tmp_path / "run")
    assert code == 0
    assert "is not the data set of the training" in error
    (images / "a" / "new.png").rename(images / "a" / "new.txt")
    assert "files are no PNG or JPEG" in command("evaluate", tmp_path / "run")[2]


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
    refused(("predict", folder, picture), "error: ", words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_image(run, picture, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(picture.read_bytes()[:60])
    for path, words in ((torn, "not a readable image"), (tmp_path / "none.png", "no such")):
        refused(("predict", run[0], picture, path), "error: ", str(path), words)
    refused(("predict", tmp_path / "nowhere", picture), "no run is here")


@pytest.mark.parametrize(
    "args",
    [
        ("--epochs", 0),
        ("--batch-size", -1),
        ("--lr", 0),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--dtype", "int8"),
        ("--device", "tpu"),
        ("--model", "resnet"),
        ("--size", "0"),
        ("--size", "32x"),
        ("--size", "10000"),
        ("--seed", -1),
        ("--seed", 2**32),
        ("--data", "nowhere"),
        ("--out", "{file}/run"),
    ],
    ids=str,
)
def test_refused_before_training(args, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    name, value = args[0], str(args[1]).format(file=file)
    done = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "new"), name, value])
    assert done.exit_code == 2
    assert name in done.output
    assert "Training on" not in done.output
    assert not (tmp_path / "new").exists()
    assert file.read_text() == "mine"


def test_bad_folders(tmp_path):
    """An empty folder and one with a single class: a line, and no run."""
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", ["only"])
    for name, words in (("empty", "has none"), ("one", "has only 'only'")):
        refused(("train", "--data", tmp_path / name, "--out", tmp_path / "new"), "error: --data", words)
    assert not (tmp_path / "new").exists()


def test_names_of_any_kind(run, data, picture, tmp_path):
    """Names that are too long, of any bytes, or that look like markup; and a size for images that have their own."""
    long = tmp_path / ("x" * 300)
    for args in (("train", "--out", long), ("predict", long, picture), ("show", "china", "--out", long)):
        refused(args, "error: ", "File name too long")
    odd = tmp_path / os.fsdecode(b"\xff.png")
    odd.write_bytes(picture.read_bytes())
    code, out, error = process("predict", run[0], odd)
    assert code == 0, error
    assert "\\udcff.png: " in out
    images = write_images(tmp_path / "images", ["[red]", "[link=a]b", "日本"])
    refused(("train", "--data", images, "--out", images / "run"), "it is inside --data")
    code, _, error = command("train", "--data", images, "--size", 8, "--epochs", 1, "--out", tmp_path / "run")
    assert (code, error) == (0, "")
    code, out, _ = command("evaluate", tmp_path / "run")
    assert code == 0
    assert all(name in out for name in ("[red]", "[link=a]b", "日本"))
    refused(("train", "--size", 32, "--out", tmp_path / "new"), "error: --data digits: its images are 8 x 8 pixels")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here, so asking for one is right")
def test_cuda_that_is_not_there(tmp_path):
    refused(("train", "--out", tmp_path / "new", "--device", "cuda"), "error: --device cuda")


@pytest.mark.cover
def test_demo(tmp_path):
    """The whole command, for two epochs, twice: it says where the kernels ran, how often, what the digits are, and
    where the page is; every figure it prints is in metrics.csv."""
    out = process("demo", "--epochs", 2, "--batch-size", 360, cwd=tmp_path)
    assert out[0] == 0, out[2]
    said = out[1]
    run = tmp_path / "runs" / "demo"
    assert "Triton kernels" in said
    if not torch.cuda.is_available():
        assert "Triton's interpreter" in said
    assert said.count("says ") == said.count("is   ") == 6
    page = run / "report.html"
    assert said.endswith(f"What each layer sees: {page}\n")
    assert page.exists()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {name: str(sum(int(row[name]) for row in rows)) for name in rows[0] if rows[0][name].isdecimal()}
    figures = 0
    for row, line in zip(rows, re.findall(r"^epoch .*", said, re.M), strict=True):
        texts = [
            row["epoch"], str(len(rows)), f"{float(row['train_loss']):.4f}", f"{float(row['train_accuracy']):.3f}",
            f"{float(row['test_accuracy']):.3f}", f"{float(row['images_per_second']):.0f}",
        ]  # fmt: skip
        assert re.findall(r"[\d.]+", line) == texts
        figures += len(texts)
    first = re.search(r"^Training on (\d+) images for (\d+) epochs, batches of (\d+)", said, re.M).groups()
    assert first == (rows[0]["train_images"], str(len(rows)), rows[0]["batch_size"])
    launched = re.search(r"^Kernel launches: (\d+) \((.*)\)", said, re.M)
    assert launched[1] == counts["launches"]
    by_operator = dict(part.split() for part in launched[2].split(", "))
    assert by_operator["conv2d_weight_grad"] == counts["conv2d_weight_grad"] != "0"
    assert all(counts[name] == number for name, number in by_operator.items())
    assert re.search(r"^test accuracy: (.*)", said, re.M)[1] == f"{float(rows[-1]['test_accuracy']):.3f}"
    # Nothing else that it prints is a figure: names of classes, kernels and files apart.
    figures += 3 + 1 + len(by_operator) + 1
    rest = re.sub(r"says \d|is   \d|2d|TRITON_INTERPRET=1|float\d+|/\S+", "", said)
    assert len(re.findall(r"\d[\d.]*", rest)) == figures
    assert process("demo", "--epochs", 1, "--batch-size", 720, cwd=tmp_path)[0] == 0
    assert (tmp_path / "runs" / "demo-2" / "report.html").exists()

"""What the tests of the classifier share: a few digits, short configurations, image folders, commands."""

import html
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from cnn_triton.classifier import data, runs, training
from cnn_triton.cli.main import app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def watched_in_chromium(page, script, tmp_path):
    """(what the script leaves in document.body.dataset.watch, console lines) of a page opened without a window."""
    copy = tmp_path / "watched.html"
    copy.write_text(page.read_text().replace("</body>", script + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    watched = re.search(r'data-watch="([^"]*)"', done.stdout)
    assert watched, done.stdout[-500:] + done.stderr[-2000:]
    return html.unescape(watched[1]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def few(train=96, test=20):
    """The first of the digits."""
    whole = data.digits(0)
    return data.ImageSet(
        whole.train_images[:train], whole.train_labels[:train],
        whole.test_images[:test], whole.test_labels[:test], whole.classes,
    )  # fmt: skip


def config(images, **changes):
    """A short training of LeNet5."""
    values = {"epochs": 2, "batch_size": 48, "lr": 0.005, "model": "lenet5"} | changes
    return training.Config.of(values.pop("model"), "digits", images, **values)


def trainer(images, device, **changes):
    settings = config(images, **changes)
    return training.Trainer(training.build(settings, device), images, settings, device)


def train(folder, data, device, **changes):
    """A finished run, of two epochs unless told otherwise; returns its trainer."""
    one = trainer(data, device, **changes)
    run = runs.Run.create(folder, one)
    while one.epoch < one.config.epochs:
        run.add(one.run_epoch(), one)
    run.close()
    return one


def same(a, b):
    """Are two state_dicts equal, bit for bit?"""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write_images(folder, classes, channels=1, count=6, side=8):
    """A folder of random PNGs, a sub-folder a class; each class has a brightness of its own."""
    draw = np.random.default_rng(int(torch.randint(2**31, ())))
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            pixels = draw.integers(0, 60, (side, side, channels), np.uint8) + np.uint8(180 * level / len(classes))
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / name / f"{n}.png")
    return folder


def command(*args):
    """A command's exit code, output and errors."""
    done = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def process(*args, **options):
    """The same in a process of its own, which may be limited or killed."""
    done = subprocess.run(
        [sys.executable, "-m", "cnn_triton.cli", *map(str, args)],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}, **options,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def refused(args, *words, by=command, **options):
    """The one line in which a command says what is wrong; it ends with code 2."""
    code, out, error = by(*args, **options)
    assert code == 2, (code, out, error)
    assert "Traceback" not in error + out
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, error
    for word in words:
        assert word in error, error
    return error

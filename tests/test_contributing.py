"""CONTRIBUTING.md's worked examples, done in a scratch copy of the project: what is added works and is all there is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SKIPPED = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "runs", ".*_cache", "results")


def blocks(language, heading):
    """The code blocks of a language in a section."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def scratch(tmp_path):
    """A copy of the project, with the commands that change and run it."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=SKIPPED, symlinks=True)
    return copy


def run(copy, *command, given=None):
    """What a command prints, in the copy."""
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=copy, env=environment, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def changed(copy):
    """The files that differ from the project's."""
    files = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    kept = [name for name in files if "kernels" not in name.parts[1:2]]  # not by way of the link
    return {
        str(name) for name in kept
        if not (ROOT / name).exists() or (ROOT / name).read_bytes() != (copy / name).read_bytes()
    }  # fmt: skip


def passing(copy, words, *files):
    """The number of tests with these words that pass."""
    said = run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", words, *files)
    return int(re.findall(r"(\d+) passed", said)[-1])


def test_an_activation(scratch):
    """It takes one file and the changelog; products, errors, documentation, fusion and tests have it."""
    (diff,) = blocks("diff", "An activation, step by step")
    run(scratch, "git", "apply", "-", given=diff)
    log = scratch / "CHANGELOG.md"
    log.write_text(log.read_text().replace("### Added\n", "### Added\n\n- The activation tanhshrink.\n", 1))
    assert changed(scratch) == {"CHANGELOG.md", "kernels/matrix/activations/exponential.py"}
    code = """
import torch
from cnn_triton import captures, functional
x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
F = torch.nn.functional
torch.testing.assert_close(functional.conv2d(x, w, activation="tanhshrink"), F.tanhshrink(F.conv2d(x, w)))
assert "tanhshrink" in functional.conv2d.__doc__
try:
    functional.conv2d(x, w, activation="tanhshrunk")
except ValueError as error:
    assert "did you mean 'tanhshrink'?" in str(error), error
torch.compile(lambda x: F.tanhshrink(F.conv2d(x, w)), backend="cnn_triton")(x)
print(dict(captures.patterns))
"""
    assert run(scratch, sys.executable, "-c", code) == "{'conv2d + tanhshrink': 1}\n"
    files = ("test_ops", "test_gradients", "test_semantics", "test_capture")
    assert passing(scratch, "tanhshrink", *(f"tests/{name}.py" for name in files)) >= 10


def test_an_operator(scratch):
    """A file, a line and a case; the operator is registered, and its case is tested in every dtype."""
    (source,), (diff,) = (blocks(kind, "An operator, step by step") for kind in ("python", "diff"))
    (scratch / "kernels" / "matrix" / "channel_gate.py").write_text(source)
    run(scratch, "git", "apply", "-", given=diff)
    assert changed(scratch) == {"kernels/matrix/channel_gate.py", "kernels/registry.py", "tests/cases.py"}
    code = """
import torch, cnn_triton.ops
x, gate = torch.randn(3, 2, 5, 4), torch.randn(3, 2)
each = torch.vmap(torch.ops.cnn_triton.channel_gate)(x[None], gate[None])
print(torch.equal(each[0], x * gate[:, :, None, None]))
"""
    assert run(scratch, sys.executable, "-c", code) == "True\n"
    assert passing(scratch, "channel_gate", "tests/test_ops.py") >= 4


def test_commands():
    """Every file and every make target that the page names is there."""
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in re.findall(r"`((?:kernels|cnn_triton|tests|bench|docs)/[\w./*]+)`", TEXT):
        found = [*ROOT.glob(path)] if "*" in path else [ROOT / path]
        assert path.endswith("channel_gate.py") or any(each.exists() for each in found), path

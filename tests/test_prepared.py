"""Kernels compiled before the GPU is there: another process finds them, another build's are not kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import prepared, report  # noqa: E402

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU `make gpu` runs the suite itself")


@pytest.mark.cover
@no_gpu
def test_prepared_kernels_are_found(tmp_path):
    """What was compiled ahead, for the chip of a GPU that isn't here, is in the file, and another process that unpacks
    it compiles nothing anew; of other sources nothing is taken, and another build of Triton is noticed."""
    code = """
import sys
from pathlib import Path
from bench import prepare, prepared, report
prepared.PACKED = Path(sys.argv[1]) / "packed.tar.xz"
every = prepare.operators()
some = [each for each in every if each[0] in ("max_pool2d", "linear")]
prepare.operators, prepare.benchmarks, prepare.candidates = (lambda: some), (lambda: []), (lambda: [])
if len(sys.argv) > 2:
    print(prepared.unpack())
print(prepared.count())
assert prepare.main(["--chip", "sm_90", "--workers", "1"]) == 0
print(prepared.count())
"""

    def child(*words):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["CNN_TRITON_PREPARED"] = str(tmp_path / "cache")
        command = [sys.executable, "-c", code, str(tmp_path), *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    before, *_, after = child()
    assert before == "0"
    assert int(after) >= 4
    shutil.rmtree(tmp_path / "cache")
    said, before, *_, again = child("unpack")
    assert said == f"{after} kernels were prepared for sm_90 by Triton {triton.__version__}"
    assert before == after == again


def test_prepared_for_another_build(tmp_path, monkeypatch):
    """Triton's key is that of the files it is said to have; none but those of these sources stay."""
    here = Path(triton.__file__).parents[1]
    there = tmp_path / "there"
    shutil.copytree(here / "triton", there / "triton", ignore=shutil.ignore_patterns("bin", "lib", "include", "_C"))
    library = next((here / "triton" / "_C").glob("libtriton.*so"))
    (there / "triton" / "_C").mkdir()
    (there / "triton" / "_C" / library.name).write_bytes(library.read_bytes())
    mine = prepared.key()
    with prepared.as_if(there):
        assert prepared.key() == mine
    with (there / "triton" / "_C" / library.name).open("ab") as file:
        file.write(b"!")
    with prepared.as_if(there):
        other = prepared.key()
    assert other != mine == prepared.key()

    for name, path in {"CACHE": "c", "KERNELS": "c/kernels", "ABOUT": "c/about.json", "PACKED": "p.tar.xz"}.items():
        monkeypatch.setattr(prepared, name, tmp_path / path)
    assert prepared.unpack().startswith("no kernels were prepared")
    facts = {"sources": report.sources(), "chip": "sm_90", "triton": "3.6.0"}

    def kernel(**found):
        prepared.begin(**found)
        (prepared.KERNELS / "x").mkdir(exist_ok=True)
        (prepared.KERNELS / "x" / "y.cubin").write_text("code")
        prepared.pack()
        return prepared.unpack()

    assert kernel(**facts, key=mine) == "1 kernels were prepared for sm_90 by Triton 3.6.0"
    prepared.begin(**facts, key=other)
    assert prepared.count() == 1  # of the same sources
    prepared.pack()
    assert "not by this build" in prepared.unpack()
    assert "of other sources: not used" in kernel(**facts | {"sources": "others"}, key=mine)
    assert prepared.count() == 0

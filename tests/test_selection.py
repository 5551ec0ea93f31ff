"""Which tests a run takes; which tests touch a file; faults that fit the code as it is."""

import ast
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import selection
from faults import FAULTS
from selection import ROOT, TOUCHED, homes_of


@dataclass(eq=False)
class Item:
    """A collected test, as far as the choice looks at it."""

    nodeid: str
    path: Path
    covered: bool

    def get_closest_marker(self, name):
        return name if name == "cover" and self.covered else None


ITEMS = [
    Item(nodeid=f"tests/{file}.py::test_one[{name}-{i}]", path=Path(f"tests/{file}.py"), covered=i % 5 > 0)
    for file in ("test_ops", "test_semantics", "test_plan", "test_nn")
    for name in ("conv2d: 3x3", "conv2d_pool: 3x3", "max_pool2d: 2x2", "adaptive_max_pool2d", "threads")
    for i in range(40)
]


def taken(monkeypatch, **options):
    """The tests that are left of ITEMS, and how many are said to be left out."""
    monkeypatch.setattr(selection, "_left_out", [0])
    given = {"cover": None, "rest": None, "seed": 0, "operator": [], "touching": [], "most": None} | options
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    items = list(ITEMS)
    selection.pytest_collection_modifyitems(SimpleNamespace(getoption=given.get, hook=hook), items)
    assert len(items) + selection.left_out() == len(ITEMS)
    return [item.nodeid for item in items]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.9])
def test_cover_and_rest(part, seed, monkeypatch):
    """Together they are all tests, none twice; what isn't marked is in the cover."""
    cover, rest = (taken(monkeypatch, seed=seed, **{name: part}) for name in ("cover", "rest"))
    assert sorted(cover + rest) == sorted(item.nodeid for item in ITEMS)
    assert {item.nodeid for item in ITEMS if not item.covered} <= set(cover)
    drawn = len(cover) - sum(not item.covered for item in ITEMS)
    assert abs(drawn / sum(item.covered for item in ITEMS) - part) < 0.06
    assert part == 0 or cover != taken(monkeypatch, seed=seed + 7, cover=part)


def test_operator(monkeypatch):
    """By whole words: no operator is taken for one whose name holds its own."""
    assert taken(monkeypatch, operator=["max_pool2d"]) == [i.nodeid for i in ITEMS if "[max_pool2d" in i.nodeid]
    assert taken(monkeypatch, operator=["conv2d"]) == [i.nodeid for i in ITEMS if "[conv2d:" in i.nodeid]


def test_most(monkeypatch):
    """So many of the marked tests; all others."""
    found = taken(monkeypatch, most=30)
    assert len(found) == 30 + sum(not item.covered for item in ITEMS)


def test_touching(monkeypatch):
    """The tests of the file's operators, and of none; all tests of its own test files."""
    found = taken(monkeypatch, touching=["kernels/pool/avg_pool2d.py"])
    none = ("threads", "adaptive_max_pool2d")  # the second is a function and no operator
    assert found == [
        i.nodeid for i in ITEMS if i.nodeid.partition("[")[2].startswith(none) and "test_nn" not in i.nodeid
    ]
    found = taken(monkeypatch, touching=["kernels/matrix/conv_pool.py"])
    assert {name.partition("[")[2].split("-")[0] for name in found} == {"conv2d_pool: 3x3", *none}
    found = taken(monkeypatch, touching=["kernels/core/op.py"])
    assert found == [i.nodeid for i in ITEMS if "test_nn" not in i.nodeid]
    assert taken(monkeypatch, touching=["kernels/core/replay.py"]) == [
        i.nodeid for i in ITEMS if "test_plan" in i.nodeid
    ]


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        ("FILES=kernels/pool/unpool2d.py tests/test_data.py", "test_data", "test_nn"),
        ("OP=max_pool2d", "test_ops", "test_data"),
    ],
)
def test_make(words, some, none):
    """The commands of the Makefile choose tests."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not of the make around
    said = subprocess.run(
        ["make", "-n", "test", words], cwd=ROOT, env=alone, capture_output=True, text=True, check=True
    )
    command = [*shlex.split(said.stdout.splitlines()[-1]), "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = {Path(line.partition("::")[0]).stem for line in done.stdout.splitlines() if "::" in line}
    assert some in chosen
    assert none not in chosen


def test_every_file_is_touched():
    """Each file of the package has tests, and each of these is there."""
    for folder in ("kernels", "cnn_triton", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            assert path.name == "__init__.py" or homes_of(name), f"no tests of {name} in selection.TOUCHED"
    for tests in TOUCHED.values():
        for name in tests:
            assert (ROOT / "tests" / f"{name}.py").exists(), name


def test_faults_fit():
    """What a fault replaces stands in its file once, and what comes of it is Python; no two are the same."""
    assert len(FAULTS) >= 40
    assert len({(fault.file, fault.before, fault.after) for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        text = (ROOT / fault.file).read_text()
        assert text.count(fault.before) == 1, f"{fault.what}: {fault.before!r} is not once in {fault.file}"
        ast.parse(text.replace(fault.before, fault.after))

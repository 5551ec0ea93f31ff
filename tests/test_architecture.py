"""The house as docs/architecture.md tells it: a call's road, imports that go down, and files, functions and kernels
that fit on a screen."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import cnn_triton
from cnn_triton import nn
from cnn_triton.kernels.base.lang import INTERPRETING
from selection import imported
from test_package import files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
OURS = [name for name in files() if name.startswith(("kernels/", "cnn_triton/"))]
# Folders and files of the package from the ground up: each imports those before it, and itself.
FLOORS = (
    "kernels/base", "kernels/window", "kernels/core", "kernels/tiles", "kernels/streaming", "kernels/matrix",
    "kernels/pool", "kernels/registry.py", "kernels/compiler", "cnn_triton/dispatch.py", "cnn_triton/ops.py",
    "cnn_triton/autograd", "cnn_triton/functional", "cnn_triton/modules.py", "cnn_triton/nn", "cnn_triton/fusion",
    "cnn_triton/files.py", "cnn_triton/simulator", "cnn_triton/tools", "cnn_triton/pages", "cnn_triton/classifier",
    "cnn_triton/cli",
)  # fmt: skip


def floor(name):
    """The place of a file in FLOORS."""
    (place,) = (i for i, each in enumerate(FLOORS) if name == each or name.startswith(f"{each}/"))
    return place


def test_floors():
    """Every file imports downwards only, and the page names the floors in this order."""
    for name in OURS:
        if name in ("kernels/__init__.py", "cnn_triton/__init__.py"):
            continue
        for other in imported(name):
            assert floor(other) <= floor(name), f"{name} imports {other}, which is above it"
            if name.startswith("cnn_triton/simulator/"):  # which stands on nothing of ours
                assert other.startswith("cnn_triton/simulator/"), f"{name} imports {other}"
    told = re.findall(r"^\| `((?:kernels|cnn_triton)/[\w./]*?)/?` \|", PAGE, re.MULTILINE)
    assert [each.rstrip("/") for each in told] == list(reversed(FLOORS))


class Road:
    """Within: notes the functions of ours that are on the stack when Triton's interpreter first runs a kernel."""

    def __enter__(self):
        self.found = None
        sys.setprofile(self)
        return self

    def __call__(self, frame, event, argument):
        code = frame.f_code
        runs = code.co_name == "__call__" and code.co_filename.endswith("/triton/runtime/interpreter.py")
        if event != "call" or self.found or not runs:
            return
        self.found = []
        while frame := frame.f_back:
            path = Path(frame.f_code.co_filename)
            name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
            name = name.replace("cnn_triton/kernels/", "kernels/")
            if name.startswith(("kernels/", "cnn_triton/")):
                self.found.insert(0, (frame.f_code.co_name, name))

    def __exit__(self, *raised):
        sys.setprofile(None)


def told(heading):
    """The rows of a table of the page: functions and files."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| \d+ \| `(\w+)` \| `([\w./]+)` \|", section, re.MULTILINE)


@pytest.mark.skipif(not INTERPRETING, reason="on a GPU Triton is entered elsewhere")
def test_road():
    """The road of ConvReLU2d(...)(x), first call, second call, and from a plan, as the page tells it: at most 10
    functions of at most 12 files."""
    layer, x = nn.ConvReLU2d(3, 4, 3), torch.randn(2, 3, 8, 9)
    roads = []
    for _ in range(3):
        with Road() as road:
            layer(x)
        roads.append(road.found)
    with torch.no_grad(), Road() as road:
        layer(x)
    first, second, planned = roads
    assert first == second == told("The first two calls")
    assert planned == told("Later calls")
    for each in (*roads, road.found):
        assert len(each) <= 10
        assert len({name for _, name in each}) <= 12


def test_sizes():
    """No file is over 350 lines, no function over 60, no kernel has more than 12 parameters; but for docstrings of
    public functions."""
    for name in files():
        text = (ROOT / name).read_text()
        tree = ast.parse(text)
        lines = len(text.splitlines()) - (documented(tree) if name.startswith("cnn_triton/functional/") else 0)
        assert lines <= 350, f"{name} has {lines} lines"
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            length = node.end_lineno - node.lineno + 1 - documented(node)
            assert length <= 60, f"{name}: {node.name} has {length} lines"
            if name.startswith("kernels/") and any("triton.jit" in ast.unparse(each) for each in node.decorator_list):
                assert len(node.args.args) <= 12, f"{name}: {node.name} has {len(node.args.args)} parameters"


def documented(node):
    """The lines of the docstrings of a function or of a module's functions."""
    every = [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef) and ast.get_docstring(each)]
    return sum(each.body[0].end_lineno - each.body[0].lineno + 1 for each in every)


def test_public_names():
    """The package gives the same names as ever."""
    assert set(cnn_triton.__all__) == {
        "__version__", "backend", "captures", "convert", "functional", "launches", "nn", "revert", "warmup", "where",
    }  # fmt: skip

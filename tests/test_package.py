"""The package: imports in one direction, what each file is for, a life without Triton."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selection import ENTRANCES, imported, reached

ROOT = Path(__file__).parents[1]
TOOLS = (
    "cnn_triton/tools/profiling.py",
    "cnn_triton/tools/inspection.py",
    "cnn_triton/classifier/training.py",
    "cnn_triton/classifier/report.py",
)


def files(pattern="*.py"):
    """The repository's files: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # a copy without its history
        skip = {".venv", "build"}
        return sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob(pattern) if not skip & set(p.parts) and p.is_file())
    return sorted(name for name in done.stdout.split("\n") if name and (ROOT / name).exists())


def test_imports_go_one_way():
    """No file of the package imports itself by way of others; kernels/ imports nothing of cnn_triton/, and what the
    library is made of nothing of its tools."""
    ours = [name for name in files() if name.startswith(("kernels/", "cnn_triton/")) and name not in ENTRANCES]
    below = {name: set(imported(name)) for name in ours}
    order = [name for name in graphlib.TopologicalSorter(below).static_order() if name in below]  # or a CycleError
    assert len(order) == len(ours) > 50
    for name in ours:
        assert not name.startswith("kernels/") or all(other.startswith("kernels/") for other in below[name]), name
    assert not reached("cnn_triton/nn/__init__.py") & set(TOOLS)
    assert reached("cnn_triton/cli/main.py") >= set(TOOLS)


@pytest.mark.parametrize("name", [name for name in files() if name.startswith("kernels/window/")])
def test_windows_are_plain_python(name):
    tree = ast.parse((ROOT / name).read_text())
    modules = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    modules += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
    assert {m.split(".")[0] for m in modules} <= {*sys.stdlib_module_names}
    assert all(other.startswith("kernels/window/") for other in imported(name))


def test_torch_library_is_used_in_one_place():
    users = [
        n for n in files() if n.startswith(("kernels/", "cnn_triton/")) and "torch.library.L" in (ROOT / n).read_text()
    ]
    assert users == ["cnn_triton/ops.py"]


@pytest.mark.parametrize("name", files())
def test_first_line_says_what_a_file_is_for(name):
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert docstring, f"{name} has no docstring"
    assert len(docstring.splitlines()[0]) > 20


def python(code, interpret):
    """What a child process prints; with Triton's interpreter on or off."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_is_light():
    assert python("import cnn_triton, sys; print({'torch', 'triton'} & set(sys.modules))", False) == "set()\n"


WITHOUT_TRITON = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'")
sys.meta_path.insert(0, Block())
import torch, cnn_triton
from cnn_triton import functional, nn
x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
"""


def test_without_triton_cpu_tensors_go_to_pytorch():
    code = WITHOUT_TRITON + "print(torch.equal(functional.conv2d(x, w), torch.nn.functional.conv2d(x, w)))"
    assert python(code, False) == "True\n"


def test_without_triton_a_kernel_says_what_is_missing():
    code = (
        WITHOUT_TRITON
        + """
for name, *args in (
    ("conv2d", x, w), ("conv_transpose2d", x, w[:2]), ("max_pool2d", x, 2), ("avg_pool2d", x, 2), ("linear", x, w[0, 0])
):
    try:
        getattr(functional, name)(*args)
    except RuntimeError as error:
        print(error)
"""
    )
    lines = python(code, True).splitlines()
    assert len(lines) == 5
    assert all("needs Triton, which can't be imported here (No module named 'triton')" in line for line in lines)


def test_cpu_users_lose_nothing():
    """Without the interpreter CPU tensors go straight to torch.nn.functional: no operator of ours, no Function."""
    code = """
import torch, cnn_triton
from cnn_triton import nn
from torch.utils._python_dispatch import TorchDispatchMode
names = set()
class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names.add(func.namespace)
        return func(*args, **(kwargs or {}))
x = torch.randn(2, 3, 8, 8, requires_grad=True)
layer = nn.ConvReLU2d(3, 4, 3)
with Watch():
    y = nn.MaxPool2d(2)(layer(x))
    y.sum().backward()
print(names, cnn_triton.launches(), y.grad_fn.name(), cnn_triton.where(x.device))
"""
    assert python(code, False) == "{'aten'} {} MaxPool2DWithIndicesBackward0 PyTorch's own operators\n"


def test_operators_on_a_cpu_are_the_reference():
    """Called directly, without the interpreter, the operators compute the reference."""
    code = """
import torch
from cnn_triton import functional
x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
y = torch.ops.cnn_triton.conv2d(x, w, None, None, None, None, (1, 1), (0, 0, 0, 0), (1, 1), 1, "zeros", "relu")
print(torch.equal(y, torch.nn.functional.conv2d(x, w).relu()))
"""
    assert python(code, False) == "True\n"


USER = """
import torch
import cnn_triton
from cnn_triton import functional, nn

x = torch.randn(1, 2, 4, 4)
reveal_type(functional.max_pool2d(x, 2))
reveal_type(functional.max_pool2d(x, 2, return_indices=True))
reveal_type(nn.ConvBatchNorm2d(2, 3, 3))
reveal_type(cnn_triton.convert(torch.nn.ReLU()))
nn.ConvReLU2d(2, 3, 3, pading=1)
"""
SEEN = (
    'note: Revealed type is "torch._tensor.Tensor"',
    'note: Revealed type is "tuple[torch._tensor.Tensor, torch._tensor.Tensor]"',
    'note: Revealed type is "cnn_triton.nn.fused.ConvBatchNorm2d"',
    'note: Revealed type is "cnn_triton.fusion.convert.Conversion"',
    'error: Unexpected keyword argument "pading" for "ConvReLU2d"',
)


def test_types_as_users_see_them(tmp_path):
    """mypy finds the types of the package as it is installed, from a folder of the user's."""
    pytest.importorskip("mypy", reason="mypy isn't installed")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) >= len(SEEN), done.stdout + done.stderr
    assert all(words in line for words, line in zip(SEEN, lines, strict=False)), done.stdout

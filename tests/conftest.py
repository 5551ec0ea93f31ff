"""Test set-up: without a CUDA GPU the kernels run in Triton's interpreter; what a run says at its end."""

import os
import random
import sys
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the parallelism; more threads wait for each other

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).parent))

import processes
import selection
import times


def pytest_addoption(pluginmanager):
    for plugin in (selection, times, processes):
        pluginmanager.register(plugin)


def pytest_terminal_summary(terminalreporter):
    count = {how: len(terminalreporter.stats.get(how, ())) for how in ("passed", "failed", "error", "skipped")}
    ran = ", ".join(f"{number} {how}" for how, number in count.items())
    terminalreporter.write_line(f"cases: {ran}; {selection.left_out()} left out by the choice of tests")
    stats = terminalreporter.stats
    for line in (*times.table(), *_compiled(stats), *_conformance(stats), *processes.wrong):
        terminalreporter.write_line(line)


def _properties(reports, key):
    """What tests recorded under this name."""
    return [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == key]


def _compiled(stats):
    """Lines of a table of how many operators compiled, by version of Triton and chip."""
    found = {(version, chip): count for version, chip, count in _properties(stats.get("passed", ()), "compiled")}
    if found:
        versions, chips = (sorted({key[i] for key in found}) for i in range(2))
        yield "operators that compiled" + "".join(f"{chip:>8}" for chip in chips)
        for version in versions:
            yield f"  Triton {version:14}" + "".join(f"{found.get((version, chip), ''):>8}" for chip in chips)


def _conformance(stats):
    """Lines of a table of what test_conformance.py's tests say that they covered: passed, by operator and module."""
    columns = ("samples", "errors", "refused", "modules", "module errors", "failed", "skipped")
    table = {}
    for how in ("passed", "failed", "skipped"):
        for report in stats.get(how, ()):
            said = _properties([report], "conformance")
            if how != "passed" and "test_conformance" in report.nodeid:
                said = [(report.nodeid.partition("[")[2].split("-")[0].rstrip("]"), how, 1)]
            for name, kind, number in said:
                row = table.setdefault(name, dict.fromkeys(columns, 0))
                row[kind] += number
    if table:
        yield "PyTorch's conformance data, passed (refused: samples of integer and complex dtypes, with a clear error)"
        yield f"{'':22}" + "".join(f"{column:>15}" for column in columns)
        for name in sorted(table, key=lambda name: (name[0].isupper(), name)):
            yield f"{name:22}" + "".join(f"{table[name][column] or '':>15}" for column in columns)
        yield f"{'':22}" + "".join(f"{sum(row[column] for row in table.values()):>15}" for column in columns)


def pytest_report_header(config):
    import triton

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter, no GPU"
    return f"kernels: {where}; torch {torch.__version__}, triton {triton.__version__}"


@pytest.fixture(autouse=True, scope="session")
def _overflow_checks():
    from cnn_triton.kernels.base import lang

    if lang.INTERPRETING:
        lang.interpreter.check_overflow(True)


@pytest.fixture(autouse=True, scope="session")
def _full_float32():
    """On a GPU, PyTorch and so the kernels would use TF32 in convolutions, which tests of its own are for. By the older
    switch: torch.export reads that, and refuses if a newer one was set."""
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _seed(request):
    """Each test draws its own values: the same ones again by the same seed, others by another seed."""
    seed = zlib.crc32(f"{request.config.getoption('--seed')} {request.node.nodeid}".encode())
    torch.manual_seed(seed)
    random.seed(seed)


@pytest.fixture(scope="session")
def device():
    """Where the tested tensors live."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

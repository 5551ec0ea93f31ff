"""A process that crashes, even after its last line, is a failure: a worker of the run, or a child of a test."""

import signal
import subprocess

import pytest

wrong: list[str] = []  # what the summary says of the workers
_workers = {}
_children = []
_start = subprocess.Popen.__init__
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
# As Python has it of a child, and as a shell, or a launcher, of its own.
CRASHED = {code: name.name for name in _CRASHES for code in (-name, 128 + name)}


def _noted(self, *args, **options):
    _start(self, *args, **options)
    _children.append((self, args[0] if args else options["args"]))


@pytest.fixture(autouse=True)
def _no_child_crashes(monkeypatch):
    """Fails a test of whose child processes one crashed."""
    monkeypatch.setattr(subprocess.Popen, "__init__", _noted)
    _children.clear()
    yield
    for process, command in _children:
        assert process.returncode not in CRASHED, f"{CRASHED[process.returncode]} in {str(command)[:500]}"


def pytest_configure(config):
    """pytest-xdist kills a worker that takes 10 seconds to end. One that ran thousands of tests may take that long."""
    if config.pluginmanager.hasplugin("xdist"):
        from xdist.workermanage import NodeManager

        NodeManager.EXIT_TIMEOUT = 120


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node):
    _workers[node.gateway.id] = node.gateway._io.popen


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """By now pytest-xdist has asked its workers to end, and waited."""
    for name, popen in _workers.items():
        try:
            code = popen.wait(60)
        except subprocess.TimeoutExpired:
            code = "nothing: it did not end"
        if code:
            wrong.append(f"worker {name} ended with {CRASHED.get(code, code)}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

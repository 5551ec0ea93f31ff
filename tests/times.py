"""What a run of the tests costs: CPU seconds, child processes included, by file, by test and by parameter."""

import os
from collections import defaultdict

import pytest

_spent = defaultdict(lambda: [0, 0.0])  # ("file" | "test" | "parameter", its name): tests, CPU seconds
_SHOWN = 16  # a parameter of more values than this is one of cases, and not listed


def _cpu():
    """This process's CPU seconds so far, and those of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _rows(item):
    """The rows of the tables that a test's cost goes into."""
    file = item.nodeid.partition("::")[0]
    yield "file", file
    yield "test", f"{file}::{item.originalname}"
    for name, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
        yield "parameter", ascii(f"{name}={value}").replace("=torch.", "=").strip("'")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = _cpu()
    result = yield
    seconds = _cpu() - before
    for row in _rows(item):
        _spent[row][0] += 1
        _spent[row][1] += seconds
    return result


def pytest_sessionfinish(session):
    _spent["file", "(start and collection)"] = [
        0,
        _cpu() - sum(s for (kind, _), (_, s) in _spent.items() if kind == "file"),
    ]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["spent"] = [(*row, *cost) for row, cost in _spent.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for kind, name, count, seconds in getattr(node, "workeroutput", {}).get("spent", ()):
        _spent[kind, name][0] += count
        _spent[kind, name][1] += seconds


def table():
    """The lines of the three tables; of tests and parameters, those that cost 1 % or more."""
    total = sum(seconds for (kind, _), (_, seconds) in _spent.items() if kind == "file")
    values = defaultdict(set)
    for kind, name in _spent:
        values[kind, name.partition("=")[0]].add(name)
    for kind in ("file", "test", "parameter"):
        yield f"{'tests':>8}{'CPU s':>9}{'share':>8}  by {kind}"
        rows = [(seconds, name, count) for (of, name), (count, seconds) in _spent.items() if of == kind]
        for seconds, name, count in sorted(rows, reverse=True):
            few = len(values[kind, name.partition("=")[0]]) <= _SHOWN
            if kind == "file" or (seconds >= total / 100 and few):
                yield f"{count or '':>8}{seconds:>9.1f}{seconds / total:>8.1%}  {name}"
        if kind == "file":
            yield f"{sum(count for *_, count in rows):>8}{total:>9.1f}"

"""The counters of the library's kernels: those of the raw file, of which the page is made."""

import importlib
import pkgutil

import pytest

import cnn_triton.kernels
from bench import counters
from bench.counters import CALLS, CHIPS, LAYOUTS
from simulated import simulated


def jobs(seed):
    """Each call in a layout and on a chip in turn; without a seed in all of them."""
    for turn, name in enumerate(CALLS, seed or 0):
        layouts = LAYOUTS if seed is None else [LAYOUTS[turn % len(LAYOUTS)]]
        for layout in layouts:
            for chip in CHIPS if seed is None else [CHIPS[turn // len(LAYOUTS) % len(CHIPS)]]:
                yield name, layout, chip


@pytest.mark.rotated("name, layout, chip", jobs)
@simulated
def test_figures(name, layout, chip):
    """A call's kernels do what the file says, exactly: if they do better, or worse for a good reason, make counters."""
    known = [row for row in counters.read() if row[:3] == (name, layout, chip)]
    assert counters.count(name, layout, chip) == known


def test_page():
    """The page is what the file says, and the file has every call."""
    rows = counters.read()
    assert counters.PAGE.read_text() == counters.page(rows), "run make counters"
    assert {row[:3] for row in rows} == set(jobs(None))


def test_every_kernel():
    """Each kernel of the library has figures."""
    every = set()
    for module in pkgutil.walk_packages(cnn_triton.kernels.__path__, "cnn_triton.kernels."):
        values = vars(importlib.import_module(module.name)).items()
        every |= {name for name, value in values if name.endswith("_kernel") and hasattr(value, "fn")}
    assert len(every) > 25
    assert every <= {row.kernel for row in counters.read()}

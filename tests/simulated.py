"""Tests whose kernels are compiled and run in the simulator: in a process of their own, since Triton's interpreter is
switched on, or not, when Triton is imported.

    @simulated
    def test_kernel(chip): ...  # its arguments and parameters are pickled, its module is imported there
"""

import functools
import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

_IN_CHILD = "CNN_TRITON_SIMULATED"


def simulated(test):
    """The test, run in the process of compiled kernels; its own names and line numbers are in what it raises."""
    if os.environ.get(_IN_CHILD):
        return test

    @functools.wraps(test)
    def run(*args, **arguments):
        import torch

        try:
            _child().submit(_call, test.__module__, test.__name__, torch.initial_seed(), args, arguments).result()
        except BrokenProcessPool:
            _child.cache_clear()  # the next test has another
            raise

    return run


@functools.cache
def _child():
    """The process, one for each worker of the run."""
    context = multiprocessing.get_context("spawn")
    before = os.environ.copy()
    os.environ |= {_IN_CHILD: "1", "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        pool = ProcessPoolExecutor(1, context)
        pool.submit(os.getpid).result()  # it has its environment now
    finally:
        os.environ.clear()
        os.environ.update(before)
    return pool


def _call(module, name, seed, args, arguments):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    getattr(importlib.import_module(module), name)(*args, **arguments)

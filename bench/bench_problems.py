"""pytest-benchmark over the problems: `pytest bench --benchmark-only`; ratios and rates are in the extra_info."""

import pytest
import torch

from bench.measure import ceilings, clock_for, gradient, measure, memory_returned, prepare, step
from bench.problems import COMPILED, problems
from bench.report import environment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def setting():
    """The clock, the ceilings and the environment, once for all problems."""
    prepare(DEVICE)
    clock = clock_for(DEVICE)
    return clock, ceilings(clock, DEVICE), environment(DEVICE)


@pytest.mark.parametrize("name", problems(DEVICE))
def test_problem(name, benchmark, setting):
    clock, limits, where = setting
    torch.manual_seed(0)
    with memory_returned(DEVICE):
        problem = problems(DEVICE)[name]()
        compile = DEVICE.type == "cuda" and name in COMPILED
        row = measure(name, problem, clock, limits, rounds=20, compile=compile)
        run = step(problem.ours, problem, gradient(problem))

        def once():
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.extra_info.update(environment=where, ceilings=limits, **row)
        benchmark.pedantic(once, rounds=5, warmup_rounds=1)

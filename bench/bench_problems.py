"""pytest-benchmark over the problems: `pytest bench --benchmark-only`; ratios and rates are in the extra_info."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from bench.measure import environment, measure, step
from bench.problems import problems

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("label", problems(DEVICE))
def test_problem(label, benchmark):
    torch.manual_seed(0)
    problem = problems(DEVICE)[label]()
    run = step(problem.ours, problem)

    def once():
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info.update(environment(DEVICE), **measure(problem, DEVICE, rounds=5, seconds=1))
    benchmark.pedantic(once, rounds=5, warmup_rounds=1)

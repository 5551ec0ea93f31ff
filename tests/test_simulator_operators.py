"""The library's operators in the simulator: compiled for each chip, right, and without a finding."""

import random

import pytest
import torch

from cases import CASES
from checks import assert_right, fresh_is_nan, results
from cnn_triton.kernels.base.precision import float32_precision
from cnn_triton.kernels.core.op import launches
from cnn_triton.kernels.registry import OPS
from cnn_triton.kernels.tiles import pick
from cnn_triton.simulator import simulating
from combinations import KINDS, dtype_name, turns
from simulated import simulated

CHIPS = ("sm_80", "sm_90", "sm_100", "sm_89", "sm_120")


def runs(case):
    """True if a case launches a kernel."""
    args = case.make(torch.float32, "contiguous")
    return 0 not in args[0].shape and any(t.numel() for t in results(case.op.fake(*args)))


RUN = [case for case in CASES if runs(case)]


def firsts(seed):
    """A case of each operator, its dtype and layout, for each of three chips."""
    for turn, op in enumerate(OPS, seed or 0):
        cases = [i for i, case in enumerate(RUN) if case.op is op]
        for i, chip in enumerate(CHIPS[:3]):
            number, (dtype, form) = cases[(turn + i) % len(cases)], KINDS[(7 * turn + 3 * i) % len(KINDS)]
            yield pytest.param(number, dtype, form, chip, id=f"{RUN[number]}-{dtype_name(dtype)}-{form}-{chip}")


def rest(seed):
    """Each case in a dtype and layout, on a chip, in turn; without a seed in all of them."""
    for case, turn in turns(RUN, lambda case: case.op, seed or 0):
        kinds, chips = (KINDS, CHIPS) if seed is None else ([KINDS[turn % len(KINDS)]], [CHIPS[turn % len(CHIPS)]])
        for dtype, form in kinds:
            for chip in chips:
                yield pytest.param(RUN.index(case), dtype, form, chip, id=f"{case}-{dtype_name(dtype)}-{form}-{chip}")


@pytest.mark.rotated("number, dtype, form, chip", firsts)
@simulated
def test_operator(number, dtype, form, chip):
    """Every operator, by the tile that is picked."""
    check(RUN[number], dtype, form, chip, None)


@pytest.mark.cover
@pytest.mark.rotated("number, dtype, form, chip", rest)
@simulated
def test_case(number, dtype, form, chip):
    """Every case, by one of all the tiles that could serve."""
    draw = random.Random(torch.initial_seed())

    def choose(picked, problem, kind, chip):
        serving = [*pick.serving(problem, kind, chip)]
        return draw.choice(serving) if serving else picked

    check(RUN[number], dtype, form, chip, choose)


def check(case, dtype, form, chip, choose):
    """A case's results on a chip, float32 with TF32 or without."""
    args = case.make(dtype, form)
    tf32 = dtype == torch.float32 and case.op.product and random.Random(torch.initial_seed()).random() < 0.5
    before = launches[case.op.name]
    with simulating(chip, races=True) as run, float32_precision("tf32" if tf32 else "ieee"), fresh_is_nan():
        if choose is None:
            ours = results(case.op.launch(*args))
        else:
            with pick.overriding(choose):
                ours = results(case.op.launch(*args))
    rounded = [each for launch in run.launches for each in launch.instructions if "tf32" in each and "mma" in each]
    assert tf32 or not rounded, f"full float32 is asked for, and {rounded} run"
    assert_right(case.op, args, ours, tf32)
    assert launches[case.op.name] - before == len(run.launches) > 0
    wrong = [str(found) for found in run.findings if not found.is_note]
    assert not wrong, "\n".join(wrong)

"""Convolutions with a pooling, compiled, on small integers: values and codes are exact, of equal values and NaN too."""

import pytest
import torch

from cnn_triton.kernels.core.op import launches
from cnn_triton.kernels.matrix.conv_pool import CONV2D_POOL
from cnn_triton.simulator import simulating
from simulated import simulated

NAN = float("nan")
AT_ONCE = ((2, 2), (1, 2), (2, 1), (4, 1))
IN_TURN = ((1, 4), (3, 2))


def integers(shape, most, layout=torch.contiguous_format):
    """Random whole numbers."""
    return torch.randint(-most, most + 1, shape).to(torch.float32).contiguous(memory_format=layout)


@pytest.mark.cover
@pytest.mark.parametrize("average", [False, True], ids=["maximum", "average"])
@pytest.mark.parametrize("pool", AT_ONCE + IN_TURN, ids=str)
@pytest.mark.parametrize("chip", ["sm_90", "sm_100", "sm_80"])
@simulated
def test_windows(chip, pool, average):
    """Every pool, in both layouts, at sizes that hang over boxes and windows; NaN in some windows, or in none."""
    for turn, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32)):
        layout = (torch.channels_last, torch.contiguous_format)[(turn + average) % 2]
        x, w = integers((3, 64, 9, 10 + turn), 1, layout), integers((65 + 7 * turn, 64, 3, 3), 1, layout)
        b = integers((len(w),), 2)
        if turn != 1:
            x[0, 3, 4, 5] = x[1, 0, 0, 9] = NAN
            x[2, 5, 2, 2], x[2, 9, 7, 7] = float("inf"), -float("inf")
        args = (x.to(dtype), w.to(dtype), b.to(dtype), None, (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", pool, average)
        y, code = CONV2D_POOL.reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
        before = launches["conv2d_pool"]
        with simulating(chip, races=True) as run:
            ours, our_code = CONV2D_POOL.launch(*args)
        assert launches["conv2d_pool"] - before == len(run.launches)
        *repacked, kernel = (each.kernel for each in run.launches)
        at_once = pool in AT_ONCE and chip != "sm_80"
        assert repacked == ["repack_kernel"] * (at_once and layout is torch.contiguous_format)
        if pool in AT_ONCE:
            assert ("tma" in kernel) == at_once
        torch.testing.assert_close(ours, y.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(our_code.long(), code.long())
        wrong = [str(found) for found in run.findings if not found.is_note]
        assert not wrong, "\n".join(wrong)

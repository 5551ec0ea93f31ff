"""Every instruction of the simulator's table against an independent reference, on edge cases and random operands."""

import numpy as np
import pytest

from cnn_triton.simulator.decoder import Decoder
from cnn_triton.simulator.table import TABLE
from ptx_numbers import wrong
from ptx_rows import FAMILIES
from ptx_text import each


@pytest.mark.parametrize("family", FAMILIES)
def test_rows(family, monkeypatch):
    """Each row of a family, which the instruction's text is decoded to."""
    used = []
    row = Decoder.row
    monkeypatch.setattr(
        Decoder, "row", lambda self, statement, key, *rest: used.append(key) or row(self, statement, key, *rest)
    )
    bad = []
    for case in FAMILIES[family]():
        used.clear()
        bad += filter(None, [wrong(case)])
        assert case.key in used, case
    assert not bad


def test_every_row_has_a_reference():
    assert {case.key for cases in FAMILIES.values() for case in cases()} == set(TABLE)


def test_guarded_threads_alone_execute():
    x = np.arange(1000, dtype=np.uint32)
    for name, function in (("add.u32", x + 7 * x), ("max.u32", 7 * x), ("xor.b32", x ^ (7 * x))):
        found = each(f"{name} {{}}, {{}}, {{}};", np.uint32, x, 7 * x, guarded=True)
        assert (found == np.where(x % 2, function, 0)).all()

"""Compiled kernels, run on a CPU: PTX instruction by instruction, with checks and counters.

    with simulating("sm_90", races=True) as run:
        kernel[grid](x, y, n, BLOCK=128)  # any Triton kernel, CPU tensors
    print(run.findings)  # what is wrong, and in which line
    print(run.counters)  # instructions, sectors, bank conflicts, by line

See docs/simulator.md.
"""

from .counters import Counters, Launch, LineCounters, counters_by_line
from .driver import Simulation, simulating
from .findings import Finding
from .ptx import Unsupported
from .run import SimulationError

__all__ = [
    "Counters", "Finding", "Launch", "LineCounters", "Simulation", "SimulationError", "Unsupported", "counters_by_line",
    "simulating",
]  # fmt: skip

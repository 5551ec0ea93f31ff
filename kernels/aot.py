"""What the launchers launch, compiled for any chip without having one: registers, spills, instructions, load widths.

A stub driver names the chip, and `warmup` compiles where a launch would: Triton specialises the arguments itself, so
the code is the one a user's GPU would get. Needs a process in which Triton's interpreter is off.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .lang import INTERPRETING, triton
from .op import Op


class Code(NamedTuple):
    """Figures of one compiled kernel. `spills` counts stack and local bytes (NVIDIA) or spilled registers (AMD)."""

    kernel: str
    chip: str
    options: str
    registers: int
    spills: int
    shared: int
    matrix: int  # tensor-core (matrix-core) instructions
    wide: int  # 16-byte loads from global memory, cp.async included
    loads: int  # all loads from global memory


class _Driver:
    """Names a chip; launches nothing."""

    def __init__(self, chip: str, target: Any) -> None:
        self.chip = chip
        self.target = target

    def get_current_device(self) -> str:
        return self.chip  # what Triton keeps compiled kernels by

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def target(chip: str) -> Any:
    """Triton's name of a chip: "sm_90", "gfx942"."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(chip[3:]), 32) if chip.startswith("sm_") else GPUTarget("hip", chip, 64)


@contextlib.contextmanager
def recording(chip: str) -> Iterator[list[Code]]:
    """Within: launches compile for the chip instead of running; the list fills with their figures."""
    if INTERPRETING:
        raise RuntimeError("Triton's interpreter is on (TRITON_INTERPRET): compile in a process without it")
    codes: list[Code] = []
    run, driver = triton.runtime.jit.JITFunction.run, triton.runtime.driver

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(kernel, *args, grid=grid, warmup=True, **options)
        codes.append(figures(kernel.__name__, chip, options, compiled))
        return compiled

    active = getattr(driver, "_active", None)
    driver.set_active(_Driver(chip, target(chip)))
    triton.runtime.jit.JITFunction.run = record
    try:
        yield codes
    finally:
        triton.runtime.jit.JITFunction.run = run
        driver._active = active


def compile_op(op: Op, args: tuple[Any, ...], chip: str) -> list[Code]:
    """The kernels that a call of the operator launches, compiled for the chip. The tensors' values are not read."""
    with recording(chip) as codes:
        op.launch(*args)
    return codes


def figures(name: str, chip: str, options: dict[str, Any], compiled: Any) -> Code:
    """The figures of a compiled kernel."""
    shown = ("M", "N", "K", "PACKED", "TRANSPOSED", "PRECISION", "PIXELS", "CHANNELS", "num_warps", "num_stages")
    text = " ".join(f"{k}={options[k]}" for k in shown if k in options)
    read = _nvidia if chip.startswith("sm_") else _amd
    return Code(name, chip, text, *read(compiled))


def _nvidia(compiled: Any) -> tuple[int, int, int, int, int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    matrix = len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\.", ptx))
    asynchronous = re.findall(r"cp\.async\.c[ag]\S* \[[^]]*\], \[[^]]*\], (?:0x)?([0-9a-f]+)", ptx)
    loads = re.findall(r"ld\.global\S*", ptx)
    wide = sum(int(size, 16) == 16 for size in asynchronous) + sum(
        ".v4.b32" in load or ".v2.b64" in load for load in loads
    )
    every = len(asynchronous) + len(loads)
    return used["REG"], used["STACK"] + used["LOCAL"], compiled.metadata.shared, matrix, wide, every


def _amd(compiled: Any) -> tuple[int, int, int, int, int, int]:
    text = compiled.asm["amdgcn"]
    used = {
        key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count): +(\d+)", text)
    }
    loads = re.findall(r"(?:global|buffer|flat)_load_\S+", text)
    wide = sum("dwordx4" in load or "b128" in load for load in loads)
    matrix = len(re.findall(r"v_mfma\S*", text))
    return used["vgpr_count"], used["vgpr_spill_count"], compiled.metadata.shared, matrix, wide, len(loads)

"""What the launchers launch, compiled for any chip without having one: registers, residency, the main loop's work.

A stub driver names the chip, and `warmup` compiles where a launch would: Triton specialises the arguments itself, so
the code is the one a user's GPU would get. Needs a process in which Triton's interpreter is off.
"""

import contextlib
import functools
import hashlib
import math
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..base.lang import INTERPRETING, triton
from ..core.chips import CHIPS
from ..core.op import ALWAYS, Op
from ..core.replay import deciding
from . import sass


class Code(NamedTuple):
    """One launch's kernel. `source` says which code it is: a hash of all that determines it but the compiler. The
    figures are None where nothing was compiled.

    registers:    a thread's; AMD's AGPRs are in them
    spills:       bytes of stack and local memory (NVIDIA); registers kept elsewhere, scratch memory in them (AMD)
    resident:     blocks that fit on a multiprocessor at a time, None for a chip that isn't in CHIPS
    limit:        what keeps more out: "registers", "shared", "warps", "blocks", "tensor memory"
    matrix, wide, loads: of the whole kernel, the matrix instructions, global loads of 16 bytes, all global loads
    looped:       the figures that follow are the main loop's; False: there is none, they are the whole kernel's
    loop_matrix:  matrix instructions
    instruction:  the first of them, None without one
    tma:          boxes that the copy engine loads
    load_bytes:   of the narrowest global load, None without one
    instructions: all of them, branches not taken too
    per_flop:     instructions that the block's warps issue for 1000 FLOPs of matrix products or multiply-adds
    grid:         programs of this launch
    load_widths, store_widths: of the whole kernel, in words
    """

    kernel: str
    chip: str
    options: str
    source: str
    warps: int | None = None
    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    resident: int | None = None
    limit: str | None = None
    matrix: int | None = None
    wide: int | None = None
    loads: int | None = None
    looped: bool | None = None
    loop_matrix: int | None = None
    instruction: str | None = None
    tma: int | None = None
    load_bytes: int | None = None
    instructions: int | None = None
    per_flop: float | None = None
    grid: int = 1
    load_widths: str | None = None
    store_widths: str | None = None


def residency(chip: str, registers: int, shared: int, warps: int, columns: int = 0) -> tuple[int | None, str | None]:
    """(resident, limit) of a block with so many registers a thread, bytes of shared memory, warps, and columns of
    tensor memory. A multiprocessor has four parts, each with a quarter of its registers."""
    if chip not in CHIPS:
        return None, None
    at = CHIPS[chip]
    taken = -(-shared // at.granule) * at.granule + at.reserved
    fits = {
        "registers": at.registers // at.lanes // 4 // max(-(-registers // 8) * 8, 8) * 4 // warps,
        "warps": at.warps // warps,
    }
    if taken:
        fits["shared"] = (at.shared + at.reserved) // taken
    if columns:
        fits["tensor memory"] = 512 // columns
    fits["blocks"] = at.blocks
    limit = min(fits, key=fits.__getitem__)
    return fits[limit], limit


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

    def get_benchmarker(self) -> Any:
        raise RuntimeError("an autotuned kernel times its configurations, and nothing runs here: leave one")


@contextlib.contextmanager
def compiling_for(chip: str) -> Iterator[None]:
    """Within, Triton compiles for the chip; what is launched fails."""
    with targeting(chip), deciding():
        yield


@contextlib.contextmanager
def targeting(chip: str) -> Iterator[None]:
    """Within, Triton takes the chip for that of this machine."""
    driver = triton.runtime.driver
    active = getattr(driver, "_active", None)
    driver.set_active(_Driver(chip, target(chip)))
    try:
        yield
    finally:
        driver._active = active


def target(chip: str) -> Any:
    """Triton's name of a chip: "sm_90", "gfx942"."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(chip[3:]), 32) if chip.startswith("sm_") else GPUTarget("hip", chip, CHIPS[chip].lanes)


def bound(kernel: Any, chip: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A launch's arguments by name, what Triton specialises the kernel for, and the rest of its options."""
    *_, bind = kernel.device_caches[chip]
    return bind(*args, **options)


def source(kernel: Any, chip: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """A short hash of what determines a launch's code, but for the compiler: the text of the kernel and of what it
    calls, what Triton specialises it for, the chip. The same with every version of Triton."""
    _, specialization, rest = bound(kernel, chip, args, options)
    with _placeless():
        key = triton.runtime.jit.compute_cache_key({}, specialization, dict(sorted(rest.items())))
        return hashlib.sha256("\n".join((chip, kernel.cache_key, key)).encode()).hexdigest()[:16]


@functools.cache
def _texts(modules: tuple[str, ...]) -> dict[Any, str]:
    """Hashes of our device functions' texts. Triton's own hash also has the line that a function begins at."""
    callables = triton.runtime.jit.JITCallable
    every = {each for name in modules for each in vars(sys.modules[name]).values() if isinstance(each, callables)}
    kept = [(each, each.hash, each.starting_line_number) for each in every]
    try:
        for each in every:
            each.hash, each.starting_line_number = None, 0
        return {each: each.cache_key for each in every}
    finally:
        for each, key, line in kept:
            each.hash, each.starting_line_number = key, line


@contextlib.contextmanager
def _placeless() -> Iterator[None]:
    """Within: our device functions' hashes are those of their texts alone."""
    texts = _texts(tuple(name for name in sys.modules if name.startswith("cnn_triton.kernels.")))
    kept = [(each, each.hash) for each in texts]
    try:
        for each, key in texts.items():
            each.hash = key
        yield
    finally:
        for each, key in kept:
            each.hash = key


_known: dict[str, Code] = {}  # what this process has compiled, by source


Texts = dict[str, dict[str, Any]]  # by source, what the compiler made on its way: "ttir", "ttgir", "llir", ...


@contextlib.contextmanager
def recording(chip: str, compile: bool = True, texts: Texts | None = None) -> Iterator[list[Code]]:
    """Within: launches compile for the chip instead of running, the same code once a process. After: the list holds a
    code for each launch. With compile=False they only say what they would compile, in a millisecond each. `texts` gets
    the texts of what is launched. The codes are in the list as they are launched, with their figures in the end."""
    if INTERPRETING:
        raise RuntimeError("Triton's interpreter is on (TRITON_INTERPRET): compile in a process without it")
    launched: list[Code] = []
    new: dict[str, _Compiled] = {}
    run = triton.runtime.jit.JITFunction.run

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = Code(kernel.__name__, chip, _shown(options), source(kernel, chip, args, options))
        wanted = code.source not in _known or (texts is not None and code.source not in texts)
        if compile and wanted and code.source not in new:
            compiled = run(kernel, *args, grid=grid, warmup=True, **options)
            new[code.source] = _usage(code, compiled)
            if texts is not None:
                texts[code.source] = dict(compiled.asm)
            kernel.device_caches[chip][0].clear()  # Triton would keep every text of every kernel
        sides = grid(bound(kernel, chip, args, options)[0]) if callable(grid) else grid
        launched.append(code._replace(grid=math.prod(sides)))

    triton.runtime.jit.JITFunction.run = record
    try:
        with compiling_for(chip), triton.knobs.compilation.scope():
            if texts is not None:  # those in Triton's cache may name files that have moved since
                triton.knobs.compilation.always_compile = True
            yield launched
    finally:
        triton.runtime.jit.JITFunction.run = run
        _known.update((code.source, code) for code in _finish(chip, list(new.values())))
        launched[:] = [_known.get(code.source, code)._replace(grid=code.grid) for code in launched]


def compile_op(op: Op, args: tuple[Any, ...], chip: str, compile: bool = True) -> list[Code]:
    """The kernels that a call of the operator launches, compiled for the chip. The tensors' values are not read."""
    with recording(chip, compile) as codes:
        op.launch(*args)
    return codes


def _shown(options: dict[str, Any]) -> str:
    """Return a launch's numbers and words, those in its records too, and its tile's box; not what is the same in
    all."""
    each = {}
    for name, value in options.items():
        each |= value._asdict() if hasattr(value, "_fields") else {name: value}
    shown = (k for k, v in each.items() if (isinstance(v, int | str) or k == "box" and v) and k not in ALWAYS)
    return " ".join(f"{k}={each[k]}" for k in shown)


class _Compiled(NamedTuple):
    """A code without its main loop's figures, and what those are read from: machine code (NVIDIA) or text (AMD)."""

    code: Code
    body: bytes | str
    tcgen05: int = 0


def _usage(code: Code, compiled: Any) -> _Compiled:
    """What a compiled kernel takes, and its loads and matrix instructions."""
    code = code._replace(warps=compiled.metadata.num_warps, shared=compiled.metadata.shared)
    each = (_nvidia if code.chip.startswith("sm_") else _amd)(code, compiled)
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    resident, limit = residency(code.chip, each.code.registers, code.shared, code.warps, columns)
    return each._replace(code=each.code._replace(resident=resident, limit=limit))


def _nvidia(code: Code, compiled: Any) -> _Compiled:
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    usage = _tool(cubin, "cuobjdump", "-res-usage")
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    asynchronous = re.findall(r"cp\.async\.c[ag]\S* \[[^]]*\], \[[^]]*\], (?:0x)?([0-9a-f]+)", ptx)
    loads = re.findall(r"ld\.global\S*", ptx)
    code = code._replace(
        registers=used["REG"],
        spills=used["STACK"] + used["LOCAL"],
        matrix=len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\.", ptx)),
        wide=sum(int(s, 16) == 16 for s in asynchronous) + sum(".v4.b32" in s or ".v2.b64" in s for s in loads),
        loads=len(asynchronous) + len(loads),
    )
    return _Compiled(code, _section(cubin, f".text.{compiled.metadata.name}"), sass.tcgen05_flops(ptx))


def _amd(code: Code, compiled: Any) -> _Compiled:
    text = compiled.asm["amdgcn"]
    keys = "vgpr_count|vgpr_spill_count|private_segment_fixed_size"
    used = {key: int(value) for key, value in re.findall(rf"\.({keys}): +(\d+)", text)}
    scratch = -(-used["private_segment_fixed_size"] // 4)  # a spilled vector register is four bytes of it
    loads = re.findall(r"(?:global|buffer|flat)_load_\S+", text)
    code = code._replace(
        registers=used["vgpr_count"],
        spills=max(used["vgpr_spill_count"], scratch),  # a scalar register moves to a lane of a vector's, or is scratch
        matrix=len(re.findall(r"v_mfma\S*", text)),
        wide=sum("dwordx4" in load or "b128" in load for load in loads),
        loads=len(loads),
    )
    return _Compiled(code, text)


def _finish(chip: str, new: list[_Compiled]) -> Iterator[Code]:
    """The codes with their main loops' figures. NVIDIA's disassembler needs longer to start than for a kernel, so it
    starts once for all of them."""
    if chip.startswith("sm_") and new:
        name = f"SM{chip[3:]}{'a' if int(chip[3:]) >= 90 else ''}"
        text = _tool(b"".join(each.body for each in new), "nvdisasm", "-ndf", "--binary", name)
        lines = iter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/ .*", text, re.MULTILINE))
        listings = [sass.nvidia("\n".join(islice(lines, len(each.body) // 16))) for each in new]
    else:
        listings = [sass.amd(each.body) for each in new]
    for (code, _, tcgen05), steps in zip(new, listings, strict=True):
        names, looped = sass.main_loop(steps)
        every = [step.name for step in steps]
        yield code._replace(
            load_widths=sass.widths(every, sass.load_bytes),
            store_widths=", ".join(filter(None, (sass.widths(every, sass.store_bytes), sass.atomics(every)))),
            looped=looped,
            loop_matrix=sum(map(sass.is_matrix, names)),
            instruction=next(filter(sass.is_matrix, names), None),
            tma=sum(name.startswith("UTMALDG") for name in names),
            load_bytes=min(filter(None, map(sass.load_bytes, names)), default=None),
            instructions=len(names),
            per_flop=sass.per_flop(names, code.warps, tcgen05),
        )


def disassembled(chip: str, texts: dict[str, Any]) -> str:
    """The machine code of a kernel with the lines of its source that each part is from."""
    return _tool(texts["cubin"], "nvdisasm", "-c", "-gi") if chip.startswith("sm_") else str(texts["amdgcn"])


def _tool(binary: bytes, name: str, *arguments: str) -> str:
    """What one of NVIDIA's tools, which Triton brings along, prints for a file."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile() as file:
        file.write(binary)
        file.flush()
        return subprocess.run([tool, *arguments, file.name], capture_output=True, text=True, check=True).stdout


def _section(elf: bytes, name: str) -> bytes:
    """The bytes of a section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + size * i) for i in range(count)]  # name, .., offset, size
    for label, *_, offset, length in sections:
        start = sections[names][4] + label
        if elf[start : elf.index(b"\0", start)].decode() == name:
            return elf[offset : offset + length]
    raise ValueError(f"no section {name}")

"""The figures of a compiled kernel: registers, residency, loads, and the work of its main loop."""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..base.lang import triton
from ..core.chips import CHIPS
from . import sass


class Code(NamedTuple):
    """The code of one launch, with its figures; they are None if nothing was compiled.

    source:       a hash of everything that determines the code, except the compiler
    registers:    of a thread, AMD's AGPRs included
    spills:       bytes of stack and local memory (NVIDIA); registers that are kept elsewhere, also in scratch (AMD)
    resident:     blocks that fit on a multiprocessor at a time, None for a chip that isn't in CHIPS
    limit:        the resource that limits them: "registers", "shared", "warps", "blocks", "tensor memory"
    matrix, wide, loads: in the whole kernel, the matrix instructions, global loads of 16 bytes, all global loads
    looped:       True if the figures that follow are the main loop's; without a loop they are the whole kernel's
    loop_matrix:  matrix instructions
    instruction:  the first of them, None without one
    tma:          loads by TMA
    load_bytes:   width of the narrowest global load, None without one
    instructions: all of them, those of branches that aren't taken too
    per_flop:     instructions per 1000 FLOPs, not per FLOP: those that the block's warps issue for 1000 FLOPs of matrix
                  products or multiply-adds
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
    """Return (resident, limit) of a block by its registers per thread, bytes of shared memory, warps, and columns of
    tensor memory. A multiprocessor has four parts, each with a quarter of its registers."""
    if chip not in CHIPS:
        return None, None
    spec = CHIPS[chip]
    taken = -(-shared // spec.granule) * spec.granule + spec.reserved
    fits = {
        "registers": spec.registers // spec.lanes // 4 // max(-(-registers // 8) * 8, 8) * 4 // warps,
        "warps": spec.warps // warps,
    }
    if taken:
        fits["shared"] = (spec.shared + spec.reserved) // taken
    if columns:
        fits["tensor memory"] = 512 // columns
    fits["blocks"] = spec.blocks
    limit = min(fits, key=fits.__getitem__)
    return fits[limit], limit


class Compiled(NamedTuple):
    """A code without its main loop's figures, and the machine code (NVIDIA) or text (AMD) for them.

    tcgen05: FLOPs of one of its tcgen05.mma instructions, 0 without one
    """

    code: Code
    body: bytes | str
    tcgen05: int = 0


def usage(code: Code, compiled: Any) -> Compiled:
    """Return the resources of a compiled kernel, its loads and its matrix instructions."""
    code = code._replace(warps=compiled.metadata.num_warps, shared=compiled.metadata.shared)
    each = (_nvidia if code.chip.startswith("sm_") else _amd)(code, compiled)
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    resident, limit = residency(code.chip, each.code.registers, code.shared, code.warps, columns)
    return each._replace(code=each.code._replace(resident=resident, limit=limit))


def _nvidia(code: Code, compiled: Any) -> Compiled:
    """Return the registers, spills, loads and matrix instructions of an NVIDIA kernel."""
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
    return Compiled(code, _section(cubin, f".text.{compiled.metadata.name}"), sass.tcgen05_flops(ptx))


def _amd(code: Code, compiled: Any) -> Compiled:
    """Return the registers, spills, loads and matrix instructions of an AMD kernel."""
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
    return Compiled(code, text)


def finish(chip: str, new: list[Compiled]) -> Iterator[Code]:
    """Yield the codes with their main loops' figures. NVIDIA's disassembler takes longer to start than to disassemble a
    kernel, so it starts once for all of them."""
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
    """Return a kernel's machine code, with the line of the source for each part."""
    return _tool(texts["cubin"], "nvdisasm", "-c", "-gi") if chip.startswith("sm_") else str(texts["amdgcn"])


def _tool(binary: bytes, name: str, *arguments: str) -> str:
    """Return the output of one of NVIDIA's tools, which come with Triton, for a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile() as file:
        file.write(binary)
        file.flush()
        return subprocess.run([tool, *arguments, file.name], capture_output=True, text=True, check=True).stdout


def _section(elf: bytes, name: str) -> bytes:
    """Return the bytes of a section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + size * i) for i in range(count)]  # name, .., offset, size
    for label, *_, offset, length in sections:
        start = sections[names][4] + label
        if elf[start : elf.index(b"\0", start)].decode() == name:
            return elf[offset : offset + length]
    raise ValueError(f"no section {name}")

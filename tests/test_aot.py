"""What is read from compiled code: main loops, FLOPs, load widths, residency; and hashes that need no compiling."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnn_triton.kernels.compiler import figures, sass


def listing(*lines):
    """nvdisasm's text of these instructions. A jump names a line by its number: "BRA @3"."""
    for number, line in enumerate(lines):
        words = [f"{16 * int(word[1:]):#x}" if word[0] == "@" and word[1:].isdigit() else word for word in line.split()]
        yield f"        /*{16 * number:04x}*/                   {' '.join(words)} ;"


def loop_of(*lines):
    return sass.main_loop(sass.nvidia("\n".join(listing(*lines))))


HMMA = "HMMA.16816.F32.BF16 R4, R8, R12, R4"
PERSISTENT = (
    "S2R R0, SR_CTAID.X",
    HMMA,  # 1: the outer loop, which has as many as the inner one in its first iteration, taken out of it
    "@P0 BRA @12",
    "LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64], P1",  # 3: the inner loop
    "@!P2 BRA @15",
    "UTMALDG.2D [UR8], [UR6]",  # 5: back from the wait
    "BSSY B0, @9",
    "BRA.U UP1, @9",  # goes on where it is not taken
    "LDG.E.64 R2, desc[UR4][R6.64]",
    HMMA,
    "@P3 BRA @3",
    "@!P0 BRA @1",
    "STG.E.128 [R2], R4",  # 12
    "EXIT",
    "NOP",  # never reached
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R8",  # 15: the wait, behind the end
    "@!P2 BRA @15",
    "BRA @5",
    "BRA @18",
)


def test_main_loop_is_the_innermost_with_its_waits():
    names, looped = loop_of(*PERSISTENT)
    words = [line.split() for line in (*PERSISTENT[3:11], *PERSISTENT[15:18])]
    assert looped
    assert names == [word[1] if word[0][0] == "@" else word[0] for word in words]


def test_main_loop_has_the_most_matrix_instructions():
    small, large = ("@P0 BRA @0",), ("@P0 BRA @3",)
    names, _ = loop_of("FADD", HMMA, *small, "FMUL", HMMA, HMMA, *large, "FFMA", "FFMA", "FFMA", "@P0 BRA @7", "EXIT")
    assert names == ["FMUL", "HMMA.16816.F32.BF16", "HMMA.16816.F32.BF16", "BRA"]


def test_a_call_may_leave_a_loop():
    """The assembler likes to leave a loop by a call, which may return for all that it says."""
    first = ("FFMA R0, R1, R2, R0", "@!P2 CALL.REL.NOINC @5", "BRA @0", "NOP", "EXIT")
    names, looped = loop_of(*first, "FFMA R0, R1, R2, R0", "FFMA R1, R1, R2, R1", "@P0 BRA @5", "EXIT")
    assert looped
    assert names == ["FFMA", "FFMA", "BRA"]
    assert loop_of(*first)[0] == ["FFMA", "CALL.REL.NOINC", "BRA"]


def test_a_jump_back_need_not_close_a_loop():
    """A wait behind the end jumps back to code that is no loop."""
    names, looped = loop_of("@P0 BRA @4", HMMA, "FADD", "EXIT", "SYNCS", "BRA @1")
    assert not looped
    assert len(names) == 6


def test_without_a_loop_the_whole_kernel_counts():
    names, looped = loop_of("FADD", "@P0 BRA @0", HMMA, "IADD3 R1, R1, 0x20, RZ", "EXIT")  # 0x20 is where HMMA is
    assert (names, looped) == (["FADD", "BRA", "HMMA.16816.F32.BF16", "IADD3", "EXIT"], False)
    assert loop_of("FADD", "@P0 BRA @0", "EXIT") == (["FADD", "BRA", "EXIT"], False)


def test_other_kernels_are_known_by_multiply_adds_and_loads():
    loads = ("LDG.E.128", "@P0 BRA @0")
    assert loop_of(*loads, "DFMA", "@P0 BRA @2", "EXIT")[0] == ["DFMA", "BRA"]
    assert loop_of(*loads, "DADD", "DADD", "@P0 BRA @2", "EXIT")[0] == ["LDG.E.128", "BRA"]


AMDGCN = """
kernel:                                 ; @kernel
.Lfunc_begin0:
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_cbranch_scc1 .LBB0_3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	.loc	1 64 27                         ; s_branch .LBB0_9
	buffer_load_dwordx4 v[0:3], v4, s[4:7], 0 offen
.Ltmp0:
	v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
	s_cbranch_execz .LBB0_1
; %bb.2:
	s_cbranch_vccnz .LBB0_4
	s_branch .LBB0_1
.LBB0_3:
	v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
.LBB0_4:
	s_endpgm
.Lfunc_end0:
	v_nop
	.vgpr_count: 96
"""


def test_main_loop_on_amd():
    steps = sass.amd(AMDGCN)
    assert [step.name for step in steps if not step.falls] == ["s_branch", "s_endpgm"]
    loop = ["buffer_load_dwordx4", "v_mfma_f32_32x32x8_bf16", "s_cbranch_execz", "s_cbranch_vccnz", "s_branch"]
    assert sass.main_loop(steps) == (loop, True)
    assert not sass.main_loop(sass.amd(AMDGCN.replace(".LBB0_1\n", ".LBB0_3\n")))[1]


FLOPS = {
    "HMMA.16816.F32.BF16": 2 * 16 * 8 * 16,
    "HMMA.1688.F32.TF32": 2 * 16 * 8 * 8,
    "QMMA.16832.F32.E4M3.E4M3": 2 * 16 * 8 * 32,
    "DMMA.884": 2 * 8 * 8 * 4,
    "DMMA.16x8x16": 2 * 16 * 8 * 16,
    "HGMMA.64x256x16.F32.BF16": 2 * 64 * 256 * 16 / 4,  # for four warps
    "UTCHMMA": 0,
    "v_mfma_f32_32x32x8_bf16": 2 * 32 * 32 * 8,
    "v_mfma_f32_16x16x16_f16": 2 * 16 * 16 * 16,
    "v_mfma_f32_4x4x4_16b_f16": 2 * 4 * 4 * 4 * 16,
    "v_mfma_f64_16x16x4_f64": 2 * 16 * 16 * 4,
    "v_mfma_f32_32x32x4_xf32": 2 * 32 * 32 * 4,
    "FFMA": 64,
    "FFMA2": 128,
    "DFMA": 64,
    "v_fmac_f32_e32": 128,
    "v_pk_fma_f32": 256,
    "IMAD": 0,
    "UTCBAR": 0,
    "v_div_fmas_f32": 0,
}


@pytest.mark.parametrize(("name", "expected"), FLOPS.items())
def test_flops(name, expected):
    assert sass.flops(name) == expected
    assert sass.is_matrix(name) == ("MMA" in name or "mfma" in name)
    assert sass.is_fma(name) == ("FMA" in name or name in ("v_fmac_f32_e32", "v_pk_fma_f32"))


WIDTHS = {
    "LDG.E": 4, "LDG.E.U16": 2, "LDG.E.U8.CONSTANT": 1, "LDG.E.64": 8, "LDG.E.128.STRONG.GPU": 16, "LDG.E.ENL2.256": 32,
    "LDGSTS.E.BYPASS.LTC128B.128": 16, "LDGSTS.E.LTC128B.64": 8, "LDGSTS.E": 4, "UTMALDG.5D": 16, "LDGDEPBAR": 0,
    "LDS.128": 0, "UTMASTG.4D": 0, "global_load_dword": 4, "global_load_ushort": 2, "buffer_load_dwordx4": 16,
    "buffer_load_dwordx2": 8, "global_load_lds_dwordx4": 16, "buffer_load_ubyte_d16_hi": 1, "global_load_u8": 1,
    "global_load_b96": 12, "buffer_store_dwordx4": 0, "s_load_dwordx2": 0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), WIDTHS.items())
def test_load_bytes(name, expected):
    assert sass.load_bytes(name) == expected


PTX = """
	mov.b32 	%r30, 12;
	mov.b32 	%r300, {};
	@%p89 tcgen05.mma.cta_group::{}.kind::{} [ %r721 + 0 ], %rd83, %rd84, %r300, %p88;
"""


def test_tcgen05_flops():
    """The descriptors are those of compiled kernels, with tiles of 128 x 256 and 128 x 128."""
    assert sass.tcgen05_flops(PTX.format(138413200, 1, "f16")) == 2 * 128 * 256 * 16
    assert sass.tcgen05_flops(PTX.format(136317200, 1, "tf32")) == 2 * 128 * 128 * 8
    assert sass.tcgen05_flops(PTX.format(136317200, 2, "tf32")) == 128 * 128 * 8  # shared by two blocks
    assert sass.tcgen05_flops("mma.sync") == 0


def test_per_flop():
    """Four warps' 10 instructions; a tensor core's 4096 FLOPs from each, or one block's from all of them."""
    names = ["HMMA.16816.F32.BF16"] + 9 * ["FADD"]
    assert sass.per_flop(names, 4, 0) == sass.per_flop(names, 8, 0) == 2.44  # 10 / 4.096
    assert sass.per_flop(["UTCHMMA", *names[1:]], 4, 4096) == 9.77  # 40 / 4.096
    assert sass.per_flop(["UTCHMMA"], 4, 0) is sass.per_flop(["FADD"], 4, 0) is None


RESIDENCY = [
    # chip, registers, shared, warps, columns, resident, limit
    ("sm_80", 128, 32 << 10, 8, 0, 2, "registers"),
    ("sm_80", 49, 0, 8, 0, 4, "registers"),  # 56 are allocated
    ("sm_80", 32, 0, 4, 0, 16, "registers"),
    ("sm_80", 16, 0, 1, 0, 32, "blocks"),
    ("sm_80", 16, 0, 8, 0, 8, "warps"),
    ("sm_89", 16, 0, 1, 0, 24, "blocks"),
    ("sm_89", 40, 0, 8, 0, 6, "registers"),
    ("sm_120", 32, 0, 8, 0, 6, "warps"),
    ("sm_89", 64, 49 << 10, 4, 0, 2, "shared"),
    ("sm_89", 64, (49 << 10) + 1, 4, 0, 1, "shared"),  # a KiB of each block is reserved
    ("sm_90", 64, 113 << 10, 4, 0, 2, "shared"),
    ("sm_90", 168, 227 << 10, 12, 0, 1, "registers"),
    ("sm_100", 64, 49168, 4, 256, 2, "tensor memory"),
    ("gfx942", 94, 32 << 10, 8, 0, 2, "registers"),
    ("gfx942", 94, (32 << 10) + 1, 8, 0, 1, "shared"),
    ("gfx942", 512, 0, 4, 0, 1, "registers"),
    ("gfx942", 60, 0, 4, 0, 8, "registers"),
    ("gfx942", 24, 0, 4, 0, 8, "warps"),
    ("gfx942", 24, 0, 2, 0, 16, "warps"),
    ("gfx950", 60, 32 << 10, 4, 0, 4, "shared"),  # given out in pieces of 1280 bytes
    ("gfx1030", 24, 0, 2, 0, None, None),
]


@pytest.mark.parametrize(("chip", "registers", "shared", "warps", "columns", "resident", "limit"), RESIDENCY)
def test_residency(chip, registers, shared, warps, columns, resident, limit):
    assert figures.residency(chip, registers, shared, warps, columns) == (resident, limit)


@pytest.mark.parametrize(
    ("vector", "scalar", "scratch", "expected"),
    [(0, 0, 0, 0), (3, 2, 12, 3), (0, 2, 0, 0), (3, 0, 0, 3), (0, 0, 30, 8)],
)
def test_spills_on_amd(vector, scalar, scratch, expected):
    """Spilled vector registers, or what scratch memory there is, four bytes a register; not scalar ones, which move."""
    text = f"""
    .private_segment_fixed_size: {scratch}
    .sgpr_spill_count: {scalar}
    .vgpr_count:     96
    .vgpr_spill_count: {vector}
"""
    metadata = SimpleNamespace(num_warps=4, shared=0)
    compiled = SimpleNamespace(asm={"amdgcn": text}, metadata=metadata)
    code = figures.usage(figures.Code("k", "gfx942", "", ""), compiled).code
    assert (code.registers, code.spills, code.resident, code.limit) == (96, expected, 5, "registers")


CHILD = """
import json, sys
import torch
from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.matrix import linear
from cnn_triton.kernels.base.lang import triton

POOL = (8, 8), (2, 2, 2, 2, 0, 0, 1, 1), True, False

def pooling():
    x = torch.empty(2, 8, 16, 16, device="meta").to(memory_format=torch.channels_last)
    max_pool2d = sys.modules["cnn_triton.kernels.pool.max_pool2d"]
    return aot.compile_op(max_pool2d.MAX_POOL2D, (x, *POOL), "sm_90", compile=False)[0].source

matrix = torch.empty(64, 64, device="meta")
aot.compile_op(linear.LINEAR, (matrix, matrix, None, None, None, None, 1, "none"), "sm_90", compile=False)
from cnn_triton.kernels.pool import max_patches, max_pool2d  # after a first hash
here = pooling()
max_patches.max_patches_kernel.starting_line_number += 1
max_patches.max_patches_kernel.hash = None
aot._texts.cache_clear()
assert pooling() == here, "a function that moves in its file is the same code"

from cnn_triton.kernels import registry

def keys(order):
    for each in order:
        each.hash, each.used_global_vals = None, {}
    return {id(each): each.cache_key for each in order}

modules = [module for name, module in sys.modules.items() if name.startswith("cnn_triton.kernels.")]
callables = triton.runtime.jit.JITCallable
functions = [each for module in modules for each in vars(module).values() if isinstance(each, callables)]
assert len(functions) > 100 and keys(functions) == keys(functions[::-1]), "keys that depend on what is compiled first"

from compile_calls import call

runs = []
run = triton.runtime.jit.JITFunction.run
triton.runtime.jit.JITFunction.run = lambda *args, **options: runs.append(args[0].__name__) or run(*args, **options)

def codes(chip, compile, *calls):
    with aot.recording(chip, compile) as found:
        for name, dtype, channels in calls:
            op, args = call(name, dtype, channels)
            op.launch(*args)
    return [code._asdict() for code in found]

half, full = ("linear", torch.bfloat16, 64), ("linear", torch.float16, 64)
for chip in sys.argv[1:]:
    before = codes(chip, False, half, full)
    assert not runs
    first = codes(chip, True, half, half)
    again = codes(chip, True, half)
    print(json.dumps([before, first, again, codes(chip, False, half), runs]))
    runs.clear()
"""


@pytest.fixture(scope="module")
def recorded():
    """By chip: codes before compiling, of two equal launches compiled, once more, not compiling; what was compiled."""
    chips = ("sm_80", "sm_90", "sm_100", "gfx942")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    )
    child = [sys.executable, "-c", CHILD, *chips]
    done = subprocess.run(child, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(chips, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.cover
def test_sources_need_no_compiling(recorded):
    for before, first, again, after, _ in recorded.values():
        assert [code["instructions"] for code in before] == [None, None]
        assert before[0] | {"source": ""} == before[1] | {"source": ""}  # the dtype isn't among what is shown
        assert before[0]["source"] != before[1]["source"]
        assert before[0]["source"] == first[0]["source"]
        assert first[:1] == first[1:] == again == after


@pytest.mark.cover
def test_the_same_code_is_compiled_once(recorded):
    for _, first, _, _, runs in recorded.values():
        assert runs == [first[0]["kernel"]]


@pytest.mark.cover
def test_chips_are_different_code(recorded):
    assert len({first[0]["source"] for _, first, *_ in recorded.values()}) == len(recorded)


@pytest.mark.cover
def test_figures_of_a_compiled_product(recorded):
    """Where the code comes from decides the numbers, so only what must hold of any product in bfloat16."""
    for chip, (_, (code, _), *_) in recorded.items():
        assert code["spills"] == 0
        assert 32 <= code["registers"] <= 255
        assert code["resident"] >= 1
        assert code["limit"]
        assert code["warps"] in (4, 8)
        assert code["looped"]
        assert 0 < code["loop_matrix"] <= code["matrix"]
        assert code["loop_matrix"] < code["instructions"] < 1000
        assert code["load_bytes"] in (4, 8, 16)
        assert bool(code["tma"]) == (chip in ("sm_90", "sm_100") and "tma" in code["kernel"])
        assert 0.05 < code["per_flop"] < 20

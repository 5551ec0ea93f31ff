"""Faults in hand-written PTX, what is found of each, and the errors of the simulator itself."""

import re

import pytest

from cnn_triton.simulator import Unsupported, build, simulating
from ptx_text import run

EXCHANGE = """st.shared.b32 [slot], thread;
{}
xor.b32 %r2, slot, 128;
ld.shared.b32 %r1, [%r2];
st.global.b32 [element], %r1;"""
START = """setp.eq.u32 %p1, thread, 0; setp.ge.u32 %p2, thread, 32;
@%p1 mbarrier.init.shared::cta.b64 [base+512], 32; bar.sync 0; @%p2 bra $produce;"""
WAIT = """$wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [base+512], {parity};
@!%p3 bra $wait;
ld.shared.b32 %r1, [slot+128]; st.global.b32 [element], %r1; exit;
$produce: st.shared.b32 [slot], thread; {arrive}"""
ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [base+512];"


@pytest.mark.parametrize("order", [0, 1, 2])
def test_race_by_hand(order):
    assert not run(EXCHANGE.format("bar.sync 0;"), order=order).kinds
    ran = run(EXCHANGE.format(""), order=order)
    first, second = (0, 32) if order == 1 else (32, 0)
    if order == 0:
        (finding,) = ran.launch.findings
        assert finding.kind.startswith("race: reads what another warp wrote")
        assert (finding.text, finding.thread, finding.times) == ("ld.shared.b32 %r1, [%r2]", 0, 128)
        assert finding.details.startswith("shared memory 0x80; the other: ")
        assert finding.details.endswith("st.shared.b32 [slot], thread")
        return
    unwritten, overwritten = "reads shared memory that nothing has written", "race: overwrites what another warp reads"
    kinds = (unwritten, overwritten, "race: reads what another warp wrote")
    found = [(each.kind[: len(kind)], each.thread) for each, kind in zip(ran.launch.findings, kinds, strict=True)]
    assert found == list(zip(kinds, (first, second, second), strict=True))
    assert (ran.buffer[first : first + 32] == -1).all()  # poison: the warp that came first reads too early


@pytest.mark.parametrize("order", [0, 1, 2])
def test_phase_off_by_one(order):
    right = run(START + WAIT.format(parity=0, arrive=ARRIVE), order=order)
    assert not right.kinds
    assert right.buffer[:32].tolist() == list(range(32, 64))
    early = run(START + WAIT.format(parity=1, arrive=ARRIVE), order=order)  # of the phase before: it has ended
    found_early = "deadlock" if order == 1 else "reads shared memory that nothing has written"  # 1: it ended before
    assert early.kinds[0] == found_early
    late = run(START + WAIT.format(parity=0, arrive=""), order=order)
    assert late.stopped
    assert late.kinds[0] == "deadlock"
    assert "try_wait" in late.launch.findings[0].text


EVEN = "and.b32 %r2, thread, 1; setp.eq.u32 %p1, %r2, 0;"
STORED = "st.shared.b32 [slot], thread; bar.sync 0;"
FAULTS = {
    "ld.global.b32 %r1, [out+256];": ("load outside of every allocation", "4 bytes at buffer 0 + 256 (of 256 bytes)"),
    "st.global.b32 [out+-4], thread;": ("store outside of every allocation", "4 bytes at buffer 0 + -4 (of 256 bytes)"),
    "atom.global.add.u32 %r1, [element+4], 1;": ("store outside", "4 bytes at buffer 0 + 256 (of 256 bytes)"),
    "st.shared.b32 [slot+1000], thread;": ("access outside of the block's shared memory", ""),
    "ld.shared.b32 %r1, [slot];": ("reads shared memory that nothing has written", "shared memory 0x0"),
    f"{STORED} ld.shared.v2.b32 {{%r1, %r2}}, [base+4];": ("misaligned access", "8 bytes at 0x404"),
    "ld.global.b32 %r1, [out+2];": ("misaligned access", "4 bytes at 0x"),
    "mbarrier.arrive.shared::cta.b64 _, [base];": ("access outside of the block's shared memory, or to an mbar", ""),
    f"{EVEN} @%p1 bar.warp.sync -1;": ("threads of a warp diverge", "0x55555555"),
    f"{EVEN} @%p1 shfl.sync.bfly.b32 %r1, thread, 1, 31, -1;": (
        "threads of a warp diverge", "0x55555555"),
    "cp.async.ca.shared.global [slot], [element], 4; cp.async.commit_group; ld.shared.b32 %r1, [slot];": (
        "an asynchronous copy has yet to write", "shared memory 0x0"),
    "cp.async.ca.shared.global [slot+2], [element], 4; cp.async.wait_all;": ("misaligned access", "4 bytes at 0x402"),
}  # fmt: skip


@pytest.mark.parametrize("body", FAULTS)
def test_fault_by_hand(body):
    kind, details = FAULTS[body]
    finding = run(body).launch.findings[0]
    assert kind in finding.kind
    assert finding.details.startswith(details)
    assert (finding.block, finding.kernel) == (0, "kernel")
    assert not run("st.global.b32 [element], thread;").launch.findings


ENDS = {
    "setp.lt.u32 %p1, thread, 32; @%p1 bra $end; bar.sync 1, 64;\n$end: bar.sync 2, 64;": ("deadlock", 0),
    "setp.eq.u32 %p1, thread, 7; @%p1 trap;": ("trap", 7),
    "$loop: bra $loop;": ("limit of operations", 0),
}


@pytest.mark.parametrize("body", ENDS)
def test_kernel_that_cannot_go_on(body):
    ran = run(body, limit=10000)
    kind, thread = ENDS[body]
    assert ran.stopped
    assert ran.kinds[0].startswith(kind)
    assert ran.launch.findings[0].thread == thread
    assert not run("st.global.b32 [element], thread;").stopped


def test_what_is_not_known():
    """Instructions and registers that the simulator does not know are named, with their line."""
    for text in ("frobnicate.b32 %r1, %r2;", "mma.sync.aligned.m9n8k7.row.col.f32.f16.f16.f32 %r1, %r2, %r3, %r4;",
                 "add.s32 %r1, unknown, 1;", "add.s32 %r1, %d1, 1;", "ld.local.b32 %r1, [%d1];"):  # fmt: skip
        with pytest.raises(Unsupported, match=rf"kernel, line \d+: {re.escape(text[:12])}"):
            run(text)


def test_errors_of_simulating(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"chip must be one of sm_80.*got 'sm_70'"), simulating("sm_70"):
        pass
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), simulating("sm_80"):
        pass
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(RuntimeError, match=r"needs a C compiler, and none of \['/nowhere/cc'\] is here"):
        build.library.__wrapped__()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="false -O3"):
        build.library.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))

"""The ledger: it covers every layer, pass, arithmetic and chip, knows what is launched, and holds clean figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.calls import ARITHMETICS, PASSES
from bench.layers import LAYERS
from bench.ledger import CHIPS, FIGURES, OLDEST, Ledger, compare, read, save, worse
from bench.ledger.__main__ import write

ROOT = Path(__file__).parents[1]
LEDGERS = {chip: read(chip) for chip in CHIPS}
# Matrix instructions: of a warpgroup, of a whole block, AMD's; elsewhere, and in small gathered tiles, of a warp.
INSTRUCTIONS = {"sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma"}


def kernels(chip, cell):
    """(version, row) of the kernels of a cell, the product's own and not a sum's."""
    ledger = LEDGERS[chip]
    for (code, version), row in ledger.kernels.items():
        if code in ledger.codes[cell] and row["kernel"] != "sum_kernel":
            yield version, row


def test_versions():
    """The tables are of the pinned Triton and of the oldest supported one."""
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("triton=="))
    expected = {pinned.removeprefix("triton=="), "3.6.0"}
    for chip in CHIPS:
        assert {version for _, version in LEDGERS[chip].kernels} == expected


@pytest.mark.parametrize("chip", CHIPS)
def test_covers_everything(chip):
    """A cell for each layer, pass and arithmetic; for each of its codes figures with both versions of Triton."""
    ledger = LEDGERS[chip]
    assert set(ledger.codes) == {(layer.name, p, a) for layer in LAYERS for p in PASSES for a in ARITHMETICS}
    versions = {version for _, version in ledger.kernels}
    for cell, codes in ledger.codes.items():
        assert codes, cell
        for code in codes:
            for version in versions:
                assert (code, version) in ledger.kernels, f"{cell}: no figures with Triton {version}"


@pytest.mark.parametrize("chip", CHIPS)
def test_clean(chip):
    """In bf16, fp16 and TF32 nothing spills, and every product's main loop has the chip's matrix instructions; but a
    depthwise convolution loads 16 bytes at a time."""
    for cell in LEDGERS[chip].codes:
        if cell[2] == "fp32":
            continue
        found = list(kernels(chip, cell))
        assert len(found) >= 2, cell
        for version, row in found:
            said = f"{chip}, {cell}, Triton {version}: {row}"
            assert row["spills"] == "0", said
            if row["kernel"].startswith("direct"):
                assert int(row["load_bytes"]) >= 16, said
                continue
            assert int(row["loop_matrix"]) > 0, said
            best = INSTRUCTIONS.get(chip, "HMMA")
            assert row["instruction"].startswith(best if "box" in row["kernel"] else (best, "HMMA")), said


def test_hopper_path():
    """On Hopper the 3 x 3 layers of ResNet-50 and VGG-16 multiply by wgmma what the copy engine fetches."""
    seen = 0
    for layer in LAYERS:
        if layer.size == 3 and layer.c >= 64 and (layer.times("ResNet-50") or layer.times("VGG-16")):
            for what in PASSES:
                for arithmetic in ("bf16", "fp16", "tf32"):
                    for _, row in kernels("sm_90", (layer.name, what, arithmetic)):
                        seen += 1
                        assert row["instruction"].startswith("HGMMA"), row
                        assert int(row["tma"]) > 0, row
    assert seen == 15 * 3 * 3 * 2


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_knows_what_is_launched(chip, request):
    """Each launch's code is in the ledger, and a seeded sample compiles to the same with each Triton at hand."""
    if not OLDEST.exists():
        print(f"Triton 3.6.0 is not in {OLDEST}: only the environment's is compared")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    seed = str(request.config.getoption("--cover-seed"))
    command = [sys.executable, "-m", "bench.ledger", "check", chip, "--sample", "3", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 kernels compiled again" in done.stdout


ROW = dict.fromkeys(FIGURES, "1") | {"code": "a", "triton": "9", "kernel": "k", "options": "", "spills": "0"}


def test_worse():
    """More registers, spills, instructions, or shared memory, less residency, narrower loads, lost matrix instructions
    or boxes are worse; the reverse is not."""
    for name, value in (("registers", "2"), ("spills", "8"), ("per_flop", "1.1"), ("shared", "2")):
        assert worse(ROW, ROW | {name: value}) == [f"{name} {value}, was {ROW[name]}"]
        assert worse(ROW | {name: value}, ROW) == []
    for name in ("resident", "load_bytes", "tma", "loop_matrix"):
        assert worse(ROW, ROW | {name: "0"}) == [f"{name} 0, was 1"]
        assert worse(ROW | {name: "0"}, ROW) == []


def test_compare():
    """A changed code is compared with the cell's old one, the same code with its own figures."""
    cell = ("layer", "forward", "bf16")
    ledger = Ledger({cell: ("a",)}, {}, {("a", "9"): ROW})
    better, bad = ROW | {"code": "b"}, ROW | {"code": "b", "registers": "3"}
    assert compare(ledger, "9", {cell: ("b",)}, [better]) == ({}, [])
    assert compare(ledger, "9", {cell: ("b",)}, [bad]) == ({cell: "registers 3, was 1"}, [])
    assert compare(ledger, "8", {cell: ("b",)}, [bad]) == ({}, []), "another Triton's figures say nothing"
    _, other = compare(ledger, "9", {cell: ("a",)}, [ROW | {"registers": "0"}])
    assert other == ["a, k: registers 0, the ledger has 1"]


def test_worse_figures_need_a_reason(tmp_path, monkeypatch):
    """Without one nothing is replaced; with one it stands beside the figure, and stays."""
    import bench.ledger.__main__ as command

    cells = {("layer", p, a): ("a",) for p in PASSES for a in ARITHMETICS}
    save("sm_90", Ledger(cells, {}, {("a", "9"): ROW}), tmp_path)
    monkeypatch.setattr(command, "read", lambda chip: read(chip, tmp_path))
    monkeypatch.setattr(command, "save", lambda chip, ledger: save(chip, ledger, tmp_path))
    monkeypatch.setattr(command, "save_kernels", lambda chip, rows: None)
    monkeypatch.setattr(command, "versions", lambda: [False])
    changed = cells | {("layer", "forward", "bf16"): ("b",)}
    bad = ROW | {"code": "b", "registers": "3"}
    monkeypatch.setattr(command, "work", lambda chip, oldest: ("9", changed, [bad]))
    before = (tmp_path / "launches-sm_90.csv").read_text()
    assert write(["sm_90"], "", 1) == 1
    assert (tmp_path / "launches-sm_90.csv").read_text() == before
    assert write(["sm_90"], "wider tiles", 1) == 0
    reason = {("layer", "forward", "bf16"): "registers 3, was 1 (Triton 9): wider tiles"}
    assert read("sm_90", tmp_path).reasons == reason
    monkeypatch.setattr(command, "work", lambda chip, oldest: ("9", changed, []))
    assert write(["sm_90"], "", 1) == 0
    assert read("sm_90", tmp_path).reasons == reason

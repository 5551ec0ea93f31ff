"""The ledger: it covers every layer, pass, arithmetic and chip, knows what is launched, and holds clean figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.calls import ARITHMETICS, PASSES
from bench.layers import LAYERS
from bench.ledger import CHIPS, FIGURES, FOLDER, Ledger, compare, read, save, unclean, worse
from bench.ledger.__main__ import write
from bench.ledger.tables import readme, table

ROOT = Path(__file__).parents[1]
LEDGERS = {chip: read(chip) for chip in CHIPS}


def kernels(chip, cell):
    """The rows of a cell's kernels."""
    return [LEDGERS[chip].kernels[code] for code in LEDGERS[chip].codes[cell]]


def test_version():
    """The tables are of the pinned Triton."""
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("triton=="))
    for ledger in LEDGERS.values():
        assert {row["triton"] for row in ledger.kernels.values()} == {pinned.removeprefix("triton==")}


@pytest.mark.parametrize("chip", CHIPS)
def test_covers_everything(chip):
    """A cell for each layer, pass and arithmetic; figures for each of its codes, and no others."""
    ledger = LEDGERS[chip]
    assert set(ledger.codes) == {(layer.name, p, a) for layer in LAYERS for p in PASSES for a in ARITHMETICS}
    assert all(ledger.codes.values())
    assert {code for codes in ledger.codes.values() for code in codes} == set(ledger.kernels)


@pytest.mark.parametrize("chip", CHIPS)
def test_clean(chip):
    for cell in LEDGERS[chip].codes:
        rows = kernels(chip, cell)
        assert rows, cell
        for row in rows:
            assert not unclean(chip, cell[2], row), f"{chip}, {cell}: {row}"


def test_unclean():
    """What makes a kernel unclean, on the chips that have instructions of their own and on others."""
    box = ROW | {"kernel": "conv_tma_kernel", "instruction": "HGMMA.64x64"}
    assert not unclean("sm_90", "bf16", box)
    assert unclean("sm_90", "bf16", box | {"instruction": "HMMA.16816"})
    assert not unclean("sm_90", "bf16", box | {"instruction": "HMMA.16816", "kernel": "conv_kernel"})
    assert not unclean("sm_80", "bf16", box | {"instruction": "HMMA.16816"})
    assert unclean("sm_90", "bf16", box | {"loop_matrix": "0"})
    assert unclean("sm_90", "bf16", box | {"spills": "8"}) == "8 spills"
    assert not unclean("sm_90", "fp32", box | {"spills": "8"})
    direct = ROW | {"kernel": "direct_kernel", "load_bytes": "16", "loop_matrix": "0"}
    assert not unclean("sm_80", "bf16", direct)
    assert unclean("sm_80", "bf16", direct | {"load_bytes": "2"}) == "loads of 2 bytes"


def test_readme():
    """The summary is of the tables as they are."""
    assert (FOLDER / "README.md").read_text() == readme(), "run make ledger"


def test_show():
    """The layers that have all the words, a kernel a line."""
    head, *lines = table("sm_90", ("3x3", "256-256", "bf16"))
    assert head.split()[:3] == ["layer", "pass", "arithmetic"]
    cells = [cell for cell in LEDGERS["sm_90"].codes if "3x3" in cell[0] and "256-256" in cell[0] and cell[2] == "bf16"]
    assert len(lines) == sum(len(LEDGERS["sm_90"].codes[cell]) for cell in cells)
    assert all("3x3 256-256" in line for line in lines)


def test_hopper_path():
    """On Hopper the 3 x 3 layers of ResNet-50 and VGG-16 multiply by wgmma what the copy engine fetches."""
    seen = 0
    for layer in LAYERS:
        if layer.size == 3 and layer.c >= 64 and (layer.times("ResNet-50") or layer.times("VGG-16")):
            for what in PASSES:
                for arithmetic in ("bf16", "fp16", "tf32"):
                    for row in kernels("sm_90", (layer.name, what, arithmetic)):
                        if row["kernel"] == "sum_kernel":
                            continue
                        seen += 1
                        assert row["instruction"].startswith("HGMMA"), row
                        assert int(row["tma"]) > 0, row
    assert seen == 15 * 3 * 3


@pytest.mark.cover
@pytest.mark.parametrize("chip", CHIPS)
def test_knows_what_is_launched(chip, request):
    """Each launch's code is in the ledger; a seeded sample compiles to the same."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    seed = str(request.config.getoption("seed"))
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
    ledger = Ledger({cell: ("a",)}, {}, {"a": ROW})
    better, bad = ROW | {"code": "b"}, ROW | {"code": "b", "registers": "3"}
    assert compare(ledger, {cell: ("b",)}, [better]) == ({}, [])
    assert compare(ledger, {cell: ("b",)}, [bad]) == ({cell: "registers 3, was 1"}, [])
    assert compare(ledger, {cell: ("b",)}, [bad | {"triton": "8"}]) == ({}, []), "another Triton's figures say nothing"
    _, other = compare(ledger, {cell: ("a",)}, [ROW | {"registers": "0"}])
    assert other == ["a, k: registers 0, the ledger has 1"]
    assert compare(ledger, {cell: ("a",)}, [ROW | {"registers": "0", "triton": "8"}]) == ({}, [])


def test_worse_figures_need_a_reason(tmp_path, monkeypatch):
    """Without one nothing is replaced; with one it stands beside the figure, and stays."""
    import bench.ledger.__main__ as command

    cells = {("layer", p, a): ("a",) for p in PASSES for a in ARITHMETICS}
    save("sm_90", Ledger(cells, {}, {"a": ROW}), tmp_path)
    monkeypatch.setattr(command, "read", lambda chip: read(chip, tmp_path))
    monkeypatch.setattr(command, "save", lambda chip, ledger: save(chip, ledger, tmp_path))
    monkeypatch.setattr(command, "save_kernels", lambda chip, rows: None)
    monkeypatch.setattr(command, "summarize", lambda: None)
    changed = cells | {("layer", "forward", "bf16"): ("b",)}
    bad = ROW | {"code": "b", "registers": "3"}
    monkeypatch.setattr(command, "work", lambda chip: ("9", changed, [bad]))
    before = (tmp_path / "launches-sm_90.csv").read_text()
    assert write(["sm_90"], "", 1) == 1
    assert (tmp_path / "launches-sm_90.csv").read_text() == before
    assert write(["sm_90"], "wider tiles", 1) == 0
    reason = {("layer", "forward", "bf16"): "registers 3, was 1 (Triton 9): wider tiles"}
    assert read("sm_90", tmp_path).reasons == reason
    monkeypatch.setattr(command, "work", lambda chip: ("9", changed, []))
    assert write(["sm_90"], "", 1) == 0
    assert read("sm_90", tmp_path).reasons == reason

"""Figures of `cnn-triton inspect` worked out by hand, where an instruction's line is, and the page in a browser."""

import json

import pytest

from cnn_triton.cli.inspect_tables import order
from cnn_triton.kernels.compiler import figures, sass
from cnn_triton.kernels.core import chips
from cnn_triton.tools import listing
from cnn_triton.tools.inspection import CompiledLaunch, OperatorCall
from cnn_triton.tools.limits import roofs, waves
from inspections import LAYER
from small import CHROMIUM, process, watched_in_chromium


def test_roofline():
    """By hand: 7.4 GFLOP and 25.8 MB on boards whose rates are known."""
    layer = OperatorCall("conv2d", 7_400_000_000, 25_800_000, True, [])
    found = {roof.board.name: roof for roof in roofs(layer, "bfloat16", ["sm_90", "gfx950"])}
    assert set(found) == {"H200", "H100", "MI355X"}
    assert found["H200"].microseconds == pytest.approx(7.4e9 / 989.4e12 * 1e6)
    assert found["H200"].bound == "arithmetic"
    assert found["H100"].microseconds == pytest.approx(25.8e6 / 3350e9 * 1e6)
    assert found["H100"].bound == "memory"
    (tf32,) = roofs(layer, "tf32", ["gfx950"])
    assert tf32.rate == 157.3
    pool = OperatorCall("max_pool2d", 1, 1, False, [])
    assert {roof.rate for roof in roofs(pool, "bfloat16", ["sm_90"])} == {66.9}
    for board in chips.BOARDS:
        assert board.chip in chips.NAMES
        assert bool(board.rates.tf32) == bool(chips.CHIPS[board.chip].rates.tf32)


def test_waves():
    def of(grid, resident):
        code = figures.Code("k", "sm_90", "", "", resident=resident, grid=grid)
        return waves(CompiledLaunch(code, None))

    assert of(264, 2) == "1 full wave"
    assert of(528, 2) == "2 full waves"
    assert of(66, 1) == "50% of a wave"
    assert of(300, 2) == "1 wave and 13% of one"
    assert of(1, 1) == "<1% of a wave"
    assert of(5, 0) == "does not fit"


@pytest.mark.parametrize(
    "words",
    [
        ("<1% of a wave", "2% of a wave", "12% of a wave", "1 full wave", "1 wave and 3% of one", "12 full waves"),
        ("0.198", "1.4", "9", "10", "1,000", "none"),
        ("16x64x64,gathered", "128x64x32,tma", "128x64x64,tma"),
    ],
)
def test_order(words):
    assert tuple(sorted(sorted(words), key=order)) == words


def test_widths():
    names = ["LDG.E.128.CONSTANT", "LDG.E.128", "LDGSTS.E.BYPASS.128", "LDG.E.U16", "UTMALDG.4D", "STG.E", "UTMASTG.4D"]
    assert sass.widths(names, sass.load_bytes) == "tma x 1, 16 B x 3, 2 B x 1"
    assert sass.widths(names, sass.store_bytes) == "tma x 1, 4 B x 1"
    names = ["buffer_load_dwordx4", "global_load_ushort", "buffer_store_short", "global_store_dwordx2", "s_endpgm"]
    assert sass.widths(names, sass.load_bytes) == "16 B x 1, 2 B x 1"
    assert sass.widths(names, sass.store_bytes) == "8 B x 1, 2 B x 1"


PTX = """
	.file	1 "/a/kernel.py"
	.file	2 "/a/device.py"
	.loc	1 10 0                          // kernel.py:10:0
$L__func_begin0:
	mov.u32 	%r1, %ctaid.x;
$L__tmp0:
	.loc	2 20 8                          // device.py:20:8 @[ kernel.py:11:9 @[ kernel.py:12:4 ] ]
	@%p1 ld.global.b32 	%r2, [%rd1];  // a load
	.loc	2 20 9                          // device.py:20:9 @[ kernel.py:12:4 ]
	add.s32 	%r3, %r2, 1;
	.section	.debug_abbrev
	.loc	1 99 0
"""
SASS = """
	//## File "/a/device.py", line 20
        /*0000*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_0:
	//## File "/a/kernel.py", line 10
        /*0010*/                   EXIT ;
"""


def test_lines_know_where_they_are_from(monkeypatch):
    monkeypatch.setattr(figures, "disassembled", lambda chip, texts: SASS)
    found = listing.listings("sm_90", {"ptx": PTX})
    kernel, device = "/a/kernel.py", "/a/device.py"
    assert [(line.text.split()[0], line.places) for line in found["PTX"]] == [
        ("mov.u32", ((kernel, 10),)),
        ("@%p1", ((device, 20), (kernel, 11), (kernel, 12))),
        ("add.s32", ((device, 20), (kernel, 12))),
    ]
    assert [(line.text.split()[0], line.places) for line in found["SASS"]] == [
        ("/*0000*/", ((device, 20), (kernel, 12))),  # 11 calls some of it only
        (".L_x_0:", ()),
        ("/*0010*/", ((kernel, 10),)),
    ]


CLICK = """<script>addEventListener("load", () => {
  const kernel = document.querySelector(".kernel.shown"), forms = kernel.querySelector(".form");
  const lines = [...kernel.querySelectorAll(".source .code[data-at]")];
  const dot = lines.find(line => line.textContent.includes("tl.dot("));
  const lit = what => [...kernel.querySelectorAll(what)].map(line => line.textContent);
  dot.click();
  const ptx = lit('[data-name=PTX] .lit'), machine = lit('[data-name=SASS] .lit'), near = lit('.source .near').length;
  const instruction = kernel.querySelector('[data-name=SASS] .lit');
  instruction.click();
  const back = lit('.source .lit'), callers = lit('.source .near');
  forms.selectedIndex = 1; forms.onchange();
  const shown = kernel.querySelector(".listing.shown").dataset.name;
  const head = document.querySelector(".sortable th"); head.click(); head.click();
  const result = { ptx, machine, near, back, callers, shown, sorted: head.getAttribute("aria-sort") };
  document.body.dataset.watch = JSON.stringify(result);
});</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian's package chromium)")
def test_page_in_a_browser(tmp_path):
    """A click on the source line that multiplies lights the matrix instructions, and one on these lights that line."""
    page = tmp_path / "page.html"
    code, _, said = process("inspect", *LAYER, "--target", "sm_90", "--target", "gfx942", "--html", page)
    assert code == 0, said
    text = page.read_text()
    assert "http://" not in text
    assert "https://" not in text
    result, console = watched_in_chromium(page, CLICK, tmp_path)
    found = json.loads(result)
    assert any("wgmma.mma_async" in line for line in found["ptx"])
    assert any("HGMMA" in line for line in found["machine"])
    assert any("tl.dot(" in line for line in found["back"])
    assert any("main_loop(" in line for line in found["callers"])
    assert found["shown"] == "SASS"
    assert found["sorted"] == "descending"
    assert console == []

"""Bounds: machine instructions by lines, least times, the ideal, and the file of them."""

import pytest
import torch
import triton
import triton.language as tl

from bench import bounds as bench_bounds
from bench.bounds import CHIPS, GROUPS, LAYOUTS, OPERATORS, Row
from cnn_triton.tools.bounds import EFFICIENCY, boards_of, bound, bounds_of, executed, ideal
from cnn_triton.tools.calls import call_of
from cnn_triton.tools.execution import execute_call, with_runs
from cnn_triton.tools.inspection import inspect_call
from simulated import simulated

POOL = "input=4x64x20x20 kernel_size=3 stride=2 padding=1"


def ran(name, words, chip="sm_90", sample=0, **how):
    """The operators of a call that ran, and their texts."""
    call, texts = call_of(name, words.split(), **how), {}
    operators = inspect_call(call, chip, texts)
    return with_runs(operators, execute_call(call, chip, sample=sample)), texts


@triton.jit
def walk_kernel(x, y, n, BARRIERS: tl.constexpr):
    """Sums; across warps, so that there are barriers and the assembler doesn't unroll the loop, or each for itself."""
    i = tl.arange(0, 128)
    total = tl.zeros([128], tl.float32)
    for step in range(n):
        value = tl.load(x + step * 128 + i)
        total += value * tl.sum(value, 0) if BARRIERS else value
    tl.store(y + i, total)


def walk(x: torch.Tensor, n: int, barriers: bool):
    y = x.new_empty(128)
    walk_kernel[(1,)](x, y, n, barriers, num_warps=4)
    return y


def walked(n, barriers):
    """The launch of so many trips, and how often its machine instructions run."""
    operators, texts = ran(f"{__file__}:walk", f"x=8192 n={n} barriers={barriers}".lower(), dtype="float32")
    (launch,) = operators[0].launches
    return launch, list(executed(launch.ran.launch, "sm_90", texts[launch.code.source]))


@simulated
def test_trips():
    """Each further trip of a loop costs the machine instructions of its body, in each warp."""
    counts = []
    for n in (20, 21):
        launch, code = walked(n, True)
        counts.append(sum(runs for _, runs in code))
    assert launch.code.looped
    body = 4 * launch.code.instructions
    assert counts[1] - counts[0] == pytest.approx(body, rel=0.15), f"{counts}, a body of {body}"


@simulated
def test_unrolled():
    """Where the assembler unrolls a loop, its copies share the trips."""
    _, code = walked(50, False)
    loads = [runs for name, runs in code if name.startswith("LDG")]
    assert len(loads) > 2, "nothing is unrolled"
    assert sum(loads) == pytest.approx(4 * 50)


@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
@pytest.mark.parametrize("layout", LAYOUTS)
@simulated
def test_accesses(chip, layout):
    """Accesses to global memory run as often in machine code as in the PTX that it is made of."""
    call, texts = bench_bounds.call("operators", "conv2d_batch_norm 3x3 64-64, relu", "bfloat16", layout), {}
    operators = with_runs(inspect_call(call, chip, texts), execute_call(call, chip, sample=4))
    launches = [launch for each in operators for launch in each.launches if launch.code.kernel.startswith("norm_")]
    for launch in launches:
        done = launch.ran.launch
        now = sum(runs for name, runs in executed(done, chip, texts[launch.code.source]) if name[:3] in ("LDG", "STG"))
        once = sum(runs for name, runs in done.instructions.items() if name.startswith(("ld.global", "st.global")))
        assert now == pytest.approx(once, rel=0.1), f"{launch.code.kernel}: {now}, not {once}"
    assert len(launches) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
@simulated
def test_times(layout):
    """The times are the work over the rates; the bound is the longest; an operator's ideal is no longer than that."""
    operators, texts = ran("max_pool2d", POOL, channels_last=layout == "channels_last")
    (board, *_) = boards_of("sm_90")
    (launch,) = operators[0].launches
    found = bound(launch, texts[launch.code.source], board)
    assert found.times.memory == pytest.approx(found.bytes / (board.bandwidth * 1e3) / EFFICIENCY.memory)
    assert found.times.longest == max(found.times)
    assert found.flops == found.times.products == 0
    assert found.bytes == operators[0].bytes  # each element of input, output and indices once
    assert ideal(operators[0], "bfloat16", board) == pytest.approx(found.times.memory)
    ptx = launch.ran.launch.counters.instructions
    assert 0.8 * ptx < found.instructions < 2.5 * ptx


@simulated
def test_amd():
    """Where AMD's matrix instructions run, by the runs of code for sm_80, they do the product's FLOP."""
    words = "input=512x512 weight=512x512"
    for dtype in ("bfloat16", "tf32", "float64"):
        ((operator, (found,)),) = bounds_of(call_of("linear", words.split(), dtype=dtype), boards_of("gfx942")[0])
        assert found.flops == pytest.approx(operator.flops, rel=0.01), dtype
        assert found.times.products > 0
        assert found.instructions > 0
        assert found.wavefronts == 0


@pytest.mark.parametrize("chip", [each for each in CHIPS if each.startswith("sm_")])
@simulated
def test_products(chip):
    """The FLOP of the matrix instructions: the product's, and what pads its tiles."""
    for name, words in (("linear", "input=256x512 weight=256x512"), ("conv2d", "input=8x64x16x16 weight=64x64x1x1")):
        operators, texts = ran(name, words, chip)
        (launch,) = operators[0].launches
        found = bound(launch, texts[launch.code.source], boards_of(chip)[0])
        assert found.flops == operators[0].flops > 1e7, found


@simulated
def test_sample():
    """Some blocks stand for all: a grid of blocks alike is counted exactly."""
    counted = []
    for sample in (0, 4):
        operators, _ = ran("avg_pool2d", "input=8x64x32x32 kernel_size=2", sample=sample)
        counted.append(operators[0].launches[0].ran.launch.counters)
    assert counted[0] == counted[1]


def row(**changed):
    values = Row("operators", "a", "bfloat16", "contiguous", "sm_90", "op", "k", "2.000", "1.00", "2.00", "memory",
                 "1", "2", "3", "4")  # fmt: skip
    return values._replace(**changed)


def test_worse():
    """A sum that is more than half a percent longer is worse; what is new or gone is not."""
    before = [row(), row(call="b", ideal="3.00", least="4.00")]
    assert not bench_bounds.worse(before, before)
    assert not bench_bounds.worse(before, [row(least="2.01"), before[1]])
    (said,) = bench_bounds.worse(before, [row(least="2.50"), before[1]])
    assert "1.625, was 1.500" in said
    assert not bench_bounds.worse([], before)


def test_file():
    """The file has every operator and every network's layer on each chip that it says it has."""
    rows = bench_bounds.read()
    assert {row.call for row in rows if row.group == "operators"} == set(OPERATORS)
    assert bench_bounds.FILE.read_text() == bench_bounds.written(rows)
    for group in {row.group for row in rows}:
        assert group in GROUPS
        assert {row.call for row in rows if row.group == group} == set(bench_bounds.names(group))
    text = "\n".join(bench_bounds.tables(rows, ["sm_90", "bfloat16", "max_pool2d"]))
    assert "max_pool2d 3x3 s2" in text


def test_reasons():
    """Each cell above 2 has a reason, and each reason a cell."""
    cells = [cell for cell in bench_bounds.cells(bench_bounds.read()) if cell.ratio > 2]
    unexplained = [cell for cell in cells if bench_bounds.reason(cell) is None]
    assert not unexplained, "\n".join(map(str, unexplained))
    assert {bench_bounds.reason(cell) for cell in cells} == {*bench_bounds.REASONS.values()}


def sample_of_rows(seed):
    """Some of the file's calls, in turn."""
    every = sorted({row[:5] for row in bench_bounds.read()})
    return every if seed is None else [every[(seed * 7 + 13 * i) % len(every)] for i in range(6)]


@pytest.mark.rotated("group, name, dtype, layout, chip", sample_of_rows)
@simulated
def test_figures(group, name, dtype, layout, chip):
    """Counted again, a call's rows are those of the file; if they are better, or worse for a reason, count anew."""
    known = [row for row in bench_bounds.read() if row[:5] == (group, name, dtype, layout, chip)]
    counted = sorted(bench_bounds.count(group, name, dtype, layout, chip))
    assert counted == known, f"{set(counted) ^ set(known)}"

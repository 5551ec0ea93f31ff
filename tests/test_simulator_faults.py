"""Faults put in on purpose: the simulator finds each, says what it is, where and by whom; the next launch works."""

import contextlib
import importlib.util
import linecache
import re
import struct

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from cnn_triton.simulator import SimulationError, Unsupported, driver, simulating
from simulated import simulated

CHIPS = ("sm_80", "sm_90")


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@contextlib.contextmanager
def faulty(chip, edit=None, parameters=None, **checks):
    """The simulator, where launches have their text and their parameters changed; at the end a launch with no fault."""
    launch = driver.launch

    def changed(text, grid, values, *rest):
        new = edit(text) if edit else text
        assert not edit or new != text, "nothing to change"
        return launch(new, grid, parameters(values) if parameters else values, *rest)

    with simulating(chip, **checks) as simulation:
        driver.launch = changed
        try:
            yield simulation
        finally:
            driver.launch = launch
        x, y = torch.randn(1000), torch.zeros(1000)
        before = len(simulation.findings)
        copy[(8,)](x, y, 1000, BLOCK=128)
        assert torch.equal(x, y)
        assert len(simulation.findings) == before


def found(simulation, kind):
    """The first finding whose kind begins so."""
    kinds = [each.kind for each in simulation.findings]
    assert any(each.startswith(kind) for each in kinds), kinds
    return next(each for each in simulation.findings if each.kind.startswith(kind))


def python(finding):
    return linecache.getline(finding.place.file, finding.place.line).strip()


@simulated
def test_two_files_of_one_text(tmp_path):
    """A kernel compiled before, in another file of the same text, is told by its own file."""
    for folder in "ab":
        file = tmp_path / folder / "kernels.py"
        file.parent.mkdir()
        file.write_text(f"import triton\nimport triton.language as tl\n\n\n@triton.jit\n{copy.src}")
        spec = importlib.util.spec_from_file_location(folder, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with simulating("sm_80") as simulation:
            module.copy[(1,)](torch.randn(100), torch.zeros(100), 100, BLOCK=128)
        assert {each.place.file for each in simulation.counters if each.place} == {str(file)}


# ---- global memory


@triton.jit
def unmasked(x, y, n, LOAD: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if LOAD:
        value = tl.load(x + i)
        tl.store(y + i, value, mask=i < n)
    else:
        value = tl.load(x + i, mask=i < n)
        tl.store(y + i, value)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("load", [True, False])
@simulated
def test_missing_mask(chip, load):
    with faulty(chip) as simulation:
        unmasked[(1,)](torch.randn(100), torch.zeros(100), 100, LOAD=load, BLOCK=128)
        (finding,) = simulation.findings
    assert finding.kind == f"{'load' if load else 'store'} outside of every allocation"
    assert finding.details == f"4 bytes at argument {1 - load} (float32 (100,)) + 400 (of 400 bytes)"
    assert python(finding) == ("value = tl.load(x + i)" if load else "tl.store(y + i, value)")
    assert (finding.thread, finding.block, finding.times) == (100, 0, 28)


@simulated
def test_vector_that_is_not_aligned():
    """The kernel was compiled for addresses that are multiples of 16, and gets another one."""
    x, y = torch.randn(600), torch.zeros(512)
    moved = (x.data_ptr() + 4).to_bytes(8, "little")
    with faulty("sm_80", parameters=lambda values: [moved, *values[1:]]) as simulation:
        copy[(1,)](x, y, 512, BLOCK=512)
        (finding,) = simulation.findings
    assert finding.kind == "misaligned access"
    assert finding.details == f"16 bytes at {x.data_ptr() + 4:#x}"
    assert "tl.load" in python(finding)
    assert torch.equal(y, x[1:513])


@triton.jit
def overlapping(y, BLOCK: tl.constexpr):
    tl.store(y + tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK), tl.program_id(0))


@simulated
def test_blocks_that_write_the_same_bytes():
    with faulty("sm_80", blocks=True) as simulation:
        overlapping[(2,)](torch.zeros(300, dtype=torch.int32), BLOCK=128)
        (finding,) = simulation.findings
    assert finding.kind.startswith("two blocks access the same bytes")
    assert finding.details == "writes what another wrote: argument 0 (int32 (300,)) + 508 (of 1200 bytes)"
    assert (finding.thread, finding.block) == (0, 1)


# ---- shared memory


@triton.jit
def product(a, b, c, K: tl.constexpr, BLOCK: tl.constexpr, SIDE: tl.constexpr):
    m, k = tl.arange(0, SIDE), tl.arange(0, BLOCK)
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for first in range(0, K, BLOCK):
        x = tl.load(a + m[:, None] * K + (first + k)[None, :])
        y = tl.load(b + (first + k)[:, None] * SIDE + m[None, :])
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * SIDE + m[None, :], total)


def multiply(**options):
    a, b, c = torch.randn(64, 256).half(), torch.randn(256, 64).half(), torch.empty(64, 64)
    product[(1,)](a, b, c, K=256, BLOCK=32, SIDE=64, **options)
    return c, a.float() @ b.float()


@pytest.mark.parametrize("chip", CHIPS)
@simulated
def test_missing_barrier(chip):
    """With all of the barriers there is no finding; with none the warps read what others have not written."""
    with simulating(chip, races=True) as simulation:
        ours, right = multiply(num_stages=3)
        assert torch.allclose(ours, right, atol=1e-3)
        assert not simulation.findings
    with faulty(chip, lambda text: re.sub(r"bar\.sync\s+0;", "", text), races=True) as simulation:
        multiply(num_stages=3)
        finding = found(simulation, "race: ")
    assert finding.details.startswith("shared memory 0x")
    assert "the other: " in finding.details
    assert "tl." in python(finding)


@pytest.mark.parametrize("late", ["missing", "raised"])
@simulated
def test_wait_too_late(late):
    def edit(text):
        change = "" if late == "missing" else r"cp.async.wait_group 9;"
        return re.sub(r"cp\.async\.wait_group\s+\d+;", change, text)

    with faulty("sm_80", edit, races=True) as simulation:
        ours, right = multiply(num_stages=3)
        finding = next(each for each in simulation.findings if "an asynchronous copy has yet to write" in each.kind)
    assert "tl." in python(finding)
    assert not torch.allclose(ours, right, atol=1e-3)  # poison in place of what was not waited for


@simulated
def test_product_overwritten():
    """The wait for a wgmma is put off past the copy into what it reads."""
    with faulty("sm_90", lambda text: re.sub(r"wgmma\.wait_group\.sync\.aligned\s+\d+;", "", text), races=True) as run:
        multiply(num_stages=3)
        kinds = {each.kind for each in run.findings}
    assert any("overwrites what an asynchronous operation under way reads" in each for each in kinds)


# ---- the copy engine


@triton.jit
def copy_boxes(source, target, TIMES: tl.constexpr):
    for i in tl.static_range(TIMES):
        target.store([0, 32 * i], source.load([0, 32 * i]) + 1)


def boxes(**options):
    x, y = torch.randn(16, 64).half(), torch.zeros(16, 64).half()
    source, target = (TensorDescriptor.from_tensor(each, [16, 32]) for each in (x, y))
    copy_boxes[(1,)](source, target, TIMES=2, **options)
    return x + 1, y


FORMAT = struct.Struct("<Q4Q5I5H5B5B")  # a tensor map: address, strides, dimensions, box, element strides and modes


@pytest.mark.parametrize(("field", "value", "details"), [
    (1, 100, "stride that is no multiple of 16 bytes, or too large: 100"),
    (10, 512, "bytes of the box's inner side: 1024"), (11, 512, "side of the box"),
    (5, 0, "size that is 0 or negative: 0, dimension 0 from the last"),
    (0, None, "base that is no multiple of 16 bytes"),
    (20, 3, "its rank: 3"), (15, 2, "element stride"),
])  # fmt: skip
@simulated
def test_bad_tensor_map(field, value, details):
    def changed(parameters):
        fields = list(FORMAT.unpack(parameters[0][: FORMAT.size]))
        fields[field] = fields[field] + 2 if value is None else value
        return [FORMAT.pack(*fields).ljust(128, b"\0"), *parameters[1:]]

    with simulating("sm_90", races=True) as simulation:
        assert torch.equal(*boxes())
        assert not simulation.findings
    with faulty("sm_90", parameters=changed) as simulation, contextlib.suppress(SimulationError):
        boxes()
    finding = found(simulation, "bad tensor map")
    assert finding.details.startswith(details)
    assert "source.load" in python(finding)


@simulated
def test_missing_proxy_fence():
    with faulty("sm_90", lambda text: re.sub(r"fence\.proxy\.async\S*;", "", text), races=True) as simulation:
        boxes()
        finding = next(each for each in simulation.findings if "fence.proxy.async" in each.kind)
    assert "target.store" in python(finding)


@simulated
def test_store_overwritten():
    edit = lambda text: re.sub(r"cp\.async\.bulk\.wait_group\S*\s+0;", "", text)  # noqa: E731
    with faulty("sm_90", edit, races=True) as simulation:
        boxes()
        finding = found(simulation, "overwrites what an asynchronous operation under way reads")
        found(simulation, "asynchronous operation under way at the kernel's end")
    assert "target.store" in python(finding)


# ---- results and ends


@triton.jit
def larger(x, y, z, NAN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(z + i, tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL if NAN else tl.PropagateNan.NONE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@simulated
def test_nan_lost_by_a_maximum(dtype):
    x, y, z = torch.randn(128).to(dtype), torch.randn(128).to(dtype), torch.empty(128, dtype=dtype)
    x[::3], y[::5] = torch.nan, torch.nan
    with faulty("sm_80"):
        larger[(1,)](x, y, z, NAN=False, BLOCK=128)
        assert torch.equal(z.isnan(), x.isnan() & y.isnan())
        assert torch.equal(z.nan_to_num(7), torch.fmax(x, y).nan_to_num(7))
        larger[(1,)](x, y, z, NAN=True, BLOCK=128)
        assert torch.equal(z.nan_to_num(7), torch.maximum(x, y).nan_to_num(7))


@triton.jit
def forever(x):
    while tl.load(x, volatile=True) == 0:
        tl.store(x + 1, 1)


@simulated
def test_loop_without_an_end():
    with faulty("sm_80", limit=10000) as simulation:
        with pytest.raises(SimulationError, match="limit of operations"):
            forever[(1,)](torch.zeros(2))
        assert "tl." in python(simulation.findings[0])


@triton.jit
def asserted(x, n):
    tl.device_assert(tl.load(x) < n, "too large")


@simulated
def test_device_assert():
    with faulty("sm_80") as simulation:
        asserted[(1,)](torch.zeros(1), 1, debug=True)
        with pytest.raises(SimulationError, match="trap"):
            asserted[(1,)](torch.ones(1), 1, debug=True)
    assert "device_assert" in python(simulation.findings[0])


@simulated
def test_clusters():
    with faulty("sm_90"), pytest.raises(Unsupported, match="clusters of blocks"):
        copy[(1,)](torch.zeros(128), torch.zeros(128), 128, BLOCK=128, num_ctas=2)

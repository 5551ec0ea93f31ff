"""Kernels of the kinds that Triton is learned by, in the simulator, on each generation of chips: right, with nothing
found, and by the instructions that the chip is for; some with other versions of Triton."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import tutorials as kernels
from cnn_triton.simulator import simulating
from simulated import simulated

CHIPS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
WITH_TMA = ("sm_90", "sm_100", "sm_120")
# What a chip multiplies matrices by, without the shape.
PRODUCTS = {"sm_80": "mma.sync", "sm_89": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
FLOATS = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
IN_EIGHT_BITS = [
    (chip, dtype)
    for chip in CHIPS
    for dtype in (torch.float8_e5m2, torch.float8_e4m3fn)
    if (chip, dtype) != ("sm_80", torch.float8_e4m3fn)  # which Triton refuses
]
on_each = pytest.mark.parametrize("chip", CHIPS)
with_tma = pytest.mark.parametrize("chip", WITH_TMA)


def nothing_wrong(run):
    """Nothing was found in a run that launched something."""
    assert run.launches
    wrong = [str(each) for each in run.findings if not each.is_note]
    assert not wrong, "\n".join(wrong)


def executed(run, *starts):
    """Some instruction of the last launch begins with each of these."""
    opcodes = run.launches[-1].instructions
    for start in starts:
        assert any(each.startswith(start) and count > 0 for each, count in opcodes.items()), (start, sorted(opcodes))


def multiplied(run, chip, dtype):
    """The last launch multiplied numbers of this type by the chip's matrix instruction."""
    start = PRODUCTS.get(chip, "mma.sync")
    opcodes = [each for each in run.launches[-1].instructions if each.startswith(start)]
    assert opcodes, sorted(run.launches[-1].instructions)
    kind = ("kind::f8f6f4" if dtype.itemsize == 1 else "kind::f16") if chip == "sm_100" else f".{FLOATS[dtype]}."
    if dtype.itemsize == 1 and chip == "sm_80":
        kind = ".f16."  # which has no instruction for eight bits
    assert all(f"{each}.".find(kind) > 0 for each in opcodes), opcodes


def close_product(c, a, b):
    """Sums of products in float32, in any order, against float64."""
    a, b = a.double(), b.double()
    bound = 1e-5 * (a.abs() @ b.abs()) + 1e-30
    error = (c.double() - a @ b).abs()
    assert (error <= bound).all(), f"{error.max()} of {bound.max()}"


def operands(m, n, k, dtype, transposed):
    """a [m, k], and b [k, n] or, transposed, [n, k]."""
    a, b = torch.randn(m, k), torch.randn(n, k) if transposed else torch.randn(k, n)
    return a.to(dtype), b.to(dtype)


@on_each
@simulated
def test_add(chip):
    x, y = torch.randn(2, 1000)
    z = torch.full((1000,), math.nan)
    with simulating(chip, races=True) as run:
        kernels.add_kernel[(4,)](x, y, z, 1000, BLOCK=256)
    nothing_wrong(run)
    assert torch.equal(z, x + y)
    executed(run, "ld.global", "st.global", "add")


@pytest.mark.parametrize(("chip", "dtype"), IN_EIGHT_BITS)
@simulated
def test_convert(chip, dtype):
    """To eight bits, which some chips have an instruction for, and back."""
    x = torch.randn(1000) * 8
    y, z = torch.zeros(1000, dtype=dtype), torch.full((1000,), math.nan)
    with simulating(chip, races=True) as run:
        kernels.convert_kernel[(4,)](x, y, 1000, BLOCK=256)
        native = any(each.startswith("cvt.rn.satfinite") for each in run.launches[-1].instructions)
        kernels.convert_kernel[(4,)](y, z, 1000, BLOCK=256)
    nothing_wrong(run)
    assert native == (chip != "sm_80")
    if chip == "sm_89":  # by way of float16, rounded toward zero: of two nearly equally near numbers maybe the other
        assert ((y.double() - x.double()).abs() <= (x.to(dtype).double() - x).abs() + 2**-9 * x.abs()).all()
    else:
        assert torch.equal(y.view(torch.uint8), x.to(dtype).view(torch.uint8))
    assert torch.equal(z, y.float())


@on_each
@simulated
def test_softmax(chip):
    x = torch.randn(13, 300) * 3
    y = torch.full_like(x, math.nan)
    with simulating(chip, races=True) as run:
        kernels.softmax_kernel[(4,)](x, y, 13, 300, 300, BLOCK=512, STAGES=3, num_warps=4)
    nothing_wrong(run)
    torch.testing.assert_close(y.double(), x.double().softmax(1), rtol=1e-5, atol=1e-9)
    executed(run, "cp.async.ca", "cp.async.wait_group", "ex2", "redux.sync.max.f32" if chip == "sm_100" else "shfl")


def philox(seed, at):
    """The first word of Philox 4x32-10 at a counter; the key is the seed."""
    c = [at.astype(np.uint64), *np.zeros((3, len(at)), dtype=np.uint64)]
    key, low = [seed & 0xFFFFFFFF, seed >> 32], np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [second >> 32 ^ c[1] ^ np.uint64(key[0]), second & low, first >> 32 ^ c[3] ^ np.uint64(key[1]), first & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0].astype(np.uint32)


@on_each
@simulated
def test_dropout(chip):
    x, p, seed = torch.randn(1000), 0.3, 12345678901
    y = torch.full_like(x, math.nan)
    with simulating(chip, races=True) as run:
        kernels.dropout_kernel[(4,)](x, y, 1000, p, seed, BLOCK=256)
    nothing_wrong(run)
    word = philox(seed, np.arange(1000)).view(np.int32).astype(np.int64)
    uniform = np.where(word < 0, -word - 1, word) * 4.6566127342e-10
    expected = torch.where(torch.tensor(uniform) > p, x.double() / (1 - p), 0.0)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=0)
    executed(run, "mul.hi.u32")


@on_each
@simulated
def test_layer_norm(chip):
    """Forward and backward; the gradients of the weights go through a lock."""
    rows, columns, groups, eps = 19, 300, 4, 1e-5
    x, dy = torch.randn(rows, columns) * 2 + 1, torch.randn(rows, columns)
    w, b = torch.rand(2, columns)
    y, dx, nan = torch.full_like(x, math.nan), torch.full_like(x, math.nan), torch.full((2, columns), math.nan)
    mean, rstd = torch.full((2, rows), math.nan)
    parts, locks = torch.full((2, groups, columns), math.nan), torch.zeros(2 * groups, dtype=torch.int32)
    with simulating(chip, races=True) as run:
        kernels.layer_norm_kernel[(rows,)](x, w, b, y, mean, rstd, columns, eps, BLOCK=128)
        kernels.layer_norm_grad_kernel[(rows,)](
            x, w, dy, dx, parts[0], parts[1], locks, mean, rstd, columns, GROUPS=groups, BLOCK=512
        )
        executed(run, "atom")
        for part, to in zip(parts, nan, strict=True):
            kernels.sum_rows_kernel[(3,)](part, to, groups, columns, ROWS=8, BLOCK=128)
    nothing_wrong(run)
    given = [each.double().requires_grad_() for each in (x, w, b)]
    expected = torch.nn.functional.layer_norm(given[0], (columns,), given[1], given[2], eps)
    expected.backward(dy.double())
    for result, reference in zip((y, dx, *nan), (expected.detach(), *(each.grad for each in given)), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("chip", "dtype"), [*((chip, torch.float16) for chip in CHIPS), *IN_EIGHT_BITS])
@simulated
def test_matmul(chip, dtype):
    """By pointers, sizes that no tile divides; one program for each tile, and persistent programs."""
    m, n, k = 130, 72, 80
    a, b = operands(m, n, k, dtype, transposed=True)
    with simulating(chip, races=True) as run:
        for kernel, programs in ((kernels.matmul_kernel, 9), (kernels.persistent_kernel, 4)):
            c = torch.full((m, n), math.nan)
            kernel[(programs,)](a, b, c, m, n, k, k, 1, 1, k, n, M=64, N=32, K=32, num_stages=3)
            close_product(c, a, b.T)
            multiplied(run, chip, dtype)
            executed(run, "cp.async.cg", "cp.async.wait_group")
    nothing_wrong(run)


@on_each
@simulated
def test_grouped(chip):
    """Products whose addresses lie in memory."""
    sizes = ((70, 40, 33), (16, 100, 64), (1, 8, 24))
    pairs = [operands(*size, torch.bfloat16, transposed=False) for size in sizes]
    results = [torch.full(size[:2], math.nan) for size in sizes]
    rows = [[a.data_ptr(), b.data_ptr(), c.data_ptr(), *size]
            for (a, b), c, size in zip(pairs, results, sizes, strict=True)]  # fmt: skip
    with simulating(chip, races=True) as run:
        run.reaches(*results, *(each for pair in pairs for each in pair))
        kernels.grouped_kernel[(3,)](torch.tensor(rows), 3, M=64, N=32, K=32, DTYPE=tl.bfloat16)
    nothing_wrong(run)
    multiplied(run, chip, torch.bfloat16)
    for c, (a, b) in zip(results, pairs, strict=True):
        close_product(c, a, b)


@simulated
def test_reaches():
    """What neither is an argument nor is said to be reached may not be accessed."""
    (a, b), c = operands(16, 16, 16, torch.bfloat16, transposed=False), torch.zeros(16, 16)
    row = torch.tensor([[a.data_ptr(), b.data_ptr(), c.data_ptr(), 16, 16, 16]])
    with simulating("sm_90") as run:
        run.reaches(a, c)
        kernels.grouped_kernel[(1,)](row, 1, M=64, N=32, K=32, DTYPE=tl.bfloat16)
    assert {each.kind for each in run.findings} == {"load outside of every allocation"}


@with_tma
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@simulated
def test_tma(chip, dtype):
    """By the host's descriptors, sizes that no tile divides."""
    m, n, k = 130, 80, 112
    a, b = operands(m, n, k, dtype, transposed=True)
    c = torch.full((m, n), math.nan)
    with simulating(chip, races=True) as run:
        kernels.tma_kernel[(3, 2)](
            TensorDescriptor.from_tensor(a, [64, 64]), TensorDescriptor.from_tensor(b, [64, 64]),
            TensorDescriptor.from_tensor(c, [64, 64]), k, M=64, N=64, K=64,
        )  # fmt: skip
    nothing_wrong(run)
    multiplied(run, chip, dtype)
    executed(run, "cp.async.bulk.tensor.2d.shared", "cp.async.bulk.tensor.2d.global", "mbarrier.try_wait")
    close_product(c, a, b.T)


@with_tma
@pytest.mark.parametrize("specialize", [False, True], ids=["one role", "specialised"])
@simulated
def test_tma_persistent(chip, specialize):
    """By descriptors that the kernel makes in scratch memory."""
    m, n, k = 200, 80, 112
    a, b = operands(m, n, k, torch.float16, transposed=True)
    c = torch.full((m, n), math.nan)
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8))
    with simulating(chip, races=True) as run:
        kernels.tma_persistent_kernel[(3,)](
            a, b, c, m, n, k, M=128, N=64, K=64, SPECIALIZE=specialize, num_stages=2,
            FLATTEN=not (specialize and chip == "sm_90"),
        )  # fmt: skip
    nothing_wrong(run)
    multiplied(run, chip, torch.float16)
    executed(run, "cp.async.bulk.tensor.2d.shared", "cp.async.bulk.tensor.2d.global", "tensormap")
    if specialize:
        executed(run, "setmaxnreg.inc", "barrier.sync", *(["brx.idx"] if chip == "sm_100" else []))
    close_product(c, a, b.T)


@on_each
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@simulated
def test_attention(chip, causal):
    """Forward and backward. Probabilities and their gradients are rounded to float16 between two products."""
    heads, n, d = 2, 100, 32
    q, k, v, do = (torch.randn(heads, n, d).half() for _ in range(4))
    o, *grads = (torch.full((heads, n, d), math.nan) for _ in range(4))
    lse, scale = torch.full((heads, n), math.nan), 1 / math.sqrt(d)
    shape = {"CAUSAL": causal, "M": 64, "N": 64, "D": d}
    factor = scale / math.log(2)
    with simulating(chip, races=True) as run:
        kernels.attention_kernel[(2, heads)](q, k, v, o, lse, n, factor, **shape)
        multiplied(run, chip, torch.float16)
        kernels.attention_kv_grad_kernel[(2, heads)](q, k, v, o, do, lse, *grads[1:], n, factor, **shape, num_stages=2)
        multiplied(run, chip, torch.float16)
        kernels.attention_q_grad_kernel[(2, heads)](q, k, v, o, do, lse, grads[0], n, factor, **shape, num_stages=2)
        multiplied(run, chip, torch.float16)
    nothing_wrong(run)
    given = [each.double().requires_grad_() for each in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=causal)
    expected.backward(do.double())
    for result, reference in zip((o, *grads), (expected.detach(), *(each.grad for each in given)), strict=True):
        assert (result.double() - reference).abs().max() <= 2**-10 * reference.abs().max()


TRITONS = Path(__file__).parents[1] / ".venv" / "triton"  # where `make` puts other versions
VERSIONS = [line for line in Path(__file__).with_name("tritons.txt").read_text().splitlines() if line[:1].isdigit()]


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("version", VERSIONS)
def test_versions(version, chip):
    """Two products and a convolution with another Triton: right, and nothing found but what that version omits."""
    if not (TRITONS / version / ".ready").exists():
        pytest.skip(f"Triton {version} is not in {TRITONS}, where `make test` puts it")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TRITONS / version), environment.get("PYTHONPATH", "")])
    child = [sys.executable, str(Path(__file__).with_name("simulate_child.py")), chip, version]
    done = subprocess.run(child, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    launches = {each["kernel"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert {"matmul_kernel", "tma_kernel"} < launches.keys()
    for name, launch in launches.items():
        start = PRODUCTS.get(chip, "mma.sync")
        assert any(each.startswith(start) for each in launch["opcodes"]), (name, launch["opcodes"])
        assert any("bulk.tensor" in each for each in launch["opcodes"]) == (name == "tma_kernel" and chip in WITH_TMA)
        omitted = ""
        if version.startswith("3.6") and chip in ("sm_90", "sm_100") and name != "tma_kernel":
            omitted = "no fence.proxy.async between them"  # threads' copies, and the tensor cores that read them
        elif version.startswith("3.9") and chip == "sm_100" and name == "tma_kernel":
            omitted = "reads registers that a tcgen05.ld has yet to write"  # its wait comes after they are stored
        assert bool(launch["found"]) == bool(omitted), launch["found"]
        assert all(omitted in each for each in launch["found"]), launch["found"]

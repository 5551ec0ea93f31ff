"""What tests hold results to: the proof that kernels ran, poisoned outputs, and the error against float64."""

import contextlib

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from wide import exact

from cnn_triton.kernels.base.precision import DTYPES, ERROR_EPS, ERROR_RATIO, TF32_EPS
from cnn_triton.kernels.core.op import launches
from cnn_triton.kernels.matrix import batch_norm, conv2d, conv_pool, pool_code

# aten operators that do a kernel's work; none may run inside a tested call.
_FORBIDDEN = (
    "conv",
    "pool",
    "mm",
    "matmul",
    "linear",
    "addmv",
    "::mv",
    "::dot",
    "einsum",
    "relu",
    "threshold",
)


class _NoAtenKernels(TorchDispatchMode):
    @classmethod
    def ignore_compile_internals(cls):
        return True  # TorchDynamo captures within it, as it does without

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith("aten::") and any(word in name for word in _FORBIDDEN):
            raise AssertionError(f"{name} ran in place of a kernel")
        if name.startswith("cnn_triton::"):
            # Straight to the operator's implementation, with this mode still watching what that calls.
            key = torch._C.DispatchKey.CUDA if torch.cuda.is_available() else torch._C.DispatchKey.CPU
            with self:
                return func.redispatch(torch._C.DispatchKeySet(key), *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def operator_of(function):
    """The operator that a public function runs, by the first word of a label."""
    name = function.split()[0].removesuffix("_relu").removeprefix("adaptive_").replace("1d", "2d")
    if name.startswith("conv2d_relu_"):
        return "conv2d_pool"
    return "conv2d_moments" if name == "conv2d_batch_norm" else name


def moved(value, device):
    """A copy of a tensor on the device, its strides and offset kept, which .to() would make dense; else the value."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage().to(device=device).clone()
    return torch.empty(0, dtype=value.dtype, device=device).set_(
        storage, value.storage_offset(), value.shape, value.stride()
    )


@contextlib.contextmanager
def fresh_is_nan():
    """Within: fresh tensors are NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def kernels_only(*operators):
    """Within: no aten convolution, pool or matrix product may run, fresh tensors are NaN, and at the end each named
    operator (at least one, if none is named) must have launched a kernel."""
    before = launches.copy()
    with fresh_is_nan(), _NoAtenKernels():
        yield
    ran = launches - before
    assert ran.total() > 0, "no kernel ran"
    for name in operators:
        assert ran[name] > 0, f"no kernel of {name} ran, only {dict(ran)}"


def unfolded(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The locally connected layer by PyTorch: unfold, and a product for each output pixel."""
    p, q, k, r, s, c = weight.shape
    columns = F.unfold(input, (r, s), dilation, padding, stride)
    columns = columns.unflatten(2, (p, q)).unflatten(1, (groups, c, r, s))
    y = torch.einsum("ngcrspq,pqgkrsc->ngkpq", columns, weight.unflatten(2, (groups, k // groups))).flatten(1, 2)
    if bias is None:
        return y
    return y + (bias.permute(2, 0, 1) if bias.dim() == 3 else bias[:, None, None]).to(y.dtype)


def assert_accurate(ours, theirs, exact, what="result", eps=None):
    """Our error against the float64 result is at most ERROR_RATIO x PyTorch's own in the same dtype + the epsilon, that
    of the dtype unless given.

    NaN and infinities must stand in the same places as in PyTorch's result.
    """
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, PyTorch's is {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, PyTorch's is {tuple(theirs.shape)}"
    if ours.numel() == 0:
        return
    ours, theirs, exact = ours.detach(), theirs.detach(), exact.detach()
    finite = theirs.isfinite()
    odd = ~finite
    same = (ours[odd] == theirs[odd]) | (ours[odd].isnan() & theirs[odd].isnan())
    assert same.all(), f"{what}: {int((~same).sum())} NaN or infinite values differ from PyTorch's"
    assert ours[finite].isfinite().all(), f"{what}: {int((~ours[finite].isfinite()).sum())} values are not finite"
    if not finite.any():
        return
    exact = exact[finite].double()
    error = (ours[finite].double() - exact).abs().max().item()
    allowed = ERROR_RATIO * (theirs[finite].double() - exact).abs().max().item()
    allowed += ERROR_EPS * (eps or DTYPES[ours.dtype].eps) * exact.abs().max().item()
    assert error <= allowed, f"{what}: error {error:.3g} against float64, allowed {allowed:.3g}"


def assert_code(code, args, wide):
    """A code says the truth but for rounding: what won is among the largest, what is open not below 0, give or take
    what two values may be wrong by. (Which of two that are equal after rounding wins, depends on sums' last bits.)
    args, wide: the operator's arguments, and the same in float64."""
    *product, pool, average = wide
    if code.numel() == 0:
        return
    x = conv2d.conv2d_aten(*product[:4], None, None, *product[4:], "none")
    *product, _, _ = args
    theirs = conv2d.conv2d_aten(*product[:4], None, None, *product[4:], "none")
    error = ERROR_RATIO * (theirs.double() - x).abs().max()
    near = 2 * (error + ERROR_EPS * DTYPES[theirs.dtype].eps * x.abs().max())
    p, q = code.shape[3:]
    taps = x[:, :, : p * pool[0], : q * pool[1]].unflatten(3, (q, pool[1])).unflatten(2, (p, pool[0]))
    taps = taps.permute(3, 5, 0, 1, 2, 4).flatten(0, 1)
    opens = pool_code.opens_aten(code, pool, average)
    if average:
        assert ((opens == (taps > 0)) | (taps.abs() <= near)).all()
    else:
        assert (code <= pool[0] * pool[1]).all()
        won = torch.where(opens, taps, 0).sum(0)
        assert (won >= taps.amax(0).clamp_min(0) - near).all()


def converted(args, dtype):
    """The arguments with their floating-point tensors converted, strides kept."""
    return tuple(a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def results(value):
    return value if isinstance(value, tuple) else (value,)


def assert_right(op, args, ours, tf32=False):
    """An operator's results are as accurate as PyTorch's, with its strides; tf32: of operands that are cut off."""
    theirs, wide = results(op.reference(*args)), exact(op, converted(args, torch.float64))
    for i, (our, their, right) in enumerate(zip(ours, theirs, wide, strict=True)):
        assert our.stride() == their.stride(), f"result {i}: strides {our.stride()}, expected {their.stride()}"
        if our.is_floating_point():
            squares = op is batch_norm.CONV2D_MOMENTS and i == 2  # twice the relative error of what is squared
            assert_accurate(our, their, right, f"result {i}", (1 + squares) * TF32_EPS if tf32 else None)
        elif op is conv_pool.CONV2D_POOL and args[0].dtype != torch.float64:
            if not tf32:
                assert_code(our, args, converted(args, torch.float64))
        else:
            assert torch.equal(our, their), f"result {i}: {int((our != their).sum())} integers differ"

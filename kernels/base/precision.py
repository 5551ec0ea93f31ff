"""One table for numbers: which dtypes the kernels take, what they accumulate in, how dots round, the tests' epsilon."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch


class DtypeRule(NamedTuple):
    """How one dtype is computed. `eps` is the distance from 1 to the next number."""

    accumulator: torch.dtype
    eps: float


DTYPES = {
    torch.float16: DtypeRule(torch.float32, 2.0**-10),
    torch.bfloat16: DtypeRule(torch.float32, 2.0**-7),
    torch.float32: DtypeRule(torch.float32, 2.0**-23),
    torch.float64: DtypeRule(torch.float64, 2.0**-52),
}

# A result is right if its error against float64 is at most ERROR_RATIO times PyTorch's own error in the same dtype
# plus ERROR_EPS · eps(dtype) · max|reference|, which absorbs the luck of PyTorch's last rounding.
ERROR_RATIO = 2.0
ERROR_EPS = 2.0
# Of products whose operands are cut off to TF32's 10 bits, as the hardware does it: up to a whole last bit of each.
TF32_EPS = 2.0**-10


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are kept in: float32, or float64 for float64."""
    return DTYPES[dtype].accumulator


def smallest_integer(largest: int) -> torch.dtype:
    """Return the smallest integer dtype of a pooling's taps, up to this number."""
    return torch.uint8 if largest <= 255 else torch.int16 if largest < 2**15 else torch.int32


def conv_precision(dtype: torch.dtype) -> str:
    """Return 'tf32' or 'ieee' for a convolution's dots: PyTorch's convolution switch
    (torch.backends.cudnn.conv.fp32_precision; TF32 unless set otherwise)."""
    return _precision(dtype, torch.backends.cudnn.conv.fp32_precision)


def matmul_precision(dtype: torch.dtype) -> str:
    """Return 'tf32' or 'ieee' for a linear layer's dots: PyTorch's matrix-product switch
    (torch.backends.cuda.matmul.fp32_precision; full float32 unless set otherwise)."""
    return _precision(dtype, torch.backends.cuda.matmul.fp32_precision)


def switches() -> tuple[str, str]:
    """Return PyTorch's settings for float32 convolutions and matrix products."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@contextlib.contextmanager
def float32_precision(name: str) -> Iterator[None]:
    """Within: PyTorch's switches for float32 convolutions and matrix products, "tf32" or "ieee"."""
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = name
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _precision(dtype: torch.dtype, setting: str) -> str:
    # Unset ("none") means full precision; PyTorch resolves the settings' inheritance itself.
    return "tf32" if dtype == torch.float32 and setting == "tf32" else "ieee"


def autocasts(tensor: torch.Tensor) -> bool:
    """True if autocast is on for the tensor's device."""
    kind = tensor.device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)

"""Marks in time, by the host's clock or the GPU's, and a device's ceilings: its fastest copy and product."""

import time
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.base.precision import switches

__all__ = ["Clock", "ceilings"]


class Clock:
    """A clock that marks moments; on a GPU, the moments when the work queued before has run."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"

    def mark(self) -> Any:
        """Mark this moment."""
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Wait until all marks have passed."""
        if self.gpu:
            torch.cuda.synchronize()

    def occupy(self, milliseconds: float) -> None:
        """Keep the GPU busy for about this time, so that work queued meanwhile runs without gaps."""
        if self.gpu and milliseconds:
            torch.cuda._sleep(int(2e6 * milliseconds))  # at two cycles a nanosecond

    def between(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two marks; after `wait`."""
        return float(start.elapsed_time(end)) if self.gpu else 1e3 * (end - start)


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the device's ceilings, here and now: a large copy, GB/s read and written, and a large product, TFLOP/s.
    float32 products run in TF32 if PyTorch's switch has convolutions do so."""
    gpu, clock = device.type == "cuda", Clock(device)
    size, side = (1 << 30, 8192) if gpu else (1 << 26, 2048)
    source = torch.empty(size, dtype=torch.int8, device=device)
    target, a = torch.empty_like(source), torch.randn(side, side, device=device).to(dtype)

    def fastest(run: Callable[[], Any]) -> float:
        pairs = []
        for _ in range(12):
            start = clock.mark()
            run()
            pairs.append((start, clock.mark()))
        clock.wait()
        return min(clock.between(*pair) for pair in pairs[2:])

    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, switches()[0]
    try:
        copy, product = fastest(lambda: target.copy_(source)), fastest(lambda: a @ a)
    finally:
        switch.fp32_precision = before
    return {"copy, GB/s": 2 * size / copy / 1e6, "product, TFLOP/s": 2 * side**3 / product / 1e9}

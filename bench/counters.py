"""What each kernel does to memory, counted in the simulator: python -m bench.counters, or make counters.

Typical calls with their gradients, in both layouts, on three chips. The numbers go to results/no-gpu/counters.csv,
a table of them to docs/counters.md.
"""

import argparse
import csv
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: kernels are to be compiled

import torch

from cnn_triton import functional
from cnn_triton.files import replace
from cnn_triton.simulator import Counters
from cnn_triton.tools.calls import Call, Shape, call_of
from cnn_triton.tools.execution import execute_call

ROOT = Path(__file__).parents[1]
FILE = ROOT / "bench" / "results" / "no-gpu" / "counters.csv"
PAGE = ROOT / "docs" / "counters.md"
CHIPS = ("sm_80", "sm_90", "sm_100")
LAYOUTS = ("channels_last", "contiguous")
SHOWN = "sm_90"  # the chip of the page's table


def _prelu(input: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(input, weight, padding=1, activation=("prelu", slope))


def _pool(input: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the input's gradient, to be differentiated again."""
    y = functional.max_pool2d(input, 2)
    return torch.autograd.grad(y, input, gradient, create_graph=True)[0]


def _block(input: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    y = functional.conv2d_relu_max_pool2d(input, weight, padding=1)
    return torch.autograd.grad(y, input, gradient, create_graph=True)[0]


_IMAGES = "input=4x64x28x28"
_WORDS = {
    "conv2d_relu 3x3 64-64": f"{_IMAGES} weight=64x64x3x3 bias=64 padding=1",
    "conv2d_relu 3x3 64-64 of more images": "input=16x64x56x56 weight=64x64x3x3 bias=64 padding=1",
    "conv2d_relu 1x1 64-256": f"{_IMAGES} weight=256x64x1x1 bias=256",
    "conv2d_relu 7x7 3-64 s2": "input=2x3x56x56 weight=64x3x7x7 bias=64 stride=2 padding=3",
    "conv2d_relu 3x3 64-64 in 8 groups": f"{_IMAGES} weight=64x8x3x3 bias=64 padding=1 groups=8",
    "conv2d_relu 3x3 depthwise": f"{_IMAGES} weight=64x1x3x3 bias=64 padding=1 groups=64",
    "conv2d 3x3 64-64, reflected": f"{_IMAGES} weight=64x64x3x3 padding=1 padding_mode=reflect",
    "conv2d 3x3 64-64, gelu": f"{_IMAGES} weight=64x64x3x3 bias=64 padding=1 activation=gelu",
    "conv_transpose2d 3x3 64-64 s2": f"{_IMAGES} weight=64x64x3x3 bias=64 stride=2 padding=1",
    "conv2d_batch_norm 3x3 64-64": f"{_IMAGES} weight=64x64x3x3 padding=1 training=true activation=relu",
    "conv2d_relu_max_pool2d 3x3 64-64, 2x2": f"{_IMAGES} weight=64x64x3x3 bias=64 padding=1",
    "conv2d_relu_max_pool2d 3x3 64-64, 2x2, of more images": "input=16x64x56x56 weight=64x64x3x3 bias=64 padding=1",
    "conv2d_relu_avg_pool2d 3x3 64-64, 2x2": f"{_IMAGES} weight=64x64x3x3 bias=64 padding=1",
    "max_pool2d 3x3 s2": f"{_IMAGES} kernel_size=3 stride=2 padding=1",
    "max_pool2d 2x2": f"{_IMAGES} kernel_size=2",
    "max_pool2d 3x3, dilated": f"{_IMAGES} kernel_size=3 padding=1 dilation=2",
    "avg_pool2d 3x3 s2": f"{_IMAGES} kernel_size=3 stride=2 padding=1",
    "adaptive_avg_pool2d to 1x1": f"{_IMAGES} output_size=1",
    "adaptive_avg_pool2d to 5x5": f"{_IMAGES} output_size=5",
    "max_unpool2d 2x2": f"{_IMAGES} indices=4x64x28x28 kernel_size=2",
    "linear_relu 512-256": "input=64x512 weight=256x512 bias=256",
    "locally_connected2d 3x3 32-32": "input=8x32x14x14 weight=14x14x32x3x3x32 bias=14x14x32 padding=1",
}
_X, _W, _Y = Shape((4, 64, 28, 28)), Shape((64, 64, 3, 3)), Shape((4, 64, 14, 14))
_OWN: dict[str, tuple[Callable[..., torch.Tensor], dict[str, Shape]]] = {
    "conv2d 3x3 64-64, prelu": (_prelu, {"input": _X, "weight": _W, "slope": Shape((64,))}),
    "max_pool2d 2x2, twice": (_pool, {"input": _X, "gradient": _Y}),
    "conv2d_relu_max_pool2d 3x3 64-64, twice": (_block, {"input": _X, "weight": _W, "gradient": _Y}),
}
CALLS = (*_WORDS, *_OWN)


class Row(NamedTuple):
    """The counters of a launch, in text."""

    call: str
    layout: str
    chip: str
    operator: str
    kernel: str
    operator_bytes: str
    instructions: str
    global_bytes: str
    sectors: str
    fewest_sectors: str
    shared_bytes: str
    wavefronts: str
    fewest_wavefronts: str
    tma_bytes: str


def call(name: str, layout: str) -> Call:
    """Return a call, with its gradients, in bfloat16."""
    how: dict[str, Any] = {"dtype": "bfloat16", "channels_last": layout == "channels_last", "gradients": True}
    if name in _WORDS:
        return call_of(name.split()[0], _WORDS[name].split(), **how)
    function, tensors = _OWN[name]
    return Call(name, function, dict(tensors), **how)


def count(name: str, layout: str, chip: str) -> list[Row]:
    """Return the rows of a call. Errors: AssertionError if a result is wrong or anything was found."""
    torch.manual_seed(0)
    rows = []
    for each in execute_call(call(name, layout), chip):
        assert each.comparison is not None
        assert each.comparison.is_right, f"{name}, {layout}, {chip}: {each.name}: {each.comparison}"
        for launch in each.launches:
            wrong = [str(found) for found in launch.findings if not found.is_note]
            assert not wrong, "\n".join(wrong)
            figures = map(str, (each.bytes, *vars(launch.counters).values()))
            rows.append(Row(name, layout, chip, each.name, launch.kernel, *figures))
    return rows


def read() -> list[Row]:
    """Return the rows of the file."""
    with FILE.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [Row(*row) for row in rows]


def written(rows: list[Row]) -> str:
    """Return the file's text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
    return text.getvalue()


HEAD = """# Counters

What the kernels do to memory on {chip}, in bfloat16, counted by the [simulator](simulator.md) on small problems. A
line sums up the launches of one kernel in one operator of a call and its backward pass; its figures are those of
channels_last images, then of contiguous ones.

- *instructions*: warp instructions (of PTX) for 1000 bytes that the operator must move at least
- *sectors*: of 32 bytes of global memory that are asked for, as a multiple of the fewest for as many bytes
- *moved*: bytes to and from global memory, repeated reads too, as a multiple of those that the operator must move
- *wavefronts*: of shared memory, as a multiple of the fewest, which have no bank conflicts

Lines that would repeat an earlier one are left out. [counters.csv](../bench/results/no-gpu/counters.csv) has all, of
all chips; `make counters` makes both anew.

| call | operator | kernel | instructions | sectors | moved | wavefronts |
| --- | --- | --- | --- | --- | --- | --- |
"""


def page(rows: list[Row]) -> str:
    """Return the page's text."""
    sums: dict[tuple[str, str, str], dict[str, tuple[int, Counters]]] = {}
    for row in rows:
        if row.chip == SHOWN:
            own = sums.setdefault((row.call, row.operator, row.kernel), {})
            before = own.get(row.layout, (0, Counters()))[1]
            own[row.layout] = int(row.operator_bytes), before + Counters(*map(int, row[6:]))
    return HEAD.format(chip=SHOWN) + "".join(_lines(sums))


def _lines(sums: dict[tuple[str, str, str], dict[str, tuple[int, Counters]]]) -> Iterator[str]:
    figures: tuple[Callable[[int, Counters], str], ...] = (
        lambda whole, c: f"{1000 * c.instructions / whole:,.0f}",
        lambda whole, c: _times(c.sectors, c.fewest_sectors),
        lambda whole, c: _times(c.global_bytes, whole),
        lambda whole, c: _times(c.wavefronts, c.fewest_wavefronts),
    )
    seen = set()
    for (name, *rest), by_layout in sums.items():
        cells = [" / ".join(say(*by_layout[each]) if each in by_layout else "-" for each in LAYOUTS) for say in figures]
        if (*rest, *cells) not in seen:  # the backward passes of calls have kernels in common
            seen.add((*rest, *cells))
            yield f"| {' | '.join((name, *rest, *cells))} |\n"


def _times(number: int, fewest: int) -> str:
    return f"{number / fewest:.2f}" if fewest else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    jobs = [(name, layout, chip) for name in CALLS for layout in LAYOUTS for chip in CHIPS]
    with ProcessPoolExecutor(workers) as pool:
        rows = [row for some in pool.map(count, *zip(*jobs, strict=True)) for row in some]
    replace(FILE, written(rows).encode())
    replace(PAGE, page(rows).encode())
    print(f"written: {FILE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}: {len(rows)} launches")


if __name__ == "__main__":
    main()

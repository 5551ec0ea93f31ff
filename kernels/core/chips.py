"""The chips that kernels run on: what the model of tiles/ and the residency of compiled code need to know of each,
and the boards that have them, by their datasheets.

Sources: the vendors' datasheets and architecture papers (A100, Ada, H100, Blackwell, CDNA 3 and 4), "Technical
Specifications per Compute Capability" in the CUDA C++ Programming Guide, LLVM's AMDGPU target. `fill`, `latency` and
`start` are rounded from public microbenchmarks; those of sm_86, sm_87, sm_103, sm_121, gfx90a, gfx1100 and gfx1201 are
taken over from their nearest relatives.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from ..base.lang import INTERPRETING, triton

_Rate = float  # a field has the name of the type


class Rates(NamedTuple):
    """Rates of dense products by their arithmetic (tiles.shapes.ARITHMETIC), 0 where there is no instruction for it."""

    half: _Rate
    tf32: _Rate
    float: _Rate
    double: _Rate


class Chip(NamedTuple):
    """A chip, for the model of tiles/model.py; bytes, clocks and FLOPs are of one multiprocessor."""

    multiprocessors: int
    shared: int  # bytes of shared memory that one program may take
    rates: Rates  # FLOP per clock
    fill: int  # bytes per clock from L2
    memory: float  # bytes per clock from memory
    latency: int  # clocks from asking for an operand to having it
    start: int = 1500  # clocks a program spends before its first step and after its last
    sums: int = 64  # 32-bit sums a thread may hold: more where matrix instructions read shared memory
    lanes: int = 32  # threads of a warp
    issues: int = 4  # instructions of warps per clock; of AMD's, those of the vector units
    registers: int = 65536  # of a multiprocessor
    warps: int = 64  # that a multiprocessor holds
    blocks: int = 32
    reserved: int = 1 << 10  # bytes of shared memory that a block takes besides its own; one block's are left out above
    tma: bool = False  # has a tensor memory accelerator, which fetches boxes of images
    granule: int = 128  # bytes that shared memory is given out in
    amd: bool = False


_AMD = {"sums": 32, "warps": 32, "blocks": 16, "reserved": 0, "granule": 512, "amd": True}
_CDNA = _AMD | {"lanes": 64, "registers": 131072, "issues": 1}
_RDNA = _AMD | {"lanes": 32, "registers": 98304, "issues": 2}
CHIPS = {
    "sm_80": Chip(108, 163 << 10, Rates(2048, 1024, 128, 128), 44, 13, 600),  # A100
    "sm_86": Chip(84, 99 << 10, Rates(512, 256, 256, 4), 20, 5, 600, warps=48, blocks=16),  # RTX 3090, A10
    "sm_87": Chip(16, 163 << 10, Rates(2048, 1024, 256, 4), 20, 10, 600, warps=48, blocks=16),  # Jetson AGX Orin
    "sm_89": Chip(128, 99 << 10, Rates(512, 256, 256, 4), 20, 3, 700, warps=48, blocks=24),  # RTX 4090, L40
    "sm_90": Chip(132, 227 << 10, Rates(4096, 2048, 256, 256), 46, 18, 900, sums=128, tma=True),  # H100, H200
    "sm_100": Chip(148, 227 << 10, Rates(8192, 4096, 256, 128), 64, 28, 1000, sums=128, tma=True),  # B200
    "sm_103": Chip(148, 227 << 10, Rates(8192, 4096, 256, 4), 64, 28, 1000, sums=128, tma=True),  # B300
    "sm_120": Chip(170, 99 << 10, Rates(512, 256, 256, 4), 20, 4, 700, warps=48, blocks=24),  # RTX 5090
    "sm_121": Chip(48, 99 << 10, Rates(512, 256, 256, 4), 20, 2, 700, warps=48, blocks=24),  # GB10
    "gfx90a": Chip(110, 64 << 10, Rates(1024, 0, 256, 256), 56, 9, 900, **_CDNA),  # MI250X, one of its two
    "gfx942": Chip(304, 64 << 10, Rates(2048, 1024, 256, 256), 56, 8, 900, **_CDNA),  # MI300X
    "gfx950": Chip(256, 160 << 10, Rates(4096, 0, 256, 128), 64, 13, 900, **_CDNA | {"granule": 1280}),  # MI355X
    "gfx1100": Chip(96, 64 << 10, Rates(512, 0, 256, 8), 32, 4, 900, **_RDNA),  # RX 7900 XTX
    "gfx1201": Chip(64, 64 << 10, Rates(1024, 0, 256, 8), 32, 3, 900, **_RDNA),  # RX 9070 XT
    "interpreter": Chip(1, 1 << 30, Rates(1, 1, 1, 1), 1, 1, 1),
}
NAMES = tuple(name for name in CHIPS if name != "interpreter")


class Board(NamedTuple):
    """A board with a chip, by its datasheet: rates in TFLOP/s, the bandwidth of its memory in GB/s."""

    name: str
    chip: str
    rates: Rates
    bandwidth: float
    source: str


BOARDS = (
    Board("H200", "sm_90", Rates(989.4, 494.7, 66.9, 66.9), 4800, "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
    Board("H100", "sm_90", Rates(989.4, 494.7, 66.9, 66.9), 3350, "NVIDIA H100 Tensor Core GPU datasheet, SXM"),
    Board("A100", "sm_80", Rates(312, 156, 19.5, 19.5), 2039, "NVIDIA A100 datasheet, SXM, 80 GB"),
    Board("B200", "sm_100", Rates(2250, 1100, 80, 40), 8000, "NVIDIA Blackwell Architecture Technical Brief, HGX B200"),
    Board("MI300X", "gfx942", Rates(1307.4, 653.7, 163.4, 163.4), 5300, "AMD Instinct MI300X data sheet"),
    Board("MI355X", "gfx950", Rates(2516.6, 0, 157.3, 78.6), 8000, "AMD Instinct MI355X data sheet"),
    Board("RTX 4090", "sm_89", Rates(165.2, 82.6, 82.6, 1.3), 1008, "NVIDIA Ada GPU Architecture, appendix A"),
    Board(
        "RTX 5090", "sm_120", Rates(209.5, 104.8, 104.8, 1.6), 1792, "NVIDIA RTX Blackwell GPU Architecture, appendix A"
    ),
)
# The chips, one of each generation, that the tests and bench/ledger/ compile every kernel for.
COMPILED = ("sm_90", "sm_100", "gfx942", "sm_120", "sm_89", "sm_80")


_assumed: contextvars.ContextVar[str | None] = contextvars.ContextVar("assumed", default=None)


@contextlib.contextmanager
def assuming(chip: str) -> Iterator[None]:
    """Within, in this thread: launchers decide as they would for this chip of CHIPS."""
    token = _assumed.set(chip)
    try:
        yield
    finally:
        _assumed.reset(token)


def chip_name() -> str:
    """Return the chip that kernels run on, as in CHIPS; "interpreter" in Triton's interpreter."""
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    if INTERPRETING:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return stand_in(f"sm_{target.arch}" if target.backend == "cuda" else target.arch.split(":")[0])


def stand_in(name: str) -> str:
    """Return the chip of the table that a chip is taken for: itself, or the most modest of its kind.

    Errors: RuntimeError for NVIDIA chips before compute capability 8.0, which Triton has no matrix products for."""
    if name in CHIPS:
        return name
    if name.startswith("gfx"):
        return "gfx1100" if name.startswith("gfx1") else "gfx90a"
    if int(name[3:]) < 80:
        raise RuntimeError(
            f"cnn_triton's kernels need an NVIDIA GPU of compute capability 8.0 or later, but got {name}"
        )
    return "sm_89"

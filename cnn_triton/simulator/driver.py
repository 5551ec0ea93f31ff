"""A driver of Triton's whose GPU is the simulator: kernels called on CPU tensors are compiled and simulated."""

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler.compiler import ASTSource

from .build import library
from .counters import Launch, Lines, counters_by_line
from .findings import Finding, Span
from .ptx import Unsupported
from .run import LIMIT, Checks, SimulationError, launch

__all__ = ["Simulation", "simulating"]

# Bytes of shared memory that a block may have, by compute capability.
_SHARED = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10,
           120: 99 << 10, 121: 99 << 10}  # fmt: skip
_PACKED = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I",
           "u64": "Q", "fp32": "f", "f32": "f", "fp64": "d", "fp16": "e"}  # fmt: skip


class Simulation:
    """What was launched within `simulating`, and what is wrong with it.

    launches: what each did
    findings: what is wrong with them
    counters: what they did, by line of Python; print it for a table
    """

    def __init__(self, chip: str, checks: Checks) -> None:
        self.chip, self.checks = chip, checks
        self.launches: list[Launch] = []
        self.reached: dict[int, Span] = {}

    def reaches(self, *tensors: torch.Tensor) -> None:
        """Let kernels access tensors that are no arguments, by addresses in memory, as in a grouped product."""
        for i, tensor in enumerate(tensors, len(self.reached)):
            self.reached[tensor.untyped_storage().data_ptr()] = _span(tensor, f"reached tensor {i}")

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the launches."""
        return [each for launched in self.launches for each in launched.findings]

    @property
    def counters(self) -> Lines:
        """What the launches did, by line of Python, the lines that lose most first."""
        return counters_by_line(self.launches)


class _Utils:
    """What Triton asks of a device: its properties, and to load a "binary", which is PTX here."""

    def __init__(self, shared: int) -> None:
        self.shared = shared

    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": self.shared, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536,
                "sm_clock_rate": 0, "mem_clock_rate": 0, "mem_bus_width": 0}  # fmt: skip

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple[Any, ...]:
        # Module, function, registers, spills, most threads; how many registers, only the assembler knows.
        return 1, binary.decode(), 255, 0, 1024


class _Driver:
    """The active driver within `simulating`."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.capability = int(simulation.chip[3:])
        self.utils = _Utils(_SHARED[self.capability])

    def launcher_cls(self, source: Any, metadata: Any) -> "_Launcher":
        return _Launcher(source, metadata)

    def get_current_device(self) -> str:
        return f"simulated {self.simulation.chip}"  # the key by which Triton keeps compiled kernels

    def set_current_device(self, device: Any) -> None:
        pass

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise RuntimeError(
            "an autotuned kernel times its configurations, and the simulator has no time: leave one of them"
        )


def _flat(signature: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """Yield the type and the value of each parameter, out of tuples in tuples, without constants."""
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _span(tensor: torch.Tensor, name: str) -> Span:
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    return Span(
        begin, begin + storage.nbytes(), f"{name} ({str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)})"
    )


class _Launcher:
    """Launches of one compiled kernel, by the driver that is active then: Triton keeps compiled kernels."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata
        self.signature = list(source.signature.values())
        self.descriptors = getattr(metadata, "tensordesc_meta", None) or None
        if getattr(metadata, "num_ctas", 1) != 1:
            raise Unsupported("clusters of blocks")

    def __call__(
        self, x: int, y: int, z: int, stream: Any, function: str, kernel_metadata: Any, launch_metadata: Any,
        enter: Any, leave: Any, *args: Any,
    ) -> None:  # fmt: skip
        simulation = triton.runtime.driver.active.simulation
        spans = {**simulation.reached}
        signature, values = self._spread(spans, args)
        parameters = []
        for i, (kind, value) in enumerate(_flat(signature, values)):
            if isinstance(value, torch.Tensor):
                spans.setdefault(value.untyped_storage().data_ptr(), _span(value, f"argument {i}"))
            parameters.append(_bytes_of(kind, value))
        scratch = [self._scratch(what, x * y * z, spans) for what in ("global", "profile")]
        parameters += [struct.pack("<Q", address) for address, _ in scratch]
        launched, stopped = launch(
            function, (x, y, z), parameters, list(spans.values()), self.metadata.shared, simulation.checks
        )
        simulation.launches.append(launched)
        if stopped:
            raise SimulationError("\n  ".join(map(str, launched.findings)))

    def _scratch(self, what: str, blocks: int, spans: dict[int, Span]) -> tuple[int, Any]:
        """Return the address of a launch's scratch memory, and what holds it."""
        size = getattr(self.metadata, f"{what}_scratch_size") * blocks
        alignment = getattr(self.metadata, f"{what}_scratch_align")
        if not size:
            return 0, None
        held = torch.full((size + alignment,), -1, dtype=torch.int8)
        address = -(-held.data_ptr() // alignment) * alignment
        spans[address] = Span(address, address + size, f"{what} scratch memory")
        return address, held

    def _spread(self, spans: dict[int, Span], args: Sequence[Any]) -> tuple[Any, Any]:
        """Return the signature and the arguments, with the host's tensor descriptors taken apart."""
        if not any(isinstance(kind, str) and kind.startswith("tensordesc") for kind in self.signature):
            return self.signature, args
        kinds: list[Any] = []
        values: list[Any] = []
        index = 0
        for kind, value in zip(self.signature, args, strict=True):
            if not (isinstance(kind, str) and kind.startswith("tensordesc")):
                kinds.append(kind)
                values.append(value)
                continue
            spans.setdefault(value.base.untyped_storage().data_ptr(), _span(value.base, f"descriptor {index}"))
            rank = len(value.shape)
            if self.descriptors is None:
                flags = [value.padding == "nan"]
                if hasattr(value, "round_f32_to_tf32"):  # from Triton 3.7 on
                    flags.append(value.round_f32_to_tf32)
                kinds += ["*u8", *["i64"] * (2 * rank), *["i1"] * len(flags)]
                values += [value.base, *value.shape, *value.strides, *flags]
            else:
                kinds.append("nvTmaDesc")
                values.append(_tensor_map(value, self.descriptors[index]))
            kinds += [*["i32"] * rank, *["i64"] * rank]
            values += [*value.shape, *value.strides]
            index += 1
        return kinds, values


def _bytes_of(kind: str, value: Any) -> bytes:
    """Return a parameter's bytes."""
    if kind == "nvTmaDesc":
        return bytes(value)
    if kind.startswith("*"):
        return struct.pack("<Q", value.data_ptr() if hasattr(value, "data_ptr") else value or 0)
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind not in _PACKED:
        raise Unsupported(f"an argument of type {kind}")
    return struct.pack(f"<{_PACKED[kind]}", value)


def _tensor_map(value: Any, meta: dict[str, Any]) -> bytes:
    """Return a tensor map as the engine has it (TensorMap in engine/engine.h); its dimensions go from the last."""
    size, rank = meta["elem_size"], len(value.shape)

    def five(items: Any, rest: int) -> list[int]:
        return [*items, *[rest] * 5][:5]

    strides = [size * stride for stride in reversed(value.strides[:-1])]
    raw = struct.pack(
        "<Q4Q5I5H5B5B", value.base.data_ptr(), *five(strides, 0)[:4], *five(reversed(value.shape), 0),
        *five(reversed(meta["block_size"]), 0), *five([1] * rank, 0), rank, meta["elem_type"], 0, meta["swizzle"],
        int(value.padding == "nan"),
    )  # fmt: skip
    return raw.ljust(128, b"\0")


@contextlib.contextmanager
def _compiling_to_ptx() -> Iterator[None]:
    """Within the context, PTX is the "binary", kept apart from others'. A kernel of the same text elsewhere is another:
    its PTX names its own file."""
    make, hashed = CUDABackend.make_cubin, ASTSource.hash

    def placed(source: Any) -> str:
        files = f"{source.fn.fn.__code__.co_filename}\n{triton.__file__}"
        return hashlib.sha256(f"{hashed(source)}\n{files}".encode()).hexdigest()

    CUDABackend.make_cubin = lambda self, source, metadata, options, capability: source.encode()
    ASTSource.hash = placed
    try:
        with triton.knobs.cache.scope():
            triton.knobs.cache.dir = str(Path(triton.knobs.cache.dir) / "simulator")
            yield
    finally:
        CUDABackend.make_cubin, ASTSource.hash = make, hashed


@contextlib.contextmanager
def simulating(
    chip: str, *, races: bool = False, blocks: bool = False, order: int = 0, limit: int = LIMIT, sample: int = 0
) -> Iterator[Simulation]:
    """Compile Triton's kernels for an NVIDIA chip and run them on the CPU within this context, on CPU tensors.

    chip:   "sm_80", "sm_89", "sm_90", "sm_100" or "sm_120"
    races:  find races in shared memory, and between threads and the copy engine
    blocks: find blocks of which one writes what another accesses
    order:  0 all warps at once, 1 warp by warp, 2 from the last; a result that changes with it shows a race
    limit:  operations that a block may take
    sample: run so many blocks of a launch at most, and count for all in proportion; results are those of these blocks

    Yields the Simulation. Errors: ValueError for another chip, RuntimeError without a C compiler or in Triton's
    interpreter; from launches Unsupported for an instruction that the simulator does not know, SimulationError for a
    kernel that cannot go on."""
    if chip not in {f"sm_{capability}" for capability in _SHARED}:
        raise ValueError(f"chip must be one of {', '.join(f'sm_{each}' for each in _SHARED)}, but got {chip!r}")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels are not compiled; unset it")
    library()
    held = triton.runtime.driver
    active = getattr(held, "_active", None)
    simulation = Simulation(chip, Checks(races, blocks, order, limit, sample))
    driver = _Driver(simulation)
    held.set_active(driver)
    try:
        with _compiling_to_ptx():
            yield simulation
    finally:
        held._active = active
        del driver.simulation  # which what was launched may outlive

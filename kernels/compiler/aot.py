"""Ahead-of-time compilation for any chip, without having one: registers, residency, the main loop's work.

A stub driver names the chip, and every launch compiles instead of running. Triton specialises the arguments itself, so
the code is the one that a user's GPU would get. Triton's interpreter must be off in the process.
"""

import contextlib
import functools
import hashlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from ..base.lang import INTERPRETING, triton
from ..core.chips import CHIPS
from ..core.op import ALWAYS, Op
from ..core.replay import deciding
from .figures import Code, Compiled, finish, usage


class _Driver:
    """A driver of Triton's that names a chip and launches nothing."""

    def __init__(self, chip: str, target: Any) -> None:
        self.chip = chip
        self.target = target

    def get_current_device(self) -> str:
        return self.chip  # the key by which Triton keeps compiled kernels

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_benchmarker(self) -> Any:
        raise RuntimeError("an autotuned kernel times its configurations, and nothing runs here: leave one of them")


@contextlib.contextmanager
def compiling_for(chip: str) -> Iterator[None]:
    """Have Triton compile for the chip within the context; a launch that would run fails."""
    with targeting(chip), deciding():
        yield


@contextlib.contextmanager
def targeting(chip: str) -> Iterator[None]:
    """Have Triton take the chip for this machine's within the context."""
    driver = triton.runtime.driver
    active = getattr(driver, "_active", None)
    driver.set_active(_Driver(chip, target(chip)))
    try:
        yield
    finally:
        driver._active = active


def target(chip: str) -> Any:
    """Return Triton's target for a chip by its name, "sm_90" or "gfx942" for example."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(chip[3:]), 32) if chip.startswith("sm_") else GPUTarget("hip", chip, CHIPS[chip].lanes)


def bound(kernel: Any, chip: str, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return (a launch's arguments by name, the specialization of its kernel, its other options)."""
    *_, bind = kernel.device_caches[chip]
    return bind(*args, **options)


def source(kernel: Any, chip: str, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Return a short hash of everything that determines a launch's code, except the compiler: the texts of the kernel
    and of the functions that it calls, its specialization, the chip. It is the same with every version of Triton."""
    _, specialization, rest = bound(kernel, chip, args, options)
    with _placeless():
        key = triton.runtime.jit.compute_cache_key({}, specialization, dict(sorted(rest.items())))
        return hashlib.sha256("\n".join((chip, kernel.cache_key, key)).encode()).hexdigest()[:16]


@functools.cache
def _texts(modules: tuple[str, ...]) -> dict[Any, str]:
    """Return hashes of our device functions' texts; Triton's own hash also has the line where a function begins."""
    callables = triton.runtime.jit.JITCallable
    every = {each for name in modules for each in vars(sys.modules[name]).values() if isinstance(each, callables)}
    kept = [(each, each.hash, each.starting_line_number) for each in every]
    try:
        for each in every:
            each.hash, each.starting_line_number = None, 0
        return {each: each.cache_key for each in every}
    finally:
        for each, key, line in kept:
            each.hash, each.starting_line_number = key, line


@contextlib.contextmanager
def _placeless() -> Iterator[None]:
    """Within the context, have our device functions hashed by their texts alone."""
    texts = _texts(tuple(name for name in sys.modules if name.startswith("cnn_triton.kernels.")))
    kept = [(each, each.hash) for each in texts]
    try:
        for each, key in texts.items():
            each.hash = key
        yield
    finally:
        for each, key in kept:
            each.hash = key


_codes: dict[str, Code] = {}  # all codes that this process has compiled, by source

Texts = dict[str, dict[str, Any]]
"""The texts of the compiler's stages, "ttir", "ttgir", "llir" and so on, by source."""


@contextlib.contextmanager
def recording(chip: str, compile: bool = True, texts: Texts | None = None) -> Iterator[list[Code]]:
    """Have launches compile for the chip within the context instead of running, each code once a process. The list gets
    the code of each launch, and its figures when the context ends.

    compile: False to leave the figures out; each launch takes a millisecond then
    texts:   gets the texts of the launches' codes
    """
    if INTERPRETING:
        raise RuntimeError("Triton's interpreter is on (TRITON_INTERPRET): compile in a process without it")
    launched: list[Code] = []
    new: dict[str, Compiled] = {}
    run = triton.runtime.jit.JITFunction.run

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = Code(kernel.__name__, chip, _shown(options), source(kernel, chip, args, options))
        wanted = code.source not in _codes or (texts is not None and code.source not in texts)
        if compile and wanted and code.source not in new:
            compiled = run(kernel, *args, grid=grid, warmup=True, **options)
            new[code.source] = usage(code, compiled)
            if texts is not None:
                texts[code.source] = dict(compiled.asm)
            kernel.device_caches[chip][0].clear()  # otherwise Triton keeps every text of every kernel
        sides = grid(bound(kernel, chip, args, options)[0]) if callable(grid) else grid
        launched.append(code._replace(grid=math.prod(sides)))

    triton.runtime.jit.JITFunction.run = record
    try:
        with compiling_for(chip), triton.knobs.compilation.scope():
            if texts is not None:  # the texts in Triton's cache may name files that have moved since
                triton.knobs.compilation.always_compile = True
            yield launched
    finally:
        triton.runtime.jit.JITFunction.run = run
        _codes.update((code.source, code) for code in finish(chip, list(new.values())))
        launched[:] = [_codes.get(code.source, code)._replace(grid=code.grid) for code in launched]


def compile_op(op: Op, args: tuple[Any, ...], chip: str, compile: bool = True) -> list[Code]:
    """Return the codes of a call of the operator, compiled for the chip. The tensors' values are not read."""
    with recording(chip, compile) as codes:
        op.launch(*args)
    return codes


def _shown(options: dict[str, Any]) -> str:
    """Return a launch's numbers and words, those in its records too, and its tile's box; without those of ALWAYS."""
    each = {}
    for name, value in options.items():
        each |= value._asdict() if hasattr(value, "_fields") else {name: value}
    shown = (k for k, v in each.items() if (isinstance(v, int | str) or (k == "box" and v)) and k not in ALWAYS)
    return " ".join(f"{k}={each[k]}" for k in shown)

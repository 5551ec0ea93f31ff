"""PTX written by hand, run in the simulator: a body for a buffer of integers, and one instruction on its operands.

    run("st.global.b32 [element], thread;").buffer  # 0, 1, 2 ...
    each("add.u32 {}, {}, {};", np.uint32, x, y)  # x + y

Registers that a body finds: thread, its number; out, the buffer's address, and element, that of the thread's integer;
base, the address of shared memory, and slot, that of four bytes for the thread. %r, %h, %d, %p, %f are its own.
"""

from typing import NamedTuple

import numpy as np

from cnn_triton.simulator.counters import Launch
from cnn_triton.simulator.findings import Span
from cnn_triton.simulator.run import Checks, launch

_HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
.reg .pred %p<50>;
.reg .b16 %h<50>;
.reg .b32 %r<200>, thread, base, slot, block;
.reg .b64 %d<50>, out, element, wide;
"""
_PRELUDE = """mov.u32 thread, %tid.x;
ld.param.b64 out, [at0];
mul.wide.u32 wide, thread, 4;
add.s64 element, out, wide;
mov.b32 base, memory;
shl.b32 slot, thread, 2;
add.s32 slot, slot, base;
"""
_NAMES = {1: ("%p", "pred"), 2: ("%h", "b16"), 4: ("%r", "b32"), 8: ("%d", "b64")}


class Ran(NamedTuple):
    """What a body left in its buffer, what the launch did, and whether it could not go on."""

    buffer: np.ndarray
    launch: Launch
    stopped: bool

    @property
    def kinds(self):
        return [each.kind for each in self.launch.findings]


def text_of(body, threads=64, buffers=1):
    """A module with this body for its kernel."""
    parameters = ",\n".join(f".param .u64 .ptr .global .align 16 at{i}" for i in range(buffers))
    return f"{_HEAD.format(parameters=parameters, threads=threads)}{body}\nret;\n}}\n"


def _launch(text, arrays, blocks, shared, checks):
    spans = [Span(x.ctypes.data, x.ctypes.data + x.nbytes, f"buffer {i}") for i, x in enumerate(arrays)]
    addresses = [x.ctypes.data.to_bytes(8, "little") for x in arrays]
    return launch(text, (blocks, 1, 1), addresses, spans, shared, checks)


def aligned(count, dtype=np.int32, fill=0):
    """A buffer from an address that is a multiple of 128."""
    held = np.zeros(count * np.dtype(dtype).itemsize + 128, np.uint8)
    found = held[-held.ctypes.data % 128 :][: count * np.dtype(dtype).itemsize].view(dtype)
    found[:] = fill
    return found


def run(body, *, buffer=None, threads=64, shared=1024, blocks=1, races=True, limit=10**5, **checks):
    """Run a body on a buffer, zeros for each thread unless given."""
    buffer = aligned(threads * blocks) if buffer is None else buffer
    ran = _launch(
        text_of(_PRELUDE + body, threads), [buffer], blocks, shared, Checks(races=races, limit=limit, **checks)
    )
    return Ran(buffer, *ran)


def _size(dtype):
    return np.dtype(dtype).itemsize


def each(instruction, result, *operands, guarded=False):
    """An instruction's result, of this dtype (bool: a predicate), for each of the operands' elements. guarded: done by
    threads with an odd number alone, by their predicate; those of the others have 0."""
    count, threads = len(operands[0]), 128
    blocks = -(-count // threads)
    inputs = [np.resize(x, blocks * threads) for x in operands]
    arrays = [aligned(blocks * threads, np.uint16 if result is bool else result)]
    arrays += [x.astype(np.uint16) if x.dtype == bool else np.ascontiguousarray(x) for x in inputs]
    lines = ["mov.u32 thread, %tid.x;", "mov.u32 block, %ctaid.x;", f"mad.lo.u32 thread, block, {threads}, thread;"]
    names = [f"{_NAMES[_size(x)][0]}{i}" for i, x in enumerate([result, *(x.dtype for x in operands)])]
    for i in range(len(arrays)):
        lines.append(f"ld.param.b64 %d{10 + i}, [at{i}];")
        lines.append(f"mul.wide.u32 wide, thread, {arrays[i].itemsize}; add.s64 %d{10 + i}, %d{10 + i}, wide;")
    for i, x in enumerate(inputs, 1):
        register = f"%h{20 + i}" if x.dtype == bool else names[i]
        lines.append(f"ld.global.b{8 * arrays[i].itemsize} {register}, [%d{10 + i}];")
        if x.dtype == bool:
            lines.append(f"setp.ne.b16 {names[i]}, {register}, 0;")
    guard, kind = "", _NAMES[_size(result)][1]
    if guarded:
        guard = "@%p9 "
        lines.append(f"and.b32 %r9, thread, 1; setp.ne.b32 %p9, %r9, 0; mov.{kind} {names[0]}, 0;")
    lines.append(guard + instruction.format(*names))
    lines.append(f"selp.b16 %h20, 1, 0, {names[0]};" if result is bool else "")
    register = "%h20" if result is bool else names[0]
    lines.append(f"st.global.b{8 * arrays[0].itemsize} [%d10], {register};")
    launched, stopped = _launch(text_of("\n".join(lines), threads, len(arrays)), arrays, blocks, 0, Checks())
    assert not stopped
    assert not launched.findings
    return arrays[0][:count].astype(bool) if result is bool else arrays[0][:count]

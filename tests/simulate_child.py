"""Run by test_simulator_kernels.py with a version of Triton, in a process without the interpreter: runs kernels and an
operator in the simulator, checks their results, and prints what was executed and found as JSON.

python simulate_child.py CHIP VERSION, where VERSION is that of Triton, or "pinned".
"""

import json
import math
import sys

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

import tutorials as kernels
from cnn_triton.kernels.matrix.conv2d import CONV2D
from cnn_triton.simulator import simulating


def products():
    """A product by pointers, then one by the host's descriptors."""
    m, n, k = 70, 40, 48
    a, b, c = torch.randn(m, k).half(), torch.randn(n, k).half(), torch.full((2, m, n), math.nan)
    kernels.matmul_kernel[(4,)](a, b, c[0], m, n, k, k, 1, 1, k, n, M=64, N=32, K=32)
    left, right, to = (TensorDescriptor.from_tensor(x, [rows, 32]) for x, rows in ((a, 64), (b, 32), (c[1], 64)))
    kernels.tma_kernel[(2, 2)](left, right, to, k, M=64, N=32, K=32)
    torch.testing.assert_close(c.double(), (a.double() @ b.double().T).expand(2, m, n), rtol=1e-5, atol=1e-4)


def convolution():
    """The library's."""
    x, w, b = torch.randn(2, 32, 9, 7), torch.randn(32, 32, 3, 3) / 17, torch.randn(32)
    x, w, b = x.bfloat16().to(memory_format=torch.channels_last), w.bfloat16(), b.bfloat16()
    y = CONV2D.launch(x, w, b, None, None, None, (1, 1), (1, 1, 1, 1), (1, 1), 1, "zeros", "relu")
    expected = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), padding=1).relu()
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)


def main():
    chip, version = sys.argv[1:]
    assert version in ("pinned", triton.__version__), f"this is Triton {triton.__version__}, not {version}"
    torch.manual_seed(0)
    with simulating(chip, races=True) as run:
        products()
        convolution()
    for launch in run.launches:
        found = [str(each) for each in launch.findings if not each.is_note]
        print(json.dumps({"kernel": launch.kernel, "opcodes": sorted(launch.instructions), "found": found}))


if __name__ == "__main__":
    main()

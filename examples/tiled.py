"""Step 2, an implicit matrix product: a tile of pixels times a tile of outputs, by matrix instructions.

A convolution is the product of a matrix of windows, a row for each pixel, with the weights. The windows are never
written out: each step of the sum gathers what it needs.

    for each tile of M pixels x N outputs (a program):
        for each tap (r, s), and K channels at a time:
            A = x at the tile's pixels, shifted by the tap     [M, K]
            B = the tap's weights                              [K, N]
            sum += A · B
        store the tile
    then PyTorch adds the bias, and takes the ReLU

An element of A serves N products, one of B serves M: far fewer loads, and a tensor core for the arithmetic.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def tiled_kernel(
    x, w, y, height, width, pixels, C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, OUTPUTS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """y[pixel, k] for M pixels and N outputs."""
    across: tl.constexpr = (OUTPUTS + N - 1) // N
    pixel = tl.program_id(0) // across * M + tl.arange(0, M)
    k = tl.program_id(0) % across * N + tl.arange(0, N)
    n, p, q = pixel // (height * width), pixel // width % height, pixel % width
    acc = tl.zeros([M, N], tl.float32)
    for step in range(R * S * ((C + K - 1) // K)):
        tap, c = step % (R * S), step // (R * S) * K + tl.arange(0, K)
        h, v = p + tap // S - R // 2, q + tap % S - S // 2
        inside = (pixel < pixels) & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        at = ((n * height + h) * width + v) * C
        a = tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        of = (k * R * S + tap) * C
        b = tl.load(w + of[None, :] + c[:, None], mask=(c < C)[:, None] & (k < OUTPUTS)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    to = pixel[:, None] * OUTPUTS + k[None, :]
    tl.store(y + to, acc.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None] & (k < OUTPUTS)[None, :])


def conv2d_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(conv2d(input, weight, bias, padding="same")), for odd windows; images are channels_last."""
    (n, c, height, width), (k, _, r, s) = input.shape, weight.shape
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (input, weight))
    y = torch.empty(n, k, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, (m, outputs, step) = n * height * width, (128, 64, 32)
    programs = triton.cdiv(pixels, m) * triton.cdiv(k, outputs)
    tiled_kernel[(programs,)](
        x, w, y, height, width, pixels, c, r, s, k, m, outputs, step, num_warps=4, num_stages=3
    )  # fmt: skip
    return torch.relu(y + bias[:, None, None])

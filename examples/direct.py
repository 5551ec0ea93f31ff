"""Step 1, a direct convolution: each thread sums up one output value.

    y[n, p, q, k] = relu(b[k] + Σ_{r,s,c} x[n, p + r − pad, q + s − pad, c] · w[k, r, s, c])

    for each output k, and each block of pixels (a program):
        for each tap (r, s) and channel c:
            sum += x at the block's pixels, shifted by the tap · one weight
        store the block
    then PyTorch adds the bias, and takes the ReLU

Every product needs a load of its own, and no matrix instruction takes part: `cnn-triton inspect` on this file says so.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def direct_kernel(
    x, w, y, height, width, pixels, C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y[pixel, k] for a BLOCK of pixels and one output k."""
    k = tl.program_id(0) % OUTPUTS
    pixel = tl.program_id(0) // OUTPUTS * BLOCK + tl.arange(0, BLOCK)
    n, p, q = pixel // (height * width), pixel // width % height, pixel % width
    acc = tl.zeros([BLOCK], tl.float32)
    for tap in range(R * S):
        h, v = p + tap // S - R // 2, q + tap % S - S // 2
        inside = (pixel < pixels) & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        at = ((n * height + h) * width + v) * C
        for c in range(C):
            weight = tl.load(w + (k * R * S + tap) * C + c)
            acc += tl.load(x + at + c, mask=inside, other=0.0).to(tl.float32) * weight.to(tl.float32)
    tl.store(y + pixel * OUTPUTS + k, acc.to(y.dtype.element_ty), mask=pixel < pixels)


def conv2d_relu(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(conv2d(input, weight, bias, padding="same")), for odd windows; images are channels_last."""
    (n, c, height, width), (k, _, r, s) = input.shape, weight.shape
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (input, weight))
    y = torch.empty(n, k, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, block = n * height * width, 128
    direct_kernel[(triton.cdiv(pixels, block) * k,)](x, w, y, height, width, pixels, c, r, s, k, block)
    return torch.relu(y + bias[:, None, None])

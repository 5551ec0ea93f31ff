"""Kernels of the kinds that Triton is learned by, each as small as shows what the compiler makes of it: elementwise,
rows, products by pointers and by TMA, persistent, specialised by warp, grouped, attention, random numbers."""

import triton
import triton.language as tl


@triton.jit
def add_kernel(x, y, z, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(z + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def convert_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n).to(y.dtype.element_ty), i < n)


@triton.jit
def softmax_kernel(x, y, rows, columns, stride, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Rows in turn, the next ones loaded ahead."""
    j = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        value = tl.load(x + row * stride + j, j < columns, other=-float("inf"))
        power = tl.exp(value - tl.max(value, 0))
        tl.store(y + row * stride + j, power / tl.sum(power, 0), j < columns)


@triton.jit
def dropout_kernel(x, y, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n)
    tl.store(y + i, tl.where(tl.rand(seed, i) > p, value / (1 - p), 0.0), i < n)


@triton.jit
def layer_norm_kernel(x, w, b, y, mean, rstd, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, columns, BLOCK):
        j = at + tl.arange(0, BLOCK)
        total += tl.load(x + row * columns + j, j < columns, other=0.0).to(tl.float32)
    m = tl.sum(total, 0) / columns
    square = tl.zeros([BLOCK], tl.float32)
    for at in range(0, columns, BLOCK):
        j = at + tl.arange(0, BLOCK)
        d = tl.load(x + row * columns + j, j < columns, other=0.0).to(tl.float32) - m
        square += tl.where(j < columns, d * d, 0.0)
    r = tl.rsqrt(tl.sum(square, 0) / columns + eps)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)
    for at in range(0, columns, BLOCK):
        j = at + tl.arange(0, BLOCK)
        value = tl.load(x + row * columns + j, j < columns, other=0.0).to(tl.float32)
        weight, bias = tl.load(w + j, j < columns), tl.load(b + j, j < columns)
        tl.store(y + row * columns + j, (value - m) * r * weight + bias, j < columns)


@triton.jit
def layer_norm_grad_kernel(x, w, dy, dx, dw, db, locks, mean, rstd, columns, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """dx of a row; its parts of dw and db are added to those of a group of rows, one program at a time."""
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    here = j < columns
    m, r = tl.load(mean + row), tl.load(rstd + row)
    value = tl.load(x + row * columns + j, here, other=0.0).to(tl.float32)
    grad = tl.load(dy + row * columns + j, here, other=0.0).to(tl.float32)
    normal = tl.where(here, (value - m) * r, 0.0)
    weighted = tl.where(here, grad * tl.load(w + j, here, other=0.0), 0.0)
    c, d = tl.sum(normal * weighted, 0) / columns, tl.sum(weighted, 0) / columns
    tl.store(dx + row * columns + j, (weighted - normal * c - d) * r, here)
    group = row % GROUPS
    while tl.atomic_cas(locks + group, 0, 1) == 1:
        pass
    first = tl.load(locks + GROUPS + group) == 0
    at = group * columns + j
    dw_part, db_part = grad * normal, grad
    if first:
        tl.atomic_xchg(locks + GROUPS + group, 1)
    else:
        dw_part += tl.load(dw + at, here)
        db_part += tl.load(db + at, here)
    tl.store(dw + at, dw_part, here)
    tl.store(db + at, db_part, here)
    tl.debug_barrier()
    tl.atomic_xchg(locks + group, 0)


@triton.jit
def sum_rows_kernel(x, y, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for at in range(0, rows, ROWS):
        i = at + tl.arange(0, ROWS)
        total += tl.load(x + i[:, None] * columns + j, (i[:, None] < rows) & (j < columns), other=0.0)
    tl.store(y + j, tl.sum(total, 0), j < columns)


@triton.jit
def tile_of(t, m, n, M: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of the t-th tile, in an order that keeps GROUP rows of tiles together."""
    rows, columns = tl.cdiv(m, M), tl.cdiv(n, N)
    first = t // (GROUP * columns) * GROUP
    height = min(rows - first, GROUP)
    return first + t % (GROUP * columns) % height, t % (GROUP * columns) // height


@triton.jit
def matmul_tile(a, b, c, i, j, m, n, k, am, ak, bk, bn, cm, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c[i, j] = a[i] b[j], one tile."""
    rows, columns, inner = i * M + tl.arange(0, M), j * N + tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for at in range(0, k, K):
        x = inner + at
        left = tl.load(a + rows[:, None] * am + x * ak, (rows[:, None] < m) & (x < k), other=0.0)
        right = tl.load(b + x[:, None] * bk + columns * bn, (x[:, None] < k) & (columns < n), other=0.0)
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * cm + columns, total, (rows[:, None] < m) & (columns < n))


@triton.jit
def matmul_kernel(a, b, c, m, n, k, am, ak, bk, bn, cm, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j = tile_of(tl.program_id(0), m, n, M, N, 2)
    matmul_tile(a, b, c, i, j, m, n, k, am, ak, bk, bn, cm, M, N, K)


@triton.jit
def persistent_kernel(a, b, c, m, n, k, am, ak, bk, bn, cm, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    for t in tl.range(tl.program_id(0), tl.cdiv(m, M) * tl.cdiv(n, N), tl.num_programs(0), flatten=True):
        i, j = tile_of(t, m, n, M, N, 2)
        matmul_tile(a, b, c, i, j, m, n, k, am, ak, bk, bn, cm, M, N, K)


@triton.jit
def grouped_kernel(problems, count, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, DTYPE: tl.constexpr):
    """Products of several sizes by one launch. A problem's row: addresses of a, b, c, then m, n, k."""
    t, seen = tl.program_id(0), 0
    for g in range(count):
        row = problems + g * 6
        m, n, k = tl.load(row + 3).to(tl.int32), tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32)
        tiles = tl.cdiv(m, M) * tl.cdiv(n, N)
        a, b = tl.load(row).to(tl.pointer_type(DTYPE)), tl.load(row + 1).to(tl.pointer_type(DTYPE))
        c = tl.load(row + 2).to(tl.pointer_type(tl.float32))
        while t < seen + tiles:
            i, j = tile_of(t - seen, m, n, M, N, 2)
            matmul_tile(a, b, c, i, j, m, n, k, k, 1, n, 1, n, M, N, K)
            t += tl.num_programs(0)
        seen += tiles


@triton.jit
def tma_kernel(a, b, c, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c = a bᵀ, by the host's descriptors."""
    i, j = tl.program_id(0) * M, tl.program_id(1) * N
    total = tl.zeros([M, N], tl.float32)
    for at in range(0, k, K):
        total = tl.dot(a.load([i, at]), b.load([j, at]).T, total)
    c.store([i, j], total.to(c.dtype))


@triton.jit
def tma_persistent_kernel(
    a, b, c, m, n, k,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SPECIALIZE: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """c = a bᵀ, by descriptors that the kernel makes; producers and consumers may be warps of their own. Triton has
    such warps in flattened loops on some chips, in others on others."""
    left = tl.make_tensor_descriptor(a, [m, k], [k, 1], [M, K])
    right = tl.make_tensor_descriptor(b, [n, k], [k, 1], [N, K])
    to = tl.make_tensor_descriptor(c, [m, n], [n, 1], [M, N])
    tiles = tl.cdiv(m, M) * tl.cdiv(n, N)
    for t in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN, warp_specialize=SPECIALIZE):
        i, j = tile_of(t, m, n, M, N, 2)
        total = tl.zeros([M, N], tl.float32)
        for at in range(0, k, K):
            total = tl.dot(left.load([i * M, at]), right.load([j * N, at]).T, total)
        to.store([i * M, j * N], total)


@triton.jit
def attention_kernel(
    q, k, v, o, lse, n, scale, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr
):
    """o = softmax(q kᵀ · scale) v, and the logarithm to base 2 of each row's sum; scale has a factor of log2(e)."""
    base = tl.program_id(1) * n
    i, d = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    query = tl.load(q + (base + i[:, None]) * D + d, i[:, None] < n, other=0.0)
    most, total = tl.full([M], -float("inf"), tl.float32), tl.zeros([M], tl.float32)
    result = tl.zeros([M, D], tl.float32)
    end = min(n, (tl.program_id(0) + 1) * M) if CAUSAL else n
    for at in range(0, end, N):
        j = at + tl.arange(0, N)
        here = j[None, :] < n
        if CAUSAL:
            here &= i[:, None] >= j[None, :]
        key = tl.load(k + (base + j[None, :]) * D + d[:, None], j[None, :] < n, other=0.0)
        value = tl.load(v + (base + j[:, None]) * D + d, j[:, None] < n, other=0.0)
        score = tl.where(here, tl.dot(query, key) * scale, -float("inf"))
        larger = tl.maximum(most, tl.max(score, 1))
        p = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(p, 1)
        result = tl.dot(p.to(value.dtype), value, result * shrink[:, None])
        most = larger
    tl.store(o + (base + i[:, None]) * D + d, result / total[:, None], i[:, None] < n)
    tl.store(lse + base + i, most + tl.log2(total), i < n)


@triton.jit
def attention_kv_grad_kernel(
    q, k, v, o, do, lse, dk, dv, n, scale, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr
):
    """Gradients of N keys and values, over all queries."""
    base = tl.program_id(1) * n
    j, d = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, D)
    key = tl.load(k + (base + j[:, None]) * D + d, j[:, None] < n, other=0.0)
    value = tl.load(v + (base + j[:, None]) * D + d, j[:, None] < n, other=0.0)
    key_grad, value_grad = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    for at in range(tl.program_id(0) * N // M * M if CAUSAL else 0, n, M):
        i = at + tl.arange(0, M)
        rows = (base + i[:, None]) * D + d
        query = tl.load(q + rows, i[:, None] < n, other=0.0)
        grad = tl.load(do + rows, i[:, None] < n, other=0.0)
        delta = tl.sum(grad.to(tl.float32) * tl.load(o + rows, i[:, None] < n, other=0.0), 1)
        here = i[None, :] < n
        if CAUSAL:
            here &= i[None, :] >= j[:, None]
        score = tl.dot(key, query.T) * scale - tl.load(lse + base + i, i < n, other=0.0)[None, :]
        p = tl.where(here, tl.exp2(score), 0.0)
        value_grad = tl.dot(p.to(grad.dtype), grad, value_grad)
        ds = p * (tl.dot(value, grad.T) - delta[None, :])
        key_grad = tl.dot(ds.to(query.dtype), query, key_grad)
    at = (base + j[:, None]) * D + d
    tl.store(dk + at, key_grad * (scale * 0.6931471805599453), j[:, None] < n)
    tl.store(dv + at, value_grad, j[:, None] < n)


@triton.jit
def attention_q_grad_kernel(
    q, k, v, o, do, lse, dq, n, scale, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr
):
    """Gradient of M queries, over all keys."""
    base = tl.program_id(1) * n
    i, d = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    rows = (base + i[:, None]) * D + d
    query = tl.load(q + rows, i[:, None] < n, other=0.0)
    grad = tl.load(do + rows, i[:, None] < n, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * tl.load(o + rows, i[:, None] < n, other=0.0), 1)
    sums = tl.load(lse + base + i, i < n, other=0.0)
    query_grad = tl.zeros([M, D], tl.float32)
    for at in range(0, min(n, (tl.program_id(0) + 1) * M) if CAUSAL else n, N):
        j = at + tl.arange(0, N)
        key = tl.load(k + (base + j[:, None]) * D + d, j[:, None] < n, other=0.0)
        value = tl.load(v + (base + j[:, None]) * D + d, j[:, None] < n, other=0.0)
        here = j[None, :] < n
        if CAUSAL:
            here &= i[:, None] >= j[None, :]
        p = tl.where(here, tl.exp2(tl.dot(query, key.T) * scale - sums[:, None]), 0.0)
        ds = p * (tl.dot(grad, value.T) - delta[:, None])
        query_grad = tl.dot(ds.to(key.dtype), key, query_grad)
    tl.store(dq + rows, query_grad * (scale * 0.6931471805599453), i[:, None] < n)

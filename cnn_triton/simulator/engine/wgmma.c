/* wgmma: products of four warps with operands in shared memory, computed when they are waited for, on what shared memory
 * holds then. */
#include "engine.h"

/* Where a 16-byte unit lies by the swizzle of 32, 64 or 128 bytes (mode 1, 2, 3), or none (0). */
u32 swizzled(u32 address, int mode) { return mode ? address ^ ((address >> 7 & ((1u << mode) - 1)) << 4) : address; }

/* The address of an operand's element (row, k) by its descriptor's numbers. Rows of eight form a matrix of 8 rows x 16 bytes,
 * or, swizzled, x 32, 64 or 128. transposed: rows are contiguous instead of k. */
u32 matrix_address(u32 start, u32 leading, u32 stride, int mode, int bytes, int transposed, int row, int k) {
  u32 span = 16u << mode, at;
  if (!transposed) {
    u32 byte = k * bytes;
    at = row / 8 * stride + row % 8 * span + (mode ? byte : byte / 16 * leading + byte % 16);
  } else {
    u32 byte = row * bytes;
    at = byte % span + k % 8 * span + (mode ? byte / span * leading + k / 8 * stride : byte / 16 * stride + k / 8 * leading);
  }
  return swizzled(start + at, mode);
}
/* An operand in shared memory: address, leading and stride offsets in units of 16 bytes, swizzle. */
static u32 address_in(u64 description, int bytes, int transposed, int row, int k) {
  static const int modes[] = {0, 3, 2, 1};
  return matrix_address(
    (description & 0x3fff) << 4, (description >> 16 & 0x3fff) << 4, (description >> 32 & 0x3fff) << 4, modes[description >> 62],
    bytes, transposed, row, k);
}
/* Reads an operand [rows, k], of a product issued at this time by these warps, into `to` [k, rows] if by_k, else [rows, k];
 * NULL: notes that it will be read. */
static void read_operand(
    Engine *c, const Op *op, u64 since, u64 description, int transposed, int rows, f32 *to, int by_k, u32 warps) {
  const s32 *a = c->pool + op->arguments;
  int kind = a[0], k = a[2], bytes = element_bytes(kind), per = 16 / bytes;
  if (description >> 49 & 7) fail(c, UNSUPPORTED, op->line, 0);
  for (int row = 0; row < rows; row += transposed ? per : 1) for (int x = 0; x < k; x += transposed ? 1 : per) {
    u32 address = address_in(description, bytes, transposed, row, x);
    u8 *p = shared(c, op->line, 0, address, 16), poison[16];
    if (!p) p = memset(poison, 255, 16);
    for (int w = 0; w < c->warps; w++)
      if (warps >> w & 1) touch(c, op->line, w, w, c->clock[w][w], address, 16, to ? ASYNC_READ : WILL_READ);
    if (to) kept_since(c, op->line, 32 * __builtin_ctz(warps), address, 16, since);
    for (int e = 0; to && e < per; e++) {
      int r = transposed ? row + e : row, q = transposed ? x : x + e;
      to[by_k ? q * rows + r : r * k + q] = element(kind, p, e);
    }
  }
}
static void compute(Engine *c, Wgmma *e, u32 warps) {
  const Op *op = e->op;
  const s32 *a = c->pool + op->arguments;
  int kind = a[0], columns = a[1], k = a[2], in_registers = a[5], per = 4 / element_bytes(kind);
  const s32 *sums = a + (in_registers ? 12 : 9);
  static f32 A[64 * 32], B[256 * 32], row[256];
  read_operand(c, op, e->since, e->b, a[4], columns, B, 1, warps);
  if (!in_registers) read_operand(c, op, e->since, e->a, a[3], 64, A, 0, warps);
  for (int w = 0; w < c->warps; w++) if (warps >> w & 1) {
    f32 *mine = A + w % 4 * 16 * k;
    for (int i = 0; in_registers && i < 32; i++) for (int j = 0; j < 4; j++) {
      u32 *held = e->snapshot + j * c->threads + 32 * w + i;
      f32 *to = mine + (i / 4 + 8 * (j & 1)) * k + i % 4 * per + 4 * per * (j / 2);
      for (int x = 0; x < per; x++) to[x] = element(kind, held, x);
    }
    for (int r = 0; r < 16; r++) {
      #define SUM(n) REGISTER(f32, sums[(n) / 8 * 4 + r / 8 * 2 + ((n) & 1)])[32 * w + r % 8 * 4 + (n) % 8 / 2]
      for (int n = 0; n < columns; n++) row[n] = e->adds ? SUM(n) : 0;
      for (int x = 0; x < k; x++) {
        f32 value = mine[r * k + x];
        const f32 *b = B + x * columns;
        for (int n = 0; n < columns; n++) row[n] += value * b[n];
      }
      for (int n = 0; n < columns; n++) SUM(n) = row[n];
    }
  }
}
/* a: kind, columns, k, A transposed, B transposed, A in registers, register of "adds", B's descriptor, A's or 4 registers,
 * sums. Warps with the same operands are one entry. */
HANDLER(wgmma) {
  u32 warps = 0;
  EACH_WARP(w, active) { whole(c, op, active, w); warps |= 1u << w; }
  while (warps) {
    int w = __builtin_ctz(warps), in_registers = a[5];
    u64 b = REG(u64, 7)[32 * w], first = in_registers ? 0 : REG(u64, 8)[32 * w];
    Wgmma e = {op, 0, first, b, c->now, {0}, REG(u8, 6)[32 * w], NULL};
    for (int v = w; v < c->warps; v++) {
      int same = REG(u64, 7)[32 * v] == b && REG(u8, 6)[32 * v] == e.adds;
      if (!(warps >> v & 1) || !same || !(in_registers || v / 4 == w / 4 || REG(u64, 8)[32 * v] == first)) continue;
      e.warps |= 1u << v, e.group[v] = c->wgmma_group[v];
      for (int i = 0; i < 32; i++)
        if (REG(u64, 7)[32 * v + i] != b || (!in_registers && REG(u64, 8)[32 * v + i] != first))
          report(c, DIVERGENT, op->line, 32 * v + i, REG(u64, 7)[32 * v + i], 1);
    }
    if (c->flags & CHECK_RACES) {
      read_operand(c, op, 0, b, a[4], a[1], NULL, 1, e.warps);
      if (!in_registers) read_operand(c, op, 0, first, a[3], 64, NULL, 0, e.warps);
    }
    if (in_registers) {
      e.snapshot = malloc(16 * c->threads);
      for (int j = 0; j < 4; j++) memcpy(e.snapshot + j * c->threads, REG(u32, 8 + j), 4 * c->threads);
    }
    GROW(c->wgmmas, c->wgmma_count, c->wgmma_room);
    c->wgmmas[c->wgmma_count++] = e;
    warps &= ~e.warps;
  }
}
HANDLER(wgmma_commit) { EACH_WARP(w, active) c->wgmma_group[w]++; (void)op, (void)a; }
/* left: groups that may be under way; -1: none, committed or not */
static void finish(Engine *c, u32 warps, s64 left) {
  int kept = 0;
  for (int k = 0; k < c->wgmma_count; k++) {
    Wgmma *e = &c->wgmmas[k];
    u32 now = 0;
    for (int w = 0; w < c->warps; w++)
      if ((e->warps & warps) >> w & 1 && (left < 0 || (s64)e->group[w] <= (s64)c->wgmma_group[w] - 1 - left)) now |= 1u << w;
    if (now) compute(c, e, now);
    e->warps &= ~now;
    if (e->warps) c->wgmmas[kept++] = *e; else free(e->snapshot);
  }
  c->wgmma_count = kept;
}
HANDLER(wgmma_wait) {
  u32 warps = 0;
  EACH_WARP(w, active) warps |= 1u << w;
  finish(c, warps, a[0]);
  (void)op;
}
/* Before an operation that touches registers which a wgmma under way writes: the assembler would wait, so it ends here. */
void touch_accumulator(Engine *c, const Op *op, const s32 *a) {
  for (int k = 0; k < c->wgmma_count; k++) {
    const s32 *of = c->pool + c->wgmmas[k].op->arguments;
    int first = of[5] ? 12 : 9, end = first + of[1] / 2;
    for (int i = 0; i < op->count; i++) for (int j = first; j < end; j++) if (a[i] == of[j]) {
      report(c, EARLY_ACCUMULATOR, op->line, 0, 0, c->wgmmas[k].op->line);
      finish(c, ~0u, -1);
      return;
    }
  }
}

/* Global and shared memory: what may be accessed, loads, stores, atomics, and how many sectors or wavefronts they take. */
#include "engine.h"

void report(Engine *c, int kind, int line, int thread, u64 address, u64 extra) {
  for (int i = 0; i < c->report_count; i++)
    if (c->reports[i].kind == kind && c->reports[i].line == line) { c->reports[i].count++; return; }
  if (c->report_count < MAX_REPORTS) c->reports[c->report_count++] = (Report){kind, line, thread, c->block, address, extra, 1};
}
void fail(Engine *c, int error, int line, int thread) {
  if (c->error) return;
  c->error = error, c->error_line = line, c->error_thread = thread, c->error_block = c->block;
}

static int range_of(Engine *c, u64 address, u64 bytes) {
  for (int k = -1; k < c->range_count; k++) {
    int i = k < 0 ? c->hint : k; /* mostly the one of the last access */
    if (i < c->range_count && address >= c->ranges[i].from && address + bytes <= c->ranges[i].to) return c->hint = i;
  }
  return -1;
}
/* Two blocks that touch the same bytes, one of them to write. */
static void cross(Engine *c, int range, u64 address, u64 bytes, int writes, int line, int thread) {
  u32 *by = c->cross + 2 * (c->cross_at[range] + (address - c->ranges[range].from)), me = c->block + 1;
  for (u64 i = 0; i < bytes; i++, by += 2) {
    if (by[0] && by[0] != me) report(c, CROSS_BLOCK, line, thread, address + i, writes ? 2 : 1);
    if (writes && by[1] && by[1] != me) report(c, CROSS_BLOCK, line, thread, address + i, 3);
    if (writes) by[0] = me;
    else by[1] = by[1] && by[1] != me ? ~0u : me;
  }
}
/* Where an access to global memory goes; NULL and a report if it may not. */
u8 *global(Engine *c, int line, int thread, u64 address, u64 bytes, int how) {
  int range = range_of(c, address, bytes);
  if (range < 0) {
    report(c, how == LOADS ? LOAD_OUTSIDE : STORE_OUTSIDE, line, thread, address, bytes);
    return NULL;
  }
  if ((c->flags & CHECK_CROSS) && how != COMBINES) cross(c, range, address, bytes, how == STORES, line, thread);
  return (u8 *)address;
}
u8 *shared(Engine *c, int line, int thread, u32 address, u32 bytes) {
  if (address >= SHARED_BASE && address - SHARED_BASE + (u64)bytes <= (u64)c->shared) return c->smem + address;
  report(c, SHARED_OUTSIDE, line, thread, address, bytes);
  return NULL;
}

/* Counts of a warp's request: sectors of 32 bytes; wavefronts, in which each of 32 banks gives one word of 4 bytes, with
 * half a warp at a time for 8 bytes, a quarter for 16. */
void count(Engine *c, const Op *op, s64 parts, s64 fewest, s64 bytes) {
  s64 *to = c->traffic + 3 * (op - c->ops);
  to[0] += parts, to[1] += fewest, to[2] += bytes;
}
/* Adds a number to a list without repetition; mostly it is the largest. */
static int add_new(u64 *list, int n, u64 x) {
  if (!n || x > list[n - 1]) { list[n] = x; return n + 1; }
  for (int j = n - 1; j >= 0; j--) if (list[j] == x) return n;
  list[n] = list[n - 1], list[n - 1] = x; /* the largest stays last */
  return n + 1;
}
/* A row of a box. */
void count_row(Engine *c, const Op *op, u64 address, u64 bytes) {
  int range = range_of(c, address, bytes), n = ((address + bytes - 1) >> 5) - (address >> 5) + 1;
  count(c, op, n, (bytes + 31) / 32, bytes);
  if (range >= 0) c->sectors[range] += n;
}
void count_global(Engine *c, const Op *op, const u64 *at, const u8 *on, u32 bytes) {
  u64 sectors[32 * 9], addresses[32];
  int n = 0, distinct = 0, active = 0;
  for (int i = 0; i < 32; i++) if (on[i]) {
    active++, distinct = add_new(addresses, distinct, at[i]);
    for (u64 s = at[i] >> 5; s <= (at[i] + bytes - 1) >> 5; s++) n = add_new(sectors, n, s);
  }
  if (!active) return;
  count(c, op, n, (distinct * bytes + 31) / 32, active * bytes);
  int range = range_of(c, addresses[0], bytes);
  if (range >= 0) c->sectors[range] += n;
}
void count_shared(Engine *c, const Op *op, const u64 *at, const u8 *on, u32 bytes) {
  int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, wavefronts = 0, fewest = 0, active = 0;
  for (int first = 0; first < 32; first += lanes) {
    u32 words[32][64];
    int n[32] = {0}, most = 0, any = 0, in_a_row = 0;
    while (in_a_row < lanes && on[first + in_a_row] && at[first + in_a_row] == at[first] + bytes * in_a_row) in_a_row++;
    if (in_a_row == lanes) { wavefronts++, fewest++, active += lanes; continue; }
    for (int i = first; i < first + lanes; i++) if (on[i]) {
      any = 1, active++;
      for (u32 word = at[i] >> 2; word <= (at[i] + bytes - 1) >> 2; word++) {
        int bank = word & 31, j = n[bank] - 1;
        while (j >= 0 && words[bank][j] != word) j--;
        if (j < 0) words[bank][n[bank]++] = word;
        if (n[bank] > most) most = n[bank];
      }
    }
    wavefronts += most, fewest += any;
  }
  if (active) count(c, op, wavefronts, fewest, active * bytes);
}

static inline u64 bytes_at(const u8 *p, int size) {
  switch (size) {
    case 1: return *p;
    case 2: return *(const u16 *)p;
    case 4: return *(const u32 *)p;
    default: return *(const u64 *)p;
  }
}
/* Loads and stores. a: address (3), bytes of an element, signed, number of elements, bytes of a register, registers */
static u64 extended(u64 value, int bytes, int is_signed) {
  return is_signed && bytes < 8 && value >> (8 * bytes - 1) ? value | ~(u64)0 << (8 * bytes) : value;
}
static int is_there(Engine *c, const s32 *a, int i, const u8 *p) { /* does a store leave memory as it is? */
  for (int k = 0; k < a[5]; k++) if (a[7 + k] >= 0) {
    u64 value = get(c, a[7 + k], a[6], i);
    if (memcmp(p + k * a[3], &value, a[3])) return 0;
  }
  return 1;
}
static inline __attribute__((always_inline)) void transfer(
    Engine *c, const Op *op, const s32 *a, const u8 *m, int stores, int in_shared) {
  int size = a[3], n = a[5], held = a[6];
  u32 bytes = size * n;
  u64 at[32];
  u8 on[32];
  for (int i = 0; i < c->threads; i++) {
    int lane = i & 31;
    on[lane] = ON(i);
    if (on[lane]) {
      u64 address = at[lane] = address_of(c, a, i);
      if (address % bytes) report(c, MISALIGNED, op->line, i, address, bytes);
      u8 *p = in_shared ? shared(c, op->line, i, address, bytes)
                        : global(c, op->line, i, address, bytes, stores ? STORES : LOADS);
      if (in_shared && p && (c->flags & CHECK_RACES))
        touch_by(c, op->line, i, address, bytes, !stores ? READ : is_there(c, a, i, p) ? REWRITE : WRITE);
      for (int k = 0; k < n; k++) {
        if (a[7 + k] < 0) continue;
        if (!stores) {
          u64 value = ~(u64)0; /* poison, where there is nothing */
          if (p) value = extended(bytes_at(p + k * size, size), size, a[4]);
          put(c, a[7 + k], held, i, value);
        } else if (p) {
          u64 value = get(c, a[7 + k], held, i);
          memcpy(p + k * size, &value, size);
        }
      }
    }
    if (lane == 31) (in_shared ? count_shared : count_global)(c, op, at, on, bytes);
  }
}
HANDLER(ld_global) { transfer(c, op, a, m, 0, 0); }
HANDLER(st_global) { transfer(c, op, a, m, 1, 0); }
HANDLER(ld_shared) { transfer(c, op, a, m, 0, 1); }
HANDLER(st_shared) { transfer(c, op, a, m, 1, 1); }

/* a: offset, bytes, signed, bytes of the register, register */
HANDLER(ld_param) {
  u64 value = 0;
  memcpy(&value, c->parameters + a[0], a[1]);
  value = extended(value, a[1], a[2]);
  EACH_THREAD(i) put(c, a[4], a[3], i, value);
  (void)op;
}

/* What an atomic makes of the value in memory, x, and the operands. Numbers as in instructions/memory.py. */
enum { ADD, MIN, MAX, AND, OR, XOR, EXCHANGE, COMPARE };
u64 combine(int kind, int type, u64 x, u64 y, u64 z) {
  switch (kind) {
    case AND: return x & y;
    case OR: return x | y;
    case XOR: return x ^ y;
    case EXCHANGE: return y;
    case COMPARE: return x == y ? z : x;
    case ADD: switch (type) {
      case 4: return U(F(x) + F(y));
      case 5: return Q(D(x) + D(y));
      case 6: return f2h(h2f(x) + h2f(y));
      case 7: return f2b(b2f(x) + b2f(y));
      default: return x + y;
    }
  }
  int less;
  switch (type) {
    case 0: less = (u32)x < (u32)y; break;
    case 1: less = (s32)x < (s32)y; break;
    case 2: less = x < y; break;
    case 3: less = (s64)x < (s64)y; break;
    case 4: less = F(x) < F(y); break;
    default: less = D(x) < D(y);
  }
  return less == (kind == MIN) ? x : y;
}
/* a: address (3), kind, type, register of the result or -1, bytes of a register, operands */
static void atomic(Engine *c, const Op *op, const s32 *a, const u8 *m, int in_shared) {
  static const int sizes[] = {4, 4, 8, 8, 4, 8, 2, 2};
  int size = sizes[a[4]];
  u64 at[32];
  u8 on[32];
  for (int i = 0; i < c->threads; i++) {
    int lane = i & 31;
    on[lane] = ON(i);
    at[lane] = address_of(c, a, i);
    if (lane == 31) (in_shared ? count_shared : count_global)(c, op, at, on, size);
  }
  EACH_THREAD(i) {
    u64 address = address_of(c, a, i), x = 0;
    if (address % size) report(c, MISALIGNED, op->line, i, address, size);
    u8 *p = in_shared ? shared(c, op->line, i, address, size) : global(c, op->line, i, address, size, COMBINES);
    if (!p) continue;
    memcpy(&x, p, size);
    u64 result = combine(a[3], a[4], x, get(c, a[7], a[6], i), op->count > 8 ? get(c, a[8], a[6], i) : 0);
    memcpy(p, &result, size);
    if (a[5] >= 0) put(c, a[5], a[6], i, x);
  }
}
HANDLER(atom_global) { atomic(c, op, a, m, 0); }
HANDLER(atom_shared) { atomic(c, op, a, m, 1); }

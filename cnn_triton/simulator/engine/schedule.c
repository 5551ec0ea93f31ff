/* Runs a kernel block by block. The runnable threads with the smallest pc go first, all at once, and stop where others wait,
 * so that paths that part meet again. order 1, 2: warps run one by one, from the first or from the last, as far as they
 * get. */
#include "engine.h"

typedef void (*Handler)(Engine *, const Op *, const s32 *, const u8 *);
#include "declared.inc"
static const Handler HANDLERS[] = {
#include "handlers.inc"
};
enum { RUNS, AT_BARRIER, BLOCKED, GONE };

static int gone(Engine *c) { int n = 0; for (int i = 0; i < c->threads; i++) n += c->state[i] == GONE; return n; }
static void complete_barrier(Engine *c, int number) {
  for (int i = 0; i < c->threads; i++) c->mask[i] = c->state[i] == AT_BARRIER && c->waits_at[i] == number;
  const u8 *m = c->mask;
  EACH_WARP(w, active) order_after(c->clock[w], c->arrivals[number]);
  join(c, m);
  for (int i = 0; i < c->threads; i++) if (m[i]) c->state[i] = RUNS;
  memset(c->arrivals[number], 0, sizeof c->arrivals[number]);
  c->arrived[number] = 0, c->progress++;
}
/* Completes a barrier for which only threads are missing that have ended. */
static int complete_rest(Engine *c) {
  int n = c->threads - gone(c);
  for (int k = 0; k < 16; k++) if (c->arrived[k] && c->arrived[k] >= n) { complete_barrier(c, k); return 1; }
  return 0;
}

/* The next group: its pc, or -1 if none can run. from, to: the threads it is chosen from; other: the next pc there. */
typedef struct { s32 pc, other, from, to, count, turn; } Group;
static void choose(Engine *c, Group *g) {
  int warp = -1;
  for (int k = 0; c->order && k < c->warps && warp < 0; k++) {
    int turn = (g->turn + k) % c->warps, w = c->order == 2 ? c->warps - 1 - turn : turn;
    for (int i = 32 * w; i < 32 * w + 32; i++) if (c->state[i] == RUNS) warp = w, g->turn = turn;
  }
  g->from = warp < 0 ? 0 : 32 * warp, g->to = warp < 0 ? c->threads : g->from + 32;
  g->pc = g->other = INT32_MAX, g->count = 0;
  for (int i = g->from; i < g->to; i++) if (c->state[i] == RUNS && c->pc[i] < g->pc) g->pc = c->pc[i];
  if (g->pc == INT32_MAX) { g->pc = -1; return; }
  memset(c->group, 0, c->threads);
  for (int i = g->from; i < g->to; i++) if (c->state[i] == RUNS) {
    if (c->pc[i] == g->pc) c->group[i] = 1, g->count++;
    else if (c->pc[i] < g->other) g->other = c->pc[i];
  }
}
/* No thread runs: those that try a wait may go on if something has ended since. 0: all have gone, or none can. */
static int wake(Engine *c) {
  int woken = 0, left = 0;
  for (int i = 0; i < c->threads; i++) {
    left += c->state[i] != GONE;
    if (c->state[i] == BLOCKED && c->blocked_at[i] != c->progress) c->state[i] = RUNS, woken++;
  }
  if (woken || (left && complete_rest(c))) return 1;
  for (int i = 0; left && i < c->threads; i++) if (c->state[i] != GONE) {
    fail(c, DEADLOCK, c->ops[c->state[i] == AT_BARRIER ? c->pc[i] - 1 : c->pc[i]].line, i);
    break;
  }
  return 0;
}
/* The predicate's threads into c->mask; how many they are. */
static int predicate(Engine *c, const Op *op, const u8 *group) {
  const u8 *p = REGISTER(u8, op->predicate);
  u8 negated = op->negated;
  int n = c->threads, on = 0;
  if (!group) { IVDEP for (int i = 0; i < n; i++) c->mask[i] = p[i] ^ negated; }
  else { IVDEP for (int i = 0; i < n; i++) c->mask[i] = group[i] & (p[i] ^ negated); }
  for (int i = 0; i < n; i++) on += c->mask[i];
  return on;
}
/* A barrier. a: register of its number, register of the threads that it waits for or -1. 1: all threads were there. */
static int barrier(Engine *c, const Op *op, const s32 *a, const u8 *m, int pc) {
  if (!m && a[1] < 0 && op->control == CONTROL_BARRIER) { join(c, NULL); return 1; }
  int first = 0;
  while (!ON(first)) first++;
  int number = REG(u32, 0)[first] & 15, expected = a[1] >= 0 ? (s32)REG(u32, 1)[first] : c->threads - gone(c);
  for (int i = 0; i < c->threads; i++) if (c->group[i]) {
    c->pc[i] = pc + 1;
    if (!ON(i)) continue;
    c->arrived[number]++;
    if (op->control == CONTROL_BARRIER) c->state[i] = AT_BARRIER, c->waits_at[i] = number;
  }
  if (op->control == CONTROL_ARRIVE) EACH_WARP(w, active) { order_after(c->arrivals[number], c->clock[w]); c->clock[w][w]++; }
  if (c->arrived[number] >= expected) complete_barrier(c, number);
  return 0;
}
/* What the scheduler does itself. Returns the group's next pc, or -1 where its threads part; m: those that do it. */
static int control(Engine *c, const Op *op, const s32 *a, const u8 *m, int all, int pc) {
  switch (op->control) {
    case CONTROL_BRANCH:
      if (all) return a[0];
      for (int i = 0; i < c->threads; i++) if (c->group[i]) c->pc[i] = c->mask[i] ? a[0] : pc + 1;
      return -1;
    case CONTROL_INDEXED: /* a: register of the index, the number of targets, targets */
      for (int i = 0; i < c->threads; i++) if (c->group[i]) {
        u32 index = REG(u32, 0)[i];
        if (ON(i) && index >= (u32)a[1]) { fail(c, TRAPPED, op->line, i); return -1; }
        c->pc[i] = ON(i) ? a[2 + index] : pc + 1;
      }
      return -1;
    case CONTROL_EXIT:
      for (int i = 0; i < c->threads; i++) if (c->group[i]) { if (ON(i)) c->state[i] = GONE; else c->pc[i] = pc + 1; }
      return -1;
    case CONTROL_TRY_WAIT:
      if (try_wait(c, op, a, m)) return pc + 1;
      for (int i = 0; i < c->threads; i++) if (c->group[i]) {
        c->pc[i] = ON(i) ? pc : pc + 1;
        if (ON(i)) c->state[i] = BLOCKED, c->blocked_at[i] = c->progress;
      }
      return -1;
    default:
      return barrier(c, op, a, m, pc) ? pc + 1 : -1;
  }
}
/* Runs a group until its threads part, wait, or meet others. */
static void run_group(Engine *c, const Group *g, s64 *executed) {
  const u8 *group = g->count == c->threads ? NULL : c->group;
  int warps = 0, pc = g->pc;
  for (int w = 0; w < c->warps; w++) warps += warp_mask(group, w) != 0;
  while (pc >= 0 && !c->error) {
    if (pc >= g->other) { for (int i = 0; i < c->threads; i++) if (c->group[i]) c->pc[i] = pc; return; }
    const Op *op = &c->ops[pc];
    const s32 *a = c->pool + op->arguments;
    int on = op->predicate >= 0 ? predicate(c, op, group) : g->count;
    const u8 *m = on == g->count ? group : c->mask;
    c->counts[pc] += warps, c->now++;
    if (++*executed > c->limit) { fail(c, TOO_LONG, op->line, 0); return; }
    if (!on) { pc++; continue; }
    if (op->flags & 1 && c->wgmma_count) touch_accumulator(c, op, a);
    if (op->flags & 6 && c->move_count) touch_loaded(c, op, a);
    if (op->control) pc = control(c, op, a, m, on == g->count, pc);
    else HANDLERS[op->handler](c, op, a, m), pc++;
  }
}
static void run_block(Engine *c) {
  Group g = {0};
  s64 executed = 0;
  while (!c->error) {
    choose(c, &g);
    if (g.pc >= 0) run_group(c, &g, &executed);
    else if (!wake(c)) break;
  }
  if (c->store_count && !c->error) report(c, NOT_WAITED, c->stores[0].line, c->stores[0].thread, 0, 0);
  if (c->copy_count && !c->error) report(c, NOT_WAITED, c->copies[0].line, c->copies[0].thread, 0, 3);
  if (c->load_count && !c->error) report(c, NOT_WAITED, c->loads[0].line, c->loads[0].thread, 0, 1);
  for (int k = 0; k < c->product_count && !c->error; k++)
    if (!c->products[k].order) report(c, NOT_WAITED, c->products[k].op->line, c->products[k].thread, 0, 2);
  if (c->wgmma_count && !c->error) report(c, NOT_WAITED, c->wgmmas[0].op->line, 0, 0, 2);
  if (c->allocated && !c->error) report(c, TENSOR_MEMORY, 0, 0, c->columns[0], 4);
  for (int k = 0; k < c->store_count; k++) finish_store(c, &c->stores[k]);
  for (int k = 0; k < c->load_count; k++) free(c->loads[k].data);
  for (int k = 0; k < c->wgmma_count; k++) free(c->wgmmas[k].snapshot);
  for (int k = 0; k < c->product_count; k++) free(c->products[k].order);
  for (int k = 0; k < c->move_count; k++) free(c->moves[k].values);
  c->executed += executed;
}

static void begin(Engine *c, int block, size_t bytes, size_t granules) {
  int n = c->threads;
  s32 id[3] = {block % c->grid[0], block / c->grid[0] % c->grid[1], block / c->grid[0] / c->grid[1]};
  c->block = block;
  for (int d = 0; d < 3; d++) if (c->block_registers[d] >= 0)
    for (int i = 0; i < n; i++) REGISTER(s32, c->block_registers[d])[i] = id[d];
  memset(c->smem, 255, bytes), memset(c->pc, 0, 4 * n), memset(c->state, RUNS, n);
  memset(c->bulk_group, 0, 4 * n), memset(c->copy_group, 0, 4 * n);
  memset(c->arrived, 0, sizeof c->arrived), memset(c->arrivals, 0, sizeof c->arrivals), memset(c->fence, 0, sizeof c->fence);
  memset(c->wgmma_group, 0, sizeof c->wgmma_group), memset(c->clock, 0, sizeof c->clock);
  for (int w = 0; w < c->warps; w++) c->clock[w][w] = 1;
  c->barrier_count = c->load_count = c->store_count = c->copy_count = c->wgmma_count = c->product_count = c->move_count = 0;
  c->map_write_count = c->allocated = 0, c->progress = c->now = 1;
  if (c->tensor_memory) memset(c->tensor_memory, 255, 4 * 128 * 512), memset(c->cells, 0, sizeof c->cells);
  if (c->flags & CHECK_RACES) memset(c->shadow, 0, granules * sizeof(Shadow)), memset(c->readers, 0, granules * c->warps * 4);
}
int simulate(Engine *c) {
  int n = c->threads, uses_tensor_memory = 0;
  size_t bytes = (SHARED_BASE + c->shared + 256 + 1023) / 1024 * 1024, granules = (c->shared + c->granule) / c->granule;
  for (int k = 0; k < c->operations; k++) uses_tensor_memory |= HANDLERS[c->ops[k].handler] == h_tcgen05_alloc;
  c->smem = aligned_alloc(1024, bytes);
  c->pc = calloc(n, 4), c->state = calloc(n, 1), c->waits_at = calloc(n, 4), c->blocked_at = calloc(n, 8);
  c->group = calloc(n + 64, 1), c->mask = calloc(n + 64, 1), c->bulk_group = calloc(n, 4), c->copy_group = calloc(n, 4);
  c->tensor_memory = uses_tensor_memory ? malloc(4 * 128 * 512) : NULL;
  if (c->flags & CHECK_RACES) {
    c->shadow = calloc(granules, sizeof(Shadow));
    c->readers = calloc(granules * c->warps, 4), c->read_lines = calloc(granules * c->warps, 4);
  }
  s64 all = (s64)c->grid[0] * c->grid[1] * c->grid[2];
  for (s64 k = 0; k < c->blocks && !c->error; k++) begin(c, k * c->step % all, bytes, granules), run_block(c);
  void *held[] = {c->smem, c->pc, c->state, c->waits_at, c->blocked_at, c->group, c->mask, c->bulk_group, c->copy_group,
                 c->tensor_memory, c->loads, c->stores, c->copies, c->wgmmas, c->products, c->moves, c->shadow, c->readers,
                 c->read_lines};
  for (size_t k = 0; k < sizeof held / sizeof *held; k++) free(held[k]);
  return c->error;
}
size_t engine_size(void) { return sizeof(Engine); }

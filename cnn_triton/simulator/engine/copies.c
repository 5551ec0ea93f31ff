/* cp.async, and mbarriers. What is asynchronous overwrites its target with NaN when it is issued, and delivers when it is
 * waited for: as late as the rules allow, so that a missing wait shows in the results. */
#include "engine.h"

/* a: target (register, offset), origin (register, offset), bytes, register of the bytes that are read or -1, bytes of the
 * target's register */
HANDLER(cp_async) {
  u64 at[32];
  u8 on[32];
  u32 bytes = a[4];
  for (int i = 0; i < c->threads; i++) {
    int lane = i & 31;
    on[lane] = 0;
    if (ON(i)) {
      u32 to = get(c, a[0], a[6], i) + a[1], read = a[5] >= 0 ? REG(u32, 5)[i] : bytes;
      u64 from = at[lane] = REG(u64, 2)[i] + (s64)a[3];
      Copy e = {i, op->line, c->copy_group[i], to, bytes, {0}}; /* zeros beyond what is read */
      if (read > bytes) read = bytes;
      if (to % bytes || (read && from % bytes)) report(c, MISALIGNED, op->line, i, to % bytes ? to : from, bytes);
      if (read) {
        u8 *p = global(c, op->line, i, from, read, LOADS);
        if (p) memcpy(e.data, p, read); else memset(e.data, 255, read);
      }
      u8 *q = shared(c, op->line, i, to, bytes);
      if (q) memset(q, 255, bytes), touch_by(c, op->line, i, to, bytes, COPY);
      GROW(c->copies, c->copy_count, c->copy_room);
      c->copies[c->copy_count++] = e;
      on[lane] = read > 0;
    }
    if (lane == 31) count_global(c, op, at, on, bytes);
  }
}
HANDLER(cp_async_commit) { EACH_THREAD(i) c->copy_group[i]++; (void)op, (void)a; }
/* a: groups that may be under way; -1: all copies, committed or not, must have arrived */
HANDLER(cp_async_wait) {
  int kept = 0;
  for (int k = 0; k < c->copy_count; k++) {
    Copy *e = &c->copies[k];
    int ends = ON(e->thread) && (a[0] < 0 || (s64)e->group <= (s64)c->copy_group[e->thread] - 1 - a[0]);
    u8 *p = ends ? shared(c, e->line, e->thread, e->to, e->bytes) : NULL;
    if (p) memcpy(p, e->data, e->bytes), touch_by(c, e->line, e->thread, e->to, e->bytes, ARRIVES);
    if (!ends) c->copies[kept++] = *e;
  }
  c->copy_count = kept;
  (void)op;
}

/* ---- mbarriers */
static Barrier *find(Engine *c, u64 address) {
  for (int i = 0; i < c->barrier_count; i++) if (c->barriers[i].address == address) return &c->barriers[i];
  return NULL;
}
Barrier *barrier_at(Engine *c, int line, int thread, u64 address) {
  Barrier *b = find(c, address);
  if (!b) report(c, SHARED_OUTSIDE, line, thread, address, 0);
  return b;
}
/* Ends the phase if all have arrived: who waits is then ordered after them and after the copies. */
void complete(Engine *c, Barrier *b) {
  if (b->pending || b->bytes) return;
  b->phase ^= 1, b->pending = b->count, b->order[b->agent] = b->delivered, c->progress++;
}
void release(Engine *c, Barrier *b, int warp) { order_after(b->order, c->clock[warp]); c->clock[warp][warp]++; }

/* a: address (3), register of the arrivals */
HANDLER(mbar_init) {
  EACH_THREAD(i) {
    u64 address = address_of(c, a, i);
    if (!shared(c, op->line, i, address, 8)) continue;
    if (address % 8) report(c, MISALIGNED, op->line, i, address, 8);
    Barrier *b = find(c, address);
    if (!b && c->barrier_count == MAX_BARRIERS) { fail(c, TOO_LONG, op->line, i); return; }
    if (!b) memset(b = &c->barriers[c->barrier_count++], 0, sizeof *b);
    b->address = address, b->count = b->pending = REG(u32, 3)[i], b->bytes = 0, b->phase = 0;
    b->agent = MAX_WARPS + (b - c->barriers);
    touch_by(c, op->line, i, address, 8, OBJECT);
  }
}
HANDLER(mbar_inval) {
  EACH_THREAD(i) {
    Barrier *b = barrier_at(c, op->line, i, address_of(c, a, i));
    if (b) touch_by(c, op->line, i, b->address, 8, OBJECT);
  }
}
/* a: address (3), register of the arrivals or -1 (1), register of the bytes to expect or -1, does it arrive? */
HANDLER(mbar_arrive) {
  EACH_THREAD(i) {
    Barrier *b = barrier_at(c, op->line, i, address_of(c, a, i));
    if (!b) continue;
    touch_by(c, op->line, i, b->address, 8, READ);
    if (a[4] >= 0) b->bytes += REG(u32, 4)[i];
    if (a[5]) b->pending -= a[3] >= 0 ? REG(u32, 3)[i] : 1, release(c, b, i / 32);
    complete(c, b);
  }
}
static void deliver_boxes(Engine *c, u64 barrier) {
  int kept = 0;
  for (int k = 0; k < c->load_count; k++) {
    BoxLoad *e = &c->loads[k];
    if (e->barrier != barrier) { c->loads[kept++] = *e; continue; }
    for (u32 o = 0; o < e->bytes; o += 16) {
      u8 *p = shared(c, e->line, e->thread, swizzled(e->to + o, e->swizzle), 16);
      if (p) memcpy(p, e->data + o, 16);
    }
    free(e->data), arrived(c, e->to, e->bytes);
    Barrier *b = barrier_at(c, e->line, e->thread, barrier);
    if (b) b->bytes -= e->bytes, b->delivered = e->clock, complete(c, b);
  }
  c->load_count = kept;
}
/* Has the phase of this parity ended, for all threads? Its copies and products end now, at the latest.
 * a: predicate, address (3), register of the parity */
int try_wait(Engine *c, const Op *op, const s32 *a, const u8 *m) {
  int ended = 1;
  EACH_THREAD(i) {
    Barrier *b = barrier_at(c, op->line, i, address_of(c, a + 1, i));
    if (!b) { fail(c, DEADLOCK, op->line, i); return 0; }
    u32 parity = REG(u32, 4)[i] & 1;
    if ((i & 31) == 0 || !ON(i - 1)) touch_by(c, op->line, i, b->address, 8, READ);
    if (b->phase == parity) deliver_boxes(c, b->address);
    if (b->phase == parity) finish_products(c, b->address);
    if (b->phase == parity) ended = 0;
  }
  if (ended) EACH_THREAD(i) {
    REG(u8, 0)[i] = 1;
    Barrier *b = barrier_at(c, op->line, i, address_of(c, a + 1, i));
    if ((i & 31) == 0 || !ON(i - 1)) order_after(c->clock[i / 32], b->order);
  }
  return ended;
}

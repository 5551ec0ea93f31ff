/* What the threads of a warp do together. */
#include "engine.h"

void whole(Engine *c, const Op *op, u32 active, int warp) {
  if (active != ~0u) report(c, DIVERGENT, op->line, 32 * warp, active, 0);
}
/* a: mode (0 butterfly, 1 index, 2 up, 3 down), result, predicate or -1, value, lane, clamp */
HANDLER(shfl) {
  EACH_WARP(w, active) {
    u32 value[32];
    memcpy(value, REG(u32, 3) + 32 * w, sizeof value);
    EACH_LANE(i, active) {
      int t = 32 * w + i;
      u32 by = REG(u32, 4)[t] & 31, clamp = REG(u32, 5)[t] & 31, segment = REG(u32, 5)[t] >> 8 & 31;
      s32 least = i & segment, last = least | (clamp & ~segment), from;
      switch (a[0]) {
        case 0: from = i ^ by; break;
        case 1: from = least | (by & ~segment); break;
        case 2: from = i - (s32)by; break;
        default: from = i + (s32)by;
      }
      int inside = a[0] == 2 ? from >= last : from <= last;
      if (!inside) from = i;
      if (!(active >> from & 1)) report(c, DIVERGENT, op->line, t, active, from);
      REG(u32, 1)[t] = value[from];
      if (a[2] >= 0) REG(u8, 2)[t] = inside;
    }
  }
}
/* a: lane or -1, predicate, members */
HANDLER(elect) {
  EACH_WARP(w, active) {
    u32 first = __builtin_ctz(REG(u32, 2)[32 * w + __builtin_ctz(active)] & active);
    EACH_LANE(i, active) {
      REG(u8, 1)[32 * w + i] = (u32)i == first;
      if (a[0] >= 0) REG(u32, 0)[32 * w + i] = first;
    }
  }
  (void)op;
}
/* a: kind (0 all, 1 any, 2 uniform, 3 ballot), result, predicate */
HANDLER(vote) {
  EACH_WARP(w, active) {
    u32 votes = 0;
    EACH_LANE(i, active) votes |= (u32)(REG(u8, 2)[32 * w + i] != 0) << i;
    EACH_LANE(i, active) {
      int t = 32 * w + i;
      if (a[0] == 3) REG(u32, 1)[t] = votes;
      else REG(u8, 1)[t] = a[0] == 0 ? votes == active : a[0] == 1 ? votes != 0 : votes == 0 || votes == active;
    }
  }
  (void)op;
}
HANDLER(activemask) { EACH_WARP(w, active) EACH_LANE(i, active) REG(u32, 0)[32 * w + i] = active; (void)op; }
static u32 combine_f32(int least, int nan, f32 x, f32 y) {
  return U(least ? nan ? MINNAN(x, y) : MINNUM(x, y) : nan ? MAXNAN(x, y) : MAXNUM(x, y));
}
/* a: kind, type, result, value, is NaN kept?, absolute values? */
HANDLER(redux) {
  EACH_WARP(w, active) {
    u64 r = 0;
    int any = 0;
    EACH_LANE(i, active) {
      u32 x = REG(u32, 3)[32 * w + i] & (a[5] ? 0x7fffffffu : ~0u);
      if (!any++) r = x;
      else r = a[1] == 4 ? combine_f32(a[0] == 1, a[4], F(r), F(x)) : combine(a[0], a[1], r, x, 0);
    }
    EACH_LANE(i, active) REG(u32, 2)[32 * w + i] = r;
  }
  (void)op;
}
HANDLER(bar_warp) { EACH_WARP(w, active) whole(c, op, active, w); (void)a; }
HANDLER(nop) { UNUSED; }
HANDLER(trap) { EACH_THREAD(i) { fail(c, TRAPPED, op->line, i); return; } (void)a; }
HANDLER(fence_async) { EACH_WARP(w, active) c->fence[w] = c->now; (void)op, (void)a; }

/* Races in shared memory, by vector clocks: each warp and each mbarrier's copies are an agent with a clock, and a warp
 * knows of every agent up to which clock all is ordered before it. A barrier joins what its warps know. */
#include "engine.h"

int is_before(Engine *c, int warp, u32 agent, u32 clock) {
  return agent == (u32)warp || clock <= c->clock[warp][agent]; /* order within a warp is taken for granted */
}
/* Notes an access by an agent at its clock, on behalf of a warp. REWRITE: of what is there already, as warps that hold the
 * same element store it; COPY: by a thread's copy, which begins, ARRIVES: and ends; ASYNC_WRITE: by the copy engine's;
 * WILL_READ: an asynchronous read begins; OBJECT: an mbarrier, or the address of an allocation, is put there, which needs no
 * fence before the copy engine writes. */
void touch(Engine *c, int line, int warp, u32 agent, u32 clock, u32 address, u32 bytes, int how) {
  if (!(c->flags & CHECK_RACES) || address < SHARED_BASE || address - SHARED_BASE + (u64)bytes > (u64)c->shared) return;
  int writes = how != READ && how != ASYNC_READ && how != WILL_READ, begins = how == COPY || how == ASYNC_WRITE;
  int by_engine = how == ASYNC_READ || how == WILL_READ || how == ASYNC_WRITE;
  u32 granule = c->granule, first = (address - SHARED_BASE) / granule;
  u32 end = (address - SHARED_BASE + bytes + granule - 1) / granule;
  for (u32 i = first; i < end; i++) {
    Shadow *s = &c->shadow[i];
    u32 *reads = &c->readers[(size_t)i * c->warps], at = SHARED_BASE + i * granule;
    s32 *lines = &c->read_lines[(size_t)i * c->warps];
    if (s->pending && how != ARRIVES) report(c, EARLY_READ, line, 32 * warp, at, s->line);
    else if (!writes && !s->clock) report(c, NEVER_WRITTEN, line, 32 * warp, at, 0);
    else if (s->clock && how != REWRITE && !is_before(c, warp, s->writer, s->clock))
      report(c, writes ? RACE_WRITE : RACE_READ, line, 32 * warp, at, s->line);
    if (by_engine && s->clock && s->generic == 1 && c->fence[s->writer] <= s->time && c->fence[warp] <= s->time)
      report(c, NO_PROXY_FENCE, line, 32 * warp, at, s->line);
    if (how == ASYNC_WRITE && s->read && c->fence[s->reader] <= s->read && c->fence[warp] <= s->read)
      report(c, NO_PROXY_FENCE, line, 32 * warp, at, lines[s->reader]);
    if (writes) {
      for (int w = 0; w < c->warps; w++)
        if (reads[w] && !is_before(c, warp, w, reads[w])) report(c, RACE_OVERWRITE, line, 32 * warp, at, lines[w]);
      memset(reads, 0, 4 * c->warps);
      *s = (Shadow){(u8)agent, how == OBJECT ? 2 : how != ASYNC_WRITE, begins, 0, clock, line, c->now, 0};
    } else if (how != WILL_READ) {
      reads[agent] = clock, lines[agent] = line;
      if (how == READ && s->generic != 2) s->reader = agent, s->read = c->now;
    }
  }
}
/* An access by a thread. */
void touch_by(Engine *c, int line, int thread, u32 address, u32 bytes, int how) {
  int w = thread / 32;
  if (c->flags & CHECK_RACES) touch(c, line, w, w, c->clock[w][w], address, bytes, how);
}
/* A copy has arrived. */
void arrived(Engine *c, u32 address, u32 bytes) {
  if (!(c->flags & CHECK_RACES) || address < SHARED_BASE || address - SHARED_BASE + (u64)bytes > (u64)c->shared) return;
  for (u32 i = 0; i < bytes; i += c->granule) c->shadow[(address - SHARED_BASE + i) / c->granule].pending = 0;
}
/* An asynchronous operation that was issued at this time reads: has anything written there since? */
void kept_since(Engine *c, int line, int thread, u32 address, u32 bytes, u64 since) {
  if (!(c->flags & CHECK_RACES) || address < SHARED_BASE || address - SHARED_BASE + (u64)bytes > (u64)c->shared) return;
  for (u32 i = 0; i < bytes; i += c->granule) {
    Shadow *s = &c->shadow[(address - SHARED_BASE + i) / c->granule];
    if (s->clock && s->time > since) report(c, OVERWRITTEN, s->line, thread, address + i, line);
  }
}
void order_after(u32 *to, const u32 *from) {
  for (int k = 0; k < MAX_AGENTS; k++) if (from[k] > to[k]) to[k] = from[k];
}
/* All warps with a thread in the mask know of each other. */
void join(Engine *c, const u8 *m) {
  u32 all[MAX_AGENTS] = {0};
  EACH_WARP(w, active) order_after(all, c->clock[w]);
  EACH_WARP(w, active) { memcpy(c->clock[w], all, sizeof all); c->clock[w][w]++; }
}

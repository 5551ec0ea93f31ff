/* What the engine's files share: the launch, the state of a block, and access to registers and memory.
 *
 * A register is an array with an element for each thread. An operation is a loop over the threads that are at it; m is
 * their mask, a byte for each thread, or NULL for all of the block. `c` is the engine's state throughout. */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include "numbers.h"

#define SHARED_BASE 1024u /* where a block's shared memory begins: the first kilobyte is the system's */
#define MAX_WARPS 32
#define MAX_BARRIERS 64
#define MAX_AGENTS (MAX_WARPS + MAX_BARRIERS) /* warps, then an agent for each mbarrier: what the copy engine writes */
#define MAX_REPORTS 256

/* As in findings.py. */
enum { LOAD_OUTSIDE = 1, STORE_OUTSIDE, MISALIGNED, SHARED_OUTSIDE, RACE_READ, RACE_OVERWRITE, RACE_WRITE, NO_PROXY_FENCE,
  BAD_TENSOR_MAP, NO_MAP_FENCE, NOT_WAITED, CROSS_BLOCK, EARLY_ACCUMULATOR, DIVERGENT, TENSOR_MEMORY, EARLY_READ,
  NEVER_WRITTEN, OVERWRITTEN, EARLY_REGISTER };
enum { NO_ERROR, DEADLOCK, UNSUPPORTED, TRAPPED, TOO_LONG };
enum { CHECK_RACES = 1, CHECK_CROSS = 2 };
enum { CONTROL_NONE, CONTROL_BRANCH, CONTROL_EXIT, CONTROL_BARRIER, CONTROL_TRY_WAIT, CONTROL_ARRIVE, CONTROL_INDEXED };

typedef struct { s32 handler, predicate, negated, arguments, count, flags, control, line; } Op;
typedef struct { u64 from, to; } Range;
typedef struct { s32 kind, line, thread, block; u64 address, extra; s64 count; } Report;

/* An mbarrier: arrivals left and in all, bytes expected, phase; the agent that its copies write as, that agent's clock at
 * the last copy issued and delivered; what is ordered before who waits for it. */
typedef struct { u64 address; s64 pending, count, bytes; u32 phase, agent, clock, delivered; u32 order[MAX_AGENTS]; } Barrier;
/* Who wrote a granule of shared memory last, when by its clock and by the block's, at which line; by a thread's store (1),
 * as an object (2)? Is a copy to it under way? Which warp's threads read it since, and when by the block's clock, or 0. */
typedef struct { u8 writer, generic, pending, reader; u32 clock; s32 line; u64 time, read; } Shadow;
/* Who wrote and read a column of 16 lanes of tensor memory last, and when by its clock. */
typedef struct { u8 writer, reader; u32 written, read; } TensorShadow;
typedef struct {
  u64 address, stride[4]; u32 dim[5]; u16 box[5];
  u8 element_stride[5], rank, type, interleave, swizzle, fill;
} TensorMap;
typedef struct { s32 line, thread; u32 to, bytes, swizzle, clock; u64 barrier; u8 *data; } BoxLoad;
typedef struct { s32 line, thread; u32 from, group; s32 at[5], adds; u64 since; const Op *op; TensorMap map; } BoxStore;
typedef struct { s32 thread, line; u32 group, to, bytes; u8 data[16]; } Copy;
typedef struct { const Op *op; u32 warps; u64 a, b, since; u32 group[MAX_WARPS]; u8 adds; u32 *snapshot; } Wgmma;
/* A product of tensor memory; or the arrival at an mbarrier that follows those before it, with what its thread is after. */
typedef struct { const Op *op; s32 thread; u64 a, b, since, barrier; u32 to, description; u8 adds; u32 *order; } Product;
typedef struct { const Op *op; s32 warp; u32 at; u32 *values; u8 ended; } TensorMove;
typedef struct { u64 address, acquired; s32 line; } MapWrite;

typedef struct {
  /* The launch, filled in by run.py. */
  s32 threads, warps, operations, shared, flags, order;
  const Op *ops; const s32 *pool;
  u8 *registers; s64 register_bytes;
  u8 *parameters;
  s32 grid[3], block_registers[3]; /* places of %ctaid, or -1 */
  Range *ranges; s32 range_count; /* what may be accessed in global memory */
  s64 *counts; /* executions by operation, in warps */
  s64 *sectors; /* of global memory, by range */
  s64 *traffic; /* by operation: parts (sectors or wavefronts), the fewest parts for as many bytes, bytes */
  s64 limit; /* operations of a block */
  u32 *cross; s64 *cross_at; /* by byte of each range its writer and its reader, where a range's bytes begin */
  s32 blocks, step, granule; /* how many blocks run, and from each to the next; bytes that races in shared memory are told
                                apart by */
  /* Results. */
  s32 error, error_line, error_thread, error_block; s64 executed;
  s32 report_count; Report reports[MAX_REPORTS];
  /* The state of the block that runs. */
  u8 *smem; s32 hint, block;
  s32 *pc; u8 *state; s32 *waits_at; u8 *group, *mask;
  s32 arrived[16]; u32 arrivals[16][MAX_AGENTS]; u64 progress, *blocked_at, now;
  u32 clock[MAX_WARPS][MAX_AGENTS]; u64 fence[MAX_WARPS];
  Barrier barriers[MAX_BARRIERS]; s32 barrier_count;
  BoxLoad *loads; s32 load_count, load_room;
  BoxStore *stores; s32 store_count, store_room; u32 *bulk_group;
  Copy *copies; s32 copy_count, copy_room; u32 *copy_group;
  Wgmma *wgmmas; s32 wgmma_count, wgmma_room; u32 wgmma_group[MAX_WARPS];
  Product *products; s32 product_count, product_room;
  TensorMove *moves; s32 move_count, move_room;
  u32 *tensor_memory; u32 columns[64]; s32 allocated; /* 128 lanes x 512 columns; allocations as (first, number) */
  MapWrite map_writes[64]; s32 map_write_count;
  TensorShadow cells[8][512];
  Shadow *shadow; u32 *readers; s32 *read_lines;
} Engine;

#define REG(t, i) ((t *)(c->registers + ((size_t)(u32)a[i] << 6)))
#define REGISTER(t, place) ((t *)(c->registers + ((size_t)(u32)(place) << 6)))
#define HANDLER(name) void h_##name(Engine *c, const Op *op, const s32 *a, const u8 *m)
#define UNUSED (void)c, (void)op, (void)a, (void)m
#define IVDEP _Pragma("GCC ivdep")
#define ON(i) (!m || m[i])
#define EACH_THREAD(i) for (int i = 0; i < c->threads; i++) if (ON(i))
#define EACH_WARP(w, active) for (int w = 0; w < c->warps; w++) for (u32 active = warp_mask(m, w); active; active = 0)
#define EACH_LANE(i, active) for (int i = 0; i < 32; i++) if (active >> i & 1)

static inline u32 warp_mask(const u8 *m, int w) {
  if (!m) return ~0u;
  u32 r = 0;
  for (int i = 0; i < 32; i++) r |= (u32)(m[32 * w + i] != 0) << i;
  return r;
}
/* An address operand: register, its bytes, offset. */
static inline u64 address_of(Engine *c, const s32 *a, int i) {
  return (a[1] == 8 ? REG(u64, 0)[i] : (u64)REG(u32, 0)[i]) + (s64)a[2];
}
static inline void put(Engine *c, s32 place, int bytes, int i, u64 value) {
  switch (bytes) {
    case 1: REGISTER(u8, place)[i] = value; break;
    case 2: REGISTER(u16, place)[i] = value; break;
    case 4: REGISTER(u32, place)[i] = value; break;
    default: REGISTER(u64, place)[i] = value;
  }
}
static inline u64 get(Engine *c, s32 place, int bytes, int i) {
  switch (bytes) {
    case 1: return REGISTER(u8, place)[i];
    case 2: return REGISTER(u16, place)[i];
    case 4: return REGISTER(u32, place)[i];
    default: return REGISTER(u64, place)[i];
  }
}
/* Room for one more element in an array of n. */
#define GROW(array, n, room) \
  if ((n) == (room)) (room) = (room) ? 2 * (room) : 64, (array) = realloc((array), (size_t)(room) * sizeof *(array))

/* memory.c */
void report(Engine *c, int kind, int line, int thread, u64 address, u64 extra);
void fail(Engine *c, int error, int line, int thread);
enum { LOADS, STORES, COMBINES };
u8 *global(Engine *c, int line, int thread, u64 address, u64 bytes, int how);
u8 *shared(Engine *c, int line, int thread, u32 address, u32 bytes);
u64 combine(int kind, int type, u64 x, u64 y, u64 z);
void count(Engine *c, const Op *op, s64 parts, s64 fewest, s64 bytes);
void count_row(Engine *c, const Op *op, u64 address, u64 bytes);
void count_global(Engine *c, const Op *op, const u64 *at, const u8 *on, u32 bytes);
void count_shared(Engine *c, const Op *op, const u64 *at, const u8 *on, u32 bytes);
/* races.c */
enum { READ, WRITE, REWRITE, ASYNC_READ, ASYNC_WRITE, COPY, ARRIVES, WILL_READ, OBJECT };
int is_before(Engine *c, int warp, u32 agent, u32 clock);
void touch(Engine *c, int line, int warp, u32 agent, u32 clock, u32 address, u32 bytes, int how);
void touch_by(Engine *c, int line, int thread, u32 address, u32 bytes, int how);
void arrived(Engine *c, u32 address, u32 bytes);
void kept_since(Engine *c, int line, int thread, u32 address, u32 bytes, u64 since);
void join(Engine *c, const u8 *in);
void order_after(u32 *to, const u32 *from);
/* warp.c */
void whole(Engine *c, const Op *op, u32 active, int warp);
/* copies.c, tma.c, wgmma.c, tcgen05.c */
Barrier *barrier_at(Engine *c, int line, int thread, u64 address);
void complete(Engine *c, Barrier *b);
void release(Engine *c, Barrier *b, int warp);
int try_wait(Engine *c, const Op *op, const s32 *a, const u8 *m);
u32 swizzled(u32 address, int mode);
u32 matrix_address(u32 start, u32 leading, u32 stride, int mode, int bytes, int transposed, int row, int k);
void finish_store(Engine *c, BoxStore *e);
void touch_accumulator(Engine *c, const Op *op, const s32 *a);
void touch_loaded(Engine *c, const Op *op, const s32 *a);
void finish_products(Engine *c, u64 barrier);
/* schedule.c */
int simulate(Engine *c);

/* Tensor maps, and the boxes that the copy engine moves by them. A map here is TensorMap: driver.py writes the host's,
 * tensormap.replace the kernel's. */
#include "engine.h"

static const int TYPE_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
enum { TYPE_F16 = 6, TYPE_F32 = 7, TYPE_F64 = 9, TYPE_BF16 = 10, TYPE_TF32 = 11 };
/* What is wrong with a map, as in findings.py. */
enum { MAP_RANK = 1, MAP_BOX, MAP_TYPE, MAP_BASE, MAP_SIZE, MAP_STRIDE, MAP_ELEMENT_STRIDE, MAP_INNER };

/* a: address (3), is it shared?, field, which of several, register of the value, its bytes */
HANDLER(tensormap_replace) {
  EACH_THREAD(i) {
    u64 address = address_of(c, a, i), value = get(c, a[6], a[7], i);
    int k = a[5];
    u8 *p = a[3] ? shared(c, op->line, i, address, 128) : global(c, op->line, i, address, 128, STORES);
    TensorMap *t = (TensorMap *)p;
    if (!t) continue;
    if (a[3]) touch_by(c, op->line, i, address, 128, WRITE);
    switch (a[4]) {
      case 0: t->address = value; break;
      case 1: t->rank = value + 1; break;
      case 2: t->box[k] = value; break;
      case 3: t->dim[k] = value; break;
      case 4: t->stride[k] = value; break;
      case 5: t->element_stride[k] = value; break;
      case 6: t->type = value; break;
      case 7: t->interleave = value; break;
      case 8: t->swizzle = value; break;
      case 9: t->fill = value; break;
    }
    if (a[4] == 2 && value > 256) report(c, BAD_TENSOR_MAP, op->line, i, value, MAP_BOX);
  }
}
/* a: global address (3), shared address (3), bytes */
HANDLER(tensormap_copy) {
  EACH_WARP(w, active) {
    int t = 32 * w, k = 0;
    whole(c, op, active, w);
    u64 to = address_of(c, a, t), from = address_of(c, a + 3, t);
    u8 *q = global(c, op->line, t, to, 128, STORES), *p = shared(c, op->line, t, from, 128);
    if (to % 128) report(c, MISALIGNED, op->line, t, to, 128);
    if (!p || !q) continue;
    touch_by(c, op->line, t, from, 128, READ);
    memcpy(q, p, 128);
    while (k < c->map_write_count && c->map_writes[k].address != to) k++;
    if (k < 64) c->map_writes[k] = (MapWrite){to, 0, op->line}, c->map_write_count += k == c->map_write_count;
  }
}
/* a: address (3) */
HANDLER(tensormap_acquire) {
  EACH_THREAD(i) {
    u64 at = address_of(c, a, i);
    for (int k = 0; k < c->map_write_count; k++) if (c->map_writes[k].address == at) c->map_writes[k].acquired = c->now;
  }
  (void)op;
}

/* The map at an address, reported if it is not as the hardware wants it; NULL if it can't be used. */
static TensorMap *map_at(Engine *c, const Op *op, int i, u64 address, int rank) {
  TensorMap *t = (TensorMap *)global(c, op->line, i, address, 128, LOADS);
  u64 wrong = 0;
  if (!t) return NULL;
  if (address % 64) report(c, MISALIGNED, op->line, i, address, 64);
  for (int k = 0; k < c->map_write_count; k++)
    if (c->map_writes[k].address == address && !c->map_writes[k].acquired)
      report(c, NO_MAP_FENCE, op->line, i, address, c->map_writes[k].line);
  if (t->rank != rank) { report(c, BAD_TENSOR_MAP, op->line, i, t->rank, MAP_RANK); return NULL; }
  if (t->type > 12 || t->interleave) { report(c, BAD_TENSOR_MAP, op->line, i, t->type, MAP_TYPE); return NULL; }
  int inner = t->box[0] * TYPE_BYTES[t->type];
  if (t->address % 16) report(c, BAD_TENSOR_MAP, op->line, i, t->address, MAP_BASE);
  for (int k = 0; k < rank; k++) {
    if (t->box[k] < 1 || t->box[k] > 256) wrong = MAP_BOX;
    u64 stride = k ? t->stride[k - 1] : 0;
    if (t->dim[k] == 0 || t->dim[k] > 0x7fffffffu)
      report(c, BAD_TENSOR_MAP, op->line, i, t->dim[k] | (u64)k << 32, MAP_SIZE);
    if (stride % 16 || stride >> 40) report(c, BAD_TENSOR_MAP, op->line, i, stride, MAP_STRIDE);
    if (t->element_stride[k] != 1) wrong = MAP_ELEMENT_STRIDE;
  }
  if (inner % 16 || (t->swizzle && inner > 16 << t->swizzle)) wrong = MAP_INNER;
  if (wrong) report(c, BAD_TENSOR_MAP, op->line, i, inner, wrong);
  return wrong && (wrong != MAP_INNER || inner % 16) ? NULL : t;
}
static u32 box_bytes(const TensorMap *t) {
  u32 n = TYPE_BYTES[t->type];
  for (int k = 0; k < t->rank; k++) n *= t->box[k];
  return n;
}
static s64 size_of(const TensorMap *t, int k) { return t->dim[k] ? t->dim[k] : (s64)1 << 32; }
static int atomic_type(int type) {
  return type == TYPE_F32 ? 4 : type == TYPE_F64 ? 5 : type == TYPE_F16 ? 6 : type == TYPE_BF16 ? 7 : 2;
}

/* Moves a row of a box, or the part of it that lies in the tensor; how: LOADS, STORES, or COMBINES for additions. */
static void move_row(Engine *c, const Op *op, int thread, const TensorMap *t, u64 address, u8 *data, s64 n, int how) {
  int bytes = TYPE_BYTES[t->type];
  u8 *p = global(c, op->line, thread, address, n * bytes, how);
  count_row(c, op, address, n * bytes);
  if (!p) { if (how == LOADS) memset(data, 255, n * bytes); return; }
  if (how == STORES) memcpy(p, data, n * bytes);
  else if (how == LOADS) {
    memcpy(data, p, n * bytes);
    if (t->type >= TYPE_TF32) for (s64 x = 0; x < n; x++) ((u32 *)data)[x] = rna_tf32(((u32 *)data)[x]);
  } else for (s64 x = 0; x < n; x++) {
    u64 u = 0, v = 0;
    memcpy(&u, p + x * bytes, bytes), memcpy(&v, data + x * bytes, bytes);
    u64 sum = combine(0, atomic_type(t->type), u, v, 0);
    memcpy(p + x * bytes, &sum, bytes);
  }
}
/* Moves a box at these coordinates between global memory and a buffer of its rows. Outside of the tensor loads fill in
 * zeros or NaN, and stores leave out. */
static void move_box(Engine *c, const Op *op, int thread, const TensorMap *t, const s32 *at, u8 *data, int how) {
  int bytes = TYPE_BYTES[t->type];
  u32 rows = 1, row = t->box[0] * bytes;
  for (int k = 1; k < t->rank; k++) rows *= t->box[k];
  for (u32 r = 0; r < rows; r++) {
    u8 *buffer = data + (size_t)r * row;
    s64 base = t->address, from = at[0] < 0 ? -(s64)at[0] : 0, to = size_of(t, 0) - at[0];
    int inside = 1;
    u32 rest = r;
    for (int k = 1; k < t->rank; k++) {
      s64 x = (s64)at[k] + rest % t->box[k];
      rest /= t->box[k];
      inside &= x >= 0 && x < size_of(t, k);
      base += x * (s64)t->stride[k - 1];
    }
    if (to > t->box[0]) to = t->box[0];
    inside &= to > from;
    if (how == LOADS && (!inside || from > 0 || to < t->box[0])) memset(buffer, t->fill ? 255 : 0, row);
    if (inside) move_row(c, op, thread, t, base + (at[0] + from) * bytes, buffer + from * bytes, to - from, how);
  }
}

/* a: target (3), map (3), mbarrier (3), rank, coordinates */
HANDLER(tma_load) {
  EACH_THREAD(i) {
    u32 to = address_of(c, a, i);
    u64 barrier = address_of(c, a + 6, i);
    s32 at[5] = {0};
    for (int k = 0; k < a[9]; k++) at[k] = REG(s32, 10 + k)[i];
    TensorMap *t = map_at(c, op, i, address_of(c, a + 3, i), a[9]);
    if (!t) continue;
    Barrier *b = barrier_at(c, op->line, i, barrier);
    if (to % 128) report(c, MISALIGNED, op->line, i, to, 128);
    u32 bytes = box_bytes(t), agent = b ? b->agent : MAX_WARPS, clock = b ? ++b->clock : 1;
    BoxLoad e = {op->line, i, to, bytes, t->swizzle, clock, barrier, malloc(bytes)};
    move_box(c, op, i, t, at, e.data, LOADS);
    u8 *p = shared(c, op->line, i, to, bytes);
    if (p) memset(p, 255, bytes), touch(c, op->line, i / 32, agent, clock, to, bytes, ASYNC_WRITE);
    GROW(c->loads, c->load_count, c->load_room);
    c->loads[c->load_count++] = e, c->progress++; /* who waits for it may go on */
  }
}
/* a: map (3), origin (3), does it add?, rank, coordinates */
HANDLER(tma_store) {
  EACH_THREAD(i) {
    TensorMap *t = map_at(c, op, i, address_of(c, a, i), a[7]);
    if (!t) continue;
    BoxStore e = {op->line, i, address_of(c, a + 3, i), c->bulk_group[i], {0}, a[6], c->now, op, *t};
    for (int k = 0; k < a[7]; k++) e.at[k] = REG(s32, 8 + k)[i];
    if (e.from % 128) report(c, MISALIGNED, op->line, i, e.from, 128);
    touch_by(c, op->line, i, e.from, box_bytes(t), ASYNC_READ);
    GROW(c->stores, c->store_count, c->store_room);
    c->stores[c->store_count++] = e;
  }
}
void finish_store(Engine *c, BoxStore *e) {
  u32 bytes = box_bytes(&e->map);
  u8 *data = malloc(bytes);
  for (u32 o = 0; o < bytes; o += 16) {
    u8 *p = shared(c, e->line, e->thread, swizzled(e->from + o, e->map.swizzle), 16);
    if (p) memcpy(data + o, p, 16); else memset(data + o, 255, 16);
  }
  touch_by(c, e->line, e->thread, e->from, bytes, ASYNC_READ);
  kept_since(c, e->line, e->thread, e->from, bytes, e->since);
  move_box(c, e->op, e->thread, &e->map, e->at, data, e->adds ? COMBINES : STORES);
  free(data);
}
HANDLER(bulk_commit) { EACH_THREAD(i) c->bulk_group[i]++; (void)op, (void)a; }
/* a: groups that may be under way */
HANDLER(bulk_wait) {
  int kept = 0;
  for (int k = 0; k < c->store_count; k++) {
    BoxStore *e = &c->stores[k];
    if (ON(e->thread) && (s64)e->group <= (s64)c->bulk_group[e->thread] - 1 - a[0]) finish_store(c, e);
    else c->stores[kept++] = *e;
  }
  c->store_count = kept;
  (void)op;
}

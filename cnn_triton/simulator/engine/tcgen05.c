/* Tensor memory: 128 lanes x 512 columns of 32 bits. Warp w reaches lanes 32·(w mod 4) and on. Products are issued by one
 * thread and computed when an mbarrier that they were committed to is waited for; loads and stores end at their wait. */
#include "engine.h"

#define LANES 128
#define COLUMNS 512
#define CELL(lane, column) c->tensor_memory[(size_t)(lane) * COLUMNS + (column)]
/* What is wrong, as in findings.py. */
enum { NO_ROOM = 1, NOT_ALLOCATED, OTHER_LANES, NOT_FREED, UNORDERED, MOVES };

static int is_allocated(Engine *c, u32 column, u32 n) {
  for (int k = 0; k < c->allocated; k++)
    if (column >= c->columns[2 * k] && column + n <= c->columns[2 * k] + c->columns[2 * k + 1]) return 1;
  return 0;
}
enum { S32X32B, S16X32BX2, S16X128B, S16X256B }; /* shapes of loads and stores, as in instructions/tensor_memory.py */
/* The columns that a load or store reaches at an address. */
static u32 columns_of(const s32 *a) { return a[3] > S16X32BX2 ? 2 * a[5] : a[5]; }
/* The distance of the columns that its second half reaches; 0: the same. */
static u32 split_of(const s32 *a) { return a[3] == S16X32BX2 ? a[4] : 0; }
#define ALL_PARTS 0xff
/* Parts of 16 lanes, as bits: of a product of so many rows; of a warp's load or store. */
static int parts_of_product(int rows, u32 address) { return rows == 64 ? 0x55 << (address >> 20 & 1) : ALL_PARTS; }
static int parts_of_move(const s32 *a, u32 at) { return (a[3] ? 1 : 3) << (at >> 20 & 7); }
/* Notes an access to columns of these parts, by a thread's warp. */
static void touch_cells(Engine *c, const Op *op, int t, int parts, u32 column, u32 n, int writes) {
  int w = t / 32;
  if (!(c->flags & CHECK_RACES)) return;
  for (int q = 0; q < 8; q++) for (u32 k = column; parts >> q & 1 && k < column + n && k < COLUMNS; k++) {
    TensorShadow *s = &c->cells[q][k];
    int after_write = s->written && !is_before(c, w, s->writer, s->written);
    if (after_write || (writes && s->read && !is_before(c, w, s->reader, s->read)))
      report(c, TENSOR_MEMORY, op->line, t, k, UNORDERED);
    if (writes) *s = (TensorShadow){w, 0, c->clock[w][w], 0};
    else s->reader = w, s->read = c->clock[w][w];
  }
}
/* Are loads or stores of these columns under way, as a product of them, or their end, begins? */
static void moved(Engine *c, const Op *op, int t, int parts, u32 column, u32 n) {
  for (int k = 0; k < c->move_count; k++) {
    const s32 *of = c->pool + c->moves[k].op->arguments;
    u32 first = c->moves[k].at & 0xffff, split = split_of(of);
    for (u32 at = first; at <= first + split; at += split ? split : 1)
      if (at < column + n && column < at + columns_of(of) && parts & parts_of_move(of, c->moves[k].at))
        report(c, TENSOR_MEMORY, op->line, t, at, MOVES);
  }
}
/* a: shared address of the result (3), register of the number of columns */
HANDLER(tcgen05_alloc) {
  EACH_WARP(w, active) {
    int t = 32 * w;
    u32 n = REG(u32, 3)[t], at = 0;
    whole(c, op, active, w);
    for (int k = 0; k < c->allocated; k++) {
      u32 first = c->columns[2 * k], end = first + c->columns[2 * k + 1];
      if (at < end && first < at + n) at = end, k = -1; /* look again behind this one */
    }
    if (at + n > COLUMNS || c->allocated == 32) {
      report(c, TENSOR_MEMORY, op->line, t, n, NO_ROOM), fail(c, DEADLOCK, op->line, t);
      return;
    }
    c->columns[2 * c->allocated] = at, c->columns[2 * c->allocated++ + 1] = n;
    u32 address = address_of(c, a, t);
    u8 *p = shared(c, op->line, t, address, 4);
    if (p) memcpy(p, &at, 4), touch_by(c, op->line, t, address, 4, OBJECT);
  }
}
/* a: registers of the address and of the number of columns */
HANDLER(tcgen05_dealloc) {
  EACH_WARP(w, active) {
    int k = 0, t = 32 * w;
    u32 at = REG(u32, 0)[t] & 0xffff;
    whole(c, op, active, w);
    while (k < c->allocated && (c->columns[2 * k] != at || c->columns[2 * k + 1] != REG(u32, 1)[t])) k++;
    if (k == c->allocated) { report(c, TENSOR_MEMORY, op->line, t, at, NOT_ALLOCATED); continue; }
    moved(c, op, t, ALL_PARTS, at, REG(u32, 1)[t]), touch_cells(c, op, t, ALL_PARTS, at, REG(u32, 1)[t], 1);
    c->allocated--;
    c->columns[2 * k] = c->columns[2 * c->allocated], c->columns[2 * k + 1] = c->columns[2 * c->allocated + 1];
  }
}

/* Where a thread's register j lies. a: address (3), shape, split, number, registers. The last two shapes are as sums of a
 * warp's matrix instructions lie: row lane / 4, and below it another one. */
static u32 *cell_of(Engine *c, const s32 *a, u32 at, int lane, int j) {
  u32 row = at >> 16, column = at & 0xffff;
  switch (a[3]) {
    case S32X32B: row += lane, column += j; break;
    case S16X32BX2: row += lane % 16, column += j + lane / 16 * a[4]; break;
    case S16X128B: row += lane / 4 + j % 2 * 8, column += lane % 4 + j / 2 * 4; break;
    default: row += lane / 4 + j / 2 % 2 * 8, column += lane % 4 * 2 + j % 2 + j / 4 * 8;
  }
  return row < LANES && column < COLUMNS ? &CELL(row, column) : NULL;
}
static void move(Engine *c, const Op *op, const s32 *a, const u8 *m, int stores) {
  EACH_WARP(w, active) {
    int t = 32 * w;
    u32 at = address_of(c, a, t);
    whole(c, op, active, w);
    if ((at >> 16) / 32 != (u32)w % 4) report(c, TENSOR_MEMORY, op->line, t, at >> 16, OTHER_LANES);
    u32 columns = columns_of(a), split = split_of(a);
    if (!is_allocated(c, at & 0xffff, columns) || !is_allocated(c, (at & 0xffff) + split, columns))
      report(c, TENSOR_MEMORY, op->line, t, at & 0xffff, NOT_ALLOCATED);
    touch_cells(c, op, t, parts_of_move(a, at), at & 0xffff, columns, stores);
    if (split) touch_cells(c, op, t, parts_of_move(a, at), (at & 0xffff) + split, columns, stores);
    TensorMove e = {op, w, at, stores ? malloc(128 * a[5]) : NULL};
    for (int j = 0; j < a[5]; j++) {
      if (stores) memcpy(e.values + 32 * j, REG(u32, 6 + j) + t, 128);
      else memset(REG(u32, 6 + j) + t, 255, 128);
    }
    GROW(c->moves, c->move_count, c->move_room);
    c->moves[c->move_count++] = e;
  }
}
HANDLER(tcgen05_ld) { move(c, op, a, m, 0); }
HANDLER(tcgen05_st) { move(c, op, a, m, 1); }
static void end_move(Engine *c, TensorMove *e) {
  const s32 *of = c->pool + e->op->arguments;
  for (int j = 0; j < of[5]; j++) for (int i = 0; i < 32; i++) {
    u32 *cell = cell_of(c, of, e->at, i, j), *value = REGISTER(u32, of[6 + j]) + 32 * e->warp + i;
    if (e->values) { if (cell) *cell = e->values[32 * j + i]; }
    else *value = cell ? *cell : ~0u;
  }
  free(e->values);
}
static int reads_from(Engine *c, const Op *op, const s32 *a, const Op *load) {
  const s32 *of = c->pool + load->arguments;
  for (int i = 1; i < op->count; i++) for (int j = 0; j < of[5]; j++) if (a[i] == of[6 + j]) return 1;
  return 0;
}
/* Before an operation that reads registers which a load under way writes: the load ends here, and must be waited for
 * nevertheless. A mov is noted only: the assembler makes it another name for the registers, not an instruction. */
void touch_loaded(Engine *c, const Op *op, const s32 *a) {
  for (int k = 0; k < c->move_count; k++) {
    TensorMove *e = &c->moves[k];
    if (e->values || e->ended || !reads_from(c, op, a, e->op)) continue;
    report(c, op->flags & 2 ? EARLY_ACCUMULATOR : EARLY_REGISTER, op->line, 32 * e->warp, 0, e->op->line);
    end_move(c, e), e->ended = 1;
  }
}
/* a: does it wait for stores? */
HANDLER(tcgen05_wait) {
  int kept = 0;
  for (int k = 0; k < c->move_count; k++) {
    TensorMove *e = &c->moves[k];
    if (!ON(32 * e->warp) || (e->values != NULL) != a[0]) { c->moves[kept++] = *e; continue; }
    if (!e->ended) end_move(c, e);
  }
  c->move_count = kept;
  (void)op;
}

/* ---- products */
typedef struct { int rows, columns, k, a, b, a_transposed, b_transposed; f32 sign; } Shape;
static int shape_of(Shape *s, const s32 *a, u32 description) {
  static const s8 kinds[3][8] = {{F16, BF16, -1, -1, -1, -1, -1, -1}, {-1, -1, TF32, -1, -1, -1, -1, -1},
                                 {E4M3, E5M2, -1, -1, -1, -1, -1, -1}};
  s->rows = (description >> 24 & 31) * 16, s->columns = (description >> 17 & 63) * 8;
  s->a = kinds[a[3]][description >> 7 & 7], s->b = kinds[a[3]][description >> 10 & 7];
  s->sign = (description >> 13 & 1) == (description >> 14 & 1) ? 1 : -1;
  s->a_transposed = description >> 15 & 1, s->b_transposed = description >> 16 & 1;
  s->k = s->a < 0 ? 0 : 32 / element_bytes(s->a);
  int plain = !(description & 0xc000000f) && (description >> 4 & 3) == 1; /* dense, sums in float32 */
  return plain && s->a >= 0 && s->b >= 0 && (s->rows == 64 || s->rows == 128);
}
/* An operand [rows, k] in shared memory, of a product e, into `to` [k, rows]; NULL: notes that it is read. */
static int read_operand(Engine *c, const Product *e, u64 description, int kind, int transposed, int rows, int k, f32 *to) {
  static const s8 modes[] = {0, -1, 3, -1, 2, -1, 1, -1};
  int bytes = element_bytes(kind), per = 16 / bytes, mode = modes[description >> 61];
  if (mode < 0 || (description >> 46 & 7) != 1 || description >> 49 & 15) return 0;
  for (int row = 0; row < rows; row += transposed ? per : 1) for (int x = 0; x < k; x += transposed ? 1 : per) {
    u32 address = matrix_address(
      (description & 0x3fff) << 4, (description >> 16 & 0x3fff) << 4, (description >> 32 & 0x3fff) << 4, mode, bytes,
      transposed, row, x);
    u8 *p = shared(c, e->op->line, e->thread, address, 16), poison[16];
    if (!p) p = memset(poison, 255, 16);
    if (!to) touch_by(c, e->op->line, e->thread, address, 16, ASYNC_READ);
    else kept_since(c, e->op->line, e->thread, address, 16, e->since);
    for (int i = 0; to && i < per; i++)
      to[(transposed ? x : x + i) * rows + (transposed ? row + i : row)] = element(kind, p, i);
  }
  return 1;
}
static u32 lane_of(const Shape *s, u32 address, int row) {
  return (address >> 16) + (s->rows == 64 ? row / 16 * 32 + row % 16 : row);
}
/* A [rows, k] in tensor memory, as many elements in a cell as it has room for, into `to` [k, rows]. */
static void read_cells(Engine *c, const Shape *s, u32 address, f32 *to) {
  int per = 4 / element_bytes(s->a);
  for (int r = 0; r < s->rows; r++) for (int x = 0; x < s->k; x++) {
    u32 lane = lane_of(s, address, r), column = (address & 0xffff) + x / per;
    to[x * s->rows + r] = lane < LANES && column < COLUMNS ? element(s->a, &CELL(lane, column), x % per) : NAN;
  }
}
static void compute(Engine *c, Product *e) {
  static f32 A[32 * 128], B[32 * 256];
  const s32 *a = c->pool + e->op->arguments;
  Shape s;
  shape_of(&s, a, e->description);
  if (a[10]) read_cells(c, &s, e->a, A); else read_operand(c, e, e->a, s.a, s.a_transposed, s.rows, s.k, A);
  read_operand(c, e, e->b, s.b, s.b_transposed, s.columns, s.k, B);
  for (int r = 0; r < s.rows; r++) {
    u32 lane = lane_of(&s, e->to, r), first = e->to & 0xffff;
    if (lane >= LANES || first + s.columns > COLUMNS) continue;
    f32 *sums = (f32 *)&CELL(lane, first);
    if (!e->adds) memset(sums, 0, 4 * s.columns);
    for (int x = 0; x < s.k; x++) {
      f32 value = s.sign * A[x * s.rows + r];
      const f32 *b = B + x * s.columns;
      for (int n = 0; n < s.columns; n++) sums[n] += value * b[n];
    }
  }
}
/* a: address in tensor memory (3), class of types, A's descriptor or address in tensor memory (3), registers of B's
 * descriptor, of the shape, of "adds"; is A in tensor memory? */
HANDLER(tcgen05_mma) {
  EACH_THREAD(i) {
    u64 first = address_of(c, a + 4, i), second = REG(u64, 7)[i];
    Product e = {op, i, first, second, c->now, 0, address_of(c, a, i), REG(u32, 8)[i], REG(u8, 9)[i], NULL};
    Shape s;
    int known = shape_of(&s, a, e.description) && read_operand(c, &e, e.b, s.b, s.b_transposed, s.columns, s.k, NULL);
    if (!known || (a[10] ? s.a_transposed : !read_operand(c, &e, e.a, s.a, s.a_transposed, s.rows, s.k, NULL))) {
      fail(c, UNSUPPORTED, op->line, i);
      return;
    }
    int parts = parts_of_product(s.rows, e.to), of_a = parts_of_product(s.rows, e.a);
    if (a[10] && !is_allocated(c, e.a & 0xffff, 8)) report(c, TENSOR_MEMORY, op->line, i, e.a & 0xffff, NOT_ALLOCATED);
    if (a[10]) moved(c, op, i, of_a, e.a & 0xffff, 8), touch_cells(c, op, i, of_a, e.a & 0xffff, 8, 0);
    if (!is_allocated(c, e.to & 0xffff, s.columns)) report(c, TENSOR_MEMORY, op->line, i, e.to & 0xffff, NOT_ALLOCATED);
    moved(c, op, i, parts, e.to & 0xffff, s.columns), touch_cells(c, op, i, parts, e.to & 0xffff, s.columns, 1);
    GROW(c->products, c->product_count, c->product_room);
    c->products[c->product_count++] = e;
  }
}
/* a: mbarrier (3) */
HANDLER(tcgen05_commit) {
  EACH_THREAD(i) {
    Product e = {op, i, 0, 0, 0, address_of(c, a, i), 0, 0, 0, malloc(4 * MAX_AGENTS)};
    memcpy(e.order, c->clock[i / 32], 4 * MAX_AGENTS);
    c->clock[i / 32][i / 32]++;
    GROW(c->products, c->product_count, c->product_room);
    c->products[c->product_count++] = e, c->progress++; /* who waits for it may go on */
  }
}
/* Ends what was issued before the last commit to an mbarrier, in order. */
void finish_products(Engine *c, u64 barrier) {
  int end = 0;
  for (int k = 0; k < c->product_count; k++) if (c->products[k].order && c->products[k].barrier == barrier) end = k + 1;
  for (int k = 0; k < end; k++) {
    Product *e = &c->products[k];
    if (!e->order) { compute(c, e); continue; }
    Barrier *b = barrier_at(c, e->op->line, e->thread, e->barrier);
    if (b) b->pending--, order_after(b->order, e->order), complete(c, b);
    free(e->order);
  }
  memmove(c->products, c->products + end, (c->product_count - end) * sizeof *c->products);
  c->product_count -= end;
}

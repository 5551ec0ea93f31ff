/* Matrix instructions of a warp, whose fragments PTX lays out over its threads: row or column g = lane / 4, and pairs of
 * columns or rows from q = lane % 4. Sums are float32, added in order of k. */
#include "engine.h"

/* a: address (3), transposed, number, registers */
static void move_matrices(Engine *c, const Op *op, const s32 *a, const u8 *m, int stores) {
  EACH_WARP(w, active) {
    whole(c, op, active, w);
    for (int j = 0; j < a[4]; j++) {
      u16 x[8][8];
      u8 *p[8], on[32] = {1, 1, 1, 1, 1, 1, 1, 1};
      u64 at[32];
      u32 *value = REG(u32, 5 + j) + 32 * w;
      for (int r = 0; r < 8; r++) {
        int t = 32 * w + 8 * j + r; /* whose address is that of the row */
        at[r] = address_of(c, a, t);
        if (at[r] % 16) report(c, MISALIGNED, op->line, t, at[r], 16);
        p[r] = shared(c, op->line, t, at[r], 16);
        if (p[r]) touch_by(c, op->line, t, at[r], 16, stores ? WRITE : READ);
        if (!stores) { if (p[r]) memcpy(x[r], p[r], 16); else memset(x[r], 255, 16); }
      }
      count_shared(c, op, at, on, 16);
      for (int i = 0; i < 32; i++) for (int k = 0; k < 2; k++) {
        int g = i / 4, q = i % 4 * 2 + k;
        u16 *e = a[3] ? &x[q][g] : &x[g][q];
        if (stores) *e = value[i] >> (16 * k);
        else value[i] = k ? (value[i] & 0xffff) | (u32)*e << 16 : *e;
      }
      if (stores) for (int r = 0; r < 8; r++) if (p[r]) memcpy(p[r], x[r], 16);
    }
  }
}
HANDLER(ldmatrix) { move_matrices(c, op, a, m, 0); }
HANDLER(stmatrix) { move_matrices(c, op, a, m, 1); }

/* m16n8: a: kind, k, are the sums f16?, registers of D, A, B, C */
HANDLER(mma) {
  int kind = a[0], k = a[1], half = a[2], integer = kind >= S8, per = 4 / element_bytes(kind);
  int a_count = k / (2 * per), b_count = a_count / 2, d_count = half ? 2 : 4; /* registers */
  const s32 *d = a + 3, *ra = d + d_count, *rb = ra + a_count, *rc = rb + b_count;
  EACH_WARP(w, active) {
    f32 A[16][32], B[32][8], C[16][8];
    s32 I[16][8];
    whole(c, op, active, w);
    for (int i = 0; i < 32; i++) {
      int t = 32 * w + i, g = i / 4, q = i % 4;
      for (int j = 0; j < a_count; j++) for (int e = 0; e < per; e++)
        A[g + 8 * (j & 1)][q * per + e + 4 * per * (j / 2)] = element(kind, REGISTER(u32, ra[j]) + t, e);
      for (int j = 0; j < b_count; j++) for (int e = 0; e < per; e++)
        B[q * per + e + 4 * per * j][g] = element(kind, REGISTER(u32, rb[j]) + t, e);
      for (int j = 0; j < 4; j++) {
        int row = g + 8 * (j / 2), column = q * 2 + (j & 1);
        if (half) C[row][column] = element(F16, REGISTER(u32, rc[j / 2]) + t, j & 1);
        else C[row][column] = REGISTER(f32, rc[j])[t], I[row][column] = REGISTER(s32, rc[j])[t];
      }
    }
    for (int r = 0; r < 16; r++) for (int x = 0; x < k; x++) for (int n = 0; n < 8; n++) {
      if (integer) I[r][n] += (s32)A[r][x] * (s32)B[x][n];
      else C[r][n] += A[r][x] * B[x][n];
    }
    for (int i = 0; i < 32; i++) for (int j = 0; j < d_count; j++) {
      int g = i / 4, q = i % 4 * 2;
      u32 *to = REGISTER(u32, d[j]) + 32 * w + i;
      if (half) *to = (u32)f2h(C[g + 8 * j][q]) | (u32)f2h(C[g + 8 * j][q + 1]) << 16;
      else *to = integer ? (u32)I[g + 8 * (j / 2)][q + (j & 1)] : U(C[g + 8 * (j / 2)][q + (j & 1)]);
    }
  }
}
/* m8n8k4, or m16n8 with k 4, 8, 16: a: m, k, registers of D, A, B, C */
HANDLER(mma_f64) {
  int rows = a[0], k = a[1], a_count = rows * k / 32, b_count = k / 4, d_count = rows / 4;
  const s32 *d = a + 2, *ra = d + d_count, *rb = ra + a_count, *rc = rb + b_count;
  EACH_WARP(w, active) {
    f64 A[16][16], B[16][8], C[16][8];
    whole(c, op, active, w);
    for (int i = 0; i < 32; i++) {
      int t = 32 * w + i, g = i / 4, q = i % 4;
      for (int j = 0; j < a_count; j++) {
        if (rows == 8) A[g][q + 4 * j] = REGISTER(f64, ra[j])[t];
        else A[g + 8 * (j & 1)][q + 4 * (j / 2)] = REGISTER(f64, ra[j])[t];
      }
      for (int j = 0; j < b_count; j++) B[q + 4 * j][g] = REGISTER(f64, rb[j])[t];
      for (int j = 0; j < d_count; j++) C[g + 8 * (j / 2)][q * 2 + (j & 1)] = REGISTER(f64, rc[j])[t];
    }
    for (int r = 0; r < rows; r++) for (int x = 0; x < k; x++) for (int n = 0; n < 8; n++)
      C[r][n] = fma(A[r][x], B[x][n], C[r][n]);
    for (int i = 0; i < 32; i++) for (int j = 0; j < d_count; j++)
      REGISTER(f64, d[j])[32 * w + i] = C[i / 4 + 8 * (j / 2)][i % 4 * 2 + (j & 1)];
  }
}

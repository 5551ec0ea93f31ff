/* Numbers as the instructions see them: bits to floating-point values and back, rounding, bit fields. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

typedef uint8_t u8; typedef int8_t s8; typedef uint16_t u16; typedef int16_t s16; typedef uint32_t u32; typedef int32_t s32;
typedef uint64_t u64; typedef int64_t s64; typedef unsigned __int128 u128; typedef __int128 s128;
typedef float f32; typedef double f64;

static inline f32 F(u32 x) { f32 y; memcpy(&y, &x, 4); return y; }
static inline u32 U(f32 x) { u32 y; memcpy(&y, &x, 4); return y; }
static inline f64 D(u64 x) { f64 y; memcpy(&y, &x, 8); return y; }
static inline u64 Q(f64 x) { u64 y; memcpy(&y, &x, 8); return y; }
static inline f32 FZ(f32 x) { return (U(x) & 0x7f800000u) ? x : F(U(x) & 0x80000000u); } /* subnormal: 0 */

/* To float, rounded to odd: what is rounded once more to fewer bits is as if rounded once. */
static inline f32 odd(f64 x) {
  f32 y = (f32)x;
  if ((f64)y == x || y != y || isinf(y)) return y;
  u32 u = U(y);
  if (!(u & 1)) u += fabs((f64)y) < fabs(x) ? 1 : -1;
  return F(u);
}
/* A sum and an integer to double, rounded to odd. */
static inline f64 to_odd(f64 y, int rest) { return rest && !(Q(y) & 1) ? D(Q(y) + ((rest > 0) == (y > 0) ? 1 : -1)) : y; }
static inline f64 odd_sum(f64 x, f64 y) {
  f64 sum = x + y, z = sum - x, rest = (x - (sum - z)) + (y - z);
  return isfinite(sum) ? to_odd(sum, (rest > 0) - (rest < 0)) : sum;
}
static inline f64 odd_whole(s128 x) { f64 y = (f64)x; return to_odd(y, (x > (s128)y) - (x < (s128)y)); }

/* f16, bf16 */
#ifdef __F16C__
static inline f32 h2f(u16 x) { return _cvtsh_ss(x); }
static inline u16 f2h(f32 x) { return x != x ? 0x7fff : _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
static inline f32 h2f(u16 x) { _Float16 y; memcpy(&y, &x, 2); return (f32)y; }
static inline u16 f2h(f32 x) { _Float16 y = (_Float16)x; u16 u; memcpy(&u, &y, 2); return x != x ? 0x7fff : u; }
#endif
static inline f32 b2f(u16 x) { return F((u32)x << 16); }
static inline u16 f2b(f32 x) { u32 u = U(x); return x != x ? 0x7fff : (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
static inline u16 d2h(f64 x) { return f2h(odd(x)); }
static inline u16 d2f(f64 x) { return d2h(x); } /* named by the first letter of f16 */
static inline u16 d2b(f64 x) { return f2b(odd(x)); }
static inline u16 rz_f16(f32 x) { u16 y = f2h(x); return fabsf(h2f(y)) > fabsf(x) ? y - 1 : y; } /* toward zero */
static inline u16 rz_bf16(f32 x) { return x != x ? 0x7fff : U(x) >> 16; }
static inline f32 rz_f64(f64 x) { f32 y = (f32)x; return fabs((f64)y) > fabs(x) ? nextafterf(y, 0) : y; }

/* TF32: float32 with 10 bits of mantissa, rounded to nearest, ties away (rna) or to even (rn) */
static inline u32 rna_tf32(u32 x) { return (x & 0x7f800000u) == 0x7f800000u ? x : (x + 0x1000u) & 0xffffe000u; }
static inline u32 rn_tf32(u32 x) {
  return (x & 0x7f800000u) == 0x7f800000u ? x : (x + 0xfffu + ((x >> 13) & 1)) & 0xffffe000u;
}

/* Eight bits, e4m3 (no infinity, NaN 0x7f) and e5m2 (f16's upper byte). To eight bits: rounded to nearest even, too large
 * ones to the largest number. */
static inline f32 e4m32f(u8 x) {
  int e = x >> 3 & 15, m = x & 7;
  f32 y = (x & 0x7f) == 0x7f ? NAN : e ? ldexpf(8 + m, e - 10) : ldexpf(m, -9);
  return x & 0x80 ? -y : y;
}
static inline f32 e5m22f(u8 x) { return h2f((u16)x << 8); }
static inline u8 to_byte(f32 x, int mantissa, int least, f32 largest, u8 top) { /* least: exponent of the least subnormal */
  u8 sign = signbit(x) ? 0x80 : 0;
  f32 y = fabsf(x);
  if (x != x) return 0x7f;
  if (y == 0) return sign;
  if (y >= largest) return sign | top;
  int e;
  frexpf(y, &e);
  int unit = e - 1 - mantissa > least ? e - 1 - mantissa : least;
  u32 q = (u32)rintf(ldexpf(y, -unit)); /* mantissa with its leading one, at most 2^(mantissa + 1) */
  return sign | (u8)(((u32)(unit - least) << mantissa) + q);
}
static inline u8 f2e4m3(f32 x) { return to_byte(x, 3, -9, 448, 0x7e); }
static inline u8 f2e5m2(f32 x) { return to_byte(x, 2, -16, 57344, 0x7b); }

#define RELU(x) ({ f64 v_ = (x); v_ != v_ ? v_ : v_ > 0 ? v_ : 0; })
/* The number if one operand is NaN; -0 is less than 0. */
#define MINNUM(x, y) ({ f64 x_ = (x), y_ = (y); \
  x_ != x_ ? y_ : y_ != y_ ? x_ : x_ < y_ ? x_ : y_ < x_ ? y_ : signbit(x_) ? x_ : y_; })
#define MAXNUM(x, y) ({ f64 x_ = (x), y_ = (y); \
  x_ != x_ ? y_ : y_ != y_ ? x_ : x_ > y_ ? x_ : y_ > x_ ? y_ : signbit(x_) ? y_ : x_; })
/* NaN if one operand is. */
#define MINNAN(x, y) ({ f64 p_ = (x), q_ = (y); p_ != p_ || q_ != q_ ? (f64)NAN : MINNUM(p_, q_); })
#define MAXNAN(x, y) ({ f64 p_ = (x), q_ = (y); p_ != p_ || q_ != q_ ? (f64)NAN : MAXNUM(p_, q_); })

/* high: is NaN the highest bit alone? */
#define SATURATING(t, lo, hi) \
  static inline t sat_##t(f64 x, int high) { \
    if (x != x) return high ? (t)((u64)1 << (8 * sizeof(t) - 1)) : 0; \
    return x <= (f64)(lo) ? (t)(lo) : x >= (f64)(hi) ? (t)(hi) : (t)x; \
  }
SATURATING(u8, 0, 255) SATURATING(s8, -128, 127) SATURATING(u16, 0, 65535) SATURATING(s16, -32768, 32767)
SATURATING(u32, 0, UINT32_MAX) SATURATING(s32, INT32_MIN, INT32_MAX)
SATURATING(u64, 0, UINT64_MAX) SATURATING(s64, INT64_MIN, INT64_MAX)

/* Bit fields of n bits from bit `at`; sign: of the field's last bit, or of the register's last one beyond it. */
static inline u64 field(u64 x, u32 at, u32 n, u32 bits) {
  at &= 255, n &= 255;
  if (!n || at >= bits) return 0;
  return n >= 64 ? x >> at : (x >> at) & (((u64)1 << n) - 1);
}
static inline s64 signed_field(u64 x, u32 at, u32 n, u32 bits) {
  at &= 255, n &= 255;
  if (!n) return 0;
  u32 last = at + n - 1 < bits ? at + n - 1 : bits - 1, width = at < bits ? last - at + 1 : 0;
  u64 y = field(x, at, n, bits), sign = x >> last & 1;
  return width > 63 ? (s64)y : (s64)(y | (sign ? ~(u64)0 << width : 0));
}
static inline u64 bfe_u64(u64 x, u32 at, u32 n) { return field(x, at, n, 64); }
static inline u32 bfe_u32(u32 x, u32 at, u32 n) { return field(x, at, n, 32); }
static inline s64 bfe_s64(s64 x, u32 at, u32 n) { return signed_field(x, at, n, 64); }
static inline s32 bfe_s32(s32 x, u32 at, u32 n) { return signed_field((u32)x, at, n, 32); }
static inline u64 insert(u64 x, u64 y, u32 at, u32 n, u32 bits) {
  at &= 255, n &= 255;
  if (!n || at >= bits) return y;
  u64 mask = n > 63 ? ~(u64)0 : ((u64)1 << n) - 1;
  return (y & ~(mask << at)) | ((x & mask) << at);
}
static inline u64 bfi_64(u64 x, u64 y, u32 at, u32 n) { return insert(x, y, at, n, 64); }
static inline u32 bfi_32(u32 x, u32 y, u32 at, u32 n) { return insert(x, y, at, n, 32); }
static inline u64 brev64(u64 x) { u64 y = 0; for (int i = 0; i < 64; i++) y |= (x >> i & 1) << (63 - i); return y; }
static inline u32 lop3(u32 x, u32 y, u32 z, u32 table) { /* bit 4·x + 2·y + z of the table */
  u32 r = 0;
  for (int i = 0; i < 8; i++) if (table >> i & 1) r |= (i & 4 ? x : ~x) & (i & 2 ? y : ~y) & (i & 1 ? z : ~z);
  return r;
}
static inline u32 prmt(u32 x, u32 y, u32 selector) { /* four bytes of eight; bit 3 of a selector: the sign, repeated */
  u64 both = (u64)y << 32 | x;
  u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 k = selector >> (4 * i) & 15, byte = both >> (8 * (k & 7)) & 255;
    r |= (k & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
  }
  return r;
}

/* Operands of matrix instructions by type, as in instructions/matrix.py. TF32 operands are truncated. */
enum { F16, BF16, TF32, E4M3, E5M2, S8, U8 };
static inline int element_bytes(int kind) { return kind == TF32 ? 4 : kind >= E4M3 ? 1 : 2; }
static inline f32 element(int kind, const void *p, int i) {
  switch (kind) {
    case F16: return h2f(((const u16 *)p)[i]);
    case BF16: return b2f(((const u16 *)p)[i]);
    case TF32: return F(((const u32 *)p)[i] & 0xffffe000u);
    case E4M3: return e4m32f(((const u8 *)p)[i]);
    case E5M2: return e5m22f(((const u8 *)p)[i]);
    case S8: return ((const s8 *)p)[i];
    default: return ((const u8 *)p)[i];
  }
}

/* Vector words: the small vocabulary that every kernel body is written in, for the width VEC_W (floats per vector).
 *
 * An instruction set's words_<isa>.h defines, for each of its widths, the words that need its instructions:
 *     vec_splat vec_fma vec_add_term vec_max vec_min vec_sqrt vec_select vec_load_part vec_store_part vec_dot
 * This file, included once per width, defines the types and all other words with the vector extension of GCC and
 * Clang, so that + - * / and comparisons work on vectors as on floats. A word's name carries its width (vec_fma_16);
 * bodies say `vec_fma` and get the width that is current.
 *
 *     vec            VEC_W floats                     vec_int   VEC_W int32 (also masks: all ones or zero a lane)
 *     vec_fma(a, b, c)         a * b + c, one rounding (baseline: two)
 *     vec_add_term(&sum, s, w) sum = vec_fma(s, w, sum), in the register that held the sum
 *     vec_max(a, b)            a > b ? a : b, so a NaN in b is kept; a must not be NaN. vec_min likewise.
 *     vec_select(m, a, b)      m ? a : b a lane
 *     vec_load_part(p, n)      n floats (0 <= n <= VEC_W), zeros beyond; reads nothing past p + n
 *     vec_store_part(p, n, v)  stores n floats; writes nothing past p + n
 *     vec_dot(sums, a, w)      sums + the four products of signed bytes a lane, exact, if no byte of a is -128; a's bytes
 *                              are FRNN_INT8_OFFSET too large, for which sums must begin with -offset times those of w
 */
#ifndef FRNN_WORDS_H
#define FRNN_WORDS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FRNN_INLINE static inline __attribute__((always_inline, unused))
#define FRNN_JOIN2(a, b) a##_##b
#define FRNN_JOIN(a, b) FRNN_JOIN2(a, b)
#define FRNN_WIDE(name) FRNN_JOIN(name, VEC_W) /* the name of the current width: vec_16 */

#define vec FRNN_WIDE(vec)
#define vec_int FRNN_WIDE(vec_int)
#define vec_splat FRNN_WIDE(vec_splat)
#define vec_fma FRNN_WIDE(vec_fma)
#define vec_add_term FRNN_WIDE(vec_add_term)
#define vec_max FRNN_WIDE(vec_max)
#define vec_min FRNN_WIDE(vec_min)
#define vec_sqrt FRNN_WIDE(vec_sqrt)
#define vec_select FRNN_WIDE(vec_select)
#define vec_load_part FRNN_WIDE(vec_load_part)
#define vec_store_part FRNN_WIDE(vec_store_part)
#define vec_load FRNN_WIDE(vec_load)
#define vec_store FRNN_WIDE(vec_store)
#define vec_load_n FRNN_WIDE(vec_load_n)
#define vec_store_n FRNN_WIDE(vec_store_n)
#define vec_bits FRNN_WIDE(vec_bits)
#define vec_of_bits FRNN_WIDE(vec_of_bits)
#define vec_of_int FRNN_WIDE(vec_of_int)
#define vec_abs FRNN_WIDE(vec_abs)
#define vec_copysign FRNN_WIDE(vec_copysign)
#define vec_keep_nan FRNN_WIDE(vec_keep_nan)
#define vec_is_nan FRNN_WIDE(vec_is_nan)
#define vec_flag FRNN_WIDE(vec_flag)
#define vec_dot FRNN_WIDE(vec_dot)
#define vec_four FRNN_WIDE(vec_four)
#endif

#ifdef VEC_W /* ---- the words of one width ---- */
FRNN_INLINE vec vec_load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
FRNN_INLINE void vec_store(float *p, vec v) { memcpy(p, &v, sizeof v); }
/* A full load if n = VEC_W, else a partial one: for kernels in which n is rarely a tail. */
FRNN_INLINE vec vec_load_n(const float *p, int64_t n) { return n >= VEC_W ? vec_load(p) : vec_load_part(p, n); }
FRNN_INLINE void vec_store_n(float *p, int64_t n, vec v) {
    if (n >= VEC_W) {
        vec_store(p, v);
    } else {
        vec_store_part(p, n, v);
    }
}
FRNN_INLINE vec_int vec_bits(vec a) { return (vec_int)a; }
FRNN_INLINE vec vec_of_bits(vec_int a) { return (vec)a; }
FRNN_INLINE vec vec_of_int(vec_int a) { return __builtin_convertvector(a, vec); }
FRNN_INLINE vec vec_abs(vec a) { return (vec)((vec_int)a & 0x7fffffff); }
/* magnitude of a (which must be >= 0), sign of b */
FRNN_INLINE vec vec_copysign(vec a, vec b) { return (vec)((vec_int)a | ((vec_int)b & (int32_t)0x80000000)); }
FRNN_INLINE vec_int vec_is_nan(vec a) { return a != a; }
/* result, or a if a is NaN, lane by lane */
FRNN_INLINE vec vec_keep_nan(vec a, vec result) { return vec_select(a != a, a, result); }
/* four bytes in every lane */
FRNN_INLINE vec_int vec_four(int32_t bytes) { return (vec_int){0} + bytes; }
/* mask -> 1.0f or 0.0f */
FRNN_INLINE vec vec_flag(vec_int mask) { return (vec)(mask & 0x3f800000); }
#endif

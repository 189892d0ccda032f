/* Words of AVX-512 (F, VL, BW, DQ): vectors of 16, and of 8 and 4 for narrow tails, all with mask registers. */
#include "words.h"
#include <immintrin.h>
#ifndef FRNN_ISA
#define FRNN_ISA avx512
#endif
#define FRNN_FUSED /* vec_fma rounds once */
#define FRNN_LANES 16
#define FRNN_TILE_SUMS 24 /* of 32 registers: 6 rows x 4 vectors */
/* Until the machine is measured (machine/tuning.py): bytes that tiles prefetch ahead, by level and rows. A Zen 5 gains
 * nothing where L3 holds the weights, and 1.1 to 1.35 times from memory; docs/decisions has the figures. */
#define FRNN_TUNING                                                                                                    \
    {                                                                                                                  \
        {2 << 20, 24 << 20}, { {0, 0, 0}, {0, 0, 4096}, {0, 16384, 16384} }                                            \
    }
#define FRNN_UNROLL 1 /* four terms: 0.98 to 1.01 times as fast on a Zen 5 */
#ifdef __AVX512VNNI__
#define FRNN_INT8_OFFSET 128 /* of a row's bytes, see vec_dot */
#define FRNN_INT8_ROWS 6     /* of a tile */
#define FRNN_INT8_SUMS 24    /* of a tile, in registers */
#else
#define FRNN_INT8_OFFSET 0
#define FRNN_INT8_ROWS 4
#define FRNN_INT8_SUMS 16
#endif

typedef float vec_16 __attribute__((vector_size(64)));
typedef int32_t vec_int_16 __attribute__((vector_size(64)));
typedef float vec_8 __attribute__((vector_size(32)));
typedef int32_t vec_int_8 __attribute__((vector_size(32)));
typedef float vec_4 __attribute__((vector_size(16)));
typedef int32_t vec_int_4 __attribute__((vector_size(16)));

/* n lanes from the first, as a mask; n in 0..16 */
FRNN_INLINE __mmask16 frnn_first(int64_t n) { return (__mmask16)((1u << n) - 1u); }

FRNN_INLINE vec_16 vec_splat_16(float s) { return _mm512_set1_ps(s); }
FRNN_INLINE vec_16 vec_fma_16(vec_16 a, vec_16 b, vec_16 c) { return _mm512_fmadd_ps(a, b, c); }
FRNN_INLINE void vec_add_term_16(vec_16 *sum, vec_16 s, vec_16 w) { *sum = vec_fma_16(s, w, *sum); }
FRNN_INLINE vec_16 vec_max_16(vec_16 a, vec_16 b) { return _mm512_max_ps(a, b); }
FRNN_INLINE vec_16 vec_min_16(vec_16 a, vec_16 b) { return _mm512_min_ps(a, b); }
FRNN_INLINE vec_16 vec_sqrt_16(vec_16 a) { return _mm512_sqrt_ps(a); }
FRNN_INLINE vec_16 vec_select_16(vec_int_16 m, vec_16 a, vec_16 b) {
    return _mm512_mask_mov_ps(b, _mm512_movepi32_mask((__m512i)m), a);
}
FRNN_INLINE vec_16 vec_load_part_16(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(frnn_first(n), p); }
FRNN_INLINE void vec_store_part_16(float *p, int64_t n, vec_16 v) { _mm512_mask_storeu_ps(p, frnn_first(n), v); }

FRNN_INLINE vec_8 vec_splat_8(float s) { return _mm256_set1_ps(s); }
FRNN_INLINE vec_8 vec_fma_8(vec_8 a, vec_8 b, vec_8 c) { return _mm256_fmadd_ps(a, b, c); }
FRNN_INLINE void vec_add_term_8(vec_8 *sum, vec_8 s, vec_8 w) { *sum = vec_fma_8(s, w, *sum); }
FRNN_INLINE vec_8 vec_max_8(vec_8 a, vec_8 b) { return _mm256_max_ps(a, b); }
FRNN_INLINE vec_8 vec_min_8(vec_8 a, vec_8 b) { return _mm256_min_ps(a, b); }
FRNN_INLINE vec_8 vec_sqrt_8(vec_8 a) { return _mm256_sqrt_ps(a); }
FRNN_INLINE vec_8 vec_select_8(vec_int_8 m, vec_8 a, vec_8 b) { return _mm256_blendv_ps(b, a, (__m256)m); }
FRNN_INLINE vec_8 vec_load_part_8(const float *p, int64_t n) {
    return _mm256_maskz_loadu_ps((__mmask8)frnn_first(n), p);
}
FRNN_INLINE void vec_store_part_8(float *p, int64_t n, vec_8 v) {
    _mm256_mask_storeu_ps(p, (__mmask8)frnn_first(n), v);
}

FRNN_INLINE vec_4 vec_splat_4(float s) { return _mm_set1_ps(s); }
FRNN_INLINE vec_4 vec_fma_4(vec_4 a, vec_4 b, vec_4 c) { return _mm_fmadd_ps(a, b, c); }
FRNN_INLINE void vec_add_term_4(vec_4 *sum, vec_4 s, vec_4 w) { *sum = vec_fma_4(s, w, *sum); }
FRNN_INLINE vec_4 vec_max_4(vec_4 a, vec_4 b) { return _mm_max_ps(a, b); }
FRNN_INLINE vec_4 vec_min_4(vec_4 a, vec_4 b) { return _mm_min_ps(a, b); }
FRNN_INLINE vec_4 vec_sqrt_4(vec_4 a) { return _mm_sqrt_ps(a); }
FRNN_INLINE vec_4 vec_select_4(vec_int_4 m, vec_4 a, vec_4 b) { return _mm_blendv_ps(b, a, (__m128)m); }
FRNN_INLINE vec_4 vec_load_part_4(const float *p, int64_t n) { return _mm_maskz_loadu_ps((__mmask8)frnn_first(n), p); }
FRNN_INLINE void vec_store_part_4(float *p, int64_t n, vec_4 v) { _mm_mask_storeu_ps(p, (__mmask8)frnn_first(n), v); }

#ifdef __AVX512VNNI__
FRNN_INLINE vec_int_16 vec_dot_16(vec_int_16 sums, vec_int_16 a, vec_int_16 w) {
    return (vec_int_16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)w);
}
FRNN_INLINE vec_int_8 vec_dot_8(vec_int_8 sums, vec_int_8 a, vec_int_8 w) {
    return (vec_int_8)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)a, (__m256i)w);
}
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
    return (vec_int_4)_mm_dpbusd_epi32((__m128i)sums, (__m128i)a, (__m128i)w);
}
#else
/* As words_maddubs.h; there is no VPSIGNB of 64 bytes. */
FRNN_INLINE vec_int_16 vec_dot_16(vec_int_16 sums, vec_int_16 a, vec_int_16 w) {
    __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi16(1);
    __m512i signed_a = _mm512_mask_sub_epi8((__m512i)a, _mm512_movepi8_mask((__m512i)w), zero, (__m512i)a);
    return sums + (vec_int_16)_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8((__m512i)w), signed_a), one);
}
#include "words_maddubs.h"
#endif

/* Words of AVX2 + FMA: vectors of 8, and of 4 for narrow tails. */
#include "words.h"
#include <immintrin.h>
#ifndef FRNN_ISA
#define FRNN_ISA avx2
#endif
#define FRNN_FUSED /* vec_fma rounds once */
#define FRNN_LANES 8
#define FRNN_TILE_SUMS 12 /* of 16 registers: 6 rows x 2 vectors, 4 x 3, 3 x 4 */
/* Until the machine is measured (machine/tuning.py): bytes that tiles prefetch ahead, by level and rows. 4 KiB: a Zen 3
 * runs LSTM 512 with 16 rows 1.34 times as fast (1 KiB gains a sixth of that), weights in L2 1.00 to 1.02. Spread, from
 * 4 MiB on: docs/decisions/0011. */
#define FRNN_TUNING                                                                                                    \
    {                                                                                                                  \
        {4 << 20, INT64_MAX}, {                                                                                        \
            {0, 4096, 4096}, {0, FRNN_SPREAD, FRNN_SPREAD}, { 0, FRNN_SPREAD, FRNN_SPREAD }                            \
        }                                                                                                              \
    }
#define FRNN_UNROLL 4 /* terms of many rows per iteration; see body_tile.h */
#ifdef __AVXVNNI__
#define FRNN_INT8_OFFSET 128 /* of a row's bytes, see vec_dot */
#define FRNN_INT8_ROWS 6 /* of a tile */
#define FRNN_INT8_SUMS 12 /* of a tile, in registers */
#else
#define FRNN_INT8_OFFSET 0
#define FRNN_INT8_ROWS 4
#define FRNN_INT8_SUMS 8
#endif

typedef float vec_8 __attribute__((vector_size(32)));
typedef int32_t vec_int_8 __attribute__((vector_size(32)));
typedef float vec_4 __attribute__((vector_size(16)));
typedef int32_t vec_int_4 __attribute__((vector_size(16)));

/* mask of the first n lanes: 8 ones then 8 zeros, read at 8 - n */
static const int32_t frnn_lane_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

FRNN_INLINE vec_8 vec_splat_8(float s) { return _mm256_set1_ps(s); }
FRNN_INLINE vec_8 vec_fma_8(vec_8 a, vec_8 b, vec_8 c) { return _mm256_fmadd_ps(a, b, c); }
FRNN_INLINE void vec_add_term_8(vec_8 *sum, vec_8 s, vec_8 w) {
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(s), "x"(w));
}
FRNN_INLINE vec_8 vec_max_8(vec_8 a, vec_8 b) { return _mm256_max_ps(a, b); }
FRNN_INLINE vec_8 vec_min_8(vec_8 a, vec_8 b) { return _mm256_min_ps(a, b); }
FRNN_INLINE vec_8 vec_sqrt_8(vec_8 a) { return _mm256_sqrt_ps(a); }
FRNN_INLINE vec_8 vec_select_8(vec_int_8 m, vec_8 a, vec_8 b) { return _mm256_blendv_ps(b, a, (__m256)m); }
FRNN_INLINE vec_8 vec_load_part_8(const float *p, int64_t n) {
    return _mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(frnn_lane_mask + 8 - n)));
}
FRNN_INLINE void vec_store_part_8(float *p, int64_t n, vec_8 v) {
    _mm256_maskstore_ps(p, _mm256_loadu_si256((const __m256i *)(frnn_lane_mask + 8 - n)), v);
}

FRNN_INLINE vec_4 vec_splat_4(float s) { return _mm_set1_ps(s); }
FRNN_INLINE vec_4 vec_fma_4(vec_4 a, vec_4 b, vec_4 c) { return _mm_fmadd_ps(a, b, c); }
FRNN_INLINE void vec_add_term_4(vec_4 *sum, vec_4 s, vec_4 w) {
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(s), "x"(w));
}
FRNN_INLINE vec_4 vec_max_4(vec_4 a, vec_4 b) { return _mm_max_ps(a, b); }
FRNN_INLINE vec_4 vec_min_4(vec_4 a, vec_4 b) { return _mm_min_ps(a, b); }
FRNN_INLINE vec_4 vec_sqrt_4(vec_4 a) { return _mm_sqrt_ps(a); }
FRNN_INLINE vec_4 vec_select_4(vec_int_4 m, vec_4 a, vec_4 b) { return _mm_blendv_ps(b, a, (__m128)m); }
FRNN_INLINE vec_4 vec_load_part_4(const float *p, int64_t n) {
    return _mm_maskload_ps(p, _mm_loadu_si128((const __m128i *)(frnn_lane_mask + 8 - n)));
}
FRNN_INLINE void vec_store_part_4(float *p, int64_t n, vec_4 v) {
    _mm_maskstore_ps(p, _mm_loadu_si128((const __m128i *)(frnn_lane_mask + 8 - n)), v);
}

#ifdef __AVXVNNI__
FRNN_INLINE vec_int_8 vec_dot_8(vec_int_8 sums, vec_int_8 a, vec_int_8 w) {
    return (vec_int_8)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)w);
}
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
    return (vec_int_4)_mm_dpbusd_avx_epi32((__m128i)sums, (__m128i)a, (__m128i)w);
}
#else
#include "words_maddubs.h"
#endif

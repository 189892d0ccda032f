/* Words of baseline: vectors of 4 in plain C (any CPU), with SSE2 instructions if the compiler has them. */
#include "words.h"
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#define FRNN_ISA baseline
#define FRNN_LANES 4
#define FRNN_TILE_SUMS 12 /* of 16 registers: 6 rows x 2 vectors, 4 x 3, 3 x 4 */
/* As AVX2: the CPUs that run this have no more. */
#define FRNN_TUNING                                                                                                    \
    {                                                                                                                  \
        {4 << 20, INT64_MAX}, {                                                                                        \
            {0, 4096, 4096}, {0, FRNN_SPREAD, FRNN_SPREAD}, { 0, FRNN_SPREAD, FRNN_SPREAD }                            \
        }                                                                                                              \
    }
#define FRNN_UNROLL 1  /* a term is two operations here, the loop little beside them */
#define FRNN_INT8_OFFSET 0  /* of a row's bytes, see vec_dot */
#define FRNN_INT8_ROWS 4    /* of a tile */
#define FRNN_INT8_SUMS 8    /* of a tile, in registers */

typedef float vec_4 __attribute__((vector_size(16)));
typedef int32_t vec_int_4 __attribute__((vector_size(16)));

FRNN_INLINE vec_4 vec_splat_4(float s) { return (vec_4){s, s, s, s}; }
FRNN_INLINE vec_4 vec_fma_4(vec_4 a, vec_4 b, vec_4 c) { return a * b + c; }
FRNN_INLINE void vec_add_term_4(vec_4 *sum, vec_4 s, vec_4 w) { *sum = vec_fma_4(s, w, *sum); }
FRNN_INLINE vec_4 vec_select_4(vec_int_4 m, vec_4 a, vec_4 b) {
    return (vec_4)((m & (vec_int_4)a) | (~m & (vec_int_4)b));
}
#ifdef __SSE2__
FRNN_INLINE vec_4 vec_max_4(vec_4 a, vec_4 b) { return _mm_max_ps(a, b); }
FRNN_INLINE vec_4 vec_min_4(vec_4 a, vec_4 b) { return _mm_min_ps(a, b); }
FRNN_INLINE vec_4 vec_sqrt_4(vec_4 a) { return _mm_sqrt_ps(a); }
#else
FRNN_INLINE vec_4 vec_max_4(vec_4 a, vec_4 b) { return vec_select_4(a > b, a, b); }
FRNN_INLINE vec_4 vec_min_4(vec_4 a, vec_4 b) { return vec_select_4(a < b, a, b); }
FRNN_INLINE vec_4 vec_sqrt_4(vec_4 a) { return (vec_4){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
#endif
FRNN_INLINE vec_4 vec_load_part_4(const float *p, int64_t n) {
    float lanes[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < n && i < 4; i++) lanes[i] = p[i];
    return (vec_4){lanes[0], lanes[1], lanes[2], lanes[3]};
}
FRNN_INLINE void vec_store_part_4(float *p, int64_t n, vec_4 v) {
    for (int64_t i = 0; i < n && i < 4; i++) p[i] = v[i];
}
#ifdef __SSE2__
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
    __m128i A = (__m128i)a, W = (__m128i)w; /* bytes as the upper halves of 16 bits, shifted down */
    __m128i low =
        _mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(A, A), 8), _mm_srai_epi16(_mm_unpacklo_epi8(W, W), 8));
    __m128i high =
        _mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(A, A), 8), _mm_srai_epi16(_mm_unpackhi_epi8(W, W), 8));
    __m128 even = _mm_shuffle_ps((__m128)low, (__m128)high, 0x88),
           odd = _mm_shuffle_ps((__m128)low, (__m128)high, 0xdd);
    return sums + (vec_int_4)even + (vec_int_4)odd;
}
#else
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
    int8_t x[16], y[16];
    memcpy(x, &a, 16);
    memcpy(y, &w, 16);
    for (int i = 0; i < 16; i++) sums[i / 4] += x[i] * y[i];
    return sums;
}
#endif

/* Words of NEON (AArch64): vectors of 4, 32 registers. */
#include "words.h"
#include <arm_neon.h>
#ifndef FRNN_ISA
#define FRNN_ISA neon
#endif
#define FRNN_FUSED /* vec_fma rounds once */
#define FRNN_LANES 4
#define FRNN_TILE_SUMS 24 /* of 32 registers: 6 rows x 4 vectors */
#define FRNN_TUNING                                                                                                    \
    {                                                                                                                  \
        {1 << 20, 16 << 20}, { {0}, {0}, {0} }                                                                         \
    } /* until the machine is measured: machine/tuning.py */
#define FRNN_UNROLL 1  /* not measured */
#define FRNN_INT8_OFFSET 0   /* of a row's bytes, see vec_dot */
#define FRNN_INT8_ROWS 6     /* of a tile */
#define FRNN_INT8_SUMS 24    /* of a tile, in registers */

typedef float vec_4 __attribute__((vector_size(16)));
typedef int32_t vec_int_4 __attribute__((vector_size(16)));

FRNN_INLINE vec_4 vec_splat_4(float s) { return (vec_4){s, s, s, s}; }
FRNN_INLINE vec_4 vec_fma_4(vec_4 a, vec_4 b, vec_4 c) {
    return (vec_4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
FRNN_INLINE void vec_add_term_4(vec_4 *sum, vec_4 s, vec_4 w) { *sum = vec_fma_4(s, w, *sum); }
FRNN_INLINE vec_4 vec_max_4(vec_4 a, vec_4 b) { return (vec_4)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
FRNN_INLINE vec_4 vec_min_4(vec_4 a, vec_4 b) { return (vec_4)vminq_f32((float32x4_t)a, (float32x4_t)b); }
FRNN_INLINE vec_4 vec_sqrt_4(vec_4 a) { return (vec_4)vsqrtq_f32((float32x4_t)a); }
FRNN_INLINE vec_4 vec_select_4(vec_int_4 m, vec_4 a, vec_4 b) {
    return (vec_4)vbslq_f32((uint32x4_t)m, (float32x4_t)a, (float32x4_t)b);
}
FRNN_INLINE vec_4 vec_load_part_4(const float *p, int64_t n) {
    float lanes[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < n && i < 4; i++) lanes[i] = p[i];
    return (vec_4){lanes[0], lanes[1], lanes[2], lanes[3]};
}
FRNN_INLINE void vec_store_part_4(float *p, int64_t n, vec_4 v) {
    for (int64_t i = 0; i < n && i < 4; i++) p[i] = v[i];
}
FRNN_INLINE vec_int_4 vec_dot_4(vec_int_4 sums, vec_int_4 a, vec_int_4 w) {
#ifdef __ARM_FEATURE_DOTPROD
    return (vec_int_4)vdotq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)w);
#else
    int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)w));
    int16x8_t high = vmull_high_s8((int8x16_t)a, (int8x16_t)w);
    return sums + (vec_int_4)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#endif
}

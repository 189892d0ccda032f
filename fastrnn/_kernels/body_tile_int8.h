/* The inner loop of products of 8-bit weights; included once per width. It computes what body_tile.h computes, of rows
 * that body_round.h has rounded. A term is a lane of four bytes: four weights of one column. S sums exact integers, and
 * the product is fma(S_h, s_h m_R, fma(S_x, s_x m_W, start)), where s are the scales of the rows and m those of the
 * columns; start is the bias, or with Kx = 0 what the input half has left of it and x. With two planes (int8-a16) a rounded value is 128 high + low, and S = fma(S_high, 128, S_low). Every
 * instruction set that has a fused multiply-add gives the same bits.
 * Weights of a half: scales [nv][VEC_W], then -128 times the sum of each column's weights, int32 [nv][VEC_W], then
 * [groups][FRNN_GROUP][nv][VEC_W] terms. A rounded row: its scale, alone in FRNN_HEAD floats, then the bytes, each
 * FRNN_INT8_OFFSET too large, then the low ones.
 */
#ifndef FRNN_BODY_TILE_INT8_H
#define FRNN_BODY_TILE_INT8_H
#define vec_int8_sums FRNN_WIDE(vec_int8_sums)
#define vec_int8_vectors FRNN_WIDE(vec_int8_vectors)
#define vec_int8_body FRNN_WIDE(vec_int8_body)
#define vec_tiles_int8 FRNN_WIDE(vec_tiles_int8)
#define vec_tiles_int8_a16 FRNN_WIDE(vec_tiles_int8_a16)
/* Rows of a tile of two blocks: as many sums as there are registers for. */
#define FRNN_INT8_PAIR_ROWS (FRNN_INT8_SUMS / 8)
#define FRNN_INT8_A16_PAIR_ROWS 1
#endif

/* S = the integer sums of n vectors from `first` on, as floats. plane: bytes from the high parts of a row to its low
 * parts. */
FRNN_INLINE void vec_int8_sums(const float *const row[], const float *const sums[2], const float *const terms[2],
                               int64_t groups, const int first, const int planes, const int mr, const int nb,
                               const int nv, const int n, vec S[][2][4]) {
    vec_int acc[2][FRNN_TILE_ROWS][2][4];
    const char *byte[FRNN_TILE_ROWS];
    const int64_t plane = groups * FRNN_GROUP * 4;
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
        byte[r] = (const char *)(row[r] + FRNN_HEAD);
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) {
                vec_int start = vec_bits(vec_load(sums[b] + (first + v) * VEC_W));
                acc[0][r][b][v] = acc[1][r][b][v] = FRNN_INT8_OFFSET ? start : vec_bits(vec_splat(0.0f));
            }
        }
    }
    for (int64_t g = 0; g < groups; g++) {
#pragma GCC unroll 1
        for (int q = 0; q < FRNN_GROUP; q++) {
            vec_int w[2][4];
#pragma GCC unroll 2
            for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
                for (int v = 0; v < n; v++) {
                    w[b][v] = vec_bits(vec_load(frnn_term(terms[b], g * FRNN_GROUP + q, nv, first + v, VEC_W)));
                }
            }
#pragma GCC unroll 6
            for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
                for (int p = 0; p < planes; p++) {
                    int32_t four;
                    memcpy(&four, byte[r] + p * plane + (g * FRNN_GROUP + q) * 4, 4);
                    vec_int a = vec_four(four);
#pragma GCC unroll 2
                    for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
                        for (int v = 0; v < n; v++) acc[p][r][b][v] = vec_dot(acc[p][r][b][v], a, w[b][v]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) {
                vec high = vec_of_int(acc[0][r][b][v]);
                S[r][b][v] = planes == 1 ? high : vec_fma(high, vec_splat(128.0f), vec_of_int(acc[1][r][b][v]));
            }
        }
    }
}

/* n vectors from `first` on, over x, which adds to `start`, or over h if `hidden`, which adds to what `out` holds. */
FRNN_INLINE void vec_int8_vectors(const frnn_tile *t, const int64_t from, const int hidden, const int first,
                                  const int planes, const int mr, const int nb, const int nv, const int n) {
    const float *const *row = (hidden ? t->h : t->x) + from;
    const float *scales[2], *sums[2] = {NULL, NULL}, *terms[2] = {NULL, NULL};
    const int64_t groups = frnn_groups(hidden ? t->Kh : t->Kx, 4);
    vec S[FRNN_TILE_ROWS][2][4];
    for (int b = 0; b < nb; b++) {
        scales[b] = t->weights[b] + (hidden && t->Kx > 0 ? (2 + frnn_groups(t->Kx, 4) * FRNN_GROUP) * nv * VEC_W : 0);
        sums[b] = scales[b] + nv * VEC_W;
        terms[b] = sums[b] + nv * VEC_W;
    }
    vec_int8_sums(row, sums, terms, groups, first, planes, mr, nb, nv, n, S);
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
        vec scale = vec_splat(row[r][0]);
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
            float *out = t->out + (((from + r) * nb + b) * 4 + (hidden ? t->shift : 0)) * VEC_W;
            const float *addend = hidden ? out : t->start[b][from + r];
#pragma GCC unroll 4
            for (int v = first; v < first + n; v++) {
                vec m = scale * vec_load(scales[b] + v * VEC_W);
                vec_store(out + v * VEC_W, vec_fma(S[r][b][v - first], m, vec_load(addend + v * VEC_W)));
            }
        }
    }
}

FRNN_INLINE void vec_int8_body(const frnn_tile *t, const int64_t from, const int planes, const int mr, const int nb,
                               const int nv) {
    const int each = planes * mr * nb, n = each * nv <= FRNN_INT8_SUMS            ? nv
                                           : each * 2 <= FRNN_INT8_SUMS && nv > 1 ? 2
                                                                                  : 1;
    for (int r = 0; r < mr && t->Kx == 0; r++) {
        for (int b = 0; b < nb; b++) {
            memcpy(t->out + ((from + r) * nb + b) * 4 * VEC_W, t->start[b][from + r], nv * VEC_W * sizeof(float));
        }
    }
    for (int hidden = t->Kx == 0; hidden < 1 + (t->Kh > 0); hidden++) {
#pragma GCC unroll 4
        for (int first = 0; first + n <= nv; first += n) {
            vec_int8_vectors(t, from, hidden, first, planes, mr, nb, nv, n);
        }
        if (nv % n > 0) vec_int8_vectors(t, from, hidden, nv - nv % n, planes, mr, nb, nv, nv % n);
    }
}

#define TILES vec_tiles_int8
#define TILE_KIND int8
#define TILE_BODY(t, from, mr, nb, nv) vec_int8_body(t, from, 1, mr, nb, nv)
#define TILE_ROWS FRNN_INT8_ROWS
#define TILE_PAIR_ROWS FRNN_INT8_PAIR_ROWS
#include "tiles_of.h"

#define TILES vec_tiles_int8_a16
#define TILE_KIND int8_a16
#define TILE_BODY(t, from, mr, nb, nv) vec_int8_body(t, from, 2, mr, nb, nv)
#define TILE_ROWS 3
#define TILE_PAIR_ROWS FRNN_INT8_A16_PAIR_ROWS
#include "tiles_of.h"

/* The inner loop of products in bfloat16; included once per width. It computes what body_tile.h computes, of rows that
 * body_round.h has rounded, by the chains of the tile instruction TDPBF16PS. A term is a lane of four bytes: two weights
 * of one column. Per group of FRNN_GROUP terms (the last one is filled with zeros), e sums the products of the even
 * weights and o those of the odd ones, each by one fused operation per weight from zero, and C = C + (e + o). The
 * groups of x come first, then those of h, from C = 0, or with Kx = 0 from `start`; `bias`, if any, is added last. So every instruction set that has a fused
 * multiply-add gives the same bits.
 * Weights of a half: [groups][FRNN_GROUP][nv][VEC_W] terms. A rounded row: the values as floats, filled with zeros.
 */
#ifndef FRNN_BODY_TILE_BFLOAT16_H
#define FRNN_BODY_TILE_BFLOAT16_H
#define vec_bfloat16_group FRNN_WIDE(vec_bfloat16_group)
#define vec_bfloat16_half FRNN_WIDE(vec_bfloat16_half)
#define vec_bfloat16_body FRNN_WIDE(vec_bfloat16_body)
#define vec_tiles_bfloat16 FRNN_WIDE(vec_tiles_bfloat16)
#define FRNN_BFLOAT16_ROWS (FRNN_TILE_SUMS / 4) /* of a tile: two sums for each of two vectors */
#define FRNN_BFLOAT16_PAIR_ROWS 1 /* of a tile of two blocks: only one row is short of sums */
#endif

/* C[r][b][v] += the terms of one group, for n vectors from `first` on. */
FRNN_INLINE void vec_bfloat16_group(const float *const row[], const float *const terms[2], int64_t g, const int first,
                                    const int mr, const int nb, const int nv, const int n, vec C[][2][4]) {
    vec even[FRNN_TILE_ROWS][2][4], odd[FRNN_TILE_ROWS][2][4];
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) even[r][b][v] = odd[r][b][v] = vec_splat(0.0f);
        }
    }
#pragma GCC unroll 1
    for (int q = 0; q < FRNN_GROUP; q++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) {
                vec_int two = vec_bits(vec_load(frnn_term(terms[b], g * FRNN_GROUP + q, nv, first + v, VEC_W)));
                vec w0 = vec_of_bits(two << 16), w1 = vec_of_bits(two & (int32_t)0xffff0000);
#pragma GCC unroll 6
                for (int r = 0; r < mr; r++) {
                    const float *x = row[r] + (g * FRNN_GROUP + q) * 2;
                    vec_tile_add(&even[r][b][v], vec_splat(x[0]), w0, mr);
                    vec_tile_add(&odd[r][b][v], vec_splat(x[1]), w1, mr);
                }
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) C[r][b][first + v] = C[r][b][first + v] + (even[r][b][v] + odd[r][b][v]);
        }
    }
}

/* The terms of x, or of h if `hidden`. As many vectors at once as the registers hold sums of, two for each. */
FRNN_INLINE void vec_bfloat16_half(const frnn_tile *t, const int64_t from, const int hidden, const int mr, const int nb,
                                   const int nv, vec C[][2][4]) {
    const int n = 2 * mr * nb * nv <= FRNN_TILE_SUMS ? nv : 2 * mr * nb * 2 <= FRNN_TILE_SUMS && nv > 1 ? 2 : 1;
    const int64_t groups = frnn_groups(hidden ? t->Kh : t->Kx, 2);
    const float *const *row = (hidden ? t->h : t->x) + from;
    const float *terms[2] = {NULL, NULL};
    for (int b = 0; b < nb; b++) {
        terms[b] = t->weights[b] + (hidden ? frnn_groups(t->Kx, 2) * FRNN_GROUP * nv * VEC_W : 0);
    }
    for (int64_t g = 0; g < groups; g++) {
#pragma GCC unroll 4
        for (int first = 0; first + n <= nv; first += n) vec_bfloat16_group(row, terms, g, first, mr, nb, nv, n, C);
        if (nv % n > 0) vec_bfloat16_group(row, terms, g, nv - nv % n, mr, nb, nv, nv % n, C);
    }
}

/* Rows [from, from + mr) of the tile. With a shift, the vectors of h are one later than those of x, and the last one
 * starts from what `out` holds. */
FRNN_INLINE void vec_bfloat16_body(const frnn_tile *t, const int64_t from, const int mr, const int nb, const int nv) {
    vec C[FRNN_TILE_ROWS][2][4], last[FRNN_TILE_ROWS][2];
    for (int r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            const float *start = t->start[b][from + r];
            const int fresh = t->Kx > 0 || start == t->bias[b];
            last[r][b] = vec_splat(0.0f);
            for (int v = 0; v < nv; v++) C[r][b][v] = fresh ? vec_splat(0.0f) : vec_load(start + v * VEC_W);
        }
    }
    if (t->Kx > 0) vec_bfloat16_half(t, from, 0, mr, nb, nv, C);
    if (t->Kh > 0 &&
        t->shift > 0) { /* put the sums of x's first vector aside, and move the others where h adds to them */
        for (int r = 0; r < mr; r++) {
            for (int b = 0; b < nb; b++) {
                last[r][b] = C[r][b][0];
                for (int v = 0; v + 1 < nv; v++) C[r][b][v] = C[r][b][v + 1];
                C[r][b][nv - 1] = vec_splat(0.0f);
            }
        }
    }
    if (t->Kh > 0) vec_bfloat16_half(t, from, 1, mr, nb, nv, C);
    for (int r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            float *out = t->out + ((from + r) * nb + b) * 4 * VEC_W;
            const float *bias = t->bias[b];
            for (int v = 0; v < nv; v++) {
                int64_t to = v + (t->Kh > 0 ? t->shift : 0);
                vec sum = C[r][b][v];
                if (bias) sum = sum + vec_load(to < nv ? bias + to * VEC_W : out + to * VEC_W);
                vec_store(out + to * VEC_W, sum);
            }
            if (t->Kh > 0 && t->shift > 0) vec_store(out, last[r][b] + vec_load(bias));
        }
    }
}

#define TILES vec_tiles_bfloat16
#define TILE_KIND bfloat16
#define TILE_BODY(t, from, mr, nb, nv) vec_bfloat16_body(t, from, mr, nb, nv)
#define TILE_ROWS FRNN_BFLOAT16_ROWS
#define TILE_PAIR_ROWS FRNN_BFLOAT16_PAIR_ROWS
#include "tiles_of.h"

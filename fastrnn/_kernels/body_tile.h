/* The inner loop of every product: a tile of mr rows by nb blocks of nv vectors; included once per width.
 *
 *     out[r][b][v] = (sum over k of x[r][k] * panel[b][k][v] + start[b][r][v])
 *                    + sum over k of h[r][k] * panel[b][Kx + k][v]
 *
 * each sum in registers from zero, one fused operation a term, k rising. Two sums and not one long one: a chain half as
 * long, and one that does not start from a large bias, is nearer to the truth (docs/decisions has the figures). With
 * Kx = 0 the first bracket is start itself, whatever the sign of a zero in it: `pre` then continues with the same bits.
 * A panel is [Kx + Kh][nv][VEC_W] floats. Where `split` is set (GRU with reset after the product) the last vector's sum
 * over x is put aside as vector 3, and its sum over h gets split[b] instead. out is [mr][nb][4][VEC_W]. No alignment is
 * needed; nothing beyond the K of a row is read.
 */
#ifndef FRNN_BODY_TILE_H
#define FRNN_BODY_TILE_H
#define vec_tile_clear FRNN_WIDE(vec_tile_clear)
#define vec_tile_terms FRNN_WIDE(vec_tile_terms)
#define vec_tile_add FRNN_WIDE(vec_tile_add)
#define vec_tile_body FRNN_WIDE(vec_tile_body)
#define vec_tile_run FRNN_WIDE(vec_tile_run)
#define FRNN_PAIR_ROWS (FRNN_TILE_ROWS / 2 > 0 ? FRNN_TILE_ROWS / 2 : 1) /* rows up to which two blocks share a tile */

#define FRNN_WAVE 16 /* most blocks of one row that are summed before any of them is finished; >= FRNN_TILE_ROWS */

typedef struct frnn_tile {
    int64_t Kx, Kh;
    const float *x[FRNN_TILE_ROWS], *h[FRNN_TILE_ROWS];
    const float *start[2][FRNN_TILE_ROWS];
    const float *panel[2];
    const float *split[2];
    float *out;
} frnn_tile;
typedef void (*frnn_tile_fn)(const frnn_tile *);
#endif

/* The terms of one operand. mr, nb, nv are constants where this is inlined, so acc lives in registers: but only if every
 * loop over it is unrolled before GCC splits arrays into scalars, hence the pragma on each. Without it on the loops
 * outside the k loop, acc went through the stack four times a tile (LSTM, 128 rows: 1.13 times the cycles at H = 32,
 * 1.09 at 64, 1.04 at 128).
 * No software prefetch: on a Zen 4 it gains nothing from L2 and costs 1.25 times from L3 (LSTM 256, 1 row: 28.2 us with
 * 2 KiB ahead, 22.8 without; 8 and 16 KiB ahead alike). An Intel core gained 1.1 to 1.8 times from L2 with a prototype:
 * if it comes back, then chosen by the CPU. */
FRNN_INLINE void vec_tile_terms(vec acc[FRNN_TILE_ROWS][2][4], const float *const rows[], int64_t K,
                                const float *const panel[2], const int mr, const int nb, const int nv) {
    const float *row[FRNN_TILE_ROWS], *p[2] = {panel[0], nb > 1 ? panel[1] : panel[0]};
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) row[r] = rows[r];
    for (int64_t k = 0; k < K; k++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
            vec w[4];
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) w[v] = vec_load(p[b] + v * VEC_W);
#pragma GCC unroll 6
            for (int r = 0; r < mr; r++) {
                vec s = vec_splat(row[r][k]);
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++) acc[r][b][v] = vec_fma(s, w[v], acc[r][b][v]);
            }
            p[b] += nv * VEC_W;
        }
    }
}

FRNN_INLINE void vec_tile_clear(vec acc[FRNN_TILE_ROWS][2][4], const int mr, const int nb, const int nv) {
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) acc[r][b][v] = vec_splat(0.0f);
        }
    }
}

/* out = acc + start where this is the first operand, else out = acc + out. */
FRNN_INLINE void vec_tile_add(const frnn_tile *t, vec acc[FRNN_TILE_ROWS][2][4], const int first, const int mr,
                              const int nb, const int nv) {
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 2
        for (int b = 0; b < nb; b++) {
            float *out = t->out + (r * nb + b) * 4 * VEC_W;
            const float *addend = first ? t->start[b][r] : out;
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) vec_store(out + v * VEC_W, vec_load(addend + v * VEC_W) + acc[r][b][v]);
        }
    }
}

FRNN_INLINE void vec_tile_body(const frnn_tile *t, const int mr, const int nb, const int nv) {
    vec acc[FRNN_TILE_ROWS][2][4];
    const float *panel[2] = {t->panel[0], t->panel[1]};
    if (t->Kx > 0) {
        vec_tile_clear(acc, mr, nb, nv);
        vec_tile_terms(acc, t->x, t->Kx, panel, mr, nb, nv);
        vec_tile_add(t, acc, 1, mr, nb, nv);
    } else {
        for (int r = 0; r < mr; r++) {
            for (int b = 0; b < nb; b++) {
                memcpy(t->out + (r * nb + b) * 4 * VEC_W, t->start[b][r], nv * VEC_W * sizeof(float));
            }
        }
    }
    if (nv == 3 && t->split[0]) {
        for (int r = 0; r < mr; r++) {
            for (int b = 0; b < nb; b++) {
                float *out = t->out + (r * nb + b) * 4 * VEC_W;
                vec_store(out + 3 * VEC_W, vec_load(out + 2 * VEC_W));
                vec_store(out + 2 * VEC_W, vec_load(t->split[b]));
            }
        }
    }
    if (t->Kh == 0) return;
    for (int b = 0; b < nb; b++) panel[b] += t->Kx * nv * VEC_W;
    vec_tile_clear(acc, mr, nb, nv);
    vec_tile_terms(acc, t->h, t->Kh, panel, mr, nb, nv);
    vec_tile_add(t, acc, 0, mr, nb, nv);
}

#define TILE_NAME(mr, nb, nv) FRNN_JOIN(FRNN_WIDE(tile_##mr##x##nb##x##nv), FRNN_ISA)
#define TILE(mr, nb, nv)                                                                                               \
    static __attribute__((noinline, unused)) void TILE_NAME(mr, nb, nv)(const frnn_tile *t) {                          \
        vec_tile_body(t, mr, nb, nv);                                                                                  \
    }
#define TILES(mr) TILE(mr, 1, 1) TILE(mr, 1, 2) TILE(mr, 1, 3) TILE(mr, 1, 4)
#define PAIRS(mr) TILE(mr, 2, 3) TILE(mr, 2, 4)
#define NAMES(mr) {TILE_NAME(mr, 1, 1), TILE_NAME(mr, 1, 2), TILE_NAME(mr, 1, 3), TILE_NAME(mr, 1, 4)}
#define PAIR_NAMES(mr) {TILE_NAME(mr, 2, 3), TILE_NAME(mr, 2, 4)}
/* clang-format off */
TILES(1) TILES(2) TILES(3) PAIRS(1)
#if FRNN_TILE_ROWS == 6
TILES(4) TILES(5) TILES(6) PAIRS(2) PAIRS(3)
#endif

/* Run the tile of mr rows (1..FRNN_TILE_ROWS), nb blocks (2 only for nv >= 3 and mr <= FRNN_PAIR_ROWS), nv vectors. */
FRNN_INLINE void vec_tile_run(const frnn_tile *t, int64_t mr, int nb, int nv) {
    static const frnn_tile_fn tiles[FRNN_TILE_ROWS][4] = {
        NAMES(1), NAMES(2), NAMES(3),
#if FRNN_TILE_ROWS == 6
        NAMES(4), NAMES(5), NAMES(6),
#endif
    };
    static const frnn_tile_fn pairs[FRNN_PAIR_ROWS][2] = {
        PAIR_NAMES(1),
#if FRNN_TILE_ROWS == 6
        PAIR_NAMES(2), PAIR_NAMES(3),
#endif
    };
    if (nb == 1) {
        tiles[mr - 1][nv - 1](t);
    } else {
        pairs[mr - 1][nv - 3](t);
    }
}
/* clang-format on */
#undef TILE
#undef TILES
#undef PAIRS
#undef NAMES
#undef PAIR_NAMES
#undef TILE_NAME

/* The inner loop of float32 products: a tile of mr rows by nb blocks of nv vectors; included once per width.
 *     out[r][b][v] = (sum over k of x[r][k] * W[b][k][v] + start[b][r][v])
 *                    + sum over k of h[r][k] * R[b][k][v]
 * each sum in registers from zero, one fused operation per term, k ascending. Two sums instead of one long one,
 * because a chain that is half as long and does not start from a large bias is more accurate (figures in
 * docs/decisions). With Kx = 0 the first bracket is start itself, including the sign of a zero in it, so `pre`
 * continues with the same bits.
 * weights[b] points to W, then R, of one block, each as panels of n vectors: [nv / n][K][n][VEC_W]. out is
 * [mr][nb][4][VEC_W]. The second brackets are added to its contents, `shift` vectors later. With a shift of 1 the sums
 * of the first vector of W and of the last one of R stay apart, and out holds the start of the latter. No alignment is
 * needed; nothing beyond the K of a row is read.
 */
#ifndef FRNN_BODY_TILE_H
#define FRNN_BODY_TILE_H
#define vec_tile_add FRNN_WIDE(vec_tile_add)
#define vec_tile_term FRNN_WIDE(vec_tile_term)
#define vec_tile_terms FRNN_WIDE(vec_tile_terms)
#define vec_tile_panels FRNN_WIDE(vec_tile_panels)
#define vec_tile_half FRNN_WIDE(vec_tile_half)
#define vec_tile_body FRNN_WIDE(vec_tile_body)
#define vec_tile_run FRNN_WIDE(vec_tile_run)
#define vec_tiles FRNN_WIDE(vec_tiles)

/* A tile of many rows sums one panel at a time. With 16 registers 4 vectors are two panels of 2: 6 rows x 2 vectors
 * read each weight half as often as 3 x 4 would. */
#define FRNN_PANEL(nv) ((nv) == 4 && FRNN_TILE_SUMS < 24 ? 2 : (nv))
#define FRNN_PAIR_ROWS (FRNN_TILE_SUMS / 8) /* rows up to which two blocks of 4 vectors share a tile */
/* The most rows of a tile of one block of nv vectors: all, but for panels of 3 vectors in 16 registers. */
#define FRNN_MOST_ROWS(nv) (FRNN_TILE_ROWS * FRNN_PANEL(nv) <= FRNN_TILE_SUMS ? FRNN_TILE_ROWS : FRNN_TILE_SUMS / 3)
#define FRNN_WAVE 16 /* most blocks of one row that are summed before any of them is finished; >= FRNN_TILE_ROWS */
#define FRNN_LINE 16 /* floats of a cache line */

typedef struct frnn_tile {
    int64_t Kx, Kh, rows, height; /* height: rows that a tile unit is configured for */
    const float *x[FRNN_TALL_ROWS], *h[FRNN_TALL_ROWS];
    const float *start[2][FRNN_TALL_ROWS];
    const float *bias[2]; /* for products that add it last, not to start from it; NULL: don't */
    const float *weights[2];
    int64_t shift; /* vectors, see above */
    int64_t near; /* bytes ahead of its own reads that this tile prefetches; 0: not so */
    int64_t pace; /* bytes of the next block that it prefetches a term, from `ahead` on; 0: none */
    const char *ahead;
    float *out;
} frnn_tile;
#endif

/* sum += s * w, with many rows in place: GCC 12 else copies sums, and spills some, if terms follow without a jump. */
FRNN_INLINE void vec_tile_add(vec *sum, vec s, vec w, const int mr) {
    if (mr > 1) {
        vec_add_term(sum, s, w);
    } else {
        *sum = vec_fma(s, w, *sum);
    }
}

/* Term k of one operand, for np panels of n vectors: acc += row[r][k] * p[i][v]; p moves on. The lesser side waits in
 * registers, the rows' values or a panel's vectors, while the other passes. fetch: prefetch a term at ahead, and for
 * further panels as far from there as they are from the first. */
FRNN_INLINE void vec_tile_term(vec acc[FRNN_LONG_ROWS][4][4], const float *const row[], int64_t k, const float *p[4],
                               const char *ahead, const int fetch, const int mr, const int np, const int n) {
    const int rows_wait = mr < np * n ? mr : 0, rows_pass = mr - rows_wait;
    vec s[FRNN_LONG_ROWS], w[4];
    /* no loads of two terms at once: there are no registers for them */
    if (FRNN_UNROLL > 1 && mr > 1) __asm__ volatile("" ::: "memory");
#pragma GCC unroll 12
    for (int r = 0; r < rows_wait; r++) s[r] = vec_splat(row[r][k]);
#pragma GCC unroll 4
    for (int i = 0; i < np; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < n; v++) {
            w[v] = vec_load(p[i] + v * VEC_W);
#pragma GCC unroll 12
            for (int r = 0; r < rows_wait; r++) vec_tile_add(&acc[r][i][v], s[r], w[v], mr);
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows_pass; r++) {
            s[r] = vec_splat(row[r][k]);
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) vec_tile_add(&acc[r][i][v], s[r], w[v], mr);
        }
        p[i] += n * VEC_W;
    }
    const int lines = (n * VEC_W + FRNN_LINE - 1) / FRNN_LINE, apart = n * VEC_W * (int)sizeof(float) / lines;
    if (!fetch) return;
#pragma GCC unroll 4
    for (int i = 0; i < np; i++) {
        const char *panel = ahead + (i > 0 ? (const char *)p[i] - (const char *)p[0] : 0);
#pragma GCC unroll 4
        for (int line = 0; line < lines; line++) __builtin_prefetch(panel + line * apart);
    }
}

/* The terms of one operand and np panels of n vectors. mr, np, n are constants when this is inlined, so acc lives in
 * registers: but only if every loop over it is unrolled before GCC splits arrays into scalars, hence the pragma on
 * each. Without it on the loops outside the k loop, acc went through the stack four times per tile (LSTM, 128 rows:
 * 1.13 times the cycles at H = 32, 1.09 at 64, 1.04 at 128).
 * fetch: each term prefetches as many bytes as it reads from `ahead` on, which then moves by `pace` bytes. FRNN_UNROLL
 * terms per iteration save issue slots (docs/decisions/0011). */
FRNN_INLINE void vec_tile_terms(vec acc[FRNN_LONG_ROWS][4][4], const float *const rows[], int64_t K,
                                const float *const panel[4], const char *ahead, int64_t pace, const int fetch,
                                const int mr, const int np, const int n) {
    const float *row[FRNN_LONG_ROWS], *p[4];
    const int unroll = mr > 1 ? FRNN_UNROLL : 1;
    int64_t k = 0;
#pragma GCC unroll 12
    for (int r = 0; r < mr; r++) row[r] = rows[r];
#pragma GCC unroll 4
    for (int i = 0; i < np; i++) p[i] = panel[i];
#pragma GCC unroll 1
    for (; k + unroll <= K; k += unroll) {
#pragma GCC unroll 4
        for (int u = 0; u < unroll; u++) vec_tile_term(acc, row, k + u, p, ahead + u * pace, fetch, mr, np, n);
        if (fetch) ahead += unroll * pace;
    }
#pragma GCC unroll 1
    for (; unroll > 1 && k < K; k++) {
        vec_tile_term(acc, row, k, p, ahead, fetch, mr, np, n);
        if (fetch) ahead += pace;
    }
}

/* np panels from `first` on of the tile's nb blocks, over x, or over h if `hidden`: their sums are added to start, or
 * to what out holds. */
FRNN_INLINE void vec_tile_panels(const frnn_tile *t, const int hidden, const int first, const int fetch, const int np,
                                 const int mr, const int nb, const int nv) {
    const int n = FRNN_PANEL(nv), panels = nv / n;
    const int64_t K = hidden ? t->Kh : t->Kx;
    const float *panel[4];
    vec acc[FRNN_LONG_ROWS][4][4];
#pragma GCC unroll 4
    for (int i = 0; i < np; i++) {
        int64_t before = (hidden ? t->Kx * nv : 0) + (first + i) % panels * n * K;
        panel[i] = t->weights[(first + i) / panels] + before * VEC_W;
#pragma GCC unroll 12
        for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) acc[r][i][v] = vec_splat(0.0f);
        }
    }
    int64_t pace = fetch && t->pace > 0 ? t->pace : n * VEC_W * (int)sizeof(float);
    const char *ahead = (const char *)panel[0] + (fetch ? t->near : 0);
    if (fetch && t->pace > 0) ahead = t->ahead + ((hidden ? t->Kx * panels : 0) + first * K) * pace;
    vec_tile_terms(acc, hidden ? t->h : t->x, K, panel, ahead, pace, fetch, mr, np, n);
    float *const base = t->out + (hidden ? t->shift * VEC_W : 0);
#pragma GCC unroll 12
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
        for (int i = 0; i < np; i++) {
            int b = (first + i) / panels, from = (first + i) % panels * n * VEC_W;
            float *out = base + (r * nb + b) * 4 * VEC_W + from;
            const float *addend = hidden ? out : t->start[b][r] + from;
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) vec_store(out + v * VEC_W, vec_load(addend + v * VEC_W) + acc[r][i][v]);
        }
    }
}

/* All panels over one operand: at once if their sums fit the registers, else one by one. */
FRNN_INLINE void vec_tile_half(const frnn_tile *t, const int hidden, const int fetch, const int mr, const int nb,
                               const int nv) {
    const int panels = nb * nv / FRNN_PANEL(nv), np = mr * nb * nv <= FRNN_TILE_SUMS ? panels : 1;
    for (int first = 0; first < panels; first += np) vec_tile_panels(t, hidden, first, fetch, np, mr, nb, nv);
}

FRNN_INLINE void vec_tile_body(const frnn_tile *t, const int fetch, const int mr, const int nb, const int nv) {
    if (t->Kx > 0) {
        vec_tile_half(t, 0, fetch, mr, nb, nv);
    } else {
        for (int r = 0; r < mr; r++) {
            for (int b = 0; b < nb; b++) {
                memcpy(t->out + (r * nb + b) * 4 * VEC_W, t->start[b][r], nv * VEC_W * sizeof(float));
            }
        }
    }
    if (t->Kh > 0) vec_tile_half(t, 1, fetch, mr, nb, nv);
}

#define TILE_NAME(mr, nb, nv) FRNN_JOIN(FRNN_WIDE(tile_##mr##x##nb##x##nv), FRNN_ISA)
#define FETCH_NAME(mr, nb, nv) FRNN_JOIN(FRNN_WIDE(fetch_##mr##x##nb##x##nv), FRNN_ISA)
#define TILE_FN(name, fetch, mr, nb, nv)                                                                               \
    static __attribute__((noinline, unused)) void name(const frnn_tile *t) { vec_tile_body(t, fetch, mr, nb, nv); }
#define TILE(mr, nb, nv) TILE_FN(TILE_NAME(mr, nb, nv), 0, mr, nb, nv)
#define FETCH(mr, nb, nv) TILE_FN(FETCH_NAME(mr, nb, nv), 1, mr, nb, nv)
#define TILES(mr) TILE(mr, 1, 1) TILE(mr, 1, 2) TILE(mr, 1, 3) TILE(mr, 1, 4)
#define PAIRS(mr) TILE(mr, 2, 3) TILE(mr, 2, 4)
#define NAMES(mr) {TILE_NAME(mr, 1, 1), TILE_NAME(mr, 1, 2), TILE_NAME(mr, 1, 3), TILE_NAME(mr, 1, 4)}
#define PAIR_NAMES(mr) {NULL, NULL, TILE_NAME(mr, 2, 3), TILE_NAME(mr, 2, 4)}
#define FETCH_PAIR_NAMES(mr) {NULL, NULL, FETCH_NAME(mr, 2, 3), FETCH_NAME(mr, 2, 4)}
/* clang-format off */
TILES(1) TILES(2) TILES(3) TILES(4) PAIRS(1)
#if FRNN_TILE_SUMS == 24
TILES(5) TILES(6) PAIRS(2) PAIRS(3)
#else /* 3 vectors end at 4 rows: FRNN_MOST_ROWS */
TILE(5, 1, 1) TILE(5, 1, 2) TILE(5, 1, 4) TILE(6, 1, 1) TILE(6, 1, 2) TILE(6, 1, 4)
#endif
#if VEC_W == FRNN_LANES /* 3 and 4 vectors, which large weights have (but for a tail) */
FETCH(1, 2, 3) FETCH(1, 2, 4) FETCH(3, 1, 3) FETCH(4, 1, 3) FETCH(4, 1, 4) FETCH(5, 1, 4) FETCH(6, 1, 4)
#if FRNN_TILE_SUMS == 24
FETCH(2, 2, 3) FETCH(2, 2, 4) FETCH(3, 2, 3) FETCH(3, 2, 4) FETCH(3, 1, 4) FETCH(5, 1, 3) FETCH(6, 1, 3)
#define FETCHES                                                                                                        \
    {{NULL}, {NULL}, {NULL, NULL, FETCH_NAME(3, 1, 3), FETCH_NAME(3, 1, 4)},                                           \
     {NULL, NULL, FETCH_NAME(4, 1, 3), FETCH_NAME(4, 1, 4)}, {NULL, NULL, FETCH_NAME(5, 1, 3), FETCH_NAME(5, 1, 4)},   \
     {NULL, NULL, FETCH_NAME(6, 1, 3), FETCH_NAME(6, 1, 4)}},                                                          \
    {FETCH_PAIR_NAMES(1), FETCH_PAIR_NAMES(2), FETCH_PAIR_NAMES(3)},
#else
#define FETCHES                                                                                                        \
    {{NULL}, {NULL}, {NULL, NULL, FETCH_NAME(3, 1, 3)}, {NULL, NULL, FETCH_NAME(4, 1, 3), FETCH_NAME(4, 1, 4)},        \
     {NULL, NULL, NULL, FETCH_NAME(5, 1, 4)}, {NULL, NULL, NULL, FETCH_NAME(6, 1, 4)}},                                \
    {FETCH_PAIR_NAMES(1)},
#endif
#else
#define FETCHES
#endif

static frnn_tiles vec_tiles = {
    {NAMES(1), NAMES(2), NAMES(3), NAMES(4),
#if FRNN_TILE_SUMS == 24
     NAMES(5), NAMES(6)},
    {PAIR_NAMES(1), PAIR_NAMES(2), PAIR_NAMES(3)},
#else
     {TILE_NAME(5, 1, 1), TILE_NAME(5, 1, 2), NULL, TILE_NAME(5, 1, 4)},
     {TILE_NAME(6, 1, 1), TILE_NAME(6, 1, 2), NULL, TILE_NAME(6, 1, 4)}},
    {PAIR_NAMES(1)},
#endif
    FETCHES
};
#if VEC_W == FRNN_LANES
TILE(7, 1, 1) TILE(8, 1, 1) TILE(9, 1, 1) TILE(10, 1, 1) TILE(11, 1, 1) TILE(12, 1, 1)
static const frnn_tile_fn frnn_long_tiles[FRNN_LONG_ROWS - FRNN_TILE_ROWS] = {
    TILE_NAME(7, 1, 1), TILE_NAME(8, 1, 1), TILE_NAME(9, 1, 1), TILE_NAME(10, 1, 1), TILE_NAME(11, 1, 1),
    TILE_NAME(12, 1, 1)};
#endif
/* clang-format on */

/* Run the tile of mr rows, nb blocks (2 only for nv >= 3), nv vectors. */
FRNN_INLINE void vec_tile_run(const frnn_product *product, const frnn_tile *t, int64_t mr, int nb, int nv) {
    const frnn_tile_fn(*tiles)[FRNN_TILE_ROWS][FRNN_TILE_VECTORS] = *product->tiles[VEC_W / 8];
    int64_t row = mr < FRNN_TILE_ROWS ? mr - 1 : FRNN_TILE_ROWS - 1; /* one function for all heights of a tile unit */
    frnn_tile_fn fetch = t->near > 0 || (t->pace > 0 && nb == 1) ? tiles[nb + 1][row][nv - 1] : NULL;
    (fetch ? fetch : tiles[nb - 1][row][nv - 1])(t);
}
#undef TILE
#undef FETCH
#undef FETCHES
#undef TILES
#undef PAIRS
#undef NAMES
#undef PAIR_NAMES
#undef FETCH_PAIR_NAMES
#undef TILE_NAME
#undef FETCH_NAME
#undef TILE_FN

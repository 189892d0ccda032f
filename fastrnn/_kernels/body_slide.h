/* Products of float32 whose rows overlap: a convolution over channels-last memory without patches. Included once per
 * width.
 *     y[r, n] = act(bias[n] + sum over i, k of from[i][r * x_step + k] W[i * length + k, n])
 * The weights are those that linear_pack packs, and the bits are those of `linear` over rows that hold the pieces one
 * after the other: each sum in a register from zero, terms in order, the bias last. A tile of sums goes to y straight
 * from registers, so a product over a few terms costs little more than they do.
 */
#ifndef FRNN_BODY_SLIDE_H
#define FRNN_BODY_SLIDE_H
#define vec_slide_tile FRNN_WIDE(vec_slide_tile)
#define vec_slide_panel FRNN_WIDE(vec_slide_panel)
#define vec_slide_block FRNN_WIDE(vec_slide_block)

/* Rows of a tile of n vectors. */
#define FRNN_SLIDE_ROWS(n) (FRNN_TILE_SUMS / (n) < FRNN_LONG_ROWS ? FRNN_TILE_SUMS / (n) : FRNN_LONG_ROWS)
#define FRNN_SLIDE_FEW 4 /* rows of the tiles of what is left */

typedef struct frnn_slide_call {
    int64_t pieces, length, N, column; /* column: floats of one packed column, its bias too */
    const float *packed;
    int32_t relu;
    const float *const *from;
    float *y;
    int64_t x_step, y_step, rows;
} frnn_slide_call;
#endif

/* mr rows from `row` on, n vectors of columns from `start` on, of which `left` columns are there. Three rows share a
 * pointer: with one each, pointers would not fit the registers. */
FRNN_INLINE void vec_slide_tile(const frnn_slide_call *s, int64_t row, const float *bias, const float *weights,
                                int64_t start, const int mr, const int n) {
    vec acc[FRNN_LONG_ROWS][4];
    const int64_t step = s->x_step, left = s->N - start;
    const float *w = weights;
#pragma GCC unroll 12
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < n; v++) acc[r][v] = vec_splat(0.0f);
    }
    for (int64_t i = 0; i < s->pieces; i++) {
        const float *base[4];
#pragma GCC unroll 4
        for (int j = 0; 3 * j < mr; j++) base[j] = s->from[i] + (row + 3 * j) * step;
#pragma GCC unroll 1
        for (int64_t k = s->length; k > 0; k--) {
            vec panel[4];
#pragma GCC unroll 4
            for (int v = 0; v < n; v++) panel[v] = vec_load(w + v * VEC_W);
#pragma GCC unroll 12
            for (int r = 0; r < mr; r++) {
                vec x = vec_splat(base[r / 3][r % 3 * step]);
#pragma GCC unroll 4
                for (int v = 0; v < n; v++) vec_tile_add(&acc[r][v], x, panel[v], mr);
            }
#pragma GCC unroll 4
            for (int j = 0; 3 * j < mr; j++) base[j]++;
            w += n * VEC_W;
        }
    }
    float *y = s->y + row * s->y_step + start;
#pragma GCC unroll 4
    for (int v = 0; v < n; v++) {
        vec added = vec_load(bias + v * VEC_W);
        int64_t there = left - v * VEC_W;
#pragma GCC unroll 12
        for (int r = 0; r < mr; r++) {
            vec sum = added + acc[r][v];
            if (s->relu) sum = vec_max(vec_splat(0.0f), sum);
            vec_store_n(y + r * s->y_step + v * VEC_W, there, sum);
        }
    }
}

/* All rows of one panel. The last tile may begin before the end of the one before: it computes the same again. */
FRNN_INLINE void vec_slide_panel(const frnn_slide_call *s, const float *bias, const float *weights, int64_t start,
                                 const int n) {
    const int most = FRNN_SLIDE_ROWS(n);
    int64_t row = 0, rows = s->rows;
    for (; row + most <= rows; row += most) vec_slide_tile(s, row, bias, weights, start, most, n);
    if (rows - row > FRNN_SLIDE_FEW && rows >= most) {
        vec_slide_tile(s, rows - most, bias, weights, start, most, n);
        return;
    }
    for (; row < rows && rows >= FRNN_SLIDE_FEW; row += FRNN_SLIDE_FEW) {
        vec_slide_tile(s, rows - row < FRNN_SLIDE_FEW ? rows - FRNN_SLIDE_FEW : row, bias, weights, start,
                       FRNN_SLIDE_FEW, n);
    }
    for (; row < rows; row++) vec_slide_tile(s, row, bias, weights, start, 1, n);
}

#define SLIDE(n)                                                                                                       \
    static __attribute__((noinline, unused)) void FRNN_WIDE(slide_##n)(const frnn_slide_call *s, const float *bias,    \
                                                                       const float *weights, int64_t start) {          \
        vec_slide_panel(s, bias, weights, start, n);                                                                   \
    }
/* clang-format off */
SLIDE(1)
#if VEC_W == FRNN_LANES
SLIDE(2) SLIDE(3)
#if FRNN_PANEL(4) == 4
SLIDE(4)
#endif
#endif
/* clang-format on */
#undef SLIDE

        static void vec_slide_block(const frnn_slide_call *s, const frnn_block *block) {
    const float *bias = s->packed + block->start * s->column, *weights = bias + block->nv * VEC_W;
#if VEC_W == FRNN_LANES
    const int64_t K = s->pieces * s->length;
    switch (block->nv) {
    case 2:
        FRNN_WIDE(slide_2)(s, bias, weights, block->start);
        return;
    case 3:
        FRNN_WIDE(slide_3)(s, bias, weights, block->start);
        return;
    case 4:
#if FRNN_PANEL(4) == 4
        FRNN_WIDE(slide_4)(s, bias, weights, block->start);
#else
        FRNN_WIDE(slide_2)(s, bias, weights, block->start);
        FRNN_WIDE(slide_2)(s, bias + 2 * VEC_W, weights + 2 * K * VEC_W, block->start + 2 * VEC_W);
#endif
        return;
    default:
        break;
    }
    (void)K;
#endif
    FRNN_WIDE(slide_1)(s, bias, weights, block->start);
}

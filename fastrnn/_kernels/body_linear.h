/* y = act(bias + x W) for one or two neighbouring blocks of columns of equal nv; included once per width. */
#ifndef FRNN_BODY_LINEAR_H
#define FRNN_BODY_LINEAR_H
#define vec_linear_block FRNN_WIDE(vec_linear_block)
#define vec_linear_store FRNN_WIDE(vec_linear_store)

typedef struct frnn_linear_call {
    const frnn_product *product;
    int64_t K, N, column; /* column: floats of one packed column, its bias too */
    const float *packed; /* block after block: bias [nv][width], W in panels */
    frnn_act act;
    const float *x;
    float *y;
    int64_t x_stride, y_stride, row0, row1;
    int64_t ahead; /* bytes of weights that tiles prefetch ahead; 0: none */
} frnn_linear_call;
#endif

/* The sums of nv vectors of columns of one row, activated. whole: no vector ends beyond the last column. */
FRNN_INLINE void vec_linear_store(const frnn_linear_call *call, int nv, int whole, const float *sums, int64_t row,
                                  int64_t start) {
    float *y = call->y + row * call->y_stride + start;
    if (whole && call->act.fn == FRNN_IDENTITY) { /* sums over a few terms take no longer than this */
        for (int v = 0; v < nv; v++) vec_store(y + v * VEC_W, vec_load(sums + v * VEC_W));
        return;
    }
    for (int v = 0; v < nv; v++) {
        vec a = vec_load(sums + v * VEC_W);
        if (call->act.fn != FRNN_IDENTITY) a = vec_activate(call->act, a);
        vec_store_n(y + v * VEC_W, call->N - start - v * VEC_W, a);
    }
}

static __attribute__((noinline)) void vec_linear_block(const frnn_linear_call *call, const frnn_block *blocks, int nb) {
    float out[FRNN_TALL_ROWS * 4 * VEC_W] __attribute__((aligned(64)));
    int nv = blocks[0].nv, whole = blocks[nb - 1].start + nv * VEC_W <= call->N;
    const frnn_tile_fn *tall = nb == 1 && nv == 1 && VEC_W == FRNN_LANES ? call->product->long_tiles : NULL;
    int64_t limit = tall ? FRNN_LONG_ROWS : call->product->rows[nb - 1][nv], mr;
    frnn_tile t;
    t.Kx = call->K, t.Kh = 0, t.shift = 0, t.out = out, t.pace = 0, t.near = call->ahead;
    t.height = frnn_tile_height(call->row1 - call->row0, limit);
    for (int64_t row = call->row0; row < call->row1; row += mr) {
        t.rows = mr = frnn_tile_height(call->row1 - row, limit);
        for (int b = 0; b < nb; b++) {
            const float *bias = call->packed + blocks[b].start * call->column;
            t.weights[b] = bias + nv * VEC_W;
            t.bias[b] = bias;
            for (int64_t r = 0; r < mr; r++) t.start[b][r] = bias;
        }
        for (int64_t r = 0; r < mr; r++) t.x[r] = call->x + (row + r) * call->x_stride;
        if (tall && mr > FRNN_TILE_ROWS) {
            tall[mr - FRNN_TILE_ROWS - 1](&t);
        } else {
            vec_tile_run(call->product, &t, mr, nb, nv);
        }
        for (int64_t r = 0; r < mr; r++) {
            for (int b = 0; b < nb; b++) {
                vec_linear_store(call, nv, whole, out + (r * nb + b) * 4 * VEC_W, row + r, blocks[b].start);
            }
        }
    }
}

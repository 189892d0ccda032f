/* Windows of rows: depthwise convolution, and pooling. Vectors run over channels, so every channel accumulates
 * separately, tap after tap. Widest width only.
 *
 * A window is a list of pointers, one per tap, to rows of C contiguous channels. The pointer of a tap in the padding is
 * to a row of zeros, so the terms of an output, and therefore its bits, are always the same. */

#define FRNN_WINDOWS 4 /* windows at once: as many independent sums hide the 4 cycles of a fused multiply-add */

/* `count` (1..FRNN_WINDOWS) windows, VEC_W channels from c on, of which n are there. */
FRNN_INLINE void frnn_depthwise_some(const int count, int64_t c, int64_t n, int64_t C, int64_t K, const float *W,
                                     const float *bias, frnn_act act, const float *const *taps, float *y,
                                     int64_t y_stride) {
    vec acc[FRNN_WINDOWS];
    for (int r = 0; r < count; r++) acc[r] = vec_splat(0.0f);
    for (int64_t k = 0; k < K; k++) {
        vec w = vec_load_n(W + k * C + c, n);
        for (int r = 0; r < count; r++) acc[r] = vec_fma(vec_load_n(taps[r * K + k] + c, n), w, acc[r]);
    }
    for (int r = 0; r < count; r++) {
        vec v = bias ? acc[r] + vec_load_n(bias + c, n) : acc[r];
        if (act.fn != FRNN_IDENTITY) v = vec_activate(act, v);
        vec_store_n(y + r * y_stride + c, n, v);
    }
}

static void frnn_depthwise(int64_t C, int64_t K, const float *W, const float *bias, frnn_act act, int64_t windows,
                           const float *const *taps, float *y, int64_t y_stride) {
    int64_t i = 0;
    for (; i + FRNN_WINDOWS <= windows; i += FRNN_WINDOWS) {
        for (int64_t c = 0; c < C; c += VEC_W) {
            frnn_depthwise_some(FRNN_WINDOWS, c, C - c, C, K, W, bias, act, taps + i * K, y + i * y_stride, y_stride);
        }
    }
    for (; i < windows; i++) {
        for (int64_t c = 0; c < C; c += VEC_W) {
            frnn_depthwise_some(1, c, C - c, C, K, W, bias, act, taps + i * K, y + i * y_stride, y_stride);
        }
    }
}

/* `count` (1..FRNN_WINDOWS) vectors of a row, `period` floats apart, from o on; n floats of the last one are there. The
 * weights of all of them are the same. */
FRNN_INLINE void frnn_depthwise_vectors(const int count, int64_t o, int64_t n, int64_t period, int64_t K,
                                        const float *W, const float *bias, frnn_act act, const float *const *from,
                                        float *y) {
    vec acc[FRNN_WINDOWS];
    for (int r = 0; r < count; r++) acc[r] = vec_splat(0.0f);
    for (int64_t k = 0; k < K; k++) {
        vec w = vec_load(W + k * period);
        const float *x = from[k] + o;
        for (int r = 0; r < count; r++) acc[r] = vec_fma(vec_load_n(x + r * period, n), w, acc[r]);
    }
    for (int r = 0; r < count; r++) {
        vec v = bias ? acc[r] + vec_load(bias) : acc[r];
        if (act.fn == FRNN_RELU) {
            v = vec_max(vec_splat(0.0f), v);
        } else if (act.fn != FRNN_IDENTITY) {
            v = vec_activate(act, v);
        }
        vec_store_n(y + o + r * period, n, v);
    }
}

static void frnn_depthwise_row(int64_t n, int64_t period, int64_t K, const float *W, const float *bias, frnn_act act,
                               const float *const *from, float *y) {
    for (int64_t first = 0; first < period && first < n; first += VEC_W) {
        const float *added = bias ? bias + first : NULL;
        int64_t o = first;
        for (; o + (FRNN_WINDOWS - 1) * period + VEC_W <= n; o += FRNN_WINDOWS * period) {
            frnn_depthwise_vectors(FRNN_WINDOWS, o, VEC_W, period, K, W + first, added, act, from, y);
        }
        for (; o < n; o += period) frnn_depthwise_vectors(1, o, n - o, period, K, W + first, added, act, from, y);
    }
}

static void frnn_pool(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps, float *y) {
    for (int64_t c = 0; c < C; c += VEC_W) {
        int64_t n = C - c;
        vec acc = frnn_neutral(fn);
        for (int64_t k = 0; k < K; k++) {
            vec v = vec_load_n(taps[k] + c, n);
            acc = fn == FRNN_ADD ? acc + v : vec_keep_nan(acc, vec_max(acc, v));
        }
        vec_store_n(y + c, n, fn == FRNN_ADD ? acc / vec_splat(divisor) : acc);
    }
}

static void frnn_pool_row(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps, int64_t x_step,
                          int64_t windows, float *y, int64_t y_step) {
    for (int64_t c = 0; c < C; c += VEC_W) {
        int64_t n = C - c;
        for (int64_t i = 0; i < windows; i++) {
            vec acc = frnn_neutral(fn);
            for (int64_t k = 0; k < K; k++) {
                vec v = vec_load_n(taps[k] + i * x_step + c, n);
                acc = fn == FRNN_ADD ? acc + v : vec_keep_nan(acc, vec_max(acc, v));
            }
            vec_store_n(y + i * y_step + c, n, fn == FRNN_ADD ? acc / vec_splat(divisor) : acc);
        }
    }
}
#undef FRNN_WINDOWS

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
#undef FRNN_WINDOWS

/* Attention of one query to its keys. Vectors run over the features of a key, so a score is one sum in an order that
 * depends only on d. The weighted sum runs key after key, the oldest first. So a query's result depends on its own
 * keys and their number, not on where they are stored (a ring buffer, the middle of a sequence). Widest width only. */

#define FRNN_KEYS 4 /* scores at once: as many independent sums hide the 4 cycles of a fused multiply-add */

/* scores[r] = scale * sum_i q[i] k[r * step + i] for r < count (1..FRNN_KEYS) */
FRNN_INLINE void frnn_scores(const int count, int64_t d, float scale, const float *q, const float *k, int64_t step,
                             float *scores) {
    vec acc[FRNN_KEYS];
    for (int r = 0; r < count; r++) acc[r] = vec_splat(0.0f);
    for (int64_t i = 0; i < d; i += VEC_W) {
        vec a = vec_load_n(q + i, d - i);
        for (int r = 0; r < count; r++) acc[r] = vec_fma(a, vec_load_n(k + r * step + i, d - i), acc[r]);
    }
    for (int r = 0; r < count; r++) scores[r] = frnn_fold(FRNN_ADD, acc[r]) * scale;
}

/* acc[r] += w * v[r] over `count` vectors of a row of values, of which the last may be a part. */
FRNN_INLINE void frnn_values(const int count, int64_t n, const float *weights, const frnn_keys *keys, int64_t at,
                             float *y) {
    vec acc[FRNN_KEYS];
    for (int r = 0; r < count; r++) acc[r] = vec_splat(0.0f);
    for (int run = 0; run < 2; run++) {
        const float *v = keys->v[run] + at;
        for (int64_t j = 0; j < keys->n[run]; j++, v += keys->v_step) {
            vec w = vec_splat(*weights++);
            for (int r = 0; r < count; r++) acc[r] = vec_fma(w, vec_load_n(v + r * VEC_W, n - r * VEC_W), acc[r]);
        }
    }
    for (int r = 0; r < count; r++) vec_store_n(y + r * VEC_W, n - r * VEC_W, acc[r]);
}

static void frnn_attend(int64_t d, int64_t dv, const frnn_attention *how, const float *q, const frnn_keys *keys,
                        const float *bias, int64_t bias_step, const float *mask, int64_t mask_step, float *scores,
                        float *y) {
    int64_t n = keys->n[0] + keys->n[1], at = 0;
    for (int run = 0; run < 2; run++) {
        const float *k = keys->k[run];
        int64_t j = 0, step = keys->k_step;
        for (; j + FRNN_KEYS <= keys->n[run]; j += FRNN_KEYS, k += FRNN_KEYS * step) {
            frnn_scores(FRNN_KEYS, d, how->scale, q, k, step, scores + at + j);
        }
        for (; j < keys->n[run]; j++, k += step) frnn_scores(1, d, how->scale, q, k, step, scores + at + j);
        at += keys->n[run];
    }
    if (how->softcap > 0) {
        frnn_act cap = {FRNN_SCALED_TANH, how->softcap, 1.0f / how->softcap};
        frnn_map(cap, n, scores, scores);
    }
    if (mask) { /* a replaced score has no effect, not even by rounding */
        for (int64_t j = 0; j < n; j++) scores[j] = mask[j * mask_step] != 0.0f ? scores[j] : 0.0f;
    }
    if (bias) {
        for (int64_t j = 0; j < n; j++) scores[j] += bias[j * bias_step];
    }
    frnn_softmax(1, n, 0, scores, n, scores, n);
    if (how->safe && n > 0 && scores[0] != scores[0]) { /* one NaN makes all weights of the query NaN */
        for (int64_t j = 0; j < n; j++) scores[j] = 0.0f;
    }
    int64_t i = 0;
    for (; dv - i > (FRNN_KEYS - 1) * VEC_W; i += FRNN_KEYS * VEC_W) {
        frnn_values(FRNN_KEYS, dv - i, scores, keys, i, y + i);
    }
    for (; i < dv; i += VEC_W) frnn_values(1, dv - i, scores, keys, i, y + i);
}
#undef FRNN_KEYS

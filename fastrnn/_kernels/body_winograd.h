/* The two ends of a 3 x 3 convolution by Winograd's F(2 x 2, 3 x 3): 16 products of small matrices take the place of 36.
 * Vectors run over channels. Widest width only.
 *
 * From a window d of 4 x 4 positions, B' d B; from 16 sums m, the 2 x 2 results A' m A:
 *   B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]    A' = [1 1 1 0; 0 1 -1 -1]
 */

static void frnn_winograd_in(int64_t C, const float *const *taps, float *y, int64_t y_step) {
    for (int64_t c = 0; c < C; c += VEC_W) {
        int64_t n = C - c;
        vec d[4][4];
        for (int j = 0; j < 4; j++) { /* columns: B' d */
            vec a0 = vec_load_n(taps[j] + c, n), a1 = vec_load_n(taps[4 + j] + c, n);
            vec a2 = vec_load_n(taps[8 + j] + c, n), a3 = vec_load_n(taps[12 + j] + c, n);
            d[0][j] = a0 - a2, d[1][j] = a1 + a2, d[2][j] = a2 - a1, d[3][j] = a1 - a3;
        }
        for (int i = 0; i < 4; i++) { /* rows: (B' d) B */
            float *to = y + 4 * i * y_step + c;
            vec_store_n(to, n, d[i][0] - d[i][2]);
            vec_store_n(to + y_step, n, d[i][1] + d[i][2]);
            vec_store_n(to + 2 * y_step, n, d[i][2] - d[i][1]);
            vec_store_n(to + 3 * y_step, n, d[i][1] - d[i][3]);
        }
    }
}

static void frnn_winograd_out(int64_t N, const float *x, int64_t x_step, const float *bias, frnn_act act,
                              float *const *y) {
    for (int64_t c = 0; c < N; c += VEC_W) {
        int64_t n = N - c;
        vec m[2][4], added = bias ? vec_load_n(bias + c, n) : vec_splat(0.0f);
        for (int j = 0; j < 4; j++) { /* columns: A' m */
            vec a0 = vec_load_n(x + j * x_step + c, n), a1 = vec_load_n(x + (4 + j) * x_step + c, n);
            vec a2 = vec_load_n(x + (8 + j) * x_step + c, n), a3 = vec_load_n(x + (12 + j) * x_step + c, n);
            m[0][j] = a0 + a1 + a2, m[1][j] = a1 - a2 - a3;
        }
        for (int i = 0; i < 2; i++) {
            vec left = m[i][0] + m[i][1] + m[i][2] + added, right = m[i][1] - m[i][2] - m[i][3] + added;
            if (act.fn == FRNN_RELU) {
                left = vec_max(vec_splat(0.0f), left);
                right = vec_max(vec_splat(0.0f), right);
            } else if (act.fn != FRNN_IDENTITY) {
                left = vec_activate(act, left), right = vec_activate(act, right);
            }
            if (y[2 * i]) vec_store_n(y[2 * i] + c, n, left);
            if (y[2 * i + 1]) vec_store_n(y[2 * i + 1] + c, n, right);
        }
    }
}

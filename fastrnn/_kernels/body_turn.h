/* Rows and columns of floats exchanged, a block of VEC_W x VEC_W at a time. Widest width only. */

#if defined(__clang__)
static void frnn_turn(int64_t rows, int64_t columns, const float *x, int64_t x_row, float *y, int64_t y_row) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) y[c * y_row + r] = x[r * x_row + c];
    }
}
#else
/* Exchanges the second halves of runs of 2 * half lanes of rows i with the first halves of rows i + half. */
FRNN_INLINE void frnn_turn_halves(vec *rows, const int half) {
    const vec_int lane = {
#if FRNN_LANES == 16
        0, 1,  2,  3,  4,  5,  6, 7, 8,
        9, 10, 11, 12, 13, 14, 15
#elif FRNN_LANES == 8
        0, 1, 2, 3, 4,
        5, 6, 7
#else
        0, 1, 2, 3
#endif
    };
    vec_int first = lane + (((lane & half) != 0) & (VEC_W - half)), second = first + half;
    for (int i = 0; i < VEC_W; i++) {
        if (i & half) continue;
        vec a = rows[i], b = rows[i + half];
        rows[i] = __builtin_shuffle(a, b, first);
        rows[i + half] = __builtin_shuffle(a, b, second);
    }
}

FRNN_INLINE void frnn_turn_block(const float *x, int64_t x_row, float *y, int64_t y_row) {
    vec block[VEC_W];
    for (int i = 0; i < VEC_W; i++) block[i] = vec_load(x + i * x_row);
#if FRNN_LANES == 16
    frnn_turn_halves(block, 8);
#endif
#if FRNN_LANES >= 8
    frnn_turn_halves(block, 4);
#endif
    frnn_turn_halves(block, 2);
    frnn_turn_halves(block, 1);
    for (int i = 0; i < VEC_W; i++) vec_store(y + i * y_row, block[i]);
}

static void frnn_turn(int64_t rows, int64_t columns, const float *x, int64_t x_row, float *y, int64_t y_row) {
    for (int64_t c = 0; c < columns; c += VEC_W) {
        for (int64_t r = 0; r < rows; r += VEC_W) {
            const float *from = x + r * x_row + c;
            float *to = y + c * y_row + r;
            if (rows - r >= VEC_W && columns - c >= VEC_W) {
                frnn_turn_block(from, x_row, to, y_row);
                continue;
            }
            for (int64_t j = 0; j < VEC_W && c + j < columns; j++) {
                for (int64_t i = 0; i < VEC_W && r + i < rows; i++) to[j * y_row + i] = from[i * x_row + j];
            }
        }
    }
}
#endif

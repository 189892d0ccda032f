/* The products of one instruction set: how each number format is packed, rounded and summed. Included once, after the
 * tiles of all widths. */

#define FRNN_NAME(op) FRNN_JOIN(frnn_##op, FRNN_ISA)
#define FRNN_TEXT2(a) #a
#define FRNN_TEXT(a) FRNN_TEXT2(a)

#if FRNN_LANES == 16
#define ALL_WIDTHS(tiles) {&tiles##_4, &tiles##_8, &tiles##_16}
#elif FRNN_LANES == 8
#define ALL_WIDTHS(tiles) {&tiles##_4, &tiles##_8, NULL}
#else
#define ALL_WIDTHS(tiles) {&tiles##_4, NULL, NULL}
#endif
#ifdef FRNN_FUSED
#define FRNN_BITS(format) format
#else
#define FRNN_BITS(format) format " " FRNN_TEXT(FRNN_ISA)
#endif

#ifndef FRNN_LIKE /* an instruction set that is like another but for its 8-bit products has no more of its own */
/* ---- the product of float32 weights ---- */

static int64_t frnn_float32_column(int64_t K) { return K; }

static float *frnn_float32_pack(int64_t K, int64_t k0, int64_t k1, int64_t nv, int64_t width, const float *const *from,
                                int64_t k_stride, int64_t lane_stride, const int64_t *count, const float *const *scale,
                                float *packed) {
    (void)scale;
    int64_t n = FRNN_PANEL(nv);
    for (int64_t first = 0; first < nv; first += n) {
        float *p = packed + (first * K + k0 * n) * width;
        for (int64_t k = k0; k < k1; k++) {
            for (int64_t v = first; v < first + n; v++) {
                const float *w = from[v] + k * k_stride;
                for (int64_t l = 0; l < width; l++) *p++ = l < count[v] ? w[l * lane_stride] : 0.0f;
            }
        }
    }
    return packed + nv * K * width;
}

static frnn_tuning frnn_float32_tuning = FRNN_TUNING;
static const frnn_product frnn_float32 = {
    .weights = "float32",
    .bits = "float32 " FRNN_TEXT(FRNN_ISA),
    .rows = {{0, FRNN_MOST_ROWS(1), FRNN_MOST_ROWS(2), FRNN_MOST_ROWS(3), FRNN_MOST_ROWS(4)},
             {0, 0, 0, FRNN_PAIR_ROWS, FRNN_PAIR_ROWS}},
    .panel = {0, FRNN_PANEL(1), FRNN_PANEL(2), FRNN_PANEL(3), FRNN_PANEL(4)},
    .column = frnn_float32_column,
    .pack = frnn_float32_pack,
    .tiles = ALL_WIDTHS(vec_tiles),
    .long_tiles = frnn_long_tiles,
    .tuning = &frnn_float32_tuning,
};

/* ---- the product of bfloat16 weights ---- */

static int64_t frnn_bfloat16_column(int64_t K) { return frnn_groups(K, 2) * FRNN_GROUP; }
static int64_t frnn_bfloat16_rounded(int64_t K) { return frnn_groups(K, 2) * FRNN_GROUP * 2; }

/* The upper half of a float, rounded to the nearest, ties to even. */
static uint32_t frnn_bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7fc0;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static float *frnn_bfloat16_pack(int64_t K, int64_t k0, int64_t k1, int64_t nv, int64_t width, const float *const *from,
                                 int64_t k_stride, int64_t lane_stride, const int64_t *count, const float *const *scale,
                                 float *packed) {
    (void)scale;
    float *p = packed + frnn_groups(k0, 2) * FRNN_GROUP * nv * width;
    for (int64_t g = frnn_groups(k0, 2); g < frnn_groups(k1, 2); g++) {
        for (int64_t q = 0; q < FRNN_GROUP; q++) {
            for (int64_t v = 0; v < nv; v++) {
                for (int64_t l = 0; l < width; l++, p++) {
                    uint32_t term = 0;
                    for (int64_t i = 0; i < 2; i++) {
                        int64_t k = (g * FRNN_GROUP + q) * 2 + i;
                        if (k >= K || l >= count[v]) continue;
                        term |= frnn_bfloat16_of(from[v][k * k_stride + l * lane_stride]) << (16 * i);
                    }
                    memcpy(p, &term, sizeof term);
                }
            }
        }
    }
    return packed + frnn_groups(K, 2) * FRNN_GROUP * nv * width;
}

static const frnn_product frnn_bfloat16 = {
    .weights = "bfloat16",
    .bits = FRNN_BITS("bfloat16"),
    .rows = {{0, FRNN_BFLOAT16_ROWS, FRNN_BFLOAT16_ROWS, FRNN_BFLOAT16_ROWS, FRNN_BFLOAT16_ROWS},
             {0, 0, 0, FRNN_BFLOAT16_PAIR_ROWS, FRNN_BFLOAT16_PAIR_ROWS}},
    .panel = {0, 1, 2, 3, 4},
    .column = frnn_bfloat16_column,
    .pack = frnn_bfloat16_pack,
    .rounded = frnn_bfloat16_rounded,
    .round = frnn_round_bfloat16,
    .tiles = ALL_WIDTHS(vec_tiles_bfloat16),
};
#endif

/* ---- the products of 8-bit weights ---- */

static int64_t frnn_int8_column(int64_t K) { return 2 + frnn_groups(K, 4) * FRNN_GROUP; }
static int64_t frnn_int8_rounded(int64_t K) { return FRNN_HEAD + frnn_groups(K, 4) * FRNN_GROUP; }
static int64_t frnn_int8_a16_rounded(int64_t K) { return FRNN_HEAD + 2 * frnn_groups(K, 4) * FRNN_GROUP; }

/* The scale of a column: that of the caller, or the one that makes its largest weight 127. */
static float frnn_column_scale(int64_t K, const float *w, int64_t k_stride) {
    float most = 0;
    for (int64_t k = 0; k < K; k++) most = fmaxf(most, fabsf(w[k * k_stride]));
    return most / 127.0f;
}

static int32_t frnn_int8_of(float value, float scale) {
    float q = scale > 0 ? rintf(value / scale) : 0.0f;
    return (int32_t)fmaxf(-128.0f, fminf(127.0f, q));
}

static float *frnn_int8_pack(int64_t K, int64_t k0, int64_t k1, int64_t nv, int64_t width, const float *const *from,
                             int64_t k_stride, int64_t lane_stride, const int64_t *count, const float *const *scale,
                             float *p) {
    (void)k0, (void)k1;
    const int64_t groups = frnn_groups(K, 4);
    float *scales = p, *sums = p + nv * width, *terms = sums + nv * width;
    for (int64_t v = 0; v < nv; v++) {
        for (int64_t l = 0; l < width; l++) {
            const float *w = from[v] + l * lane_stride;
            int there = l < count[v];
            float own = !there ? 0.0f : scale ? scale[v][l] : frnn_column_scale(K, w, k_stride);
            int32_t sum = 0;
            for (int64_t t = 0; t < groups * FRNN_GROUP; t++) {
                uint32_t term = 0;
                for (int64_t i = 0; i < 4; i++) {
                    int64_t k = t * 4 + i;
                    int32_t q = there && k < K ? frnn_int8_of(w[k * k_stride], own) : 0;
                    term |= (uint32_t)(uint8_t)(int8_t)q << (8 * i);
                    sum += q;
                }
                memcpy(terms + (t * nv + v) * width + l, &term, sizeof term);
            }
            sum *= -128;
            scales[v * width + l] = own;
            memcpy(sums + v * width + l, &sum, sizeof sum);
        }
    }
    return terms + groups * nv * FRNN_GROUP * width;
}

static const frnn_product frnn_int8 = {
    .weights = "int8",
    .bits = FRNN_BITS("int8"),
    .rows = {{0, FRNN_INT8_ROWS, FRNN_INT8_ROWS, FRNN_INT8_ROWS, FRNN_INT8_ROWS},
             {0, 0, 0, FRNN_INT8_PAIR_ROWS, FRNN_INT8_PAIR_ROWS}},
    .panel = {0, 1, 2, 3, 4},
    .column = frnn_int8_column,
    .pack = frnn_int8_pack,
    .rounded = frnn_int8_rounded,
    .round = frnn_round_int8,
    .tiles = ALL_WIDTHS(vec_tiles_int8),
};

static const frnn_product frnn_int8_a16 = {
    .weights = "int8-a16",
    .bits = FRNN_BITS("int8-a16"),
    .rows = {{0, 3, 3, 3, 3}, {0, 0, 0, FRNN_INT8_A16_PAIR_ROWS, FRNN_INT8_A16_PAIR_ROWS}},
    .panel = {0, 1, 2, 3, 4},
    .column = frnn_int8_column,
    .pack = frnn_int8_pack,
    .rounded = frnn_int8_a16_rounded,
    .round = frnn_round_int8_a16,
    .tiles = ALL_WIDTHS(vec_tiles_int8_a16),
};

#ifdef FRNN_LIKE
const frnn_product *const FRNN_NAME(products)[] = {&frnn_int8, &frnn_int8_a16, NULL};
#else
static const frnn_product *const frnn_products[] = {&frnn_float32, &frnn_bfloat16, &frnn_int8, &frnn_int8_a16, NULL};
#endif

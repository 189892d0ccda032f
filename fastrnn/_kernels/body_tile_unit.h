/* Products of reduced precision on a tile unit (tile_unit.h): they compute what body_tile_bfloat16.h and body_tile_int8.h
 * compute, of the same packed weights, for up to FRNN_TALL_ROWS rows of one block, with the same bits. Included once, for
 * the widest width.
 *
 * A call configures the unit for its first tile of rows. A later one may have fewer rows: it then begins with rows of the
 * tile before it, whose sums are dropped, because a configuration for each height costs more. Tiles 0 to 3 hold sums, 4
 * (and 5) rows, the others weights, by turns, so that a load need not wait for the product before it. */

#define FRNN_NAME(op) FRNN_JOIN(frnn_##op, FRNN_ISA)
#define FRNN_WEIGHT_BYTES ((int64_t)sizeof(vec)) /* of a term of all columns */

/* The sums of the four tiles: vector, row, column. */
typedef float frnn_tile_sums[4][FRNN_TALL_ROWS][VEC_W];

static void FRNN_NAME(begin_tiles)(int64_t rows, int row_tiles) {
    frnn_tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        int of_rows = t >= 4 && t < 4 + row_tiles;
        config.rows[t] = (uint8_t)(t < 4 || of_rows ? rows : FRNN_GROUP);
        config.bytes[t] = (uint16_t)(of_rows ? FRNN_GROUP * 4 : FRNN_WEIGHT_BYTES);
    }
    tile_config(&config);
}
static void FRNN_NAME(begin_one)(int64_t rows) { FRNN_NAME(begin_tiles)(rows, 1); }
static void FRNN_NAME(begin_two)(int64_t rows) { FRNN_NAME(begin_tiles)(rows, 2); }
static void FRNN_NAME(end)(void) { tile_release(); }

/* Bytes from a row of the tile to the next one; all are equally far apart. */
FRNN_INLINE int64_t frnn_row_bytes(const frnn_tile *t, const float *const *row) {
    return t->rows > 1 ? (const char *)row[1] - (const char *)row[0] : 0;
}

/* The row that a tile begins with: `dropped` rows before its first one. */
FRNN_INLINE const char *frnn_first_row(const frnn_tile *t, const float *const *row) {
    return (const char *)row[0] - (t->height - t->rows) * frnn_row_bytes(t, row);
}

/* ---- bfloat16: a rounded row has the values as floats, for vectors, then as pairs, for tiles ---- */

static int64_t FRNN_NAME(rounded_bfloat16)(int64_t K) { return frnn_groups(K, 2) * FRNN_GROUP * 3; }

static void FRNN_NAME(round_bfloat16)(int64_t K, const float *x, float *row) {
    const int64_t terms = frnn_groups(K, 2) * FRNN_GROUP;
    float *pairs = row + 2 * terms;
    frnn_round_bfloat16(K, x, row);
    for (int64_t i = 0; i < terms; i++) {
        uint32_t two[2], term;
        memcpy(two, row + 2 * i, sizeof two);
        term = two[0] >> 16 | two[1];
        memcpy(pairs + i, &term, sizeof term);
    }
}

#define VECTOR(v, b, to)                                                                                               \
    tile_load(b, frnn_term(terms, g *FRNN_GROUP, nv, v, VEC_W), nv *FRNN_WEIGHT_BYTES);                                \
    tile_dp_bf16(to, 4, b);
#define GROUP(to0, to1, to2, to3)                                                                                      \
    tile_load(4, rows + g * FRNN_GROUP * 4, stride);                                                                   \
    VECTOR(0, 6, to0)                                                                                                  \
    if (nv > 1) { VECTOR(1, 7, to1) }                                                                                  \
    if (nv > 2) { VECTOR(2, 5, to2) }                                                                                  \
    if (nv > 3) { VECTOR(3, 6, to3) }

/* The terms of x, or of h if `hidden`: the sums of vector v are in tile v + shift. */
FRNN_INLINE void frnn_unit_bfloat16_half(const frnn_tile *t, const int hidden, const int shift, const int nv) {
    const int64_t K = hidden ? t->Kh : t->Kx, groups = frnn_groups(K, 2);
    const float *const *row = hidden ? t->h : t->x;
    const char *rows = frnn_first_row(t, row) + groups * FRNN_GROUP * 2 * sizeof(float);
    const int64_t stride = frnn_row_bytes(t, row);
    const float *terms = t->weights[0] + (hidden ? frnn_groups(t->Kx, 2) * FRNN_GROUP * nv * VEC_W : 0);
    for (int64_t g = 0; g < groups; g++) {
        if (shift) {
            GROUP(1, 2, 3, 3)
        } else {
            GROUP(0, 1, 2, 3)
        }
    }
}
#undef VECTOR
#undef GROUP

/* What the sums of nv vectors start from, in the rows of a tile; those that are dropped start from 0. */
FRNN_INLINE void frnn_unit_starts(const frnn_tile *t, frnn_tile_sums sums, const int nv) {
    for (int64_t r = 0, dropped = t->height - t->rows; r < t->height; r++) {
        for (int v = 0; v < nv; v++) {
            vec_store(sums[v][r], r < dropped ? vec_splat(0.0f) : vec_load(t->start[0][r - dropped] + v * VEC_W));
        }
    }
}

FRNN_INLINE void frnn_unit_bfloat16(const frnn_tile *t, const int nv) {
    frnn_tile_sums sums __attribute__((aligned(64)));
    const int shift = t->Kh > 0 ? (int)t->shift : 0, count = nv + shift;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    if (t->Kx > 0) {
        frnn_unit_bfloat16_half(t, 0, 0, nv);
    } else if (t->start[0][0] != t->bias[0]) { /* the input half was summed before */
        frnn_unit_starts(t, sums, nv);
        tile_load(0, sums[0], FRNN_WEIGHT_BYTES);
        if (nv > 1) tile_load(1, sums[1], FRNN_WEIGHT_BYTES);
        if (nv > 2) tile_load(2, sums[2], FRNN_WEIGHT_BYTES);
        if (nv > 3) tile_load(3, sums[3], FRNN_WEIGHT_BYTES);
    }
    if (t->Kh > 0 && shift) {
        frnn_unit_bfloat16_half(t, 1, 1, nv);
    } else if (t->Kh > 0) {
        frnn_unit_bfloat16_half(t, 1, 0, nv);
    }
    tile_store(0, sums[0], FRNN_WEIGHT_BYTES);
    tile_store(1, sums[1], FRNN_WEIGHT_BYTES);
    tile_store(2, sums[2], FRNN_WEIGHT_BYTES);
    tile_store(3, sums[3], FRNN_WEIGHT_BYTES);
    for (int64_t r = 0, dropped = t->height - t->rows; r < t->rows; r++) {
        float *out = t->out + r * 4 * VEC_W;
        for (int v = 0; v < count; v++) {
            vec sum = vec_load(sums[v][r + dropped]);
            if (t->bias[0]) sum = sum + vec_load((v < nv ? t->bias[0] : out) + v * VEC_W);
            vec_store(out + v * VEC_W, sum);
        }
    }
}

/* ---- int8, and int8-a16 with two planes ---- */

/* Sums begin at -offset times those of the weights: the same in each row of a tile. */
#if FRNN_INT8_OFFSET
#define START(to, v) tile_load(to, starts + (v) * VEC_W, 0);
#else
#define START(to, v) tile_zero(to);
#endif
#define WEIGHTS(b, v) tile_load(b, frnn_term(terms, g *FRNN_GROUP, nv, v, VEC_W), nv *FRNN_WEIGHT_BYTES);

FRNN_INLINE void frnn_unit_int8_sums(const char *rows, int64_t stride, const float *starts, const float *terms,
                                     int64_t groups, frnn_tile_sums sums, const int nv) {
    (void)starts;
    START(0, 0)
    if (nv > 1) { START(1, 1) }
    if (nv > 2) { START(2, 2) }
    if (nv > 3) { START(3, 3) }
    for (int64_t g = 0; g < groups; g++) {
        tile_load(4, rows + g * FRNN_GROUP * 4, stride);
        WEIGHTS(6, 0)
        tile_dp_int8(0, 4, 6);
        if (nv > 1) {
            WEIGHTS(7, 1)
            tile_dp_int8(1, 4, 7);
        }
        if (nv > 2) {
            WEIGHTS(5, 2)
            tile_dp_int8(2, 4, 5);
        }
        if (nv > 3) {
            WEIGHTS(6, 3)
            tile_dp_int8(3, 4, 6);
        }
    }
    tile_store(0, sums[0], FRNN_WEIGHT_BYTES);
    if (nv > 1) tile_store(1, sums[1], FRNN_WEIGHT_BYTES);
    if (nv > 2) tile_store(2, sums[2], FRNN_WEIGHT_BYTES);
    if (nv > 3) tile_store(3, sums[3], FRNN_WEIGHT_BYTES);
}

/* Two vectors from `first` on, or one: the high parts of the rows and the low ones share each load of weights. */
FRNN_INLINE void frnn_unit_int8_planes(const char *rows, int64_t stride, const float *starts, const float *terms,
                                       int64_t groups, frnn_tile_sums high, frnn_tile_sums low, const int first,
                                       const int nv) {
    const int two = first + 1 < nv;
    const char *low_rows = rows + groups * FRNN_GROUP * 4;
    (void)starts;
    START(0, first) START(2, first) if (two) { START(1, first + 1) START(3, first + 1) }
    for (int64_t g = 0; g < groups; g++) {
        tile_load(4, rows + g * FRNN_GROUP * 4, stride);
        tile_load(5, low_rows + g * FRNN_GROUP * 4, stride);
        WEIGHTS(6, first)
        tile_dp_int8(0, 4, 6);
        tile_dp_int8(2, 5, 6);
        if (two) {
            WEIGHTS(7, first + 1)
            tile_dp_int8(1, 4, 7);
            tile_dp_int8(3, 5, 7);
        }
    }
    tile_store(0, high[first], FRNN_WEIGHT_BYTES);
    tile_store(2, low[first], FRNN_WEIGHT_BYTES);
    if (two) {
        tile_store(1, high[first + 1], FRNN_WEIGHT_BYTES);
        tile_store(3, low[first + 1], FRNN_WEIGHT_BYTES);
    }
}
#undef START
#undef WEIGHTS

/* Over x, or over h if `hidden`; vec_int8_vectors of body_tile_int8.h has the order. */
FRNN_INLINE void frnn_unit_int8_half(const frnn_tile *t, const int hidden, const int planes, const int nv) {
    frnn_tile_sums sums[2] __attribute__((aligned(64)));
    const float *const *row = hidden ? t->h : t->x;
    const int64_t groups = frnn_groups(hidden ? t->Kh : t->Kx, 4), stride = frnn_row_bytes(t, row);
    const int64_t before = hidden && t->Kx > 0 ? (2 + frnn_groups(t->Kx, 4) * FRNN_GROUP) * nv * VEC_W : 0;
    const float *scales = t->weights[0] + before, *starts = scales + nv * VEC_W, *terms = starts + nv * VEC_W;
    const char *rows = frnn_first_row(t, row) + FRNN_HEAD * sizeof(float);
    if (planes == 1) {
        frnn_unit_int8_sums(rows, stride, starts, terms, groups, sums[0], nv);
    } else {
        frnn_unit_int8_planes(rows, stride, starts, terms, groups, sums[0], sums[1], 0, nv);
        if (nv > 2) frnn_unit_int8_planes(rows, stride, starts, terms, groups, sums[0], sums[1], 2, nv);
    }
    for (int64_t r = 0, dropped = t->height - t->rows; r < t->rows; r++) {
        float *out = t->out + (r * 4 + (hidden ? t->shift : 0)) * VEC_W;
        const float *addend = hidden ? out : t->start[0][r];
        const vec scale = vec_splat(row[r][0]);
        for (int v = 0; v < nv; v++) {
            vec S = vec_of_int(vec_bits(vec_load(sums[0][v][r + dropped])));
            if (planes > 1) {
                S = vec_fma(S, vec_splat(128.0f), vec_of_int(vec_bits(vec_load(sums[1][v][r + dropped]))));
            }
            const vec by = scale * vec_load(scales + v * VEC_W);
            vec_store(out + v * VEC_W, vec_fma(S, by, vec_load(addend + v * VEC_W)));
        }
    }
}

FRNN_INLINE void frnn_unit_int8(const frnn_tile *t, const int planes, const int nv) {
    for (int64_t r = 0; r < t->rows && t->Kx == 0; r++) {
        memcpy(t->out + r * 4 * VEC_W, t->start[0][r], nv * sizeof(vec));
    }
    if (t->Kx > 0) frnn_unit_int8_half(t, 0, planes, nv);
    if (t->Kh > 0) frnn_unit_int8_half(t, 1, planes, nv);
}

/* ---- the products ---- */

/* clang-format off */
#define ALL_VECTORS(name, BODY) \
    static __attribute__((noinline)) void name##_1(const frnn_tile *t) { BODY(t, 1); } \
    static __attribute__((noinline)) void name##_2(const frnn_tile *t) { BODY(t, 2); } \
    static __attribute__((noinline)) void name##_3(const frnn_tile *t) { BODY(t, 3); } \
    static __attribute__((noinline)) void name##_4(const frnn_tile *t) { BODY(t, 4); } \
    static frnn_tiles name = {{ \
        {name##_1, name##_2, name##_3, name##_4}, {name##_1, name##_2, name##_3, name##_4}, \
        {name##_1, name##_2, name##_3, name##_4}, {name##_1, name##_2, name##_3, name##_4}, \
        {name##_1, name##_2, name##_3, name##_4}, {name##_1, name##_2, name##_3, name##_4}}};
#define INT8(t, nv) frnn_unit_int8(t, 1, nv)
#define INT8_A16(t, nv) frnn_unit_int8(t, 2, nv)
ALL_VECTORS(tall_bfloat16, frnn_unit_bfloat16)
ALL_VECTORS(tall_int8, INT8)
ALL_VECTORS(tall_int8_a16, INT8_A16)

const frnn_tiled FRNN_NAME(tiled)[] = {
    {"bfloat16", FRNN_NAME(rounded_bfloat16), FRNN_NAME(round_bfloat16), FRNN_NAME(begin_one), FRNN_NAME(end),
     &tall_bfloat16},
    {"int8", NULL, NULL, FRNN_NAME(begin_one), FRNN_NAME(end), &tall_int8},
    {"int8-a16", NULL, NULL, FRNN_NAME(begin_two), FRNN_NAME(end), &tall_int8_a16},
    {NULL, NULL, NULL, NULL, NULL, NULL},
};
/* clang-format on */

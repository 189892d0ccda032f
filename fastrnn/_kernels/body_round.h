/* Rounds rows of x and h for the products of reduced precision; widest width only. A row's result depends on that row
 * alone. A row with a NaN or an infinity becomes NaN as a whole. */

#ifndef FRNN_LIKE
/* bfloat16: to the nearest, ties to even, as floats. */
static void frnn_round_bfloat16(int64_t K, const float *x, float *row) {
    const int64_t padded = frnn_groups(K, 2) * FRNN_GROUP * 2;
    vec_int bad = vec_bits(vec_splat(0.0f));
    for (int64_t k = 0; k < padded; k += VEC_W) {
        vec_int bits = vec_bits(vec_load_n(x + (k < K ? k : 0), k < K ? K - k : 0));
        bad |= (bits & 0x7f800000) == 0x7f800000;
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
        vec_store(row + k, vec_of_bits(bits));
    }
    int32_t any = 0;
    for (int i = 0; i < VEC_W; i++) any |= bad[i];
    for (int64_t k = 0; any && k < padded; k++) row[k] = NAN;
}
#endif

#ifndef FRNN_TILED /* a tile unit reads bytes as vectors do */
FRNN_INLINE vec_int vec_int_max(vec_int a, vec_int b) {
    vec_int more = a > b;
    return (a & more) | (b & ~more);
}

/* The largest size in a row, as the bits of a float: a NaN is larger than all numbers. */
static int32_t frnn_row_size(int64_t K, const float *x) {
    vec_int top[4] = {{0}, {0}, {0}, {0}}; /* a comparison waits long for the one before it */
    int32_t lanes[VEC_W], bits = 0;
    for (int64_t k = 0; k < K; k += 4 * VEC_W) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; i++) {
            int64_t at = k + i * VEC_W;
            vec_int size = vec_bits(vec_load_n(x + (at < K ? at : 0), at < K ? K - at : 0)) & 0x7fffffff;
            top[i] = vec_int_max(top[i], size);
        }
    }
    top[0] = vec_int_max(vec_int_max(top[0], top[1]), vec_int_max(top[2], top[3]));
    memcpy(lanes, &top[0], sizeof lanes);
    for (int i = 0; i < VEC_W; i++) bits = lanes[i] > bits ? lanes[i] : bits;
    return bits;
}

/* The scale of a row whose largest size becomes `most`, and its inverse. A row of zeros, or of numbers so small that the
 * inverse would overflow, has scale 0. */
static float frnn_row_scale(int32_t bits, float most, float *inverse) {
    float size;
    memcpy(&size, &bits, sizeof size);
    *inverse = 0;
    if (bits >= 0x7f800000) return NAN;
    if (size < 1e-33f) return 0;
    *inverse = most / size;
    return size / most;
}

typedef int8_t frnn_bytes __attribute__((vector_size(VEC_W)));
typedef int8_t frnn_lane_bytes __attribute__((vector_size(4 * VEC_W)));

/* The low byte of each lane, plus the offset of vec_dot. GCC 12 converts vectors of 8 and 4 lanes element by element. */
FRNN_INLINE void frnn_store_bytes(char *to, vec_int q) {
    q += FRNN_INT8_OFFSET;
#if VEC_W == 8 && __has_builtin(__builtin_shufflevector)
    frnn_bytes bytes = __builtin_shufflevector((frnn_lane_bytes)q, (frnn_lane_bytes)q, 0, 4, 8, 12, 16, 20, 24, 28);
#elif VEC_W == 4 && __has_builtin(__builtin_shufflevector)
    frnn_bytes bytes = __builtin_shufflevector((frnn_lane_bytes)q, (frnn_lane_bytes)q, 0, 4, 8, 12);
#else
    frnn_bytes bytes = __builtin_convertvector(q, frnn_bytes);
#endif
    memcpy(to, &bytes, VEC_W);
}

/* One vector of a row, as int8, or as int8-a16 in two planes: q = 128 high + low, low from -64 to 63. No q is beyond the
 * largest one, since `by` makes the row's largest size that; adding FRNN_ROUND_MAGIC leaves q in the low bits. */
FRNN_INLINE void frnn_round_vector(vec a, vec by, const int planes, char *high, char *low) {
    const vec magic = vec_splat(FRNN_ROUND_MAGIC);
    vec_int q = vec_bits(a * by + magic) - vec_bits(magic);
    if (planes == 1) return frnn_store_bytes(high, q);
    vec_int upper = (q + 64) >> 7;
    frnn_store_bytes(high, upper);
    frnn_store_bytes(low, q - (upper << 7));
}

FRNN_INLINE void frnn_round_bytes(int64_t K, const float *x, const int planes, float *row) {
    const int64_t padded = frnn_groups(K, 4) * FRNN_GROUP * 4;
    char *high = (char *)(row + FRNN_HEAD), *low = high + padded;
    float inverse;
    int64_t k = 0;
    row[0] = frnn_row_scale(frnn_row_size(K, x), planes == 1 ? 127.0f : 16256.0f, &inverse);
    const vec by = vec_splat(inverse);
    for (; k + VEC_W <= K; k += VEC_W) frnn_round_vector(vec_load(x + k), by, planes, high + k, low + k);
    for (; k < padded; k += VEC_W) {
        vec a = k < K ? vec_load_part(x + k, K - k) : vec_splat(0.0f);
        frnn_round_vector(a, by, planes, high + k, low + k);
    }
}

static void frnn_round_int8(int64_t K, const float *x, float *row) { frnn_round_bytes(K, x, 1, row); }

static void frnn_round_int8_a16(int64_t K, const float *x, float *row) { frnn_round_bytes(K, x, 2, row); }
#endif

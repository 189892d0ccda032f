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
/* The scale of a row whose largest size becomes `most`, and its inverse. A row of zeros, or of numbers so small that the
 * inverse would overflow, has scale 0. */
static float frnn_row_scale(int64_t K, const float *x, float most, float *inverse) {
    vec_int top = vec_bits(vec_splat(0.0f));
    for (int64_t k = 0; k < K; k += VEC_W) {
        vec_int size = vec_bits(vec_load_n(x + k, K - k)) & 0x7fffffff; /* as integers: a NaN is largest */
        vec_int more = size > top;
        top = (size & more) | (top & ~more);
    }
    int32_t bits = 0;
    float size;
    for (int i = 0; i < VEC_W; i++) bits = top[i] > bits ? top[i] : bits;
    memcpy(&size, &bits, sizeof size);
    *inverse = 0;
    if (bits >= 0x7f800000) return NAN;
    if (size < 1e-33f) return 0;
    *inverse = most / size;
    return size / most;
}

typedef int8_t frnn_bytes __attribute__((vector_size(VEC_W)));

FRNN_INLINE void frnn_store_bytes(char *to, vec q) {
    frnn_bytes bytes = __builtin_convertvector(__builtin_convertvector(q, vec_int) + FRNN_INT8_OFFSET, frnn_bytes);
    memcpy(to, &bytes, VEC_W);
}

/* int8, and int8-a16 with two planes: q = 128 high + low. */
FRNN_INLINE void frnn_round_bytes(int64_t K, const float *x, const int planes, float *row) {
    const float most = planes == 1 ? 127.0f : 16256.0f;
    const int64_t padded = frnn_groups(K, 4) * FRNN_GROUP * 4;
    float inverse;
    char *high = (char *)(row + FRNN_HEAD), *low = high + padded;
    row[0] = frnn_row_scale(K, x, most, &inverse);
    for (int64_t k = 0; k < padded; k += VEC_W) {
        vec a = vec_load_n(x + (k < K ? k : 0), k < K ? K - k : 0);
        vec q = inverse == 0 ? vec_splat(0.0f) : vec_round(a * vec_splat(inverse));
        q = vec_max(vec_splat(-most), vec_min(vec_splat(most), q));
        if (planes == 1) {
            frnn_store_bytes(high + k, q);
        } else {
            vec upper = vec_floor((q + vec_splat(64.0f)) * vec_splat(1.0f / 128)); /* low: -64 to 63 */
            frnn_store_bytes(high + k, upper);
            frnn_store_bytes(low + k, q - upper * vec_splat(128.0f));
        }
    }
}

static void frnn_round_int8(int64_t K, const float *x, float *row) { frnn_round_bytes(K, x, 1, row); }

static void frnn_round_int8_a16(int64_t K, const float *x, float *row) { frnn_round_bytes(K, x, 2, row); }
#endif

/* Work on whole arrays: functions, elementwise programs, reductions, softmax, layer_norm. Widest width only. */

typedef void (*frnn_loop)(int64_t n, const float *pa, const float *pb, const float *pc, float fa, float fb, float *y);

/* One loop per function: y[i] = fn(a[i], b[i], c[i]). y may be any of them. Each lane is computed only from its own
 * element, so the bits don't depend on n, position or alignment. */
#define LOOP(code, loads, value)                                                                                       \
    static void FRNN_JOIN(loop_##code, FRNN_ISA)(int64_t n, const float *pa, const float *pb, const float *pc,         \
                                                 float fa, float fb, float *y) {                                       \
        vec alpha = vec_splat(fa), beta = vec_splat(fb);                                                               \
        (void)pb, (void)pc, (void)alpha, (void)beta;                                                                   \
        for (int64_t i = 0; i < n; i += VEC_W) {                                                                       \
            loads;                                                                                                     \
            vec_store_n(y + i, n - i, value);                                                                          \
        }                                                                                                              \
    }
#define LOAD(name, p) vec name = vec_load_n(p + i, n - i)
#define UNARY(code, name, value) LOOP(code, LOAD(x, pa), value)
#define BINARY(code, name, value) LOOP(code, LOAD(a, pa); LOAD(b, pb), value)
#define TERNARY(code, name, value) LOOP(code, LOAD(a, pa); LOAD(b, pb); LOAD(c, pc), value)
#include "list_functions.h"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef LOAD
#undef LOOP

static const frnn_loop frnn_loops[FRNN_FN_COUNT] = {
#define UNARY(code, name, value) FRNN_JOIN(loop_##code, FRNN_ISA),
#define BINARY UNARY
#define TERNARY UNARY
#include "list_functions.h"
#undef UNARY
#undef BINARY
#undef TERNARY
};

static void frnn_map(frnn_act act, int64_t n, const float *x, float *y) {
    frnn_loops[act.fn](n, x, NULL, NULL, act.alpha, act.beta, y);
}

/* ---- elementwise programs ---- */
#define CHUNK 256 /* elements per register: the dozen that most programs use stay in L1 */
#define LINE 16 /* floats of a cache line */
#define REGISTERS (FRNN_MAX_INPUTS + FRNN_MAX_INSTRUCTIONS)

/* Drop axes of size 1 and join neighbouring axes that all operands walk through as one. Returns the rank, >= 1. */
static int64_t frnn_coalesce(const frnn_space *space, int64_t n_in, frnn_space *s) {
    int64_t rank = 0;
    for (int64_t d = 0; d < space->rank; d++) {
        int64_t size = space->size[d];
        if (size == 1) continue;
        int joins = rank > 0 && s->out_stride[rank - 1] == space->out_stride[d] * size;
        for (int64_t j = 0; joins && j < n_in; j++) joins = s->in_stride[j][rank - 1] == space->in_stride[j][d] * size;
        if (!joins) s->size[rank++] = 1;
        s->size[rank - 1] *= size;
        s->out_stride[rank - 1] = space->out_stride[d];
        for (int64_t j = 0; j < n_in; j++) s->in_stride[j][rank - 1] = space->in_stride[j][d];
    }
    if (rank == 0) {
        s->size[rank++] = 1;
        s->out_stride[0] = 1;
        for (int64_t j = 0; j < n_in; j++) s->in_stride[j][0] = 1;
    }
    return rank;
}

static inline void frnn_gather(int64_t n, const float *x, int64_t stride, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = x[i * stride];
}

/* The program on m points whose operands are in reg; the last result goes to out unless that is NULL. Returns where it
 * is. */
FRNN_INLINE const float *frnn_instructions(const frnn_program *program, int64_t m, const float **reg,
                                           float (*buffer)[CHUNK + VEC_W], float *out) {
    for (int64_t k = 0; k < program->n_instructions; k++) {
        const frnn_instruction *op = &program->instructions[k];
        int64_t at = program->n_in + k;
        float *y = k == program->n_instructions - 1 && out ? out : buffer[at];
        frnn_loops[op->fn](m, reg[op->a], reg[op->b], reg[op->c], op->alpha, op->beta, y);
        reg[at] = y;
    }
    return reg[program->n_in + program->n_instructions - 1];
}

/* The program on n consecutive points of the last axis. in: where each operand's first point is. */
static void frnn_program_row(const frnn_program *program, int64_t n, const float *const *in, const int64_t *in_stride,
                             float *out, int64_t out_stride) {
    float buffer[REGISTERS][CHUNK + VEC_W] __attribute__((aligned(64)));
    const float *reg[REGISTERS];
    for (int64_t j = 0; j < program->n_in; j++) {
        if (in_stride[j] == 0) frnn_gather(n < CHUNK ? n : CHUNK, in[j], 0, buffer[j]);
    }
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = n - i < CHUNK ? n - i : CHUNK;
        for (int64_t j = 0; j < program->n_in; j++) {
            reg[j] = in_stride[j] == 1 ? in[j] + i : buffer[j];
            if (in_stride[j] > 1 || in_stride[j] < 0) frnn_gather(m, in[j] + i * in_stride[j], in_stride[j], buffer[j]);
        }
        const float *y = frnn_instructions(program, m, reg, buffer, out_stride == 1 ? out + i : NULL);
        if (out_stride != 1) {
            for (int64_t e = 0; e < m; e++) out[(i + e) * out_stride] = y[e];
        }
    }
}

/* Rows of n points one after the other; y has room for a vector more. */
FRNN_INLINE void frnn_lay_rows(int64_t rows, int64_t n, const float *x, int64_t row, int64_t stride, float *y) {
    if (row == 1 && stride != 1 && stride != 0) { /* columns are contiguous */
        frnn_turn(n, rows, x, stride, y, n);
        return;
    }
    for (int64_t r = 0; r < rows; r++, x += row, y += n) {
        if (stride == 1) {
            for (int64_t i = 0; i < n; i += VEC_W) vec_store(y + i, vec_load_n(x + i, n - i));
        } else if (stride == 0) {
            for (int64_t i = 0; i < n; i += VEC_W) vec_store(y + i, vec_splat(*x));
        } else {
            frnn_gather(n, x, stride, y);
        }
    }
}

/* The program on `rows` short rows of n points, as many at a time as a register holds. */
static void frnn_program_rows(const frnn_program *program, int64_t rows, int64_t n, const float *const *in,
                              const int64_t *in_row, const int64_t *in_stride, float *out, int64_t out_row,
                              int64_t out_stride) {
    float buffer[REGISTERS][CHUNK + VEC_W] __attribute__((aligned(64)));
    const float *reg[REGISTERS];
    int dense = out_stride == 1 && out_row == n;
    for (int64_t r = 0, count; r < rows; r += count) {
        count = rows - r < CHUNK / n ? rows - r : CHUNK / n;
        for (int64_t j = 0; j < program->n_in; j++) {
            if (in_stride[j] == 1 && in_row[j] == n) {
                reg[j] = in[j] + r * n;
            } else if (r == 0 || in_row[j] != 0) { /* what is the same in all rows is laid out once */
                frnn_lay_rows(count, n, in[j] + r * in_row[j], in_row[j], in_stride[j], buffer[j]);
                reg[j] = buffer[j];
            }
        }
        const float *y = frnn_instructions(program, count * n, reg, buffer, dense ? out + r * n : NULL);
        for (int64_t k = 0; !dense && out_stride == 1 && k < count; k++) {
            for (int64_t e = 0; e < n; e += VEC_W) {
                vec_store_n(out + (r + k) * out_row + e, n - e, vec_load_n(y + k * n + e, n - e));
            }
        }
        if (out_row == 1 && out_stride != 1) {
            frnn_turn(count, n, y, n, out + r, out_stride);
            continue;
        }
        for (int64_t e = 0; out_stride != 1 && e < n; e++) {
            float *to = out + r * out_row + e * out_stride;
            for (int64_t k = 0; k < count; k++) to[k * out_row] = y[k * n + e];
        }
    }
}

/* The axis on which an operand is contiguous that is not so on the last one (maps in planes beside maps of channels), or
 * -1. It becomes the last but one. */
static int frnn_cross(frnn_space *s, int64_t n_in, int64_t last) {
    int64_t with = -1;
    for (int64_t d = 0; d < last; d++) {
        for (int64_t j = 0; j < n_in; j++) {
            int64_t stride = s->in_stride[j][last];
            if (s->in_stride[j][d] == 1 && stride != 0 && stride != 1) with = d;
        }
    }
    if (with < 0) return 0;
#define SWAP(a, b)                                                                                                     \
    do {                                                                                                               \
        int64_t kept = a;                                                                                              \
        a = b, b = kept;                                                                                               \
    } while (0)
    SWAP(s->size[with], s->size[last - 1]);
    SWAP(s->out_stride[with], s->out_stride[last - 1]);
    for (int64_t j = 0; j < n_in; j++) SWAP(s->in_stride[j][with], s->in_stride[j][last - 1]);
#undef SWAP
    return 1;
}

static void frnn_elementwise(const frnn_program *program, const frnn_space *space, const float *const *in, float *out) {
    frnn_space s;
    int64_t n_in = program->n_in, index[FRNN_MAX_RANK] = {0}, strides[FRNN_MAX_INPUTS];
    const float *at[FRNN_MAX_INPUTS];
    for (int64_t d = 0; d < space->rank; d++) {
        if (space->size[d] == 0) return;
    }
    int64_t last = frnn_coalesce(space, n_in, &s) - 1;
    int crosses = frnn_cross(&s, n_in, last), by_rows = crosses || (last > 0 && s.size[last] <= CHUNK / 2);
    int64_t n = s.size[last], piece = crosses && n > LINE ? LINE : n; /* of the last axis at a time */
    int64_t inner = by_rows ? last - 1 : last; /* the axes before it are walked here */
    int64_t rows[FRNN_MAX_INPUTS];
    for (int64_t j = 0; j < n_in; j++) {
        at[j] = in[j], strides[j] = s.in_stride[j][last], rows[j] = s.in_stride[j][inner];
    }
    for (;;) {
        for (int64_t i = 0; by_rows && i < n; i += piece) {
            const float *from[FRNN_MAX_INPUTS];
            for (int64_t j = 0; j < n_in; j++) from[j] = at[j] + i * strides[j];
            frnn_program_rows(program, s.size[inner], n - i < piece ? n - i : piece, from, rows, strides,
                              out + i * s.out_stride[last], s.out_stride[inner], s.out_stride[last]);
        }
        if (!by_rows) frnn_program_row(program, n, at, strides, out, s.out_stride[last]);
        int64_t d = inner - 1;
        for (; d >= 0; d--) { /* on: add a stride, or go back to the start of this axis and carry */
            int64_t steps = ++index[d] < s.size[d] ? 1 : 1 - s.size[d];
            if (steps != 1) index[d] = 0;
            out += steps * s.out_stride[d];
            for (int64_t j = 0; j < n_in; j++) at[j] += steps * s.in_stride[j][d];
            if (steps == 1) break;
        }
        if (d < 0) return;
    }
}
#undef REGISTERS
#undef LINE
#undef CHUNK

/* ---- reductions ---- */
/* Element i is added to lane i mod lanes, then lanes are added by halves: the order depends only on n. */
FRNN_INLINE float frnn_fold(int32_t fn, vec a) {
    for (int half = VEC_W / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            float p = a[i], q = a[i + half];
            if (fn == FRNN_ADD) a[i] = p + q;
            if (fn == FRNN_MAX) a[i] = p != p || p > q ? p : q;
            if (fn == FRNN_MIN) a[i] = p != p || p < q ? p : q;
        }
    }
    return a[0];
}

FRNN_INLINE vec frnn_joined(int32_t fn, vec acc, vec v) {
    return fn == FRNN_ADD   ? acc + v
           : fn == FRNN_MAX ? vec_keep_nan(acc, vec_max(acc, v))
                            : vec_keep_nan(acc, vec_min(acc, v));
}

/* n contiguous elements joined into acc; n beyond whole vectors only in the last call of a row. */
FRNN_INLINE vec frnn_gathered(int32_t fn, vec acc, int64_t n, const float *x) {
    static const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t i = 0;
    for (; i + VEC_W <= n; i += VEC_W) acc = frnn_joined(fn, acc, vec_load(x + i));
    if (i < n) { /* lanes that don't exist keep what they have */
        vec_int lane;
        memcpy(&lane, lanes, sizeof lane);
        acc = vec_select(lane < (int32_t)(n - i), frnn_joined(fn, acc, vec_load_part(x + i, n - i)), acc);
    }
    return acc;
}

FRNN_INLINE vec frnn_neutral(int32_t fn) {
    return vec_splat(fn == FRNN_ADD ? 0.0f : fn == FRNN_MAX ? -INFINITY : INFINITY);
}

/* Element i of rows that are x_row apart, `rows` of at most VEC_W, in a lane each. */
FRNN_INLINE vec frnn_column(int64_t rows, const float *x, int64_t x_row) {
    float part[VEC_W];
    if (x_row == 1) return vec_load_n(x, rows);
    for (int64_t r = 0; r < VEC_W; r++) part[r] = x[(r < rows ? r : 0) * x_row];
    return vec_load(part);
}

/* VEC_W rows at a time, a row a lane. A row has the bits of frnn_fold: element i is joined into accumulator i mod VEC_W,
 * and the accumulators are joined by halves. */
FRNN_INLINE void frnn_reduce_columns(int32_t fn, int64_t rows, int64_t n, float scale, const float *x, int64_t x_row,
                                     int64_t x_stride, float *y, int64_t y_row) {
    for (int64_t r = 0; r < rows; r += VEC_W, x += VEC_W * x_row, y += VEC_W * y_row) {
        int64_t m = rows - r < VEC_W ? rows - r : VEC_W;
        vec acc[VEC_W];
        for (int l = 0; l < VEC_W; l++) acc[l] = frnn_neutral(fn);
        for (int64_t i = 0; i < n; i += VEC_W) {
            for (int l = 0; l < VEC_W && i + l < n; l++) {
                acc[l] = frnn_joined(fn, acc[l], frnn_column(m, x + (i + l) * x_stride, x_row));
            }
        }
        for (int half = VEC_W / 2; half > 0; half /= 2) {
            for (int l = 0; l < half; l++) acc[l] = frnn_joined(fn, acc[l], acc[l + half]);
        }
        vec total = acc[0] * vec_splat(scale);
        if (y_row == 1) {
            vec_store_n(y, m, total);
        } else {
            for (int64_t k = 0; k < m; k++) y[k * y_row] = total[k];
        }
    }
}

/* Sums of rows of four numbers side by side, VEC_W whole rows at a time, as frnn_reduce_columns adds them: the window of
 * a convolution in recurrent models has four steps. Returns how many rows it has done. */
#if defined(__clang__)
static int64_t frnn_sum_fours(int64_t rows, float scale, const float *x, float *y) {
    return 0 * rows + 0 * (int64_t)scale + 0 * (x == y);
}
#else
#if FRNN_LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#elif FRNN_LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#else
#define EVEN 0, 2, 4, 6
#endif
static int64_t frnn_sum_fours(int64_t rows, float scale, const float *x, float *y) {
    const vec_int even = {EVEN}, odd = even + 1;
    int64_t r = 0;
    for (; r + VEC_W <= rows; r += VEC_W, x += 4 * VEC_W) {
        vec a = vec_load(x), b = vec_load(x + VEC_W), c = vec_load(x + 2 * VEC_W), d = vec_load(x + 3 * VEC_W);
        vec e0 = __builtin_shuffle(a, b, even), e1 = __builtin_shuffle(c, d, even);
        vec o0 = __builtin_shuffle(a, b, odd), o1 = __builtin_shuffle(c, d, odd);
        vec zero = vec_splat(0.0f); /* where every sum begins: -0 becomes 0 */
        vec sum02 = (zero + __builtin_shuffle(e0, e1, even)) + (zero + __builtin_shuffle(e0, e1, odd));
        vec sum13 = (zero + __builtin_shuffle(o0, o1, even)) + (zero + __builtin_shuffle(o0, o1, odd));
        vec_store(y + r, (sum02 + sum13) * vec_splat(scale));
    }
    return r;
}
#undef EVEN
#endif

static void frnn_reduce(int32_t fn, int64_t rows, int64_t n, float scale, const float *x, int64_t x_row,
                        int64_t x_stride, float *y, int64_t y_row) {
    float part[256];
    if (fn == FRNN_ADD && n == 4 && x_row == 4 && x_stride == 1 && y_row == 1) {
        int64_t done = frnn_sum_fours(rows, scale, x, y);
        rows -= done, x += 4 * done, y += done;
    }
    if (rows > 1 && (x_stride != 1 || n <= VEC_W / 2)) {
        if (fn == FRNN_ADD) frnn_reduce_columns(FRNN_ADD, rows, n, scale, x, x_row, x_stride, y, y_row);
        if (fn == FRNN_MAX) frnn_reduce_columns(FRNN_MAX, rows, n, scale, x, x_row, x_stride, y, y_row);
        if (fn == FRNN_MIN) frnn_reduce_columns(FRNN_MIN, rows, n, scale, x, x_row, x_stride, y, y_row);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * x_row;
        vec acc = frnn_neutral(fn);
        if (x_stride == 1) {
            acc = frnn_gathered(fn, acc, n, row);
        } else {
            for (int64_t i = 0; i < n; i += 256) {
                int64_t m = n - i < 256 ? n - i : 256;
                frnn_gather(m, row + i * x_stride, x_stride, part);
                acc = frnn_gathered(fn, acc, m, part);
            }
        }
        y[r * y_row] = frnn_fold(fn, acc) * scale; /* of no elements: 0, -inf, inf, as in ONNX */
    }
}

/* ---- softmax, layer_norm: a row at a time; y may be x ---- */
static void frnn_softmax(int64_t rows, int64_t n, int32_t log, const float *x, int64_t x_row, float *y, int64_t y_row) {
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + r * x_row;
        float *out = y + r * y_row;
        float top = frnn_fold(FRNN_MAX, frnn_gathered(FRNN_MAX, frnn_neutral(FRNN_MAX), n, a));
        vec sum = vec_splat(0.0f);
        for (int64_t i = 0; i < n; i += VEC_W) {
            vec d = vec_load_n(a + i, n - i) - vec_splat(top), e = vec_exp(d);
            if (n - i < VEC_W) {
                float part[VEC_W];
                vec_store(part, e);
                e = vec_load_part(part, n - i);
            }
            sum = sum + e;
            vec_store_n(out + i, n - i, log ? d : e);
        }
        vec total = vec_splat(frnn_fold(FRNN_ADD, sum));
        if (log) total = vec_log(total);
        for (int64_t i = 0; i < n; i += VEC_W) {
            vec v = vec_load_n(out + i, n - i);
            vec_store_n(out + i, n - i, log ? v - total : v / total);
        }
    }
}

static void frnn_layer_norm(int64_t rows, int64_t n, float epsilon, const float *scale, const float *bias,
                            const float *x, int64_t x_row, float *y, int64_t y_row) {
    for (int64_t r = 0; r < rows; r++) {
        const float *a = x + r * x_row;
        float *out = y + r * y_row;
        float mean = frnn_fold(FRNN_ADD, frnn_gathered(FRNN_ADD, vec_splat(0.0f), n, a)) / (float)n;
        vec squares = vec_splat(0.0f);
        for (int64_t i = 0; i < n; i += VEC_W) {
            vec d = vec_load_n(a + i, n - i) - vec_splat(mean);
            if (n - i < VEC_W) {
                float part[VEC_W];
                vec_store(part, d);
                d = vec_load_part(part, n - i);
            }
            squares = vec_fma(d, d, squares);
        }
        vec deviation = vec_sqrt(vec_splat(frnn_fold(FRNN_ADD, squares) / (float)n + epsilon));
        for (int64_t i = 0; i < n; i += VEC_W) {
            vec v = (vec_load_n(a + i, n - i) - vec_splat(mean)) / deviation;
            if (scale) v = v * vec_load_n(scale + i, n - i);
            if (bias) v = v + vec_load_n(bias + i, n - i);
            vec_store_n(out + i, n - i, v);
        }
    }
}

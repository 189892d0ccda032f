/* One step of a matrix state S [K, V]: decay, outer products and read-out in one pass over S. Widest width only.
 *
 * Each element of S and each term of y has one fixed order, so the bits don't depend on how a sequence is cut:
 *   S[k, v] = fma(u[k], w[v], d * S[k, v]), then the same of a second outer product
 *   y[v]    = the terms q[k] S[k, v] of even k, + those of odd k, each in order       (down: vectors over v)
 *   y[k]    = the terms S[k, v] q[v] of each v mod VEC_W in order, joined by halves     (across)
 */

enum { FRNN_OF_ROW, FRNN_OF_ELEMENT, FRNN_EXP_OF_ELEMENT }; /* what S is multiplied with */
enum { FRNN_AS_IT_IS, FRNN_ONE, FRNN_SOME }; /* what is added: nothing, an outer product, or any terms */
#define FRNN_COLUMNS 4 /* vectors of a row at once */

/* What row k of S takes. */
typedef struct frnn_scan_of_row {
    vec decay, u, u2, q;
} frnn_scan_of_row;

/* VEC_W - n lanes beyond n are zero in every vector, so sums over them add zero. */
FRNN_INLINE vec frnn_scan_vector(const int decay, const int added, const frnn_scan *s, int64_t k, int64_t v, int64_t n,
                                 const frnn_scan_of_row *row, vec w) {
    vec state = vec_load_n(s->from + k * s->from_row + v, n);
    if (decay == FRNN_OF_ROW) state = row->decay * state;
    if (decay >= FRNN_OF_ELEMENT) {
        vec d = vec_load_n(s->decay + k * s->decay_row + v, n);
        state = (decay == FRNN_EXP_OF_ELEMENT ? vec_exp(row->decay * d) : d) * state;
    }
    if (added == FRNN_ONE) state = vec_fma(row->u, w, state);
    if (added == FRNN_SOME) {
        const frnn_scan_term *t = s->term;
        state = vec_fma(row->u, vec_load_n(t->w + k * t->w_row + v, n), state);
        if (t[1].w) state = vec_fma(row->u2, vec_load_n(t[1].w + k * t[1].w_row + v, n), state);
    }
    if (added == FRNN_ONE || (added == FRNN_SOME && s->to)) vec_store_n(s->to + k * s->to_row + v, n, state);
    return state;
}

FRNN_INLINE vec frnn_scan_u(const frnn_scan_term *t, int64_t k) {
    float u = t->u[0] ? t->u[0][k * t->u_row[0]] : 1.0f;
    return vec_splat(t->sign * (t->u[1] ? u * t->u[1][k * t->u_row[1]] : u));
}

FRNN_INLINE frnn_scan_of_row frnn_scan_row_of(const int decay, const int added, const frnn_scan *s, int64_t k) {
    frnn_scan_of_row row;
    row.decay = decay == FRNN_OF_ROW           ? vec_splat(s->decay[k * s->decay_row])
                : decay == FRNN_EXP_OF_ELEMENT ? vec_splat(s->rate[k * s->rate_row])
                                               : vec_splat(0.0f);
    row.u = added ? frnn_scan_u(s->term, k) : vec_splat(0.0f);
    row.u2 = added == FRNN_SOME && s->term[1].w ? frnn_scan_u(s->term + 1, k) : vec_splat(0.0f);
    row.q = s->q && !s->across ? vec_splat(s->q[k * s->q_step]) : vec_splat(0.0f);
    return row;
}

/* Row k of `count` vectors of columns from v on, of which n columns are there. Its terms of y are added to sums. */
FRNN_INLINE void frnn_scan_row(const int decay, const int added, const int count, const frnn_scan *s, int64_t k,
                               int64_t v, int64_t n, const vec *w, vec *sums) {
    frnn_scan_of_row row = frnn_scan_row_of(decay, added, s, k);
    for (int r = 0; r < count; r++) {
        vec state = frnn_scan_vector(decay, added, s, k, v + r * VEC_W, n - r * VEC_W, &row, w[r]);
        sums[r] = vec_fma(row.q, state, sums[r]);
    }
}

/* All rows of these columns. What nothing reads is summed too: a copy of all this code for it gains nothing. */
FRNN_INLINE void frnn_scan_columns(const int decay, const int added, const int count, const frnn_scan *s, int64_t v,
                                   int64_t n) {
    vec w[FRNN_COLUMNS], even[FRNN_COLUMNS], odd[FRNN_COLUMNS];
    for (int r = 0; r < count; r++) {
        w[r] = added == FRNN_ONE ? vec_load_n(s->term[0].w + v + r * VEC_W, n - r * VEC_W) : vec_splat(0.0f);
        even[r] = odd[r] = vec_splat(0.0f);
    }
    for (int64_t k = 0; k < s->K; k += 2) {
        frnn_scan_row(decay, added, count, s, k, v, n, w, even);
        if (k + 1 < s->K) frnn_scan_row(decay, added, count, s, k + 1, v, n, w, odd);
    }
    for (int r = 0; s->q && r < count; r++) vec_store_n(s->y + v + r * VEC_W, n - r * VEC_W, even[r] + odd[r]);
}

/* Decays of each element take one vector at a time, which is less code. */
FRNN_INLINE void frnn_scan_down(const int decay, const int added, const frnn_scan *s) {
    int64_t v = 0, wide = FRNN_COLUMNS * VEC_W;
    for (; decay < FRNN_OF_ELEMENT && s->V - v >= wide; v += wide) {
        frnn_scan_columns(decay, added, FRNN_COLUMNS, s, v, FRNN_COLUMNS * VEC_W);
    }
    for (; v < s->V; v += VEC_W) frnn_scan_columns(decay, added, 1, s, v, s->V - v);
}

/* Lane l: the lanes of rows[l] joined by halves, as frnn_fold joins them. */
#if defined(__clang__)
static __attribute__((noinline)) vec frnn_fold_rows(vec *rows) {
    vec total;
    for (int l = 0; l < VEC_W; l++) total[l] = frnn_fold(FRNN_ADD, rows[l]);
    return total;
}
#else
/* Halves of a and of b, side by side: `low` chooses the first halves, + half the second ones. */
#define JOIN(a, b, half, ...)                                                                                          \
    (__builtin_shuffle(a, b, (vec_int){__VA_ARGS__}) + __builtin_shuffle(a, b, (vec_int){__VA_ARGS__} + (half)))
static __attribute__((noinline)) vec frnn_fold_rows(vec *rows) {
#if FRNN_LANES == 16
    for (int i = 0; i < 8; i++) {
        rows[i] = JOIN(rows[i], rows[i + 8], 8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = JOIN(rows[i], rows[i + 4], 4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    }
    for (int i = 0; i < 2; i++) {
        rows[i] = JOIN(rows[i], rows[i + 2], 2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    }
    return JOIN(rows[0], rows[1], 1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
#elif FRNN_LANES == 8
    for (int i = 0; i < 4; i++) rows[i] = JOIN(rows[i], rows[i + 4], 4, 0, 1, 2, 3, 8, 9, 10, 11);
    for (int i = 0; i < 2; i++) rows[i] = JOIN(rows[i], rows[i + 2], 2, 0, 1, 8, 9, 4, 5, 12, 13);
    return JOIN(rows[0], rows[1], 1, 0, 8, 2, 10, 4, 12, 6, 14);
#else
    for (int i = 0; i < 2; i++) rows[i] = JOIN(rows[i], rows[i + 2], 2, 0, 1, 4, 5);
    return JOIN(rows[0], rows[1], 1, 0, 4, 2, 6);
#endif
}
#undef JOIN
#endif

/* Row k times q, lane by lane. single: a row is one whole vector, so w and q stay in registers. */
FRNN_INLINE vec frnn_scan_terms(const int decay, const int added, const int single, const frnn_scan *s, int64_t k,
                                vec w, vec q) {
    frnn_scan_of_row row = frnn_scan_row_of(decay, added, s, k);
    vec sum = vec_splat(0.0f);
    if (single) return frnn_scan_vector(decay, added, s, k, 0, VEC_W, &row, w) * q;
    for (int64_t v = 0; v < s->V; v += VEC_W) {
        int64_t n = s->V - v;
        if (added == FRNN_ONE) w = vec_load_n(s->term[0].w + v, n);
        sum = vec_fma(frnn_scan_vector(decay, added, s, k, v, n, &row, w), vec_load_n(s->q + v, n), sum);
    }
    return sum;
}

FRNN_INLINE void frnn_scan_rows(const int decay, const int added, const int single, const frnn_scan *s) {
    vec w = single && added ? vec_load(s->term[0].w) : vec_splat(0.0f), q = single ? vec_load(s->q) : w;
    for (int64_t k = 0; k < s->K; k += VEC_W) {
        int64_t count = s->K - k < VEC_W ? s->K - k : VEC_W;
        vec sums[VEC_W];
        for (int64_t l = 0; l < count; l++) sums[l] = frnn_scan_terms(decay, added, single, s, k + l, w, q);
        for (int64_t l = count; l < VEC_W; l++) sums[l] = vec_splat(0.0f);
        vec total = frnn_fold_rows(sums);
        if (s->y_step == 1) {
            vec_store_n(s->y + k, count, total);
        } else {
            for (int64_t l = 0; l < count; l++) s->y[(k + l) * s->y_step] = total[l];
        }
    }
}

FRNN_INLINE void frnn_scan_across(const int decay, const int added, const frnn_scan *s) {
    if (decay == FRNN_EXP_OF_ELEMENT && s->V == VEC_W) { /* Mamba's */
        frnn_scan_rows(decay, added, 1, s);
    } else {
        frnn_scan_rows(decay, added, 0, s);
    }
}

/* The forms of one outer product, which most recurrences have, keep it in registers. */
#define FORM(decay, added)                                                                                             \
    if (s->q && s->across) {                                                                                           \
        frnn_scan_across(decay, added, s);                                                                             \
    } else {                                                                                                           \
        frnn_scan_down(decay, added, s);                                                                               \
    }
static void frnn_scan_step(const frnn_scan *scan) {
    static const float one = 1.0f; /* S is as it was, without code of its own */
    frnn_scan own = *scan;
    const frnn_scan *s = &own; /* no store to S can change it, so its members stay in registers */
    if (!s->decay) own.decay = &one, own.decay_row = own.decay_column = 0;
    const int simple = s->to && !s->term[0].w_row && !s->term[1].w;
    if (s->rate) {
        FORM(FRNN_EXP_OF_ELEMENT, FRNN_ONE)
    } else if (!s->term[0].w) {
        if (s->decay_column) {
            FORM(FRNN_OF_ELEMENT, FRNN_AS_IT_IS)
        } else {
            FORM(FRNN_OF_ROW, FRNN_AS_IT_IS)
        }
    } else if (s->decay_column) {
        FORM(FRNN_OF_ELEMENT, FRNN_SOME)
    } else if (simple) {
        FORM(FRNN_OF_ROW, FRNN_ONE)
    } else {
        FORM(FRNN_OF_ROW, FRNN_SOME)
    }
}
#undef FORM
#undef FRNN_COLUMNS

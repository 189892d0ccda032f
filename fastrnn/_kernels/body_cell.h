/* The fused cells: ONNX RNN-22, LSTM-22, GRU-22 for one block of hidden units; included once per width.
 *
 * clip bounds every preact (the argument of f and g, peephole term included) and nothing else: h(C) sees C unclipped,
 * as in onnxruntime. The ONNX text ("applied to the input of activations") allows both.
 */
#ifndef FRNN_BODY_CELL_H
#define FRNN_BODY_CELL_H
#define vec_preact FRNN_WIDE(vec_preact)
#define vec_rnn FRNN_WIDE(vec_rnn)
#define vec_lstm_state FRNN_WIDE(vec_lstm_state)
#define vec_lstm_output FRNN_WIDE(vec_lstm_output)
#define vec_gru_gates FRNN_WIDE(vec_gru_gates)
#define vec_gru_output FRNN_WIDE(vec_gru_output)
#define vec_gru_reset FRNN_WIDE(vec_gru_reset)
#define vec_gru_mix FRNN_WIDE(vec_gru_mix)
#define vec_pre_at FRNN_WIDE(vec_pre_at)
#define vec_unit_at FRNN_WIDE(vec_unit_at)
#define vec_cell_weights FRNN_WIDE(vec_cell_weights)
#define vec_cell_at FRNN_WIDE(vec_cell_at)
#define vec_cell_product FRNN_WIDE(vec_cell_product)
#define vec_cell_form FRNN_WIDE(vec_cell_form)
#define vec_cell_keep_pre FRNN_WIDE(vec_cell_keep_pre)
#define vec_cell_update FRNN_WIDE(vec_cell_update)
#define vec_cell_block FRNN_WIDE(vec_cell_block)
#endif

/* The activation of a preact, clipped first. usual: `fn` is inlined, and the cell's own activations are not read. */
FRNN_INLINE vec vec_preact(const frnn_cell *cell, int index, int usual, int fn, vec a) {
    if (usual) return fn == FRNN_TANH ? vec_tanh(a) : vec_sigmoid(a);
    vec clip = vec_splat(cell->clip);
    return vec_activate(cell->act[index], vec_min(clip, vec_max(-clip, a)));
}

/* ---- the updates of list_cells.h: from the sums of one vector of units (cells.h) to its new state ---------------- */

/* y = f(a). */
FRNN_INLINE void vec_rnn(const frnn_unit *u, const int usual) {
    vec_store_n(u->y, u->n, vec_preact(u->cell, 0, usual, FRNN_TANH, vec_load(u->a)));
}

/* First half of an LSTM's update: c from the preacts i o f c. Leaves C and o in a[0] and a[1]. The halves are
 * separate loops over a tile's rows, because tanh C waits for everything before it. This saves 10 cycles per vector of
 * units on a Zen 4, and as many for the GRU. */
FRNN_INLINE void vec_lstm_state(const frnn_unit *u, const int usual) {
    const frnn_cell *cell = u->cell;
    float *a = u->a;
    vec C = vec_load_n(u->c, u->n);
    vec a_i = vec_load(a), a_o = vec_load(a + VEC_W), a_f = vec_load(a + 2 * VEC_W), a_c = vec_load(a + 3 * VEC_W);
    if (!usual && cell->peephole) {
        a_i = vec_fma(vec_load(u->P), C, a_i);
        a_f = vec_fma(vec_load(u->P + 2 * VEC_W), C, a_f);
    }
    vec i = vec_preact(cell, 0, usual, FRNN_SIGMOID, a_i);
    vec f = !usual && cell->input_forget ? vec_splat(1.0f) - i : vec_preact(cell, 0, usual, FRNN_SIGMOID, a_f);
    C = vec_fma(f, C, i * vec_preact(cell, 1, usual, FRNN_TANH, a_c));
    if (!usual && cell->peephole) a_o = vec_fma(vec_load(u->P + VEC_W), C, a_o);
    vec_store(a + VEC_W, vec_preact(cell, 0, usual, FRNN_SIGMOID, a_o));
    vec_store(a, C);
    vec_store_n(u->c, u->n, C);
}

/* Second half: y = o h(C). */
FRNN_INLINE void vec_lstm_output(const frnn_unit *u, const int usual) {
    vec C = vec_load(u->a), o = vec_load(u->a + VEC_W);
    vec_store_n(u->y, u->n, o * (usual ? vec_tanh(C) : vec_activate(u->cell->act[2], C)));
}

/* GRU with reset after the product, first half: the gates and n's preact. a: W x + Wb of n, preacts z r, R h + Rb of n.
 * Leaves z in a[0] and the preact of n in a[1]. */
FRNN_INLINE void vec_gru_gates(const frnn_unit *u, const int usual) {
    float *a = u->a;
    vec z = vec_preact(u->cell, 0, usual, FRNN_SIGMOID, vec_load(a + VEC_W));
    vec r = vec_preact(u->cell, 0, usual, FRNN_SIGMOID, vec_load(a + 2 * VEC_W));
    vec_store(a + VEC_W, vec_fma(r, vec_load(a + 3 * VEC_W), vec_load(a)));
    vec_store(a, z);
}

/* Second half: y = z h + (1 - z) n. */
FRNN_INLINE void vec_gru_output(const frnn_unit *u, const int usual) {
    vec z = vec_load(u->a), g = vec_preact(u->cell, 1, usual, FRNN_TANH, vec_load(u->a + VEC_W));
    vec_store_n(u->y, u->n, vec_fma(z, vec_load_n(u->h, u->n), (vec_splat(1.0f) - z) * g));
}

/* GRU with reset before the product: r h, over which the next phase sums. */
FRNN_INLINE void vec_gru_reset(const frnn_unit *u, const int usual) {
    vec r = vec_preact(u->cell, 0, usual, FRNN_SIGMOID, vec_load(u->a));
    vec_store_n(u->scratch, u->n, r * vec_load_n(u->h, u->n));
}

/* The next phase: y = z h + (1 - z) n, from the preacts of z and of n. */
FRNN_INLINE void vec_gru_mix(const frnn_unit *u, const int usual) {
    vec z = vec_preact(u->cell, 0, usual, FRNN_SIGMOID, vec_load(u->a));
    vec g = vec_preact(u->cell, 1, usual, FRNN_TANH, vec_load(u->b));
    vec_store_n(u->y, u->n, vec_fma(z, vec_load_n(u->h, u->n), (vec_splat(1.0f) - z) * g));
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* Where in pre the sums of product q of a row and a block begin; a row of cell_input may be one of a later step. */
FRNN_INLINE int64_t vec_pre_at(const frnn_call *call, const frnn_block *block, int q, int64_t row) {
    const frnn_form *form = call->cell->form;
    int64_t rows = call->io->pre_rows, step = 0;
    if (call->pre_out) {
        step = row / rows * rows * call->pre_size;
        row %= rows;
    }
    return step + block->start * form->gates * rows +
           (row * form->products + q) * frnn_vectors(form, block->nv) * VEC_W;
}

/* Data shared by the tiles of all rows: the weights of product q of nb blocks, and starts for tiles of up to `limit`
 * rows. */
FRNN_INLINE void vec_cell_weights(const frnn_call *call, const frnn_block *blocks, int nb, int q, int64_t limit,
                                  frnn_tile *t) {
    const frnn_cell *cell = call->cell;
    const frnn_form *form = cell->form;
    const int ahead = call->io->pre != NULL; /* the sums over x are there */
    int64_t vectors = frnn_vectors(form, blocks[0].nv), size = vectors * (1 + cell->half[0] + cell->half[1]) * VEC_W;
    t->Kx = ahead ? 0 : cell->I;
    t->Kh = call->pre_out || !form->recurrent ? 0 : cell->H;
    t->shift = form->apart;
    t->pace = 0;
    t->height = limit;
    t->near = call->ahead == FRNN_SPREAD ? 0 : call->ahead;
    for (int b = 0; b < nb; b++) {
        const float *bias = cell->packed + blocks[b].start * cell->unit + q * size;
        t->weights[b] = bias + (vectors + form->apart + (ahead ? cell->half[0] * vectors : 0)) * VEC_W;
        t->bias[b] = call->pre_out ? NULL : bias;
        for (int64_t r = 0; r < limit; r++) t->start[b][r] = bias;
    }
}

/* Point a tile to its mr rows from `row` on. If the sums of x and of h stay apart, store the start of the latter.
 * hidden: rows of the hidden half. */
FRNN_INLINE void vec_cell_at(const frnn_call *call, const frnn_block *blocks, int nb, int q, const float *const *hidden,
                             int64_t row, int64_t mr, frnn_tile *t) {
    const frnn_cell *cell = call->cell;
    const frnn_cell_io *io = call->io;
    int64_t vectors = frnn_vectors(cell->form, blocks[0].nv);
    const int rounded = cell->rounded && !call->pre_out; /* cell_input gets rounded rows */
    for (int64_t r = 0; r < mr; r++) {
        if (io->pre) {
            for (int b = 0; b < nb; b++) t->start[b][r] = io->pre + vec_pre_at(call, &blocks[b], q, row + r);
        } else if (rounded) {
            t->x[r] = frnn_rounded_row(cell, io->scratch, row + r, OPERAND_X);
        } else {
            t->x[r] = io->x[row + r] + io->x_off;
        }
        if (hidden) t->h[r] = hidden[r];
    }
    t->rows = mr;
    for (int b = 0; cell->form->apart && b < nb; b++) {
        vec Rb = vec_load(cell->packed + blocks[b].start * cell->unit + vectors * VEC_W);
        for (int64_t r = 0; r < mr; r++) vec_store(t->out + ((r * nb + b) * 4 + vectors) * VEC_W, Rb);
    }
    if (call->ahead == FRNN_SPREAD) {
        int64_t tiles = (call->row1 - call->row0 + mr - 1) / mr, n = cell->product->panel[vectors];
        int64_t size = vectors * (1 + cell->half[0] + cell->half[1]) * VEC_W; /* of one product */
        t->pace = (n * VEC_W * (int)sizeof(float) + tiles - 1) / tiles;
        t->ahead = (const char *)(t->weights[0] + (io->backwards ? -size : size));
        t->ahead += (row - call->row0) / mr * (t->Kx + t->Kh) * (vectors / n) * t->pace;
    }
}

/* cell_input: put the accumulators of a tile into rows of pre. */
FRNN_INLINE void vec_cell_keep_pre(const frnn_call *call, const frnn_block *blocks, int nb, int q, int64_t row,
                                   int64_t mr, const float *out) {
    int64_t vectors = frnn_vectors(call->cell->form, blocks[0].nv);
    for (int64_t r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            float *pre = call->pre_out + vec_pre_at(call, &blocks[b], q, row + r);
            memcpy(pre, out + (r * nb + b) * 4 * VEC_W, (size_t)vectors * VEC_W * sizeof(float));
        }
    }
}

/* The sums of product q of a tile's rows for n blocks, tile by tile, into out [mr][n][4][VEC_W]. n > 2 only for one
 * row. t: kept between tiles of rows; again: it is of other blocks or another product. */
FRNN_INLINE void vec_cell_product(const frnn_call *call, const frnn_block *blocks, int n, int q, int again,
                                  const float *const *hidden, int64_t row, int64_t mr, frnn_tile *t, float *out) {
    int vectors = frnn_vectors(call->cell->form, blocks[0].nv);
    for (int b = 0; b < n; b += 2) {
        int nb = n - b < 2 ? 1 : 2;
        if (again || n > 2) vec_cell_weights(call, blocks + b, nb, q, mr, t);
        t->out = out + b * 4 * VEC_W;
        vec_cell_at(call, blocks + b, nb, q, hidden, row, mr, t);
        vec_tile_run(call->product, t, mr, nb, vectors);
    }
}

/* ---- from sums to states ----------------------------------------------------------------------------------------- */

/* Vector v of the units of block b and row r of a tile. whole: no block has a tail. form and whole are constants when
 * this is inlined. */
FRNN_INLINE frnn_unit vec_unit_at(const frnn_cell *cell, const frnn_cell_io *io, const frnn_form *form,
                                  const frnn_block *blocks, int nb, int b, int v, int64_t row, int64_t r,
                                  const int whole, const float *const *h, float (*out)[FRNN_WAVE * 4 * VEC_W]) {
    int64_t unit = blocks[b].start + v * VEC_W, at = ((r * nb + b) * 4 + v) * VEC_W;
    const float *P = cell->packed + blocks[b].start * cell->unit;
    P += form->products * form->gates * (1 + cell->half[0] + cell->half[1]) * VEC_W;
    return (frnn_unit){
        .cell = cell,
        .a = out[0] + at,
        .b = out[1] + at,
        .P = P,
        .h = h[r] + unit,
        .c = form->states > 1 ? io->c[row + r] + io->c_off + unit : NULL,
        .y = io->y[row + r] + io->y_off + unit,
        .scratch = form->phases > 1 ? io->scratch + (row + r) * cell->scratch_row + unit : NULL,
        .n = whole ? VEC_W : cell->H - unit,
    };
}

#define EACH(half)                                                                                                     \
    for (int64_t r = 0; r < mr; r++) {                                                                                 \
        for (int b = 0; b < nb; b++) {                                                                                 \
            for (int v = 0; v < (form->units == 1 ? 1 : nv); v++) {                                                    \
                frnn_unit u = vec_unit_at(call->cell, &io, form, blocks, nb, b, v, row, r, whole, h, out);             \
                half(&u, usual);                                                                                       \
            }                                                                                                          \
        }                                                                                                              \
    }

/* The update of the form, each with its row of list_cells.h as constants: decisions in the inner loop would cost an RNN
 * about 8 cycles per vector. usual, whole and one (block) are constants too. io and nv are copies, which the compiler
 * need not read again after each store. */
FRNN_INLINE void vec_cell_form(const frnn_call *call, const frnn_block *blocks, int nb, int64_t phase, const int usual,
                               const int whole, int64_t row, int64_t mr, const float *const *h,
                               float (*out)[FRNN_WAVE * 4 * VEC_W]) {
    const frnn_cell_io io = *call->io;
    const int nv = blocks[0].nv;
    (void)phase;
    switch (call->cell->form->code) {
#define FORM(name, update, ...)                                                                                        \
    case FRNN_FORM_##name: {                                                                                           \
        const frnn_form *const form = &frnn_form_##name;                                                               \
        update break;                                                                                                  \
    }
#include "list_cells.h"
    }
}
#undef EACH

/* The same for any blocks. One whole block of a usual cell is the common case except for tails, and is worth its own
 * constants: 16 rows of LSTM 32 to 128 run 1.03 to 1.07 times as fast, of GRU 32 and 64 1.04 to 1.12. */
FRNN_INLINE void vec_cell_update(const frnn_call *call, const frnn_block *blocks, int nb, int64_t phase, int64_t row,
                                 int64_t mr, const float *const *h, float (*out)[FRNN_WAVE * 4 * VEC_W]) {
    /* steps walk the blocks in both directions, so the last units are at either end */
    int64_t last = blocks[0].start > blocks[nb - 1].start ? blocks[0].start : blocks[nb - 1].start;
    if (!call->cell->usual) {
        vec_cell_form(call, blocks, nb, phase, 0, 0, row, mr, h, out);
    } else if (last + (int64_t)blocks[0].nv * VEC_W > call->cell->H) {
        vec_cell_form(call, blocks, nb, phase, 1, 0, row, mr, h, out);
    } else if (nb == 1) {
        vec_cell_form(call, blocks, 1, phase, 1, 1, row, mr, h, out);
    } else {
        vec_cell_form(call, blocks, nb, phase, 1, 1, row, mr, h, out);
    }
}

/* One step (or, with pre_out, the input half) of rows [row0, row1) for n neighbouring blocks of equal nv. */
static __attribute__((noinline)) void vec_cell_block(const frnn_call *call, int64_t phase, const frnn_block *blocks,
                                                     int n) {
    float out[FRNN_SUMS][FRNN_WAVE * 4 * VEC_W] __attribute__((aligned(64)));
    const frnn_cell_io *io = call->io;
    const frnn_form *form = call->cell->form;
    int64_t limit = call->product->rows[n > 1][frnn_vectors(form, blocks[0].nv)], mr;
    const int rounded = call->cell->rounded;
    frnn_tile tiles[FRNN_SUMS];
    for (int64_t row = call->row0; row < call->row1; row += mr) {
        const float *h[FRNN_TALL_ROWS], *product_h[FRNN_TALL_ROWS],
            *left[FRNN_TALL_ROWS]; /* left: by the phase before */
        mr = frnn_tile_height(call->row1 - row, limit);
        if (call->pre_out) {
            for (int q = 0; q < form->products; q++) {
                vec_cell_product(call, blocks, n, q, 1, NULL, row, mr, tiles, out[0]);
                vec_cell_keep_pre(call, blocks, n, q, row, mr, out[0]);
            }
            continue;
        }
        for (int64_t r = 0; r < mr; r++) {
            h[r] = io->h[row + r] + io->h_off;
            if (form->phases > 1) left[r] = io->scratch + (row + r) * call->cell->scratch_row;
            if (rounded) {
                product_h[r] = frnn_rounded_row(call->cell, io->scratch, row + r, OPERAND_H);
                left[r] = frnn_rounded_row(call->cell, io->scratch, row + r, OPERAND_RESET);
            }
        }
        for (int s = 0; s < form->counts[phase]; s++) {
            const float *const *rows = form->sums[phase][s].scratch ? left : rounded ? product_h : h;
            vec_cell_product(call, blocks, n, form->sums[phase][s].product, row == call->row0, rows, row, mr, &tiles[s],
                             out[s]);
        }
        vec_cell_update(call, blocks, n, phase, row, mr, h, out);
    }
}

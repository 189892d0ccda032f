/* The recurrent cells: ONNX RNN-22, LSTM-22, GRU-22 for one block of hidden units; included once per width.
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
#define vec_pre_at FRNN_WIDE(vec_pre_at)
#define vec_cell_fill FRNN_WIDE(vec_cell_fill)
#define vec_cell_product FRNN_WIDE(vec_cell_product)
#define vec_cell_finish FRNN_WIDE(vec_cell_finish)
#define vec_cell_form FRNN_WIDE(vec_cell_form)
#define vec_cell_keep_pre FRNN_WIDE(vec_cell_keep_pre)
#define vec_cell_rows FRNN_WIDE(vec_cell_rows)
#define vec_cell_update FRNN_WIDE(vec_cell_update)
#define vec_cell_block FRNN_WIDE(vec_cell_block)
#endif

/* The activation of a preact, clipped first. usual: `fn` is inlined, and the cell's own activations are not read. */
FRNN_INLINE vec vec_preact(const frnn_cell *cell, int index, int usual, int fn, vec a) {
    if (usual) return fn == FRNN_TANH ? vec_tanh(a) : vec_sigmoid(a);
    vec clip = vec_splat(cell->clip);
    return vec_activate(cell->act[index], vec_min(clip, vec_max(-clip, a)));
}

/* First half of an LSTM's update: c from the preacts. a: i o f c, [4][VEC_W]; P: peepholes i o f, [3][VEC_W]; n: units
 * that exist. Leaves C and o in a[0] and a[1]. The halves are loops of their own over a tile's rows, since tanh C waits
 * for all that is before it: a Zen 4 saves 10 cycles a vector of units, and as many for the GRU. */
FRNN_INLINE void vec_lstm_state(const frnn_cell *cell, const int usual, float *a, const float *P, float *c, int64_t n) {
    vec C = vec_load_n(c, n);
    vec a_i = vec_load(a), a_o = vec_load(a + VEC_W), a_f = vec_load(a + 2 * VEC_W), a_c = vec_load(a + 3 * VEC_W);
    if (!usual && cell->peephole) {
        a_i = vec_fma(vec_load(P), C, a_i);
        a_f = vec_fma(vec_load(P + 2 * VEC_W), C, a_f);
    }
    vec i = vec_preact(cell, 0, usual, FRNN_SIGMOID, a_i);
    vec f = !usual && cell->input_forget ? vec_splat(1.0f) - i : vec_preact(cell, 0, usual, FRNN_SIGMOID, a_f);
    C = vec_fma(f, C, i * vec_preact(cell, 1, usual, FRNN_TANH, a_c));
    if (!usual && cell->peephole) a_o = vec_fma(vec_load(P + VEC_W), C, a_o);
    vec_store(a + VEC_W, vec_preact(cell, 0, usual, FRNN_SIGMOID, a_o));
    vec_store(a, C);
    vec_store_n(c, n, C);
}

/* Second half: y = o h(C). */
FRNN_INLINE void vec_lstm_output(const frnn_cell *cell, const int usual, const float *a, float *y, int64_t n) {
    vec C = vec_load(a), o = vec_load(a + VEC_W);
    vec_store_n(y, n, o * (usual ? vec_tanh(C) : vec_activate(cell->act[2], C)));
}

/* GRU with reset after the product, first half: the gates and n's preact. a: preacts z r, then R h + Rb of n, then
 * W x + Wb of n, [4][VEC_W]. Leaves z in a[0] and the preact of n in a[1]. */
FRNN_INLINE void vec_gru_gates(const frnn_cell *cell, const int usual, float *a) {
    vec z = vec_preact(cell, 0, usual, FRNN_SIGMOID, vec_load(a));
    vec r = vec_preact(cell, 0, usual, FRNN_SIGMOID, vec_load(a + VEC_W));
    vec_store(a, z);
    vec_store(a + VEC_W, vec_fma(r, vec_load(a + 2 * VEC_W), vec_load(a + 3 * VEC_W)));
}

/* Second half: y = z h + (1 - z) n. */
FRNN_INLINE void vec_gru_output(const frnn_cell *cell, const int usual, const float *a, const float *h, float *y,
                                int64_t n) {
    vec z = vec_load(a), g = vec_preact(cell, 1, usual, FRNN_TANH, vec_load(a + VEC_W));
    vec_store_n(y, n, vec_fma(z, vec_load_n(h, n), (vec_splat(1.0f) - z) * g));
}

/* Where in pre the sums of product q of a row and a block begin; a row of cell_input may be one of a later step. */
FRNN_INLINE int64_t vec_pre_at(const frnn_call *call, const frnn_block *block, int q, int64_t row) {
    int64_t G = frnn_gates(call->cell), rows = call->io->pre_rows, step = 0;
    int64_t vectors = frnn_unit_vectors(call->cell) == 1 ? G : block->nv;
    if (call->pre_out) {
        step = row / rows * rows * call->pre_size;
        row %= rows;
    }
    return step + block->start * G * rows + (row * frnn_products(call->cell) + q) * vectors * VEC_W;
}

/* Describe the rows, starts and panels of one tile. q: which product of the block; hidden: rows of the hidden half. */
FRNN_INLINE void vec_cell_fill(const frnn_call *call, const frnn_block *blocks, int nb, int q,
                               const float *const *hidden, int64_t row, int64_t mr, frnn_tile *t) {
    const frnn_cell *cell = call->cell;
    const frnn_cell_io *io = call->io;
    int64_t G = frnn_gates(cell), after = call->form == FRNN_FORM_GRU_AFTER;
    int64_t vectors = frnn_unit_vectors(cell) == 1 ? G : blocks[0].nv;
    int64_t size = vectors * (1 + cell->I + cell->H) * VEC_W; /* of one product */
    t->Kx = io->pre ? 0 : cell->I;
    t->Kh = call->pre_out ? 0 : cell->H;
    for (int b = 0; b < nb; b++) {
        const float *bias = cell->packed + blocks[b].start * frnn_unit_floats(cell) + q * size;
        t->split[b] = after && !call->pre_out ? bias + vectors * VEC_W : NULL;
        t->weights[b] = bias + (vectors + after + (io->pre ? cell->I * vectors : 0)) * VEC_W;
        for (int64_t r = 0; r < mr; r++) {
            t->start[b][r] = io->pre ? io->pre + vec_pre_at(call, &blocks[b], q, row + r) : bias;
        }
    }
    for (int64_t r = 0; r < mr; r++) {
        t->x[r] = io->pre ? NULL : io->x[row + r] + io->x_off;
        t->h[r] = hidden ? hidden[r] : NULL;
    }
    t->pace = 0;
    if (FRNN_PREFETCH && call->far) {
        int64_t tiles = (call->row1 - call->row0 + mr - 1) / mr, n = frnn_panel_vectors((int)vectors);
        t->pace = (n * VEC_W * (int)sizeof(float) + tiles - 1) / tiles;
        t->ahead = (const char *)(t->weights[0] + (io->backwards ? -size : size));
        t->ahead += (row - call->row0) / mr * (t->Kx + t->Kh) * (vectors / n) * t->pace;
    }
}

/* cell_input: put the accumulators of a tile into rows of pre. */
FRNN_INLINE void vec_cell_keep_pre(const frnn_call *call, const frnn_block *blocks, int nb, int q, int64_t row,
                                   int64_t mr, const float *out) {
    int64_t G = frnn_gates(call->cell), vectors = frnn_unit_vectors(call->cell) == 1 ? G : blocks[0].nv;
    for (int64_t r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            float *pre = call->pre_out + vec_pre_at(call, &blocks[b], q, row + r);
            memcpy(pre, out + (r * nb + b) * 4 * VEC_W, (size_t)vectors * VEC_W * sizeof(float));
        }
    }
}

/* From preacts to the new state, for LSTM and GRU with reset after: the first half for all rows and blocks, then the
 * second, so that no update waits for the one before it. lstm, usual and whole (no block has a tail) are constants where
 * this is inlined, and so is nb where it is 1. */
FRNN_INLINE void vec_cell_finish(const frnn_call *call, const frnn_block *blocks, int nb, const int lstm,
                                 const int usual, const int whole, int64_t row, int64_t mr, float *out) {
    const frnn_cell *cell = call->cell;
    const frnn_cell_io *io = call->io;
    for (int64_t r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            int64_t unit = blocks[b].start, n = whole ? VEC_W : cell->H - unit;
            float *a = out + (r * nb + b) * 4 * VEC_W;
            if (lstm) {
                const float *P = cell->packed + unit * frnn_unit_floats(cell) + 4 * (1 + cell->I + cell->H) * VEC_W;
                vec_lstm_state(cell, usual, a, P, io->c[row + r] + io->c_off + unit, n);
            } else {
                vec_gru_gates(cell, usual, a);
            }
        }
    }
    for (int64_t r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            int64_t unit = blocks[b].start, n = whole ? VEC_W : cell->H - unit;
            const float *a = out + (r * nb + b) * 4 * VEC_W;
            float *y = io->y[row + r] + io->y_off + unit;
            if (lstm) {
                vec_lstm_output(cell, usual, a, y, n);
            } else {
                vec_gru_output(cell, usual, a, io->h[row + r] + io->h_off + unit, y, n);
            }
        }
    }
}

/* The forms whose blocks are vectors of units: RNN (one phase), GRU with reset before the product (two).
 * phase 0 of the GRU: r h into scratch; phase 1: z from h, n from r h. All of form, phase, usual are constants where
 * this is inlined: decided in the inner loop they cost an RNN some 8 cycles a vector. */
FRNN_INLINE void vec_cell_rows(const frnn_call *call, const frnn_block *blocks, int nb, const int form, const int phase,
                               const int usual, const int whole, int64_t row, int64_t mr, const float *const *hidden,
                               const float *out, const float *out_z) {
    const frnn_cell *cell = call->cell;
    const frnn_cell_io *io = call->io;
    int64_t stride = frnn_scratch_row(cell);
    for (int64_t r = 0; r < mr; r++) {
        for (int b = 0; b < nb; b++) {
            for (int v = 0; v < blocks[b].nv; v++) {
                int64_t unit = blocks[b].start + v * VEC_W, at = ((r * nb + b) * 4 + v) * VEC_W;
                int64_t n = whole ? VEC_W : cell->H - unit;
                float *y = io->y[row + r] + io->y_off + unit;
                if (form == FRNN_FORM_RNN) {
                    vec_store_n(y, n, vec_preact(cell, 0, usual, FRNN_TANH, vec_load(out + at)));
                    continue;
                }
                vec h = vec_load_n(hidden[r] + unit, n);
                if (phase == 0) {
                    vec gate = vec_preact(cell, 0, usual, FRNN_SIGMOID, vec_load(out + at));
                    vec_store_n(io->scratch + (row + r) * stride + unit, n, gate * h);
                    continue;
                }
                vec z = vec_preact(cell, 0, usual, FRNN_SIGMOID, vec_load(out_z + at));
                vec g = vec_preact(cell, 1, usual, FRNN_TANH, vec_load(out + at));
                vec_store_n(y, n, vec_fma(z, h, (vec_splat(1.0f) - z) * g));
            }
        }
    }
}

/* From the sums of a tile to what the form makes of them; usual, whole and one (block) as constants. */
FRNN_INLINE void vec_cell_form(const frnn_call *call, const frnn_block *blocks, int nb, int64_t phase, const int usual,
                               const int whole, int64_t row, int64_t mr, const float *const *h, float *out,
                               const float *out_z) {
    switch (call->form) {
    case FRNN_FORM_RNN:
        vec_cell_rows(call, blocks, nb, FRNN_FORM_RNN, 0, usual, whole, row, mr, h, out, out_z);
        return;
    case FRNN_FORM_LSTM:
        vec_cell_finish(call, blocks, nb, 1, usual, whole, row, mr, out);
        return;
    case FRNN_FORM_GRU_AFTER:
        vec_cell_finish(call, blocks, nb, 0, usual, whole, row, mr, out);
        return;
    default:
        if (phase == 0) {
            vec_cell_rows(call, blocks, nb, FRNN_FORM_GRU_BEFORE, 0, usual, whole, row, mr, h, out, out_z);
        } else {
            vec_cell_rows(call, blocks, nb, FRNN_FORM_GRU_BEFORE, 1, usual, whole, row, mr, h, out, out_z);
        }
    }
}

/* The same for any blocks. One whole block of a usual cell, as many rows have but for a tail, is worth constants of its
 * own: 16 rows of LSTM 32 to 128 run 1.03 to 1.07 times as fast, of GRU 32 and 64 1.04 to 1.12. */
FRNN_INLINE void vec_cell_update(const frnn_call *call, const frnn_block *blocks, int nb, int64_t phase, int64_t row,
                                 int64_t mr, const float *const *h, float *out, const float *out_z) {
    if (!call->usual) {
        vec_cell_form(call, blocks, nb, phase, 0, 0, row, mr, h, out, out_z);
    } else if (nb == 1 && blocks[0].start + (int64_t)blocks[0].nv * VEC_W <= call->cell->H) {
        vec_cell_form(call, blocks, 1, phase, 1, 1, row, mr, h, out, out_z);
    } else {
        vec_cell_form(call, blocks, nb, phase, 1, 0, row, mr, h, out, out_z);
    }
}

/* The sums of product q of a tile's rows for n blocks, tile by tile, into out [mr][n][4][VEC_W]. n > 2 only for one row. */
FRNN_INLINE void vec_cell_product(const frnn_call *call, const frnn_block *blocks, int n, int q,
                                  const float *const *hidden, int64_t row, int64_t mr, float *out) {
    int vectors = (int)(frnn_unit_vectors(call->cell) == 1 ? frnn_gates(call->cell) : blocks[0].nv);
    frnn_tile t;
    for (int b = 0; b < n; b += 2) {
        int nb = n - b < 2 ? 1 : 2;
        vec_cell_fill(call, blocks + b, nb, q, hidden, row, mr, &t);
        t.out = out + b * 4 * VEC_W;
        vec_tile_run(&t, mr, nb, vectors);
    }
}

/* One step (or, with pre_out, the input half) of rows [row0, row1) for n neighbouring blocks of equal nv. */
static __attribute__((noinline)) void vec_cell_block(const frnn_call *call, int64_t phase, const frnn_block *blocks,
                                                     int n) {
    float out[FRNN_WAVE * 4 * VEC_W] __attribute__((aligned(64)));
    float out_z[FRNN_WAVE * 4 * VEC_W] __attribute__((aligned(64)));
    const frnn_cell_io *io = call->io;
    int before = call->form == FRNN_FORM_GRU_BEFORE;
    int nv = (int)(frnn_unit_vectors(call->cell) == 1 ? frnn_gates(call->cell) : blocks[0].nv);
    int64_t limit = frnn_tile_rows(n, nv), stride = frnn_scratch_row(call->cell), mr;
    for (int64_t row = call->row0; row < call->row1; row += mr) {
        const float *h[FRNN_TILE_ROWS], *rh[FRNN_TILE_ROWS];
        mr = frnn_tile_height(call->row1 - row, limit);
        if (call->pre_out) {
            for (int q = 0; q < (before ? 3 : 1); q++) {
                vec_cell_product(call, blocks, n, q, NULL, row, mr, out);
                vec_cell_keep_pre(call, blocks, n, q, row, mr, out);
            }
            continue;
        }
        for (int64_t r = 0; r < mr; r++) {
            h[r] = io->h[row + r] + io->h_off;
            if (before) rh[r] = io->scratch + (row + r) * stride;
        }
        if (before && phase == 1) vec_cell_product(call, blocks, n, 1, h, row, mr, out_z);
        vec_cell_product(call, blocks, n, before && phase == 1 ? 2 : 0, before && phase == 1 ? rh : h, row, mr, out);
        vec_cell_update(call, blocks, n, phase, row, mr, h, out, out_z);
    }
}

/* How a cell's weights lie in memory; shared by packing and by the cells' bodies.
 *
 * A block (blocks.h) of `lanes` hidden units holds one or three products:
 *     LSTM               one, vectors i o f c of one vector of units
 *     GRU, reset after   one, vectors z r n of one vector of units
 *     RNN                one, up to 4 vectors of units
 *     GRU, reset before  three, r then z then n, each up to 4 vectors of units: r must be known for all units before
 *                        n's hidden half can start
 * and a product is bias [nv][width], then W, then R, each as panels (blocks.h): the order in which they are read.
 * GRU with reset after keeps Rb of n apart, [width] behind the bias, because r multiplies it. LSTM with peephole ends
 * with P i o f, [3][width].
 * `pre` holds the accumulators between x and h, step after step and block after block: [rows of a step][products][nv]
 * [width]. Tiles write and read it in runs: rows that lie apart by their 8 KiB (LSTM 512) share cache sets, and cost 16 of
 * them 4 % of a step.
 */
#ifndef FRNN_CELLS_H
#define FRNN_CELLS_H

enum { FRNN_FORM_RNN, FRNN_FORM_LSTM, FRNN_FORM_GRU_AFTER, FRNN_FORM_GRU_BEFORE };

static inline int frnn_form(const frnn_cell *cell) {
    if (cell->kind == FRNN_RNN) return FRNN_FORM_RNN;
    if (cell->kind == FRNN_LSTM) return FRNN_FORM_LSTM;
    return cell->reset_after ? FRNN_FORM_GRU_AFTER : FRNN_FORM_GRU_BEFORE;
}

static inline int64_t frnn_gates(const frnn_cell *cell) { /* G */
    return cell->kind == FRNN_RNN ? 1 : cell->kind == FRNN_LSTM ? 4 : 3;
}

static inline int64_t frnn_unit_vectors(const frnn_cell *cell) { /* U: vectors of units in a full block */
    int form = frnn_form(cell);
    return form == FRNN_FORM_LSTM || form == FRNN_FORM_GRU_AFTER ? 1 : 4;
}

static inline int64_t frnn_products(const frnn_cell *cell) { return frnn_form(cell) == FRNN_FORM_GRU_BEFORE ? 3 : 1; }

static inline int64_t frnn_unit_floats(const frnn_cell *cell) { /* packed floats a unit */
    int64_t extra = frnn_form(cell) == FRNN_FORM_GRU_AFTER ? 1 : cell->peephole ? 3 : 0;
    return frnn_gates(cell) * (1 + cell->I + cell->H) + extra;
}

static inline int64_t frnn_scratch_row(const frnn_cell *cell) { /* floats of r * h a row, in whole cache lines */
    return frnn_form(cell) == FRNN_FORM_GRU_BEFORE ? (cell->H + 15) / 16 * 16 : 0;
}

/* One call of cell_step or cell_input. pre_out: NULL, or where cell_input writes. */
typedef struct frnn_call {
    const frnn_cell *cell;
    const frnn_cell_io *io;
    float *pre_out;
    int64_t pre_size; /* floats a row of pre; with pre_out */
    int64_t row0, row1;
    int form, usual; /* usual: no clip, input_forget or peephole, sigmoid and tanh */
    int far;         /* the weights come from caches too slow for a block's first tile (body_tile.h) */
} frnn_call;

/* Packed floats from which on weights are far: 4 MiB, and a third of that for panels of 3 vectors, which are read half
 * as fast again. LSTM 512 and GRU 256 gain by it, LSTM 256 and RNN 512 lose up to 4 % (Zen 3, 512 KiB of L2). */
#define FRNN_FAR_FLOATS (1 << 20)
static inline int frnn_is_far(const frnn_cell *cell) {
    int64_t vectors = frnn_form(cell) == FRNN_FORM_GRU_AFTER ? 3 : 1;
    return cell->H * frnn_unit_floats(cell) * vectors >= FRNN_FAR_FLOATS;
}
#endif

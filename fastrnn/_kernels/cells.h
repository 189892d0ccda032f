/* How a cell's weights are stored; shared by packing and by the cells' bodies.
 * A block (blocks.h) of hidden units holds the form's products, and a product is bias [nv][width], then W, then R,
 * each as panels (body_tile.h): the order in which they are read. A form whose sums of one gate stay apart has Rb of
 * that gate, [width], behind the bias. LSTM with peephole ends with P i o f, [3][width].
 * `pre` holds the accumulators between x and h, step after step and block after block: [rows of a
 * step][products][nv][width]. Tiles write and read it in runs, because rows that are 8 KiB apart (LSTM 512) share cache
 * sets, which costs 16 rows 4 % of a step.
 */
#ifndef FRNN_CELLS_H
#define FRNN_CELLS_H

/* The rows of list_cells.h as constants, for code compiled once per form. */
#define FORM(name, update, ...) static const frnn_form frnn_form_##name = {.code = FRNN_FORM_##name, __VA_ARGS__};
#include "list_cells.h"

/* The vectors of each product of a block of `nv` vectors of units. */
static inline int frnn_vectors(const frnn_form *form, int nv) { return form->units == 1 ? form->gates : nv; }

/* Scratch of a row, in whole cache lines: r * h of a GRU that resets before the product; in reduced precision also the
 * rounded x, h and r * h. */
static inline int64_t frnn_reset_size(const frnn_cell *cell) {
    return cell->form->phases > 1 ? (cell->H + 15) / 16 * 16 : 0;
}

static inline int64_t frnn_scratch_size(const frnn_cell *cell) {
    const frnn_product *product = cell->product;
    int64_t size = frnn_reset_size(cell);
    if (product->round) size += product->rounded(cell->I) + cell->form->phases * product->rounded(cell->H);
    return size;
}

/* What a step's products read of row r: x, h, or r * h of the phase before. */
enum frnn_operand { OPERAND_X, OPERAND_H, OPERAND_RESET };
static inline float *frnn_rounded_row(const frnn_cell *cell, float *scratch, int64_t row, enum frnn_operand which) {
    const frnn_product *product = cell->product;
    float *found = scratch + row * cell->scratch_row + frnn_reset_size(cell);
    if (which > OPERAND_X) found += product->rounded(cell->I);
    return which > OPERAND_H ? found + product->rounded(cell->H) : found;
}

/* One call of cell_step or cell_input. pre_out: NULL, or where cell_input writes. */
typedef struct frnn_call {
    const frnn_cell *cell;
    const frnn_product *product; /* of the cell, on vectors or on a tile unit */
    const frnn_cell_io *io;
    float *pre_out;
    int64_t pre_size; /* floats per row of pre; with pre_out */
    int64_t row0, row1;
    int64_t ahead; /* how its tiles prefetch: a setting of frnn_tuning */
} frnn_call;

/* One vector of units of one row, for the updates of body_cell.h. */
typedef struct frnn_unit {
    const frnn_cell *cell;
    float *a;        /* what the phase's first product summed: a vector per gate, or one of one gate */
    const float *b;  /* what its second product summed */
    const float *P;  /* peepholes i o f */
    const float *h;  /* previous hidden state */
    float *c;        /* cell state, in place */
    float *y;        /* new hidden state */
    float *scratch;  /* for the next phase */
    int64_t n;       /* units that exist */
} frnn_unit;
#endif

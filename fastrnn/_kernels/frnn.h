/* fastrnn kernels: the one header. C99; knows no Python and no graph.
 *
 * A kernel works on rows (streams of a batch) and blocks of output columns. Every instruction set exports one
 * `frnn_kernels` table, filled from the same bodies. The contract that all kernels keep:
 *
 *  - Same bits. Each output element accumulates in one fixed order ((inputs by k, + bias) + (hidden by k); a
 *    reduction in an order that depends only on its length), one fused (baseline: one multiply, one add) operation
 *    per term, whatever row, tile, tail, alignment, thread or number of rows it is computed with.
 *  - Rows are independent: one row's NaN or infinity never reaches another.
 *  - Nothing is allocated, locked or printed. Sizes are trusted: Python validated them.
 *  - No read or write outside [row, row + size): tails are masked, rows need no padding and no alignment.
 *  - Denormals count as zero in arithmetic, arguments and results (FTZ/DAZ), between frnn_fpu_enter and
 *    frnn_fpu_leave. A value that is merely moved (identity, relu, abs) may stay one.
 */
#ifndef FRNN_H
#define FRNN_H

#include <stddef.h>
#include <stdint.h>

#undef I /* complex.h has a macro of that name, and NumPy includes it */

/* ---- activations and elementwise functions: codes shared with Python (frnn_function_names) ---- */
/* A line is a group of names, not one name. */
/* clang-format off */
enum frnn_fn {
    /* unary; alpha, beta as in fastrnn/graph/types.py UNARY */
    FRNN_IDENTITY, FRNN_NEG, FRNN_ABS, FRNN_EXP, FRNN_LOG, FRNN_SQRT, FRNN_RECIP, FRNN_SIGN, FRNN_FLOOR, FRNN_CEIL,
    FRNN_ROUND, FRNN_ERF, FRNN_SIN, FRNN_COS, FRNN_TAN, FRNN_ASIN, FRNN_ACOS, FRNN_ATAN, FRNN_SINH,
    FRNN_COSH, FRNN_ASINH, FRNN_ACOSH, FRNN_ATANH, FRNN_NOT, FRNN_TANH, FRNN_SIGMOID, FRNN_RELU, FRNN_AFFINE,
    FRNN_LEAKY_RELU, FRNN_THRESHOLDED_RELU, FRNN_SCALED_TANH, FRNN_HARD_SIGMOID, FRNN_ELU, FRNN_SELU, FRNN_SOFTSIGN,
    FRNN_SOFTPLUS, FRNN_GELU, FRNN_GELU_TANH, FRNN_SILU, FRNN_HARD_SWISH, FRNN_MISH, FRNN_CLIP,
    /* binary */
    FRNN_ADD, FRNN_SUB, FRNN_MUL, FRNN_DIV, FRNN_POW, FRNN_MIN, FRNN_MAX, FRNN_MOD, FRNN_EQUAL, FRNN_GREATER,
    FRNN_GREATER_EQUAL, FRNN_LESS, FRNN_LESS_EQUAL, FRNN_AND, FRNN_OR, FRNN_XOR, FRNN_PRELU,
    /* ternary: a != 0 ? b : c */
    FRNN_WHERE,
    FRNN_FN_COUNT
};
/* clang-format on */

typedef struct frnn_act { /* one activation */
    int32_t fn;           /* enum frnn_fn, a unary one */
    float alpha, beta;
} frnn_act;

/* ---- products ---- */
#define FRNN_TILE_ROWS 6   /* the most rows of a tile of vectors, whatever the instruction set */
#define FRNN_LONG_ROWS 12  /* the same of one vector, whose sums would else wait for each other */
#define FRNN_TALL_ROWS 16  /* the most rows of a tile of a tile unit */
#define FRNN_TILE_VECTORS 4 /* the most vectors of a product */
#define FRNN_PACK_STEP 64  /* weights can be packed in parts that begin at multiples of this */
/* The layout of packed weights, of all tables. Files of packed weights hold it, and other ones are not read: count it up
 * with every change of what cell_pack or linear_pack write, as tests/kernels/test_packed_layout.py says. */
#define FRNN_LAYOUT 2

struct frnn_tile; /* body_tile.h */
typedef void (*frnn_tile_fn)(const struct frnn_tile *tile);
/* Tiles of one width: of one block, of two, and the same two that prefetch weights; by rows - 1 and vectors - 1; NULL:
 * none. */
typedef const frnn_tile_fn frnn_tiles[4][FRNN_TILE_ROWS][FRNN_TILE_VECTORS];

/* How tiles prefetch weights, by where the weights of a product are between two steps and by how many rows a call has.
 * All settings give the same bits, so they may change at any time; machine/tuning.py chooses them. */
enum { FRNN_IN_L2, FRNN_IN_L3, FRNN_IN_MEMORY, FRNN_LEVELS };
enum { FRNN_ONE_ROW, FRNN_ONE_TILE, FRNN_MORE_TILES, FRNN_KINDS };
#define FRNN_SPREAD 1 /* a setting: the tiles of a block prefetch the next block, each of them its part */
typedef struct frnn_tuning {
    int64_t most[FRNN_LEVELS - 1]; /* bytes of the largest weights that are in L2, in L3 */
    int64_t ahead[FRNN_LEVELS][FRNN_KINDS]; /* bytes ahead of its own reads that a tile prefetches; 0: none */
} frnn_tuning;
/* Steps may run meanwhile, and read each number as it was or as it is. */
static inline void frnn_tune(frnn_tuning *now, const frnn_tuning *chosen) {
    for (int i = 0; i < FRNN_LEVELS; i++) {
        if (i > 0) __atomic_store_n(&now->most[i - 1], chosen->most[i - 1], __ATOMIC_RELAXED);
        for (int k = 0; k < FRNN_KINDS; k++) {
            __atomic_store_n(&now->ahead[i][k], chosen->ahead[i][k], __ATOMIC_RELAXED);
        }
    }
}

/* How x W is computed: how rows are rounded, how weights are packed, and the tiles that sum over them. One row of an
 * instruction set's list of products. Another number format, or another unit of the CPU, is another row. */
typedef struct frnn_product {
    const char *weights; /* number format: "float32", "bfloat16", "int8", "int8-a16" */
    const char *bits; /* class of equal bits: products of one class give the same bits, so a call may choose freely */
    int32_t rows[2][FRNN_TILE_VECTORS + 1]; /* most rows of a tile over one block, over two, by vectors; 0: none */
    int32_t panel[FRNN_TILE_VECTORS + 1]; /* vectors of a panel (body_tile.h), by vectors of the product */
    int64_t (*column)(int64_t K); /* floats of memory that K weights of one column take */
    /* Packs K weights of nv vectors of `width` columns; returns the end. Lane l of vector v is column
     * from[v] + l * lane_stride, its weight k at k * k_stride from there; lanes from count[v] on are zero.
     * scale[v][l]: what one step of an 8-bit weight is worth; scale NULL: the largest weight of the column is 127.
     * Writes only the weights [k0, k1) of each column; both are multiples of FRNN_PACK_STEP, or the ends; 8-bit weights
     * are always packed whole. */
    float *(*pack)(int64_t K, int64_t k0, int64_t k1, int64_t nv, int64_t width, const float *const *from,
                   int64_t k_stride, int64_t lane_stride, const int64_t *count, const float *const *scale,
                   float *packed);
    /* Reduced precision: the floats of a rounded row of K, a multiple of 16, and what rounds it; else NULL. */
    int64_t (*rounded)(int64_t K);
    void (*round)(int64_t K, const float *x, float *rounded);
    frnn_tiles *tiles[3]; /* of width 4, 8, 16; NULL: not a width of the instruction set */
    const frnn_tile_fn
        *long_tiles; /* of one vector of the widest width and more than FRNN_TILE_ROWS rows; NULL: none */
    frnn_tuning *tuning; /* NULL: no tile prefetches */
    /* The same product on a tile unit, with the same bits of the same rows and weights; NULL: there is none. A call that
     * uses it calls begin with the rows of its tallest tile, and end before it returns. */
    const struct frnn_product *tall;
    void (*begin)(int64_t rows);
    void (*end)(void);
    const struct frnn_tile_cost *cost; /* tile_unit.h */
    int32_t emulated; /* the tile unit is */
} frnn_product;

/* How a call of so many rows prefetches the weights of a product, of that many floats. */
static inline int64_t frnn_ahead(const frnn_product *product, int64_t floats, int64_t rows) {
    const frnn_tuning *tuning = product->tuning;
    int level = FRNN_IN_L2, kind = rows == 1 ? FRNN_ONE_ROW : rows <= FRNN_TILE_ROWS ? FRNN_ONE_TILE : FRNN_MORE_TILES;
    if (!tuning) return 0;
    while (level < FRNN_IN_MEMORY &&
           floats * (int64_t)sizeof(float) > __atomic_load_n(&tuning->most[level], __ATOMIC_RELAXED)) {
        level++;
    }
    return __atomic_load_n(&tuning->ahead[level][kind], __ATOMIC_RELAXED);
}

/* ---- recurrent cells ---- */
#define FRNN_PHASES 2
#define FRNN_SUMS 2

/* The form of a fused cell: one row of list_cells.h. A block of hidden units holds `products` products, whose
 * vectors are the gates of one vector of units (units = 1), or some vectors of units of one gate (units = 4). */
typedef struct frnn_form {
    int32_t code; /* its update: enum frnn_form_code */
    const char *kind; /* as CellSpec.kind */
    int32_t variant; /* of two forms of one kind: CellSpec.linear_before_reset */
    int32_t gates; /* G: row blocks of W and R */
    int32_t products; /* of a block */
    int32_t units; /* vectors of units in a full block: 1 or 4 */
    int32_t states; /* 1: h; 2: h and c */
    int32_t recurrent; /* it has R; 0: products sum only over x */
    int32_t apart; /* 1: vector v of R adds to vector v + 1 of W, so that one gate's two sums stay apart */
    int32_t phases; /* of a step: all blocks of one must be done before the next */
    /* Gates of W and of R: of each vector (units = 1), or of each product (units = 4). */
    int32_t gate_of[2][FRNN_TILE_VECTORS];
    /* What a phase sums: products, each over h or (scratch = 1) over what the phase before left in scratch. */
    struct {
        int32_t product, scratch;
    } sums[FRNN_PHASES][FRNN_SUMS];
    int32_t counts[FRNN_PHASES];
    int32_t usual[3]; /* the activations that the update has inlined: enum frnn_fn */
} frnn_form;

enum frnn_form_code {
#define FORM(code, update, ...) FRNN_FORM_##code,
#include "list_cells.h"
    FRNN_FORM_COUNT
};

/* One direction of one layer: its form and its weights as one table's `cell_pack` packed them. Immutable. */
typedef struct frnn_cell {
    const frnn_form *form;
    const frnn_product *product; /* of the table that it is packed for */
    int32_t input_forget; /* LSTM: f = 1 - i */
    int32_t peephole; /* LSTM: it has P */
    int64_t I, H; /* input size, hidden size, >= 1 */
    float clip; /* bound of the preacts; INFINITY: none */
    frnn_act act[3]; /* f, g, h of the ONNX text */
    const float *packed; /* cell_pack's output: 64-byte aligned */
    /* Set by cell_layout: packed floats per column of W, of R, and per hidden unit; floats of scratch of a row;
     * calls of cell_step that a step takes; its product rounds rows; no clip, input_forget or peephole and the form's
     * usual activations. */
    int64_t half[2], unit, scratch_row;
    int32_t phases, rounded, usual;
} frnn_cell;

/* The weights of a cell: W [G*H, I], R [G*H, H], Wb, Rb [G*H] (NULL: zero), P [3*H] (NULL), row-major, ONNX gate order.
 * W_scale, R_scale [G*H]: what one step of an 8-bit weight is worth (NULL: a row's largest weight is 127). */
typedef struct frnn_weights {
    const float *W, *R, *Wb, *Rb, *P, *W_scale, *R_scale;
} frnn_weights;

/* The rows that one step works on. Row pointer arrays have `rows` entries; the offset (in floats) is added to every
 * pointer of its array, so that a time loop moves all rows by changing one number. Rows of x, h, y are contiguous;
 * rows must not overlap each other; y must not overlap h (all of h is read for every block of y). c is updated in
 * place. clip, if finite, bounds the arguments of f and g and not that of h (as onnxruntime does).
 */
typedef struct frnn_cell_io {
    const float *const *x; /* [I] each; unused if pre is given */
    ptrdiff_t x_off;
    /* NULL, or the input half already summed: bias + x W in packed gate order, from cell_input */
    const float *pre;
    int64_t pre_rows; /* the rows of one step in pre */
    const float *const *h; /* [H] each: previous hidden state */
    ptrdiff_t h_off;
    float *const *c; /* [H] each: LSTM cell state, in place; NULL for RNN and GRU */
    ptrdiff_t c_off;
    float *const *y; /* [H] each: new hidden state */
    ptrdiff_t y_off;
    float *scratch; /* cell_scratch(cell, rows) floats, 64-byte aligned; may be NULL if that is 0 */
    int32_t backwards; /* walk the blocks from the last to the first, with the same bits; see frnn_walk_blocks */
} frnn_cell_io;

/* ---- attention ---- */
typedef struct frnn_attention {
    float scale;
    float softcap; /* 0: none */
    int32_t safe; /* a query whose weights are NaN, as when every score is -inf, gets weights of 0 */
} frnn_attention;

/* The keys that a query sees, oldest first, and their values: up to two runs of rows (a ring buffer has two). */
typedef struct frnn_keys {
    const float *k[2], *v[2]; /* [n[run]] rows of d and of dv contiguous floats, k_step and v_step apart */
    int64_t n[2];
    int64_t k_step, v_step;
} frnn_keys;

/* ---- elementwise programs ----
 * A program is a list of instructions over registers; register i < n_in is input i, the others are results; the last
 * instruction's result is the output. It runs over an iteration space of `rank` axes (last fastest). An input's stride
 * on an axis is in elements, 0 if it is broadcast. All operands are float32 (bools are 0.0f and 1.0f).
 */
#define FRNN_MAX_RANK 6
#define FRNN_MAX_INPUTS 8
#define FRNN_MAX_INSTRUCTIONS 32
typedef struct frnn_instruction {
    int32_t fn; /* enum frnn_fn */
    int32_t a, b, c; /* registers; unused ones are 0 */
    float alpha, beta;
} frnn_instruction;
typedef struct frnn_program {
    int32_t n_in, n_instructions;
    frnn_instruction instructions[FRNN_MAX_INSTRUCTIONS]; /* instruction i writes register n_in + i */
} frnn_program;
typedef struct frnn_space {
    int64_t rank; /* 1..FRNN_MAX_RANK */
    int64_t size[FRNN_MAX_RANK];
    int64_t in_stride[FRNN_MAX_INPUTS][FRNN_MAX_RANK];
    int64_t out_stride[FRNN_MAX_RANK];
} frnn_space;

/* ---- the table of one instruction set ---- */
/* sign * u[k] * w(k, v), added to a state [K, V]. */
typedef struct frnn_scan_term {
    const float *u[2]; /* u[k] is the product of u[i][k * u_row[i]]; each may be NULL */
    int64_t u_row[2];
    const float *w; /* w(k, v) = w[k * w_row + v]; NULL: there is no such term */
    int64_t w_row; /* 0: an outer product */
    float sign; /* 1 or -1 */
} frnn_scan_term;

/* One step of a state S [K, V] whose rows are contiguous:
 *   S[k, v] = d(k, v) S[k, v] + its terms;    y[v] = sum_k q[k] S[k, v], or across: y[k] = sum_v S[k, v] q[v]
 * The new S goes to `to`, which is `from` or does not overlap it. y overlaps nothing. */
typedef struct frnn_scan {
    int64_t K, V;
    const float *from; /* S before the step; floats from a row to the next */
    int64_t from_row;
    float *to; /* NULL: S is only read, as it is after the step */
    int64_t to_row;
    /* d(k, v): 1 if decay is NULL; decay[k * decay_row]; with decay_column = 1, decay[k * decay_row + v]; and with rate,
     * exp(rate[k * rate_row] * decay[k * decay_row + v]), for one outer product as the only term */
    const float *decay;
    int64_t decay_row, decay_column;
    const float *rate;
    int64_t rate_row;
    frnn_scan_term term[2]; /* the second one only if there is a first one */
    const float *q; /* NULL: y is not wanted. q_step, y_step: 1, but for the side that k numbers */
    int64_t q_step;
    float *y;
    int64_t y_step;
    int32_t across;
} frnn_scan;

typedef struct frnn_kernels {
    const char *isa; /* a name of list_isas.h */
    int64_t lanes; /* floats in the widest vector */
    const frnn_product *const *products; /* NULL at the end; the first is that of linear */

    /* Cells. cell_layout completes a cell whose other members are set, but for `packed`, and returns how many floats
     * cell_pack writes. It writes the blocks [block0, block1), so that a caller can drop the rows of W and R that it has
     * read. cell_blocks: into how many blocks of hidden units a step can be split;
     * step works on rows [row0, row1) and blocks [block0, block1) of them, so threads may split either.
     * All blocks of phase p must be done before any of phase p + 1 of the same rows; cell->phases of them are a step.
     * In reduced precision each phase of the form follows one that rounds its rows. */
    int64_t (*cell_layout)(frnn_cell *cell);
    void (*cell_pack)(const frnn_cell *cell, const frnn_weights *from, int64_t block0, int64_t block1, float *packed);
    int64_t (*cell_blocks)(const frnn_cell *cell);
    int64_t (*cell_scratch)(const frnn_cell *cell, int64_t rows);
    void (*cell_step)(const frnn_cell *cell, const frnn_cell_io *io, int64_t phase, int64_t row0, int64_t row1,
                      int64_t block0, int64_t block1);
    /* The input half for the rows of some steps at once: bias + x[r] W, exactly the accumulators with which cell_step
     * would reach its hidden half. Row r is row r % pre_rows of step r / pre_rows, and a step takes pre_rows *
     * cell_pre_size floats of pre, which cell_step's io.pre then points to. In reduced precision x are rows that
     * product->round has rounded, as those of linear. */
    int64_t (*cell_pre_size)(const frnn_cell *cell);
    void (*cell_input)(const frnn_cell *cell, const float *const *x, ptrdiff_t x_off, float *pre, int64_t pre_rows,
                       int64_t row0, int64_t row1, int64_t block0, int64_t block1);

    /* y[r, n] = act(bias[n] + sum_k x[r, k] W[k, n]); W [K, N] with strides (in floats), bias [N] or NULL, scale [N] of
     * 8-bit weights or NULL. Row r of x is x + r * x_stride, contiguous; of y likewise. y must not overlap x. Columns
     * split into linear_blocks blocks. In reduced precision x are rows that product->round has rounded. linear_pack writes rows
     * [k0, k1) of W, as product->pack does, and the bias with k0 = 0. */
    int64_t (*linear_pack_size)(const frnn_product *product, int64_t K, int64_t N);
    void (*linear_pack)(const frnn_product *product, int64_t K, int64_t N, const float *W, int64_t k_stride,
                        int64_t n_stride, const float *bias, const float *scale, int64_t k0, int64_t k1, float *packed);
    int64_t (*linear_blocks)(int64_t K, int64_t N);
    void (*linear)(const frnn_product *product, int64_t K, int64_t N, const float *packed, frnn_act act, const float *x,
                   int64_t x_stride, float *y, int64_t y_stride, int64_t row0, int64_t row1, int64_t block0,
                   int64_t block1);

    /* out = program(inputs) over the space; out may be one of the inputs if their strides are equal. */
    void (*elementwise)(const frnn_program *program, const frnn_space *space, const float *const *in, float *out);

    /* Over n elements at stride x_stride; the order of summation depends only on n. */
    /* fn: FRNN_ADD (sum), FRNN_MIN, FRNN_MAX; mean is sum * (1/n) done by the caller through alpha: result * scale. */
    void (*reduce)(int32_t fn, int64_t rows, int64_t n, float scale, const float *x, int64_t x_row, int64_t x_stride,
                   float *y, int64_t y_row);
    /* y = exp(x - max) / sum, or x - max - log(sum) if log != 0, along n contiguous elements of each row. */
    void (*softmax)(int64_t rows, int64_t n, int32_t log, const float *x, int64_t x_row, float *y, int64_t y_row);
    /* y = (x - mean) / sqrt(var + epsilon) * scale + bias over n contiguous elements; scale, bias [n] or NULL. */
    void (*layer_norm)(int64_t rows, int64_t n, float epsilon, const float *scale, const float *bias, const float *x,
                       int64_t x_row, float *y, int64_t y_row);
    /* y[i] = fn(x[i]) on n contiguous floats: what the sweeps of the tests call. */
    void (*map)(frnn_act act, int64_t n, const float *x, float *y);

    /* Windows over channels. taps: K pointers a window, each to C contiguous floats; y rows are y_stride apart.
     * y[w, c] = act(bias[c] + sum_k taps[w][k][c] W[k, c]); W [K, C], bias [C] or NULL. */
    void (*depthwise)(int64_t C, int64_t K, const float *W, const float *bias, frnn_act act, int64_t windows,
                      const float *const *taps, float *y, int64_t y_stride);
    /* A row of positions whose channels are together, all taps of stride 1: tap k of float i is from[k][i].
     * y[i] = act(bias[i % period] + sum_k from[k][i] W[k, i % period]) for i < n; W [K, period], bias [period] or NULL;
     * period: a multiple of the channels and of `lanes`. */
    void (*depthwise_row)(int64_t n, int64_t period, int64_t K, const float *W, const float *bias, frnn_act act,
                          const float *const *from, float *y);
    /* Rows that overlap: y[r, n] = act(bias[n] + sum_{i, k} from[i][r * x_step + k] W[i * length + k, n]) for i < pieces,
     * k < length. packed: by linear_pack of the first product, pieces * length rows of W. The bits are those of linear
     * over rows that hold their pieces one after the other. */
    void (*slide)(int64_t pieces, int64_t length, int64_t N, const float *packed, frnn_act act,
                  const float *const *from, int64_t x_step, float *y, int64_t y_step, int64_t rows);
    /* One window: y[c] = largest of its taps (fn FRNN_MAX; a NaN stays; of none: -inf), or their sum / divisor
     * (FRNN_ADD). */
    void (*pool)(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps, float *y);
    /* The same of `windows` windows: tap k of window w is at taps[k] + w * x_step. */
    void (*pool_row)(int32_t fn, int64_t C, int64_t K, float divisor, const float *const *taps, int64_t x_step,
                     int64_t windows, float *y, int64_t y_step);

    /* One query. s[j] = scale * (q [d] . key j); softcap c > 0: c * tanh(s[j] / c); 0 if mask[j * mask_step] is 0
     * (NULL: none); + bias[j * bias_step] (NULL: none); w = softmax(s) over all keys; y [dv] = sum_j w[j] value j, j
     * ascending. No keys: y is 0. scores: room for as many floats as there are keys. y overlaps nothing. */
    void (*attend)(int64_t d, int64_t dv, const frnn_attention *how, const float *q, const frnn_keys *keys,
                   const float *bias, int64_t bias_step, const float *mask, int64_t mask_step, float *scores, float *y);

    /* The ends of a 3 x 3 convolution of stride 1 by Winograd's F(2 x 2, 3 x 3), of one tile of 2 x 2 results. taps: the
     * 4 x 4 positions, each C contiguous floats; their 16 sums and differences go to y + i * y_step. x + i * x_step: the
     * 16 products [N] of those; y: where the 4 results [N] go, each NULL if there is none; bias [N] or NULL. */
    void (*winograd_in)(int64_t C, const float *const *taps, float *y, int64_t y_step);
    void (*winograd_out)(int64_t N, const float *x, int64_t x_step, const float *bias, frnn_act act, float *const *y);
    /* One step of one matrix state, see frnn_scan. */
    void (*scan)(const frnn_scan *scan);
    /* y[c * y_row + r] = x[r * x_row + c], as they are; y must not overlap x. */
    void (*turn)(int64_t rows, int64_t columns, const float *x, int64_t x_row, float *y, int64_t y_row);

    /* The machine's limits, for measurements: loops that do nothing else. No model calls them. */
    /* `repeats` rounds of probe_flops operations, independent multiply-adds on registers; the result depends on all. */
    int64_t probe_flops;
    float (*probe_fma)(int64_t repeats);
    /* Reads bytes [0, size) `repeats` times, in order; data 64-byte aligned, size a multiple of 1024. `ahead`: bytes by
     * which a software prefetch runs ahead, 0 for none. Returns the bitwise or of all int32s. */
    int32_t (*probe_read)(const void *data, size_t size, int64_t repeats, size_t ahead);
} frnn_kernels;

/* ---- choosing a table (dispatch.c) ---- */
/* All tables that this build has and this CPU and OS can run, best first, NULL at the end. */
const frnn_kernels *const *frnn_available(void);
/* Tables whose tile unit is emulated, best first, NULL at the end: for tests, and on request only. */
const frnn_kernels *const *frnn_emulated(void);
/* All tables that were compiled in, best first, NULL at the end: to read, since this CPU may not run their kernels. */
const frnn_kernels *const *frnn_compiled(void);
/* The form of a kind of cell, NULL if there is none. variant counts if two forms share the kind. */
const frnn_form *frnn_form_of(const char *kind, int32_t variant);
/* Name of every frnn_fn code, FRNN_FN_COUNT of them, as Python spells it ("tanh", "greater_equal"). */
const char *const *frnn_function_names(void);

/* What keeps this process from a tile unit that the CPU has: 0 nothing (or it has none), -1 the operating system does not
 * save tiles, else the error number with which it refused them. */
int frnn_tile_refusal(void);
/* Whether a call of so many rows over so many floats of packed weights goes to the tile unit of the product, which must
 * have one (tile_unit.c). */
int frnn_tiles_pay(const frnn_product *product, int64_t rows, int64_t floats);

/* Flush denormals in this thread until leave; the token is what enter returned. */
uint64_t frnn_fpu_enter(void);
void frnn_fpu_leave(uint64_t token);

#endif

/* How output columns (hidden units) are cut into blocks, and how a block's weights are stored.
 *
 * N columns become full blocks of U vectors of FRNN_LANES floats, then at most one block of fewer vectors, then at most
 * one vector of a narrower width, so that a layer of 20, 50 or 130 units is not padded to a multiple of 16 or 64. The
 * last vector may be a tail: its columns from N on are computed with zero weights and never stored.
 * All blocks but the last are whole, so a block that starts at column j begins at j * (floats per column) of its panel.
 */
#ifndef FRNN_BLOCKS_H
#define FRNN_BLOCKS_H

typedef struct frnn_block {
    int64_t start; /* its first column */
    int32_t width; /* floats per vector: FRNN_LANES, or less for a narrow tail */
    int32_t nv;    /* vectors, 1..U */
} frnn_block;

/* The narrowest width that holds `rest` columns (1 <= rest <= FRNN_LANES). */
static inline int32_t frnn_tail_width(int64_t rest) {
    int32_t width = 4; /* every instruction set has vectors of 4 */
    while (width < rest) width *= 2;
    return width;
}

FRNN_INLINE int64_t frnn_blocks_of(int64_t N, const int64_t U) {
    int64_t rest = N % (U * FRNN_LANES), odd = rest % FRNN_LANES;
    int narrow = odd > 0 && frnn_tail_width(odd) < FRNN_LANES;
    int64_t vectors = rest / FRNN_LANES + (odd > 0 && !narrow);
    return N / (U * FRNN_LANES) + (vectors > 0) + narrow;
}

FRNN_INLINE frnn_block frnn_block_of(int64_t N, const int64_t U, int64_t index) {
    int64_t full = N / (U * FRNN_LANES), rest = N % (U * FRNN_LANES), odd = rest % FRNN_LANES;
    if (index < full) return (frnn_block){index * U * FRNN_LANES, FRNN_LANES, (int32_t)U};
    int narrow = odd > 0 && frnn_tail_width(odd) < FRNN_LANES;
    int64_t vectors = rest / FRNN_LANES + (odd > 0 && !narrow);
    if (index == full && vectors > 0) return (frnn_block){full * U * FRNN_LANES, FRNN_LANES, (int32_t)vectors};
    return (frnn_block){N - odd, frnn_tail_width(odd), 1};
}

/* U is 1 or 4. As a constant it avoids divisions; a step of an RNN of 16 units would need a dozen. */
static int64_t frnn_block_count(int64_t N, int64_t U) { return U == 1 ? frnn_blocks_of(N, 1) : frnn_blocks_of(N, 4); }
static frnn_block frnn_block_at(int64_t N, int64_t U, int64_t index) {
    return U == 1 ? frnn_block_of(N, 1, index) : frnn_block_of(N, 4, index);
}

/* Columns with their padding: the end of the last block. */
static inline int64_t frnn_padded(int64_t N, int64_t U) {
    if (N == 0) return 0;
    frnn_block last = frnn_block_at(N, U, frnn_block_count(N, U) - 1);
    return last.start + (int64_t)last.width * last.nv;
}

/* ---- weights of reduced precision (body_tile_bfloat16.h, body_tile_int8.h) ---- */
#define FRNN_GROUP 16 /* terms, lanes of four bytes, that belong together: the rows of an AMX tile */
#define FRNN_HEAD 16  /* floats before the bytes of a rounded row of int8: its scale, alone in its cache line */

/* Groups of the terms of K weights, of which a term holds `each`. */
static inline int64_t frnn_groups(int64_t K, int64_t each) { return (K + FRNN_GROUP * each - 1) / (FRNN_GROUP * each); }

/* Where term t of vector v is, among those of nv vectors. In this order the terms are read one after the other, and those
 * of a group and vector are a tile whose rows are nv * width floats apart. */
static inline const float *frnn_term(const float *terms, int64_t t, int64_t nv, int64_t v, int64_t width) {
    return terms + (t * nv + v) * width;
}

/* How many of `rows` rows the next tile takes: tiles have nearly equal heights of at most `limit`. */
static inline int64_t frnn_tile_height(int64_t rows, int64_t limit) {
    if (rows <= limit) return rows; /* two divisions are a tenth of the step of an RNN of 4 units */
    int64_t tiles = (rows + limit - 1) / limit;
    return (rows + tiles - 1) / tiles;
}
#endif

/* Everything except loops over vectors: packing, walking blocks, and the table itself. Included once per instruction
 * set. */

/* Call the body of the block's width. */
#if FRNN_LANES == 16
#define BY_WIDTH(name, width, ...)                                                                                     \
    ((width) == 16 ? name##_16(__VA_ARGS__) : (width) == 8 ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#elif FRNN_LANES == 8
#define BY_WIDTH(name, width, ...) ((width) == 8 ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#else
#define BY_WIDTH(name, width, ...) name##_4(__VA_ARGS__)
#endif

/* ---- packing of cells ---- */

/* Product q of a block: bias, then W, then R (cells.h). Returns the end. */
static float *frnn_pack_product(const frnn_cell *cell, const frnn_block *block, int q, const frnn_weights *w,
                                float *p) {
    const frnn_form *form = cell->form;
    int64_t H = cell->H, width = block->width, nv = frnn_vectors(form, block->nv), apart = form->apart;
    int64_t row[2][FRNN_TILE_VECTORS], count[FRNN_TILE_VECTORS]; /* row of W, of R that lane 0 is; lanes that exist */
    for (int64_t v = 0; v < nv; v++) {
        int64_t gate = form->units == 1 ? v : q, first = block->start + (form->units == 1 ? 0 : v * width);
        for (int half = 0; half < 2; half++) row[half][v] = form->gate_of[half][gate] * H + first;
        count[v] = H - first < width ? H - first : width;
    }
    for (int64_t v = 0; v < nv + apart;
         v++) { /* each vector of sums starts from the biases of all that is added to it */
        for (int64_t l = 0; l < width; l++, p++) {
            int there = l < count[v < nv ? v : nv - 1];
            *p = (there && w->Wb && v < nv ? w->Wb[row[0][v] + l] : 0.0f) +
                 (there && w->Rb && v >= apart ? w->Rb[row[1][v - apart] + l] : 0.0f);
        }
    }
    for (int half = 0; half < 1 + form->recurrent; half++) {
        const float *from[FRNN_TILE_VECTORS], *scale[FRNN_TILE_VECTORS], *scales = half ? w->R_scale : w->W_scale;
        int64_t K = half ? H : cell->I;
        for (int64_t v = 0; v < nv; v++) {
            from[v] = (half ? w->R : w->W) + row[half][v] * K;
            scale[v] = scales ? scales + row[half][v] : NULL;
        }
        p = cell->product->pack(K, 0, K, nv, width, from, 1, K, count, scales ? scale : NULL, p);
    }
    return p;
}

static int frnn_is_usual(const frnn_cell *cell) {
    if (cell->clip < INFINITY || cell->input_forget || cell->peephole) return 0;
    for (int i = 0; i < 3; i++) {
        int32_t fn = cell->form->usual[i];
        if (fn != FRNN_IDENTITY && cell->act[i].fn != fn) return 0;
    }
    return 1;
}

static int64_t FRNN_NAME(cell_layout)(frnn_cell *cell) {
    const frnn_form *form = cell->form;
    cell->half[0] = cell->product->column(cell->I);
    cell->half[1] = form->recurrent ? cell->product->column(cell->H) : 0;
    cell->unit = form->gates * (1 + cell->half[0] + cell->half[1]) + form->apart + (cell->peephole ? 3 : 0);
    cell->usual = frnn_is_usual(cell);
    cell->rounded = cell->product->round != NULL;
    cell->phases = form->phases * (cell->rounded ? 2 : 1);
    cell->scratch_row = frnn_scratch_size(cell);
    return frnn_padded(cell->H, form->units) * cell->unit;
}

static void FRNN_NAME(cell_pack)(const frnn_cell *cell, const frnn_weights *w, int64_t block0, int64_t block1,
                                 float *packed) {
    const frnn_form *form = cell->form;
    int64_t H = cell->H, U = form->units;
    for (int64_t index = block0; index < block1; index++) {
        frnn_block block = frnn_block_at(H, U, index);
        int64_t rest = H - block.start;
        float *p = packed + block.start * cell->unit;
        for (int q = 0; q < form->products; q++) p = frnn_pack_product(cell, &block, q, w, p);
        for (int64_t g = 0; g < (cell->peephole ? 3 : 0); g++) {
            for (int64_t l = 0; l < block.width; l++) *p++ = l < rest ? w->P[g * H + block.start + l] : 0.0f;
        }
    }
}

/* ---- vectors or a tile unit ---- */

/* How blocks of a full width, each of `vectors` vectors of columns of so many packed floats, are to be summed in this
 * call. A tile unit stays configured until its `end`. */
static const frnn_product *frnn_begin(const frnn_product *product, int64_t rows, int64_t block0, int64_t block1,
                                      int64_t floats) {
    const frnn_product *tall = product->tall;
    if (!tall || rows < 1 || !frnn_tiles_pay(product, rows, (block1 - block0) * floats * FRNN_LANES)) return product;
    tall->begin(frnn_tile_height(rows, FRNN_TALL_ROWS));
    return tall;
}

/* ---- cells ---- */
static inline int64_t frnn_cell_ahead(const frnn_cell *cell, int64_t rows) {
    return frnn_ahead(cell->product, cell->H * cell->unit, rows);
}
static int64_t FRNN_NAME(cell_blocks)(const frnn_cell *cell) { return frnn_block_count(cell->H, cell->form->units); }
static int64_t FRNN_NAME(cell_scratch)(const frnn_cell *cell, int64_t rows) { return rows * cell->scratch_row; }
static int64_t FRNN_NAME(cell_pre_size)(const frnn_cell *cell) {
    return frnn_padded(cell->H, cell->form->units) * cell->form->gates;
}

/* How many blocks from `index` on, in the direction of the call, are processed together. For few rows, two whole ones,
 * which keep the FMA units busy. For one row, up to FRNN_WAVE: then the weights of all of them stream from the caches
 * without a pause, and the activations after them overlap. left: how many blocks are left. */
FRNN_INLINE int frnn_take_blocks(const frnn_call *call, int64_t index, int64_t left, frnn_block *blocks) {
    const frnn_form *form = call->cell->form;
    int64_t H = call->cell->H, U = form->units, rows = call->row1 - call->row0;
    int step = call->io->backwards ? -1 : 1, n = 1;
    blocks[0] = frnn_block_at(H, U, index);
    int pair = call->product->rows[1][frnn_vectors(form, blocks[0].nv)]; /* rows of a tile of two blocks */
    int most = rows > pair ? 1 : rows == 1 && !call->pre_out ? FRNN_WAVE : 2;
    if (blocks[0].width < FRNN_LANES) return 1;
    for (; n < most && n < left; n++) {
        blocks[n] = frnn_block_at(H, U, index + n * step);
        if (blocks[n].width < FRNN_LANES || blocks[n].nv != blocks[0].nv) break;
    }
    return n;
}

/* Steps alternate between forwards and backwards, so each begins with the weights that the previous step has left in
 * the caches. If every step began at the front, weights twice as large as a cache would miss it at every line. */
FRNN_INLINE void frnn_walk_blocks(const frnn_call *call, int64_t phase, int64_t block0, int64_t block1) {
    frnn_block blocks[FRNN_WAVE];
    for (int64_t left = block1 - block0, n; left > 0; left -= n) {
        n = frnn_take_blocks(call, call->io->backwards ? block0 + left - 1 : block1 - left, left, blocks);
        BY_WIDTH(vec_cell_block, blocks[0].width, call, phase, blocks, (int)n);
    }
}

/* Rounds the rows that the products of a phase of the form sum over. Threads that share the blocks of a step share its
 * rows here. */
static void frnn_round_rows(const frnn_call *call, int64_t phase, int64_t block0, int64_t block1) {
    const frnn_cell *cell = call->cell;
    const frnn_cell_io *io = call->io;
    int64_t rows = call->row1 - call->row0, blocks = frnn_block_count(cell->H, cell->form->units);
    int64_t first = call->row0 + rows * block0 / blocks, last = call->row0 + rows * block1 / blocks;
    for (int64_t row = first; row < last; row++) {
        if (phase > 0) {
            const float *reset = io->scratch + row * cell->scratch_row;
            cell->product->round(cell->H, reset, frnn_rounded_row(cell, io->scratch, row, OPERAND_RESET));
        } else {
            if (!io->pre) {
                cell->product->round(cell->I, io->x[row] + io->x_off,
                                     frnn_rounded_row(cell, io->scratch, row, OPERAND_X));
            }
            cell->product->round(cell->H, io->h[row] + io->h_off, frnn_rounded_row(cell, io->scratch, row, OPERAND_H));
        }
    }
}

static void FRNN_NAME(cell_step)(const frnn_cell *cell, const frnn_cell_io *io, int64_t phase, int64_t row0,
                                 int64_t row1, int64_t block0, int64_t block1) {
    frnn_call call = {cell, cell->product, io, NULL, 0, row0, row1, frnn_cell_ahead(cell, row1 - row0)};
    if (cell->rounded) {
        if (phase % 2 == 0) return frnn_round_rows(&call, phase / 2, block0, block1);
        phase /= 2;
        call.product = frnn_begin(cell->product, row1 - row0, block0, block1, cell->form->units * cell->unit);
    }
    frnn_walk_blocks(&call, phase, block0, block1);
    if (call.product->end) call.product->end();
}

static void FRNN_NAME(cell_input)(const frnn_cell *cell, const float *const *x, ptrdiff_t x_off, float *pre,
                                  int64_t pre_rows, int64_t row0, int64_t row1, int64_t block0, int64_t block1) {
    frnn_cell_io io = {.x = x, .x_off = x_off, .pre_rows = pre_rows};
    int64_t size = FRNN_NAME(cell_pre_size)(cell);
    frnn_call call = {cell, cell->product, &io, pre, size, row0, row1, frnn_cell_ahead(cell, row1 - row0)};
    frnn_walk_blocks(&call, 0, block0, block1);
}

/* ---- linear ---- */
/* One product of up to 4 vectors of columns: bias, then W. */
static int64_t FRNN_NAME(linear_pack_size)(const frnn_product *product, int64_t K, int64_t N) {
    return frnn_padded(N, 4) * (1 + product->column(K));
}
static int64_t FRNN_NAME(linear_blocks)(int64_t K, int64_t N) {
    (void)K;
    return frnn_block_count(N, 4);
}

static void FRNN_NAME(linear_pack)(const frnn_product *product, int64_t K, int64_t N, const float *W, int64_t k_stride,
                                   int64_t n_stride, const float *bias, const float *scale, int64_t k0, int64_t k1,
                                   float *packed) {
    int64_t blocks = frnn_block_count(N, 4), column = 1 + product->column(K);
    for (int64_t index = 0; index < blocks; index++) {
        frnn_block block = frnn_block_at(N, 4, index);
        int64_t rest = N - block.start, count[FRNN_TILE_VECTORS];
        const float *from[FRNN_TILE_VECTORS], *scales[FRNN_TILE_VECTORS];
        float *p = packed + block.start * column;
        for (int64_t v = 0; v < block.nv; v++) {
            int64_t at = v * block.width;
            from[v] = W + (block.start + at) * n_stride;
            scales[v] = scale ? scale + block.start + at : NULL;
            count[v] = rest - at < block.width ? rest - at : block.width;
        }
        for (int64_t j = 0; j < (int64_t)block.width * block.nv; j++, p++) {
            if (k0 == 0) *p = bias && j < rest ? bias[block.start + j] : 0.0f;
        }
        product->pack(K, k0, k1, block.nv, block.width, from, k_stride, n_stride, count, scale ? scales : NULL, p);
    }
}

static void FRNN_NAME(linear)(const frnn_product *product, int64_t K, int64_t N, const float *packed, frnn_act act,
                              const float *x, int64_t x_stride, float *y, int64_t y_stride, int64_t row0, int64_t row1,
                              int64_t block0, int64_t block1) {
    int64_t column = 1 + product->column(K), nb;
    int64_t ahead = frnn_ahead(product, N * column, row1 - row0);
    if (ahead == FRNN_SPREAD) ahead = 0; /* that is for blocks that are walked again soon */
    product = frnn_begin(product, row1 - row0, block0, block1, 4 * column);
    frnn_linear_call call = {product, K, N, column, packed, act, x, y, x_stride, y_stride, row0, row1, ahead};
    int wide = row1 - row0 <= product->rows[1][4];
    for (int64_t index = block0; index < block1; index += nb) {
        frnn_block block[2] = {frnn_block_at(N, 4, index), {0, 0, 0}};
        nb = 1;
        if (wide && index + 1 < block1 && block[0].width == FRNN_LANES && block[0].nv == 4) {
            block[1] = frnn_block_at(N, 4, index + 1);
            if (block[1].width == FRNN_LANES && block[1].nv == 4) nb = 2;
        }
        BY_WIDTH(vec_linear_block, block[0].width, &call, block, (int)nb);
    }
    if (product->end) product->end();
}

static void FRNN_NAME(slide)(int64_t pieces, int64_t length, int64_t N, const float *packed, frnn_act act,
                             const float *const *from, int64_t x_step, float *y, int64_t y_step, int64_t rows) {
    int64_t blocks = frnn_block_count(N, 4);
    frnn_slide_call call = {
        .pieces = pieces, .length = length, .N = N, .column = 1 + pieces * length, .packed = packed};
    call.from = from, call.y = y, call.x_step = x_step, call.y_step = y_step, call.rows = rows;
    call.relu = act.fn == FRNN_RELU;
    for (int64_t index = 0; index < blocks; index++) {
        frnn_block block = frnn_block_at(N, 4, index);
        BY_WIDTH(vec_slide_block, block.width, &call, &block);
    }
    for (int64_t r = 0; act.fn != FRNN_IDENTITY && !call.relu && r < rows; r++) {
        frnn_map(act, N, y + r * y_step, y + r * y_step);
    }
}

const frnn_kernels FRNN_JOIN(frnn_table, FRNN_ISA) = {
    .isa = FRNN_TEXT(FRNN_ISA),
    .lanes = FRNN_LANES,
    .products = frnn_products,
    .cell_layout = FRNN_NAME(cell_layout),
    .cell_pack = FRNN_NAME(cell_pack),
    .cell_blocks = FRNN_NAME(cell_blocks),
    .cell_scratch = FRNN_NAME(cell_scratch),
    .cell_step = FRNN_NAME(cell_step),
    .cell_pre_size = FRNN_NAME(cell_pre_size),
    .cell_input = FRNN_NAME(cell_input),
    .linear_pack_size = FRNN_NAME(linear_pack_size),
    .linear_pack = FRNN_NAME(linear_pack),
    .linear_blocks = FRNN_NAME(linear_blocks),
    .linear = FRNN_NAME(linear),
    .elementwise = frnn_elementwise,
    .reduce = frnn_reduce,
    .softmax = frnn_softmax,
    .layer_norm = frnn_layer_norm,
    .map = frnn_map,
    .depthwise = frnn_depthwise,
    .slide = FRNN_NAME(slide),
    .depthwise_row = frnn_depthwise_row,
    .pool = frnn_pool,
    .pool_row = frnn_pool_row,
    .attend = frnn_attend,
    .winograd_in = frnn_winograd_in,
    .winograd_out = frnn_winograd_out,
    .scan = frnn_scan_step,
    .turn = frnn_turn,
    .probe_flops = FRNN_TILE_SUMS * 2 * FRNN_LANES,
    .probe_fma = frnn_probe_fma,
    .probe_read = frnn_probe_read,
};

/* What is not a loop over vectors: packing, walking blocks, and the table itself. Included once per instruction set. */

#define FRNN_NAME(op) FRNN_JOIN(frnn_f32_##op, FRNN_ISA)
#define FRNN_TEXT2(a) #a
#define FRNN_TEXT(a) FRNN_TEXT2(a)

/* Call the body of the block's width. */
#if FRNN_LANES == 16
#define BY_WIDTH(name, width, ...)                                                                                     \
    ((width) == 16 ? name##_16(__VA_ARGS__) : (width) == 8 ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#elif FRNN_LANES == 8
#define BY_WIDTH(name, width, ...) ((width) == 8 ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#else
#define BY_WIDTH(name, width, ...) name##_4(__VA_ARGS__)
#endif

/* ---- packing ---- */

/* One product of nv vectors: bias, then W, then R (see cells.h). row[v]: the row of W, R that lane 0 of vector v is;
 * lanes >= count[v] are zero. Wb, Rb may be NULL. Returns the end. */
static float *frnn_pack_product(const frnn_cell *cell, const float *W, const float *R, const float *Wb, const float *Rb,
                                const int64_t *row, const int64_t *count, int64_t nv, int64_t width, int apart,
                                float *p) {
    for (int64_t v = 0; v < nv; v++) {
        for (int64_t l = 0; l < width; l++, p++) {
            int there = l < count[v], split = apart && v == nv - 1; /* apart: Rb of the last vector follows the bias */
            *p = (there && Wb ? Wb[row[v] + l] : 0.0f) + (there && Rb && !split ? Rb[row[v] + l] : 0.0f);
        }
    }
    for (int64_t l = 0; apart && l < width; l++) *p++ = l < count[nv - 1] && Rb ? Rb[row[nv - 1] + l] : 0.0f;
    for (int half = 0; half < 2; half++) {
        const float *M = half ? R : W;
        int64_t K = half ? cell->H : cell->I;
        int64_t n = frnn_panel_vectors((int)nv);
        for (int64_t first = 0; first < nv; first += n) {
            for (int64_t k = 0; k < K; k++) {
                for (int64_t v = first; v < first + n; v++) {
                    for (int64_t l = 0; l < width; l++) *p++ = l < count[v] ? M[(row[v] + l) * K + k] : 0.0f;
                }
            }
        }
    }
    return p;
}

static int64_t FRNN_NAME(cell_pack_size)(const frnn_cell *cell) {
    return frnn_padded(cell->H, frnn_unit_vectors(cell)) * frnn_unit_floats(cell);
}

static void FRNN_NAME(cell_pack)(const frnn_cell *cell, const float *W, const float *R, const float *Wb,
                                 const float *Rb, const float *P, float *packed) {
    static const int64_t before[3] = {1, 0, 2}; /* r z n, of ONNX's z r n */
    int64_t H = cell->H, U = frnn_unit_vectors(cell), G = frnn_gates(cell), blocks = frnn_block_count(H, U);
    int after = frnn_form(cell) == FRNN_FORM_GRU_AFTER;
    for (int64_t index = 0; index < blocks; index++) {
        frnn_block block = frnn_block_at(H, U, index);
        int64_t row[4], count[4], nv = U == 1 ? G : block.nv, rest = H - block.start;
        float *p = packed + block.start * frnn_unit_floats(cell);
        for (int64_t q = 0; q < frnn_products(cell); q++) {
            for (int64_t v = 0; v < nv; v++) {
                int64_t gate = U == 1 ? v : G == 3 ? before[q] : 0, at = U == 1 ? 0 : v * block.width;
                row[v] = gate * H + block.start + at;
                count[v] = rest - at < block.width ? rest - at : block.width;
            }
            p = frnn_pack_product(cell, W, R, Wb, Rb, row, count, nv, block.width, after, p);
        }
        for (int64_t g = 0; g < (cell->peephole ? 3 : 0); g++) {
            for (int64_t l = 0; l < block.width; l++) *p++ = l < rest ? P[g * H + block.start + l] : 0.0f;
        }
    }
}

/* ---- cells ---- */
static int64_t FRNN_NAME(cell_blocks)(const frnn_cell *cell) {
    return frnn_block_count(cell->H, frnn_unit_vectors(cell));
}
static int64_t FRNN_NAME(cell_phases)(const frnn_cell *cell) { return frnn_form(cell) == FRNN_FORM_GRU_BEFORE ? 2 : 1; }
static int64_t FRNN_NAME(cell_scratch)(const frnn_cell *cell, int64_t rows) { return rows * frnn_scratch_row(cell); }
static int64_t FRNN_NAME(cell_pre_size)(const frnn_cell *cell) {
    return frnn_padded(cell->H, frnn_unit_vectors(cell)) * frnn_gates(cell);
}

static int frnn_is_usual(const frnn_cell *cell) {
    const frnn_act *act = cell->act;
    if (cell->clip < INFINITY || cell->input_forget || cell->peephole) return 0;
    if (cell->kind == FRNN_RNN) return act[0].fn == FRNN_TANH;
    int gates = act[0].fn == FRNN_SIGMOID && act[1].fn == FRNN_TANH;
    return gates && (cell->kind == FRNN_GRU || act[2].fn == FRNN_TANH);
}

/* How many blocks from `index` on, in the direction in which the call walks, are worked on together: for few rows two
 * whole ones, which keep the FMA units busy; for one row up to FRNN_WAVE, since then the sums of all of them flow from
 * the caches without a pause, and the activations after them overlap each other. left: how many there are. */
static int frnn_take_blocks(const frnn_call *call, int64_t index, int64_t left, frnn_block *blocks) {
    int64_t H = call->cell->H, U = frnn_unit_vectors(call->cell), rows = call->row1 - call->row0;
    int most = rows == 1 && !call->pre_out ? FRNN_WAVE : rows <= FRNN_PAIR_ROWS ? 2 : 1, n = 1;
    int step = call->io->backwards ? -1 : 1;
    blocks[0] = frnn_block_at(H, U, index);
    if (blocks[0].width < FRNN_LANES || (U > 1 && blocks[0].nv < 3)) return 1;
    for (; n < most && n < left; n++) {
        blocks[n] = frnn_block_at(H, U, index + n * step);
        if (blocks[n].width < FRNN_LANES || blocks[n].nv != blocks[0].nv) break;
    }
    return n;
}

/* Steps that take turns to walk forwards and backwards begin with the weights that the step before has left in the
 * caches. Weights twice as large as a cache would miss it at every line if every step began at the front. */
static void frnn_walk_blocks(const frnn_call *call, int64_t phase, int64_t block0, int64_t block1) {
    frnn_block blocks[FRNN_WAVE];
    for (int64_t left = block1 - block0, n; left > 0; left -= n) {
        n = frnn_take_blocks(call, call->io->backwards ? block0 + left - 1 : block1 - left, left, blocks);
        BY_WIDTH(vec_cell_block, blocks[0].width, call, phase, blocks, (int)n);
    }
}

static void FRNN_NAME(cell_step)(const frnn_cell *cell, const frnn_cell_io *io, int64_t phase, int64_t row0,
                                 int64_t row1, int64_t block0, int64_t block1) {
    frnn_call call = {cell, io, NULL, 0, row0, row1, frnn_form(cell), frnn_is_usual(cell), frnn_is_far(cell)};
    frnn_walk_blocks(&call, phase, block0, block1);
}

static void FRNN_NAME(cell_input)(const frnn_cell *cell, const float *const *x, ptrdiff_t x_off, float *pre,
                                  int64_t pre_rows, int64_t row0, int64_t row1, int64_t block0, int64_t block1) {
    frnn_cell_io io = {.x = x, .x_off = x_off, .pre_rows = pre_rows};
    int64_t size = FRNN_NAME(cell_pre_size)(cell);
    frnn_call call = {cell, &io, pre, size, row0, row1, frnn_form(cell), 0, frnn_is_far(cell)};
    frnn_walk_blocks(&call, 0, block0, block1);
}

/* ---- linear ---- */
static int64_t FRNN_NAME(linear_pack_size)(int64_t K, int64_t N) { return frnn_padded(N, 4) * (1 + K); }
static int64_t FRNN_NAME(linear_blocks)(int64_t K, int64_t N) {
    (void)K;
    return frnn_block_count(N, 4);
}

static void FRNN_NAME(linear_pack)(int64_t K, int64_t N, const float *W, int64_t k_stride, int64_t n_stride,
                                   const float *bias, float *packed) {
    int64_t blocks = frnn_block_count(N, 4);
    for (int64_t index = 0; index < blocks; index++) {
        frnn_block block = frnn_block_at(N, 4, index);
        int64_t columns = (int64_t)block.width * block.nv, rest = N - block.start;
        int64_t there = rest < columns ? rest : columns;
        float *p = packed + block.start * (1 + K);
        for (int64_t j = 0; j < columns; j++) *p++ = bias && j < there ? bias[block.start + j] : 0.0f;
        int64_t panel = (int64_t)frnn_panel_vectors(block.nv) * block.width;
        for (int64_t first = 0; first < columns; first += panel) {
            for (int64_t k = 0; k < K; k++) {
                const float *row = W + k * k_stride + block.start * n_stride;
                for (int64_t j = first; j < first + panel; j++) *p++ = j < there ? row[j * n_stride] : 0.0f;
            }
        }
    }
}

static void FRNN_NAME(linear)(int64_t K, int64_t N, const float *packed, frnn_act act, const float *x, int64_t x_stride,
                              float *y, int64_t y_stride, int64_t row0, int64_t row1, int64_t block0, int64_t block1) {
    frnn_linear_call call = {K, N, packed, act, x, y, x_stride, y_stride, row0, row1};
    int wide = row1 - row0 <= FRNN_PAIR_ROWS;
    int64_t nb;
    for (int64_t index = block0; index < block1; index += nb) {
        frnn_block block[2] = {frnn_block_at(N, 4, index), {0, 0, 0}};
        nb = 1;
        if (wide && index + 1 < block1 && block[0].width == FRNN_LANES && block[0].nv == 4) {
            block[1] = frnn_block_at(N, 4, index + 1);
            if (block[1].width == FRNN_LANES && block[1].nv == 4) nb = 2;
        }
        BY_WIDTH(vec_linear_block, block[0].width, &call, block, (int)nb);
    }
}

const frnn_kernels FRNN_JOIN(frnn_table, FRNN_ISA) = {
    .isa = FRNN_TEXT(FRNN_ISA),
    .lanes = FRNN_LANES,
    .cell_pack_size = FRNN_NAME(cell_pack_size),
    .cell_pack = FRNN_NAME(cell_pack),
    .cell_blocks = FRNN_NAME(cell_blocks),
    .cell_phases = FRNN_NAME(cell_phases),
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
    .pool = frnn_pool,
    .attend = frnn_attend,
    .probe_flops = FRNN_TILE_SUMS * 2 * FRNN_LANES,
    .probe_fma = frnn_probe_fma,
    .probe_read = frnn_probe_read,
};

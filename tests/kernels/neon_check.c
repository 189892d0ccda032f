/* Compares the NEON table with baseline on the CPU it runs on (or under qemu-aarch64); exits 0 where they agree to
 * 1e-5 and a row's bits don't depend on the number of rows. It prints a hash of NEON's answers in reduced precision,
 * which are those of every other instruction set. Built and run by test_kernel_isa.py. */
#include "frnn.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t seed = 1;

static float *numbers(int64_t n) {
    float *p = malloc((size_t)(n + 16) * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = ((float)(seed >> 8) / (float)(1 << 24) - 0.5f) * 0.8f;
    }
    return p;
}

static int differ(const char *what, int64_t n, const float *a, const float *b) {
    for (int64_t i = 0; i < n; i++) {
        if (!(fabsf(a[i] - b[i]) <= 1e-5f * (1 + fabsf(b[i])))) {
            printf("%s: element %ld is %.9g, expected %.9g\n", what, (long)i, a[i], b[i]);
            return 1;
        }
    }
    return 0;
}

enum { ROWS = 13 };

static const frnn_product *product_of(const frnn_kernels *k, const char *format) {
    int i = 0;
    while (strcmp(k->products[i]->weights, format)) i++;
    return k->products[i];
}

static void step(const frnn_kernels *k, const char *format, frnn_cell cell, float *const *w, const float *x, const float *h,
                 const float *c0, float *c, float *y, int64_t rows) {
    float *packed, *scratch;
    const float *xs[ROWS], *hs[ROWS];
    float *cs[ROWS], *ys[ROWS];
    int64_t H = cell.H;
    cell.product = product_of(k, format);
    memcpy(c, c0, (size_t)(rows * H) * sizeof(float));
    packed = malloc((size_t)k->cell_layout(&cell) * sizeof(float));
    scratch = malloc((size_t)(k->cell_scratch(&cell, rows) + 1) * sizeof(float));
    frnn_weights weights = {w[0], w[1], w[2], w[3], cell.peephole ? w[4] : NULL, NULL, NULL};
    k->cell_pack(&cell, &weights, 0, k->cell_blocks(&cell), packed);
    cell.packed = packed;
    for (int64_t r = 0; r < rows; r++) {
        xs[r] = x + r * cell.I, hs[r] = h + r * H, cs[r] = c + r * H, ys[r] = y + r * H;
    }
    frnn_cell_io io = {.x = xs, .h = hs, .c = cs, .y = ys, .scratch = scratch};
    for (int64_t phase = 0; phase < cell.phases; phase++) {
        k->cell_step(&cell, &io, phase, 0, rows, 0, k->cell_blocks(&cell));
    }
    free(packed);
    free(scratch);
}

static frnn_cell cell_of(int form, int64_t I, int64_t H) { /* NOLINT: the words of the project */
    const char *kind = form < 2 ? "lstm" : form < 4 ? "gru" : "rnn";
    frnn_cell cell = {.form = frnn_form_of(kind, form == 3), .peephole = form == 1, .I = I, .H = H, .clip = INFINITY};
    cell.act[0].fn = form == 4 ? FRNN_TANH : FRNN_SIGMOID;
    cell.act[1].fn = cell.act[2].fn = FRNN_TANH;
    return cell;
}

/* FNV-1a of the answers of every form and format of reduced precision. test_kernel_isa.py makes the same numbers. */
static uint64_t hash_rounded(const frnn_kernels *k) {
    static const int64_t sizes[] = {1, 5, 16, 33, 70};
    uint64_t hash = 14695981039346656037u;
    seed = 1;
    for (int product = 1; k->products[product]; product++) {
        for (int form = 0; form < 5; form++) {
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                int64_t H = sizes[s], I = 37; /* NOLINT: the words of the project */
                frnn_cell cell = cell_of(form, I, H);
                float *w[5] = {numbers(4 * H * I), numbers(4 * H * H), numbers(4 * H), numbers(4 * H), numbers(3 * H)};
                float *x = numbers(ROWS * I), *h = numbers(ROWS * H), *c0 = numbers(ROWS * H), *c = numbers(ROWS * H);
                float *y = numbers(ROWS * H);
                step(k, k->products[product]->weights, cell, w, x, h, c0, c, y, ROWS);
                for (int64_t i = 0; i < ROWS * H * 4; i++) hash = (hash ^ ((uint8_t *)y)[i]) * 1099511628211u;
                for (int i = 0; i < 5; i++) free(w[i]);
                free(x), free(h), free(c0), free(c), free(y);
            }
        }
    }
    return hash;
}

static int check_cells(const frnn_kernels *neon, const frnn_kernels *plain) {
    static const int64_t sizes[] = {1, 3, 4, 5, 8, 13, 16, 20, 33, 50};
    int bad = 0;
    for (int form = 0; form < 5; form++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int64_t H = sizes[s], I = 7; /* NOLINT: the words of the project */
            frnn_cell cell = cell_of(form, I, H);
            float *w[5] = {numbers(4 * H * I), numbers(4 * H * H), numbers(4 * H), numbers(4 * H), numbers(3 * H)};
            float *x = numbers(ROWS * I), *h = numbers(ROWS * H), *c0 = numbers(ROWS * H), *c = numbers(ROWS * H);
            float *y = numbers(ROWS * H), *expected = numbers(ROWS * H), *one = numbers(ROWS * H);
            step(plain, "float32", cell, w, x, h, c0, c, expected, ROWS);
            step(neon, "float32", cell, w, x, h, c0, c, y, ROWS);
            bad |= differ("cell", ROWS * H, y, expected);
            step(neon, "float32", cell, w, x, h, c0, c, one, 1);
            bad |= memcmp(one, y, (size_t)H * sizeof(float)) != 0;
            for (int i = 0; i < 5; i++) free(w[i]);
            free(x), free(h), free(c0), free(c), free(y), free(expected), free(one);
        }
    }
    return bad;
}

static int check_functions(const frnn_kernels *neon, const frnn_kernels *plain) {
    enum { N = 1001 };
    float *x = numbers(N), *y = numbers(N), *expected = numbers(N);
    int bad = 0;
    for (int i = 0; i < N; i++) x[i] *= 20;
    for (int32_t fn = 0; fn < FRNN_ADD; fn++) {
        frnn_act act = {fn, 0.5f, 1.5f};
        plain->map(act, N, x, expected);
        neon->map(act, N, x, y);
        for (int i = 0; i < N; i++) {
            if (isnan(expected[i]) && isnan(y[i])) y[i] = expected[i] = 0;
        }
        bad |= differ(frnn_function_names()[fn], N, y, expected);
    }
    plain->softmax(7, 143, 0, x, 143, expected, 143);
    neon->softmax(7, 143, 0, x, 143, y, 143);
    bad |= differ("softmax", N, y, expected);
    plain->layer_norm(7, 143, 1e-5f, NULL, NULL, x, 143, expected, 143);
    neon->layer_norm(7, 143, 1e-5f, NULL, NULL, x, 143, y, 143);
    bad |= differ("layer_norm", N, y, expected);
    free(x), free(y), free(expected);
    return bad;
}

int main(void) {
    const frnn_kernels *const *tables = frnn_available();
    if (!tables[0] || !tables[1] || strcmp(tables[0]->isa, "neon") != 0 || strcmp(tables[1]->isa, "baseline") != 0) {
        printf("expected the tables neon and baseline\n");
        return 1;
    }
    uint64_t token = frnn_fpu_enter();
    volatile float tiny = 1e-38f;
    int flushed = tiny * 0.01f == 0;
    int bad = check_cells(tables[0], tables[1]) | check_functions(tables[0], tables[1]);
    uint64_t hash = hash_rounded(tables[0]);
    if (hash_rounded(frnn_emulated()[0]) != hash) bad |= printf("the emulated tile unit has other bits\n");
    printf("%016llx\n", (unsigned long long)hash);
    frnn_fpu_leave(token);
    if (!flushed || tiny * 0.01f == 0)
        printf("denormals: flushed inside %d, kept outside %d\n", flushed, tiny * 0.01f != 0);
    return bad || !flushed || tiny * 0.01f == 0;
}

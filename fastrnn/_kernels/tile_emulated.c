/* The tile unit in plain C, for tests on machines without AMX. It checks what the hardware checks, and ends the process
 * with a message where the hardware raises SIGILL or SIGSEGV. So that a product makes the bits of vectors, the code
 * needs a fused multiply-add, which every instruction set with reduced precision has. */
#include "tile_unit.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define FUSED __attribute__((target("avx2,fma")))
#else
#define FUSED
#endif
enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, TERMS = 16 };

static __thread struct {
    uint8_t tile[TILES][ROWS][ROW_BYTES];
    int rows[TILES], bytes[TILES], configured;
    int64_t products;
} unit;

int frnn_emulated_state(int64_t *products) {
    *products = unit.products;
    return unit.configured;
}

static void check(int good, const char *what) {
    if (good) return;
    fprintf(stderr, "fastrnn: the emulated tile unit rejects what AMX rejects: %s\n", what);
    abort();
}

static void check_tile(int t) {
    check(unit.configured, "a tile instruction before LDTILECFG or after TILERELEASE");
    check(t >= 0 && t < TILES && unit.rows[t] > 0, "a tile that the configuration leaves out");
}

void frnn_emulated_config(const frnn_tile_config *config) {
    check(!unit.configured, "LDTILECFG before the TILERELEASE of the configuration before"); /* AMX allows it */
    check(config->palette == 1 && config->start_row == 0, "a configuration that is not of palette 1");
    for (int i = 0; i < 14; i++) check(config->reserved[i] == 0, "reserved bytes of a configuration that are not 0");
    for (int t = 0; t < 16; t++) {
        int rows = config->rows[t], bytes = config->bytes[t];
        check(t < TILES || (rows == 0 && bytes == 0), "a tile beyond the eighth");
        check(rows <= ROWS && bytes <= ROW_BYTES, "a tile larger than 16 rows of 64 bytes");
        check((rows == 0) == (bytes == 0), "a tile with rows of no bytes, or bytes of no rows");
        if (t < TILES) unit.rows[t] = rows, unit.bytes[t] = bytes;
    }
    memset(unit.tile, 0, sizeof unit.tile);
    unit.configured = 1;
}

void frnn_emulated_release(void) {
    check(unit.configured, "TILERELEASE of nothing"); /* AMX allows it */
    unit.configured = 0;
}

void frnn_emulated_zero(int t) {
    check_tile(t);
    memset(unit.tile[t], 0, sizeof unit.tile[t]);
}

void frnn_emulated_load(int t, const void *from, int64_t stride) {
    frnn_emulated_zero(t);
    for (int r = 0; r < unit.rows[t]; r++) {
        memcpy(unit.tile[t][r], (const char *)from + r * stride, (size_t)unit.bytes[t]);
    }
}

void frnn_emulated_store(int t, void *to, int64_t stride) {
    check_tile(t);
    for (int r = 0; r < unit.rows[t]; r++) { memcpy((char *)to + r * stride, unit.tile[t][r], (size_t)unit.bytes[t]); }
}

static void check_product(int c, int a, int b) {
    check_tile(c), check_tile(a), check_tile(b);
    check(c != a && c != b && a != b, "a product of fewer than three tiles");
    check(unit.bytes[c] % 4 == 0 && unit.bytes[a] % 4 == 0 && unit.bytes[b] % 4 == 0, "rows of parts of a term");
    check(unit.rows[c] == unit.rows[a], "a product whose sums have other rows than its first factor");
    check(unit.bytes[a] / 4 == unit.rows[b], "a product whose factors have other numbers of terms");
    check(unit.bytes[c] == unit.bytes[b], "a product whose sums have other columns than its second factor");
    unit.products++;
}

/* The two bfloat16 of a term, as floats. */
static inline float half_of(uint32_t term, int odd) {
    uint32_t bits = odd ? term & 0xffff0000u : term << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

FUSED void frnn_emulated_dp_bf16(int c, int a, int b) {
    check_product(c, a, b);
    for (int r = 0; r < unit.rows[c]; r++) {
        uint32_t left[TERMS], right[TERMS];
        float sums[TERMS], even[TERMS] = {0}, odd[TERMS] = {0};
        memcpy(left, unit.tile[a][r], ROW_BYTES);
        memcpy(sums, unit.tile[c][r], ROW_BYTES);
        for (int k = 0; k < unit.rows[b]; k++) {
            memcpy(right, unit.tile[b][k], ROW_BYTES);
            for (int n = 0; n < TERMS; n++) {
                even[n] = __builtin_fmaf(half_of(left[k], 0), half_of(right[n], 0), even[n]);
                odd[n] = __builtin_fmaf(half_of(left[k], 1), half_of(right[n], 1), odd[n]);
            }
        }
        for (int n = 0; n < TERMS; n++) sums[n] = sums[n] + (even[n] + odd[n]);
        memcpy(unit.tile[c][r], sums, (size_t)unit.bytes[c]);
    }
}

FUSED void frnn_emulated_dp_int8(int c, int a, int b, int offset) {
    check_product(c, a, b);
    for (int r = 0; r < unit.rows[c]; r++) {
        int32_t sums[TERMS];
        memcpy(sums, unit.tile[c][r], ROW_BYTES);
        for (int k = 0; k < unit.rows[b]; k++) {
            for (int i = 0; i < 4; i++) {
                uint8_t byte = unit.tile[a][r][4 * k + i];
                int32_t left = offset ? byte : (int8_t)byte; /* TDPBUSD, or TDPBSSD */
                for (int n = 0; n < TERMS; n++) sums[n] += left * (int8_t)unit.tile[b][k][4 * n + i];
            }
        }
        memcpy(unit.tile[c][r], sums, (size_t)unit.bytes[c]);
    }
}

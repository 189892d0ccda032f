/* The tile unit of a CPU (AMX), or its emulation: which products run on it, and when.
 *
 * Eight tiles of up to 16 rows of 64 bytes. A product C += A B takes 16 terms: A has a row of x per row and a term in
 * each 4 bytes, B (the packed weights, frnn_term of blocks.h) a term per row and a column in each 4 bytes, C a sum in
 * each 4 bytes. The kernels of body_tile_unit.h are written in seven words; `t`, `c`, `a` and `b` are literal numbers:
 *     tile_config(config)       gives every tile its shape and zeroes it
 *     tile_release()            gives the tiles back
 *     tile_zero(t)              tile_load(t, from, stride)   tile_store(t, to, stride): rows are `stride` bytes apart
 *     tile_dp_bf16(c, a, b)     the chains of body_tile_bfloat16.h, two bfloat16 a term
 *     tile_dp_int8(c, a, b)     exact sums of the products of four bytes a term; those of A are FRNN_INT8_OFFSET too large
 * words_amx.h makes them of instructions, words_emulated.h of plain C.
 */
#ifndef FRNN_TILE_UNIT_H
#define FRNN_TILE_UNIT_H
#include "frnn.h"

typedef struct frnn_tile_config { /* the 64 bytes that LDTILECFG reads */
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row, for each tile */
    uint8_t rows[16];
} frnn_tile_config;

/* What a product of one number format has of its own on the tile unit; dispatch.c adds it to the product that it is
 * like. */
typedef struct frnn_tiled {
    const char *weights;
    int64_t (*rounded)(int64_t K); /* NULL: rows are rounded as for vectors */
    void (*round)(int64_t K, const float *x, float *rounded);
    void (*begin)(int64_t rows);
    void (*end)(void);
    frnn_tiles *tiles; /* of the widest width; tails of narrower ones are left to vectors */
} frnn_tiled;

/* ---- the emulated unit (tile_emulated.c): as the hardware, it ends the process at what the hardware rejects ---- */
void frnn_emulated_config(const frnn_tile_config *config);
void frnn_emulated_release(void);
void frnn_emulated_zero(int t);
void frnn_emulated_load(int t, const void *from, int64_t stride);
void frnn_emulated_store(int t, void *to, int64_t stride);
void frnn_emulated_dp_bf16(int c, int a, int b);
void frnn_emulated_dp_int8(int c, int a, int b, int offset);

/* Whether the emulated unit of this thread is configured, and how many products it has made so far. */
int frnn_emulated_state(int64_t *products);

/* ---- whether this process may use the tile unit (tile_unit.c) ---- */

enum frnn_unit_state {
    FRNN_UNIT_READY,
    FRNN_UNIT_ABSENT,  /* the CPU lacks AMX with bfloat16 and 8-bit products */
    FRNN_UNIT_OFF,     /* the operating system does not save tiles */
    FRNN_UNIT_REFUSED, /* it was asked for them and refused, with an error number */
};
/* What the machine says: CPUID leaf 1 ECX, leaf 7 EDX, XCR0 (0 if it can't be read), and Linux's answer to the request
 * for tiles: 0 or an error number. */
typedef struct frnn_unit_probe {
    void (*read)(uint32_t *ecx1, uint32_t *edx7, uint64_t *xcr0);
    int (*ask)(void);
} frnn_unit_probe;
extern frnn_unit_probe
    frnn_unit_probe_here; /* of this machine; a test puts another in its place before the first call */
/* Asks the machine once a process. */
int frnn_tile_unit(void);
/* The bits of XINUSE: what this thread has in use of the CPU's state. Bits 17 and 18: tiles. 0 if it can't be read. */
uint64_t frnn_state_in_use(void);

/* ---- when a call goes there (tile_unit.c) ---- */

/* Nanoseconds for each KiB of packed weights of one number format. Vectors take vector_load, or rows * vector_row if that
 * is more; tiles take `tile` for each FRNN_TALL_ROWS rows. */
typedef struct frnn_tile_cost {
    const char *weights;
    float vector_load, vector_row, tile;
} frnn_tile_cost;

enum { FRNN_TILE_FORMATS = 3 };
typedef struct frnn_tile_costs {
    frnn_tile_cost formats[FRNN_TILE_FORMATS];
    float call;                    /* ns of a call with tiles: to configure and release them, to store sums */
    float short_pause, long_pause; /* ns since the last tile instruction, from which on the unit sleeps */
    float short_wake, long_wake;   /* ns to wake it then */
} frnn_tile_costs;
extern frnn_tile_costs frnn_tile_costs_here; /* tests and tools/tile_costs.py replace them */

/* Which calls go to the unit: by their costs, on an emulated unit all; all; none; by their costs, on any unit. */
enum frnn_tile_way { FRNN_WAY_USUAL, FRNN_WAY_TILES, FRNN_WAY_VECTORS, FRNN_WAY_COSTS };
extern int frnn_tile_way; /* for tests */

/* The time of one thread, in ns, and what its calls would have gained by tiles since the unit fell asleep. */
typedef struct frnn_tile_clock {
    double last_tile, last_call, credit;
} frnn_tile_clock;
/* The decision for a call at `now`, which it notes in the clock. */
int frnn_tiles_chosen(const frnn_tile_cost *cost, int64_t rows, int64_t floats, double now, frnn_tile_clock *clock);

#endif

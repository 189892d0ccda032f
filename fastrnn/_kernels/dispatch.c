/* Which tables this build has and this CPU and OS can run; forms of cells, names of functions; the floating-point
 * control word. */
#include "tile_unit.h"
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define ISA(name, flags, test) extern const frnn_kernels frnn_table_##name;
#define LIKE(name, other, flags, test)                                                                                 \
    extern const frnn_kernels frnn_table_##other;                                                                      \
    extern const frnn_product *const frnn_products_##name[];
#define EMULATED(file, other, flags, test) extern const frnn_tiled frnn_tiled_##file[];
#define TILED EMULATED
#include "list_isas.h"

enum { /* every table of this build, best first */
#define ISA(name, flags, test) TABLE_##name,
#define LIKE(name, other, flags, test) TABLE_##name,
#define TILED LIKE
#define EMULATED(file, other, flags, test)
#include "list_isas.h"
       TABLES
};
enum { /* those with a tile unit */
#define ISA(name, flags, test)
#define LIKE(name, other, flags, test)
#define EMULATED(file, other, flags, test) TILED_##file,
#define TILED EMULATED
#include "list_isas.h"
       TILED_TABLES
};
enum { MOST_PRODUCTS = 8 };

/* The table of an instruction set that is like another but for the products that it has of its own. */
__attribute__((unused)) static const frnn_kernels *like(int index, const char *name, const frnn_kernels *other,
                                                        const frnn_product *const *own) {
    static frnn_kernels tables[TABLES];
    static const frnn_product *products[TABLES][MOST_PRODUCTS];
    int n = 0;
    for (; other->products[n]; n++) {
        products[index][n] = other->products[n];
        for (int i = 0; own[i]; i++) {
            if (strcmp(own[i]->weights, other->products[n]->weights) == 0) products[index][n] = own[i];
        }
    }
    products[index][n] = NULL;
    tables[index] = *other;
    tables[index].isa = name;
    tables[index].products = products[index];
    return &tables[index];
}

/* The table of another instruction set, with a tile unit for the products of these number formats. */
__attribute__((unused)) static const frnn_kernels *tiled(int index, const char *name, const frnn_kernels *other,
                                                         const frnn_tiled *own) {
    static frnn_kernels tables[TILED_TABLES + 1];
    static frnn_product made[TILED_TABLES + 1][MOST_PRODUCTS], tall[TILED_TABLES + 1][MOST_PRODUCTS];
    static const frnn_product *products[TILED_TABLES + 1][MOST_PRODUCTS];
    int n = 0;
    if (tables[index].isa) return &tables[index]; /* other threads may use it */
    for (; other->products[n]; n++) {
        frnn_product *product = &made[index][n], *unit = &tall[index][n];
        products[index][n] = product;
        *product = *other->products[n];
        for (const frnn_tiled *tiles = own; tiles->weights; tiles++) {
            if (strcmp(tiles->weights, product->weights) != 0) continue;
            if (tiles->rounded) product->rounded = tiles->rounded, product->round = tiles->round;
            *unit = *product;
            for (int nv = 0; nv <= FRNN_TILE_VECTORS; nv++) unit->rows[0][nv] = FRNN_TALL_ROWS, unit->rows[1][nv] = 0;
            unit->tiles[other->lanes / 8] = tiles->tiles;
            unit->begin = tiles->begin, unit->end = tiles->end;
            unit->emulated = strncmp(name, "amx_", 4) == 0;
            for (int i = 0; i < FRNN_TILE_FORMATS; i++) {
                const frnn_tile_cost *cost = &frnn_tile_costs_here.formats[i];
                if (strcmp(cost->weights, tiles->weights) == 0) unit->cost = cost;
            }
            product->tall = unit;
        }
    }
    products[index][n] = NULL;
    tables[index] = *other;
    tables[index].isa = name;
    tables[index].products = products[index];
    return &tables[index];
}

/* Called at import, under the GIL; later calls rewrite the same values. */
const frnn_kernels *const *frnn_compiled(void) {
    static const frnn_kernels *tables[TABLES + 1];
#define ISA(name, flags, test) tables[TABLE_##name] = &frnn_table_##name;
#define LIKE(name, other, flags, test)                                                                                 \
    tables[TABLE_##name] = like(TABLE_##name, #name, &frnn_table_##other, frnn_products_##name);
#define TILED(name, other, flags, test)
#define EMULATED(file, other, flags, test)
#include "list_isas.h"
#define ISA(name, flags, test)
#define LIKE(name, other, flags, test)
#define EMULATED(file, other, flags, test)
#define TILED(name, other, flags, test)                                                                                \
    tables[TABLE_##name] = tiled(TILED_##name, #name, tables[TABLE_##other], frnn_tiled_##name);
#include "list_isas.h"
    return tables;
}

const frnn_kernels *const *frnn_emulated(void) {
    static const frnn_kernels *tables[TILED_TABLES + 1];
    const frnn_kernels *const *all = frnn_compiled();
    int n = 0;
    (void)all;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define ISA(name, flags, test)
#define LIKE(name, other, flags, test)
#define TILED(name, other, flags, test)
#define EMULATED(file, other, flags, test)                                                                             \
    if (test) {                                                                                                        \
        const char *name = n == 0 ? "amx_emulated" : "amx_" #file;                                                     \
        tables[n++] = tiled(TILED_##file, name, all[TABLE_##other], frnn_tiled_##file);                                \
    }
#include "list_isas.h"
    tables[n] = NULL;
    return tables;
}

const frnn_kernels *const *frnn_available(void) {
    static const frnn_kernels *tables[TABLES + 1];
    const frnn_kernels *const *all = frnn_compiled();
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define ISA(name, flags, test)                                                                                         \
    if (test) tables[n++] = all[TABLE_##name];
#define LIKE(name, other, flags, test) ISA(name, flags, test)
#define TILED(name, other, flags, test) ISA(name, flags, test)
#define EMULATED(file, other, flags, test)
#include "list_isas.h"
    tables[n] = NULL;
    return tables;
}

const frnn_form *frnn_form_of(const char *kind, int32_t variant) {
    static const frnn_form forms[FRNN_FORM_COUNT] = {
#define FORM(name, update, ...) {.code = FRNN_FORM_##name, __VA_ARGS__},
#include "list_cells.h"
    };
    const frnn_form *found = NULL;
    for (int i = 0; i < FRNN_FORM_COUNT; i++) {
        if (strcmp(forms[i].kind, kind) == 0 && (!found || forms[i].variant == variant)) found = &forms[i];
    }
    return found;
}

const char *const *frnn_function_names(void) {
    static const char *const names[FRNN_FN_COUNT] = {
#define UNARY(code, name, value) name,
#define BINARY UNARY
#define TERNARY UNARY
#include "list_functions.h"
    };
    return names;
}

#if defined(__x86_64__)
#define FTZ_DAZ 0x8040u /* MXCSR: bit 15 flushes results, bit 6 reads denormals as zero */
uint64_t frnn_fpu_enter(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | FTZ_DAZ);
    return before;
}
/* Restores only the two bits: exception flags raised meanwhile stay, as after any arithmetic. */
void frnn_fpu_leave(uint64_t token) { _mm_setcsr((_mm_getcsr() & ~FTZ_DAZ) | ((unsigned)token & FTZ_DAZ)); }
#elif defined(__aarch64__)
#define FZ (1ull << 24) /* FPCR: denormal arguments and results are zero */
static uint64_t get_fpcr(void) {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
static void set_fpcr(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
uint64_t frnn_fpu_enter(void) {
    uint64_t before = get_fpcr();
    set_fpcr(before | FZ);
    return before;
}
void frnn_fpu_leave(uint64_t token) { set_fpcr((get_fpcr() & ~FZ) | (token & FZ)); }
#else
uint64_t frnn_fpu_enter(void) { return 0; } /* no known control word: denormals are computed, slower and as exact */
void frnn_fpu_leave(uint64_t token) { (void)token; }
#endif

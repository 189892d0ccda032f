/* Which tables this build has and this CPU and OS can run; forms of cells, names of functions; the floating-point
 * control word. */
#include "frnn.h"
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define ISA(name, flags, test) extern const frnn_kernels frnn_table_##name;
#include "list_isas.h"

static const frnn_kernels *const compiled[] = {
#define ISA(name, flags, test) &frnn_table_##name,
#include "list_isas.h"
    NULL};

const frnn_kernels *const *frnn_compiled(void) { return compiled; }

/* Called once, at import, under the GIL; later calls rewrite the same values. */
const frnn_kernels *const *frnn_available(void) {
    static const frnn_kernels *tables[sizeof compiled / sizeof *compiled];
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define ISA(name, flags, test)                                                                                         \
    if (test) tables[n++] = &frnn_table_##name;
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

/* Which tables this build has and this CPU and OS can run; names of functions; the floating-point control word. */
#include "frnn.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* The same guards as in the kernels_*.c files; setup.py compiles them with their flags on these architectures. */
extern const frnn_kernels frnn_table_baseline;
#if defined(__x86_64__)
extern const frnn_kernels frnn_table_avx2, frnn_table_avx512;
#elif defined(__aarch64__)
extern const frnn_kernels frnn_table_neon;
#endif

const char *const *frnn_compiled(void) {
    static const char *const names[] = {
#if defined(__x86_64__)
        "avx512", "avx2",
#elif defined(__aarch64__)
        "neon",
#endif
        "baseline", NULL};
    return names;
}

/* The compiler's cpu_supports reads CPUID and also XGETBV: it says no where the OS does not save the registers.
 * Called once, at import, under the GIL; later calls rewrite the same values. */
const frnn_kernels *const *frnn_available(void) {
    static const frnn_kernels *tables[4];
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        tables[n++] = &frnn_table_avx512;
    }
    if (avx2) tables[n++] = &frnn_table_avx2;
#elif defined(__aarch64__)
    tables[n++] = &frnn_table_neon; /* every AArch64 CPU has it */
#endif
    tables[n++] = &frnn_table_baseline;
    tables[n] = NULL;
    return tables;
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
/* Only the two bits go back: exception flags raised meanwhile stay, as after any arithmetic. */
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

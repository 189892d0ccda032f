/* Whether this process may use the tile unit of its CPU, and when a call goes there. */
#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif
#include "tile_unit.h"

/* ---- whether ---- */

#if defined(__x86_64__)
#include <cpuid.h>

static void read_bits(uint32_t *ecx1, uint32_t *edx7, uint64_t *xcr0) {
    uint32_t a, b, c, d, low, high;
    *ecx1 = *edx7 = 0, *xcr0 = 0;
    if (__get_cpuid(1, &a, &b, &c, &d)) *ecx1 = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) *edx7 = d;
    if (!(*ecx1 >> 27 & 1)) return; /* OSXSAVE: XCR0 can be read */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    *xcr0 = (uint64_t)high << 32 | low;
}
#else
static void read_bits(uint32_t *ecx1, uint32_t *edx7, uint64_t *xcr0) { *ecx1 = *edx7 = 0, *xcr0 = 0; }
#endif

#if defined(__linux__) && defined(__x86_64__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The 8 KiB of state that tiles are: all threads of the process, and of forks, may use them from then on. */
static int ask(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 0 : errno;
}
#else
static int ask(void) { return 0; } /* nothing to ask: XCR0 says it */
#endif

frnn_unit_probe frnn_unit_probe_here = {read_bits, ask};
static int unit_state = -1, unit_error;

int frnn_tile_unit(void) {
    if (unit_state >= 0) return unit_state; /* the first call is that of the import, under the GIL */
    const uint32_t wanted = 1u << 24 | 1u << 22 | 1u << 25; /* AMX-TILE, AMX-BF16, AMX-INT8 */
    const uint64_t saved = UINT64_C(3) << 17;                /* the configuration and the data of tiles */
    uint32_t ecx1, edx7;
    uint64_t xcr0;
    frnn_unit_probe_here.read(&ecx1, &edx7, &xcr0);
    if ((edx7 & wanted) != wanted) {
        unit_state = FRNN_UNIT_ABSENT;
    } else if (!(ecx1 >> 27 & 1) || (xcr0 & saved) != saved) {
        unit_state = FRNN_UNIT_OFF;
    } else {
        unit_error = frnn_unit_probe_here.ask();
        unit_state = unit_error ? FRNN_UNIT_REFUSED : FRNN_UNIT_READY;
    }
    return unit_state;
}

int frnn_tile_refusal(void) { return frnn_tile_unit() == FRNN_UNIT_OFF ? -1 : unit_error; }

/* ---- when ---- */

int frnn_tiles_pay(const frnn_product *product, int64_t rows, int64_t floats) {
    (void)product, (void)rows, (void)floats;
    return 1;
}

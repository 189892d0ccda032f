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

uint64_t frnn_state_in_use(void) {
#if defined(__x86_64__)
    uint32_t ecx1, edx7, a = 0, b, c, d = 0;
    uint64_t xcr0;
    read_bits(&ecx1, &edx7, &xcr0);
    if (!(ecx1 >> 27 & 1) || !__get_cpuid_count(0xd, 1, &a, &b, &c, &d) || !(a >> 2 & 1)) return 0; /* XGETBV of 1 */
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
    return (uint64_t)d << 32 | a;
#else
    return 0;
#endif
}

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

/* ---- when ----
 * Both ways give the same bits, so a call takes the cheaper one. The unit sleeps: waking it costs more than a small call
 * gains. So calls in a row first add up what they would have gained, and wake it when that pays for waking: at worst they
 * lose as much again. After a long pause they begin anew. */

/* A Xeon of the Granite Rapids class (2 MiB of L2 a core), weights in L2. int8-a16 by tiles was not measured. */
frnn_tile_costs frnn_tile_costs_here = {
    .formats = {{"bfloat16", 12.3f, 7.0f, 9.0f}, {"int8", 6.6f, 3.3f, 8.0f}, {"int8-a16", 7.9f, 6.6f, 13.0f}},
    .call = 100.0f,
    .short_pause = 800.0f,
    .long_pause = 200e3f,
    .short_wake = 300.0f,
    .long_wake = 5000.0f,
};
int frnn_tile_way = FRNN_WAY_USUAL;

int frnn_tiles_chosen(const frnn_tile_cost *cost, int64_t rows, int64_t floats, double now, frnn_tile_clock *clock) {
    const frnn_tile_costs *costs = &frnn_tile_costs_here;
    const double kib = (double)floats / 256, idle = now - clock->last_tile;
    const double row = (double)rows * cost->vector_row;
    const double vectors = kib * (row > cost->vector_load ? row : cost->vector_load);
    const double tiles = costs->call + kib * cost->tile * (double)((rows + FRNN_TALL_ROWS - 1) / FRNN_TALL_ROWS);
    const double wake = idle < costs->short_pause ? 0 : idle < costs->long_pause ? costs->short_wake : costs->long_wake;
    if (now - clock->last_call >= costs->long_pause) clock->credit = 0;
    clock->last_call = now;
    if (vectors <= tiles) return 0;
    clock->credit += vectors - tiles;
    if (clock->credit < wake) return 0;
    clock->credit = 0;
    clock->last_tile = now;
    return 1;
}

#if defined(__x86_64__)
/* About the time, in ns: the clock of the CPU by the frequency that it names, or by 2 GHz. */
static double now(void) {
    static double tick;
    if (tick == 0) {
        uint32_t a = 0, b = 0, c = 0, d = 0;
        double hertz = 2e9;
        if (__get_cpuid_count(0x15, 0, &a, &b, &c, &d) && a && b && c) {
            hertz = (double)c * b / a;
        } else if (__get_cpuid_count(0x16, 0, &a, &b, &c, &d) && (a & 0xffff)) {
            hertz = 1e6 * (a & 0xffff);
        }
        tick = 1e9 / hertz;
    }
    return (double)__builtin_ia32_rdtsc() * tick;
}
#else
static double now(void) { return 0; } /* no other CPU has a unit but the emulated one */
#endif

int frnn_tiles_pay(const frnn_product *product, int64_t rows, int64_t floats) {
    static __thread frnn_tile_clock clock;
    if (frnn_tile_way == FRNN_WAY_TILES || frnn_tile_way == FRNN_WAY_VECTORS) return frnn_tile_way == FRNN_WAY_TILES;
    if (product->tall->emulated && frnn_tile_way == FRNN_WAY_USUAL) return 1;
    return frnn_tiles_chosen(product->tall->cost, rows, floats, now(), &clock);
}

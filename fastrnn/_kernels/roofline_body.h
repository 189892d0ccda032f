/* The two loops, included once an instruction set by roofline.c, which defines
 *     PROBE(name)            this instruction set's name for a function or type
 *     PROBE_TARGET           function attribute that allows its instructions, or nothing
 *     PROBE_BYTES            bytes of its vectors
 *     PROBE_FMA(a, b, c)     a * b + c, in one instruction where it has one
 *     PROBE_TWICE            1: it has 32 registers, so 24 sums; 0: 12. A multiply-add takes 4 or 5 cycles and 2 (NEON
 *                            machines: up to 4) start a cycle: fewer sums than their product would wait for each other.
 */
typedef float PROBE(probe_vec) __attribute__((vector_size(PROBE_BYTES), may_alias));
typedef int32_t PROBE(probe_int) __attribute__((vector_size(PROBE_BYTES), may_alias));

#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define DECLARE(i)                                                                                                     \
    PROBE(probe_vec) a##i = zero + (float)i;                                                                           \
    PROBE(probe_vec) b##i = zero - (float)i;
#define ADVANCE(i) a##i = PROBE_FMA(a##i, factor, term);
#define ADVANCE_TWICE(i) b##i = PROBE_FMA(b##i, factor, term);
#define GATHER(i) zero += a##i + b##i;

PROBE_TARGET static float PROBE(probe_fma)(int64_t repeats) {
    PROBE(probe_vec) zero = {0};
    /* Sums tend to term / (1 - factor) = 2: never denormal, never infinite, and no compiler knows it. */
    volatile float half = 0.5f;
    const PROBE(probe_vec) factor = zero + half, term = zero + 2.0f * half;
    EACH(DECLARE)
    for (int64_t r = 0; r < repeats; r++) {
        EACH(ADVANCE)
#if PROBE_TWICE
        EACH(ADVANCE_TWICE)
#endif
    }
    EACH(GATHER)
    float sum = 0.0f;
    for (int k = 0; k < (int)(PROBE_BYTES / sizeof(float)); k++) { sum += zero[k]; }
    return sum;
}

#define ONE(i) s##i |= p[i];
#define EACH8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define ZERO(i) PROBE(probe_int) s##i = {0};

/* `or` needs no floating point unit and is never slower than the load that feeds it. */
PROBE_TARGET static int32_t PROBE(probe_read)(const void *data, size_t size, int64_t repeats, size_t ahead) {
    EACH8(ZERO)
    for (int64_t r = 0; r < repeats; r++) {
        const PROBE(probe_int) *p = (const PROBE(probe_int) *)data;
        const PROBE(probe_int) *end = (const PROBE(probe_int) *)((const char *)data + size);
        if (ahead == 0) {
            for (; p < end; p += 8) { EACH8(ONE) }
        } else {
            for (; p < end; p += 8) {
                for (size_t line = 0; line < 8 * PROBE_BYTES; line += 64) {
                    __builtin_prefetch((const char *)p + ahead + line);
                }
                EACH8(ONE)
            }
        }
        /* The next round reads the same bytes: the compiler must not know. */
        __asm__ volatile("" ::: "memory");
    }
    PROBE(probe_int) all = s0 | s1 | s2 | s3 | s4 | s5 | s6 | s7;
    int32_t sum = 0;
    for (int k = 0; k < (int)(PROBE_BYTES / sizeof(int32_t)); k++) { sum |= all[k]; }
    return sum;
}

static const frnn_probe PROBE(probe_table) = {
    PROBE_NAME,
    (PROBE_TWICE ? 24 : 12) * 2 * (int64_t)(PROBE_BYTES / sizeof(float)),
    PROBE(probe_fma),
    PROBE(probe_read),
};

#undef EACH
#undef DECLARE
#undef ADVANCE
#undef ADVANCE_TWICE
#undef GATHER
#undef ONE
#undef EACH8
#undef ZERO
#undef PROBE
#undef PROBE_NAME
#undef PROBE_TARGET
#undef PROBE_BYTES
#undef PROBE_FMA
#undef PROBE_TWICE

/* The limits of this machine: multiply-adds and bytes read per second, by one thread. Two loops that do nothing
 * else, so that a kernel's time can be compared with the minimum time for its work. */

/* As many sums as a tile has: a multiply-add takes 4 or 5 cycles and 2 (NEON machines: up to 4) start per cycle, so
 * fewer sums than their product would wait for each other. */
static float frnn_probe_fma(int64_t repeats) {
    /* Sums tend to term / (1 - factor) = 2: never denormal, never infinite, and unknown to the compiler. */
    volatile float half = 0.5f;
    const vec factor = vec_splat(half), term = vec_splat(2.0f * half);
    vec sums[FRNN_TILE_SUMS], all = vec_splat(0.0f);
#pragma GCC unroll 24
    for (int i = 0; i < FRNN_TILE_SUMS; i++) sums[i] = vec_splat((float)i);
    for (int64_t r = 0; r < repeats; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < FRNN_TILE_SUMS; i++) sums[i] = vec_fma(sums[i], factor, term);
    }
#pragma GCC unroll 24
    for (int i = 0; i < FRNN_TILE_SUMS; i++) all += sums[i];
    float sum = 0.0f;
    for (int k = 0; k < VEC_W; k++) sum += all[k];
    return sum;
}

#define FRNN_STREAMS 8 /* loads that don't wait for each other */

/* `or` needs no floating point unit and is never slower than the load that feeds it. */
static int32_t frnn_probe_read(const void *data, size_t size, int64_t repeats, size_t ahead) {
    vec_int s[FRNN_STREAMS], v;
#pragma GCC unroll 8
    for (int i = 0; i < FRNN_STREAMS; i++) s[i] = (vec_int)vec_splat(0.0f);
    for (int64_t r = 0; r < repeats; r++) {
        const char *p = (const char *)data, *end = p + size;
        for (; p < end; p += FRNN_STREAMS * sizeof(vec)) {
            for (size_t line = 0; ahead > 0 && line < FRNN_STREAMS * sizeof(vec); line += 64) {
                __builtin_prefetch(p + ahead + line);
            }
#pragma GCC unroll 8
            for (int i = 0; i < FRNN_STREAMS; i++) {
                memcpy(&v, p + i * sizeof(vec), sizeof v);
                s[i] |= v;
            }
        }
        /* The next round reads the same bytes: the compiler must not know. */
        __asm__ volatile("" ::: "memory");
    }
#pragma GCC unroll 8
    for (int i = 1; i < FRNN_STREAMS; i++) s[0] |= s[i];
    int32_t all = 0;
    for (int k = 0; k < VEC_W; k++) all |= s[0][k];
    return all;
}
#undef FRNN_STREAMS

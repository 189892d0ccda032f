/* The probes of all instruction sets: compiled with plain flags, each function allowed its own instructions by an
 * attribute, so that one file serves. Contracts are in roofline.h, the loops in roofline_body.h. */
#include "roofline.h"

#include <string.h>

#define PROBE(name) name##_baseline
#define PROBE_NAME "baseline"
#define PROBE_TARGET
#define PROBE_BYTES 16
#define PROBE_FMA(a, b, c) ((a) * (b) + (c))
#define PROBE_TWICE 0
#include "roofline_body.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PROBE(name) name##_avx2
#define PROBE_NAME "avx2"
#define PROBE_TARGET __attribute__((target("avx2,fma")))
#define PROBE_BYTES 32
#define PROBE_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define PROBE_TWICE 0
#include "roofline_body.h"

#define PROBE(name) name##_avx512
#define PROBE_NAME "avx512"
#define PROBE_TARGET __attribute__((target("avx512f")))
#define PROBE_BYTES 64
#define PROBE_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define PROBE_TWICE 1
#include "roofline_body.h"
#endif

#if defined(__aarch64__)
#include <arm_neon.h>

#define PROBE(name) name##_neon
#define PROBE_NAME "neon"
#define PROBE_TARGET
#define PROBE_BYTES 16
#define PROBE_FMA(a, b, c) ((probe_vec_neon)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define PROBE_TWICE 1
#include "roofline_body.h"
#endif

const frnn_probe *frnn_probe_of(const char *isa) {
    if (strcmp(isa, "baseline") == 0) { return &probe_table_baseline; }
#if defined(__x86_64__)
    /* libgcc and compiler-rt ask the operating system too: without saved registers these say no. */
    __builtin_cpu_init();
    if (strcmp(isa, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &probe_table_avx2;
    }
    if (strcmp(isa, "avx512") == 0 && __builtin_cpu_supports("avx512f")) { return &probe_table_avx512; }
#endif
#if defined(__aarch64__)
    if (strcmp(isa, "neon") == 0) { return &probe_table_neon; }
#endif
    return NULL;
}

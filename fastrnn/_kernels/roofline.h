/* What this machine can do at the most: multiply-adds a second, and bytes read a second, by one thread.
 *
 * Measured with loops that do nothing else, so that a kernel's time can be set beside the least time that its work
 * could take. Not part of any model's path.
 */
#ifndef FRNN_ROOFLINE_H
#define FRNN_ROOFLINE_H

#include <stddef.h>
#include <stdint.h>

typedef struct frnn_probe {
    const char *isa; /* the names of frnn_kernels tables: "baseline" "avx2" "avx512" "neon" */
    int64_t flops;   /* floating point operations of one `fma` of one repeat: a multiply-add is two */
    /* `repeats` rounds of independent multiply-adds on registers; returns a number that depends on all of them. */
    float (*fma)(int64_t repeats);
    /* Reads bytes [0, size) `repeats` times, in order; data 64-byte aligned, size a multiple of 1024. `ahead`: bytes
     * by which a software prefetch runs ahead, 0 for none. Returns a number that depends on every byte. */
    int32_t (*read)(const void *data, size_t size, int64_t repeats, size_t ahead);
} frnn_probe;

/* The probe of an instruction set by its name; NULL where this build or this CPU has none. */
const frnn_probe *frnn_probe_of(const char *isa);

#endif

# Part of _ops.pyx: the loop over the steps of a cycle. Its body is a list of ops like any other, bound to step 0; what
# differs from step to step are offsets alone, each by as much from one step to the next.

cdef void move(const int64_t *integers, const LoopArgs *a, int64_t steps) noexcept nogil:
    """Add `steps` times its distance to each offset of the body. They belong to the scratch, which one call at a time
    uses; ops take them as constant, and so does everyone but this function."""
    cdef int64_t m
    cdef const int64_t *pair = integers + a.moves
    for m in range(a.n_moves):
        (<int64_t *> integers)[pair[2 * m]] += steps * pair[2 * m + 1]


cdef int run_loop(const LoopArgs *a, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
                  int64_t *bad) noexcept nogil:
    """All steps of a cycle. kinds, starts: from the loop's op on. Returns -1, or which op from there on failed."""
    cdef int64_t t
    cdef int failed
    for t in range(a.steps):
        failed = walk(a.count, kinds + a.body, starts + a.body, integers, f, bad)
        if failed >= 0:
            move(integers, a, -t)
            return <int> a.body + failed
        if f.halted:
            move(integers, a, -t)
            return -1
        move(integers, a, 1)
    move(integers, a, -a.steps)
    return -1

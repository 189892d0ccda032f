"""The table of ops, for the modules that add rows to it and for those that walk plans."""

from libc.stdint cimport int32_t, int64_t

from fastrnn.ops._frame cimport Frame

cdef enum:
    DONE = -1  # an op returns this on success

# Runs an op. args: its struct, bound to sizes. Returns DONE, or the failed op counted from this one (0: this one), with
# the offending integer in f.bad.
ctypedef int (*run_fn)(const int64_t *args, Frame *f) noexcept nogil
# Says what was wrong with the offending integer.
ctypedef object (*explain_fn)(const int64_t *args, int64_t bad)

cdef void number(void *structs, size_t size) noexcept
cdef int add_op(str kind, dict struct, run_fn run, explain_fn explain) except -1
cdef int walk(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
              int64_t *bad) noexcept nogil
cdef object explain(int32_t kind, const int64_t *integers, int64_t bad)

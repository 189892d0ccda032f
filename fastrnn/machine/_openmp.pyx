# cython: language_level=3
"""OpenMP's workers for calls. Importing this module loads libgomp; it fails where libgomp is missing."""

from fastrnn.machine._isa cimport frnn_join_fn, use_openmp

cdef extern from "openmp.h" nogil:
    void frnn_openmp_region(int threads) noexcept
    void frnn_openmp_joins(frnn_join_fn join) noexcept

cdef frnn_join_fn join = use_openmp(frnn_openmp_region)
if join == NULL:
    raise ImportError("the handler of forks can't be set, or this process was forked from one that had it")
frnn_openmp_joins(join)

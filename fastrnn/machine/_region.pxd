"""Memory that grows without being copied; see _region.pyx."""


cdef class Region:
    cdef void *data  # zeros where nothing was written; NULL before the first `grow`
    cdef readonly size_t bytes
    cdef size_t mapped  # bytes of the mapping; 0: the memory is the allocator's
    cdef bint huge

    cdef int grow(self, size_t bytes) except -1
    cdef Region enlarged(self, size_t bytes, size_t used)
    cdef int _map(self, size_t bytes) except -1
    cdef int _remap(self, size_t bytes) except -1
    cdef void _take(self, void *data, size_t mapped) noexcept

# cython: language_level=3
"""Memory that grows without being copied: the system moves its pages to where there is room.

A table of a pool with a million streams takes 8 MB, its states some hundred. Copying them would stop the pool for tens
to hundreds of milliseconds, and need both copies at once. Moving the pages of 512 MB takes 0.15 ms.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.string cimport memcpy

from ..errors import FastRNNMemoryError

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    #include <sys/mman.h>
    #ifndef MAP_ANONYMOUS
    #define MAP_ANONYMOUS MAP_ANON
    #endif

    static void *frnn_map(size_t bytes, int huge) {
        void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) return NULL;
    #ifdef MADV_HUGEPAGE
        if (huge) (void)madvise(data, bytes, MADV_HUGEPAGE);
    #else
        (void)huge;
    #endif
        return data;
    }

    static void *frnn_remap(void *data, size_t old, size_t bytes, size_t used, int huge) {
    #ifdef MREMAP_MAYMOVE
        (void)used;
        void *moved = mremap(data, old, bytes, MREMAP_MAYMOVE);
        if (moved == MAP_FAILED) return NULL;
    #ifdef MADV_HUGEPAGE
        if (huge) (void)madvise(moved, bytes, MADV_HUGEPAGE);
    #endif
        return moved;
    #else /* a system that can't move pages */
        void *moved = frnn_map(bytes, huge);
        if (moved == NULL) return NULL;
        memcpy(moved, data, used);
        munmap(data, old);
        return moved;
    #endif
    }
    """
    void *frnn_map(size_t bytes, int huge)
    void *frnn_remap(void *data, size_t old, size_t bytes, size_t used, int huge)
    int munmap(void *data, size_t bytes)

cdef size_t LEAST_MAPPED = 1 << 20  # bytes; smaller memory is the allocator's: a process may have 65,530 mappings
cdef size_t PAGE = 1 << 16  # a multiple of the page size of every system
cdef size_t LEAST_HUGE = 4 << 20  # bytes for which huge pages pay; NumPy's number


cdef class Region:
    """Memory of a size that can increase. Memory that was never written is zero, and takes none of the machine's.

    huge : ask for huge pages if it is large; for memory that is used in no order
    """

    def __init__(self, bint huge=False):
        self.huge = huge

    def __dealloc__(self):
        if self.mapped:
            munmap(self.data, self.mapped)
        else:
            PyMem_Free(self.data)

    cdef int grow(self, size_t bytes) except -1:
        """Increase the size to `bytes`; what was written stays. The address may change.

        Raises FastRNNMemoryError, with nothing changed.
        """
        cdef void *data
        if self.data != NULL and bytes <= self.bytes:
            return 0
        if self.mapped:
            self._remap(bytes)
        elif bytes >= LEAST_MAPPED:
            self._map(bytes)
        else:
            data = PyMem_Calloc(bytes if bytes else 1, 1)
            if data == NULL:
                raise FastRNNMemoryError(f"not enough memory for {bytes} bytes of a pool")
            self._take(data, 0)
        self.bytes = bytes
        return 0

    cdef Region enlarged(self, size_t bytes, size_t used):
        """Another region with a copy of the first `used` bytes, for one that others still look at."""
        cdef Region other = Region(self.huge)
        other.grow(bytes)
        memcpy(other.data, self.data, used)
        return other

    cdef int _map(self, size_t bytes) except -1:
        cdef size_t mapped = (bytes + PAGE - 1) // PAGE * PAGE
        cdef void *data = NULL
        if mapped >= bytes:  # else the sum is too large for a size_t
            data = frnn_map(mapped, self.huge and bytes >= LEAST_HUGE)
        if data == NULL:
            raise FastRNNMemoryError(f"not enough memory for {bytes} bytes of a pool")
        self._take(data, mapped)
        return 0

    cdef int _remap(self, size_t bytes) except -1:
        cdef size_t mapped = (bytes + PAGE - 1) // PAGE * PAGE
        cdef void *data = NULL
        if mapped >= bytes:
            data = frnn_remap(self.data, self.mapped, mapped, self.bytes, self.huge and bytes >= LEAST_HUGE)
        if data == NULL:
            raise FastRNNMemoryError(f"not enough memory for {bytes} bytes of a pool")
        self.data, self.mapped = data, mapped
        return 0

    cdef void _take(self, void *data, size_t mapped) noexcept:
        """Replace the allocator's memory by other memory, with the same bytes."""
        if self.data != NULL:
            memcpy(data, self.data, self.bytes)
            PyMem_Free(self.data)
        self.data, self.mapped = data, mapped

"""The recurrent op: all steps of one direction of one layer."""

from libc.stdint cimport int64_t

from fastrnn.runtime._frame cimport Frame


cdef struct CellArgs:
    int64_t cell, steps, rows, reverse
    int64_t x_buffer, x_offset, x_time, x_row
    int64_t y_buffer, y_offset, y_time, y_row  # y_buffer -1: y is not stored
    int64_t lengths_buffer, lengths_offset, lengths_stride  # lengths_buffer -1: all rows have `steps` steps
    int64_t mask_buffer, mask_offset, mask_time, mask_row  # floats; mask_buffer -1: no step is left out
    int64_t per_slot, h_state, c_state  # per_slot rows share a slab row; 0: h_state, c_state are buffers of this call
    # pre: room for the input half of some steps, of up to hoisted_rows rows (0: none); capacity in floats
    int64_t scratch, pre, pre_capacity, hoisted_rows


cdef int check_lengths(const CellArgs *a, Frame *f, int64_t *bad) noexcept nogil
cdef void run_cell(const CellArgs *a, Frame *f) noexcept nogil

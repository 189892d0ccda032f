"""Windows over one or two spatial axes, as ops read them. A convolution of one spatial axis has a first axis of size 1.
Declarations and inline code only."""

from libc.stdint cimport int64_t


cdef struct Window:  # output position (h, w) reads x at (h * stride_h - pad_h + i * dilation_h, ..), i < taps_h
    int64_t batch, x_buffer, x_offset, x_batch, x_h, x_w, in_h, in_w
    int64_t y_buffer, y_offset, y_batch, y_h, y_w, out_h, out_w
    int64_t taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w


cdef enum:
    PARTS = 8  # pieces of a convolution that threads may run at once, each with scratch of its own


cdef inline int64_t span_h(const Window *w, int64_t rows) noexcept nogil:
    """Rows of the input that so many rows of the output read."""
    return (rows - 1) * w.stride_h + (w.taps_h - 1) * w.dilation_h + 1


cdef inline int64_t span_w(const Window *w, int64_t columns) noexcept nogil:
    return (columns - 1) * w.stride_w + (w.taps_w - 1) * w.dilation_w + 1

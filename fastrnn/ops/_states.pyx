# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Ops on states: loaded, stored, kept from call to call; a stream's step numbers."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastrnn.machine._isa cimport FRNN_ADD, FRNN_MAX
from fastrnn.ops._frame cimport Frame, at, state_row, steps_seen
from fastrnn.ops._walk cimport DONE, add_op, number

cdef struct StateArgs:
    int64_t tensor_buffer, tensor_offset, rows, size, row, per_slot, state

cdef struct RunningArgs:
    int64_t fn, mean, steps, rows, size, x_buffer, x_offset, x_time, x_row, y_buffer, y_offset, y_row, per_slot, state

cdef struct TailArgs:  # row, size, shift, state: in floats; shift: the steps that are new
    int64_t buffer, rows, row, size, shift, per_slot, state

cdef struct StepsArgs:
    int64_t rows, count, start, y_buffer, y_offset, y_row, y_step, position  # position -1: count from start only

cdef struct AdvanceArgs:
    int64_t rows, count, position


cdef int run_state_load(const int64_t *args, Frame *f) noexcept nogil:
    """Copy rows of a tensor to states."""
    cdef const StateArgs *a = <const StateArgs *> args
    cdef int64_t r
    cdef const float *tensor = at(f, a.tensor_buffer, a.tensor_offset)
    for r in range(a.rows):
        memcpy(state_row(f, a.per_slot, a.state, a.size, r), tensor + r * a.row, a.size * sizeof(float))
    return DONE


cdef int run_state_store(const int64_t *args, Frame *f) noexcept nogil:
    """Copy states to rows of a tensor."""
    cdef const StateArgs *a = <const StateArgs *> args
    cdef int64_t r
    cdef float *tensor = at(f, a.tensor_buffer, a.tensor_offset)
    for r in range(a.rows):
        memcpy(tensor + r * a.row, state_row(f, a.per_slot, a.state, a.size, r), a.size * sizeof(float))
    return DONE


cdef inline double combine(int64_t fn, double so_far, double x, bint first) noexcept nogil:
    """One more value of a sum, largest or smallest; a NaN stays."""
    if first:
        return x
    if fn == FRNN_ADD:
        return so_far + x
    if so_far != so_far or x != x:
        return so_far + x
    if fn == FRNN_MAX:
        return x if x > so_far else so_far
    return x if x < so_far else so_far


cdef int run_running(const int64_t *args, Frame *f) noexcept nogil:
    """Sum, mean, max or min over all steps so far. The state of a row is `size` float64 and a count. float64, because a
    stream has no end, and a float32 sum of ones stops growing at 2^24."""
    cdef const RunningArgs *a = <const RunningArgs *> args
    cdef int64_t r, t, i
    cdef const float *x
    cdef float *y
    cdef float *state
    cdef double value, count
    for r in range(a.rows):
        state = state_row(f, a.per_slot, a.state, 2 * a.size + 2, r)
        memcpy(&count, state + 2 * a.size, sizeof(double))
        x = at(f, a.x_buffer, a.x_offset) + r * a.x_row
        y = at(f, a.y_buffer, a.y_offset) + r * a.y_row
        for i in range(a.size):
            memcpy(&value, state + 2 * i, sizeof(double))
            if count == 0 and a.steps == 0 and a.fn != FRNN_ADD:  # of no steps, as in ONNX
                value = -INFINITY if a.fn == FRNN_MAX else INFINITY
            for t in range(a.steps):
                value = combine(a.fn, value, x[t * a.x_time + i], count + t == 0)
            memcpy(state + 2 * i, &value, sizeof(double))
            y[i] = <float> (value / (count + a.steps) if a.mean else value)
        count += a.steps
        memcpy(state + 2 * a.size, &count, sizeof(double))
    return DONE


cdef int run_tail(const int64_t *args, Frame *f) noexcept nogil:
    """Copy the kept steps of each row in front of its new ones; then keep the last steps of both."""
    cdef const TailArgs *a = <const TailArgs *> args
    cdef int64_t r
    cdef float *row
    cdef float *state
    for r in range(a.rows):
        row = (<float *> f.base[a.buffer]) + r * a.row
        state = state_row(f, a.per_slot, a.state, a.size, r)
        memcpy(row, state, a.size * sizeof(float))
        memcpy(state, row + a.shift, a.size * sizeof(float))
    return DONE


cdef int run_steps(const int64_t *args, Frame *f) noexcept nogil:
    cdef const StepsArgs *a = <const StepsArgs *> args
    cdef int64_t r, i, first
    cdef int64_t *y = (<int64_t *> f.base[a.y_buffer]) + a.y_offset
    for r in range(a.rows):
        first = a.start + (steps_seen(f, a.position, r) if a.position >= 0 else 0)
        for i in range(a.count):
            y[r * a.y_row + i * a.y_step] = first + i
    return DONE


cdef int run_advance(const int64_t *args, Frame *f) noexcept nogil:
    """Add `count` steps to the count of every stream of the call."""
    cdef const AdvanceArgs *a = <const AdvanceArgs *> args
    cdef int64_t r, seen
    for r in range(a.rows):
        seen = steps_seen(f, a.position, r) + a.count
        memcpy(state_row(f, 1, a.position, 2, r), &seen, sizeof(int64_t))
    return DONE


cdef union Args:
    StateArgs state
    RunningArgs running
    TailArgs tail
    StepsArgs steps
    AdvanceArgs advance

cdef Args args
number(&args, sizeof(args))
add_op("state_load", args.state, run_state_load, NULL)
add_op("state_store", args.state, run_state_store, NULL)
add_op("running", args.running, run_running, NULL)
add_op("tail", args.tail, run_tail, NULL)
add_op("steps", args.steps, run_steps, NULL)
add_op("advance", args.advance, run_advance, NULL)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The recurrent op: the loop over the steps of one direction of one layer, without the GIL.

A step reads h where the step before wrote it and calls the kernel table; rows end early where lengths say so, and sit a
step out where the mask says so; the input half is summed ahead for many steps at once; threads share the units or the
rows of a step.
"""

from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from fastrnn.runtime._frame cimport Frame, at, halt, state_row
from fastrnn.machine._isa cimport fpu_enter, fpu_leave, frnn_cell, frnn_cell_io, team_for, team_size

DEF ALIGN = 64
DEF CHUNKS = 4  # chunks a thread that a step is cut into: a worker that wakes late still finds some
# Operations of a step from which on threads share it (100 steps, one row, two threads over one): LSTM 64, 65 thousand a
# step, lost at 0.81x; LSTM 256, a million, gains.
DEF SHARED_WORK = 500_000
DEF SHARED_AHEAD = 8_000_000  # the same of the input half of many steps, between which the other thread falls asleep
DEF ROWS_WORK = 400_000_000  # operations of a step between two looks for signals
DEF TILE_ROWS = 6  # rows of the widest tile: cutting it wastes registers


cdef struct CellRows:  # one entry a row, longest first
    const float **x
    float **h
    float **c
    float **y
    float **state
    int64_t *length
    const float **mask  # each row's first step; NULL: no step is left out


cdef int check_lengths(const CellArgs *a, Frame *f, int64_t *bad) noexcept nogil:
    """Returns -1, with the length in `bad`, where one lies outside the steps: no kernel may see it."""
    cdef const int64_t *lengths
    cdef int64_t r
    if a.lengths_buffer < 0:
        return 0
    lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    for r in range(a.rows):
        if lengths[r * a.lengths_stride] < 0 or lengths[r * a.lengths_stride] > a.steps:
            bad[0] = lengths[r * a.lengths_stride]
            return -1
    return 0


cdef void cell_rows(const CellArgs *a, const frnn_cell *cell, Frame *f, CellRows *rows) noexcept nogil:
    """Point `rows` into the scratch and fill it: each row's first x and y, its states and its length; longest first."""
    cdef char *memory = <char *> f.base[a.scratch]
    cdef int64_t n = a.rows, r, i, length, first
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef const int64_t *lengths = NULL
    rows.x = <const float **> memory
    rows.h = <float **> (rows.x + n)
    rows.c = rows.h + n
    rows.y = rows.c + n
    rows.state = rows.y + n
    rows.length = <int64_t *> (rows.state + n)
    rows.mask = NULL if a.mask_buffer < 0 else <const float **> (rows.length + n)
    if a.lengths_buffer >= 0:
        lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    for r in range(n):
        length = a.steps
        if lengths != NULL:
            length = lengths[r * a.lengths_stride]
        i = r  # insertion sort: rows come in any order, and a step works on the first ones that are still alive
        while lengths != NULL and i > 0 and rows.length[i - 1] < length:
            rows.x[i], rows.c[i], rows.y[i] = rows.x[i - 1], rows.c[i - 1], rows.y[i - 1]
            rows.state[i], rows.length[i] = rows.state[i - 1], rows.length[i - 1]
            if rows.mask != NULL:
                rows.mask[i] = rows.mask[i - 1]
            i -= 1
        first = (length - 1) if a.reverse and length > 0 else 0
        rows.length[i] = length
        rows.x[i] = x + r * a.x_row + first * a.x_time
        if rows.mask != NULL:
            rows.mask[i] = at(f, a.mask_buffer, a.mask_offset) + r * a.mask_row + first * a.mask_time
        rows.state[i] = state_row(f, a.per_slot, a.h_state, cell.H, r)
        rows.c[i] = state_row(f, a.per_slot, a.c_state, cell.H, r) if cell.kind == 1 else NULL
        if a.y_buffer >= 0:
            rows.y[i] = at(f, a.y_buffer, a.y_offset) + r * a.y_row + first * a.y_time
            if length < a.steps:
                clear_steps(a, cell.H, at(f, a.y_buffer, a.y_offset) + r * a.y_row, length)


cdef void clear_steps(const CellArgs *a, int64_t H, float *y, int64_t length) noexcept nogil:
    """y is zero at the steps that a row does not have."""
    cdef int64_t t
    for t in range(length, a.steps):
        memset(y + t * a.y_time, 0, H * sizeof(float))


cdef int64_t present_rows(const CellArgs *a, int64_t H, const CellRows *rows, int64_t alive, int64_t t, int64_t y_time,
                          CellRows *present) noexcept nogil:
    """Gather in `present` the rows of which step t counts, and return how many: the kernel sees no others. The others
    keep their states, and repeat h as this step's y."""
    cdef int64_t n = 0, r, now = t * y_time, before = (t - 1) * y_time
    cdef int64_t m = t * (-a.mask_time if a.reverse else a.mask_time)
    if a.y_buffer < 0:
        now, before = (t & 1) * y_time, ((t - 1) & 1) * y_time
    for r in range(alive):
        if rows.mask[r][m] == 0.0:
            memcpy(rows.y[r] + now, rows.state[r] if t == 0 else rows.y[r] + before, H * sizeof(float))
            continue
        present.x[n], present.c[n], present.y[n] = rows.x[r], rows.c[r], rows.y[r]
        present.state[n] = rows.state[r]
        n += 1
    return n


cdef struct Hoisted:  # the input half, summed ahead for the steps before `end`, of `rows` rows each
    int64_t end, rows, size  # size: floats of one row of pre
    const float **x
    float *pre


# ---- sharing a step among threads: by blocks of hidden units (each core then keeps its part of R), or by rows ----

cdef struct StepLoop:
    Frame *f
    const frnn_cell *cell
    const frnn_cell_io *io
    const Hoisted *ahead
    int64_t phase, first, rows, blocks  # rows from `first` on
    bint by_rows


cdef void step_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const StepLoop *s = <const StepLoop *> context
    cdef int64_t row0 = s.first, row1 = s.first + s.rows, block0 = 0, block1 = s.blocks
    cdef uint64_t token = fpu_enter()
    if s.by_rows:
        row0, row1 = s.first + s.rows * chunk // chunks, s.first + s.rows * (chunk + 1) // chunks
    else:
        block0, block1 = s.blocks * chunk // chunks, s.blocks * (chunk + 1) // chunks
    if s.ahead != NULL:
        s.f.table.cell_input(s.cell, s.ahead.x, 0, s.ahead.pre, s.ahead.rows, row0, row1, block0, block1)
    else:
        s.f.table.cell_step(s.cell, s.io, s.phase, row0, row1, block0, block1)
    fpu_leave(token)


cdef void share(StepLoop *s) noexcept nogil:
    """Run one step (or one hoisted input half), by as many threads as the call has. Where signals are looked for, a
    step of very many rows is cut into parts of some 10 ms."""
    cdef int64_t threads = team_size(s.f.team), rows = s.rows, most = s.rows, tiles, last
    cdef int64_t row_work = 8 * s.cell.H * (s.cell.I + s.cell.H)
    s.blocks, s.first = s.f.table.cell_blocks(s.cell), 0
    if s.f.watch != NULL:
        most = max(TILE_ROWS * 16 * threads, ROWS_WORK // row_work)
    while s.first < rows:
        s.rows = min(most, rows - s.first)
        last = s.first + s.rows
        tiles = (s.rows + TILE_ROWS - 1) // TILE_ROWS
        s.by_rows = s.blocks < 2 * threads and tiles > s.blocks
        if threads > 1 and row_work * s.rows >= (SHARED_WORK if s.ahead == NULL else SHARED_AHEAD):
            team_for(s.f.team, min(CHUNKS * threads, tiles if s.by_rows else s.blocks), step_chunk, s)
        elif s.ahead != NULL:
            s.f.table.cell_input(s.cell, s.ahead.x, 0, s.ahead.pre, s.ahead.rows, s.first, last, 0, s.blocks)
        else:
            s.f.table.cell_step(s.cell, s.io, s.phase, s.first, last, 0, s.blocks)
        s.first += s.rows
        if halt(s.f, row_work * s.rows):
            break
    s.rows = rows


cdef void share_input(const frnn_cell *cell, Frame *f, const Hoisted *ahead, int64_t rows) noexcept nogil:
    cdef StepLoop s
    s.f, s.cell, s.io, s.ahead, s.phase, s.rows = f, cell, NULL, ahead, 0, rows
    share(&s)


cdef void hoist(const CellArgs *a, const frnn_cell *cell, Frame *f, const CellRows *rows, int64_t t, int64_t alive,
                Hoisted *h) noexcept nogil:
    """Sum bias + x W for as many steps from t as have these rows and room: one product of many rows, at the speed of a
    matrix product instead of a vector's. Loading an accumulator back is exact, so the bits are those of the direct
    step."""
    cdef int64_t capacity = min(a.pre_capacity // (h.size + 4), a.steps * a.rows)
    cdef int64_t n = 0, r, step = -a.x_time if a.reverse else a.x_time
    cdef float *memory = <float *> f.base[a.pre]
    h.x = <const float **> memory
    h.pre = <float *> (h.x + capacity)
    h.rows = alive
    h.end = t
    while h.end < rows.length[alive - 1] and n + alive <= capacity:
        for r in range(alive):
            h.x[n] = rows.x[r] + h.end * step
            n += 1
        h.end += 1
    share_input(cell, f, h, n)


cdef void run_cell(const CellArgs *a, Frame *f) noexcept nogil:
    """All steps of one direction of one layer. h of step t - 1 is read where step t - 1 wrote it, in y."""
    cdef Hoisted ahead
    cdef StepLoop loop
    cdef const frnn_cell *cell = f.cells[a.cell]
    cdef CellRows rows, present
    cdef frnn_cell_io io
    cdef int64_t n = a.rows, alive, t, r, sign = -1 if a.reverse else 1
    cdef int64_t phases = f.table.cell_phases(cell)
    cdef int64_t y_time = sign * a.y_time
    cdef float *spare
    cdef bint hoisting
    if n == 0 or a.steps == 0:
        return
    cell_rows(a, cell, f, &rows)
    present = rows
    spare = <float *> (rows.length + n)
    if rows.mask != NULL:
        present.x = <const float **> (rows.mask + n)
        present.c = <float **> (present.x + n)
        present.y = present.c + n
        present.state = present.y + n
        spare = <float *> (present.state + n)
    spare = <float *> ((<uintptr_t> spare + ALIGN - 1) & ~(<uintptr_t> (ALIGN - 1)))
    if a.y_buffer < 0:  # nobody reads y: two rows of h take turns
        y_time = cell.H
        for r in range(n):
            rows.y[r] = spare + 2 * r * cell.H
        spare += 2 * n * cell.H
    io.scratch = <float *> ((<uintptr_t> spare + ALIGN - 1) & ~(<uintptr_t> (ALIGN - 1)))
    io.pre, io.pre_rows = NULL, 0
    io.x, io.c, io.y = present.x, present.c if cell.kind == 1 else NULL, present.y
    io.c_off = 0
    loop.f, loop.cell, loop.io, loop.ahead = f, cell, &io, NULL
    alive = n
    ahead.end, ahead.size = 0, f.table.cell_pre_size(cell)
    hoisting = n <= a.hoisted_rows and a.steps > 1 and a.pre_capacity >= 2 * n * (ahead.size + 4)
    for t in range(a.steps):
        while alive > 0 and rows.length[alive - 1] <= t:
            alive -= 1
        if alive == 0:
            break
        if hoisting:
            if t == ahead.end:
                hoist(a, cell, f, &rows, t, alive, &ahead)
                io.pre, io.pre_rows = ahead.pre, alive
            else:
                io.pre += alive * ahead.size
        io.backwards = (f.turn + t) & 1
        io.x_off = t * sign * a.x_time
        io.y_off = (t & 1) * y_time if a.y_buffer < 0 else t * y_time
        if t == 0:
            io.h, io.h_off = <const float *const *> present.state, 0
        else:
            io.h = <const float *const *> present.y
            io.h_off = ((t - 1) & 1) * y_time if a.y_buffer < 0 else (t - 1) * y_time
        loop.rows = alive
        if rows.mask != NULL:
            loop.rows = present_rows(a, cell.H, &rows, alive, t, y_time, &present)
            if loop.rows == 0:
                continue
        for loop.phase in range(phases):
            share(&loop)
        if f.halted:
            return
    for r in range(n):
        t = rows.length[r] - 1
        if t >= 0:
            memcpy(rows.state[r], rows.y[r] + ((t & 1) * y_time if a.y_buffer < 0 else t * y_time),
                   cell.H * sizeof(float))

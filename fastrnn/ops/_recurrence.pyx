# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The recurrent op: the loop over the steps of one direction of one layer.

A step reads h from where the previous step wrote it, and calls the kernel table. Lengths end rows early, and the mask
makes rows skip a step. The input half is summed ahead for many steps at once. Threads share the units or the rows of a
step.
"""

from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from fastrnn.machine._isa cimport (
    FRNN_TILE_ROWS,
    fpu_enter,
    fpu_leave,
    frnn_cell,
    frnn_cell_io,
    PackedCell,
    team_for,
    team_size,
)
from fastrnn.ops._frame cimport ALIGN, CHUNKS, Frame, at, halt, state_row
from fastrnn.ops._walk cimport DONE, add_op, number

from ..machine._isa import cell_scratch_size

cdef enum:
    # Threads share a step with at least this many operations for each float of the widest vector, which is about as
    # long on each instruction set. Two threads against one (100 steps). Zen 3, AVX2, which shares from 500 thousand on:
    # LSTM 64 with one row, 65 thousand, runs at 0.81x; LSTM 256 gains. Zen 5, AVX-512, from a million on: GRU 128 with
    # 4 rows and GRU 64 with 16, 800 thousand, at 0.87 and 0.89x; LSTM 128 and 64 with those, a million, at 1.6x.
    SHARED_WORK = 62_500
    SHARED_AHEAD = 500_000  # the same for the input half of many steps
    LEAST_ROWS = 3  # fewer rows take about as long as so many, because they wait for the weights
    ROWS_WORK = 400_000_000  # operations of a step between two looks for signals
    ROUND = 0  # phases of an input half: rows are rounded, in reduced precision, then summed
    SUM = 1
    POINTER = 2  # floats of memory that a pointer takes
    ALIGNED = 2 * 16  # floats by which aligning twice moves

cdef struct CellArgs:
    int64_t cell, steps, rows, reverse
    int64_t x_buffer, x_offset, x_time, x_row
    int64_t y_buffer, y_offset, y_time, y_row  # y_buffer -1: y is not stored
    int64_t lengths_buffer, lengths_offset, lengths_stride  # lengths_buffer -1: all rows have `steps` steps
    int64_t mask_buffer, mask_offset, mask_time, mask_row  # floats; mask_buffer -1: no step is left out
    int64_t per_slot, h_state, c_state  # per_slot rows share a slab row; 0: h_state, c_state are buffers of this call
    # pre: room for the input half of some steps, of up to hoisted_rows rows (0: none); capacity in floats
    int64_t scratch, pre, pre_capacity, hoisted_rows


cdef struct CellRows:  # one entry per row, longest first
    const float **x
    float **c
    float **y
    float **state
    int64_t *length
    const float **mask  # each row's first step; NULL: no step is left out


cdef struct CellLoop:  # data shared by the steps of one call
    const CellArgs *a
    const frnn_cell *cell
    Frame *f
    int64_t y_time  # floats from the y of a step to that of the next
    float *spare  # two h of each row, if y is not stored
    CellRows rows, present  # present: the rows whose mask is true at this step
    frnn_cell_io io


# ---- scratch: pointers of every row, then two h of each if y is not stored, then the kernel's own -------------------

cdef inline void *take(char **memory, int64_t size) noexcept nogil:
    """The next `size` bytes."""
    cdef void *found = memory[0]
    memory[0] += size
    return found


cdef inline void align(char **memory) noexcept nogil:
    memory[0] = <char *> ((<uintptr_t> memory[0] + ALIGN - 1) & ~(<uintptr_t> (ALIGN - 1)))


cdef inline void point(CellRows *rows, int64_t n, char **memory) noexcept nogil:
    """Room for the pointers of n rows."""
    rows.x = <const float **> take(memory, n * sizeof(void *))
    rows.c = <float **> take(memory, n * sizeof(void *))
    rows.y = <float **> take(memory, n * sizeof(void *))
    rows.state = <float **> take(memory, n * sizeof(void *))
    rows.length = <int64_t *> take(memory, n * sizeof(int64_t))


cdef inline void lay_out(CellLoop *s) noexcept nogil:
    """Point into the scratch. `cell_scratch` determines its size."""
    cdef int64_t n = s.a.rows
    cdef char *memory = <char *> s.f.base[s.a.scratch]
    s.rows.mask = NULL
    point(&s.rows, n, &memory)
    s.present = s.rows
    if s.a.mask_buffer >= 0:
        s.rows.mask = <const float **> take(&memory, n * sizeof(void *))
        point(&s.present, n, &memory)
    align(&memory)
    if s.a.y_buffer < 0:  # no op reads y: two rows of h take turns
        s.y_time = s.cell.H
        s.spare = <float *> take(&memory, 2 * n * s.cell.H * sizeof(float))
    align(&memory)
    s.io.scratch = <float *> memory


def cell_scratch(packed, rows, bint y_stored, bint masked):
    """Floats of scratch that a cell's op needs. packed: PackedCell; rows: an int or dim."""
    cdef int64_t pointers = sizeof(CellRows) + (sizeof(CellRows) if masked else 0)
    cdef int64_t spare = 0 if y_stored else 2 * packed.spec.hidden_size
    return rows * (pointers // 4 + spare + cell_scratch_size(packed)) + 2 * ALIGN // 4


def input_scratch(packed, rows):
    """Floats of scratch that the input half of so many rows takes if it is summed ahead. rows: an int or dim, counted
    over all steps."""
    return rows * (POINTER + packed.pre_size + rounded_x(&(<PackedCell?> packed).cell)) + ALIGNED


cdef inline int64_t rounded_x(const frnn_cell *cell) noexcept nogil:
    """Floats of a rounded row of x; 0 in float32."""
    return cell.product.rounded(cell.I) if cell.rounded else 0


# ---- the rows of a call ----------------------------------------------------------------------------------------------

cdef inline int check_lengths(const CellArgs *a, Frame *f) noexcept nogil:
    """Returns -1, with the length in f.bad, if one is out of range: no kernel may see it."""
    cdef const int64_t *lengths
    cdef int64_t r
    if a.lengths_buffer < 0:
        return 0
    lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    for r in range(a.rows):
        if lengths[r * a.lengths_stride] < 0 or lengths[r * a.lengths_stride] > a.steps:
            f.bad = lengths[r * a.lengths_stride]
            return -1
    return 0


cdef object explain_cell(const int64_t *args, int64_t bad):
    return f"lengths must lie in 0..{(<const CellArgs *> args).steps} (the steps of x), got {bad}"


cdef int64_t insert(CellRows *rows, int64_t r, int64_t length) noexcept nogil:
    """Insert row r of this length so that the longest rows come first; later rows move back. Rows arrive in any order.
    A step works on the leading rows that are still alive."""
    cdef int64_t i = r
    while i > 0 and rows.length[i - 1] < length:
        rows.x[i], rows.c[i], rows.y[i] = rows.x[i - 1], rows.c[i - 1], rows.y[i - 1]
        rows.state[i], rows.length[i] = rows.state[i - 1], rows.length[i - 1]
        if rows.mask != NULL:
            rows.mask[i] = rows.mask[i - 1]
        i -= 1
    return i


cdef inline void fill_rows(CellLoop *s) noexcept nogil:
    """Each row's first x and y, its states and its length. Locals are faster than fields here: the compiler must
    assume that a stored pointer changes them."""
    cdef const CellArgs *a = s.a
    cdef Frame *f = s.f
    cdef CellRows rows = s.rows
    cdef int64_t r, i, length = a.steps, first = length - 1 if a.reverse and length > 0 else 0, H = s.cell.H
    cdef int64_t x_time = a.x_time, y_time = a.y_time, x_row = a.x_row, y_row = a.y_row, steps = a.steps
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef const float *mask = at(f, a.mask_buffer, a.mask_offset) if a.mask_buffer >= 0 else NULL
    cdef float *y = at(f, a.y_buffer, a.y_offset) if a.y_buffer >= 0 else s.spare
    cdef const int64_t *lengths = NULL
    if a.lengths_buffer >= 0:
        lengths = (<const int64_t *> f.base[a.lengths_buffer]) + a.lengths_offset
    if a.y_buffer < 0:
        y_row, y_time = 2 * H, 0
    for r in range(a.rows):
        i = r
        if lengths != NULL:
            length = lengths[r * a.lengths_stride]
            i = insert(&s.rows, r, length)
            first = (length - 1) if a.reverse and length > 0 else 0
        rows.length[i] = length
        rows.x[i] = x + r * x_row + first * x_time
        if mask != NULL:
            rows.mask[i] = mask + r * a.mask_row + first * a.mask_time
        rows.state[i] = state_row(f, a.per_slot, a.h_state, H, r)
        if a.c_state >= 0:
            rows.c[i] = state_row(f, a.per_slot, a.c_state, H, r)
        rows.y[i] = y + r * y_row + first * y_time
        if length < steps and a.y_buffer >= 0:
            clear_steps(a, H, y + r * y_row, length)


cdef void clear_steps(const CellArgs *a, int64_t H, float *y, int64_t length) noexcept nogil:
    """Set y to zero at the steps that a row does not have."""
    cdef int64_t t
    for t in range(length, a.steps):
        memset(y + t * a.y_time, 0, H * sizeof(float))


cdef inline int64_t y_at(const CellLoop *s, int64_t t) noexcept nogil:
    """Floats from a row's first y to that of step t."""
    return (t & 1 if s.a.y_buffer < 0 else t) * s.y_time


cdef int64_t present_rows(CellLoop *s, int64_t alive, int64_t t) noexcept nogil:
    """Gather the rows that take part in step t into `present`, and return their number: the kernel sees only these. The
    others keep their states and repeat h as the y of this step."""
    cdef const CellRows *rows = &s.rows
    cdef CellRows *present = &s.present
    cdef int64_t n = 0, r
    cdef int64_t m = t * (-s.a.mask_time if s.a.reverse else s.a.mask_time)
    for r in range(alive):
        if rows.mask[r][m] == 0.0:
            memcpy(rows.y[r] + y_at(s, t), rows.state[r] if t == 0 else rows.y[r] + y_at(s, t - 1),
                   s.cell.H * sizeof(float))
            continue
        present.x[n], present.c[n], present.y[n] = rows.x[r], rows.c[r], rows.y[r]
        present.state[n] = rows.state[r]
        n += 1
    return n


cdef struct Hoisted:  # the input half, summed ahead for the steps before `end`, of `rows` rows each
    int64_t end, rows
    int64_t size, rounded  # floats of one row of pre, and of a rounded row of x; 0: rows are read as they are
    int64_t capacity  # rows of all steps for which there is room
    const float **x
    float *rounded_x
    float *pre


# ---- sharing a step among threads: by blocks of hidden units (each core then keeps its part of R), or by rows ----

cdef struct StepLoop:
    Frame *f
    const frnn_cell *cell
    const frnn_cell_io *io
    const Hoisted *ahead
    int64_t phase, first, rows, blocks  # rows from `first` on; phase ROUND of an input half rounds its rows
    bint by_rows


cdef void step_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    cdef const StepLoop *s = <const StepLoop *> context
    cdef int64_t row0 = s.first, row1 = s.first + s.rows, block0 = 0, block1 = s.blocks
    cdef uint64_t token = fpu_enter()
    if s.by_rows or (s.ahead != NULL and s.phase == ROUND):
        row0, row1 = s.first + s.rows * chunk // chunks, s.first + s.rows * (chunk + 1) // chunks
    else:
        block0, block1 = s.blocks * chunk // chunks, s.blocks * (chunk + 1) // chunks
    run_part(s, row0, row1, block0, block1)
    fpu_leave(token)


cdef inline void run_part(const StepLoop *s, int64_t row0, int64_t row1, int64_t block0, int64_t block1) noexcept nogil:
    cdef const Hoisted *ahead = s.ahead
    cdef int64_t r
    if ahead == NULL:
        s.f.table.cell_step(s.cell, s.io, s.phase, row0, row1, block0, block1)
    elif s.phase != ROUND:
        s.f.table.cell_input(s.cell, ahead.x, 0, ahead.pre, ahead.rows, row0, row1, block0, block1)
    else:
        for r in range(row0, row1):
            s.cell.product.round(s.cell.I, ahead.x[r], ahead.rounded_x + r * ahead.rounded)
            ahead.x[r] = ahead.rounded_x + r * ahead.rounded


cdef void share(StepLoop *s) noexcept nogil:
    """Run one step (or one hoisted input half) with all threads of the call. If the call looks for signals, a step
    of very many rows is cut into parts of about 10 ms."""
    cdef int64_t threads = team_size(s.f.team), rows = s.rows, most = s.rows, tiles, last
    cdef int64_t column = 2 * s.cell.form.gates * s.cell.H, work, chunks
    cdef int64_t row_work = column * (s.cell.I + s.cell.H)
    if s.ahead != NULL:
        row_work = column * s.cell.I
    elif s.io.pre != NULL:  # the input half was summed ahead
        row_work = column * s.cell.H
    s.blocks, s.first = s.f.table.cell_blocks(s.cell), 0
    if s.f.watch != NULL:
        most = max(FRNN_TILE_ROWS * 16 * threads, ROWS_WORK // row_work)
    while s.first < rows:
        s.rows = min(most, rows - s.first)
        last = s.first + s.rows
        tiles = (s.rows + FRNN_TILE_ROWS - 1) // FRNN_TILE_ROWS
        s.by_rows = s.blocks < 2 * threads and tiles > s.blocks
        work = row_work * max(s.rows, LEAST_ROWS)
        if threads > 1 and work >= s.f.table.lanes * (SHARED_WORK if s.ahead == NULL else SHARED_AHEAD):
            chunks = min(CHUNKS * threads, tiles if s.by_rows else s.blocks)
            if s.by_rows:  # as many for each thread
                chunks = min((chunks + threads - 1) // threads * threads, s.rows)
            team_for(s.f.team, chunks, step_chunk, s)
        else:
            run_part(s, s.first, last, 0, s.blocks)
        s.first += s.rows
        if halt(s.f, row_work * s.rows):
            break
    s.rows = rows


cdef void share_input(const frnn_cell *cell, Frame *f, const Hoisted *ahead, int64_t rows) noexcept nogil:
    cdef StepLoop s
    s.f, s.cell, s.io, s.ahead, s.rows = f, cell, NULL, ahead, rows
    for s.phase in range(SUM if ahead.rounded == 0 else ROUND, SUM + 1):
        share(&s)


cdef inline bint room_ahead(const CellArgs *a, const frnn_cell *cell, Frame *f, Hoisted *h) noexcept nogil:
    """Find room for the input half of two steps or more. Returns False if there is none."""
    cdef char *memory = <char *> f.base[a.pre]
    h.size, h.end = f.table.cell_pre_size(cell), 0
    h.rounded = rounded_x(cell)
    h.capacity = min((a.pre_capacity - ALIGNED) // (POINTER + h.size + h.rounded), a.steps * a.rows)
    h.x = <const float **> take(&memory, h.capacity * sizeof(void *))
    align(&memory)
    h.rounded_x = <float *> take(&memory, h.capacity * h.rounded * sizeof(float))
    align(&memory)
    h.pre = <float *> memory
    return h.capacity >= 2 * a.rows


cdef void hoist(const CellArgs *a, const frnn_cell *cell, Frame *f, const CellRows *rows, int64_t t, int64_t alive,
                Hoisted *h) noexcept nogil:
    """Sum bias + x W for as many steps from t as have these rows and fit the room. This is one product of many rows, at
    the speed of a matrix product instead of a vector product. Reloading an accumulator is exact, so the bits are those
    of the direct step."""
    cdef int64_t n = 0, r, step = -a.x_time if a.reverse else a.x_time
    h.rows = alive
    h.end = t
    while h.end < rows.length[alive - 1] and n + alive <= h.capacity:
        for r in range(alive):
            h.x[n] = rows.x[r] + h.end * step
            n += 1
        h.end += 1
    share_input(cell, f, h, n)


cdef inline void run_step(CellLoop *s, StepLoop *loop, int64_t alive, int64_t t) noexcept nogil:
    """Step t of the first `alive` rows. h of step t - 1 is read where step t - 1 wrote it, in y."""
    cdef frnn_cell_io *io = &s.io
    io.backwards = (s.f.turn + t) & 1
    io.x_off = t * (-s.a.x_time if s.a.reverse else s.a.x_time)
    io.y_off = y_at(s, t)
    if t == 0:
        io.h, io.h_off = <const float *const *> s.present.state, 0
    else:
        io.h, io.h_off = <const float *const *> s.present.y, y_at(s, t - 1)
    loop.rows = alive
    if s.rows.mask != NULL:
        loop.rows = present_rows(s, alive, t)
        if loop.rows == 0:
            return
    for loop.phase in range(s.cell.phases):
        share(loop)


cdef int run_cell(const int64_t *args, Frame *f) noexcept nogil:
    """All steps of one direction of one layer. Fails if a length is out of range."""
    cdef const CellArgs *a = <const CellArgs *> args
    cdef CellLoop s
    cdef Hoisted ahead
    cdef StepLoop loop
    cdef int64_t alive = a.rows, t, r
    cdef bint hoisting
    if check_lengths(a, f) != 0:
        return 0
    if a.rows == 0 or a.steps == 0:
        return DONE
    s.a, s.f, s.cell = a, f, f.cells[a.cell]
    s.y_time = -a.y_time if a.reverse else a.y_time
    lay_out(&s)
    fill_rows(&s)
    s.io.pre, s.io.pre_rows = NULL, 0
    s.io.x, s.io.c, s.io.y = s.present.x, s.present.c if a.c_state >= 0 else NULL, s.present.y
    s.io.c_off = 0
    loop.f, loop.cell, loop.io, loop.ahead = f, s.cell, &s.io, NULL
    hoisting = a.rows <= a.hoisted_rows and a.steps > 1 and room_ahead(a, s.cell, f, &ahead)
    for t in range(a.steps):
        while alive > 0 and s.rows.length[alive - 1] <= t:
            alive -= 1
        if alive == 0:
            break
        if hoisting and t == ahead.end:
            hoist(a, s.cell, f, &s.rows, t, alive, &ahead)
            s.io.pre, s.io.pre_rows = ahead.pre, alive
        elif hoisting:
            s.io.pre += alive * ahead.size
        run_step(&s, &loop, alive, t)
        if f.halted:
            return DONE
    for r in range(a.rows):
        if s.rows.length[r] > 0:
            memcpy(s.rows.state[r], s.rows.y[r] + y_at(&s, s.rows.length[r] - 1), s.cell.H * sizeof(float))
    return DONE


cdef union Args:
    CellArgs cell

cdef Args args
number(&args, sizeof(args))
add_op("cell", args.cell, run_cell, explain_cell)

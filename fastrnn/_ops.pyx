# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The ops of a plan, each a few loops around a kernel, and the walk over them, without the GIL.

Each op's integers lie in one int64 array as its ``cdef struct`` below; `OP_FIELDS` names them in that order, and both
are checked at import to have the same length.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from fastrnn._frame cimport Frame, at, halt, state_row
from fastrnn._isa cimport FRNN_ADD, FRNN_MAX, fpu_enter, fpu_leave, frnn_act, frnn_space, team_for, team_size
from fastrnn._recurrence cimport CellArgs, check_lengths, run_cell

ctypedef const float *const_row

DEF LEVELS = 3
DEF RANK = 6
DEF MAX_INPUTS = 8
DEF CHUNKS = 4  # chunks a thread that a loop is cut into: a worker that wakes late still finds some
DEF OP_WORK = 1000  # operations that any op counts for, besides those that it tells of
DEF LINEAR_WORK = 200_000_000  # multiply-adds of a product between two looks for signals
DEF ROWS_WORTH_SPLITTING = 48  # rows a thread from which rows are split, not columns: 8 tiles of 6

# ---- the integers of each op (CellArgs: _recurrence.pxd) ---------------------------------------------------------

cdef struct LinearArgs:
    int64_t packed, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct MatmulArgs:
    int64_t m, k, n, a_buffer, a_offset, b_buffer, b_offset, y_buffer, y_offset
    int64_t a_row, b_row, b_column, y_row, scratch
    int64_t n0, n1, a0, a1, b0, b1, y0, y1

cdef struct ElementwiseArgs:
    int64_t program, n_in
    int64_t in_buffer[8]
    int64_t in_offset[8]
    int64_t out_buffer, out_offset
    frnn_space space

cdef struct CopyArgs:
    int64_t source_type, target_type, source_buffer, source_offset, target_buffer, target_offset, rank
    int64_t size[6]
    int64_t source_stride[6]
    int64_t target_stride[6]

cdef struct GatherArgs:
    int64_t table_buffer, table_offset, table_row, count, inner, item, from_zero
    int64_t index_buffer, index_offset, index_type, y_buffer, y_offset
    int64_t n0, n1, n2, i0, i1, i2, y0, y1, y2

cdef struct ReduceArgs:
    int64_t fn, mean, count, step, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct SoftmaxArgs:
    int64_t n, log, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct NormArgs:
    int64_t n, epsilon, scale_buffer, scale_offset, bias_buffer, bias_offset, x_buffer, x_offset, y_buffer, y_offset
    int64_t n0, n1, n2, x0, x1, x2, y0, y1, y2

cdef struct StateArgs:
    int64_t tensor_buffer, tensor_offset, rows, size, row, per_slot, state

cdef struct RunningArgs:
    int64_t fn, mean, steps, rows, size, x_buffer, x_offset, x_time, x_row, y_buffer, y_offset, y_row, per_slot, state

cdef struct TailArgs:  # row, size, shift, state: in floats; shift: the steps that are new
    int64_t buffer, rows, row, size, shift, per_slot, state

cdef struct ZeroArgs:
    int64_t buffer, offset, count

cdef struct LoopArgs:
    int64_t steps, body, count, moves, n_moves


def _levels(*operands, int levels=LEVELS):
    names = [f"n{i}" for i in range(levels)]
    return (*names, *(f"{o}_stride{i}" for o in operands for i in range(levels)))


_ends = ("x_buffer", "x_offset", "y_buffer", "y_offset")

OP_FIELDS = {
    "cell": ("cell", "steps", "rows", "reverse", "x_buffer", "x_offset", "x_time", "x_row", "y_buffer", "y_offset",
             "y_time", "y_row", "lengths_buffer", "lengths_offset", "lengths_stride", "mask_buffer", "mask_offset",
             "mask_time", "mask_row", "per_slot", "h_state", "c_state",
             "scratch", "pre", "pre_capacity", "hoisted_rows"),
    "linear": ("packed", *_ends, *_levels("x", "y")),
    "matmul": ("m", "k", "n", "a_buffer", "a_offset", "b_buffer", "b_offset", "y_buffer", "y_offset", "a_row", "b_row",
               "b_column", "y_row", "scratch", *_levels("a", "b", "y", levels=2)),
    "elementwise": ("program", "n_in", *(f"in{i}_buffer" for i in range(MAX_INPUTS)),
                    *(f"in{i}_offset" for i in range(MAX_INPUTS)), "out_buffer", "out_offset", "rank",
                    *(f"size{i}" for i in range(RANK)),
                    *(f"in{j}_stride{i}" for j in range(MAX_INPUTS) for i in range(RANK)),
                    *(f"out_stride{i}" for i in range(RANK))),
    "copy": ("source_type", "target_type", "source_buffer", "source_offset", "target_buffer", "target_offset", "rank",
             *(f"size{i}" for i in range(RANK)), *(f"source_stride{i}" for i in range(RANK)),
             *(f"target_stride{i}" for i in range(RANK))),
    "gather": ("table_buffer", "table_offset", "table_row", "count", "inner", "item", "from_zero", "index_buffer",
               "index_offset", "index_type", "y_buffer", "y_offset", *_levels("index", "y")),
    "reduce": ("fn", "mean", "count", "step", *_ends, *_levels("x", "y")),
    "softmax": ("n", "log", *_ends, *_levels("x", "y")),
    "layer_norm": ("n", "epsilon", "scale_buffer", "scale_offset", "bias_buffer", "bias_offset", *_ends,
                   *_levels("x", "y")),
    "state_load": ("tensor_buffer", "tensor_offset", "rows", "size", "row", "per_slot", "state"),
    "state_store": ("tensor_buffer", "tensor_offset", "rows", "size", "row", "per_slot", "state"),
    "zero": ("buffer", "offset", "count"),
    "running": ("fn", "mean", "steps", "rows", "size", "x_buffer", "x_offset", "x_time", "x_row", "y_buffer",
                "y_offset", "y_row", "per_slot", "state"),
    "loop": ("steps", "body", "count", "moves", "n_moves"),
    "tail": ("buffer", "rows", "row", "size", "shift", "per_slot", "state"),
}

cdef enum OpKind:
    OP_CELL, OP_LINEAR, OP_MATMUL, OP_ELEMENTWISE, OP_COPY, OP_GATHER, OP_REDUCE, OP_SOFTMAX, OP_LAYER_NORM
    OP_STATE_LOAD, OP_STATE_STORE, OP_ZERO, OP_RUNNING, OP_LOOP, OP_TAIL

KINDS = {kind: i for i, kind in enumerate(OP_FIELDS)}
_SIZES = (sizeof(CellArgs), sizeof(LinearArgs), sizeof(MatmulArgs), sizeof(ElementwiseArgs), sizeof(CopyArgs),
          sizeof(GatherArgs), sizeof(ReduceArgs), sizeof(SoftmaxArgs), sizeof(NormArgs), sizeof(StateArgs),
          sizeof(StateArgs), sizeof(ZeroArgs), sizeof(RunningArgs), sizeof(LoopArgs), sizeof(TailArgs))
for _kind, _size in zip(OP_FIELDS, _SIZES, strict=True):
    if 8 * len(OP_FIELDS[_kind]) != _size:
        raise ImportError(f"op {_kind}: {len(OP_FIELDS[_kind])} fields named, the struct has {_size // 8}")


# ---- the ops ---------------------------------------------------------------------------------------------------------

cdef struct LinearLoop:
    const LinearArgs *a
    Frame *f
    const float *x
    float *y
    int64_t K, N, blocks, rows
    bint by_rows


cdef void linear_chunk(void *context, int64_t chunk, int64_t chunks) noexcept nogil:
    """One thread's share of a product: some rows, or some blocks of columns."""
    cdef const LinearLoop *s = <const LinearLoop *> context
    cdef const LinearArgs *a = s.a
    cdef int64_t row0 = 0, row1 = s.rows, block0 = 0, block1 = s.blocks
    cdef uint64_t token = fpu_enter()
    if s.by_rows:
        row0, row1 = s.rows * chunk // chunks, s.rows * (chunk + 1) // chunks
    else:
        block0, block1 = s.blocks * chunk // chunks, s.blocks * (chunk + 1) // chunks
    s.f.table.linear(s.K, s.N, s.f.linears[a.packed], s.f.linear_acts[a.packed], s.x, a.x2, s.y, a.y2, row0, row1,
                     block0, block1)
    fpu_leave(token)


cdef void run_linear(const LinearArgs *a, Frame *f) noexcept nogil:
    cdef LinearLoop s
    cdef int64_t i, j, row, most = a.n2, threads = team_size(f.team)
    s.a, s.f, s.K, s.N = a, f, f.linear_sizes[2 * a.packed], f.linear_sizes[2 * a.packed + 1]
    s.blocks = f.table.linear_blocks(s.K, s.N)
    if f.watch != NULL:  # some 10 ms of rows at a time, between which signals are looked for
        most = max(ROWS_WORTH_SPLITTING * threads, LINEAR_WORK // max(s.K * s.N, 1))
    for i in range(a.n0):
        for j in range(a.n1):
            row = 0
            while row < a.n2:
                s.rows = min(most, a.n2 - row)
                s.by_rows = s.rows >= ROWS_WORTH_SPLITTING * threads
                s.x = at(f, a.x_buffer, a.x_offset) + i * a.x0 + j * a.x1 + row * a.x2
                s.y = at(f, a.y_buffer, a.y_offset) + i * a.y0 + j * a.y1 + row * a.y2
                if threads == 1:
                    linear_chunk(&s, 0, 1)
                else:
                    team_for(f.team, CHUNKS * threads if s.by_rows else min(CHUNKS * threads, s.blocks), linear_chunk,
                             &s)
                row += s.rows
                if halt(f, 2 * s.K * s.N * s.rows):
                    return


cdef void run_matmul(const MatmulArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j, blocks = f.table.linear_blocks(a.k, a.n)
    cdef const float *x = at(f, a.a_buffer, a.a_offset)
    cdef const float *w = at(f, a.b_buffer, a.b_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    cdef float *packed = <float *> f.base[a.scratch]
    cdef frnn_act identity
    identity.fn, identity.alpha, identity.beta = 0, 0, 0
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.linear_pack(a.k, a.n, w + i * a.b0 + j * a.b1, a.b_row, a.b_column, NULL, packed)
            f.table.linear(a.k, a.n, packed, identity, x + i * a.a0 + j * a.a1, a.a_row, y + i * a.y0 + j * a.y1,
                           a.y_row, 0, a.m, 0, blocks)
            if halt(f, 2 * a.k * a.n * a.m):
                return


cdef void run_elementwise(const ElementwiseArgs *a, Frame *f) noexcept nogil:
    cdef const_row inputs[8]
    cdef int64_t i
    for i in range(a.n_in):
        inputs[i] = at(f, a.in_buffer[i], a.in_offset[i])
    f.table.elementwise(&f.programs[a.program], &a.space, inputs, at(f, a.out_buffer, a.out_offset))


cdef inline double load_as_double(const void *p, int64_t type, int64_t i) noexcept nogil:
    if type == 0:
        return (<const float *> p)[i]
    if type == 1:
        return <double> (<const int64_t *> p)[i]
    if type == 2:
        return (<const int32_t *> p)[i]
    if type == 3:
        return (<const uint8_t *> p)[i] != 0
    return (<const double *> p)[i]


cdef inline void store_double(void *p, int64_t type, int64_t i, double value) noexcept nogil:
    if type == 0:
        (<float *> p)[i] = <float> value
    elif type == 1:
        (<int64_t *> p)[i] = <int64_t> value
    elif type == 2:
        (<int32_t *> p)[i] = <int32_t> value
    elif type == 3:
        (<uint8_t *> p)[i] = value != 0 and value != -INFINITY  # -inf: the largest of no bools
    else:
        (<double *> p)[i] = value


cdef void copy_run(const void *source, int64_t source_type, int64_t i, int64_t source_stride, void *target,
                   int64_t target_type, int64_t o, int64_t target_stride, int64_t n) noexcept nogil:
    """n elements of one axis. int64 to int64 keeps all bits; every other pair goes through double, which holds them."""
    cdef int64_t k
    if source_type == target_type == 0 and source_stride == target_stride == 1:
        memcpy((<float *> target) + o, (<const float *> source) + i, n * sizeof(float))
    elif source_type == target_type == 0:
        for k in range(n):
            (<float *> target)[o + k * target_stride] = (<const float *> source)[i + k * source_stride]
    elif source_type == target_type == 1:
        for k in range(n):
            (<int64_t *> target)[o + k * target_stride] = (<const int64_t *> source)[i + k * source_stride]
    else:
        for k in range(n):
            store_double(target, target_type, o + k * target_stride,
                         load_as_double(source, source_type, i + k * source_stride))


cdef inline int64_t item_size(int64_t type) noexcept nogil:
    return 4 if type == 0 or type == 2 else 1 if type == 3 else 8


cdef void run_copy(const CopyArgs *a, Frame *f) noexcept nogil:
    cdef int64_t index[6]
    cdef int64_t axis, last = a.rank - 1, i = a.source_offset, o = a.target_offset
    cdef const void *source = f.base[a.source_buffer]
    cdef void *target = f.base[a.target_buffer]
    if a.rank == 0:
        copy_run(source, a.source_type, i, 1, target, a.target_type, o, 1, 1)
        return
    for axis in range(a.rank):
        index[axis] = 0
        if a.size[axis] == 0:
            return
    while True:
        copy_run(source, a.source_type, i, a.source_stride[last], target, a.target_type, o, a.target_stride[last],
                 a.size[last])
        axis = last - 1
        while axis >= 0:
            index[axis] += 1
            i += a.source_stride[axis]
            o += a.target_stride[axis]
            if index[axis] < a.size[axis]:
                break
            i -= a.size[axis] * a.source_stride[axis]
            o -= a.size[axis] * a.target_stride[axis]
            index[axis] = 0
            axis -= 1
        if axis < 0:
            return


cdef int run_gather(const GatherArgs *a, Frame *f, int64_t *bad) noexcept nogil:
    """Rows of a table. Returns -1, with the index in `bad`, where one lies outside."""
    cdef int64_t i, j, k, index, size = a.inner * a.item, low = 0 if a.from_zero else -a.count
    cdef const char *table = <const char *> f.base[a.table_buffer] + a.table_offset * a.item
    cdef char *y = <char *> f.base[a.y_buffer] + a.y_offset * a.item
    for i in range(a.n0):
        for j in range(a.n1):
            for k in range(a.n2):
                index = a.index_offset + i * a.i0 + j * a.i1 + k * a.i2
                if a.index_type == 1:
                    index = (<const int64_t *> f.base[a.index_buffer])[index]
                else:
                    index = (<const int32_t *> f.base[a.index_buffer])[index]
                if index < low or index >= a.count:
                    bad[0] = index
                    return -1
                if index < 0:
                    index += a.count
                memcpy(y + (i * a.y0 + j * a.y1 + k * a.y2) * a.item, table + index * a.table_row * a.item, size)
    return 0


cdef void run_reduce(const ReduceArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j
    cdef float scale = <float> (1.0 / a.count) if a.mean else 1.0
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.reduce(<int32_t> a.fn, a.n2, a.count, scale, x + i * a.x0 + j * a.x1, a.x2, a.step,
                           y + i * a.y0 + j * a.y1, a.y2)


cdef void run_softmax(const SoftmaxArgs *a, Frame *f) noexcept nogil:
    cdef int64_t i, j
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.softmax(a.n2, a.n, <int32_t> a.log, x + i * a.x0 + j * a.x1, a.x2, y + i * a.y0 + j * a.y1, a.y2)


cdef void run_layer_norm(const NormArgs *a, Frame *f, float epsilon) noexcept nogil:
    cdef int64_t i, j
    cdef const float *scale = at(f, a.scale_buffer, a.scale_offset) if a.scale_buffer >= 0 else NULL
    cdef const float *bias = at(f, a.bias_buffer, a.bias_offset) if a.bias_buffer >= 0 else NULL
    cdef const float *x = at(f, a.x_buffer, a.x_offset)
    cdef float *y = at(f, a.y_buffer, a.y_offset)
    for i in range(a.n0):
        for j in range(a.n1):
            f.table.layer_norm(a.n2, a.n, epsilon, scale, bias, x + i * a.x0 + j * a.x1, a.x2,
                               y + i * a.y0 + j * a.y1, a.y2)


cdef void run_state(const StateArgs *a, Frame *f, bint load) noexcept nogil:
    """Rows of a tensor into states, or back."""
    cdef int64_t r
    cdef float *tensor = at(f, a.tensor_buffer, a.tensor_offset)
    cdef float *state
    for r in range(a.rows):
        state = state_row(f, a.per_slot, a.state, a.size, r)
        if load:
            memcpy(state, tensor + r * a.row, a.size * sizeof(float))
        else:
            memcpy(tensor + r * a.row, state, a.size * sizeof(float))


cdef void run_running(const RunningArgs *a, Frame *f) noexcept nogil:
    """Sum, mean, largest or smallest over all steps so far. The state of a row is `size` float64 and a count: float64
    because a stream has no end, and a float32 sum stops growing after 2^24 ones."""
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
            if count == 0 and a.steps == 0 and a.fn != FRNN_ADD:  # of nothing, as ONNX has it
                value = -INFINITY if a.fn == FRNN_MAX else INFINITY
            for t in range(a.steps):
                value = combine(a.fn, value, x[t * a.x_time + i], count + t == 0)
            memcpy(state + 2 * i, &value, sizeof(double))
            y[i] = <float> (value / (count + a.steps) if a.mean else value)
        count += a.steps
        memcpy(state + 2 * a.size, &count, sizeof(double))


cdef void run_tail(const TailArgs *a, Frame *f) noexcept nogil:
    """What is kept of each row goes before its new steps; then the last ones of both are kept."""
    cdef int64_t r
    cdef float *row
    cdef float *state
    for r in range(a.rows):
        row = (<float *> f.base[a.buffer]) + r * a.row
        state = state_row(f, a.per_slot, a.state, a.size, r)
        memcpy(row, state, a.size * sizeof(float))
        memcpy(state, row + a.shift, a.size * sizeof(float))


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


include "_ops_windows.pxi"
include "_loop.pxi"
include "_ops_attention.pxi"


cdef int walk(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
              int64_t *bad) noexcept nogil:
    """Run the ops once. Returns -1, or the number of the op that failed, with the offending integer in `bad`.
    Where a signal's handler raised, f.halted is set and some ops have not run.

    kinds and starts go on behind the n_ops ones: the bodies of loops lie there."""
    cdef int64_t i
    cdef const int64_t *a
    cdef uint64_t token = fpu_enter()
    cdef int failed = -1
    for i in range(n_ops):
        a = integers + starts[i]
        if kinds[i] == OP_CELL:
            if check_lengths(<const CellArgs *> a, f, bad) != 0:
                failed = <int> i
                break
            run_cell(<const CellArgs *> a, f)
        elif kinds[i] == OP_LINEAR:
            run_linear(<const LinearArgs *> a, f)
        elif kinds[i] == OP_ELEMENTWISE:
            run_elementwise(<const ElementwiseArgs *> a, f)
        elif kinds[i] == OP_COPY:
            run_copy(<const CopyArgs *> a, f)
        elif kinds[i] == OP_GATHER:
            if run_gather(<const GatherArgs *> a, f, bad) != 0:
                failed = <int> i
                break
        elif kinds[i] == OP_REDUCE:
            run_reduce(<const ReduceArgs *> a, f)
        elif kinds[i] == OP_SOFTMAX:
            run_softmax(<const SoftmaxArgs *> a, f)
        elif kinds[i] == OP_LAYER_NORM:
            run_layer_norm(<const NormArgs *> a, f, (<float *> f.base[(<const NormArgs *> a).epsilon])[0])
        elif kinds[i] == OP_STATE_LOAD:
            run_state(<const StateArgs *> a, f, True)
        elif kinds[i] == OP_STATE_STORE:
            run_state(<const StateArgs *> a, f, False)
        elif kinds[i] == OP_MATMUL:
            run_matmul(<const MatmulArgs *> a, f)
        elif kinds[i] == OP_RUNNING:
            run_running(<const RunningArgs *> a, f)
        elif kinds[i] == OP_LOOP:
            failed = run_loop(<const LoopArgs *> a, kinds + i, starts + i, integers, f, bad)
            if failed >= 0:
                failed += <int> i
                break
        elif kinds[i] == OP_TAIL:
            run_tail(<const TailArgs *> a, f)
        elif kinds[i] >= OP_ATTENTION:
            run_attention_op(kinds[i], a, f)
        elif kinds[i] >= OP_CONV:
            run_window_op(kinds[i], a, f)
        else:  # OP_ZERO
            memset(at(f, (<const ZeroArgs *> a).buffer, (<const ZeroArgs *> a).offset), 0,
                   (<const ZeroArgs *> a).count * sizeof(float))
        if halt(f, OP_WORK):
            break
    fpu_leave(token)
    return failed


cdef object explain(int32_t kind, const int64_t *integers, int64_t bad):
    """What was wrong with the integer `bad` that made an op of this kind fail."""
    if kind == OP_CELL:
        return f"lengths must lie in 0..{(<const CellArgs *> integers).steps} (the steps of x), got {bad}"
    rows = (<const GatherArgs *> integers).count
    low = 0 if (<const GatherArgs *> integers).from_zero else -rows
    return f"index {bad} is outside the table's [{low}, {rows})"

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The table of ops, the walk over the ops of a bound plan, and the loop over the steps of a cycle.

An op is one row: its kind, its struct of int64 members, the function that runs it. The modules of this package add
their rows when they are imported. `OP_FIELDS` holds the members of each struct by name, in the order of memory:

    int64_t rows            rows
    int64_t x_stride[3]     x_stride0 x_stride1 x_stride2
    int64_t in_buffer[2]    in0_buffer in1_buffer        (one entry per input: the number follows "in")
    int64_t in_stride[2][3] in0_stride0 .. in1_stride2
    Window window           the members of Window
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from fastrnn.machine._isa cimport fpu_enter, fpu_leave
from fastrnn.ops._frame cimport LEVELS as ROW_LEVELS, Frame, halt

cdef enum:
    MOST_OPS = 64
    OP_WORK = 1000  # operations counted for every op, in addition to those that it reports

cdef struct Op:
    run_fn run
    explain_fn explain

cdef Op OPS[MOST_OPS]

LEVELS = ROW_LEVELS  # loops of rows that a row op walks
OP_FIELDS = {}
KINDS = {}  # kind -> its row of OPS


# ---- rows ----------------------------------------------------------------------------------------------------------

cdef void number(void *structs, size_t size) noexcept:
    """Write 0, 1, 2, ... to the int64s of some structs, so that each member holds its own index."""
    cdef size_t i
    for i in range(size // sizeof(int64_t)):
        (<int64_t *> structs)[i] = i


cdef int add_op(str kind, dict struct, run_fn run, explain_fn explain) except -1:
    """Add a row. struct: a numbered instance; explain: NULL for an op that never fails."""
    places = dict(_members("", struct))
    names = sorted(places, key=places.get)
    if [places[name] for name in names] != list(range(len(names))) or kind in KINDS or len(KINDS) == MOST_OPS:
        raise ImportError(f"op {kind}: members {places} of {len(KINDS)} ops")
    OP_FIELDS[kind], KINDS[kind] = tuple(names), len(KINDS)
    OPS[KINDS[kind]].run, OPS[KINDS[kind]].explain = run, explain
    return 0


def _members(name, value):
    """(name, place) of every int64 of a member."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _members(key, inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _members(f"in{i}_{name[3:]}" if name.startswith("in_") else f"{name}{i}", inner)
    else:
        yield name, value


# ---- the walk --------------------------------------------------------------------------------------------------------

cdef int walk(int64_t n_ops, const int32_t *kinds, const int64_t *starts, const int64_t *integers, Frame *f,
              int64_t *bad) noexcept nogil:
    """Run the ops once. Returns -1, or the number of the op that failed, with the offending integer in `bad`.
    If a signal's handler raised, f.halted is set and some ops have not run.

    In kinds and starts, the bodies of loops follow after the n_ops ops."""
    cdef int64_t i
    cdef int at, failed = -1
    cdef uint64_t token = fpu_enter()
    f.integers = integers
    for i in range(n_ops):
        f.kinds, f.starts = kinds + i, starts + i
        at = OPS[kinds[i]].run(integers + starts[i], f)
        if at != DONE:
            failed, bad[0] = <int> i + at, f.bad
            break
        if halt(f, OP_WORK):
            break
    fpu_leave(token)
    return failed


cdef object explain(int32_t kind, const int64_t *integers, int64_t bad):
    """What was wrong with the integer `bad` that made an op of this kind fail."""
    return OPS[kind].explain(integers, bad)


# ---- the loop over the steps of a cycle ------------------------------------------------------------------------------
# Its body is an ordinary list of ops, bound to step 0. Only offsets change from step to step, each by a fixed distance.

cdef struct LoopArgs:
    int64_t steps, body, count, moves, n_moves  # body: its first op, counted from the loop's own


cdef void move(const int64_t *integers, const LoopArgs *a, int64_t steps) noexcept nogil:
    """Add `steps` times its distance to each offset of the body. The integers belong to the scratch, which only one
    call uses at a time. All other functions treat them as constant."""
    cdef int64_t m
    cdef const int64_t *pair = integers + a.moves
    for m in range(a.n_moves):
        (<int64_t *> integers)[pair[2 * m]] += steps * pair[2 * m + 1]


cdef int run_loop(const int64_t *args, Frame *f) noexcept nogil:
    cdef const LoopArgs *a = <const LoopArgs *> args
    cdef const int32_t *kinds = f.kinds + a.body
    cdef const int64_t *starts = f.starts + a.body
    cdef const int64_t *integers = f.integers
    cdef int64_t t = 0
    cdef int failed = -1
    while t < a.steps and failed < 0 and not f.halted:
        failed = walk(a.count, kinds, starts, integers, f, &f.bad)
        move(integers, a, 1)
        t += 1
    move(integers, a, -t)
    return DONE if failed < 0 else <int> a.body + failed


cdef union Args:
    LoopArgs loop

cdef Args args
number(&args, sizeof(args))
add_op("loop", args.loop, run_loop, NULL)

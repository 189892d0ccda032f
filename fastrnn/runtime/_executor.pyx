# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Programs and streams: what runs models. The ops themselves are in fastrnn/ops.

Program     a plan made executable: ops, packed weights, coefficients. Immutable; shared by threads.
Scratch     a program bound to sizes: evaluated integers, and the arena. Used by one call at a time.
StreamCore  the state of one stream (or of several in lock-step) and the calls that step it.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

cimport numpy as cnp

from fastrnn.ops._frame cimport ALIGN, Frame
from fastrnn.machine._isa cimport (
    FRNN_FLOPS_A_THREAD,
    PackedCell,
    PackedLinear,
    frnn_act,
    frnn_cell,
    fpu_enter,
    fpu_leave,
    frnn_program,
    kernels_named,
    team_begin,
    team_end,
)
from fastrnn.ops._walk cimport explain, walk
from fastrnn.runtime._timing cimport walk_timed

import threading

import numpy as np

from ..ops import KINDS, OP_FIELDS
from ..compile.bounds import Bounds
from ..errors import ShapeError, StreamError
from ..compile.plan import LARGEST, Coefficients

cnp.import_array()

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec, tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *t)

cdef extern from "Python.h":
    int PyErr_CheckSignals()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)
cdef extern from * nogil:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define FRNN_REDZONE 64
    #else
    #define FRNN_REDZONE 0
    #define ASAN_POISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
    #define ASAN_UNPOISON_MEMORY_REGION(start, size) ((void)(start), (void)(size))
    #endif
    """
    enum: FRNN_REDZONE  # bytes behind each slot of an arena that no op may touch: seen by AddressSanitizer alone
    void ASAN_POISON_MEMORY_REGION(void *start, size_t size)
    void ASAN_UNPOISON_MEMORY_REGION(void *start, size_t size)

DEF FARTHEST = 1 << 50  # elements from the start of a buffer; no memory has so many, and float64 counts them exactly

# Work of a call, in floating-point operations, from which something pays; an op does 40 to 100 of them a nanosecond.
cdef int64_t FLOPS_HOLDING_GIL = 40_000  # about 1 us: handing the GIL over and back takes 0.1 to 0.3
# A thread's least share is FRNN_FLOPS_A_THREAD, where workers are awake. A core that has gone to sleep takes 0.5
# ms and more to come back (LSTM 512, 2 ms between calls, one thread / two: 16 rows 660 / 744 us, 32 rows 1664 / 1475,
# 64 rows 2996 / 1650), so after a pause a call is shared only from about 1 ms on.
cdef int64_t FLOPS_WORTH_WAKING = 100_000_000
cdef int64_t AWAKE_NS = 200_000
# A call with so much work (5 ms of a fast core, 50 of a slow one) looks for signals every LOOK_NS, so that Ctrl-C ends
# it; taking the GIL back for that costs up to 5 ms where another thread computes in Python. Callers put states back.
cdef int64_t LOOK_NS = 20_000_000
cdef int64_t last_shared = 0  # when the last call ended that could have been shared; read and written with the GIL

# Scratch kept for reuse, a program: one of the last size used, unless it is large, and some of other sizes.
cdef int64_t LARGE_BYTES = 32 << 20
cdef int64_t KEPT_BYTES = 16 << 20
cdef int KEPT_SIZES = 32


cdef class Scratch:
    """A program bound to sizes, and the arena it works in. One call at a time uses it."""

    def __dealloc__(self):
        PyMem_Free(self.integers)
        PyMem_Free(self.linear)
        PyMem_Free(self.base)
        if self.arena != NULL:
            ASAN_UNPOISON_MEMORY_REGION(self.arena, self.arena_bytes)
        free(self.arena)


cdef class Program:
    """An executable plan.

    Parameters
    ----------
    plan : fastrnn.compile.plan.Plan
    threads : the most that a call may use; a call with little work uses fewer

    Threads may share a program: all that changes lies in `Scratch` objects, which it keeps for reuse.
    """

    def __cinit__(self, plan, int threads=1):
        self.plan, self.threads = plan, threads
        self.n_ops = len(plan.ops)
        self.n_inputs, self.n_outputs = len(plan.inputs), len(plan.outputs)
        self.n_constants, self.n_slots = len(plan.constants), len(plan.slot_sizes)
        self.state_size = plan.state_size
        self.spare = {}
        self.frame.table = kernels_named(plan.isa)
        self.frame.slab_row = self.state_size
        self.may_fail = plan.may_fail
        self.position = plan.position
        self.room = -1 if plan.room is None or plan.paced else plan.room  # a paced stream asks by itself
        self._take_weights(plan)
        self._take_ops(plan)

    def __dealloc__(self):
        PyMem_Free(self.kinds)
        PyMem_Free(self.starts)
        PyMem_Free(self.accesses)
        PyMem_Free(<void *> self.frame.cells)
        PyMem_Free(<void *> self.frame.linears)
        PyMem_Free(<void *> self.frame.linear_sizes)
        PyMem_Free(<void *> self.frame.linear_acts)
        PyMem_Free(<void *> self.frame.programs)

    cdef _take_weights(self, plan):
        cdef const frnn_cell **cells = <const frnn_cell **> allocate(len(plan.cells), sizeof(void *))
        cdef const float **linears = <const float **> allocate(len(plan.linears), sizeof(void *))
        cdef int64_t *sizes = <int64_t *> allocate(len(plan.linears), 2 * sizeof(int64_t))
        cdef frnn_act *acts = <frnn_act *> allocate(len(plan.linears), sizeof(frnn_act))
        cdef frnn_program *programs = <frnn_program *> allocate(len(plan.programs), sizeof(frnn_program))
        self.frame.cells, self.frame.linears, self.frame.linear_sizes = cells, linears, sizes
        self.frame.linear_acts, self.frame.programs = acts, programs
        self.keep = (plan.cells, plan.linears, plan.constants)
        for i, cell in enumerate(plan.cells):
            cells[i] = &(<PackedCell?> cell).cell
        for i, (packed, act) in enumerate(plan.linears):
            linears[i] = (<PackedLinear?> packed).data
            sizes[2 * i], sizes[2 * i + 1] = (<PackedLinear> packed).K, (<PackedLinear> packed).N
            acts[i].fn, acts[i].alpha, acts[i].beta = act[0], act[4], act[5]
        for i, (n_in, instructions) in enumerate(plan.programs):
            programs[i].n_in, programs[i].n_instructions = n_in, len(instructions)
            for j, (fn, a, b, c, alpha, beta) in enumerate(instructions):
                programs[i].instructions[j].fn = fn
                programs[i].instructions[j].a = a
                programs[i].instructions[j].b = b
                programs[i].instructions[j].c = c
                programs[i].instructions[j].alpha = alpha
                programs[i].instructions[j].beta = beta

    cdef _take_ops(self, plan):
        """Every integer of every op, the work of the plan, the size of every slot, as rows of coefficients."""
        self.every_op = plan.every_op
        self.kinds = <int32_t *> allocate(len(self.every_op), sizeof(int32_t))
        self.starts = <int64_t *> allocate(len(self.every_op) + 1, sizeof(int64_t))
        first = {"input": 0, "output": self.n_inputs, "const": self.n_inputs + self.n_outputs}
        first["arena"] = first["const"] + self.n_constants
        coefficients = Coefficients(plan.timetable if plan.paced else None)
        starts = coefficients.add_ops(plan, OP_FIELDS, first)
        for i, op in enumerate(self.every_op):
            self.kinds[i], self.starts[i] = KINDS[op.kind], starts[i]
        self.starts[len(self.every_op)] = starts[len(self.every_op)]
        self.n_integers = len(coefficients.rows)
        coefficients.add(plan.flops)
        self.bounds = Bounds(plan, coefficients)
        self.n_bound = len(coefficients.rows)
        self.n_accesses = len(self.bounds.about)
        self.accesses = <int64_t *> allocate(len(self.bounds.table), sizeof(int64_t))
        for i, number in enumerate(self.bounds.table):
            self.accesses[i] = number
        self.slot_rows = []
        for sizes in plan.slot_sizes:
            self.slot_rows.append(len(coefficients.rows))
            for size, _ in sizes:
                coefficients.add(size)
        self.coefficients = coefficients
        self.matrix = coefficients.matrix()
        self.batch_linear = self._is_batch_linear(plan)
        self.magnitude = np.abs(self.matrix).astype(np.float64)

    def _is_batch_linear(self, plan):
        """Whether a scratch can be bound to another batch by one multiply-add an integer, in the arena it has."""
        if plan.depends("batch") or self.coefficients.degree("batch") > 1:
            return False
        arena = self.matrix[self.n_bound :, self.coefficients.holds("batch")]
        return bool((arena >= 0).all())  # a smaller batch never takes more room

    # -- binding to sizes --
    cdef Scratch take(self, int64_t batch, int64_t time, int64_t span):
        """A scratch for these sizes that nobody else uses. Needs the GIL; give it back."""
        cdef Scratch s = self.idle
        if s is None or s.time != time or s.span != span:
            return self._take_other(batch, time, span)
        if s.batch != batch:
            if not self.batch_linear or batch > s.room:
                return self._take_other(batch, time, span)
            self.idle = None
            self._rebind(s, batch)
        self.idle = None
        return s

    cdef Scratch _take_other(self, int64_t batch, int64_t time, int64_t span):
        cdef Scratch s = None
        cdef int64_t room = batch
        key = (0 if self.batch_linear else batch, time)
        waiting = self.spare.get(key)
        if waiting:
            s = waiting.pop()
            self.kept_bytes -= s.arena_bytes
            if not waiting:
                del self.spare[key]
            if s.room < batch:  # a batch that grows: the room doubles, so that few arenas are made on the way
                room = max(batch, min(2 * s.room, 2 * batch))
                s = None
        elif self.batch_linear and self.idle is not None and self.idle.time == time and self.idle.room < batch:
            room = max(batch, min(2 * self.idle.room, 2 * batch))
            self.idle = None
        if s is None:
            s = self._new_scratch(batch, time, room)
        if s.span != span:
            s.batch = batch
            self._evaluate(s, span)
        elif s.batch != batch:
            self._rebind(s, batch)
        return s

    cdef void give(self, Scratch s) noexcept:
        """Keep a scratch for the next call of its sizes: one at hand, and a few of other sizes, newest kept."""
        cdef Scratch old = self.idle
        if s.arena_bytes > LARGE_BYTES:  # a rare, long run: making it again costs little beside the work
            return
        self.idle = s
        if old is not None:
            self._keep(old)

    cdef void _keep(self, Scratch s) noexcept:
        """Add to those of other sizes, while all of them together are small: the oldest sizes go first."""
        if s.arena_bytes > KEPT_BYTES:
            return
        key = (0 if self.batch_linear else s.batch, s.time)
        waiting = self.spare.pop(key, [])
        waiting.append(s)
        self.spare[key] = waiting
        self.kept_bytes += s.arena_bytes
        while self.kept_bytes > KEPT_BYTES or len(self.spare) > KEPT_SIZES:
            oldest = next(iter(self.spare))
            gone = self.spare[oldest].pop(0)
            self.kept_bytes -= (<Scratch> gone).arena_bytes
            if not self.spare[oldest]:
                del self.spare[oldest]

    cdef Scratch _new_scratch(self, int64_t batch, int64_t time, int64_t room):
        """Sizes and arena; room: the largest batch that it may be bound to later."""
        cdef Scratch s = Scratch.__new__(Scratch)
        cdef int64_t i, place
        cdef int64_t n_base = self.n_inputs + self.n_outputs + self.n_constants
        self.plan.check_sizes(batch, time)
        s.batch, s.time, s.span, s.room, s.n_linear = batch, time, -1, room, -1
        s.integers = <int64_t *> allocate(self.n_bound, sizeof(int64_t))
        s.base = <void **> allocate(n_base + self.n_slots, sizeof(void *))
        sizes = [-(-size // ALIGN) * ALIGN + FRNN_REDZONE for size in self._slot_bytes(room, time)]
        total = max(sum(sizes), 1)
        if total > 1 << 40:
            raise ShapeError(f"batch {batch} and time {time} would take {total >> 30} GiB of scratch")
        if posix_memalign(<void **> &s.arena, ALIGN, total) != 0:
            raise MemoryError(f"no {total} bytes of scratch for batch {batch}, time {time}")
        s.arena_bytes = total
        place = 0
        if FRNN_REDZONE:
            ASAN_POISON_MEMORY_REGION(s.arena, total)
        for i, size in enumerate(self._slot_bytes(room, time)):
            s.base[n_base + i] = s.arena + place
            ASAN_UNPOISON_MEMORY_REGION(s.arena + place, size)
            place += sizes[i]
        for i, array in enumerate(self.plan.constants):
            s.base[self.n_inputs + self.n_outputs + i] = cnp.PyArray_DATA(<cnp.ndarray> array)
        return s

    def _slot_bytes(self, int64_t batch, int64_t time):
        """Bytes of each slot of the arena at these sizes."""
        values = self._values(batch, time, time)
        sizes = []
        for first, shared in zip(self.slot_rows, self.plan.slot_sizes, strict=True):
            need = [min(int(v), v if cap is None else cap) for v, (_, cap) in zip(values[first:], shared, strict=False)]
            sizes.append(max(0, *need))
        return sizes

    def arena_bytes(self, batch, time):
        """Bytes that a call at these sizes works in, besides its arguments and the states."""
        return sum(-(-size // ALIGN) * ALIGN for size in self._slot_bytes(batch, time))

    cdef _values(self, int64_t batch, int64_t time, int64_t span):
        monomials = self.coefficients.evaluate_monomials(batch, time, span)
        if (self.magnitude @ np.abs(monomials)).max(initial=0) > LARGEST:  # in float64, which does not wrap around
            raise ShapeError(f"batch {batch} and time {time} are too large for this model")
        return self.matrix @ monomials

    cdef _evaluate(self, Scratch s, int64_t span):
        """The integers of all ops at the sizes of s."""
        cdef int64_t[::1] values = self._values(s.batch, s.time, span)
        memcpy(s.integers, &values[0], self.n_bound * sizeof(int64_t))
        s.span = span
        s.n_linear = -1
        self._check_bounds(s)

    cdef _rebind(self, Scratch s, int64_t batch):
        """Bind to another batch of at most `s.room` rows: only the integers that grow with the batch are written.

        Some 20 to 500 of them, one multiply-add each, where a matrix product of all takes 10 us and more.
        """
        cdef int64_t i
        cdef int64_t *entry
        cdef int64_t[:, ::1] table
        if s.n_linear < 0:
            self._values(s.room, s.time, s.span)  # refuses sizes that would wrap around
            monomials = self.coefficients.evaluate_monomials(1, s.time, s.span)
            rows = self.matrix[: self.n_bound]
            growth = rows @ np.where(self.coefficients.holds("batch"), monomials, 0)
            changed = np.flatnonzero(growth)
            at_zero = rows[changed] @ monomials - growth[changed]
            table = np.ascontiguousarray(np.stack([changed, at_zero, growth[changed]], 1), np.int64)
            PyMem_Free(s.linear)
            s.linear = NULL
            s.linear = <int64_t *> allocate(3 * len(changed), sizeof(int64_t))
            s.n_linear = len(changed)
            if s.n_linear:
                memcpy(s.linear, &table[0, 0], 3 * s.n_linear * sizeof(int64_t))
        for i in range(s.n_linear):
            entry = s.linear + 3 * i
            s.integers[entry[0]] = entry[1] + entry[2] * batch
        s.batch = batch
        self._check_bounds(s)

    cdef int _check_bounds(self, Scratch s) except -1:
        """Raise ShapeError if an op, run at the sizes that s is bound to, would touch memory that is not its own.

        Every binding comes here, and nothing else makes the integers of ops: so no op has to check its own.
        """
        cdef int64_t k, level, count, first, last, room, size
        cdef double span
        cdef bint empty
        cdef const int64_t *access = self.accesses
        cdef const int64_t *n = s.integers
        for k in range(self.n_accesses):
            first = last = n[access[1]]
            room = (max(s.batch, 1) if access[0] < 0 else n[access[0]]) // access[2]
            empty = False
            size = 0
            for level in range(access[3]):
                count = n[access[4 + 2 * level]]
                if count <= 0:
                    empty = True
                    size = min(size, count)
                    continue
                span = <double> (count - 1) * <double> n[access[5 + 2 * level]]
                if span > FARTHEST or span < -FARTHEST:
                    first, last = -FARTHEST, FARTHEST
                elif span < 0:
                    first += <int64_t> span
                else:
                    last += <int64_t> span
            if size < 0 or not (empty or (0 <= first and last < room)):
                self._refuse(s, k, size, first, last, room)
            access += 4 + 2 * access[3]
        return 0

    cdef _refuse(self, Scratch s, int64_t k, int64_t size, int64_t first, int64_t last, int64_t room):
        op, access = self.bounds.about[k]
        what = "elements" if access.buffer is not None else "rows of states"
        text = f"a count of {size}" if size < 0 else f"{what} {first} to {last} of {room}"
        given = f"{s.time} steps" if not self.plan.paced else "the steps of this call"
        raise ShapeError(
            f"node {op.node}: at batch {s.batch} and {given} its {op.kind} ({access.what}) would work with {text}: the "
            "model has no meaning at these sizes; give others"
        )

    @property
    def scratch_bytes(self):
        """Bytes of the scratch that is kept for reuse now."""
        everything = [s for waiting in self.spare.values() for s in waiting]
        if self.idle is not None:
            everything.append(self.idle)
        return sum((<Scratch> s).arena_bytes + 8 * self.n_integers for s in everything)

    # -- running --
    cdef int check_room(self, const float *slab, const int64_t *slots, int64_t first, int64_t rows,
                        int64_t span) except -1:
        """Raise StreamError where one of these rows can't take `span` steps more. Nothing is touched: call it before
        the first of several calls; `call` asks as well."""
        cdef int64_t r, seen
        for r in range(first, first + rows):
            memcpy(&seen, slab + (r if slots == NULL else slots[r]) * self.state_size + self.position, sizeof(int64_t))
            if seen + span > self.room:
                text = f"{self.plan.room_text}; row {r} has taken {seen} steps and is given {span} more"
                raise StreamError(f"{self.plan.graph.name}: {text}. reset() begins anew")
        return 0

    cdef int call(self, Scratch s, float *slab, const int64_t *slots) except -1:
        """Walk the ops once, without the GIL and by several threads where the work is worth it; raise what failed."""
        cdef Frame f = self.frame
        cdef int64_t bad = 0, flops = s.integers[self.n_integers]
        cdef int64_t threads
        cdef bint alone = False
        cdef int failed
        cdef int64_t *ns = NULL if self.timer is None else self.timer.next_row()
        global last_shared
        if self.room >= 0:
            self.check_room(slab, slots, 0, s.batch, s.time)
        f.base, f.slab, f.slots, f.team, f.watch, f.halted = s.base, slab, slots, NULL, NULL, False
        self.frame.turn += s.time
        if flops < FLOPS_HOLDING_GIL:
            failed = self.walked(s, &f, &bad, ns)
        else:
            threads = min(self.threads, flops // FRNN_FLOPS_A_THREAD)
            if threads > 1 and flops < FLOPS_WORTH_WAKING and now_ns() - last_shared > AWAKE_NS:
                alone = True
            if flops >= FLOPS_WATCHED and threading.get_ident() == threading.main_thread().ident:
                f.watch, f.work, f.looked = look, 0, now_ns()
                f.fpu = fpu_enter()
                fpu_leave(f.fpu)
            with nogil:
                f.team = team_begin(1 if alone else <int> threads)
                failed = self.walked(s, &f, &bad, ns)
                team_end(f.team)
            if threads > 1:
                last_shared = now_ns()
        if f.halted:
            return -1  # what the handler raised is set
        if failed >= 0:
            what = explain(self.kinds[failed], s.integers + self.starts[failed], bad)
            raise ShapeError(f"node {self.every_op[failed].node}: {what}")
        return 0

    cdef int walked(self, Scratch s, Frame *f, int64_t *bad, int64_t *ns) noexcept nogil:
        if ns == NULL:
            return walk(self.n_ops, self.kinds, self.starts, s.integers, f, bad)
        return walk_timed(self.n_ops, self.kinds, self.starts, s.integers, f, bad, ns)

    def run(self, inputs, outputs, int64_t batch, int64_t time):
        """Run the plan once on fresh states.

        Parameters
        ----------
        inputs, outputs : sequences of C-contiguous arrays of the plan's dtypes and shapes (the caller checked them)
        batch, time : int
        """
        cdef Scratch s = self.take(batch, time, time)
        cdef float *slab
        cdef int64_t i
        # One row at least: what depends on no row of the batch, as a sum over step numbers, has its state in the first.
        slab_array = np.zeros(max(batch, 1) * max(self.state_size, 1), np.float32)
        slab = <float *> cnp.PyArray_DATA(<cnp.ndarray> slab_array)
        for i, array in enumerate((*inputs, *outputs)):
            s.base[i] = cnp.PyArray_DATA(<cnp.ndarray?> array)
        try:
            self.call(s, slab, NULL)
        finally:
            self.give(s)


cdef int64_t now_ns() noexcept nogil:
    """A clock that only goes forward; some 20 ns a reading."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef int check_signals() except -1:
    """Run the handlers of signals that came; raise what they raise."""
    return PyErr_CheckSignals()


cdef void look(void *frame) noexcept nogil:
    """Run the handlers of signals that came, every 20 ms: only this thread can, and it is not back in Python yet."""
    cdef Frame *f = <Frame *> frame
    cdef int64_t now = now_ns()
    if now - f.looked < LOOK_NS:
        return
    fpu_leave(f.fpu)
    with gil:
        if PyErr_CheckSignals() != 0:
            f.halted = True
    fpu_enter()
    f.looked = now_ns()


cdef void *allocate(int64_t count, size_t size) except NULL:
    cdef void *memory = PyMem_Calloc(max(count, 1), size)
    if memory == NULL:
        raise MemoryError()
    return memory


include "_streams.pxi"

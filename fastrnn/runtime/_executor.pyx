# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Program: an executable plan. The ops themselves are in fastrnn/ops.

A program holds ops, packed weights and coefficients. It is immutable, and threads share it. All mutable data is in the
`Scratch` of a call (_binding.pyx) and in the slab of states that the caller passes in.
"""

from cpython.mem cimport PyMem_Free
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cimport numpy as cnp

from fastrnn.machine._isa cimport (
    FRNN_FLOPS_A_THREAD,
    PackedCell,
    PackedLinear,
    frnn_act,
    frnn_cell,
    fpu_enter,
    fpu_leave,
    frnn_product,
    frnn_program,
    frnn_team,
    kernels_named,
    team_call,
)
from fastrnn.ops._frame cimport Frame
from fastrnn.ops._walk cimport explain, walk
from fastrnn.runtime._binding cimport Binding, Scratch, allocate
from fastrnn.runtime._meter cimport Meter
from fastrnn.runtime._timing cimport now_ns, walk_timed

import threading

from ..ops import KINDS, OP_FIELDS
from ..compile.plan import Coefficients
from ..errors import ShapeError, StreamError
from ..machine import workers

cnp.import_array()

cdef extern from "Python.h":
    int PyErr_CheckSignals()

# Numbers of floating-point operations in a call from which something pays off. An op does 40 to 100 per nanosecond.
cdef int64_t FLOPS_HOLDING_GIL = 40_000  # about 1 us: releasing and taking the GIL takes 0.1 to 0.3
# The least operations of each thread depend on how deep workers sleep, that is, on the time since the last call that
# could have been shared. They poll for 20 us: each thread gets at least FRNN_FLOPS_A_THREAD. Then they sleep. Waking
# them takes 6 us of the caller's time and 11 us until they come (a call of 38 us takes 32 us if it is shared). A core
# that sleeps takes 0.5 ms and more (LSTM 512, 2 ms between calls, one thread / two: 16 rows 660 / 744 us, 32 rows 1664
# / 1475, 64 rows 2996 / 1650), so after such a pause only calls of about 1 ms and more are shared.
cdef int64_t AWAKE_NS = 20_000
cdef int64_t FLOPS_WORTH_CALLING = 4_000_000  # of each thread
cdef int64_t DOZING_NS = 200_000
cdef int64_t FLOPS_WORTH_WAKING = 100_000_000  # of all threads
# A call of FLOPS_WATCHED (5 ms on a fast core, 50 on a slow one) looks for signals every LOOK_NS, so that Ctrl-C ends
# it. Taking the GIL for this costs up to 5 ms if another thread is running Python code. Callers restore the states.
cdef int64_t LOOK_NS = 20_000_000
cdef int64_t last_shared = 0  # end time of the last call that could have been shared; read and written with the GIL


cdef struct Walk:  # a walk over the ops of a program, with the workers of its call
    Frame *f
    int64_t n_ops
    const int32_t *kinds
    const int64_t *starts
    const int64_t *integers
    int64_t *bad
    int64_t *ns  # where the time of each op goes; NULL: not wanted
    int failed  # as `walk` returns it


cdef void walk_ops(frnn_team *team, void *context) noexcept nogil:
    cdef Walk *w = <Walk *> context
    w.f.team = team
    if w.ns == NULL:
        w.failed = walk(w.n_ops, w.kinds, w.starts, w.integers, w.f, w.bad)
    else:
        w.failed = walk_timed(w.n_ops, w.kinds, w.starts, w.integers, w.f, w.bad, w.ns)


cdef class Program(Binding):
    """An executable plan.

    Parameters
    ----------
    plan : fastrnn.compile.plan.Plan
    threads : the most threads that a call may use; a call with little work uses fewer

    Threads may share a program.
    """

    def __cinit__(self, plan, int threads=1):
        self.threads, self.n_ops, self.state_size = threads, len(plan.ops), plan.state_size
        self.frame.table = kernels_named(plan.isa)
        self.frame.slab_row = self.state_size
        self.may_fail = plan.may_fail
        if threads > 1:
            workers.prepare()
        self.meter = Meter()
        self.own_floats = self.state_size if plan.mode == "run" else 0
        self.position = plan.position
        self.room = -1 if plan.room is None or plan.paced else plan.room  # a paced stream does its own check
        self._take_weights(plan)
        self._take_ops(plan)

    def __dealloc__(self):
        PyMem_Free(self.kinds)
        PyMem_Free(self.starts)
        PyMem_Free(<void *> self.frame.cells)
        PyMem_Free(<void *> self.frame.linears)
        PyMem_Free(<void *> self.frame.linear_sizes)
        PyMem_Free(<void *> self.frame.linear_products)
        PyMem_Free(<void *> self.frame.linear_acts)
        PyMem_Free(<void *> self.frame.programs)

    cdef _take_weights(self, plan):
        cdef const frnn_cell **cells = <const frnn_cell **> allocate(len(plan.cells), sizeof(void *))
        cdef const float **linears = <const float **> allocate(len(plan.linears), sizeof(void *))
        cdef int64_t *sizes = <int64_t *> allocate(len(plan.linears), 2 * sizeof(int64_t))
        cdef const frnn_product **products = <const frnn_product **> allocate(len(plan.linears), sizeof(void *))
        cdef frnn_act *acts = <frnn_act *> allocate(len(plan.linears), sizeof(frnn_act))
        cdef frnn_program *programs = <frnn_program *> allocate(len(plan.programs), sizeof(frnn_program))
        self.frame.cells, self.frame.linears, self.frame.linear_sizes = cells, linears, sizes
        self.frame.linear_products, self.frame.linear_acts, self.frame.programs = products, acts, programs
        self.keep = (plan.cells, plan.linears, plan.constants)
        for i, cell in enumerate(plan.cells):
            cells[i] = &(<PackedCell?> cell).cell
        for i, (packed, act) in enumerate(plan.linears):
            linears[i], products[i] = (<PackedLinear?> packed).data, (<PackedLinear> packed).product
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
        """Lay out the integers of all ops, one row of coefficients each, for the base class to bind."""
        cdef int64_t i
        self.every_op = plan.every_op
        self.kinds = <int32_t *> allocate(len(self.every_op), sizeof(int32_t))
        self.starts = <int64_t *> allocate(len(self.every_op) + 1, sizeof(int64_t))
        n_arguments = len(plan.inputs) + len(plan.outputs)
        first = {"input": 0, "output": len(plan.inputs), "const": n_arguments}
        first["arena"] = n_arguments + len(plan.constants)
        coefficients = Coefficients(plan.timetable if plan.paced else None)
        starts = coefficients.add_ops(plan, OP_FIELDS, first)
        for i, op in enumerate(self.every_op):
            self.kinds[i] = KINDS[op.kind]
        for i in range(len(self.every_op) + 1):
            self.starts[i] = starts[i]
        self.bind(plan, coefficients)

    # -- running --
    cdef int check_room(self, const float *slab, const int64_t *slots, int64_t first, int64_t rows,
                        int64_t span) except -1:
        """Raise StreamError, before any change, if one of these rows can't take `span` more steps. `call` checks this
        too. If several calls belong together, check before the first one."""
        cdef int64_t r, seen
        for r in range(first, first + rows):
            memcpy(&seen, slab + (r if slots == NULL else slots[r]) * self.state_size + self.position, sizeof(int64_t))
            if seen + span > self.room:
                self.refuse(f"row {r}", seen, span)
        return 0

    cdef int refuse(self, str who, int64_t taken, int64_t span) except -1:
        """Raise StreamError: after that many steps, a stream has no room for `span` more."""
        text = f"{self.plan.room_text}; {who} has taken {taken} steps and is given {span} more"
        raise StreamError(f"{self.plan.graph.name}: {text}. reset() begins anew")

    cdef int call(self, Scratch s, float *slab, const int64_t *slots) except -1:
        """Walk the ops once, with several threads and without the GIL if there is enough work. Raises on failure."""
        cdef Frame f = self.frame
        cdef int64_t bad = 0, flops = s.integers[self.n_integers], began = self.meter.begin()
        cdef int64_t threads, pause
        cdef bint could_share
        cdef Walk w
        global last_shared
        if self.room >= 0:
            self.check_room(slab, slots, 0, s.batch, s.time)
        f.base, f.slab, f.slots, f.team, f.watch, f.halted = s.base, slab, slots, NULL, NULL, False
        self.frame.turn += s.time
        if flops < FLOPS_HOLDING_GIL and self.timer is None:
            w.failed = walk(self.n_ops, self.kinds, self.starts, s.integers, &f, &bad)
        else:
            w.f, w.n_ops, w.kinds, w.starts, w.integers = &f, self.n_ops, self.kinds, self.starts, s.integers
            w.bad, w.ns = &bad, NULL if self.timer is None else self.timer.next_row()
            threads = min(self.threads, flops // FRNN_FLOPS_A_THREAD)
            could_share = threads > 1
            if could_share and flops < FLOPS_WORTH_WAKING:
                pause = now_ns() - last_shared
                if pause > AWAKE_NS:
                    threads = 1 if pause > DOZING_NS else min(threads, flops // FLOPS_WORTH_CALLING)
            if flops >= FLOPS_WATCHED and threading.get_ident() == threading.main_thread().ident:
                f.watch, f.work, f.looked = look, 0, now_ns()
                f.fpu = fpu_enter()
                fpu_leave(f.fpu)
            with nogil:
                team_call(<int> threads, walk_ops, &w)
            if could_share:
                last_shared = now_ns()
        if f.halted:
            return -1  # the handler's exception is set
        if w.failed >= 0:
            what = explain(self.kinds[w.failed], s.integers + self.starts[w.failed], bad)
            raise ShapeError(f"node {self.every_op[w.failed].node}: {what}")
        self.meter.end(began, s.batch, s.time)
        return 0

    cdef int run_on(self, Scratch s) except -1:
        """Run the plan once on fresh states, on a scratch that has the memory of all arguments."""
        memset(s.states, 0, max(s.batch, 1) * self.own_floats * sizeof(float))
        return self.call(s, s.states, NULL)

    def run(self, inputs, outputs, int64_t batch, int64_t time):
        """Run the plan once on fresh states.

        Parameters
        ----------
        inputs, outputs : sequences of C-contiguous arrays of the plan's dtypes and shapes (the caller checked them)
        batch, time : int
        """
        cdef Scratch s = self.take(batch, time, time)
        cdef int64_t i
        cdef float *states
        for i, array in enumerate((*inputs, *outputs)):
            s.base[i] = cnp.PyArray_DATA(<cnp.ndarray?> array)
        states = <float *> allocate(max(batch, 1) * max(self.state_size, 1), sizeof(float))
        try:
            self.call(s, states, NULL)
        finally:
            PyMem_Free(states)
            self.give(s)


cdef void look(void *frame) noexcept nogil:
    """Every 20 ms, run the handlers of pending signals. Only this thread can run them, and it is not in Python yet."""
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

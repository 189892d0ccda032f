# Streams: what all of a kind share, and the state and calls of each. A part of _executor.pyx.

cdef class StreamParts:
    """What all streams of one model, batch size and context share, so that a stream is little more than its state.

    Made by `Model._stream_parts`, never changed. program is None, and all below it empty, where the model leaves sizes
    open: the first step of a stream fixes them, and gives it other parts.

    batch_size : int or None, as the stream was asked for; batch : rows of its slab
    context : bound of attention; sizes : of those that the model leaves open, by name
    layout : StateLayout; inputs, outputs : lists of Argument; names : of the inputs
    time_axis, plain_shape : of a chunk that needs no general check; plain_shape is None where all need it
    timetable : of a model whose outputs don't come one a step; room : steps that its streams can take, -1: any number
    """

    cdef readonly Program program
    cdef readonly object batch_size, context, layout, plain_shape, timetable
    cdef readonly dict sizes
    cdef readonly list inputs, outputs, names
    cdef readonly int64_t batch, time_axis, room
    cdef bint simple
    cdef Form x_form, y_form

    def __init__(self, batch_size=None, context=None, sizes=None, Program program=None, layout=None, inputs=(),
                 outputs=(), forms=()):
        """forms : () or, for a model with one float32 input and output, each one's (numpy type number, shape)."""
        self.batch_size, self.context, self.sizes = batch_size, context, dict(sizes or {})
        self.batch, self.room = batch_size or 1, -1
        self.program, self.layout, self.inputs, self.outputs = program, layout, list(inputs), list(outputs)
        self.names = [a.name for a in inputs]
        if inputs:
            self.time_axis = len(inputs[0]._lead(batch_size))
        if program is not None and program.plan.paced:
            self.timetable = program.plan.timetable
            self.room = -1 if program.plan.room is None else program.plan.room
        self.simple = len(forms) == 2
        if self.simple:
            set_form(&self.x_form, forms[0])
            set_form(&self.y_form, forms[1])
            if all(a.timed for a in (*inputs, *outputs)):
                self.plain_shape = forms[0][1]


cdef int set_form(Form *form, given) except -1:
    cdef int i
    form.type, form.ndim = given[0], len(given[1])
    for i, size in enumerate(given[1]):
        form.dims[i] = size
    return 0


cdef StreamParts NO_PARTS = StreamParts()


cdef class Alone:
    """A context manager that has a stream for itself. `__enter__` is one call in C: a Ctrl-C comes before it or inside
    the `with`, never between, where nobody would let go again."""

    cdef StreamCore stream

    def __enter__(self):
        self.stream.hold()

    def __exit__(self, *error):
        self.stream.busy = False


cdef class StreamCore:
    """The state of one stream, or of `batch` streams in lock-step, and the calls that advance it.

    `step` is the fast path: where x (and out) are plain arrays of the right form it goes straight to the program;
    everything else goes to `_step_general` of the subclass, which checks, converts or explains.
    """

    cdef readonly StreamParts _parts
    cdef float *slab_data  # [batch, state_size]
    cdef public int64_t steps_done
    cdef bint busy
    cdef public bint ended  # flushed: of models whose outputs don't come one a step

    def __cinit__(self, *args, **kwargs):
        self._parts = NO_PARTS

    def __dealloc__(self):
        PyMem_Free(self.slab_data)

    def _begin(self, StreamParts parts):
        """Take the parts, and lay out the state where they have a program."""
        cdef int64_t r, row
        cdef cnp.ndarray initial
        if parts.program is not None:
            row, initial = parts.program.state_size, parts.layout.initial_row
            self.slab_data = <float *> allocate(parts.batch, max(row, 1) * sizeof(float))  # calloc sees an overflow
            for r in range(parts.batch):
                memcpy(self.slab_data + r * row, cnp.PyArray_DATA(initial), row * sizeof(float))
        self._parts = parts

    @property
    def program(self):
        """The Program that runs the stream; None before the sizes of a step are known."""
        return self._parts.program

    @property
    def batch(self):
        """Rows of the slab."""
        return self._parts.batch

    @property
    def batch_size(self):
        """As the stream was asked for: None, or how many rows are in lock-step."""
        return self._parts.batch_size

    @property
    def slab(self):
        """float32 [batch, state_size], the states: a view; None before the sizes of a step are known."""
        cdef cnp.npy_intp dims[2]
        if self.slab_data == NULL:
            return None
        dims[0], dims[1] = self._parts.batch, self._parts.program.state_size
        view = cnp.PyArray_SimpleNewFromData(2, dims, cnp.NPY_FLOAT32, self.slab_data)
        cnp.set_array_base(view, self)
        return view

    def step(self, x, out=None):
        """Advance by one time step.

        Parameters
        ----------
        x : array or list, shape [features...], or [batch_size, features...] for a stream opened with batch_size
            dtypes as in `Model.run`
            A model with several inputs takes a tuple in the order of `model.inputs`, or a dict by name.
        out : array, optional
            Where the result is written: C-contiguous, of the output's dtype and shape. With it, and a
            C-contiguous x of the model's dtype, a step allocates nothing.

        Returns
        -------
        array [features...] or [batch_size, features...] (out where given); a tuple for several outputs.

        Raises
        ------
        ShapeError : dtype or shape of x or out; a number that does not fit; an index outside an embedding's table.
        StreamError : another thread is using this stream.
        """
        cdef Scratch s
        cdef StreamParts p = self._parts
        if not (p.simple and fits(x, &p.x_form)):
            return self._step_general(x, out)
        if out is None:
            out = cnp.PyArray_EMPTY(p.y_form.ndim, p.y_form.dims, p.y_form.type, 0)
        elif not (fits(out, &p.y_form) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out) and apart(x, out)):
            return self._step_general(x, out)
        self.hold()
        try:
            s = p.program.take(p.batch, 1, 1)
            s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
            s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> out)
            try:
                self._call(s)
            finally:
                p.program.give(s)
            self.steps_done += 1
        finally:
            self.busy = False
        return out

    cdef int _call(self, Scratch s) except -1:
        """One call of the program; where it can fail or be interrupted halfway, the state is put back."""
        cdef Program program = self._parts.program
        if not program.may_fail and program.work(s) < FLOPS_WATCHED:
            return program.call(s, self.slab_data, NULL)
        before = self.slab.copy()
        try:
            return program.call(s, self.slab_data, NULL)
        except BaseException:
            self.slab[...] = before
            raise

    def _step_paced(self, x, out):
        """`step` of a plan whose values come at paces of their own, where all has the plain form; else NotImplemented.

        Returns None, and leaves `out` alone, where no step of the output comes.
        """
        cdef Scratch s
        cdef bint comes
        cdef object target = out
        cdef StreamParts p = self._parts
        if not (p.simple and fits(x, &p.x_form)):
            return NotImplemented
        if out is not None and not (fits(out, &p.y_form) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out)
                                    and apart(x, out)):
            return NotImplemented
        self.hold()
        try:
            if self.ended or (p.room >= 0 and self.steps_done >= p.room):
                self._check_room(1)
            counts = p.timetable.counts(self.steps_done, 1)
            comes = counts.outputs[0] != 0
            if out is None or not (comes or p.timetable.most_a_step[0]):  # a value over time is always written
                target = cnp.PyArray_EMPTY(p.y_form.ndim, p.y_form.dims, p.y_form.type, 0)
            s = p.program.take(p.batch, counts.number, 0)
            s.base[0] = cnp.PyArray_DATA(<cnp.ndarray> x)
            s.base[1] = cnp.PyArray_DATA(<cnp.ndarray> target)
            try:
                self._call(s)
            finally:
                p.program.give(s)
            self.steps_done += 1
        finally:
            self.busy = False
        return target if comes else None

    def _call_paced(self, arrays, int64_t number):
        """One call of such a plan, bound to the counts `number`, over contiguous arrays of just the steps that it takes
        and brings. The caller holds the stream, and puts the slab back where this raises."""
        cdef Program program = self._parts.program
        cdef Scratch s = program.take(self._parts.batch, number, 0)
        cdef int64_t i
        for i in range(len(arrays)):
            s.base[i] = cnp.PyArray_DATA(<cnp.ndarray?> arrays[i])
        try:
            program.call(s, self.slab_data, NULL)
        finally:
            program.give(s)

    cdef inline int hold(self) except -1:
        """Take the stream for this thread, until `busy` is False again. Nothing that a call changes may be read before
        that: another thread may be changing it."""
        if self.busy:
            raise StreamError("this stream is in use by another thread, or was when the process was forked; give each "
                              "thread its own stream")
        self.busy = True
        return 0

    def _held(self):
        """A context manager: nobody else has the stream. A thread that uses it meanwhile gets a StreamError."""
        cdef Alone alone = Alone.__new__(Alone)
        alone.stream = self
        return alone

    def _advance(self, inputs, outputs, input_steps, output_steps, int64_t span):
        """Take `span` steps over checked arrays.

        Parameters
        ----------
        inputs, outputs : lists of C-contiguous arrays [batch, span, ...] (or [batch, ...] where they have no time)
        input_steps, output_steps : lists of the bytes from one step of an array to the next; 0 without a time axis
        """
        cdef Program program = self._parts.program
        cdef int64_t done = 0, n, i, batch = self._parts.batch, largest = 1 if program.plan.steps_one else 64
        cdef Scratch s
        cdef list arrays = [*inputs, *outputs]
        cdef list moves = [*input_steps, *output_steps]
        self.hold()
        before = None
        try:
            if program.may_fail:
                before = self.slab.copy()
            if program.room >= 0:
                program.check_room(self.slab_data, NULL, 0, batch, span)
            while done < span:
                n = largest
                while n > span - done:  # powers of two: few sizes to bind, whatever the lengths of chunks
                    n >>= 1
                s = program.take(batch, n, n if batch == 1 else span)
                if done == 0 and before is None and program.work(s) // n * span >= FLOPS_WATCHED:
                    before = self.slab.copy()
                for i in range(len(arrays)):
                    s.base[i] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> arrays[i]) + done * <int64_t> moves[i]
                try:
                    program.call(s, self.slab_data, NULL)
                    if before is not None:
                        check_signals()
                finally:
                    program.give(s)
                done += n
            self.steps_done += span
        except BaseException:
            if before is not None:
                self.slab[...] = before
            raise
        finally:
            self.busy = False

# cython: language_level=3
"""Plain steps of a WebSocket: from the bytes of a frame to the queue of the engine, and back into a frame.

Compiled, because a served step in Python took longer than the step of a small model.
"""

import asyncio
import logging

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int16_t, uint64_t
from libc.string cimport memcpy

from fastrnn.serving._queues cimport Step

from .sequence import Answer
from .turns import named

BINARY, TEXT = 0x82, 0x81  # the first byte of a whole message, without extensions (RFC 6455, section 5.2)

cdef enum:
    WHOLE_BINARY = 0x82
    MASKED = 0x80  # in the second byte, beside the length
    LENGTH_16 = 126  # in place of the length: 16 bits with it follow
    LENGTH_64 = 127  # 64 bits follow

logger = logging.getLogger("fastrnn")


def read_plain(protocol, bytes data):
    """Pass on the messages at the beginning that are plain: whole, masked, binary frames. The rest of the bytes.

    protocol : its `plain` or its `sink` gets each message; without a sink it reads no further.
    """
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at = 0, size = PyBytes_GET_SIZE(data), length, mask, begin, most = protocol.config.ws_max_size
    cdef PlainSteps plain
    while size - at > 6 and p[at] == WHOLE_BINARY:
        sink = protocol.sink
        if sink is None:
            break
        length, mask = <Py_ssize_t>p[at + 1] - MASKED, at + 2
        if length == LENGTH_16:
            length, mask = p[at + 2] << 8 | p[at + 3], at + 4
        elif length == LENGTH_64:
            break
        begin = mask + 4
        if not 0 <= length <= most or begin + length > size:
            break
        at = begin + length
        plain = protocol.plain
        if plain is None or not plain.take(p + begin, length, p + mask):
            sink(unmasked(p + begin, length, p + mask))
    return data[at:] if at else data


cdef bytes unmasked(const unsigned char *data, Py_ssize_t length, const unsigned char *mask):
    cdef bytes found = PyBytes_FromStringAndSize(NULL, length)
    unmask(data, length, mask, <unsigned char *>PyBytes_AS_STRING(found))
    return found


cdef void unmask(const unsigned char *data, Py_ssize_t length, const unsigned char *mask, unsigned char *to) noexcept:
    """Write a message without its mask (RFC 6455, section 5.3)."""
    cdef uint64_t eight, keys
    cdef Py_ssize_t i = 0
    memcpy(<void *>&keys, mask, 4)
    memcpy(<char *>&keys + 4, mask, 4)
    while i + 8 <= length:
        memcpy(&eight, data + i, 8)
        eight ^= keys
        memcpy(to + i, &eight, 8)
        i += 8
    while i < length:
        to[i] = data[i] ^ mask[i & 3]
        i += 1


def frame(int first, bytes data):
    """A whole message as a server sends it. first: BINARY or TEXT."""
    return framed(first, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef bytes framed(int first, const char *data, Py_ssize_t size):
    cdef Py_ssize_t head = 2 if size < LENGTH_16 else 4 if size < 1 << 16 else 10
    cdef Py_ssize_t i
    cdef bytes found = PyBytes_FromStringAndSize(NULL, head + size)
    cdef unsigned char *p = <unsigned char *>PyBytes_AS_STRING(found)
    p[0] = first
    p[1] = size if head == 2 else LENGTH_16 if head == 4 else LENGTH_64
    for i in range(2, head):
        p[i] = (size >> 8 * (head - 1 - i)) & 0xFF
    memcpy(p + head, data, size)
    return found


cdef class PlainSteps(Step):
    """The messages of one connection that are one step each, and begin at once: this is the request for each of them.

    One step of a sequence runs at a time, so one object is enough, with the memory of its input. It is a step for the
    batcher, its future, and what `sequence.Work` is for the sequences. Everything out of the ordinary goes the way of
    other messages: `take` says False, and errors are told to the Direct.

    Parameters
    ----------
    sequences : Sequences
    lane : of the model's version; it has `plain` steps
    call : the Call of such a message
    int16 : messages have 16-bit numbers, not float32
    binary : answers are binary, not JSON

    Attributes
    ----------
    direct : the Direct of the connection
    started : a message before these has started the sequence
    size : bytes of a message
    running : the batcher has the request
    rows : [its sequence]; call, then, settled : as those of a Work
    """

    cdef readonly object call, then
    cdef readonly list rows
    cdef readonly bint running, settled
    cdef readonly Py_ssize_t size
    cdef public bint started
    cdef public object direct
    cdef object sequences, lane, id
    cdef object values, wire  # float32 [features...] of the step; int16, as it came
    cdef float *floats
    cdef int16_t *shorts
    cdef Py_ssize_t elements
    cdef bint floats_out  # an answer is the float32 numbers of one output

    def __init__(self, sequences, lane, call, *, bint int16, bint binary):
        self.values = np.zeros(lane.plain[1:], np.float32)
        self.elements = self.values.size
        self.floats = <float *><size_t>self.values.ctypes.data
        self.size = self.elements * (2 if int16 else 4)
        if int16:
            self.wire = np.zeros(self.elements, np.int16)
            self.shorts = <int16_t *><size_t>self.wire.ctypes.data
        self.future, self.steps, self.arrays = self, 1, (self.values,)
        self.sequences, self.lane, self.call, self.id = sequences, lane, call, call.ids[0]
        self.then, self.rows = sequences.done, []
        output = lane.outputs[0]
        self.floats_out = binary and len(lane.outputs) == 1 and output.batched and output.dtype == "float32"

    # -- a message --
    def post(self, bytes data):
        """Run the step of a message; False, without an effect, if it has to go the way of others."""
        return self.begin(<const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), b"\0\0\0\0")

    cdef bint take(self, const unsigned char *data, Py_ssize_t length, const unsigned char *mask) except -1:
        """`post` of a masked message that has come; it does not overtake others."""
        return self.direct is not None and not self.direct.later and self.begin(data, length, mask)

    cdef bint begin(self, const unsigned char *data, Py_ssize_t length, const unsigned char *mask) except -1:
        cdef Py_ssize_t i
        if length != self.size or self.running or not self.started:
            return False
        sequence = self.at_rest()
        if sequence is None:
            return False
        if self.shorts == NULL:
            unmask(data, length, mask, <unsigned char *>self.floats)
        else:
            unmask(data, length, mask, <unsigned char *>self.shorts)
            for i in range(self.elements):
                self.floats[i] = <float>self.shorts[i] * <float>(1 / 32768.0)
        self.slot = sequence.slot
        self.taken = self.expired = self.settled = False
        self.running = True
        try:
            self.lane.batcher._submit(self)
        except Exception:  # the other way says what is wrong
            self.running = False
            return False
        self.sequences.resting.discard(sequence, None)
        sequence.running = self
        self.rows = [sequence]
        self.direct.running.append(self)
        return True

    cdef at_rest(self):
        """The sequence, if its next step can begin at once; or None. It tests what `Direct`, `Sequences.post` and
        `turns.idle` do."""
        direct, sequences = self.direct, self.sequences
        if direct.running or direct.fault is not None or sequences.closing or sequences.unsure:
            return None
        if sequences.finding is not None and sequences.finding.running(self.id) is not None:
            return None
        sequence = sequences.live.get(self.id)
        if sequence is None or sequence.running is not None or sequence.waiting or sequence.ending:
            return None
        if sequence is not direct.sequence:
            return None
        if sequence.slot is None or sequence.lane is not self.lane or not direct.protocol.writable.is_set():
            return None
        return sequence

    # -- for the batcher --
    def done(self):
        """Whether it ran, or is not wanted any more."""
        return not self.running

    def set_result(self, result):
        """It ran."""
        self.running = False
        try:
            self.answer(result)
        except Exception:  # the answers of a tick's other requests must not wait for ever
            logger.exception("the end of a step failed")

    def set_exception(self, error):
        """It failed."""
        self.end(error)

    cdef answer(self, result):
        """Count the step, send its answer, and go on with what waits."""
        sequences, direct, sequence = self.sequences, self.direct, self.rows[0]
        sequence.running = None
        if sequences.keeper is not None:
            sequences.keeper.stepped(self.rows)
        first = sequence.steps
        sequence.steps = first + 1
        sequences.steps += 1
        self.settled = True
        try:
            if direct.running:  # else it is closed
                direct.running.popleft()
                if direct.sends():
                    try:
                        self.send(direct.protocol, result, first)
                    except Exception:
                        direct.unsent()
                if direct.later or direct.fault is not None or direct.drained is not None:
                    direct.answered()
        except Exception:
            logger.exception("an answer could not be passed on")
        if sequence.running is None and not (sequence.waiting or sequence.ending or sequences.leaving):
            sequences.resting.add_all(self.rows)
        else:
            sequences.advance(sequence)

    cdef send(self, protocol, result, first):
        """Send an answer. first: the step_index of its step."""
        cdef Py_buffer view
        if not self.floats_out:
            outputs = list(result) if isinstance(result, tuple) else [result]
            outputs = named(self.lane, False, outputs)
            self.direct.send(Answer(outputs, (first,), (first + 1,), self.lane.version, self.lane.tick_seconds))
            return
        PyObject_GetBuffer(result, &view, PyBUF_SIMPLE)
        try:
            if protocol.quick():
                protocol.transport.write(framed(WHOLE_BINARY, <const char *>view.buf, view.len))
            else:
                protocol.send_plain(WHOLE_BINARY, PyBytes_FromStringAndSize(<const char *>view.buf, view.len))
        finally:
            PyBuffer_Release(&view)

    # -- as a Work --
    def cancel(self):
        """No tick has to take it."""
        if self.running:
            self.end(asyncio.CancelledError())

    cdef end(self, error):
        """It takes no further step: its connection ends by the error."""
        self.running = self.started = False
        asyncio.get_running_loop().call_soon(self.then, self, None, error)

    def settle(self, result):
        """Tell the connection of a Fault; None: it does not want to know."""
        if not self.settled:
            self.settled = True
            if result is not None:
                self.direct.answer(result)

# cython: language_level=3
"""Requests for a pool that wait, in fair queues. No event loop and no thread: a `Batcher` has both.

Each stream has a queue of its own. Streams take turns: a round takes at most one request of each. The requests of one
stream are answered in the order in which they came. Compiled, because these objects and loops were a third of what a
batched step costs.
"""

from collections import deque

import numpy as np

PUSH_STEPS = 64  # of a chunk that one round takes, so that long chunks leave other streams their turns
MORE = object()  # the answer to a push that has steps left


cdef class Request:
    """What a caller wants of one stream.

    future : gets the answer; `done()` is true if it no longer matters
    steps : how many it takes, of all its streams
    taken : a tick has the request, so the stream's state may change at any time
    expired : the time in which it had to be taken is over
    """

    def __init__(self, slot, future, Py_ssize_t steps=0):
        self.slot, self.future, self.steps = slot, future, steps


cdef class Step(Request):
    """One step. arrays: its inputs, checked, in memory of its own."""

    def __init__(self, slot, future, arrays):
        self.slot, self.future, self.steps, self.arrays = slot, future, 1, arrays


cdef class Many(Request):
    """One step of each of several streams, taken in one call. arrays: the inputs, checked; row i is of slots[i].

    It has a queue of its own: its caller makes sure that nothing else of these streams waits or runs meanwhile.
    """

    cdef readonly object slots, arrays

    def __init__(self, slots, future, arrays):
        self.slot, self.future, self.steps = object(), future, len(slots)
        self.slots, self.arrays = slots, arrays


cdef class Push(Request):
    """A chunk of steps, of which a round takes some. arrays: the inputs, checked; steps: how many they hold."""

    cdef readonly object arrays
    cdef readonly Py_ssize_t at  # steps taken
    cdef list pieces

    def __init__(self, slot, future, arrays, Py_ssize_t steps):
        self.slot, self.future, self.arrays, self.steps, self.pieces = slot, future, arrays, steps, []

    def piece(self, inputs):
        """The inputs of the next steps, a tuple."""
        end = self.at + PUSH_STEPS
        return tuple([v[self.at : end] if a.timed else v for a, v in zip(inputs, self.arrays)])

    def add(self, answer, outputs):
        """Keep the outputs of these steps; the whole answer if they were the last, else MORE."""
        self.pieces.append(answer if isinstance(answer, tuple) else (answer,))
        self.at = min(self.at + PUSH_STEPS, self.steps)
        if self.at < self.steps:
            return MORE
        joined = []
        for a, parts in zip(outputs, zip(*self.pieces)):
            joined.append(parts[-1] if not a.timed else parts[0] if len(parts) == 1 else np.concatenate(parts))
        return joined[0] if len(joined) == 1 else tuple(joined)


cdef class Close(Request):
    """The end of a stream, after the requests before it. snapshot: the answer is the stream's snapshot."""

    cdef readonly bint snapshot

    def __init__(self, slot, future, bint snapshot=False):
        self.slot, self.future, self.snapshot = slot, future, snapshot


cdef class FairQueues:
    """Requests that wait, by stream.

    most : requests that may wait; most_per_stream : of one stream. Those beyond wait outside, in order.
    size : requests inside, including those whose caller has gone
    pressed : some request waits outside, or some stream's queue is full
    """

    cdef readonly Py_ssize_t most, most_per_stream, size
    cdef readonly bint pressed
    # Each stream's queue, in the order of their turns. Most hold one request: that one without a deque, which would
    # cost a fifth of a step.
    cdef dict inside
    cdef dict outside  # slot -> deque

    def __init__(self, Py_ssize_t most, Py_ssize_t most_per_stream):
        self.most, self.most_per_stream = most, most_per_stream
        self.inside, self.outside = {}, {}

    def __len__(self):
        return self.size

    def __contains__(self, slot):
        """Whether a request of this stream waits."""
        return slot in self.inside or slot in self.outside

    cpdef bint has_room(self, slot) except -1:
        """Whether one more request of this stream would wait inside. Requests whose callers have gone leave."""
        cdef Py_ssize_t length
        if self.size >= self.most or slot in self.outside:
            return False
        queue = self.inside.get(slot)
        length = len(listed(queue))
        if length < self.most_per_stream:
            return True
        live = deque([r for r in listed(queue) if not r.future.done()])
        self.size -= length - len(live)
        self.inside[slot] = live
        return len(live) < self.most_per_stream

    cpdef put(self, Request request):
        """Add a request behind those of its stream, inside if there is room."""
        slot = request.slot
        if slot not in self.inside and self.size < self.most and not self.outside:
            self.inside[slot] = request
            self.size += 1
        elif self.has_room(slot):
            self.enter(request)
        else:
            self.outside.setdefault(slot, deque()).append(request)
            self.pressed = True

    cdef enter(self, Request request):
        queue = self.inside.get(request.slot)
        if not isinstance(queue, deque):
            queue = self.inside[request.slot] = deque(listed(queue))
        queue.append(request)
        self.size += 1
        self.pressed |= len(queue) >= self.most_per_stream

    def put_back(self, requests):
        """Return requests that a tick took but did not finish, each to the front of its stream's queue. Requests of
        one stream are in their order."""
        cdef Request request
        returned = {}
        for request in requests:
            request.taken = False
            returned.setdefault(request.slot, deque()).append(request)
        for slot, queue in returned.items():
            self.size += len(queue)
            queue.extend(listed(self.inside.pop(slot, None)))
        self.inside = returned | self.inside

    def take(self, most):
        """The next rounds, of at most `most` requests in all (None: all that wait): a list of lists with one request
        of each stream."""
        cdef Py_ssize_t left = self.size if most is None else most
        rounds = []
        while left > 0 and self.inside:
            found = self.round(left)
            left -= len(found)
            if found:
                rounds.append(found)
        self.pressed = False
        self.let_in()
        return rounds

    cdef list round(self, Py_ssize_t most):
        """One live request of each of the first `most` streams, whose turns then come after those of the others."""
        cdef list found = []
        cdef dict later = {}, waiting = {}
        cdef Request request
        for slot, queue in self.inside.items():
            if len(found) == most:
                waiting[slot] = queue
                continue
            if isinstance(queue, deque):
                request = self.first_live(queue)
                if queue:
                    later[slot] = queue
            else:
                request = None if queue.future.done() else queue
                self.size -= 1
            if request is not None:
                request.taken = True
                found.append(request)
        waiting.update(later)
        self.inside = waiting
        return found

    cdef Request first_live(self, queue):
        """Take the first request whose caller still waits; those before it leave."""
        cdef Request request
        while queue:
            request = queue.popleft()
            self.size -= 1
            if not request.future.done():
                return request
        return None

    cdef let_in(self):
        """Move requests from outside, stream by stream, as far as there is room."""
        cdef Request request
        for slot in list(self.outside):
            if self.size >= self.most:
                break
            queue = self.outside.pop(slot)
            while queue and self.has_room(slot):
                request = queue.popleft()
                if not request.future.done():
                    self.enter(request)
            if queue:
                self.outside[slot] = queue
        self.pressed |= len(self.outside) > 0

    def clear(self):
        """Remove and return all requests."""
        found = [r for queue in (*self.inside.values(), *self.outside.values()) for r in listed(queue)]
        self.inside, self.outside, self.size, self.pressed = {}, {}, 0, False
        return found


cdef listed(queue):
    """The requests of a stream's queue."""
    return () if queue is None else queue if isinstance(queue, deque) else (queue,)


def deliver(list requests, list answers):
    """Give each caller that still waits its answer, or raise its error there. Returns the number of steps taken."""
    cdef Py_ssize_t i, steps = 0
    cdef Request request
    for i in range(len(requests)):
        request, answer = requests[i], answers[i]
        if answer is MORE:
            continue
        failed = isinstance(answer, Exception)
        if not failed:
            steps += request.steps
        if request.future.done():  # cancelled while its tick ran
            continue
        if failed:
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)
    return steps

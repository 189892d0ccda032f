# cython: language_level=3
"""The locks of forks.py, and its handlers of a fork.

The handlers wait without looking at signals, and no bytecode runs between one lock and the next. So no handler of a
signal can end them halfway: an exception of its would be lost, and the fork would go on with locks that it does not
hold.
"""

from cpython.exc cimport PyErr_CheckSignals

import weakref

from ..errors import FastRNNError

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    void PyThread_release_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)
    unsigned long PyThread_get_thread_ident()

cdef long long WAIT_US = 20_000  # between looks for signals
cdef int MOST_ROUNDS = 8  # of looking for owners that others make meanwhile; they may never stop
cdef long long locks_made = 0


cdef class Lock:
    """A reentrant lock, used as a context manager. Each of its methods is one C call, which Ctrl-C can't interrupt
    after it has acquired the lock.

    Raises
    ------
    FastRNNError
        Another thread held it when the process was forked, although `before_fork` waits for all that it can find.
    """

    cdef PyThread_type_lock lock
    cdef unsigned long owner  # the thread that has the lock, if depth > 0
    cdef long long depth, number
    cdef bint torn
    cdef object __weakref__

    def __cinit__(self):
        global locks_made
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        self.number = locks_made
        locks_made += 1

    def __init__(self):
        locks.add(weakref.ref(self, locks.discard))

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int acquire(self, bint look) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef int got = 1
        if self.depth > 0 and self.owner == me:
            self.depth += 1
            return 0
        if not PyThread_acquire_lock(self.lock, 0):
            while True:
                with nogil:
                    got = PyThread_acquire_lock_timed(self.lock, WAIT_US, 0)
                if got:
                    break
                if look:
                    PyErr_CheckSignals()
        self.owner, self.depth = me, 1
        return 0

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            PyThread_release_lock(self.lock)

    def __enter__(self):
        if self.torn:
            raise FastRNNError("this object was in use by another thread when the process was forked: make another one "
                               "in the child")
        self.acquire(True)
        return True

    def __exit__(self, *error):
        self.release()

    def _hold_for_fork(self):
        self.acquire(False)

    def _let_go_after_fork(self):
        self.release()

    def _renew_after_fork(self):
        """In the child, for a lock that the forking thread does not have: it must not wait for a thread that is gone.
        The old lock is not freed: it is in use for ever."""
        if PyThread_acquire_lock(self.lock, 0):
            PyThread_release_lock(self.lock)
            return
        self.lock = PyThread_allocate_lock()
        self.depth, self.torn = 0, True


# Sets of references instead of WeakSets: they can be copied atomically while other threads make pools and models.
locks = set()
owners = set()
cdef Lock forking = Lock()  # two threads that fork at once must not acquire the locks in different orders
locks.clear()
cdef list held = []
cdef long long forks_within = 0  # of this thread: another handler of the fork may fork, too


def register(owner):
    """Hold the lock of this owner during every later fork. The owner is dropped with its last reference."""
    owners.add(weakref.ref(owner, owners.discard))


cdef list others(set references):
    """Those that are alive and not held."""
    there = {id(one) for one in held}
    return [one for one in [reference() for reference in list(references)] if one is not None and id(one) not in there]


cdef long long number_of(lock) noexcept:
    return (<Lock> lock).number


cdef int hold(list more) except -1:
    for one in more:
        one._hold_for_fork()
        held.append(one)
    return len(more)


def before_fork():
    """Hold all there are. While it waits, other threads may make more. Locks are always new ones, with greater numbers,
    so it continues with them. Owners come before locks, so one that is made while it waits for a lock is not waited
    for; `after_in_child` cares for it."""
    global forks_within
    cdef int rounds = 0
    forking.acquire(False)
    forks_within += 1
    if forks_within > 1:
        return
    while hold(others(owners)) and rounds < MOST_ROUNDS:
        rounds += 1
    rounds = 0
    while hold(sorted(others(locks), key=number_of)) and rounds < MOST_ROUNDS:
        rounds += 1


def after_in_parent():
    global forks_within
    forks_within -= 1
    if forks_within == 0:
        while held:
            held.pop()._let_go_after_fork()
    forking.release()


def after_in_child():
    for references in (owners, locks):
        for one in others(references):
            one._renew_after_fork()
    after_in_parent()

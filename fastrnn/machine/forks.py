"""Locks that no other thread holds when a process forks, so that the child never waits for a thread it does not have.

Every lock of the package that is held longer than a bytecode is one of these, or its owner is registered here. Before
`os.fork`, the forking thread acquires all of them, so that the data they protect is consistent in both processes. After
the fork, both release them. (The team of threads has its own handler in C: see threads.c.)

The order of acquisition is that of ordinary calls, to avoid a deadlock. Owners come first: they are pools, and their
calls acquire other locks. Locks follow, oldest first: the holder of a lock may acquire those of objects that it made
later.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import Protocol


class Held(Protocol):
    """An object with a reentrant lock."""

    def _hold_for_fork(self) -> None: ...
    def _let_go_after_fork(self) -> None: ...


class Lock(type(threading.RLock())):  # type: ignore[misc]  # its `__enter__` is one C call, which Ctrl-C can't interrupt
    """A reentrant lock, used as a context manager."""

    def __init__(self):
        self._number = next(_numbers)
        _locks.add(weakref.ref(self, _locks.discard))

    def _hold_for_fork(self) -> None:
        self.acquire()

    def _let_go_after_fork(self) -> None:
        self.release()


_numbers = itertools.count()
# Sets of references instead of WeakSets: they can be copied atomically while other threads make pools and models.
_locks: set[weakref.ref[Lock]] = set()
_owners: set[weakref.ref[Held]] = set()
_forking = threading.RLock()  # two threads that fork at once must not acquire the locks in different orders
_held: list[Held] = []


def register(owner: Held) -> None:
    """Hold the lock of this owner during every later fork. The owner is dropped with its last reference."""
    _owners.add(weakref.ref(owner, _owners.discard))


def _before() -> None:
    _forking.acquire()
    owners, locks = _alive(_owners), _alive(_locks)
    for held in (*owners, *sorted(locks, key=lambda lock: lock._number)):
        held._hold_for_fork()
        _held.append(held)


def _alive(references: set) -> list:
    return [owner for owner in (reference() for reference in list(references)) if owner is not None]


def _after() -> None:
    while _held:
        _held.pop()._let_go_after_fork()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)

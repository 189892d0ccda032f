"""Locks that are not held when a process forks, so that the child, which has one thread, never waits for another.

Every lock of the package that is held longer than a bytecode is one of these, or registers its owner here. Before
`os.fork` the forking thread takes them all, so that whatever they guard is whole in both processes; after it both let
them go. (The team of threads has its own handler in C: see threads.c.)

It takes them in the order in which calls do, or it would wait for a thread that waits for it: first the owners, which
are pools, whose calls take locks on the way; then the locks, the oldest first, since a lock's holder takes on the way
those of what it made itself.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import Protocol


class Held(Protocol):
    """Something with a lock that the same thread may take again."""

    def _hold_for_fork(self) -> None: ...
    def _let_go_after_fork(self) -> None: ...


class Lock(type(threading.RLock())):  # type: ignore[misc]  # its `__enter__` is one call in C: no Ctrl-C finds it half done
    """A context manager: a lock that one thread has at a time, and may take again."""

    def __init__(self):
        self._number = next(_numbers)
        _locks.add(weakref.ref(self, _locks.discard))

    def _hold_for_fork(self) -> None:
        self.acquire()

    def _let_go_after_fork(self) -> None:
        self.release()


_numbers = itertools.count()
# Sets of references, not WeakSets: other threads make pools and models while one forks, and this is copied in one go.
_locks: set[weakref.ref[Lock]] = set()
_owners: set[weakref.ref[Held]] = set()
_forking = threading.RLock()  # two threads that fork at once must not take the locks in different orders
_held: list[Held] = []


def register(owner: Held) -> None:
    """Hold this owner's lock over every fork from here on; it is forgotten with its last reference."""
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

"""Locks that are not held when a process forks, so that the child, which has one thread, never waits for another.

Every lock of the package that is held longer than a bytecode is one of these, or registers its owner here. Before
`os.fork` the forking thread takes them all, so that whatever they guard is whole in both processes; after it both let
them go. (The team of threads has its own handler in C: see threads.c.)
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Held(Protocol):
    """Something with a lock that the same thread may take again."""

    def _hold_for_fork(self) -> None: ...
    def _let_go_after_fork(self) -> None: ...


class Lock:
    """A context manager: a lock that one thread has at a time, and may take again."""

    def __init__(self):
        self._lock = threading.RLock()
        register(self)

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _hold_for_fork(self) -> None:
        self._lock.acquire()

    def _let_go_after_fork(self) -> None:
        self._lock.release()


_everyone: weakref.WeakSet[Held] = weakref.WeakSet()
_forking = threading.RLock()  # two threads that fork at once must not take the locks in different orders
_held: list[Held] = []


def register(owner: Held) -> None:
    """Hold this owner's lock over every fork from here on; it is forgotten with its last reference."""
    _everyone.add(owner)


def _before() -> None:
    _forking.acquire()
    for owner in list(_everyone):
        owner._hold_for_fork()
        _held.append(owner)


def _after() -> None:
    while _held:
        _held.pop()._let_go_after_fork()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)

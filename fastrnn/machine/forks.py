"""Locks that no other thread holds when a process forks, so that the child never waits for a thread it does not have.

Every lock of the package that is held longer than a bytecode is one of these, or its owner is registered here. Before
`os.fork`, the forking thread acquires all of them, so that the data they protect is consistent in both processes. After
the fork, both release them. (The team of threads has its own handler in C: see threads.c.)

The order of acquisition is that of ordinary calls, to avoid a deadlock. Owners come first: they are pools, and their
calls acquire other locks. Locks follow, oldest first: the holder of a lock may acquire those of objects that it made
later.

Other threads may make pools while the forking thread waits, and use them at the moment of the fork. In the child, such
a pool, or such a lock, is not waited for: its use is an error that says so.
"""

from __future__ import annotations

import os

from ._forks import Lock, after_in_child, after_in_parent, before_fork, locks, owners, register

__all__ = ["Lock", "locks", "owners", "register"]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before_fork, after_in_parent=after_in_parent, after_in_child=after_in_child)

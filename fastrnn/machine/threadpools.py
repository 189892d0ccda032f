"""What threadpoolctl sees of fastrnn's team of threads: how many a call may use, and a limit that it can set.

Registered when a model is made in a process that has imported threadpoolctl; `register` does it at any other time.
"""

from __future__ import annotations

import sys

from .cpu import thread_info

_registered = False
_most = 0  # threads of any model made so far


def note(threads: int) -> None:
    """A model is made whose calls may use so many threads. Registers, where the process has imported threadpoolctl."""
    global _most
    _most = max(_most, threads)
    if not _registered and "threadpoolctl" in sys.modules:
        register()


def most() -> int:
    """How many threads some call may use where nothing limits it."""
    return max(_most, thread_info().count)


def register() -> None:
    """Tell threadpoolctl of the team of threads: `threadpool_limits(1)` then holds for fastrnn too.

    Once is enough; raises ImportError where threadpoolctl is not installed.
    """
    global _registered
    if _registered:
        return
    from threadpoolctl import LibController
    from threadpoolctl import register as add

    class FastRNNController(LibController):
        """The library is found by its file's name and by a symbol that no other one has."""

        user_api = "fastrnn"
        internal_api = "fastrnn"
        filename_prefixes = ("_isa",)
        check_symbols = ("frnn_set_thread_limit", "frnn_thread_limit")

        def get_num_threads(self) -> int:
            limit = self.dynlib.frnn_thread_limit()
            return min(limit, most()) if limit else most()

        def set_num_threads(self, num_threads: int) -> None:
            # What `get_num_threads` said is how threadpoolctl lifts a limit; one that stayed would bind later models.
            self.dynlib.frnn_set_thread_limit(0 if num_threads >= most() else num_threads)

        def get_version(self) -> None:
            return None

    add(FastRNNController)
    _registered = True

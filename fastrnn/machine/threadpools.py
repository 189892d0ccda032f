"""Makes fastrnn's team of threads visible to threadpoolctl: how many threads a call may use, and a limit to set.

A model that is made in a process that has imported threadpoolctl registers the team. `register` does it at any time.
"""

from __future__ import annotations

import sys

from .cpu import thread_info

_registered = False
_most = 0  # most threads of any model made so far


def note(threads: int) -> None:
    """Record the number of threads of a new model. Registers the team if the process has imported threadpoolctl."""
    global _most
    _most = max(_most, threads)
    if not _registered and "threadpoolctl" in sys.modules:
        register()


def most() -> int:
    """The most threads that any call may use without a limit."""
    return max(_most, thread_info().count)


def register() -> None:
    """Register the team of threads with threadpoolctl, so that `threadpool_limits(1)` also limits fastrnn.

    Repeated calls do nothing. Raises ImportError if threadpoolctl is not installed.
    """
    global _registered
    if _registered:
        return
    from threadpoolctl import LibController
    from threadpoolctl import register as add

    class FastRNNController(LibController):
        """Finds the library by its file name and by a symbol that no other library has."""

        user_api = "fastrnn"
        internal_api = "fastrnn"
        filename_prefixes = ("_isa",)
        check_symbols = ("frnn_set_thread_limit", "frnn_thread_limit")

        def get_num_threads(self) -> int:
            limit = self.dynlib.frnn_thread_limit()
            return min(limit, most()) if limit else most()

        def set_num_threads(self, num_threads: int) -> None:
            # threadpoolctl lifts a limit by setting the number from `get_num_threads`. If that stayed a limit, it would
            # also apply to later models.
            self.dynlib.frnn_set_thread_limit(0 if num_threads >= most() else num_threads)

        def get_version(self) -> None:
            return None

    add(FastRNNController)
    _registered = True

"""What threadpoolctl sees of fastrnn's team of threads: how many a call may use, and a limit that it can set.

Registered when a model is made in a process that has imported threadpoolctl; `register` does it at any other time.
"""

from __future__ import annotations

import sys

from .cpu import thread_info

_registered = False


def register_if_in_use() -> None:
    """`register` where the process has imported threadpoolctl already."""
    if not _registered and "threadpoolctl" in sys.modules:
        register()


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
            return min(limit, thread_info().count) if limit else thread_info().count

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.frnn_set_thread_limit(num_threads)

        def get_version(self) -> None:
            return None

    add(FastRNNController)
    _registered = True

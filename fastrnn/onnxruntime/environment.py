"""Functions of onnxruntime about the library itself."""

from __future__ import annotations

from typing import Any

VERSION = "1.32.0"  # the version of onnxruntime whose names this package has


def get_version_string() -> str:
    """The version of onnxruntime whose names these are."""
    return VERSION


def get_build_info() -> str:
    """The version of fastrnn, and the instruction set of its kernels."""
    from .. import __version__ as own
    from ..machine.cpu import cpu_info

    return f"fastrnn {own}, isa={cpu_info().isa.active}"


def print_debug_info() -> None:
    """Log `get_build_info()` as information; a library does not print."""
    from .logs import log

    log(1, get_build_info())


def has_collective_ops() -> bool:
    """False: fastrnn runs on one machine."""
    return False


def set_seed(seed: int) -> None:
    """Accepted; no op of fastrnn is random."""


def set_global_thread_pool_sizes(intra_op_num_threads: int, inter_op_num_threads: int) -> None:
    """Accepted; a session's threads are those of its SessionOptions."""


def enable_telemetry_events() -> None:
    """Accepted; fastrnn sends nothing anywhere."""


def disable_telemetry_events() -> None:
    """Accepted; fastrnn sends nothing anywhere."""


def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: Any = None) -> None:
    """Accepted; the CPU needs no libraries of a GPU."""

"""How tests and tools/tile_costs.py reach what tile_unit.h exports: which way calls go, the costs, the clock."""

import contextlib
import ctypes

from fastrnn.machine import _isa

LIBRARY = ctypes.CDLL(_isa.__file__)
WAYS = {"usual": 0, "tiles": 1, "vectors": 2, "costs": 3}


class Cost(ctypes.Structure):
    _fields_ = [("weights", ctypes.c_char_p), *((n, ctypes.c_float) for n in ("vector_load", "vector_row", "tile"))]


class Costs(ctypes.Structure):
    _fields_ = [
        ("formats", Cost * 3),
        *((n, ctypes.c_float) for n in ("call", "short_pause", "long_pause", "short_wake", "long_wake")),
    ]


class Clock(ctypes.Structure):
    _fields_ = [(n, ctypes.c_double) for n in ("last_tile", "last_call", "credit")]


def costs():
    """The costs in use: changes take effect at once."""
    return Costs.in_dll(LIBRARY, "frnn_tile_costs_here")


def chosen(format, rows, kib, now, clock):
    """Whether a call of that many rows over so many KiB of packed weights goes to the tile unit, at `now` ns."""
    cost = next(cost for cost in costs().formats if cost.weights.decode() == format)
    LIBRARY.frnn_tiles_chosen.argtypes = [ctypes.POINTER(Cost), ctypes.c_int64, ctypes.c_int64, ctypes.c_double,
                                          ctypes.POINTER(Clock)]  # fmt: skip
    return bool(LIBRARY.frnn_tiles_chosen(ctypes.byref(cost), rows, int(kib * 256), now, ctypes.byref(clock)))


@contextlib.contextmanager
def way(name):
    """Within it, calls go this way: "usual", "tiles", "vectors", or "costs" also on an emulated unit."""
    variable = ctypes.c_int.in_dll(LIBRARY, "frnn_tile_way")
    variable.value, before = WAYS[name], variable.value
    try:
        yield
    finally:
        variable.value = before


def emulated_state():
    """Whether the emulated unit of this thread is configured, and how many products it has made."""
    products = ctypes.c_int64()
    configured = LIBRARY.frnn_emulated_state(ctypes.byref(products))
    return bool(configured), products.value

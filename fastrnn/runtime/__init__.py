"""Calls of plans, without the GIL, and what goes in and out of them. The ops that a plan walks are in `fastrnn.ops`.

_executor.pyx     programs, scratch, streams' calls (_streams.pxi is a part of it)
_timing.pyx       a clock around each op, for `fastrnn profile`
arguments.py      checks of the callers' arrays
layout.py         which states a stream keeps, and where they lie in a slab row
states.py         states as their users see them
snapshots.py      the format of snapshots
"""

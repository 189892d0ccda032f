"""The walk over a plan, without the GIL, and what goes in and out of it.

_executor.pyx     programs, scratch, streams' calls (_streams.pxi is a part of it)
_ops.pyx          the walk (_ops_windows.pxi, _ops_attention.pxi and _loop.pxi are parts of it)
_recurrence.pyx   the loop over a cell's steps
_frame.pxd        what one call works with
_timing.pyx       a clock around each op, for `fastrnn profile`
arguments.py      checks of the callers' arrays
layout.py         which states a stream keeps, and where they lie in a slab row
states.py         states as their users see them
snapshots.py      the format of snapshots
"""

"""The walk over a plan, without the GIL, and what goes into it and comes out.

_binding.pyx      a plan at the sizes of a call: its integers, and the scratch
_executor.pyx     programs, and their calls
_slab.pyx         states of streams, and the one way in which calls advance them
_ops.pyx          the walk (_ops_windows.pxi, _ops_attention.pxi and _loop.pxi are parts of it)
_recurrence.pyx   the loop over a cell's steps
_frame.pxd        what one call works with
_timing.pyx       a clock around each op, for `fastrnn profile`
compiled.py       a graph and its programs: what streams and pools know of their model
arguments.py      checks of the callers' arrays
layout.py         which states a stream keeps, and where a slab row stores them
states.py         states as users see them
snapshots.py      the format of snapshots
"""

"""Calls of plans, without the GIL, and what goes in and out of them. The ops that a plan walks are in `fastrnn.ops`.

_binding.pyx      a plan at the sizes of a call: its integers, and the scratch
_executor.pyx     programs, and their calls
_slab.pyx         states of streams, and the one way in which calls advance them
_timing.pyx       a clock around each op, for `fastrnn profile`
compiled.py       a graph and its programs: what streams and pools know of their model
arguments.py      checks of the callers' arrays
layout.py         which states a stream keeps, and where a slab row stores them
states.py         states as users see them
snapshots.py      the format of snapshots
"""

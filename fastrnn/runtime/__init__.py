"""Calls of plans without the GIL, and their arguments and states. The ops of a plan are in `fastrnn.ops`.

_binding.pyx      a plan at the sizes of a call: its integers, and the scratch
_executor.pyx     programs, and their calls
_forms.pxd        the arrays of a call: which go to a program as they are
_parts.pyx        what all streams of a model share, and the arguments of their calls
_slab.pyx         states of streams, and the calls that advance them
_runs.pyx         runs of whole sequences, from a caller's arrays to a program
_timing.pyx       a clock around each op, for `fastrnn profile`
compiled.py       a graph and its programs: all that streams and pools know about their model
arguments.py      checks of callers' arrays
layout.py         which states a stream keeps, and where a slab row stores them
states.py         states as users see them
snapshots.py      the format of snapshots
"""

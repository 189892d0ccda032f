"""Which values of a graph have a batch and a time axis, when a stream's steps arrive, and which graphs can stream.

follow.py       batch and time followed through a graph
rules.py        what each op does to them
live.py         inputs that hold lengths, which a stream does not ask for
timetable.py    when the steps of a stream's values arrive
rewrite.py      the rewrite for nodes that look along time
conditions.py   which graphs can be streamed, and why others can't
"""

"""Which values of a graph have a batch and a time, when a stream's steps come, and what may stream.

follow.py       batch and time followed through a graph
rules.py        what each op does to them
timetable.py    when the steps of a stream's values come
rewrite.py      the rewrite for nodes that look along time
conditions.py   what can be streamed, and what stands in the way
"""

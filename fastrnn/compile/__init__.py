"""Graph -> Plan.

tensors.py   memory as strided views
plan.py      Plan: a flat list of kernel calls over one arena
weights.py   the packed weights of a model
bounds.py    which memory each op touches, checked at every binding to sizes
lowering/    one file per family of ops
"""

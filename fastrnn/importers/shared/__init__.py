"""What importers of several formats share; nothing here knows a format.

builder.py   writes graphs
ledger.py    what was read of a source, so that the rest is refused
h5.py        reads HDF5 files
weights.py   names arrays
stacks.py    finds recurrent layers in them
"""

"""Code shared by importers of several formats; no module here knows a format.

builder.py   writes graphs
ledger.py    records what was read from a source, so that the rest is refused
h5.py        reads HDF5 files
weights.py   names arrays
npz.py       reads .npz files and dicts of arrays
stacks.py    finds recurrent layers in them
"""

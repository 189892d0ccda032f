"""Small PyTorch programs whose exported files must give a right answer or a FastRNNError, at every length and batch.

`registry.py` says what a program is. `exports.py` writes its files by both of PyTorch's exporters, `compare.py` runs a
file at other sizes and judges the answers; every other module holds a family of programs. `tools/run_programs.py` runs
all of it and prints the counts; `tests/test_programs.py` runs what is checked in.
"""

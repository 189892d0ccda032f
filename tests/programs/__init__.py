"""Small PyTorch programs whose exported files must give a right answer or a FastRNNError, at every length and batch.

`registry.py` says what a program is; each other module without `_` holds a family of them. `exports.py` writes their files by
both of PyTorch's exporters, `compare.py` runs a file at other sizes and judges the answers. `tools/run_programs.py`
runs all of it and prints the counts; `tests/test_programs.py` runs what is checked in.
"""

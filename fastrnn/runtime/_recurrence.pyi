"""Nothing for Python: `run_cell` is for other Cython modules."""

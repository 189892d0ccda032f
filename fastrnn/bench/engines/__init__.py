"""One file an engine, run by worker.py in a process of its own and never imported: see there what a file has."""

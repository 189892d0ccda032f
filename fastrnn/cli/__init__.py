"""The commands `fastrnn` and `fastrnn-convert`.

They use only the public package. main.py parses arguments and turns errors into exit codes. analyze.py, bench.py,
completion.py, convert.py, inspect.py, plan_capacity.py, profile.py, score.py and verify.py implement one command each.
describe.py prints the description of a model, and output.py writes for a terminal, a pipe or a program.
"""

from .main import convert_main, main

__all__ = ["convert_main", "main"]

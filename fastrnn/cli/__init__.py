"""The commands: `fastrnn` (convert, inspect, verify) and `fastrnn-convert`.

They use the public package alone. main.py parses and turns errors into exit codes; convert.py, inspect.py and
verify.py do one command each; describe.py says what a model is; output.py writes for a person, a pipe or a program.
"""

from .main import convert_main, main

__all__ = ["convert_main", "main"]

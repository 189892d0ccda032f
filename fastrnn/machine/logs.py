"""The logger `fastrnn`. `logging` takes 2 ms to import: a program that does not use it starts without it."""

from __future__ import annotations

import sys


def listens(level: str) -> bool:
    """Whether a line of this level ("INFO", ..) would be written or handled."""
    logging = sys.modules.get("logging")
    return logging is not None and logging.getLogger("fastrnn").isEnabledFor(getattr(logging, level))


def log(level: str, text: str, *arguments) -> None:
    """A line of this level; text and arguments as for `logging`. Without `logging`, warnings appear on stderr."""
    if level == "WARNING" or listens(level):
        import logging

        logging.getLogger("fastrnn").log(getattr(logging, level), text, *arguments, stacklevel=2)

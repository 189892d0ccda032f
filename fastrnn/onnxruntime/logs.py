"""Severities of onnxruntime's log, for the logger `fastrnn.onnxruntime` of Python's logging."""

from __future__ import annotations

import logging
import operator

from .exceptions import ArgumentError, ArgumentTypeError

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
_logger = logging.getLogger("fastrnn.onnxruntime")
_default = [2]


def log(severity: int, text: str, threshold: int = -1) -> None:
    """Pass the text on if it is severe enough; threshold: a session's, -1 for the default."""
    if severity >= (_default[0] if threshold < 0 else threshold):
        _logger.log(_LEVELS[severity], text)


def set_default_logger_severity(severity: int) -> None:
    """What goes to the logger `fastrnn.onnxruntime`: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal.

    Raises TypeError for what is not an int, RuntimeError for another number.
    """
    try:
        number = operator.index(severity)
    except TypeError:
        raise ArgumentTypeError(f"a severity is an int in 0..4, got {severity!r:.60}") from None
    if not 0 <= number <= 4:
        raise ArgumentError(f"a severity is an int in 0..4, got {number}")
    _default[0] = number


def set_default_logger_verbosity(verbosity: int) -> None:
    """Accepted; fastrnn logs nothing that depends on it."""
    operator.index(verbosity)

"""Why a request is refused: the code of gRPC, the status of HTTP, the text, and the reason that metrics count."""

from __future__ import annotations

import reprlib
from typing import Any

from ...errors import FastRNNError, StreamError

MOST_TEXT = 800  # characters of an error: a client can't make it, or a log, long

# Code of gRPC -> (its number, the status of HTTP).
CODES = {
    "CANCELLED": (1, 400),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 409),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "UNAUTHENTICATED": (16, 401),
}


class Fault(FastRNNError):
    """A request that is refused, or that failed.

    Parameters
    ----------
    code : a name of `CODES`
    reason : the label of `fastrnn_rejected_total`
    text : says what was wrong, what was expected and what to do
    retry_after : seconds after which it may be sent again, of a request that came at a bad time
    status : the status of HTTP, if it is another than that of the code
    """

    def __init__(self, code: str, reason: str, text: str, *, retry_after: float | None = None, status: int = 0):
        super().__init__(text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "...")
        self.code, self.reason, self.retry_after = code, reason, retry_after
        self.number, usual = CODES[code]
        self.status = status or usual


def invalid(text: str, reason: str = "invalid") -> Fault:
    """The request itself is wrong: it would be refused at any time."""
    return Fault("INVALID_ARGUMENT", reason, text)


def failure(error: BaseException, what: str) -> Fault:
    """What a client is told of an error in the engine. what: failed, such as "step"."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, MemoryError):
        text = f"the {what} failed: {str(error) or 'not enough memory'}; try again after 1 s"
        return Fault("UNAVAILABLE", "memory", text, retry_after=1.0)
    if isinstance(error, StreamError):  # such as a batcher that was stopped
        return Fault("UNAVAILABLE", "stopped", f"the {what} failed: {error}: start the server again")
    if isinstance(error, FastRNNError):
        return invalid(str(error))
    return Fault("INTERNAL", "failed", f"the {what} failed: {error}")


_reprs = reprlib.Repr()
_reprs.maxlist = _reprs.maxtuple = _reprs.maxdict = 10
_reprs.maxlevel, _reprs.maxstring, _reprs.maxlong, _reprs.maxother = 3, 80, 80, 80


def brief(value: Any) -> str:
    """A value of a client in a message. Its whole repr could be as long as the request, or too deep."""
    return _reprs.repr(value)[:200]

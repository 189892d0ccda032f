"""Why sequences ended: remembered for the clients that go on with them."""

from __future__ import annotations

import datetime
import time
from collections import OrderedDict, deque

from .faults import Fault
from .sequence import Sequence, shown

MOST = 100_000  # ids that are remembered
MOST_ANSWERS, MOST_BYTES = 10_000, 32 << 20  # of requests that ended their sequence, in case they come again
AGAIN_SECONDS = 1.0
RECENT = 50  # ends that a client did not ask for, as they are shown
LOST = {"idle", "evicted", "moved"}  # ends that the client did not ask for


class Ended:
    """The ends of the sequences of one model.

    Parameters
    ----------
    model : its name
    """

    def __init__(self, model: str):
        self.model = model
        self.since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.recent: deque[tuple[float, int | str, str, str]] = deque(maxlen=RECENT)
        self._ends: OrderedDict[int | str, tuple[str, str, int]] = OrderedDict()
        self._answered: OrderedDict[int | str, Sequence] = OrderedDict()
        self._bytes = 0  # of their last answers

    def add(self, id: int | str, reason: str, text: str, epoch: int = 0, sequence: Sequence | None = None) -> None:
        """A sequence has ended. text: follows its id in a sentence. epoch: that it had in the store. sequence: it, with
        its last answer."""
        if reason != "client":
            self.recent.append((time.time(), id, reason, text))
        self._ends[id] = reason, text, epoch
        self._ends.move_to_end(id)
        if len(self._ends) > MOST:
            self._ends.popitem(last=False)
        self._forget_answer(id)
        if reason == "client" and sequence is not None and sequence.last is not None:
            self._answered[id] = sequence
            self._bytes += _bytes(sequence)
            while self._bytes > MOST_BYTES or len(self._answered) > MOST_ANSWERS:
                self._forget_answer(next(iter(self._answered)))

    def forget(self, id: int | str) -> None:
        """The id begins again."""
        self._ends.pop(id, None)
        self._forget_answer(id)

    def sequence(self, id: int | str) -> Sequence | None:
        """A sequence that its client ended, whose last answer is known."""
        return self._answered.get(id)

    def _forget_answer(self, id: int | str) -> None:
        sequence = self._answered.pop(id, None)
        if sequence is not None:
            self._bytes -= _bytes(sequence)

    def known(self, id: int | str) -> tuple[str, int]:
        """(reason, epoch) of an end; ("", 0) if there is none."""
        reason, _, epoch = self._ends.get(id, ("", "", 0))
        return reason, epoch

    def fault(self, id: int | str) -> Fault:
        """What a request without START is told: Triton's sentence, and the reason."""
        sentence = must_start(id, self.model)
        if id not in self._ends:
            why = f"this server started at {self.since} and has not seen this sequence since"
            return Fault("INVALID_ARGUMENT", "unknown_sequence", f"{sentence}; {why}")
        reason, text, _ = self._ends[id]
        if reason == "shutdown":
            why = f"sequence {shown(id)} {text}: send the request again, to the server that goes on"
            return Fault("UNAVAILABLE", "draining", why, retry_after=AGAIN_SECONDS)
        code = "NOT_FOUND" if reason in LOST else "INVALID_ARGUMENT"
        return Fault(code, "unknown_sequence", f"{sentence}; sequence {shown(id)} {text}")


def _bytes(sequence: Sequence) -> int:
    """Of its last answer."""
    return 0 if sequence.last is None else sum(v.nbytes for v in sequence.last[2])


def must_start(id: int | str, model: str) -> str:
    """Triton's sentence, by which its clients know that a sequence is not live."""
    return (
        f"inference request for sequence {shown(id)} to model '{model}' must specify the START flag on the first "
        "request of the sequence"
    )

"""Why sequences ended: remembered for the clients that go on with them."""

from __future__ import annotations

import datetime
import time
from collections import OrderedDict, deque

from .faults import Fault
from .sequence import shown

MOST = 100_000  # ids that are remembered
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

    def add(self, id: int | str, reason: str, text: str, epoch: int = 0) -> None:
        """A sequence has ended. text: follows its id in a sentence. epoch: that it had in the store."""
        if reason != "client":
            self.recent.append((time.time(), id, reason, text))
        self._ends[id] = reason, text, epoch
        self._ends.move_to_end(id)
        if len(self._ends) > MOST:
            self._ends.popitem(last=False)

    def forget(self, id: int | str) -> None:
        """The id begins again."""
        self._ends.pop(id, None)

    def known(self, id: int | str) -> tuple[str, int]:
        """(reason, epoch) of an end; ("", 0) if there is none."""
        reason, _, epoch = self._ends.get(id, ("", "", 0))
        return reason, epoch

    def fault(self, id: int | str) -> Fault:
        """What a request without START is told: Triton's sentence, and the reason."""
        sentence = (
            f"inference request for sequence {shown(id)} to model '{self.model}' must specify the START flag on the "
            "first request of the sequence"
        )
        if id not in self._ends:
            why = f"this server started at {self.since} and has not seen this sequence since"
            return Fault("INVALID_ARGUMENT", "unknown_sequence", f"{sentence}; {why}")
        reason, text, _ = self._ends[id]
        if reason == "shutdown":
            why = f"sequence {shown(id)} {text}: send the request again, to the server that goes on"
            return Fault("UNAVAILABLE", "draining", why, retry_after=AGAIN_SECONDS)
        code = "NOT_FOUND" if reason in LOST else "INVALID_ARGUMENT"
        return Fault(code, "unknown_sequence", f"{sentence}; sequence {shown(id)} {text}")

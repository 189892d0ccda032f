"""A scorer on its way to other processes: its bytes go along, and each process makes it once."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Iterable, Iterator

import pyarrow as pa

from .scorer import Scorer

KEPT = 4  # scorers that a process keeps, the last ones used

_made: dict[tuple[bytes, int], Scorer] = {}
_lock = threading.Lock()


class Shipped:
    """A scorer as bytes; pickle it, and call `scorer()` where it arrives."""

    def __init__(self, scorer: Scorer):
        self.blob = pickle.dumps(scorer)
        self.digest = hashlib.blake2b(self.blob, digest_size=16).digest()

    def scorer(self, threads: int) -> Scorer:
        """The scorer in this process, with that many threads; made at the first call."""
        key = self.digest, threads
        with _lock:
            found = _made.pop(key, None)
            if found is None:
                found = pickle.loads(self.blob)
                found.threads = threads
            _made[key] = found
            while len(_made) > KEPT:
                _made.pop(next(iter(_made)))
        return found

    def answers(self, batches: Iterable[pa.RecordBatch], threads: int) -> Iterator[pa.RecordBatch]:
        """The answers to each batch: what a task of Spark runs."""
        scorer = self.scorer(threads)
        for batch in batches:
            yield scorer(batch)

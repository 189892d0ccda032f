"""Streams and bulk scoring on many machines, with Ray: pip install 'fastrnn[ray]'.

words.py        errors, refusals, the shard of an id
host.py         an actor's side: shards, steps exactly once, epochs, leases
shards.py       what it works with
answers.py      the answers that it keeps, to give them again
checkpoints.py  checkpoints as bytes
caller.py       a gateway's side: step indexes, one call a tick and actor
table.py        its streams; log.py: its replay buffer
recovery.py     what it does after a loss
scoring.py      `score`: bulk scoring of datasets and files

None of them but scoring.py imports Ray, reads a clock or waits by itself, so that a simulation runs them as they are.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_LAZY = {"StepsLost": "words", "score": "scoring"}

if TYPE_CHECKING:
    from .scoring import score
    from .words import StepsLost
else:

    def __getattr__(name):
        if name not in _LAZY:
            raise AttributeError(f"module 'fastrnn.ray' has no attribute {name!r}")
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


__all__ = ["StepsLost", "score"]

"""The options of a server that its sequences obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import ShapeError
from ...records import dataclass
from ...runtime.arguments import duration, whole_number


@dataclass(frozen=True)
class Options:
    """Bounds and times of the sequences of each model.

    idle_timeout : seconds after the last step of a sequence until it is ended
    max_sequences : live sequences of a model
    client_sequences : those of one client; None: no bound of its own
    queue_size : requests of one sequence that may wait behind the one that runs
    max_delay : seconds that a step may wait for others to join it
    tick_rows : steps that run together if more wait, shared evenly by clients; None: as many as take about 2 ms,
        at least 64 for each thread of the model and at most 256
    strict_sequences : START on a live id is refused, instead of a new beginning
    on_evict : called with (id, reason, snapshot) when the server ends a sequence; it may be a coroutine function
    store : where sequences outlive the server: a folder, a URL of `fastrnn.serving.store.open_store`, or such a store
    checkpoint_seconds : between two writes of a sequence that steps; a crash loses what came after the last one
    """

    idle_timeout: float = 60.0
    max_sequences: int = 10_000
    client_sequences: int | None = None
    queue_size: int = 32
    max_delay: float = 0.002
    tick_rows: int | None = None
    strict_sequences: bool = False
    on_evict: Callable[[int | str, str, bytes], Any] | None = None
    store: Any = None
    checkpoint_seconds: float = 1.0

    def __post_init__(self):
        for name in ("idle_timeout", "max_delay", "checkpoint_seconds"):
            duration(getattr(self, name), name)
        if not self.idle_timeout:
            raise ShapeError("idle_timeout must be above 0: with 0 each sequence ends after its step")
        for name in ("max_sequences", "client_sequences", "queue_size", "tick_rows"):
            if name not in ("client_sequences", "tick_rows") or getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 1 << 31)
        if self.on_evict is not None and not callable(self.on_evict):
            raise ShapeError(f"on_evict must be a function of (id, reason, snapshot), got {self.on_evict!r}")

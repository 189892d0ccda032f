"""What `SessionOptions.enable_profiling` asks for: the times of loading and of each run, in Chrome's format."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import contextmanager

MOST_EVENTS = 1_000_000  # as onnxruntime keeps


class SessionProfile:
    """Events of a session, written at its end. Several threads may add to it."""

    def __init__(self, prefix: str):
        self.start_ns = time.monotonic_ns()
        self._prefix = prefix
        self._events: list[tuple[str, int, int, int]] = []  # name, thread, start and end in ns

    @contextmanager
    def event(self, name: str):
        """Time what happens inside."""
        start = time.monotonic_ns()
        try:
            yield
        finally:
            if len(self._events) < MOST_EVENTS:
                self._events.append((name, threading.get_native_id(), start, time.monotonic_ns()))

    def write(self) -> str:
        """Write the events to a new file; returns its name."""
        path = f"{self._prefix}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}_{self.start_ns}.json"
        events = [
            {
                "cat": "Session",
                "pid": os.getpid(),
                "tid": thread,
                "dur": (end - start) // 1000,
                "ts": (start - self.start_ns) // 1000,
                "ph": "X",
                "name": name,
                "args": {},
            }
            for name, thread, start, end in self._events
        ]
        with open(path, "x", encoding="utf-8") as file:
            json.dump(events, file)
        return path

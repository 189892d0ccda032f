"""A worker process as the runner sees it: ask, wait with a limit, report what went wrong."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .errors import BenchError

HERE = Path(__file__).resolve().parent
START_SECONDS = 300.0  # importing a framework from a cold disk on a busy machine
TAIL = 300  # characters of the last line of a dead worker's stderr that its error shows: what was raised


class WorkerError(BenchError):
    """A worker answered with an error, died, or kept silent too long; the text says which and why."""


class MissingEngine(BenchError):
    """The engine is not installed."""


class Worker:
    """One engine's process.

    Parameters
    ----------
    engine : its name in tables; file : of engines/; threads : that it may use
    environ : the whole environment of the process

    Raises
    ------
    MissingEngine, WorkerError
    """

    def __init__(self, engine: str, file: str, threads: int, environ: Mapping[str, str]):
        self.engine = engine
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self.buffer = b""
        command = [sys.executable, str(HERE / "worker.py"), str(HERE / "engines" / file), str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=dict(environ),
            start_new_session=True,  # Ctrl-C is ours to handle; we end the workers
        )
        try:
            hello = self._reply(START_SECONDS)
        except WorkerError:
            self.close()
            raise
        if "missing" in hello:
            self.close()
            raise MissingEngine(hello["missing"])
        self.version = hello["version"]

    def ask(self, do: str, seconds: float, **message) -> dict:
        """Send a request and wait for its reply; WorkerError on an error, an end, or silence for `seconds`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **message}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"{self.engine} ended{self._last_words()}") from None
        reply = self._reply(seconds)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def _reply(self, seconds: float) -> dict:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.process.kill()
                self.process.wait()
                raise WorkerError(f"{self.engine} did not answer within {seconds:g} s")
            data = os.read(pipe, 1 << 16)
            if not data:
                self.process.wait()
                raise WorkerError(f"{self.engine} ended with {self.process.returncode}{self._last_words()}")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:TAIL]}" if lines else ""

    def close(self) -> None:
        """End the process; never raises and may be called twice."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(5)  # its input ended, so it ends by itself
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

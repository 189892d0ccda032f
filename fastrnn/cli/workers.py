"""`fastrnn serve --workers N`: processes that are forked when the models are loaded, and that share their memory."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fastrnn

PAUSE, MOST_PAUSE = 0.1, 5.0  # seconds until a worker that ended is started again; it doubles if it ends at once
LEAVE_SECONDS = 3.0  # in which a port may become free
STEADY_SECONDS = 10.0  # after which a worker has not ended at once
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for the workers; it does not listen. OSError: the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _in_time(lambda: _bound(family, host, port), host, port) as alone:  # SO_REUSEPORT would share it with others
        port = alone.getsockname()[1]
    return _bound(family, host, port, shared=True)


def _bound(family: int, host: str, port: int, *, shared: bool = False) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


def claimed(host: str, port: int) -> socket.socket:
    """A name that one server has at a time, until all its processes have ended: servers that start at once reserve
    the same port, because none of them listens yet. OSError: another one has it."""
    return _in_time(lambda: _named(f"\0fastrnn serve {host}:{port}"), host, port)


def _named(name: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    try:
        found.bind(name)
    except OSError:
        found.close()
        raise
    return found


def _in_time(claim: Callable[[], socket.socket], host: str, port: int) -> socket.socket:
    """What `claim` returns, when it does. Workers whose parent was killed are about to end. OSError: it is taken."""
    end = time.monotonic() + LEAVE_SECONDS
    while True:
        try:
            return claim()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise OSError(error.errno, f"{host}:{port} can't be listened on: {error.strerror}") from None
        time.sleep(PAUSE)


def warm(models: dict[str, dict[int, fastrnn.Model]]) -> None:
    """Pack the weights before the workers are forked, so that they share the pages."""
    for versions in models.values():
        for model in versions.values():
            if model.streamable:
                model.pool(1).close()


class Workers:
    """The parent: it serves nothing, and keeps its workers alive.

    Parameters
    ----------
    count : of workers
    work : called in each worker with (its number, the folder of their sockets, the descriptor to write a byte to when
        it serves, the descriptor that is at its end when the parent has gone); returns the exit code
    told : called in the parent when all serve for the first time
    """

    def __init__(self, count: int, work: Callable[[int, Path, int, int], int], told: Callable[[], None]):
        self.count, self.work, self.told = count, work, told
        self.folder = Path(tempfile.mkdtemp(prefix="fastrnn-serve-"))
        self._pids: dict[int, int] = {}  # pid -> number
        self._began = [0.0] * count
        self._pause = [PAUSE] * count
        self._due: dict[int, float] = {}  # number -> when it is started again
        self._ending = self._served = False
        self._serving, self._serves = os.pipe()
        self._alive, self._gone = os.pipe()  # no one writes: its end is that of the parent

    def run(self) -> int:
        """Until a signal has ended them. Returns the worst exit code."""
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(self._serving, False)
        before = [signal.signal(number, self._forward) for number in FORWARDED]
        before.append(signal.signal(signal.SIGCHLD, lambda *_: None))
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        serving, worst = 0, 0
        try:
            for k in range(self.count):
                self._start(k)
            while self._pids or (self._due and not self._ending):
                wait = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
                select.select([wake, self._serving], [], [], wait)
                _drain(wake)
                serving += len(_drain(self._serving))
                if serving >= self.count and not self._served:
                    self._served = True
                    self.told()
                worst = max(worst, self._reap())
                for k in [k for k, due in self._due.items() if due <= time.monotonic() and not self._ending]:
                    del self._due[k]
                    self._start(k)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in zip((*FORWARDED, signal.SIGCHLD), before, strict=True):
                signal.signal(number, handler)
            shutil.rmtree(self.folder, ignore_errors=True)
        return worst

    def _start(self, k: int) -> None:
        self._began[k] = time.monotonic()
        _flush()
        pid = os.fork()
        if pid:
            self._pids[pid] = k
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*FORWARDED, signal.SIGCHLD):
                signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
            os.close(self._gone)
            code = self.work(k, self.folder, self._serves, self._alive)
        except BaseException as error:
            _say(f"worker {k}: {type(error).__name__}: {error}")
        finally:
            _flush()
            os._exit(code)

    def _reap(self) -> int:
        """Note the workers that have ended, and when to start them again; the worst exit code if all shall end."""
        worst = 0
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            k, code = self._pids.pop(pid), os.waitstatus_to_exitcode(status)
            if self._ending or not self._served:
                worst = max(worst, 1 if code < 0 else code)
                if not self._ending:  # it could not even start: neither could another one
                    self._forward(signal.SIGTERM, None)
                continue
            steady = time.monotonic() - self._began[k] > STEADY_SECONDS
            self._pause[k] = PAUSE if steady else min(2 * self._pause[k], MOST_PAUSE)
            self._due[k] = time.monotonic() + self._pause[k]
            _say(f"worker {k} ended with {code}, and is started again")
        return worst

    def _forward(self, number: int, _: object) -> None:
        """A signal reaches all workers."""
        if number != signal.SIGHUP:
            self._ending = True
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _say(text: str) -> None:
    """Write a line to stderr, and ignore errors: a closed pipe or a full disk must not stop the server."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _drain(fd: int) -> bytes:
    """What a pipe holds."""
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, 4096) if select.select([fd], [], [], 0)[0] else b""
    return b""

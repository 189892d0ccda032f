"""A real Redis and a file system like S3, for tests of the store."""

import shutil
import socket
import subprocess
import threading
import time
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

LOCK = threading.Lock()


class LikeS3(MemoryFileSystem):
    """Whole objects, no folders, and a conditional put, as of s3fs."""

    protocol = "likes3"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with LOCK:
            if mode == "create" and self.exists(path):
                raise FileExistsError(path)
            super().pipe_file(path, value)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("likes3://", "memory://"))


class Plain(LikeS3):
    """A file system without a conditional put."""

    protocol = "plain"

    def pipe_file(self, path, value, **kwargs):
        raise AssertionError("never asked")


fsspec.register_implementation("likes3", LikeS3, clobber=True)
fsspec.register_implementation("plain", Plain, clobber=True)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Redis:
    """A redis-server of its own."""

    def __init__(self, folder):
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("no redis-server: apt-get install redis-server")
        pytest.importorskip("redis", reason="no redis: pip install 'fastrnn[serve]'")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as talk:
                    talk.sendall(b"PING\r\n")
                    if talk.recv(5) == b"+PONG":
                        return
            except OSError:
                assert self.process.poll() is None, "redis-server ended"
                time.sleep(0.02)
        raise AssertionError("redis-server does not answer")

    def empty(self):
        """Drop all that it has."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as talk:
            talk.sendall(b"FLUSHALL\r\n")
            assert talk.recv(3) == b"+OK"

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

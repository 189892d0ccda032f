"""Processes of clients that are killed in the middle of a step, that cancel, and that start their sequences anew: every
answer that anyone gets has the bits of a lone stream, and nothing is left behind.

It runs for FASTRNN_KILL_SECONDS, 6 by default.
"""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from running import until

from fastrnn.serving.server.sequence import Call

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
pytestmark = pytest.mark.any_isa
SECONDS = float(os.environ.get("FASTRNN_KILL_SECONDS", "6"))
PROGRAM = Path(__file__).parent / "churning_client.py"
KINDS = ("stream", "http", "grpc", "stream", "http")


class Client:
    """A process of churning_client.py; `rounds` is what it has said so far."""

    def __init__(self, server, kind, folder, first, seed):
        port = server.http if kind == "http" else server.grpc
        command = [sys.executable, PROGRAM, kind, port, folder, first, seed]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True)
        self.rounds, self.lines = 0, []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            self.rounds += line.strip().isdigit()

    def end(self, number=None, seconds=90):
        """(the exit code, stderr)."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(seconds)
        self.reader.join()
        error = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, error


def left(server):
    """(tasks of the loop, open files): what a client may leave behind."""

    async def tasks():
        return {t for t in asyncio.all_tasks() if t is not asyncio.current_task()}

    gc.collect()
    return len(server.do(tasks())), len(os.listdir("/proc/self/fd"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what `left` collects of other tests
def test_clients_are_killed(serve, model, frames, alone, tmp_path):
    np.save(tmp_path / "frames.npy", frames)
    np.save(tmp_path / "alone.npy", alone)
    rng = random.Random(5)
    with serve({"m": model}, idle_timeout=3.0) as server:
        warm = Call((1,), (True,), (True,), {"x": frames[:1]})
        server.do(server.sequences.run(warm))  # the batcher's own task begins with the first request
        before = left(server)
        made = lambda i: Client(server, KINDS[i], tmp_path, 1 + 100 * i, rng.random())  # noqa: E731
        clients, killed, rounds = [made(i) for i in range(len(KINDS))], 0, 0
        try:
            until(lambda: all(c.rounds > 1 or c.process.poll() is not None for c in clients), "a client does not step")
            end = time.monotonic() + SECONDS
            while time.monotonic() < end or killed < 3:
                i = rng.randrange(len(KINDS))
                seen = clients[i].rounds
                until(lambda: clients[i].rounds > seen or clients[i].process.poll() is not None, "a client stands")  # noqa: B023
                time.sleep(rng.random() * 0.01)  # into the middle of a step
                code, error = clients[i].end(signal.SIGKILL)
                assert code == -signal.SIGKILL, (clients[i].lines[-1:], error)
                killed, rounds = killed + 1, rounds + clients[i].rounds
                clients[i] = made(i)
            (tmp_path / "end").touch()
            for client in clients:
                code, error = client.end()
                assert code == 0, (client.lines[-1:], error)
                rounds += client.rounds
        finally:
            for client in clients:
                client.process.kill()
        assert rounds > 10
        sequences = server.sequences
        until(lambda: not sequences.live, "a sequence is left")
        until(lambda: not len(sequences.lanes[1].pool), "a slot is left")
        until(lambda: not sequences.leaving, "a sequence never ends")
        until(lambda: left(server)[0] <= before[0], f"tasks are left: {left(server)}, before {before}")
        until(lambda: left(server)[1] <= before[1] + 2, f"files are left: {left(server)}, before {before}")
        assert set(sequences.ends) <= {"client", "restarted", "idle"}
        assert server.server.engine.live()

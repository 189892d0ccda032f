"""examples/service: gunicorn runs it as the systemd unit says, and each connection is one stream of the model."""

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import fastrnn

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "examples" / "service"
UNIT = SERVICE / "tone-words.service"
MODEL = ROOT / "examples" / "tone_words.onnx"
DATA = np.random.default_rng(3).standard_normal((60, 20)).astype(np.float32)


class Connection:
    """The client's end of a WebSocket, as far as this test needs it."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}"
        )
        self.socket.sendall(f"{head}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def send(self, data):
        """A binary message of up to 65,535 bytes, masked with zeros."""
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(b"\x82" + size + bytes(4) + data)

    def receive(self):
        """(opcode, payload) of the next message; (None, b"") if the connection is gone."""
        head = self.file.read(2)
        if len(head) < 2:
            return None, b""
        size = head[1] & 127
        if size == 126:
            (size,) = struct.unpack(">H", self.file.read(2))
        return head[0] & 15, self.file.read(size)

    def step(self, frames):
        self.send(frames.tobytes())
        kind, data = self.receive()
        assert kind == 2, (kind, data)
        return np.frombuffer(data, np.float32).reshape(len(frames), -1)

    def close(self):
        self.file.close()
        self.socket.close()


def unit_settings():
    """Key -> values of the unit."""
    found = {}
    for line in UNIT.read_text().splitlines():
        if re.match(r"\w+=", line):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path):
    """The folder of the unit, as its comment says to make it; its venv holds the gunicorn of this Python."""
    gunicorn = shutil.which("gunicorn", path=os.path.dirname(sys.executable))
    if gunicorn is None:
        pytest.skip("gunicorn is not installed")
    from gunicorn import version_info

    if version_info < (25,):
        pytest.skip("this gunicorn has no asgi worker")
    folder = tmp_path / "tone-words"
    shutil.copytree(SERVICE, folder)
    fastrnn.load(MODEL).save(folder / "tone_words.fastrnn")
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "gunicorn").symlink_to(gunicorn)
    return folder


def stats(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
        return json.load(reply)


@pytest.fixture
def service(installed):
    """(port, master process) of ExecStart, in the unit's folder and environment; ready when systemd is told so."""
    settings = unit_settings()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WORKERS": "2"}
    env |= dict(line.split("=", 1) for line in settings["Environment"])
    env |= {"BIND": f"127.0.0.1:{port}", "MODEL": env["MODEL"].replace("/opt/tone-words", str(installed))}
    env |= {"STREAMS_PER_WORKER": "20"}
    (line,) = settings["ExecStart"]
    assert settings["Type"] == ["notify"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(installed / "notify"))
        systemd.settimeout(60)
        command = shlex.split(line.replace("/opt/tone-words", str(installed)))
        with open(installed / "log", "wb") as log:
            env["NOTIFY_SOCKET"] = str(installed / "notify")
            master = subprocess.Popen(command, cwd=installed, env=env, stdout=log, stderr=log)
        try:
            assert b"READY=1" in systemd.recv(1000), (installed / "log").read_text()
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    stats(port)
                    break
                assert time.monotonic() < end, (installed / "log").read_text()
                time.sleep(0.05)
            yield port, master
        finally:
            master.terminate()
            try:
                assert master.wait(30) == 0, (installed / "log").read_text()
            finally:
                master.kill()


def workers(port):
    """The pids that answer."""
    found, end = set(), time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < end:
        with contextlib.suppress(OSError):
            found.add(stats(port)["pid"])
    return found


def test_each_connection_is_a_stream(service):
    port, master = service
    assert master.pid not in workers(port)
    want = fastrnn.load(MODEL)(DATA[None])[0]
    connections = [Connection(port) for _ in range(8)]
    got = [[] for _ in connections]
    for part in np.array_split(np.arange(len(DATA)), 7):  # all streams advance in turns, by several frames
        for connection, answers in zip(connections, got, strict=True):
            answers.append(connection.step(DATA[part]))
    for answers in got:
        assert np.array_equal(np.concatenate(answers), want)
    for connection in connections:
        connection.close()
    end = time.monotonic() + 30
    while any(stats(port)["open"] for _ in range(10)):  # the slots come back
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_worker_takes_only_its_own_streams(service):
    port, _ = service
    before = workers(port)
    assert len(before) == 2
    want = fastrnn.load(MODEL)(DATA[None])[0]
    connections = [Connection(port) for _ in range(12)]
    for connection in connections:
        assert np.array_equal(connection.step(DATA[:10]), want[:10])
    victim = min(before)
    while (seen := stats(port))["pid"] != victim:
        pass
    os.kill(victim, signal.SIGKILL)
    lost = 0
    for connection in connections:
        connection.send(DATA[10:].tobytes())
        try:
            kind, data = connection.receive()
        except ConnectionResetError:
            kind = None
        if kind == 2:
            assert np.array_equal(np.frombuffer(data, np.float32).reshape(50, -1), want[10:])
        lost += kind != 2
        connection.close()
    end = time.monotonic() + 60
    while victim in (after := workers(port)) or len(after) < 2:
        assert time.monotonic() < end
    fresh = Connection(port)
    assert np.array_equal(fresh.step(DATA), want)
    fresh.close()
    assert lost == seen["open"]


def test_wrong_data_and_too_many_streams_are_refused(service):
    port, _ = service
    connection = Connection(port)
    connection.send(b"123")
    kind, data = connection.receive()
    assert (kind, struct.unpack(">H", data[:2])[0]) == (8, 1007)
    assert data[2:] == b"a message is float32 frames of 20 numbers"
    connection.close()
    opened, refused = [], None
    for _ in range(41):  # two workers of 20 streams
        connection = Connection(port)
        opened.append(connection)
        connection.send(DATA[:1].tobytes())
        kind, data = connection.receive()
        if kind == 8:
            refused = struct.unpack(">H", data[:2])[0]
            break
    assert refused == 1013
    for connection in opened:
        connection.close()


def test_systemd_accepts_the_unit(installed):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = installed / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/tone-words", str(installed)))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("CPUQuota=200%", "CPUQuota=much"))
    wrong = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "Invalid CPU quota 'much'" in wrong.stderr  # it does read the settings

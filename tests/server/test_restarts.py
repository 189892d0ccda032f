"""Real `fastrnn serve` processes with unmodified tritonclients: SIGTERM, SIGKILL, and a rolling restart of two servers
behind nginx. Bits are a lone stream's, and no step is lost or taken twice."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
from store_programs import free_port  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = pytest.mark.any_isa
PATIENCE = 120.0  # seconds for anything to happen on a busy machine
# `fastrnn serve`, whose servers wait as long for each other: one that is slow is not dead.
SERVE = f"""
from fastrnn.serving.server import neighbours
neighbours.PATIENCE_SECONDS = {PATIENCE}
from fastrnn.cli import main
raise SystemExit(main())
"""


class Process:
    """`fastrnn serve` of the model "m" in a process of its own."""

    def __init__(self, file, store, *more):
        self.http, self.grpc = free_port(), free_port()
        self._command = [sys.executable, "-c", SERVE, "serve", f"m={file}", "--json", "--store", store]
        self._command += ["--http-port", str(self.http), "--grpc-port", str(self.grpc), *more]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert json.loads(self.process.stdout.readline())["models"] == ["m@1"]

    def end(self, number=signal.SIGTERM):
        """The exit status."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return status


@pytest.fixture
def file(model, tmp_path):
    model.save(tmp_path / "m.fastrnn")
    return tmp_path / "m.fastrnn"


@pytest.fixture
def serving(file):
    """Starts servers, and ends them."""
    running = []

    def start(store, *more):
        running.append(Process(file, store, *more))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


class Client:
    """One sequence, by one protocol of tritonclient."""

    def __init__(self, kind, port, id):
        self.module, self.id, self.at = kind, id, 0
        self.client = kind.InferenceServerClient(f"127.0.0.1:{port}")

    def step(self, x, start=False, **parameters):
        """(y, steps_done)."""
        tensor = self.module.InferInput("x", [1, len(x)], "FP32")
        tensor.set_data_from_numpy(x[None])
        headers = {"x-sequence-id": str(self.id)}
        answer = self.client.infer(
            "m", [tensor], sequence_id=self.id, sequence_start=start, parameters=parameters, headers=headers
        )
        response = answer.get_response()
        if self.module is grpc:
            done = response.parameters["steps_done"].int64_param
            name = response.outputs[0].name
        else:
            done, name = response["parameters"]["steps_done"], response["outputs"][0]["name"]
        return answer.as_numpy(name)[0], done

    def close(self):
        self.client.close()


def test_a_restart_by_sigterm_loses_nothing(serving, frames, alone, url):
    server = serving(url)
    clients = [Client(grpc, server.grpc, 1), Client(http, server.http, 2), Client(grpc, server.grpc, "drei")]
    for t in range(10):
        for client in clients:
            y, _ = client.step(frames[t], start=t == 0)
            assert np.array_equal(y, alone[t])
    assert server.end() == 0
    server.start()
    for t in range(10, 20):
        for client in clients:
            y, done = retried(client, frames[t])
            assert np.array_equal(y, alone[t])
            assert done == t + 1
    for client in clients:
        client.close()


def retried(client, x, **parameters):
    """An answer; requests that were refused as unavailable, or whose connection was refused, are sent again. So are
    those that a server cut off when it ended, if they have a step_index: they may have been taken."""
    again = {"503", "502", "StatusCode.UNAVAILABLE"} | (
        {"StatusCode.CANCELLED"} if "step_index" in parameters else set()
    )
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return client.step(x, **parameters)
        except (InferenceServerException, OSError) as error:
            busy = isinstance(error, OSError) or str(error.status()) in again
            if not busy or time.monotonic() > end:
                raise
            time.sleep(0.02)


def test_after_sigkill_step_index_tells_what_to_send_again(serving, frames, alone, folder):
    server = serving(folder, "--checkpoint-seconds", "0.05")
    one, two = Client(grpc, server.grpc, 1), Client(http, server.http, 2)
    for t in range(40):
        assert np.array_equal(one.step(frames[t], start=t == 0, step_index=t)[0], alone[t])
        assert np.array_equal(two.step(frames[t], start=t == 0)[0], alone[t])
        if t == 20:
            time.sleep(0.5)  # some are in the store; others are not
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server.start()

    with pytest.raises(InferenceServerException) as caught:
        retried(two, frames[40])
    assert "goes on from a checkpoint after" in str(caught.value)
    try:
        retried(one, frames[40], step_index=40)
        at = 41  # the last checkpoint had everything
    except InferenceServerException as error:
        text = str(error)
        assert "sequence 1 expects step_index" in text
        at = int(text.split("expects step_index ")[1].split(",")[0])
    assert at <= 41
    for t in range(at, 60):
        assert np.array_equal(one.step(frames[t], step_index=t)[0], alone[t])
    assert np.array_equal(two.step(frames[0], start=True)[0], alone[0])
    one.close()
    two.close()


NGINX = """\
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    map $http_upgrade $upgraded {{ default upgrade; "" close; }}
    map $http_x_sequence_id$arg_sequence_id $sequence {{
        default $http_x_sequence_id$arg_sequence_id;
        "" $request_id;
    }}
    upstream http_servers {{
        zone http_servers 64k;
        hash $sequence consistent;
        server 127.0.0.1:{http[0]} max_fails=1 fail_timeout=1s;
        server 127.0.0.1:{http[1]} max_fails=1 fail_timeout=1s;
    }}
    upstream grpc_servers {{
        zone grpc_servers 64k;
        hash $http_x_sequence_id consistent;
        server 127.0.0.1:{grpc[0]} max_fails=1 fail_timeout=1s;
        server 127.0.0.1:{grpc[1]} max_fails=1 fail_timeout=1s;
    }}
    server {{
        listen 127.0.0.1:{ports[0]};
        location / {{
            proxy_pass http://http_servers;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upgraded;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
    server {{
        listen 127.0.0.1:{ports[1]} http2;
        location / {{
            grpc_pass grpc://grpc_servers;
            grpc_next_upstream error timeout http_503 non_idempotent;
        }}
    }}
}}
"""


@pytest.fixture
def proxied(tmp_path):
    """Starts nginx before two servers; its ports, of HTTP and gRPC."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("no nginx: apt-get install nginx")
    started = []

    def start(servers):
        ports = free_port(), free_port()
        folder = tmp_path / "nginx"
        folder.mkdir()
        os.chmod(folder, 0o777)
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(folder=folder, http=[s.http for s in servers], grpc=[s.grpc for s in servers], ports=ports)
        )
        started.append(subprocess.Popen([program, "-c", str(config), "-p", str(folder)]))
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=10).close()
                return ports
            except OSError:
                assert started[0].poll() is None, "nginx ended"
                assert time.monotonic() < end
                time.sleep(0.05)

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE)


def live(server):
    """Sequences that a server has."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/metrics", timeout=PATIENCE) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith('fastrnn_sequences{model="m"}'):
                return int(float(line.split()[1]))
    raise AssertionError("no metric fastrnn_sequences")


def test_a_rolling_restart_behind_nginx_loses_no_step(serving, proxied, frames, alone, tmp_path):
    store = str(tmp_path / "store")
    servers = [serving(store), serving(store)]
    ports = proxied(servers)
    clients = [Client(http if i % 2 else grpc, ports[0] if i % 2 else ports[1], i + 1) for i in range(12)]
    done, failures = threading.Event(), []

    def talk(client):
        """Steps that go round and round the frames, until told to stop."""
        try:
            t = 0
            while not done.is_set():
                again = t % len(frames) == 0
                more = {"step_index": t % len(frames)} if client.module is grpc or client.id % 4 == 0 else {}
                y, steps = retried(client, frames[t % len(frames)], start=again, **more)
                assert np.array_equal(y, alone[t % len(frames)]), f"sequence {client.id} differs at step {t}"
                assert steps == t % len(frames) + 1
                t += 1
                client.at = t
                time.sleep(0.005)
        except BaseException as error:
            failures.append((client.id, client.at, error))
            raise

    threads = [threading.Thread(target=talk, args=(c,)) for c in clients]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(c.at > 5 for c in clients) and all(map(live, servers)), failures)
        for server in servers:
            assert server.end() == 0
            seen = [c.at for c in clients]
            until(lambda seen=seen: all(c.at > s + 5 for c, s in zip(clients, seen, strict=True)), failures)
            server.start()
            until(lambda server=server: live(server), failures)  # nginx sends some back, and they go on there
            seen = [c.at for c in clients]
            until(lambda seen=seen: all(c.at > s + 5 for c, s in zip(clients, seen, strict=True)), failures)
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        for client in clients:
            client.close()
    assert not failures


def test_websockets_and_pages_behind_nginx(serving, proxied, frames, alone, tmp_path):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    store = str(tmp_path / "store")
    servers = [serving(store), serving(store)]
    port, _ = proxied(servers)
    url = f"ws://127.0.0.1:{port}/v2/models/m/stream?output=binary"
    step, page = frames[0].tobytes(), f"http://127.0.0.1:{port}"
    for more in ("", "&sequence_id=a"):
        with connect(url + more, origin=page) as socket:
            socket.send(step)
            assert socket.recv(timeout=PATIENCE) == alone[0].tobytes()
    with connect(f"{url}&sequence_id=a&sequence_start=0") as socket:
        socket.send(frames[1].tobytes())
        assert socket.recv(timeout=PATIENCE) == alone[1].tobytes()
    with pytest.raises(InvalidStatus, match="403"), connect(url, origin="http://other.example"):
        pass
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # without an id they go to both
            socket = stack.enter_context(connect(url))
            socket.send(step)
            assert socket.recv(timeout=PATIENCE) == alone[0].tobytes()
        assert all(map(live, servers))


def until(condition, failures):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert not failures, failures
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    assert not failures, failures

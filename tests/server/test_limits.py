"""How much of a server one client may take."""

import http.client
import json
import queue
import time

import numpy as np
import pytest
from running import Running, ask, body, connect, until

triton_http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
import websockets.exceptions  # noqa: E402
import websockets.sync.client  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.serving import Limits  # noqa: E402
from fastrnn.serving.server.faults import Fault  # noqa: E402
from fastrnn.serving.server.guard import client_address  # noqa: E402
from fastrnn.serving.server.limits import Clients  # noqa: E402

pytestmark = pytest.mark.any_isa
ONE, TWO = "one" * 12, "two_" * 9


class TestLimits:
    def test_rate(self, model, frames, alone):
        """Three requests at once, then one in 1,000 s: the fourth is refused."""
        limits = Limits(client_rate=0.001, client_burst=3)
        with Running({"m": model}, limits=limits) as server:
            for t in range(3):
                sent = body(frames[t], sequence_id=1, sequence_start=t == 0)
                assert ask(server, "POST", "/v2/models/m/infer", sent)[0] == 200
            status, answer, headers = ask(server, "POST", "/v2/models/m/infer", body(frames[3], sequence_id=1))
            assert status == 429
            assert "127.0.0.1 may send 0.001 requests a second" in answer["error"]
            assert 900 < int(headers["retry-after"]) <= 1000
            assert ask(server, "GET", "/v2/health/live")[0] == 200
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
            x = triton_grpc.InferInput("x", [1, 5], "FP32")
            x.set_data_from_numpy(frames[3:4])
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
                client.infer("m", [x], sequence_id=1)
            with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):  # as by HTTP
                client.get_inference_statistics("m")
            assert client.is_server_live()
            assert client.is_server_ready()
            assert server.sequences.live[1].steps == 3

    def test_rate_of_streams(self, model, frames, alone):
        """Further messages wait for their time."""
        with Running({"m": model}, limits=Limits(client_rate=20, client_burst=1)) as server, connect(server) as socket:
            began = time.monotonic()
            for t in range(4):
                socket.send(frames[t].tobytes())
            got = [json.loads(socket.recv(timeout=30))["outputs"]["y"][0] for _ in range(4)]
            assert np.array_equal(np.array(got, np.float32), alone[:4])
            assert time.monotonic() - began > 0.14
            client, answers = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"), queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            began = time.monotonic()
            for t in range(4):
                x = triton_grpc.InferInput("x", [1, 5], "FP32")
                x.set_data_from_numpy(frames[t : t + 1])
                client.async_stream_infer("m", [x], sequence_id=2, sequence_start=t == 0)
            for t in range(4):
                result, error = answers.get(timeout=30)
                assert error is None
                assert np.array_equal(result.as_numpy("y")[0], alone[t])
            assert time.monotonic() - began > 0.14
            client.stop_stream()

    def test_a_bucket(self):
        clients = Clients(Limits(client_rate=50.0, client_burst=2))
        clients.take("a"), clients.take("a"), clients.take("b")
        with pytest.raises(Fault) as caught:
            clients.take("a")
        assert 0 < caught.value.retry_after <= 0.02
        time.sleep(0.025)
        clients.take("a")

    def test_sequences_of_a_client(self, model, frames, tmp_path):
        path = tmp_path / "tokens"
        path.write_text(f"a: {ONE}\nb: {TWO}")
        path.chmod(0o600)
        with Running({"m": model}, tokens=path, client_sequences=2) as server:

            def start(token, id, **more):
                sent = body(frames[0], sequence_id=id, sequence_start=True, **more)
                return ask(server, "POST", "/v2/models/m/infer", sent, Authorization=f"Bearer {token}")

            assert [start(ONE, i)[0] for i in (1, 2, 2, 1)] == [200] * 4
            status, answer, headers = start(ONE, 3)
            assert status == 429
            assert "a has 2 live sequences of at most 2: end one before 3 starts" in answer["error"]
            assert headers["retry-after"] == "1"
            assert start(TWO, 4)[0] == 200
            assert start(ONE, 4)[0] == 429  # it would take over another's
            assert start(ONE, 2, sequence_end=True)[0] == 200
            assert start(ONE, 3)[0] == 200
            assert server.sequences.live.by_client == {"a": 2, "b": 1}

    def test_streams_of_a_client(self, model, frames):
        with Running({"m": model}, limits=Limits(client_streams=2)) as server:
            with connect(server), connect(server):
                with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
                    connect(server)
                assert caught.value.response.status_code == 429
                client, answers = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"), queue.Queue()
                client.start_stream(lambda result, error: answers.put((result, error)))
                assert "2 streams open" in str(answers.get(timeout=30)[1])
                client.stop_stream()
            until(lambda: not server.server.engine.clients.streams)
            with connect(server):
                pass

    def test_connections(self, model):
        with Running({"m": model}, limits=Limits(client_connections=3)) as server:
            held = [http.client.HTTPConnection("127.0.0.1", server.http, timeout=30) for _ in range(3)]
            for connection in held:
                connection.request("GET", "/v2/health/live")
                response = connection.getresponse()
                assert response.read() is not None
                assert response.status == 200
            status, answer, headers = ask(server, "GET", "/v2/health/live")
            assert (status, headers["retry-after"]) == (503, "1")
            assert "as many connections as it takes" in answer["error"]
            held.pop().close()
            until(lambda: ask(server, "GET", "/v2/health/live")[0] == 200)
            for connection in held:
                connection.close()

    def test_messages(self, model, frames):
        with Running({"m": model}, limits=Limits(message_bytes=3000)) as server:
            status, answer, _ = ask(server, "POST", "/v2/models/m/infer", bytes(3001))
            assert status == 413
            assert "a request may have 3000 bytes" in answer["error"]
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
            x = triton_grpc.InferInput("x", [1, 200, 5], "FP32")
            x.set_data_from_numpy(frames[None, :200])
            for algorithm in (None, "gzip", "deflate"):
                with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*larger than max"):
                    client.infer("m", [x], compression_algorithm=algorithm)
            with connect(server) as socket:
                socket.send(bytes(4000))
                with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
                    socket.recv(timeout=30)
                assert caught.value.rcvd.code == 1009

    def test_bodies_that_are_not_whole(self, model):
        """16 of the largest size may wait in memory."""
        with Running({"m": model}, limits=Limits(message_bytes=10_000)) as server:
            held = []
            for _ in range(17):
                connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
                connection.putrequest("POST", "/v2/models/m/infer")
                connection.putheader("Content-Length", "10000")
                connection.endheaders(bytes(9_000))
                held.append(connection)
            clients = server.server.engine.clients
            until(lambda: clients._held == 17 * 9_000)
            status, answer, headers = ask(server, "POST", "/v2/models/m/infer", bytes(9_000))
            assert (status, headers["retry-after"]) == (503, "1")
            assert "more than 160000 bytes" in answer["error"]
            for connection in held:
                connection.close()
            until(lambda: not clients._held)
            assert ask(server, "POST", "/v2/models/m/infer", bytes(9_000))[0] == 400

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            ({"message_bytes": 0}, "message_bytes must be an int in"),
            ({"client_rate": -1}, "client_rate must be a number of requests a second above 0"),
            ({"client_rate": "9"}, "client_rate must be a number"),
            ({"client_burst": 2}, "client_burst goes with client_rate"),
            ({"client_streams": 0}, "client_streams must be an int in"),
        ],
    )
    def test_wrong_limits(self, wrong, text):
        with pytest.raises(fastrnn.ShapeError, match=text):
            Limits(**wrong)


def test_addresses_of_clients():
    assert client_address("127.0.0.1") == "127.0.0.1"
    assert client_address("::1") == "::1"
    assert client_address("::ffff:10.0.0.7") == "10.0.0.7"
    assert client_address("2001:db8:1:2:3::9") == client_address("2001:db8:1:2::8%eth0") == "2001:db8:1:2::/64"
    assert client_address("unix") == "unix"

"""HTTP as programs without tritonclient speak it: JSON, binary tensors, headers, methods, and each mistake."""

import contextlib
import gzip
import http.client
import json
import shutil
import socket
import subprocess

import numpy as np
import pytest

pytestmark = pytest.mark.any_isa
INFER = "/v2/models/m/infer"


def asked(server, path, body=None, method=None, **headers):
    """(status, headers in lower case, body) of a request. body: what JSON holds, or bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if data is None else "POST"), path, data, sent)
    response = connection.getresponse()
    found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return found


def asks(x, datatype="FP32", outputs=None, **parameters):
    """A request as JSON."""
    x = np.asarray(x)
    tensor = {"name": "x", "datatype": datatype, "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    return {"inputs": [tensor], "parameters": parameters} | ({} if outputs is None else {"outputs": outputs})


def answered(server, body, **headers):
    """The answer to an inference that succeeds, as JSON."""
    status, _, data = asked(server, INFER, body, **headers)
    assert status == 200, data
    return json.loads(data)


def values(answer, name="y"):
    (found,) = [o for o in answer["outputs"] if o["name"] == name]
    return np.array(found["data"], np.float32).reshape(found["shape"])


def error(server, body, status=400, path=INFER, **headers):
    """The text of an error with this status."""
    found, sent, data = asked(server, path, body, **headers)
    assert found == status, data
    assert sent["content-type"] == "application/json"
    return json.loads(data)["error"]


class TestJson:
    def test_a_sequence(self, running, frames, alone):
        for t in range(3):
            body = asks(frames[t][None], sequence_id=1, sequence_start=t == 0)
            answer = answered(running, {**body, "id": f"r{t}"})
            assert np.array_equal(values(answer), alone[t][None])
            assert answer["parameters"] == {"sequence_id": 1, "step_index": t, "steps_done": t + 1}
            assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", f"r{t}")

    def test_data_may_be_nested(self, running, frames, alone):
        body = asks(frames[None, :4], sequence_id=1, sequence_start=True)
        body["inputs"][0]["data"] = frames[None, :4].tolist()
        assert np.array_equal(values(answered(running, body))[0], alone[:4])

    def test_no_outputs_named_are_all(self, running, frames):
        for outputs in (None, []):
            answer = answered(running, asks(frames[:1], outputs=outputs, sequence_id=1, sequence_start=True))
            assert [o["name"] for o in answer["outputs"]] == ["y"]

    def test_nan_and_infinity(self, running):
        """JSON has neither. An answer has null in their place; a binary one keeps them."""
        x = np.full((1, 5), np.nan)
        answer = answered(running, asks(x, sequence_id=1, sequence_start=True))
        assert answer["outputs"][0]["data"] == [None] * 8
        body = asks(x, sequence_id=1, sequence_start=True, binary_data_output=True)
        _, headers, data = asked(running, INFER, body)
        assert np.isnan(np.frombuffer(data[int(headers["inference-header-content-length"]) :], "<f4")).all()
        assert "data must be numbers" in error(running, asks(np.array([[None] * 5]), sequence_id=1))

    def test_half_precision_widens(self, running, frames, model):
        x = frames[:1].astype(np.float16)
        answer = answered(running, asks(x, "FP16", sequence_id=1, sequence_start=True))
        assert np.array_equal(values(answer)[0], model.stream().step(x[0].astype(np.float32)))

    @pytest.mark.parametrize("flag", [True, 1])
    def test_flags(self, running, frames, flag):
        answered(running, asks(frames[:1], sequence_id=1, sequence_start=flag, sequence_end=flag))

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"parameters": {"sequence_id": 1, "sequence_start": "true"}}, "sequence_start must be true or false"),
            ({"parameters": {"sequence_id": 1, "sequence_end": 2}}, "sequence_end must be true or false, got 2"),
            ({"parameters": {"sequence_id": 1.0}}, "sequence_id must be an integer or a string, got float"),
            ({"parameters": {"sequence_id": None}}, "sequence_id must be an integer or a string, got NoneType"),
            ({"parameters": {"sequence_id": True}}, "sequence_id must be an integer or a string, got bool"),
            ({"parameters": {"sequence_id": 1 << 64}}, "sequence_id must be from 0 to 2**64 - 1"),
            ({"parameters": {"sequence_start": True}}, "sequence_start has no meaning in a request without a sequence"),
            (
                {"parameters": {"sequence_id": 0, "sequence_end": True}},
                "sequence_end has no meaning in a request",
            ),
            ({"parameters": {"sequence_id": 1, "step_index": 1.5}}, "step_index must be a whole number from 0 on"),
            ({"parameters": {"sequence_id": 1, "step_index": True}}, "step_index must be a whole number from 0 on"),
            ({"parameters": {"timeout": "1"}}, "timeout must be a whole number of microseconds below 2**64, got '1'"),
            ({"parameters": {"timeout": -1}}, "timeout must be a whole number of microseconds below 2**64, got -1"),
            ({"parameters": {"priority": "high"}}, "priority must be a whole number from 0 on, got 'high'"),
            ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false, got 1"),
            ({"parameters": []}, "parameters must be a JSON object"),
            ({"id": 7}, "the id of a request must be a text, got 7"),
            ({"inputs": {}}, "inputs must be a list"),
            ({"inputs": [[]]}, "an input must be a JSON object"),
            ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5]}]}, "has neither data nor parameters"),
            (
                {"inputs": [{"name": "x", "datatype": "BF16", "shape": [0], "data": []}]},
                "datatype must be one of",
            ),
            ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5], "data": []}]}, "shape must be a list of"),
            ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}]}, "[2] has 2 numbers, got 1"),
            ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [True]}]}, "FP32 takes numbers"),
            ({"inputs": [{"name": "x", "datatype": "BOOL", "shape": [1], "data": [2]}]}, "BOOL takes true and false"),
            ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1.5]}]}, "INT8 takes whole numbers"),
            ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [300]}]}, "data is not INT8"),
            ({"outputs": [{"name": "z"}]}, "there is no output 'z': the outputs are y"),
            ({"outputs": [{"name": "y", "parameters": {"binary_data": "no"}}]}, "binary_data must be true or false"),
        ],
    )
    def test_a_wrong_field(self, running, frames, change, text):
        before = dict(running.sequences.live)
        assert text in error(running, {**asks(frames[None, :2]), **change})
        assert running.sequences.live == before

    @pytest.mark.parametrize(
        ("body", "text"),
        [(b"", "is not JSON"), (b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "must be a JSON object"),
         (b"{}", "inputs must be a list"), (b"[" * 100_000, "is not JSON")],
    )  # fmt: skip
    def test_a_body_that_is_none(self, running, body, text):
        assert text in error(running, body)


class TestBinary:
    def body(self, x, size=None, **parameters):
        """(body, length of its JSON)."""
        data = x.tobytes()
        given = {"binary_data_size": len(data) if size is None else size}
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": given}
        head = json.dumps({"inputs": [tensor], "parameters": {**parameters, "binary_data_output": True}}).encode()
        return head + data, len(head)

    def test_both_ways(self, running, frames, alone):
        data, length = self.body(frames[None, :9], sequence_id=1, sequence_start=True)
        status, headers, answer = asked(running, INFER, data, inference_header_content_length=str(length))
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
        cut = int(headers["inference-header-content-length"])
        assert json.loads(answer[:cut])["outputs"][0]["parameters"] == {"binary_data_size": 9 * 8 * 4}
        assert np.array_equal(np.frombuffer(answer[cut:], "<f4").reshape(9, 8), alone[:9])

    @pytest.mark.parametrize("length", ["-1", "x", "99999", "1.0", ""])
    def test_a_wrong_length(self, running, frames, length):
        data, _ = self.body(frames[:1], sequence_id=1)
        text = error(running, data, inference_header_content_length=length)
        assert "inference-header-content-length must be a number of bytes up to" in text

    @pytest.mark.parametrize(("size", "text"), [(24, "20 bytes are left"), (16, "FP32 [1, 5] takes 20 bytes, got 16")])
    def test_a_wrong_size(self, running, frames, size, text):
        data, length = self.body(frames[:1], size, sequence_id=1)
        assert text in error(running, data, inference_header_content_length=str(length))

    def test_bytes_behind_the_tensors(self, running, frames):
        data, length = self.body(frames[:1], sequence_id=1)
        assert "3 bytes follow" in error(running, data + b"abc", inference_header_content_length=str(length))


class TestHeaders:
    @pytest.mark.parametrize(
        ("accepted", "used"),
        [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("deflate", "deflate"), ("gzip;q=0", None), ("identity", None)],
    )
    def test_the_encoding_of_the_answer(self, running, frames, accepted, used):
        status, headers, _ = asked(running, INFER, asks(frames[None, :100]), accept_encoding=accepted)
        assert (status, headers.get("content-encoding")) == (200, used)

    def test_the_encoding_of_the_request(self, running, frames):
        body = json.dumps(asks(frames[None, :100])).encode()
        packed = gzip.compress(body)
        assert asked(running, INFER, packed, content_encoding="gzip")[0] == 200
        assert "ends in the middle" in error(running, packed[:-20], content_encoding="gzip")
        assert "bytes follow the gzip data" in error(running, packed + packed, content_encoding="gzip")
        assert "is not gzip" in error(running, body, content_encoding="gzip")
        assert "content-encoding must be gzip, deflate or identity" in error(running, body, content_encoding="br")

    def test_retry_after(self, serve, model, frames):
        """Of 503 and 429 alone."""
        with serve({"m": model}, max_sequences=1) as server:
            answered(server, asks(frames[:1], sequence_id=1, sequence_start=True))
            full = asked(server, INFER, asks(frames[:1], sequence_id=2, sequence_start=True))
            assert (full[0], full[1]["retry-after"]) == (503, "1")
            assert "retry-after" not in asked(server, INFER, asks(frames[:1], sequence_id=2))[1]
            server.do(server.server.drain(0.0))
            draining = asked(server, INFER, asks(frames[:1], sequence_id=1, sequence_start=True))
            assert (draining[0], draining[1]["retry-after"]) == (503, "1")
            assert asked(server, "/v2/health/ready")[0] == 503
            assert asked(server, "/v2/health/live")[0] == 200

    def test_a_body_in_chunks(self, running, frames, alone):
        connection = http.client.HTTPConnection("127.0.0.1", running.http, timeout=30)
        body = json.dumps(asks(frames[:1], sequence_id=1, sequence_start=True)).encode()
        parts = (body[i : i + 50] for i in range(0, len(body), 50))
        connection.request("POST", INFER, parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert np.array_equal(values(json.loads(connection.getresponse().read())), alone[:1])
        connection.close()


class TestPaths:
    def test_health(self, running):
        """Triton's clients read the status, KServe's the JSON."""
        for path, answer in {
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/models/m/ready": {"name": "m", "version": "1", "ready": True},
            "/v2/models/m/versions/1/ready": {"name": "m", "version": "1", "ready": True},
        }.items():
            status, _, data = asked(running, path)
            assert (status, json.loads(data)) == (200, answer)

    @pytest.mark.parametrize("path", ["/v2", "/v2/models/m", "/v2/models/m/versions/1/config", "/v2/models/m/stats"])
    def test_head_is_get_without_a_body(self, running, path):
        get, head = asked(running, path), asked(running, path, method="HEAD")
        assert (head[0], head[2]) == (200, b"")
        assert get[0] == 200
        assert json.loads(get[2])

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", INFER, 405), ("PUT", "/v2", 405), ("DELETE", "/v2/models/m", 405), ("POST", "/v2/models/m", 405),
         ("GET", "/v2/nothing", 404), ("POST", "/v2/repository/models/m/load", 404), ("GET", "/v2/models/none", 404),
         ("GET", "/v2/models/m/versions/2/ready", 404), ("GET", "/v2/models/none/ready", 404)],
    )  # fmt: skip
    def test_what_is_not_there(self, running, method, path, status):
        found, _, data = asked(running, path, method=method)
        assert found == status
        assert json.loads(data)["error"]

    def test_a_version_in_the_path(self, serve, model, frames, alone):
        with serve({"m": {1: model, 2: model}}) as server:
            path = "/v2/models/m/versions/1/infer"
            assert asked(server, path, asks(frames[:1], sequence_id=1, sequence_start=True))[0] == 200
            text = error(server, asks(frames[1:2], sequence_id=1), path="/v2/models/m/versions/2/infer")
            assert "sequence 1 runs on version 1 of 'm', and the request asks for version 2" in text
            assert np.array_equal(values(answered(server, asks(frames[1:2], sequence_id=1))), alone[1:2])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_curl(running, frames, alone):
    body = json.dumps(asks(frames[:1], sequence_id=77, sequence_start=True))
    url = f"http://127.0.0.1:{running.http}{INFER}"
    for more in ([], ["--compressed"], ["-H", "Expect: 100-continue"]):
        done = subprocess.run(["curl", "-sS", url, "-d", body, *more], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(values(json.loads(done.stdout)), alone[:1])


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


class TestOffersOfHttp2:
    """Java's HttpClient and `curl --http2` send one with each request. It is ignored, and the body is read."""

    @staticmethod
    def head(path, *lines, method="POST"):
        return "".join([f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n", H2C, *lines, "\r\n"]).encode()

    def step(self, frames, t):
        data = json.dumps(asks(frames[t][None], sequence_id="h2c", sequence_start=t == 0)).encode()
        return self.head(INFER, f"Content-Length: {len(data)}\r\n") + data

    @staticmethod
    def answers(server, sent, count, size=None):
        """The bodies of so many answers to bytes that are sent in pieces of a size."""
        with socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(sent), size or len(sent)):
                connection.sendall(sent[at : at + (size or len(sent))])
            found = []
            for _ in range(count):
                response = http.client.HTTPResponse(connection)
                response.begin()
                found.append((response.status, json.loads(response.read())))
        return found

    @pytest.mark.parametrize("size", [None, 1, 7, 150])
    def test_pieces_of_any_size(self, running, frames, alone, size):
        sent = b"".join(self.step(frames, t) for t in range(2)) if size is None else self.step(frames, 0)
        for t, (status, answer) in enumerate(self.answers(running, sent, 2 if size is None else 1, size)):
            assert status == 200
            assert np.array_equal(values(answer), alone[t][None])

    def test_a_chunked_body(self, running, frames, alone):
        data = json.dumps(asks(frames[0][None], sequence_id="h2c", sequence_start=True)).encode()
        sent = self.head(INFER, "Transfer-Encoding: chunked\r\n") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        ((status, answer),) = self.answers(running, sent, 1)
        assert status == 200
        assert np.array_equal(values(answer), alone[0][None])

    def test_what_has_no_body(self, running):
        ((status, answer),) = self.answers(running, self.head("/v2", method="GET"), 1)
        assert (status, answer["name"]) == (200, "fastrnn")

    def test_many_at_once_are_bounded_as_others_are(self, running):
        address = ("127.0.0.1", running.http)
        with socket.create_connection(address, timeout=30) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(self.head("/v2", method="GET") * 3000)
            while connection.recv(1 << 16):
                pass
        assert asked(running, "/v2")[0] == 200

    @pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: apt-get install curl")
    def test_curl(self, running, frames, alone):
        body = json.dumps(asks(frames[0][None], sequence_id="curl", sequence_start=True))
        url = f"http://127.0.0.1:{running.http}{INFER}"
        done = subprocess.run(["curl", "-sS", "--http2", "-d", body, url], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(values(json.loads(done.stdout)), alone[0][None])

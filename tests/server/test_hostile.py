"""Hostile clients: each gets an error or loses its connection; a sequence of another client goes on with the bits of a
lone stream all the while; the server's memory stays bounded and its log has no traceback."""

import gzip
import json
import os
import zlib

import pytest
from running import Running, ask, body

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
from attacked import INFER, head, send, status

pytestmark = pytest.mark.any_isa


@pytest.fixture(autouse=True)
def unharmed(served):
    """After each attack the other client goes on, and its server answers."""
    yield
    assert ask(served, "GET", "/v2/health/live")[0] == 200
    served.victim.goes_on()


class TestHeaders:
    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            (head(**{f"x{i}": "y" for i in range(200)}), 431),
            (head(x="y" * 100_000), 431),
            (head("/v2/" + "y" * 100_000), 414),
            (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * (1 << 20), 431),
            (head(Content_Length="-1"), 400),
            (head(Content_Length="1_0"), 400),
            (head(Content_Length="9" * 30), 400),
            (head(Content_Length="3", Transfer_Encoding="chunked") + b"0\r\n\r\n", 400),
            (b"GET /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"GET /v2 HTTP/9.9\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            (bytes(range(256)) * 10, 400),
            (head(method="GET", path="/v2", Host="["), 200),
            (head(method="GET", path="/v2", Host="[evil.example"), 403),
            (head(method="GET", path="/v2", Host="a.b c"), 403),
            (head(method="GET", path="/v2", Origin="http://["), 403),
            (head(method="GET", path="/v2", Origin="\xff"), 403),
            (head(method="GET", path="/nothing", Host="["), 404),
            (head(method="BREW", path="/v2"), 400),
            (head(method="GET", path="/v2", Authorization="Bearer " + "x" * 60_000), 200),
        ],
    )
    def test_of_a_request(self, served, sent, expected):
        assert status(send(served.http, sent)) == expected

    def test_pipelined_requests(self, served):
        answer = send(served.http, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000, most=1 << 24)
        assert answer.count(b"HTTP/1.1 200") < 100

    def test_a_port_that_is_not_meant(self, served):
        assert b"HTTP/1.1 2" not in send(served.grpc, head(method="GET", path="/v2"))
        send(served.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) * 1000, half=True)
        send(served.grpc, os.urandom(10_000), half=True)


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/v2/models/..%2f..%2f..%2fetc%2fpasswd",
            "/v2/models/%2e%2e/config",
            "/v2/models/m%00/config",
            "/v2/models/m/versions/..%2f..%2f1/config",
            "/v2/models/%ff%fe/config",
            "/v2/../../../etc/passwd",
            "//etc/passwd",
            "/page/..%2f..%2f..%2f..%2fetc/passwd",
            "/page/%2e%2e/%2e%2e/server.py",
            "/..%5c..%5cserver.py",
            "/v2/models/m/versions/1%0d%0aset-cookie:%20a/config",
        ],
    )
    def test_no_file_and_no_other_path(self, served, path):
        answer = send(served.http, head(path, "GET"))
        assert status(answer) in (400, 404)
        assert b"root:" not in answer
        assert b"import" not in answer
        assert b"set-cookie" not in answer.partition(b"\r\n\r\n")[0]

    def test_a_sequence_id_is_no_path(self, served):
        for path in ("..%2f..%2fx", "%00", "..", "a%2fb"):
            assert ask(served, "POST", f"/v2/models/m/sequences/{path}/move")[0] in (400, 404, 409)

    def test_an_id_with_a_slash_moves(self, model, frames, tmp_path):
        with Running({"m": model}, store=str(tmp_path)) as server:
            assert ask(server, "POST", INFER, body(frames[0], sequence_id="../a", sequence_start=True))[0] == 200
            status, answer, _ = ask(server, "POST", "/v2/models/m/sequences/..%2fa/move")
            assert (status, answer["steps_done"]) == (200, 1)

    def test_numbers_of_many_digits(self, served):
        """Python's int raises ValueError above 4,300."""
        digits = "1" * 5000
        assert ask(served, "GET", f"/v2/models/m/versions/{digits}")[0] == 404
        assert ask(served, "POST", f"/v2/models/m/sequences/{digits}/move?type=int")[0] == 400


def infer(served, text, **headers):
    """(status, error) of a body."""
    code, answer, _ = ask(served, "POST", INFER, text, **headers)
    assert code < 500
    assert isinstance(answer["error"], str)
    assert len(answer["error"]) < 1000
    return code, answer["error"]


def tensor(**changes):
    item = {"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [1, 2, 3, 4, 5], **changes}
    return json.dumps({"inputs": [item], "parameters": {"sequence_id": "h", "sequence_start": True}})


class TestBodies:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ('{"inputs":' * 100_000, "not JSON"),
            ('{"inputs": ' + "[" * 900 + "]" * 900 + "}", "JSON object"),
            ('{"inputs": ' + '{"a":' * 900 + "1" + "}" * 900 + "}", "list"),
            ("null", "JSON object"),
            ('{"inputs": 1}', "list"),
            ('{"inputs": [1]}', "JSON object"),
            ('{"inputs": [], "inputs": []}', "'inputs' twice"),
            ('{"parameters": {"sequence_id": 1, "sequence_id": 2}, "inputs": []}', "'sequence_id' twice"),
            ('{"inputs": [{"name": "x", "shape": [1' + "0" * 5000 + "]}]}", "not JSON"),
            (tensor(shape=[1, 10**4000]), "shape must be"),
            (tensor(shape=[-1, -5]), "shape must be"),
            (tensor(shape=[1, 5.0]), "shape must be"),
            (tensor(shape=[1, True]), "shape must be"),
            (tensor(shape=[1] * 1000), "shape must be"),
            (tensor(shape=[2**39] * 8), "more than 2**40"),
            (tensor(shape=[2**39, 2**39, 0]), "more than 2**40"),
            (tensor(shape=[0, 2**39], data=[]), "[1, features]"),
            (tensor(shape=None), "shape must be"),
            (tensor(shape="15"), "shape must be"),
            (tensor(shape={"1": 5}), "shape must be"),
            (tensor(datatype="FP33"), "datatype must be"),
            (tensor(datatype=["FP32"]), "datatype must be"),
            (tensor(datatype="BYTES", data=["a"] * 5), "x"),
            (tensor(data="12345"), "data must be a list"),
            (tensor(data=[1, 2, [3], 4, 5]), "input 'x'"),
            (tensor(data=[{}] * 5), "input 'x'"),
            (tensor(data=["1"] * 5), "input 'x'"),
            (tensor(data=[10**400] * 5), "input 'x'"),
            (tensor(data=[1, 2, 3, 4, 1e39]), "input 'x': data is not FP32"),  # it would become infinite
            (tensor(shape=[0], name="SEQUENCE_IDS", data=[]), "SEQUENCE_IDS"),
            (tensor(shape=[], name="SEQUENCE_IDS", datatype="INT64", data=[5]), "SEQUENCE_IDS"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": 1, "timeout": 10**400}}), "timeout must be"),
            (tensor(data=[[[1, 2, 3, 4, 5]]] * 3), "input 'x'"),
            (tensor(name="y" * 100_000), "lacks the input 'x'"),
            (tensor(name="\ud800"), "lacks the input 'x'"),
            (tensor(name=7), "must have a name"),
            (json.dumps({"inputs": [], "id": ["x" * 10_000]}), "id of a request"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": "\ud800" * 400}}), "longer than 1024"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": "\ud800"}}), "START"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": "\0\x1b[31m"}}), "START"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": 1.5}}), "sequence_id must be"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": None}}), "sequence_id must be"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": [1]}}), "sequence_id must be"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": -1}}), "sequence_id must be"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": 2**64}}), "sequence_id must be"),
            (json.dumps({"inputs": [], "parameters": {"sequence_id": True}}), "sequence_id must be"),
            (json.dumps({"inputs": [{}] * 100_000}), "must have a name"),
            (json.dumps({"inputs": [], "outputs": [{"name": str(i)} for i in range(100_000)]}), "no output '0'"),
        ],
    )
    def test_malformed(self, served, text, says):
        code, error = infer(served, text)
        assert code in (400, 413)
        assert says in error

    def test_json_that_would_take_long(self, served):
        code, error = infer(served, tensor(data=[0] * 3_000_000))
        assert code == 413
        assert "send tensors as binary data" in error

    @pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "9" * 5000, "\xb2", ""])
    def test_a_wrong_length_of_the_json(self, served, length):
        assert infer(served, tensor(), Inference_Header_Content_Length=length)[0] == 400

    @pytest.mark.parametrize("size", [-1, 1 << 70, 19, 21, "20", True, None, []])
    def test_a_wrong_size_of_a_tensor(self, served, size):
        item = {"name": "x", "datatype": "FP32", "shape": [1, 5], "parameters": {"binary_data_size": size}}
        text = json.dumps({"inputs": [item]})
        assert infer(served, text.encode() + bytes(20), Inference_Header_Content_Length=str(len(text)))[0] == 400

    @pytest.mark.parametrize(
        "data", [b"", b"\1\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\1\0\0\0ab\0\0\0\0", bytes(4) * 9, b"\1\0\0\0\xff"]
    )
    def test_wrong_strings(self, served, data):
        ids = {"name": "SEQUENCE_IDS", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
        x = {"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [0] * 5}
        text = json.dumps({"inputs": [x, ids]})
        assert infer(served, text.encode() + data, Inference_Header_Content_Length=str(len(text)))[0] == 400

    def test_millions_of_strings(self, served):
        data = bytes(40 << 20)
        ids = {"name": "SEQUENCE_IDS", "datatype": "BYTES", "shape": [10 << 20]}
        text = json.dumps({"inputs": [{**ids, "parameters": {"binary_data_size": len(data)}}]})
        assert infer(served, text.encode() + data, Inference_Header_Content_Length=str(len(text)))[0] == 413

    def test_bombs(self, served):
        zeros = bytes(80 << 20)
        raw = zlib.compressobj(1)
        for encoding, packed in (("gzip", gzip.compress(zeros, 1)), ("deflate", raw.compress(zeros) + raw.flush())):
            assert len(packed) < 1 << 20
            assert infer(served, packed, Content_Encoding=encoding)[0] == 413
            assert infer(served, gzip.compress(packed), Content_Encoding="gzip")[0] == 400  # once alone
            assert infer(served, packed[:-9], Content_Encoding=encoding)[0] in (400, 413)
            assert infer(served, packed, Content_Encoding=f"{encoding}, {encoding}")[0] == 400
        assert infer(served, b"x", Content_Encoding="br")[0] == 400

    def test_large_bodies(self, served):
        part = bytes(1 << 20)
        open = {"Connection": "keep-alive"}
        assert status(send(served.http, head(Content_Length=str(1 << 40), **open), *[part] * 80, most=1)) == 413
        chunk = b"100000\r\n" + part + b"\r\n"
        assert status(send(served.http, head(Transfer_Encoding="chunked", **open), *[chunk] * 80, most=1)) == 413

    def test_half_closed_connections(self, served):
        text = tensor().encode()
        send(served.http, head(Content_Length=str(len(text) + 9)) + text, half=True)
        answer = send(served.http, head(Content_Length=str(len(text))) + text, half=True)
        assert not answer or status(answer) == 200

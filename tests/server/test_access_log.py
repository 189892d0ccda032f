"""The access log and the spans: one for each request, or connection with many, with what happened; nothing if off."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from running import ask, body, until

http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
from tritonclient.utils import InferenceServerException  # noqa: E402

import fastrnn  # noqa: E402

pytestmark = pytest.mark.any_isa
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Lines(logging.Handler):
    """The lines of a log."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())

    def wait(self, count):
        """The first `count` lines, as dicts."""
        until(lambda: len(self.texts) >= count)
        return [json.loads(text) for text in self.texts]


@pytest.fixture
def log():
    logger, lines = logging.getLogger("fastrnn.access"), Lines()
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def spans():
    """(a tracer provider, the spans that have ended)."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="no opentelemetry-sdk: pip install 'fastrnn[test]'")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter.get_finished_spans
    provider.shutdown()


def tensors(module, x):
    made = module.InferInput("x", list(x.shape), "FP32")
    made.set_data_from_numpy(x)
    return [made]


def by_http(server):
    return http.InferenceServerClient(f"127.0.0.1:{server.http}")


def by_grpc(server):
    return grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")


class TestLog:
    def test_http(self, serve, model, frames, log):
        with serve({"m": model}, access_log="json") as server, by_http(server) as client:
            client.infer("m", tensors(http, frames[None, :1]), sequence_id=5, sequence_start=True)
            client.infer("m", tensors(http, frames[None, 1:8]), sequence_id=5)
            with pytest.raises(InferenceServerException):
                client.infer("m", tensors(http, frames[:1]), sequence_id=6)
            client.infer("m", tensors(http, frames[None, :9]))
            client.get_model_metadata("m")
            one, two, refused, whole, described = log.wait(5)
        assert one["time"].endswith("Z")
        same = {"protocol": "http", "client": "127.0.0.1", "method": "POST /v2/models/m/infer", "model": "m"}
        for line in (one, two, refused, whole):
            assert same.items() <= line.items()
            assert line["bytes_in"] > 100
            assert line["bytes_out"] > 20
        assert {"sequence_id": 5, "version": "1", "steps": 1, "step_index": 0, "status": 200}.items() <= one.items()
        assert {"sequence_id": 5, "steps": 7, "step_index": 1, "status": 200}.items() <= two.items()
        assert {"sequence_id": 6, "status": 400, "reason": "unknown_sequence", "steps": 0}.items() <= refused.items()
        assert {"steps": 9, "status": 200}.items() <= whole.items()
        for line in (one, two, whole):
            assert 0 < line["computed"] <= line["total"]
            assert 0 <= line["queued"] <= line["total"]
        assert {"method": "GET /v2/models/m", "status": 200}.items() <= described.items()
        assert "steps" not in described

    def test_grpc(self, serve, model, frames, log):
        with serve({"m": model}, access_log="json") as server, by_grpc(server) as client:
            client.infer("m", tensors(grpc, frames[:1]), sequence_id="a", sequence_start=True)
            with pytest.raises(InferenceServerException):
                client.infer("m", tensors(grpc, frames[:1]), sequence_id="b")
            ids, starts = grpc.InferInput("SEQUENCE_IDS", [9], "INT64"), grpc.InferInput("SEQUENCE_START", [9], "BOOL")
            ids.set_data_from_numpy(np.arange(1, 10))
            starts.set_data_from_numpy(np.ones(9, bool))
            client.infer("m", [*tensors(grpc, frames[:9]), ids, starts])
            one, refused, many = log.wait(3)
        same = {"protocol": "grpc", "client": "127.0.0.1", "method": "ModelInfer", "model": "m"}
        for line in (one, refused, many):
            assert same.items() <= line.items()
            assert line["bytes_in"] > 20
        assert {"sequence_id": "a", "status": "OK", "steps": 1, "step_index": 0}.items() <= one.items()
        assert {
            "sequence_id": "b",
            "status": "INVALID_ARGUMENT",
            "reason": "unknown_sequence",
        }.items() <= refused.items()
        assert {"sequences": 9, "steps": 9, "status": "OK"}.items() <= many.items()

    def test_a_connection_is_one_line(self, serve, model, frames, log):
        sockets = pytest.importorskip("websockets.sync.client")
        with serve({"m": model}, access_log="json") as server:
            with sockets.connect(f"ws://127.0.0.1:{server.http}/v2/models/m/stream") as socket:
                for t in range(20):
                    socket.send(frames[t].tobytes())
                    socket.recv(30)
                socket.send(b"123")
                assert "error" in socket.recv(30)
            first = log.wait(1)[0]
            with by_grpc(server) as client:
                answers = []
                client.start_stream(lambda result, error: answers.append(error))
                for t in range(20):
                    client.async_stream_infer("m", tensors(grpc, frames[t][None]), sequence_id=5, sequence_start=t == 0)
                client.async_stream_infer("m", tensors(grpc, frames[:1]), sequence_id=77)
                until(lambda: len(answers) == 21)
                client.stop_stream()
            assert len(log.wait(2)) == 2
        second = json.loads(log.texts[1])
        wanted = {"protocol": "websocket", "messages": 20, "steps": 20, "refused": 1, "status": 101, "close": 1007}
        assert wanted.items() <= first.items()
        assert first["bytes_in"] == 20 * 20 + 3
        wanted = {"method": "ModelStreamInfer", "messages": 21, "steps": 20, "refused": 1, "reason": "unknown_sequence"}
        assert wanted.items() <= second.items()

    def test_messages_of_a_connection_at_debug(self, serve, model, frames, log):
        logging.getLogger("fastrnn.access").setLevel(logging.DEBUG)
        sockets = pytest.importorskip("websockets.sync.client")
        with serve({"m": model}, access_log="json") as server:
            with sockets.connect(f"ws://127.0.0.1:{server.http}/v2/models/m/stream") as socket:
                for t in range(3):
                    socket.send(frames[t].tobytes())
                    socket.recv(30)
            lines = log.wait(4)
        assert [line.get("step_index") for line in lines] == [0, 1, 2, None]

    def test_probes_are_not_logged(self, serve, model, log):
        with serve({"m": model}, access_log="json") as server, by_http(server) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            client.get_server_metadata()
            (line,) = log.wait(1)
        assert line["method"] == "GET /v2"

    @pytest.mark.parametrize("form", ["json", "text"])
    def test_no_control_character_of_a_client_is_written(self, serve, model, frames, log, form):
        bad = "a\n\x1b[31m\x7f\u202e\x00"
        with serve({"m": model}, access_log=form) as server, by_http(server) as client:
            client.infer("m", tensors(http, frames[:1]), sequence_id=bad, sequence_start=True)
            with pytest.raises(InferenceServerException):
                client.get_model_metadata("x%0a%1b[31m")
            until(lambda: len(log.texts) >= 2)
        for text in log.texts:
            assert text.isprintable()
        assert "x1b[31m" in log.texts[0]

    @pytest.mark.parametrize("form", ["json", "text"])
    def test_ids_of_every_shape_take_little(self, serve, model, frames, log, form):
        ids = [{"a": "x" * 100_000}, ["\x1b\n"] * 10_000, 10**4000, True]
        scalar = json.loads(body(frames[0]))
        scalar["inputs"].append({"name": "SEQUENCE_IDS", "datatype": "INT64", "shape": [], "data": [5]})
        with serve({"m": model}, access_log=form) as server:
            for text in [*(body(frames[0], sequence_id=id, sequence_start=True) for id in ids), json.dumps(scalar)]:
                assert ask(server, "POST", "/v2/models/m/infer", text)[0] == 400
            until(lambda: len(log.texts) == len(ids) + 1)
        assert max(map(len, log.texts)) < 1000
        assert all(text.isprintable() for text in log.texts)

    def test_no_field_of_a_text_can_be_forged(self, serve, model, frames, log):
        forged = "a status=500 reason=x"
        sent = body(frames[0], sequence_id=forged, sequence_start=True)
        with serve({"m": model}, access_log="text") as server:
            assert ask(server, "POST", "/v2/models/m/infer", sent)[0] == 200
            path = "/v2/models/m%20status=200%22"
            assert ask(server, "GET", path, X_Forwarded_For="b GET /v2 status=1")[0] == 404
            until(lambda: len(log.texts) == 2)
        first, second = log.texts
        assert f' sequence_id="{forged}" ' in first
        assert first.count(" status=200 ") == 1
        assert ' http "b GET /v2 status=1" GET "/v2/models/m status=200\\"" status=404 ' in second

    def test_names_of_tokens(self, serve, model, frames, log, tmp_path):
        (tmp_path / "tokens").write_text("radio: secret-of-radio-0123456789\n")
        (tmp_path / "tokens").chmod(0o600)
        told = {"authorization": "Bearer secret-of-radio-0123456789"}
        with serve({"m": model}, access_log="json", tokens=tmp_path / "tokens") as server:
            for module, made in ((http, by_http(server)), (grpc, by_grpc(server))):
                with made as client:
                    x = tensors(module, frames[:1])
                    client.infer("m", x, sequence_id=5, sequence_start=True, headers=dict(told))
                    with pytest.raises(InferenceServerException):
                        client.infer("m", x, sequence_id=5)
            lines = log.wait(4)
        assert [line["client"] for line in lines] == ["radio", "127.0.0.1"] * 2
        assert [line["status"] for line in lines] == [200, 401, "OK", "UNAUTHENTICATED"]
        assert [line.get("reason") for line in lines] == [None, "token"] * 2

    def test_off(self, serve, model, frames, log):
        with serve({"m": model}) as server, by_http(server) as client:
            assert server.server.engine.watch is None
            client.infer("m", tensors(http, frames[:1]), sequence_id=5, sequence_start=True)
        assert log.texts == []

    def test_a_wrong_word(self, model):
        with pytest.raises(fastrnn.ShapeError, match=r"access_log must be json, text or off, got 'xml'"):
            fastrnn.serving.Server({"m": model}, access_log="xml")


class TestSpans:
    def test_a_span_a_request(self, serve, model, frames, spans):
        provider, ended = spans
        with serve({"m": model}, tracer_provider=provider) as server:
            with by_http(server) as client:
                x = tensors(http, frames[None, :7])
                client.infer("m", x, sequence_id=5, sequence_start=True, headers={"traceparent": PARENT})
                assert client.is_server_live()  # probes have no span
            with by_grpc(server) as client:
                x = tensors(grpc, frames[:1])
                client.infer("m", x, sequence_id=5, headers={"traceparent": PARENT})
                with pytest.raises(InferenceServerException):
                    client.infer("m", x, sequence_id=6)
            until(lambda: len(ended()) == 3)
        first, second, refused = ended()
        assert first.name == "POST /v2/models/{model}/infer"
        assert second.name == "inference.GRPCInferenceService/ModelInfer"
        for span in (first, second):
            assert f"{span.context.trace_id:032x}" == PARENT[3:35]
            assert f"{span.parent.span_id:016x}" == PARENT[36:52]
            assert span.parent.is_remote
            assert span.status.is_ok
        assert first.attributes["http.response.status_code"] == 200
        assert first.attributes["fastrnn.steps"] == 7
        assert first.attributes["fastrnn.model"] == "m"
        assert second.attributes["fastrnn.step_index"] == 7
        assert refused.parent is None
        assert refused.attributes["error.type"] == "unknown_sequence"
        assert refused.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"

    def test_a_stream_is_one_span(self, serve, model, frames, spans):
        provider, ended = spans
        sockets = pytest.importorskip("websockets.sync.client")
        with serve({"m": model}, tracer_provider=provider) as server:
            url, told = f"ws://127.0.0.1:{server.http}/v2/models/m/stream", {"traceparent": PARENT}
            with sockets.connect(url, additional_headers=told) as socket:
                for t in range(5):
                    socket.send(frames[t].tobytes())
                    socket.recv(30)
            until(lambda: ended())
        (span,) = ended()
        assert (span.name, span.attributes["fastrnn.messages"]) == ("GET /v2/models/{model}/stream", 5)
        assert f"{span.context.trace_id:032x}" == PARENT[3:35]

    def test_without_an_sdk_nothing_is_watched(self):
        code = (
            "import opentelemetry.trace\n"
            "from fastrnn.serving.server.tracing import tracer\n"
            "assert tracer() is None\n"
            "assert tracer(opentelemetry.trace.NoOpTracerProvider()) is None\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

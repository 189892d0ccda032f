"""/metrics counts what happened, exactly; the health services follow the engine threads."""

import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from running import until

http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
prometheus = pytest.importorskip("prometheus_client", reason="no prometheus_client: pip install 'fastrnn[serve]'")
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families as plain  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from fastrnn.serving.store import StoreError  # noqa: E402

pytestmark = pytest.mark.any_isa
NAMES = {
    "sequences", "sequence_starts", "sequence_ends", "steps", "batch_size", "queue_wait_seconds", "compute_seconds",
    "rejected", "state_bytes", "snapshot_seconds", "snapshot_bytes",
    "snapshot_failures",
}  # fmt: skip
OPEN = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def server(model, two_ends, serve):
    """A server that has counted nothing."""
    with serve({"m": model, "two": two_ends}) as running:
        yield running


def fetched(server, path, accept="*/*"):
    """(status, type, text)."""
    asked = urllib.request.Request(f"http://127.0.0.1:{server.http}{path}", headers={"accept": accept})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("content-type"), error.read().decode()


def samples(server):
    """{(name, labels without the model...): value} of the model "m"."""
    _, _, text = fetched(server, "/metrics")
    found = {}
    for family in plain(text):
        for s in family.samples:
            if s.labels["model"] == "m":
                found[(s.name, *(v for k, v in s.labels.items() if k != "model"))] = s.value
    return found


def client(server):
    return http.InferenceServerClient(f"127.0.0.1:{server.http}")


def infer(made, frames, **named):
    """One request of frames [T, 5] as a chunk, or [5] as a step."""
    x = frames[None]
    tensor = http.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return made.infer("m", [tensor], **named)


def test_both_formats(server):
    status, kind, text = fetched(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert {f.name.removeprefix("fastrnn_") for f in plain(text)} == NAMES
    _, kind, text = fetched(server, "/metrics", OPEN)
    assert kind.startswith("application/openmetrics-text")
    families = {f.name.removeprefix("fastrnn_"): f for f in openmetrics(text)}  # the parser checks the whole format
    assert set(families) == NAMES
    kinds = {name: f.type for name, f in families.items()}
    assert {k for k, v in kinds.items() if v == "histogram"} == NAMES - {
        "sequences", "sequence_starts", "sequence_ends", "steps", "rejected", "state_bytes", "snapshot_failures"
    }  # fmt: skip
    assert {k for k, v in kinds.items() if v == "gauge"} == {"sequences", "state_bytes"}
    for family in families.values():
        assert {s.labels["model"] for s in family.samples} <= {"m", "two", ""}


def test_every_sequence_and_step_counts_once(server, frames, model):
    with client(server) as made:
        infer(made, frames[0], sequence_id=1, sequence_start=True)
        infer(made, frames[1:8], sequence_id=1)
        infer(made, frames[0], sequence_id=1, sequence_start=True)  # anew
        infer(made, frames[0], sequence_id=2, sequence_start=True, sequence_end=True)
        infer(made, frames[0], sequence_id=3, sequence_start=True)
        found = samples(server)
    ends = {reason: v for (name, *rest), v in found.items() if name == "fastrnn_sequence_ends_total" for reason in rest}
    assert ends == {"client": 1, "restarted": 1, "idle": 0, "evicted": 0, "moved": 0, "shutdown": 0}
    assert found[("fastrnn_sequences",)] == 2
    assert found[("fastrnn_sequence_starts_total",)] == 4
    assert found[("fastrnn_steps_total",)] == 11
    one = model.pool(1)
    one.step([one.open()], np.zeros((1, 5), np.float32))
    assert found[("fastrnn_state_bytes",)] == 2 * one.slab.nbytes > 0


def test_a_tick_counts_once(server, frames):
    with client(server) as made:
        infer(made, frames[0], sequence_id=1, sequence_start=True)
        many = http.InferInput("x", [50, 5], "FP32")
        many.set_data_from_numpy(frames[:50])
        ids, starts = http.InferInput("SEQUENCE_IDS", [50], "INT64"), http.InferInput("SEQUENCE_START", [50], "BOOL")
        ids.set_data_from_numpy(np.arange(100, 150))
        starts.set_data_from_numpy(np.ones(50, bool))
        made.infer("m", [many, ids, starts])
    found = samples(server)
    for name in ("batch_size", "queue_wait_seconds", "compute_seconds"):
        assert found[(f"fastrnn_{name}_count",)] == 2
        assert found[(f"fastrnn_{name}_bucket", "+Inf")] == 2
    assert found[("fastrnn_batch_size_sum",)] == 51
    assert found[("fastrnn_batch_size_bucket", "1.0")] == 1  # le is inclusive: a batch of 1, and not one of 50
    assert found[("fastrnn_batch_size_bucket", "31.0")] == 1
    assert found[("fastrnn_batch_size_bucket", "63.0")] == 2
    assert 0 < found[("fastrnn_compute_seconds_sum",)] < 30


def test_writes_to_the_store_are_counted(serve, model, frames, tmp_path):
    pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
    with serve({"m": model}, store=str(tmp_path), checkpoint_seconds=0.01) as server:
        with client(server) as made:
            infer(made, frames[:5], sequence_id=1, sequence_start=True)
        until(lambda: samples(server)[("fastrnn_snapshot_bytes_count",)] == 1)
        found = samples(server)
    assert found[("fastrnn_snapshot_seconds_count",)] == 1
    assert len(model.stream().snapshot()) < found[("fastrnn_snapshot_bytes_sum",)] < 10_000
    assert found[("fastrnn_snapshot_failures_total",)] == 0


def test_writes_that_fail_are_counted(serve, model, frames, tmp_path):
    pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")

    async def fails(*_):
        raise StoreError("the store is on fire")

    with serve({"m": model}, store=str(tmp_path), checkpoint_seconds=0.01) as server, client(server) as made:
        infer(made, frames[:5], sequence_id=1, sequence_start=True)
        until(lambda: samples(server)[("fastrnn_snapshot_bytes_count",)] == 1)
        server.server.engine.vault.store.write = fails
        infer(made, frames[5:6], sequence_id=1)
        until(lambda: samples(server)[("fastrnn_snapshot_failures_total",)] > 0)
        assert samples(server)[("fastrnn_snapshot_bytes_count",)] == 1
        del server.server.engine.vault.store.write


def test_refusals_have_reasons(server, frames):
    grpc = pytest.importorskip("tritonclient.grpc")
    with client(server) as made, grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as other:
        for _ in range(3):
            with pytest.raises(InferenceServerException):
                infer(made, frames[0], sequence_id=7)
        with pytest.raises(InferenceServerException):
            infer(made, frames[0, :3], sequence_id=7, sequence_start=True)
        with pytest.raises(InferenceServerException):
            infer(made, frames[0], sequence_id=7, sequence_start=True, parameters={"step_index": 4})
        with pytest.raises(InferenceServerException):
            made.get_model_metadata("none")
        tensor = grpc.InferInput("x", [1, 5], "FP32")
        tensor.set_data_from_numpy(frames[:1])
        with pytest.raises(InferenceServerException):
            other.infer("m", [tensor], sequence_id=8)
    found = samples(server)
    refused = {rest[0]: v for (name, *rest), v in found.items() if name == "fastrnn_rejected_total"}
    assert refused == {"unknown_sequence": 4, "invalid": 1, "step_index": 1}
    assert 'fastrnn_rejected_total{model="",reason="model"} 1.0' in fetched(server, "/metrics")[2]


def test_a_refused_websocket_message_counts_once(server, frames):
    sockets = pytest.importorskip("websockets.sync.client")
    with sockets.connect(f"ws://127.0.0.1:{server.http}/v2/models/m/stream") as socket:
        socket.send(b"123")
        assert "whole number of steps" in socket.recv(30)
    assert samples(server)[("fastrnn_rejected_total", "invalid")] == 1


class TestHealth:
    @pytest.fixture
    def asked(self, server):
        """Checks a service; the status of gRPC's health service."""
        grpc = pytest.importorskip("grpc")
        health = pytest.importorskip("grpc_health.v1.health_pb2")
        stubs = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
        import tritonclient.grpc  # noqa: F401  # all of them in one process

        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            stub = stubs.HealthStub(channel)
            stub.request = health.HealthCheckRequest
            yield stub

    def test_check(self, asked):
        grpc = pytest.importorskip("grpc")
        for service in ("", "inference.GRPCInferenceService", "liveness"):
            assert asked.Check(asked.request(service=service), timeout=30).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            asked.Check(asked.request(service="none"), timeout=30)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    def test_watch_sees_the_drain(self, asked, server):
        watched = asked.Watch(asked.request(service=""), timeout=60)
        assert next(watched).status == 1
        server.do(server.server.drain(0))
        assert next(watched).status == 2
        assert asked.Check(asked.request(service="liveness"), timeout=30).status == 1
        assert next(asked.Watch(asked.request(service="none"), timeout=60)).status == 3

    def test_watches_of_an_address_are_bounded(self, asked, server, monkeypatch):
        """They need no token, so a stranger could fill the memory with them."""
        grpc = pytest.importorskip("grpc")
        from fastrnn.serving.server import health

        monkeypatch.setattr(health, "MOST_OF_ADDRESS", 3)
        watches = [asked.Watch(asked.request(service=""), timeout=60) for _ in range(3)]
        assert [next(watch).status for watch in watches] == [1, 1, 1]
        with pytest.raises(grpc.RpcError, match="3 of one address: close one, or call Check") as caught:
            next(asked.Watch(asked.request(service=""), timeout=60))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert asked.Check(asked.request(service=""), timeout=30).status == 1
        watches[0].cancel()

        def another():
            try:
                return next(asked.Watch(asked.request(service=""), timeout=60)).status == 1
            except grpc.RpcError:
                return False

        until(another)

    def test_a_stuck_engine_thread_is_not_live(self, asked, server, monkeypatch):
        from fastrnn.serving.server import engine

        monkeypatch.setattr(engine, "DEAD_SECONDS", 1.5)
        until(lambda: fetched(server, "/v2/health/live")[0] == 200)
        stuck, held = threading.Event(), threading.Event()

        def hold():
            held.set()
            stuck.wait(120)

        server.loop.call_soon_threadsafe(server.sequences.lanes[1].batcher._worker.submit, hold)
        assert held.wait(30)
        try:
            until(lambda: fetched(server, "/v2/health/live")[0] == 503)
            assert fetched(server, "/v2/health/ready")[0] == 503
            assert asked.Check(asked.request(service="liveness"), timeout=30).status == 2
        finally:
            stuck.set()
        until(lambda: fetched(server, "/v2/health/live")[0] == 200)

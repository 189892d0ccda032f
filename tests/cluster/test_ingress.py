"""The Open Inference Protocol in Ray Serve: unmodified clients of Triton, two replicas, and actors that are killed."""

import contextlib
import queue
import socket

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="no ray.serve: pip install 'fastrnn[ray]'")
import ray
import tritonclient.grpc
import tritonclient.http
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from tritonclient.utils import InferenceServerException

import fastrnn
from fastrnn.errors import ShapeError

pytestmark = [pytest.mark.any_isa, pytest.mark.ray, pytest.mark.filterwarnings("default")]
MUST_START = "to model 'words' must specify the START flag"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Client:
    """A client of Triton, by HTTP or gRPC."""

    def __init__(self, module, port):
        self.module = module
        self.client = module.InferenceServerClient(f"127.0.0.1:{port}")

    def inputs(self, x):
        found = self.module.InferInput("x", list(x.shape), "FP32")
        found.set_data_from_numpy(x)
        return [found]

    def infer(self, x, **options):
        """(outputs, step_index, steps_done)."""
        result = self.client.infer("words", self.inputs(x), **options)
        told = result.get_response()
        if self.module is tritonclient.http:
            given = told["parameters"]
            return result.as_numpy("y"), given["step_index"], given["steps_done"]
        return result.as_numpy("y"), *(told.parameters[k].int64_param for k in ("step_index", "steps_done"))


@pytest.fixture(scope="module")
def served(nodes, model, tmp_path_factory):
    """(a client by HTTP, one by gRPC, the cluster) of two replicas."""
    http, grpc = free_port(), free_port()
    cluster = fastrnn.ray.StreamCluster(
        model, 12, tmp_path_factory.mktemp("store"), name="ingress", actors=2, checkpoint_seconds=0.3
    )
    servicers = ["fastrnn.ray.add_GRPCInferenceServiceServicer_to_server"]
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(port=http),
        grpc_options=gRPCOptions(port=grpc, grpc_servicer_functions=servicers),
    )
    app = fastrnn.ray.ingress({"words": cluster}, num_replicas=2, ray_actor_options={"num_cpus": 0.1})
    serve.run(app)
    clients = Client(tritonclient.http, http), Client(tritonclient.grpc, grpc)
    yield *clients, cluster
    for one in clients:
        one.client.close()
    serve.shutdown()
    for k in range(2):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(f"ingress-{k}", namespace="fastrnn"))


def test_what_the_protocol_says(served):
    http, grpc, _ = served
    for one in (http, grpc):
        assert one.client.is_server_live()
        assert one.client.is_server_ready()
        assert one.client.is_model_ready("words")
    assert http.client.get_model_metadata("words")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}]
    assert grpc.client.get_model_metadata("words", as_json=True)["platform"].startswith("fastrnn")
    assert grpc.client.get_model_config("words").config.sequence_batching.oldest.max_queue_delay_microseconds == 2000
    assert "sequence(string_id)" in http.client.get_server_metadata()["extensions"]


def test_both_protocols_and_replicas_give_the_bits_of_lone_streams(served, x, alone):
    """Steps and chunks of 5 and "5" by turns, with a killed actor in the middle."""
    clients = served[:2]
    for k in range(24):
        if k == 12:
            ray.kill(ray.get_actor("ingress-0", namespace="fastrnn"), no_restart=False)
        for column, id in ((0, 5), (1, "5")):
            flags = {"sequence_id": id, "sequence_start": k == 0, "sequence_end": k == 23}
            y, first, done = clients[(k + column) % 2].infer(x[k : k + 1, column], **flags)
            assert np.array_equal(y, alone[k : k + 1, column])
            assert (first, done) == (k, k + 1)
    y, first, done = clients[0].infer(x[None, :9, 2], sequence_id=6, sequence_start=True)
    assert np.array_equal(y[0], alone[:9, 2])
    y, first, done = clients[1].infer(x[None, 9:12, 2], sequence_id=6, sequence_end=True)
    assert np.array_equal(y[0], alone[9:12, 2])
    assert (first, done) == (9, 12)


def test_step_index_and_errors(served, x, alone):
    http, grpc, _ = served
    for id, one in ((70, http), (71, grpc)):
        other = grpc if one is http else http
        one.infer(x[:1, 0], sequence_id=id, sequence_start=True)
        for _ in range(3):  # whichever replica answers
            for client in (one, other):
                y, first, done = client.infer(x[1:2, 0], sequence_id=id, parameters={"step_index": 1})
                assert np.array_equal(y, alone[1:2, 0])
                assert (first, done) == (1, 2)
        wrong = "409" if one is http else "StatusCode.FAILED_PRECONDITION"
        with pytest.raises(InferenceServerException, match=f"sequence {id} expects step_index 2, got 9") as caught:
            one.infer(x[1:2, 0], sequence_id=id, parameters={"step_index": 9})
        assert caught.value.status() == wrong
        bad = "400" if one is http else "StatusCode.INVALID_ARGUMENT"
        for unknown in (f"never {id}", str(id)):
            with pytest.raises(InferenceServerException, match=f"sequence {unknown} {MUST_START}") as caught:
                one.infer(x[:1, 0], sequence_id=unknown)
            assert caught.value.status() == bad
        with pytest.raises(InferenceServerException, match="no model 'others'") as caught:
            one.client.infer("others", one.inputs(x[:1, 0]))
        assert caught.value.status() == ("404" if one is http else "StatusCode.NOT_FOUND")
        with pytest.raises(InferenceServerException, match="one step is"):
            one.infer(x[:1, 0, :3], sequence_id=id)
        one.infer(x[2:3, 0], sequence_id=id, sequence_end=True)
        with pytest.raises(InferenceServerException, match="was ended by its client"):
            other.infer(x[2:3, 0], sequence_id=id)


def test_a_grpc_stream(served, x, alone):
    client, answers = served[1], queue.Queue()
    client.client.start_stream(lambda result, error: answers.put((result, error)))
    for k in range(6):
        client.client.async_stream_infer(
            "words", client.inputs(x[k : k + 1, 3]), sequence_id=80, sequence_start=k == 0, sequence_end=k == 5
        )
    client.client.async_stream_infer("words", client.inputs(x[:1, 3]), sequence_id=81)
    for k in range(6):
        result, error = answers.get(timeout=60)
        assert error is None
        assert np.array_equal(result.as_numpy("y"), alone[k : k + 1, 3])
    result, error = answers.get(timeout=60)
    assert str(error).startswith("INVALID_ARGUMENT")
    assert MUST_START in str(error)
    client.client.stop_stream()


def test_many_clients_at_once(served, x, alone):
    """Requests of 24 clients share the calls of the cluster, and none gets the answer of another."""
    client = served[1]
    for k in range(3):
        results = queue.Queue()
        for column in range(24):
            client.client.async_infer(
                "words",
                client.inputs(x[k : k + 1, column]),
                lambda result, error, column=column, told=results: told.put((column, result, error)),
                sequence_id=f"c{column}",
                sequence_start=k == 0,
                sequence_end=k == 2,
            )
        for _ in range(24):
            column, result, error = results.get(timeout=60)
            assert error is None
            assert np.array_equal(result.as_numpy("y"), alone[k : k + 1, column])


def test_what_is_refused(model):
    with pytest.raises(ShapeError, match="must be a StreamCluster"):
        fastrnn.ray.ingress({"words": model})
    with pytest.raises(ShapeError, match="by names of models"):
        fastrnn.ray.ingress({})

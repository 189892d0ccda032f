"""Unmodified tritonclient in all its forms: every call, both extensions, and the bits of a lone stream."""

import queue

import numpy as np
import pytest
from forms import FORMS, InferenceServerException, described, grpc, http, step
from grpc import RpcError

pytestmark = [
    pytest.mark.any_isa,
    # the client of http.aio leaves connections of refused requests to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=FORMS)
def form(request, running):
    made = FORMS[request.param](running)
    yield made
    made.close()


class TestDescription:
    def test_health(self, form):
        assert form.do("is_server_live")
        assert form.do("is_server_ready")
        assert form.do("is_model_ready", "m")
        assert form.do("is_model_ready", "m", "1")

    @pytest.mark.parametrize(("name", "version"), [("none", ""), ("m", "7"), ("m", "x")])
    def test_what_is_not_there(self, form, name, version):
        if form.is_http:
            assert not form.do("is_model_ready", name, version)
        calls = ["get_model_metadata", "get_model_config", "get_inference_statistics"]
        for call in calls if form.is_http else [*calls, "is_model_ready"]:
            with pytest.raises(InferenceServerException) as caught:
                form.do(call, name, version)
            text = "this server has m, two" if name == "none" else f"'m' has no version '{version}': it has 1"
            assert text in caught.value.message()
            assert caught.value.status() == ("404" if form.is_http else "StatusCode.NOT_FOUND")

    def test_metadata(self, form):
        assert {"sequence", "sequence(string_id)"} <= set(described(form, "get_server_metadata")["extensions"])
        assert described(form, "get_model_metadata", "m") == {
            "name": "m",
            "versions": [1],
            "platform": "fastrnn_rnn",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 8]}],
        }

    def test_config(self, form):
        config = described(form, "get_model_config", "m")
        config = config.get("config", config)
        assert config["sequence_batching"]["max_sequence_idle_microseconds"] == 60_000_000
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [5]}]
        assert config["max_batch_size"] == 1
        assert config["platform"].startswith("fastrnn")

    def test_repository_index(self, form):
        found = described(form, "get_model_repository_index")
        rows = found if form.is_http else found["models"]
        assert rows == [{"name": n, "version": 1, "state": "READY"} for n in ("m", "two")]

    def test_statistics(self, form, frames):
        count = lambda: described(form, "get_inference_statistics", "m")["model_stats"][0]["inference_count"]  # noqa: E731
        form.infer("m", step(frames), sequence_id=9000, sequence_start=True, sequence_end=True)
        before = count()
        form.infer("m", {"x": frames[None, :3]}, sequence_id=9000, sequence_start=True, sequence_end=True)
        assert count() == before + 3
        everything = described(form, "get_inference_statistics")["model_stats"]
        assert [row["name"] for row in everything] == ["m", "two"]


ALPHA = "\N{GREEK SMALL LETTER ALPHA}"  # two bytes
IDS = [1, 2**63 - 1, 2**64 - 1, "a", "42", f"with space/{ALPHA}\n", ALPHA * 512]


class TestSequences:
    @pytest.mark.parametrize("id", IDS, ids=lambda v: ascii(v)[:20])
    def test_steps(self, form, id, frames, alone):
        if not form.is_http and type(id) is int and id >= 1 << 63:
            pytest.skip("tritonclient sends int64 over gRPC")
        for t in range(6):
            flags = {"sequence_start": t == 0, "sequence_end": t == 5}
            y, told, request = form.infer("m", step(frames, t), request_id=f"r{t}", sequence_id=id, **flags)
            assert np.array_equal(y["y"], alone[t][None])
            assert (int(told["step_index"]), int(told["steps_done"]), request) == (t, t + 1, f"r{t}")

    def test_chunks(self, form, frames, alone):
        at = 0
        for size in (3, 1, 100, 7):
            y, told, _ = form.infer("m", {"x": frames[None, at : at + size]}, sequence_id=3, sequence_start=at == 0)
            assert np.array_equal(y["y"][0], alone[at : at + size])
            assert int(told["step_index"]) == at
            at += size
            assert int(told["steps_done"]) == at

    @pytest.mark.parametrize("ids", [np.arange(5000, 5050), np.arange(50, dtype=np.uint64) + np.uint64(2**64 - 50)])
    def test_many_sequences(self, form, ids, frames, alone):
        for t in range(3):
            flags = {"SEQUENCE_START": np.full(50, t == 0), "SEQUENCE_END": np.full(50, t == 2)}
            x = np.repeat(frames[t][None], 50, axis=0)
            y, _, _ = form.infer("m", {"x": x, "SEQUENCE_IDS": ids, **flags})
            assert np.array_equal(y["y"], np.repeat(alone[t][None], 50, axis=0))
            assert np.array_equal(y["STEP_INDEX"], np.full(50, t))

    def test_many_sequences_with_texts_as_ids(self, form, frames, alone):
        ids = np.array([f"call {i} {ALPHA}" for i in range(7)], object)
        form.infer("m", {"x": frames[:7], "SEQUENCE_IDS": ids, "SEQUENCE_START": np.ones(7, bool)})
        x = {"x": np.repeat(frames[1][None], 7, axis=0), "SEQUENCE_IDS": ids, "SEQUENCE_END": np.ones(7, bool)}
        y, _, _ = form.infer("m", x, ["y"])
        assert list(y) == ["y"]
        assert np.array_equal(y["y"][0], alone[1])

    def test_one_sequence_in_requests_of_both_kinds(self, form, frames, alone):
        form.infer("m", step(frames), sequence_id=70, sequence_start=True)
        y, _, _ = form.infer("m", {**step(frames, 1), "SEQUENCE_IDS": np.array([70])})
        assert (y["STEP_INDEX"], np.array_equal(y["y"][0], alone[1])) == (1, True)
        y, told, _ = form.infer("m", {"x": frames[None, 2:9]}, sequence_id=70)
        assert np.array_equal(y["y"][0], alone[2:9])
        assert int(told["step_index"]) == 2

    def test_several_inputs_and_outputs(self, form, two_ends, frames):
        stream = two_ends.stream()
        for t in range(5):
            x, z = frames[t, :4], frames[t, 1:]
            y, _, _ = form.infer("two", {"z": z[None], "x": x[None]}, sequence_id=4, sequence_start=t == 0)
            for name, value in zip([o.name for o in two_ends.outputs], stream.step((x, z)), strict=True):
                assert np.array_equal(y[name], value[None])

    def test_chosen_outputs(self, form, frames):
        inputs = {"x": frames[:1, :4], "z": frames[:1, :4]}
        y, _, _ = form.infer("two", inputs, ["s"], sequence_id=4, sequence_start=True)
        assert list(y) == ["s"]

    def test_integers_and_texts_are_different_ids(self, form, frames, alone):
        form.infer("m", step(frames), sequence_id=5, sequence_start=True)
        form.infer("m", {"x": frames[None, :4]}, sequence_id="5", sequence_start=True)
        for id, at in ((5, 1), ("5", 4)):
            y, _, _ = form.infer("m", step(frames, at), sequence_id=id, sequence_end=True)
            assert np.array_equal(y["y"][0], alone[at])

    def test_start_on_a_live_id(self, form, frames, alone):
        for _ in range(3):
            for t in range(2):
                y, _, _ = form.infer("m", step(frames, t), sequence_id=6, sequence_start=t == 0)
                assert np.array_equal(y["y"][0], alone[t])

    def test_a_step_index_that_is_sent_again(self, form, frames, alone):
        form.infer("m", step(frames), sequence_id=8, sequence_start=True, parameters={"step_index": 0})
        for _ in range(3):
            y, told, _ = form.infer("m", step(frames, 1), sequence_id=8, parameters={"step_index": 1})
            assert np.array_equal(y["y"][0], alone[1])
            assert int(told["steps_done"]) == 2
        many = {"SEQUENCE_IDS": np.array([8]), "STEP_INDEX": np.array([2])}
        for _ in range(2):
            y, _, _ = form.infer("m", {**step(frames, 2), **many})
            assert np.array_equal(y["y"], alone[2:3])
            assert y["STEP_INDEX"].tolist() == [2]
        chunk, index = {"x": frames[None, 2:3]}, {"step_index": 2}
        text = form.refused("FAILED_PRECONDITION", "m", chunk, sequence_id=8, parameters=index)
        assert "sequence 8 expects step_index 3, got 2" in text  # as a chunk it is another request

    def test_nan_stays_in_its_row(self, form, frames, alone):
        x = np.repeat(frames[:1], 3, axis=0)
        x[1] = np.nan, np.inf, -np.inf, 0, 0
        rows = {"SEQUENCE_IDS": np.array([21, 22, 23]), "SEQUENCE_START": np.ones(3, bool)}
        y, _, _ = form.infer("m", {"x": x, **rows})
        assert np.isnan(y["y"][1]).any()
        assert np.array_equal(y["y"][[0, 2]], alone[[0, 0]])

    @pytest.mark.parametrize("more", [{"priority": 3}, {"timeout": 20_000_000}, {"parameters": {"mine": "yes"}}])
    def test_parameters_that_change_no_answer(self, form, frames, alone, more):
        y, _, _ = form.infer("m", step(frames), sequence_id=9, sequence_start=True, sequence_end=True, **more)
        assert np.array_equal(y["y"][0], alone[0])
        y, _, _ = form.infer("m", {"x": frames[None, :9]}, **more)
        assert np.array_equal(y["y"][0], alone[:9])


@pytest.mark.parametrize("none", [0, ""])
def test_whole_sequences(form, model, frames, none):
    x = np.stack([frames[:50], frames[50:100], frames[100:150]])
    y, told, request = form.infer("m", {"x": x}, sequence_id=none, request_id="whole")
    assert np.array_equal(y["y"], model(x))
    assert (told.get("step_index"), request) == (None, "whole")


@pytest.mark.parametrize("pair", [("gzip", "deflate"), ("deflate", "gzip"), (None, "gzip"), ("gzip", None)])
def test_compression_of_http(running, frames, alone, pair):
    for name in ("http", "http.aio"):
        form = FORMS[name](running)
        algorithms = {"request_compression_algorithm": pair[0], "response_compression_algorithm": pair[1]}
        y, _, _ = form.infer("m", {"x": frames[None, :300]}, sequence_id=31, sequence_start=True, **algorithms)
        assert np.array_equal(y["y"][0], alone[:300])
        form.close()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("name", ["grpc", "grpc.aio"])
def test_compression_of_grpc(running, frames, alone, name, algorithm):
    form = FORMS[name](running)
    more = {"sequence_start": True, "compression_algorithm": algorithm}
    y, _, _ = form.infer("m", {"x": frames[None, :300]}, sequence_id=31, **more)
    assert np.array_equal(y["y"][0], alone[:300])
    form.close()


@pytest.mark.parametrize("binary", [(False, False), (False, True), (True, False)])
def test_numbers_as_json(running, frames, alone, binary):
    client = http.InferenceServerClient(f"127.0.0.1:{running.http}")
    x = http.InferInput("x", [1, 40, 5], "FP32")
    x.set_data_from_numpy(frames[None, :40], binary_data=binary[0])
    y = http.InferRequestedOutput("y", binary_data=binary[1])
    result = client.infer("m", [x], outputs=[y], sequence_id=31, sequence_start=True)
    assert np.array_equal(result.as_numpy("y")[0], alone[:40])
    client.close()


def test_a_stream_carries_many_sequences_in_order(running, frames, alone):
    """200 sequences of 20 steps at once on one stream, far more than queues hold."""
    client, answers = grpc.InferenceServerClient(f"127.0.0.1:{running.grpc}"), queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for t in range(20):
        for id in range(1, 201):
            x = grpc.InferInput("x", [1, 5], "FP32")
            x.set_data_from_numpy(frames[t][None])
            end = t == 19
            client.async_stream_infer(
                "m", [x], request_id=f"{id}.{t}", sequence_id=f"s{id}", sequence_start=t == 0, sequence_end=end
            )
    for t in range(20):
        for id in range(1, 201):
            result, error = answers.get(timeout=30)
            assert error is None, error
            assert result.get_response().id == f"{id}.{t}"
            assert np.array_equal(result.as_numpy("y")[0], alone[t])
    client.stop_stream()
    client.close()


@pytest.mark.parametrize("wanted", [False, True])
def test_each_response_of_a_stream_is_the_last_of_its_request(running, frames, wanted):
    """Clients of models that may answer several times ask for the flag, and read until it comes."""
    client, answers = grpc.InferenceServerClient(f"127.0.0.1:{running.grpc}"), queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    x = grpc.InferInput("x", [1, 5], "FP32")
    x.set_data_from_numpy(frames[:1])
    client.async_stream_infer("m", [x], sequence_id=1, sequence_start=True, enable_empty_final_response=wanted)
    result, error = answers.get(timeout=30)
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param == wanted
    client.stop_stream()
    client.close()


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        ({"double_param": 5.0}, "sequence_id must be an integer or a string, got float"),
        ({"bool_param": True}, "sequence_id must be an integer or a string, got bool"),
        ({}, "sequence_id must be an integer or a string, got NoneType"),
        ({"uint64_param": 2**64 - 1}, None),
        ({"int64_param": 0}, None),
        ({"string_param": ""}, None),
    ],
)
def test_ids_as_messages_have_them(running, frames, parameter, text):
    """Of programs with stubs of their own."""
    with grpc.InferenceServerClient(f"127.0.0.1:{running.grpc}") as client:
        pb = grpc.service_pb2
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[frames[:2].tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2, 5])
        request.parameters["sequence_id"].CopyFrom(pb.InferParameter(**parameter))
        if parameter and parameter.get("uint64_param"):
            request.parameters["sequence_start"].bool_param = True
        if text is None:
            assert client._client_stub.ModelInfer(request).outputs[0].shape == [1, 2, 8]
            request.inputs[0].contents.fp32_contents.append(1.0)
            text = "input 'x' has contents and raw_input_contents: send its elements once"
        with pytest.raises(RpcError) as caught:
            client._client_stub.ModelInfer(request)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert text in caught.value.details()


def test_a_client_that_is_gone(running, frames, alone):
    """A call that is cancelled leaves its sequence as it was, or says by step_index that it went on."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{running.grpc}")
    x = grpc.InferInput("x", [1, 5], "FP32")
    for t in range(30):
        x.set_data_from_numpy(frames[t][None])
        named = {"sequence_id": 600, "sequence_start": t == 0, "parameters": {"step_index": t}}
        if t:
            call = client.async_infer("m", [x], lambda result, error: None, **named)
            call.cancel()
        answer = client.infer("m", [x], **named)
        assert np.array_equal(answer.as_numpy("y")[0], alone[t])
    client.close()

"""Unmodified tritonclient in its five forms: every call, every error of a sequence, and the bits of a lone stream."""

import asyncio
import queue

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install 'fastrnn[test]'")
grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install 'fastrnn[test]'")
import tritonclient.grpc.aio as grpc_aio  # noqa: E402
import tritonclient.http.aio as http_aio  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

pytestmark = [
    pytest.mark.any_isa,
    # the client of http.aio leaves connections of refused requests to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Form:
    """One form of the client, called as any other."""

    def __init__(self, module, client, call=lambda result: result):
        self.module, self.client, self._call = module, client, call

    def do(self, name, *args, **named):
        return self._call(getattr(self.client, name)(*args, **named))

    def infer(self, model, inputs, outputs=None, **named):
        """(outputs by name, parameters)."""
        result = self.do("infer", model, self.tensors(inputs), outputs=outputs, **named)
        return read(result)

    def tensors(self, inputs):
        found = []
        for name, array in inputs.items():
            kind = {"f": "FP32", "b": "BOOL", "O": "BYTES", "i": "INT64", "u": "UINT64"}[array.dtype.kind]
            found.append(self.module.InferInput(name, list(array.shape), kind))
            found[-1].set_data_from_numpy(array)
        return found


class StreamForm(Form):
    """The stream of gRPC."""

    def __init__(self, client):
        super().__init__(grpc, client)
        self.answers = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)))

    def infer(self, model, inputs, outputs=None, **named):
        self.client.async_stream_infer(model, self.tensors(inputs), outputs=outputs, **named)
        result, error = self.answers.get(timeout=30)
        if error is not None:
            raise error
        return read(result)


def read(result):
    response = result.get_response()
    if isinstance(response, dict):
        return {o["name"]: result.as_numpy(o["name"]) for o in response["outputs"]}, response.get("parameters", {})
    given = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in response.parameters.items()}
    return {o.name: result.as_numpy(o.name) for o in response.outputs}, given


@pytest.fixture(params=["http", "http.aio", "grpc", "grpc.aio", "grpc stream"])
def form(request, running):
    kind = request.param
    url = f"127.0.0.1:{running.http if 'http' in kind else running.grpc}"
    if kind in ("http", "grpc"):
        module = http if kind == "http" else grpc
        client = module.InferenceServerClient(url)
        yield Form(module, client)
        client.close()
    elif kind == "grpc stream":
        client = grpc.InferenceServerClient(url)
        yield StreamForm(client)
        client.stop_stream()
        client.close()
    else:
        loop = asyncio.new_event_loop()
        module = http_aio if kind == "http.aio" else grpc_aio

        async def opened():
            return module.InferenceServerClient(url)

        client = loop.run_until_complete(opened())
        yield Form(module if kind == "grpc.aio" else http_aio, client, loop.run_until_complete)
        loop.run_until_complete(client.close())
        loop.close()


def refused(form, *args, **named):
    """The text of the error that a request gets."""
    with pytest.raises(InferenceServerException) as caught:
        form.infer(*args, **named)
    return str(caught.value)


class TestDescription:
    def test_health(self, form):
        assert form.do("is_server_live")
        assert form.do("is_server_ready")
        assert form.do("is_model_ready", "m")
        assert form.do("is_model_ready", "m", "1")

    def test_unknown_models_are_not_ready(self, form):
        for name, version in (("none", ""), ("m", "7")):
            try:
                assert not form.do("is_model_ready", name, version)
            except InferenceServerException as error:  # of gRPC
                assert "NOT_FOUND" in str(error)

    def test_metadata(self, form):
        server = form.do("get_server_metadata")
        extensions = server["extensions"] if isinstance(server, dict) else server.extensions
        assert {"sequence", "sequence(string_id)"} <= set(extensions)
        model = form.do("get_model_metadata", "m")
        if isinstance(model, dict):
            assert model["platform"].startswith("fastrnn")
            assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}]
        else:
            assert model.platform.startswith("fastrnn")
            assert list(model.inputs[0].shape) == [-1, 5]

    def test_config(self, form):
        config = form.do("get_model_config", "m")
        idle = (
            config["sequence_batching"]["max_sequence_idle_microseconds"]
            if isinstance(config, dict)
            else config.config.sequence_batching.max_sequence_idle_microseconds
        )
        assert idle == 60_000_000

    def test_statistics(self, form, frames):
        count = lambda s: s["model_stats"][0] if isinstance(s, dict) else s.model_stats[0]  # noqa: E731
        number = lambda s: int(s["inference_count"] if isinstance(s, dict) else s.inference_count)  # noqa: E731
        before = number(count(form.do("get_inference_statistics", "m")))
        form.infer("m", {"x": frames[None, :3]}, sequence_id=9000, sequence_start=True, sequence_end=True)
        assert number(count(form.do("get_inference_statistics", "m"))) == before + 3
        assert form.do("get_inference_statistics")


class TestSequences:
    @pytest.mark.parametrize("id", [1, 2**63 - 1, "a", "42", "\N{GREEK SMALL LETTER ALPHA}" * 512])
    def test_steps_have_the_bits_of_a_lone_stream(self, form, id, frames, alone):
        for t in range(12):
            y, told = form.infer(
                "m", {"x": frames[t][None]}, sequence_id=id, sequence_start=t == 0, sequence_end=t == 11
            )
            assert np.array_equal(y["y"], alone[t][None])
            assert (int(told["step_index"]), int(told["steps_done"])) == (t, t + 1)

    def test_chunks(self, form, frames, alone):
        at = 0
        for size in (3, 1, 100, 7):
            y, told = form.infer("m", {"x": frames[None, at : at + size]}, sequence_id=3, sequence_start=at == 0)
            assert np.array_equal(y["y"][0], alone[at : at + size])
            assert int(told["step_index"]) == at
            at += size
            assert int(told["steps_done"]) == at

    def test_many_sequences(self, form, frames, alone):
        ids = np.arange(5000, 5050, dtype=np.int64)
        for t in range(3):
            flags = {"SEQUENCE_START": np.full(50, t == 0), "SEQUENCE_END": np.full(50, t == 2)}
            x = np.repeat(frames[t][None], 50, axis=0)
            y, _ = form.infer("m", {"x": x, "SEQUENCE_IDS": ids, **flags})
            assert np.array_equal(y["y"], np.repeat(alone[t][None], 50, axis=0))
            assert np.array_equal(y["STEP_INDEX"], np.full(50, t))

    def test_many_sequences_with_texts_as_ids(self, form, frames, alone):
        ids = np.array([f"call {i}" for i in range(7)], object)
        starts = np.ones(7, bool)
        y, _ = form.infer("m", {"x": frames[:7], "SEQUENCE_IDS": ids, "SEQUENCE_START": starts})
        y, _ = form.infer("m", {"x": frames[np.r_[1, 1:7]], "SEQUENCE_IDS": ids, "SEQUENCE_END": starts})
        assert np.array_equal(y["y"][0], alone[1])

    def test_several_inputs_and_outputs(self, form, two_ends, frames):
        stream = two_ends.stream()
        for t in range(5):
            x, z = frames[t, :4], frames[t, 1:]
            y, _ = form.infer("two", {"z": z[None], "x": x[None]}, sequence_id=4, sequence_start=t == 0)
            for name, value in zip([o.name for o in two_ends.outputs], stream.step((x, z)), strict=True):
                assert np.array_equal(y[name], value[None])

    def test_chosen_outputs(self, form, frames):
        inputs = {"x": frames[:1, :4], "z": frames[:1, :4]}
        y, _ = form.infer("two", inputs, [form.module.InferRequestedOutput("s")], sequence_id=4, sequence_start=True)
        assert list(y) == ["s"]
        text = refused(form, "two", inputs, [form.module.InferRequestedOutput("none")], sequence_id=4)
        assert "there is no output 'none'" in text

    def test_step_index(self, form, frames, alone):
        x = lambda t: {"x": frames[t][None]}  # noqa: E731
        form.infer("m", x(0), sequence_id=8, sequence_start=True, parameters={"step_index": 0})
        for _ in range(2):  # sent again, it gets the same answer
            y, told = form.infer("m", x(1), sequence_id=8, parameters={"step_index": 1})
            assert np.array_equal(y["y"][0], alone[1])
            assert int(told["steps_done"]) == 2
        assert "sequence 8 expects step_index 2, got 9" in refused(
            form, "m", x(2), sequence_id=8, parameters={"step_index": 9}
        )
        assert "step_index must be a whole number from 0 on, got -1" in refused(
            form, "m", x(2), sequence_id=8, parameters={"step_index": -1}
        )

    def test_unknown_sequences(self, form, frames):
        x = {"x": frames[:1]}
        sentence = "must specify the START flag on the first request of the sequence"
        text = refused(form, "m", x, sequence_id=987654)
        assert sentence in text
        assert "this server started at" in text
        form.infer("m", x, sequence_id=6, sequence_start=True, sequence_end=True)
        text = refused(form, "m", x, sequence_id=6)
        assert sentence in text
        assert "ended by its client, after 1 steps" in text

    def test_an_evicted_sequence(self, form, frames, running):
        x = {"x": frames[:1]}
        form.infer("m", x, sequence_id=66, sequence_start=True)
        running.do(running.sequences.evict(66))
        text = refused(form, "m", x, sequence_id=66)
        assert "was evicted, after 1 steps" in text
        assert "404" in text or "NOT_FOUND" in text

    def test_wrong_requests(self, form, frames):
        for model, inputs, text in [
            ("none", {"x": frames[:1]}, "there is no model 'none': this server has m, two"),
            ("m", {"z": frames[:1]}, "lacks the input 'x'"),
            ("m", {"x": frames[:1, :4]}, "[5]"),
            ("m", {"x": frames[:3]}, "[1, features] for one step"),
        ]:
            assert text in refused(form, model, inputs, sequence_id=77, sequence_start=True)


class TestWholeSequences:
    def test_a_batch(self, form, model, frames):
        x = np.stack([frames[:50], frames[50:100], frames[100:150]])
        y, told = form.infer("m", {"x": x})
        assert np.array_equal(y["y"], model(x))
        assert "step_index" not in told

    def test_wrong_inputs(self, form, frames):
        assert "x" in refused(form, "m", {"x": frames[:10]})


@pytest.mark.parametrize("pair", [("gzip", "deflate"), ("deflate", "gzip"), (None, "gzip"), ("gzip", None)])
def test_compression(running, frames, alone, pair):
    client = http.InferenceServerClient(f"127.0.0.1:{running.http}")
    x = http.InferInput("x", [1, 300, 5], "FP32")
    x.set_data_from_numpy(frames[None, :300])
    request, response = pair
    result = client.infer(
        "m", [x], sequence_id=31, sequence_start=True,
        request_compression_algorithm=request, response_compression_algorithm=response,
    )  # fmt: skip
    assert np.array_equal(result.as_numpy("y")[0], alone[:300])


@pytest.mark.parametrize("binary", [(False, False), (False, True), (True, False)])
def test_numbers_as_json(running, frames, alone, binary):
    client = http.InferenceServerClient(f"127.0.0.1:{running.http}")
    x = http.InferInput("x", [1, 40, 5], "FP32")
    x.set_data_from_numpy(frames[None, :40], binary_data=binary[0])
    y = http.InferRequestedOutput("y", binary_data=binary[1])
    result = client.infer("m", [x], outputs=[y], sequence_id=31, sequence_start=True)
    assert np.array_equal(result.as_numpy("y")[0], alone[:40])


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


def test_errors_of_a_stream_say_which_request(running, frames):
    client, answers = grpc.InferenceServerClient(f"127.0.0.1:{running.grpc}"), queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    x = grpc.InferInput("x", [1, 5], "FP32")
    x.set_data_from_numpy(frames[:1])
    client.async_stream_infer("m", [x], request_id="r7", sequence_id=424242)
    _, error = answers.get(timeout=30)
    assert str(error).startswith("INVALID_ARGUMENT: request r7: inference request for sequence 424242")
    client.stop_stream()


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

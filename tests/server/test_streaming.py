"""Streams of gRPC: the short way of their requests, and its order with requests that take the long one."""

import gc

import numpy as np
import pytest
from running import Running, until

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
grpc = pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")

from fastrnn.serving.server.messages import SERVICE, message  # noqa: E402
from fastrnn.serving.server.streaming import Stream  # noqa: E402

pytestmark = pytest.mark.any_isa


def request(x, model="m", **given):
    """A ModelInferRequest."""
    made = message("ModelInferRequest")(model_name=model)
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    made.raw_input_contents.append(x.tobytes())
    for name, value in given.items():
        setattr(made.parameters[name], "bool_param" if isinstance(value, bool) else "int64_param", value)
    return made


def answers(server, requests):
    """Those of one stream, on which all requests are sent at once."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message("ModelStreamInferResponse").FromString,
        )
        return list(call(iter(requests), timeout=60))


def values(answer):
    assert not answer.error_message, answer.error_message
    (output,) = answer.infer_response.outputs
    y = np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32).reshape(tuple(output.shape))
    return y[0]


@pytest.fixture
def long_way(monkeypatch):
    """How many requests took the long way."""
    seen = []
    before = Stream._infer

    async def counted(self, pending, request):
        seen.append(request)
        await before(self, pending, request)

    monkeypatch.setattr(Stream, "_infer", counted)
    return seen


def test_requests_of_several_sequences_are_answered_in_order(running, frames, alone, long_way):
    ids = (101, 102, 103)
    asked = [request(frames[t][None], sequence_id=id, sequence_start=t == 0) for t in range(40) for id in ids]
    found = answers(running, asked)
    for i, answer in enumerate(found):
        t, id = divmod(i, 3)
        assert answer.infer_response.parameters["sequence_id"].int64_param == ids[id]
        assert np.array_equal(values(answer), alone[t])
    assert not long_way


def test_the_long_way_does_not_change_the_order(running, frames, alone, long_way):
    """Requests without a sequence, with a timeout, and wrong ones stand between those of a sequence."""
    asked = []
    for t in range(20):
        asked.append(request(frames[t][None], sequence_id=111, sequence_start=t == 0))
        asked.append(request(frames[:30][None]))
        asked.append(request(frames[t][None][:, :3], sequence_id=111))
        asked.append(request(frames[t][None], sequence_id=112, sequence_start=t == 0, timeout=10_000_000))
    found = answers(running, asked)
    for t in range(20):
        one, whole, wrong, timed = found[4 * t : 4 * t + 4]
        assert np.array_equal(values(one), alone[t])
        assert np.array_equal(values(whole), alone[:30])
        assert wrong.error_message.startswith("INVALID_ARGUMENT: ")
        assert np.array_equal(values(timed), alone[t])
    assert len(long_way) >= 40


def test_a_sequence_that_is_in_the_store_goes_on(model, frames, alone, long_way, tmp_path):
    """The short way would not look for it there."""
    pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
    with Running({"m": model}, store=str(tmp_path)) as server:
        answers(server, [request(frames[t][None], sequence_id=7, sequence_start=t == 0) for t in range(10)])
    assert not long_way
    with Running({"m": model}, store=str(tmp_path)) as server:
        found = answers(server, [request(frames[t][None], sequence_id=7) for t in range(10, 60)])
        assert np.array_equal(np.stack([values(a) for a in found]), alone[10:60])
        assert long_way
        del long_way[:]
        (answer,) = answers(server, [request(frames[60][None], sequence_id=7)])
        assert np.array_equal(values(answer), alone[60])
        assert not long_way


def test_a_stream_that_breaks_withdraws_its_requests(model, frames, alone):
    """What no tick had taken is as if it had not been sent."""
    with Running({"m": model}, max_delay=1.0) as server, grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message("ModelStreamInferResponse").FromString,
        )
        answers(server, [request(frames[0][None], sequence_id=id, sequence_start=True) for id in (5, 6)])
        # Two live sequences: a tick waits a second for the other one.
        gone = call(iter([request(frames[1][None], sequence_id=5) for _ in range(3)]), timeout=60)
        until(lambda: server.sequences.live[5].running, "the request was not admitted")
        gone.cancel()
        (answer,) = answers(server, [request(frames[1][None], sequence_id=5)])
        first = answer.infer_response.parameters["step_index"].int64_param
        assert first == server.sequences.live[5].steps - 1
        assert np.array_equal(values(answer), alone[1]) == (first == 1)


def many(x, start):
    """A ModelInferRequest of one step of the sequences 1 to 4."""
    made = message("ModelInferRequest")(model_name="m")
    rows = {"x": ("FP32", np.tile(x, (4, 1))), "SEQUENCE_IDS": ("INT64", np.arange(1, 5))}
    rows["SEQUENCE_START"] = "BOOL", np.full(4, start)
    for name, (kind, array) in rows.items():
        made.inputs.add(name=name, datatype=kind, shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    return made


def test_many_sequences_wait_for_room_in_their_queues(model, frames, alone, serve):
    """A stream stops reading if a queue is full, whatever form its requests have: they are not refused."""
    requests = [many(x, t == 0) for t, x in enumerate(frames[:100])]
    for t in range(50, 100, 5):  # one sequence alone, among them
        requests[t] = request(frames[None, t], sequence_id=1)
    with serve({"m": model}, queue_size=3, max_delay=0.001) as server:
        found = answers(server, requests)
    steps = np.arange(100)
    for t, answer in enumerate(found):
        y = [answer.infer_response.raw_output_contents[0]] if not answer.error_message else []
        assert y, f"request {t}: {answer.error_message}"
        assert (np.frombuffer(y[0], np.float32).reshape(-1, 8)[0] == alone[steps[t]]).all()


@pytest.mark.parametrize("refused", [False, True])
def test_requests_of_a_stream_leave_nothing_to_the_garbage_collector(serve, model, frames, refused):
    """Cycles of thousands of requests a second would stop all steps for as long as it takes to find them."""
    with serve({"m": model}) as server:
        sent = [request(frames[None, t % 20], sequence_id=1, sequence_start=t == 0) for t in range(400)]
        answers(server, sent[:1])
        if refused:
            sent[1:] = [request(frames[None, 0, :4], sequence_id=1)] * 399
        gc.collect()
        gc.disable()
        try:
            found = answers(server, sent[1:])
            assert [bool(answer.error_message) for answer in found] == [refused] * 399
            assert gc.collect() < 399  # those of the stream itself; it was 25 a request
        finally:
            gc.enable()

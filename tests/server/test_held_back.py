"""Models that look ahead, change the rate or reduce over time: the end of a sequence gives what was held back."""

import asyncio
import json

import numpy as np
import pool_models
import pytest
from running import Running, ask, connect, until

grpc = pytest.importorskip("grpc", reason="no grpc: pip install 'fastrnn[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
websockets = pytest.importorskip("websockets", reason="no websockets: pip install 'fastrnn[serve]'")

from fastrnn.serving.server.limits import Limits  # noqa: E402
from fastrnn.serving.server.messages import SERVICE, message  # noqa: E402
from fastrnn.serving.server.sequence import Call  # noqa: E402

END = '{"sequence_end": true}'
pytestmark = pytest.mark.any_isa

MODELS = {name: pool_models.PACED[name] for name in ("looks ahead", "upsamples", "the last step")}
MODELS["lstm"] = pool_models.MODELS["lstm"]  # which holds nothing back
T = 150  # more than one tick takes of a chunk
SIZES = {"steps": [1] * 12, "a chunk": [12], "several": [1, 5, 1, 3, 2], "a long chunk": [3, T - 3], "short": [1, 1]}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def server(model):
    with Running({"m": model}) as server:
        yield server


@pytest.fixture(scope="module")
def call(server):
    """call(x, id, **parameters): (the output as "y", if it came; parameters) of ModelInfer."""
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
    unary = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=message("ModelInferResponse").FromString,
    )
    yield lambda x, id, **given: read(unary(request(x, id, **given), timeout=30))
    channel.close()


def request(x, id, **given):
    made = message("ModelInferRequest")(model_name="m")
    made.inputs.add(name="x", datatype="FP32", shape=(1, *x.shape))
    made.raw_input_contents.append(x.tobytes())
    for name, value in {"sequence_id": id, **given}.items():
        kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
        setattr(made.parameters[name], f"{kind}_param", value)
    return made


def read(response):
    raw = response.raw_output_contents
    outputs = [np.frombuffer(raw[i], np.float32).reshape(tuple(o.shape)) for i, o in enumerate(response.outputs)]
    return dict(zip("y", outputs, strict=False)), {name: p.int64_param for name, p in response.parameters.items()}


def over_http(server, x, id, **given):
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, *x.shape], "data": x.reshape(-1).tolist()}]
    status, found, _ = ask(
        server, "POST", "/v2/models/m/infer", json.dumps({"inputs": inputs, "parameters": {"sequence_id": id, **given}})
    )
    assert status == 200, found
    outputs = [np.array(o["data"], np.float32).reshape(o["shape"]) for o in found["outputs"]]
    return dict(zip("y", outputs, strict=False)), found["parameters"]


def timed(model):
    return model.pool(1)._parts.outputs[0].timed


def whole(model, x):
    """All that a lone stream answers: the steps of its output, or the last value over all steps."""
    stream = model.stream()
    pushed, rest = stream.push(x), stream.flush()
    assert stream.steps_done == len(x)
    if not timed(model):
        return pushed if rest is None else rest
    return np.concatenate([pushed, rest])


def pieces(x, sizes):
    """(chunk, parameters) of each request of a sequence."""
    at = 0
    for size in sizes:
        yield x[at : at + size], {"sequence_start": at == 0, "sequence_end": at + size == len(x)}
        at += size


def put_together(model, found):
    """What a client gets in all from the outputs of its answers."""
    rows = [outputs["y"][0] for outputs in found if "y" in outputs]
    return np.concatenate(rows) if timed(model) else rows[-1]


def input_of(model, sizes):
    return pool_models.data(model, sum(sizes), seed=len(sizes))


@pytest.mark.parametrize("sizes", list(SIZES.values()), ids=list(SIZES))
@pytest.mark.parametrize("route", ["http", "grpc"])
def test_answers_together_are_the_whole(server, call, model, route, sizes):
    x = input_of(model, sizes)
    take = call if route == "grpc" else lambda *args, **given: over_http(server, *args, **given)
    answers = [take(part, f"{route} {sizes}", **given) for part, given in pieces(x, sizes)]
    expected = whole(model, x)
    if expected is None or not (expected.size or timed(model)):
        assert not any("y" in outputs for outputs, _ in answers)
    else:
        assert put_together(model, [o for o, _ in answers]).tobytes() == expected.tobytes()
    assert answers[-1][1]["steps_done"] == len(x)
    assert not server.sequences.live


def test_an_end_without_a_step(server, call, model):
    """A client that learns of the end after its last step."""
    x = input_of(model, [9])
    first, _ = call(x, "late", sequence_start=True)
    last, told = call(x[:0], "late", sequence_end=True)
    assert put_together(model, [first, last]).tobytes() == whole(model, x).tobytes()
    assert (told["step_index"], told["steps_done"]) == (9, 9)
    assert "late" not in server.sequences.live
    first, _ = over_http(server, x, "late", sequence_start=True)
    last, _ = over_http(server, x[:0], "late", sequence_end=True)
    assert put_together(model, [first, last]).tobytes() == whole(model, x).tobytes()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_end_may_be_sent_again(server, call, model, steps):
    x = input_of(model, [9])
    call(x, f"again {steps}", sequence_start=True, step_index=0)
    given = {"sequence_end": True, "step_index": 9}
    more = pool_models.data(model, steps, seed=3)
    once, told = call(more, f"again {steps}", **given)
    assert told["steps_done"] == 9 + steps
    for _ in range(2):
        twice, again = call(more, f"again {steps}", **given)
        assert again == told
        assert {k: v.tobytes() for k, v in once.items()} == {k: v.tobytes() for k, v in twice.items()}
    with pytest.raises(grpc.RpcError, match="was ended by its client"):
        call(pool_models.data(model, 2, seed=3), f"again {steps}", **given)


def test_the_last_steps_sent_again_with_an_end(server, call, model):
    """Their first answer lacked what was held back, and so would this one: nothing may be lost without a word."""
    x = input_of(model, [9])
    first, told = call(x, "late end", sequence_start=True, step_index=0)
    if model is MODELS["lstm"]:  # nothing is lost
        again, told_again = call(x, "late end", step_index=0, sequence_end=True)
        assert (again["y"].tobytes(), told_again) == (first["y"].tobytes(), told)
        assert not server.sequences.live
        return
    with pytest.raises(grpc.RpcError, match="without its end"):
        call(x, "late end", step_index=0, sequence_end=True)
    again, told_again = call(x, "late end", step_index=0)  # what the error says
    assert told_again == told
    last, _ = call(x[:0], "late end", step_index=9, sequence_end=True)
    assert put_together(model, [again, last]).tobytes() == whole(model, x).tobytes()


def test_nothing_runs_behind_an_end_without_a_step(server, call, model):
    """Another END of the same step_index, which came before the first one had run."""
    x = input_of(model, [9])
    call(x, "two ends", sequence_start=True, step_index=0)
    sequence, lane = server.sequences.live["two ends"], next(iter(server.sequences.lanes.values()))

    def end(steps):
        part = x[None, :steps]
        return Call(("two ends",), (False,), (True,), {lane.inputs[0].name: part}, indexes=(9,))

    async def both():
        runs = [server.sequences.run(end(0)), server.sequences.run(end(2)), server.sequences.run(end(0))]
        return await asyncio.gather(*runs, return_exceptions=True)

    first, second, third = server.do(both())
    assert first.done == third.done == (9,)
    assert "no request after the one that ends it" in str(second)
    assert sequence.steps == 9


def test_a_start_needs_a_step(server, call, model):
    with pytest.raises(grpc.RpcError, match="the chunk has no step"):
        call(input_of(model, [1])[:0], "empty", sequence_start=True, sequence_end=True)
    assert not server.sequences.live


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("output", ["json", "binary"])
@pytest.mark.parametrize("sizes", [[1] * 7, [40], [3, 90, 1]], ids=str)
def test_a_websocket_ends_by_a_text(server, model, sizes, output, named):
    x = input_of(model, sizes)
    query = f"?output={output}" + (f"&sequence_id=n{output}{len(sizes)}&sequence_start=1" if named else "")
    features = model.pool(1)._parts.outputs[0].features
    with connect(server, query) as socket:
        found = []
        for part, _ in pieces(x, sizes):
            socket.send(part.tobytes())
        socket.send(END)
        for _ in range(len(sizes) + 1):
            got = socket.recv(timeout=30)
            if output == "json":
                told = json.loads(got)
                found += [{"y": np.array([v], np.float32)} for v in told["outputs"].values()] or [{}]
            elif got:
                found.append({"y": np.frombuffer(got, np.float32).reshape(1, -1, *features)})
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            socket.recv(timeout=30)
    expected = whole(model, x)
    rows = [o["y"].reshape(-1, *features) for o in found if "y" in o]
    rows = np.concatenate(rows) if timed(model) else rows[-1]
    assert rows.tobytes() == expected.tobytes()
    assert socket.close_code == 1000
    assert not server.sequences.live


def at_once(socket, messages):
    """Send messages, bytes or texts, in one write."""
    with socket.protocol_mutex:
        for m in messages:
            socket.protocol.send_text(m.encode()) if isinstance(m, str) else socket.protocol.send_binary(m)
        socket.socket.sendall(b"".join(socket.protocol.data_to_send()))


@pytest.mark.parametrize("watched", [False, True], ids=["short way", "long way"])
def test_a_websocket_ends_after_all_that_came(model, watched):
    """Many more messages than its sequence may have waiting come with the end of it."""
    x = input_of(model, [100])
    features = model.pool(1)._parts.outputs[0].features
    with Running({"m": model}, queue_size=3, limits=Limits(client_rate=1e6 if watched else None)) as server:
        for _ in range(2):
            with connect(server, "?output=binary") as socket:
                at_once(socket, [*(step.tobytes() for step in x), END])
                found = [np.frombuffer(socket.recv(timeout=30), np.float32).reshape(-1, *features) for _ in range(101)]
                with pytest.raises(websockets.exceptions.ConnectionClosedOK):
                    socket.recv(timeout=30)
            found = np.concatenate(found) if timed(model) else [v for v in found if len(v)][-1]
            assert found.tobytes() == whole(model, x).tobytes()


def test_the_end_does_not_hide_an_error_before_it(server, model):
    x = input_of(model, [5])
    with connect(server, "?sequence_id=wrong&sequence_start=1") as socket:
        at_once(socket, [*(step.tobytes() for step in x), b"odd", END])
        for i in range(5):
            assert json.loads(socket.recv(timeout=30))["step_index"] == i
        assert "whole number of steps" in json.loads(socket.recv(timeout=30))["error"]
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            socket.recv(timeout=30)
    assert socket.close_code == 1007
    assert server.sequences.live["wrong"].steps == 5  # and goes on with the next connection
    with connect(server, "?sequence_id=wrong&sequence_start=0") as socket:
        socket.send(END)
        assert json.loads(socket.recv(timeout=30))["steps_done"] == 5
    until(lambda: not server.sequences.live)


def test_a_websocket_that_goes_while_its_end_waits(server, model):
    """Its messages wait for room in its socket, and nobody waits for it then."""
    with connect(server, "?sequence_id=gone&sequence_start=1") as socket:
        socket.send(input_of(model, [1]).tobytes())
        socket.recv(timeout=30)
        (session,) = server.server.engine.connections
        server.loop.call_soon_threadsafe(session.direct.protocol.writable.clear)
        server.do(asyncio.sleep(0))  # it is cleared
        at_once(socket, [input_of(model, [1]).tobytes(), END])
        until(lambda: session.direct is not None and session.direct.drained is not None)
        assert server.sequences.live["gone"].steps == 1
        socket.socket.shutdown(2)
    until(lambda: not server.server.engine.connections)
    assert server.sequences.live["gone"].steps == 1  # neither was taken
    server.do(server.sequences.evict("gone"))


def test_a_websocket_that_has_sent_nothing(server):
    with connect(server) as socket:
        socket.send(END)
        with pytest.raises(websockets.exceptions.ConnectionClosedOK):
            socket.recv(timeout=30)
    with connect(server) as socket:
        socket.send('{"sequence_end": false}')
        assert "must be binary" in json.loads(socket.recv(timeout=30))["error"]


def test_the_end_is_kept_in_a_store(model, tmp_path):
    """Another server answers the last request again."""
    x = input_of(model, [9])
    given = {"sequence_end": True, "step_index": 9}
    for end in (x[:0], x[:2]):
        id = f"kept {len(end)}"
        with Running({"m": model}, store=str(tmp_path)) as server:
            over_http(server, x, id, sequence_start=True, step_index=0)
            once, _ = over_http(server, end, id, **given)
        with Running({"m": model}, store=str(tmp_path)) as server:
            twice, _ = over_http(server, end, id, **given)
        assert {k: v.tobytes() for k, v in once.items()} == {k: v.tobytes() for k, v in twice.items()}

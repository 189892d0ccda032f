"""Every error of a request, with its code and its text, in all forms of tritonclient; and that it changes nothing."""

import contextlib
import re
import threading

import numpy as np
import pytest
from forms import FORMS, InferenceServerException, step
from running import until

import fastrnn
from fastrnn.serving.server.sequence import Call

pytestmark = [
    pytest.mark.any_isa,
    # the client of http.aio leaves connections of refused requests to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
START = "must specify the START flag on the first request of the sequence"
INVALID, NOT_FOUND, CONFLICT = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"


@pytest.fixture(params=FORMS)
def form(request, running):
    made = FORMS[request.param](running)
    yield made
    made.close()


def many(frames, ids, **flags):
    """A request for many sequences; ids and flags are lists."""
    kinds = {"STEP_INDEX": np.int64}
    given = {name: np.array(v, kinds.get(name, bool)) for name, v in flags.items()}
    return {"x": frames[: len(ids)], "SEQUENCE_IDS": np.array(ids, object if type(ids[0]) is str else None), **given}


# What a live sequence 1, of one step, and others are asked: (code, text, model, inputs, parameters).
WRONG = {
    "a model that is not there": (NOT_FOUND, "no model 'none': this server has m, two, whole", "none", step, {}),
    "a version that is not there": (NOT_FOUND, "'m' has no version '9': it has 1", "m", step, {"model_version": "9"}),
    "an unknown id": (
        INVALID, f"inference request for sequence 987 to model 'm' {START}; this server started at 20.* has not seen",
        "m", step, {"sequence_id": 987},
    ),
    "an id of another type": (INVALID, f"for sequence 1 to model 'm' {START}; this", "m", step, {"sequence_id": "1"}),
    "an id with control characters": (
        INVALID, r"for sequence a\\x1b\[2J\\n to model", "m", step, {"sequence_id": "a\x1b[2J\n"},
    ),
    "an id that is too long": (INVALID, "longer than 1024 bytes", "m", step, {"sequence_id": "a" * 1025}),
    "an id below 0": (INVALID, r"sequence_id must be from 0 to 2\*\*64 - 1, got -1", "m", step, {"sequence_id": -1}),
    "a later step index": (
        CONFLICT, "sequence 1 expects step_index 1, got 9", "m", step,
        {"sequence_id": 1, "parameters": {"step_index": 9}},
    ),
    "a START with a step index": (
        CONFLICT, "sequence 1 expects step_index 0, got 1", "m", step,
        {"sequence_id": 1, "sequence_start": True, "parameters": {"step_index": 1}},
    ),
    "a step index below 0": (
        INVALID, "step_index must be a whole number from 0 on, got -1", "m", step,
        {"sequence_id": 1, "parameters": {"step_index": -1}},
    ),
    "a step index that is a text": (
        INVALID, "step_index must be a whole number from 0 on, got '1'", "m", step,
        {"sequence_id": 1, "parameters": {"step_index": "1"}},
    ),
    "a step index without an id": (
        INVALID, "the parameter step_index has no meaning in a request without a sequence", "m",
        lambda f: {"x": f[None, :2]}, {"parameters": {"step_index": 1}},
    ),
    "an output that is not there": (
        INVALID, "there is no output 'z': the outputs are y", "m", step, {"sequence_id": 1, "outputs": ["z"]},
    ),
    "an input that is missing": (
        INVALID, "lacks the input 'x': the inputs are x", "m", lambda f: {"z": f[:1]}, {"sequence_id": 1},
    ),
    "an input too many": (
        INVALID, "has an input 'z', which is not the model's", "m", lambda f: {**step(f), "z": f[:1]},
        {"sequence_id": 1},
    ),
    "two rows of one sequence": (
        INVALID, r"shape \[2, 5\]: a request of one sequence is \[1, features\]", "m", lambda f: {"x": f[:2]},
        {"sequence_id": 1},
    ),
    "other features": (INVALID, r"one step is \[5\], got \[4\]", "m", lambda f: {"x": f[:1, :4]}, {"sequence_id": 1}),
    "another dtype": (INVALID, "dtype float32", "m", lambda f: {"x": np.ones((1, 5), int)}, {"sequence_id": 1}),
    "a chunk without a step": (INVALID, "the chunk has no step", "m", lambda f: {"x": f[None, :0]}, {"sequence_id": 1}),
    "an id twice": (INVALID, "SEQUENCE_IDS has 1 twice", "m", lambda f: many(f, [2, 1, 1]), {}),
    "no id in a row": (INVALID, r"SEQUENCE_IDS\[1\] is 0 or empty, which is no id", "m", lambda f: many(f, [1, 0]), {}),
    "no text in a row": (INVALID, r"SEQUENCE_IDS\[1\] is 0 or empty", "m", lambda f: many(f, ["a", ""]), {}),
    "a row that is unknown": (INVALID, f"sequence 988 to model 'm' {START}", "m", lambda f: many(f, [1, 988]), {}),
    "a row with another index": (
        CONFLICT, "sequence 1 expects step_index 1, got 2", "m", lambda f: many(f, [1], STEP_INDEX=[2]), {},
    ),
    "a row that starts with an index": (
        CONFLICT, "sequence 3 expects step_index 0, got 2", "m",
        lambda f: many(f, [1, 3], SEQUENCE_START=[0, 1], STEP_INDEX=[1, 2]), {},
    ),
    "an index below 0": (INVALID, "STEP_INDEX must be INT64", "m", lambda f: many(f, [1], STEP_INDEX=[-1]), {}),
    "flags of another number": (
        INVALID, r"SEQUENCE_END must be BOOL \[1\]", "m", lambda f: many(f, [1], SEQUENCE_END=[0, 1]), {},
    ),
    "rows of another number": (
        INVALID, r"\[2, 5\]", "m", lambda f: {**many(f, [1, 2], SEQUENCE_START=[0, 1]), "x": f[:3]}, {},
    ),
    "ids that are numbers with a point": (
        INVALID, r"SEQUENCE_IDS must be INT64, UINT64 or BYTES \[sequences\]", "m",
        lambda f: {"x": f[:1], "SEQUENCE_IDS": f[0, :1]}, {},
    ),
    "an id beside SEQUENCE_IDS": (
        INVALID, "the parameter sequence_id has no meaning in a request with SEQUENCE_IDS", "m", lambda f: many(f, [1]),
        {"sequence_id": 1},
    ),
    "a sequence of a model that has none": (
        INVALID, "can't run step by step, so it has no sequences", "whole", step,
        {"sequence_id": 1, "sequence_start": True},
    ),
    "whole sequences without an axis": (INVALID, "input x", "m", lambda f: {"x": f[:3]}, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def running(serve, model, two_ends):
    W, R = (np.full((2, 12, n), 0.1, np.float32) for n in (5, 3))
    both_ways = fastrnn.from_arrays("lstm", W=W, R=R, order="ifgo", direction="bidirectional")
    with serve({"m": model, "two": two_ends, "whole": both_ways}) as server:
        yield server


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_changes_nothing(form, running, frames, alone, case):
    code, text, name, inputs, more = WRONG[case]
    form.infer("m", step(frames), sequence_id=1, sequence_start=True)
    found = form.refused(code, name, inputs(frames), **more)
    assert re.search(text, found), found
    assert set(running.sequences.live) == {1}
    y, told, _ = form.infer("m", step(frames, 1), sequence_id=1)
    assert np.array_equal(y["y"], alone[1:2])
    assert int(told["step_index"]) == 1


@pytest.mark.parametrize("kind", ["classification", "shared memory in", "shared memory out"])
def test_extensions_that_are_not_there(form, running, frames, alone, kind):
    """They are refused: an answer without them would be a wrong one."""
    form.infer("m", step(frames), sequence_id=1, sequence_start=True)
    (x,), y = form.tensors(step(frames, 1)), form.module.InferRequestedOutput("y")
    if kind == "classification":
        y = form.module.InferRequestedOutput("y", class_count=2)
    else:
        (x if kind.endswith("in") else y).set_shared_memory("region", 20)
    with pytest.raises(InferenceServerException, match=r"no (classification|shared memory)") as caught:
        form.answer("m", [x], outputs=[y], sequence_id=1)
    form.check(caught.value, INVALID)
    assert np.array_equal(form.infer("m", step(frames, 1), sequence_id=1)[0]["y"], alone[1:2])


class TestEnded:
    """A sequence that is gone, by its reason."""

    @pytest.mark.parametrize(
        ("reason", "code", "text"),
        [
            ("client", INVALID, "was ended by its client, after 2 steps"),
            ("evicted", NOT_FOUND, "was evicted, after 2 steps"),
            ("moved", NOT_FOUND, "was moved, after 2 steps"),
            ("idle", NOT_FOUND, "expired after 60 s idle, after 2 steps"),
        ],
    )
    def test_it_is_told_why(self, form, running, frames, alone, reason, code, text):
        for t in range(2):
            flags = {"sequence_start": t == 0, "sequence_end": reason == "client" and t == 1}
            form.infer("m", step(frames, t), sequence_id="s", **flags)
        if reason == "idle":
            running.do(expired(running.sequences, "s"))
        elif reason != "client":
            running.do(running.sequences.evict("s", reason))
        for _ in range(2):
            found = form.refused(code, "m", step(frames, 2), sequence_id="s")
            assert f"for sequence s to model 'm' {START}; sequence s {text}" in found
        found = form.refused(code, "m", many(frames, ["s"]))
        assert text in found
        y, _, _ = form.infer("m", step(frames), sequence_id="s", sequence_start=True, sequence_end=True)
        assert np.array_equal(y["y"][0], alone[0])


async def expired(sequences, id):
    """The time of a sequence is over."""
    sequences.resting.discard(sequences.live[id], None)
    sequences._idle(sequences.live[id])


@pytest.fixture(params=FORMS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def small(serve, model):
    with serve({"m": {1: model, 2: model}}, max_sequences=2, queue_size=2, strict_sequences=True) as server:
        yield server


@pytest.fixture
def client(kind, small):
    made = FORMS[kind](small)
    yield made
    made.close()
    for id in list(small.sequences.live):
        small.do(small.sequences.evict(id))


class TestBounds:
    """What an option refuses."""

    def test_max_sequences(self, client, frames):
        for id in (1, 2):
            client.infer("m", step(frames), sequence_id=id, sequence_start=True)
        found = client.refused("UNAVAILABLE", "m", step(frames), sequence_id=3, sequence_start=True)
        assert "sequence 3 can't start: 'm' has 2 live sequences of at most 2; try again after 1 s" in found
        rows = many(frames, [3, 4], SEQUENCE_START=[1, 1])
        assert "at most 2" in client.refused("UNAVAILABLE", "m", rows)
        client.infer("m", step(frames, 1), sequence_id=1, sequence_end=True)
        client.infer("m", step(frames), sequence_id=3, sequence_start=True)

    def test_strict_sequences(self, client, frames, alone):
        client.infer("m", step(frames), sequence_id=1, sequence_start=True)
        found = client.refused("ALREADY_EXISTS", "m", step(frames), sequence_id=1, sequence_start=True)
        assert "sequence 1 is live already: end it first, or start another id" in found
        assert np.array_equal(client.infer("m", step(frames, 1), sequence_id=1)[0]["y"][0], alone[1])

    def test_versions(self, client, frames, alone):
        client.infer("m", step(frames), sequence_id=1, sequence_start=True, model_version="1")
        client.infer("m", step(frames), sequence_id=2, sequence_start=True)
        found = client.refused(INVALID, "m", step(frames, 1), sequence_id=1, model_version="2")
        assert "sequence 1 runs on version 1 of 'm', and the request asks for version 2" in found
        found = client.refused(INVALID, "m", many(frames, [1, 2]))
        assert "the rows run on versions 1 and 2 of 'm': send them apart" in found
        result = client.answer("m", client.tensors(step(frames, 1)), sequence_id=1)
        response = result.get_response()
        assert (response["model_version"] if isinstance(response, dict) else response.model_version) == "1"
        assert np.array_equal(result.as_numpy("y")[0], alone[1])

    def test_a_full_queue(self, client, small, frames, alone):
        client.infer("m", step(frames), sequence_id=1, sequence_start=True)
        with held(small) as waiting:
            waiting += [small.submit(frames, t) for t in range(1, 4)]
            until(lambda: len(small.sequences.live[1].waiting) == 2)
            if "stream" not in type(client).__name__.lower():  # streams stop reading instead
                found = client.refused("RESOURCE_EXHAUSTED", "m", step(frames, 4), sequence_id=1)
                assert "sequence 1 has 2 requests waiting: send it again after 1 s" in found
        for t in range(1, 4):
            assert np.array_equal(waiting[t - 1].result(30).outputs["y"][0], alone[t])
        assert np.array_equal(client.infer("m", step(frames, 4), sequence_id=1)[0]["y"][0], alone[4])

    def test_a_timeout(self, client, small, frames, alone):
        for id in (1, 2):
            client.infer("m", step(frames), sequence_id=id, sequence_start=True)
        with held(small) as waiting:
            waiting.append(small.submit(frames, 1, id=2))  # the tick that is held has this one alone
            until(lambda: small.sequences.live[2].running is not None and small.sequences.live[2].running.taken)
            found = client.refused("DEADLINE_EXCEEDED", "m", step(frames, 1), sequence_id=1, timeout=1000)
            assert "no tick took the request in 0.001 s: its state is unchanged, so it can be sent again" in found
        assert np.array_equal(client.infer("m", step(frames, 1), sequence_id=1)[0]["y"][0], alone[1])

    def test_draining(self, serve, model, kind, frames, alone):
        with serve({"m": model}) as server:
            client = FORMS[kind](server)
            client.infer("m", step(frames), sequence_id=1, sequence_start=True)
            server.do(server.server.drain(0.0))
            found = client.refused("UNAVAILABLE", "m", step(frames), sequence_id=2, sequence_start=True)
            assert re.search("sequence 2: this server is draining.* after 1 s", found), found
            assert not client.do("is_server_ready")
            assert client.do("is_server_live")
            assert np.array_equal(client.infer("m", step(frames, 1), sequence_id=1)[0]["y"][0], alone[1])
            client.close()


@contextlib.contextmanager
def held(server):
    """The engine of the latest version stands meanwhile. Yields a list for what waits; `server.submit` adds to it."""
    free, lane = threading.Event(), server.sequences.live[1].lane

    def submit(frames, t, id=1):
        return server.start(server.sequences.run(Call((id,), (False,), (False,), {"x": frames[t : t + 1]})))

    server.submit = submit
    busy = server.start(lane.call(free.wait, 30))
    try:
        yield []
    finally:
        free.set()
        busy.result(30)

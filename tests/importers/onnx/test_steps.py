"""What one step of a stream is, in a file whose states the caller passes: a step of time, a window, a chunk."""

import numpy as np
import onnx
import pytest
from decoder_steps import decoder
from onnx import numpy_helper
from onnx_text import model

import fastrnn

ort = pytest.importorskip("onnxruntime")


def named(info):
    return [str(d) for d in info.dims]


@pytest.mark.parametrize(("x", "own"), [("b,5", ["batch", "5"]), ("b,1,5", ["batch", "1", "5"])])
def test_a_memory_of_open_length_is_no_time(x, own):
    loaded = fastrnn.from_onnx(decoder(x=x))
    assert [named(info) for info in loaded.inputs[:2]] == [own, ["batch", "size", "7"]]
    assert loaded.streamable
    assert any("a call is one step, whose states the caller threads: its length (size)" in n for n in loaded.notes)


def test_steps_of_time_beside_a_memory():
    loaded = fastrnn.from_onnx(decoder(x="b,t,5"))
    assert named(loaded.inputs[0]) == ["batch", "time", "5"]
    assert "time" not in named(loaded.inputs[1])
    assert loaded.streamable


# A window of samples: frames, an LSTM over them from the caller's states, and one number for the window.
WINDOW = (
    """(float[b,{samples}] x, float[1,b,2] h, float[1,b,2] c) => (float[b,1] y, float[1,b,2] hn, float[1,b,2] cn)"""
)
FRAMES = """x3 = Unsqueeze(x, i1) f = Conv <strides = [4]> (x3, K) r = Relu(f) s = Transpose <perm = [2, 0, 1]> (r)
    z, hn, cn = LSTM <hidden_size = 2> (s, W, R, , , h, c) z3 = Squeeze(z, i1)
    m = ReduceMean <axes = [0], keepdims = 0> (z3)
    y = MatMul(m, V)"""


def window(samples, direction=""):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {WINDOW.format(samples=samples)} {{ {FRAMES} }}'
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    arrays = {"W": (1, 8, 3), "R": (1, 8, 2), "K": (3, 1, 8), "V": (2, 1)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in arrays.items()} | {"i1": np.int64([1])}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items())
    for node in made.graph.node:
        if node.op_type == "LSTM" and direction:
            node.attribute.append(onnx.helper.make_attribute("direction", direction))
    return made


def streams_as_onnxruntime(made, xs, states, loaded=None):
    """xs [steps, batch, ...]: each is one call of the file, and one step of the stream."""
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    loaded = loaded or fastrnn.from_onnx(made)
    assert dict(loaded.graph.states) == states
    stream = loaded.stream(batch_size=xs.shape[1])
    shapes = {i.name: [n if isinstance(n, int) else xs.shape[1] for n in i.shape] for i in session.get_inputs()}
    now = {name: np.zeros(shapes[name], np.float32) for name in states}
    names = [o.name for o in session.get_outputs() if o.name not in states.values()]
    for x in xs:
        (*want,) = session.run([*names, *states.values()], {"x": x, **now})
        now = dict(zip(states, want[len(names) :], strict=True))
        np.testing.assert_allclose(stream.step(x), want[0], rtol=1e-4, atol=1e-5)
    lone = loaded.stream()
    for x in xs:
        lone.step(x[0])
    for name, value in lone.state.items():
        axis = shapes[name].index(xs.shape[1])
        np.testing.assert_allclose(value, now[name].take([0], axis), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", ["n", "20"])
def test_a_window_of_samples_is_one_step(samples):
    """The mean of the frames of one call: with samples as time it would be the mean of all so far."""
    made = window(samples)
    xs = np.random.default_rng(1).standard_normal((4, 3, 20)).astype(np.float32)
    streams_as_onnxruntime(made, xs, {"h": "hn", "c": "cn"})


def test_the_last_of_several_steps_may_be_taken_one_by_one():
    """[batch, time, features] are steps, though only the last one comes out: a stream takes each."""
    signature = "(float[b,t,3] x, float[1,b,2] h) => (float[1,b,2] hn, float[b,2] y)"
    body = "s = Transpose <perm = [1, 0, 2]> (x) z, hn = RNN <hidden_size = 2> (s, W, R, , , h) y = Squeeze(hn, i0)"
    loaded = fastrnn.from_onnx(model(signature, body, i0=np.int64([0])))
    assert named(loaded.inputs[0]) == ["batch", "time", "3"]
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    want = loaded.run(x[None], np.zeros((1, 1, 2), np.float32))[1][0]
    stream = loaded.stream()
    assert [stream.step(step) for step in x][-1].tobytes() == want.tobytes()


CHUNK = "(float[b,{T},3] x, float[b,4,3] cache) => (float[b,{T},2] y, float[b,4,3] cache_out)"
CACHED = """all = Concat <axis = 1> (cache, x) a = Transpose <perm = [0, 2, 1]> (all) k = Conv (a, K)
    f = Transpose <perm = [0, 2, 1]> (k) y = Tanh(f) cache_out = Slice(all, from, end, i1)"""


def cached(T, body=CACHED, **constants):
    kernel = np.random.default_rng(2).standard_normal((2, 3, 5)).astype(np.float32)
    constants |= {"from": np.int64([-4]), "end": np.int64([1 << 62])}
    return model(CHUNK.format(T=T), body, K=kernel, i1=np.int64([1]), **constants)


@pytest.mark.parametrize(("T", "steps"), [("5", 5), ("1", 1)])
def test_a_chunk_whose_cache_the_caller_keeps_is_one_step(T, steps):
    """Its length is a number in the file."""
    xs = np.random.default_rng(1).standard_normal((4, 3, steps, 3)).astype(np.float32)
    streams_as_onnxruntime(cached(T), xs, {"cache": "cache_out"})


def test_a_chunk_of_open_length_behind_its_cache_is_taken_step_by_step():
    made = cached("t")
    loaded = fastrnn.from_onnx(made)
    assert named(loaded.inputs[0]) == ["batch", "time", "3"]
    assert dict(loaded.graph.states) == {"cache": "cache_out"}
    x = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    cache, stream, chunked = np.zeros((1, 4, 3), np.float32), loaded.stream(), loaded.stream()
    for begin, end in ((0, 1), (1, 9), (9, 11), (11, 20)):
        want, cache = session.run(["y", "cache_out"], {"x": x[None, begin:end], "cache": cache})
        got = chunked.push(x[begin:end])
        np.testing.assert_allclose(got, want[0], rtol=1e-4, atol=1e-5)
        assert got.tobytes() == np.stack([stream.step(row) for row in x[begin:end]]).tobytes()
        assert stream.state["cache"].tobytes() == cache[0].tobytes()


MEAN = "m = ReduceMean <axes = [1]> (f) y = Sub(f, m)"
ZEROS_BEFORE = "p = Pad(f, one_before, zero) q = Slice(p, i0, minus, i1) y = Add(f, q)"


@pytest.mark.parametrize("whole", [MEAN, ZEROS_BEFORE])
def test_a_chunk_of_open_length_that_is_seen_whole_is_one_step(whole):
    """A step takes away the mean of its chunk, or adds the step before it, which is 0 at the start of each chunk: the
    length is that of the first step."""
    body = CACHED.replace("y = Tanh(f)", whole)
    more = {"one_before": np.int64([0, 1, 0, 0, 0, 0]), "zero": np.float32(0), "i0": np.int64([0])}
    xs = np.random.default_rng(1).standard_normal((4, 3, 8, 3)).astype(np.float32)
    made = cached("t", body, minus=np.int64([-1]), **more)
    loaded = fastrnn.from_onnx(made)
    assert named(loaded.inputs[0]) == ["batch", "size", "3"]
    streams_as_onnxruntime(made, xs, {"cache": "cache_out"}, loaded)
    assert loaded.run(xs[0, :, :3], np.zeros((3, 4, 3), np.float32))[0].shape == (3, 3, 2)


def test_what_runs_back_needs_the_future_however_long_a_call_is():
    made = window("n", "reverse")
    with pytest.raises(fastrnn.StreamError, match="from the last step to the first"):
        fastrnn.from_onnx(made).stream()


@pytest.mark.parametrize("form", ["own cell", "lstm of one step", "lstm", "gru"])
def test_a_step_that_gives_nothing_but_its_states_returns_them(form):
    """All outputs are next values of states: they are the results of a step too."""
    if form == "own cell":
        signature, body = (
            "(float[b,3] x, float[b,2] y0) => (float[b,2] y1)",
            "a = MatMul(x, P) s = Add(a, y0) y1 = Tanh(s)",
        )
        made, states = model(signature, body, P=some(3, 2)), {"y0": "y1"}
    elif form == "gru":
        signature = "(float[t,b,3] x, float[1,b,2] h) => (float[1,b,2] hn)"
        made, states = model(signature, "z, hn = GRU <hidden_size = 2> (x, W3, R3, , , h)", **gates(3)), {"h": "hn"}
    else:
        steps = "t" if form == "lstm" else "1"
        signature = f"(float[{steps},b,3] x, float[1,b,2] h, float[1,b,2] c) => (float[1,b,2] hn, float[1,b,2] cn)"
        made = model(signature, "z, hn, cn = LSTM <hidden_size = 2> (x, W4, R4, , , h, c)", **gates(4))
        states = {"h": "hn", "c": "cn"}
    loaded = fastrnn.from_onnx(made)
    assert dict(loaded.graph.states) == states
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    now = {
        i.name: np.zeros([n if isinstance(n, int) else 2 for n in i.shape], np.float32) for i in session.get_inputs()
    }
    stream, xs = loaded.stream(batch_size=2), some(4, 2, 3)
    pool = loaded.pool(2)
    slots = [pool.open(), pool.open()]
    for x in xs:
        new = session.run(None, now | {"x": x[None] if form != "own cell" else x})
        now = now | dict(zip(states, new, strict=True))
        got, pooled = stream.step(x), pool.step(slots, x)
        for mine, slot, want in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, pooled)), new, strict=True):
            np.testing.assert_allclose(mine.reshape(2, 2), want.reshape(2, 2), rtol=1e-4, atol=1e-5)
            assert mine.tobytes() == slot.tobytes()
    for (name, value), want in zip(stream.state.items(), new, strict=True):
        assert name in states
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
    whole = loaded(xs if form == "lstm" or form == "gru" else xs[:1] if form != "own cell" else xs[0])
    assert (whole[0] if isinstance(whole, tuple) else whole).size == 4


def some(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def gates(n):
    return {f"W{n}": some(1, 2 * n, 3), f"R{n}": some(1, 2 * n, 2)}

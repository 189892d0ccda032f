"""Lengths of the rows: a stream does not ask for them, and each step is that of a run of the steps so far."""

import numpy as np
import pytest
from onnx_text import model

import fastrnn
from fastrnn.graph.dims import BATCH
from fastrnn.streaming.live import lengths_of, live

ort = pytest.importorskip("onnxruntime")

IN = "float[b,t,3] x, {} lengths"
LSTM = """xt = Transpose <perm = [1, 0, 2]> (x) z, h, c = LSTM <hidden_size = 2> (xt, W4, R4, , {})
    z3 = Squeeze(z, i1) out = Transpose <perm = [1, 0, 2]> (z3) """
FREE = LSTM.format("")
# (dtype of the lengths, outputs, nodes): the forms in which exporters and people use lengths
CASES = {
    "sequence_lens": ("int32[b]", "float[b,t,2] y", LSTM.format("lengths") + "y = Identity(out)"),
    "pack_padded_sequence": (
        "int64[b]",
        "float[b,t,2] y, float[1,b,2] last",
        "l32 = Cast <to = 6> (lengths) " + LSTM.format("l32") + "y = Identity(out) last = Identity(h)",
    ),
    "out[arange(b), lengths - 1]": (
        "int64[b]",
        "float[b,2] y",
        FREE
        + """s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) m = Sub(lengths, one)
        r1 = Unsqueeze(r, i1) m1 = Unsqueeze(m, i1) index = Concat <axis = 1> (r1, m1) y = GatherND(out, index)""",
    ),
    "gather at lengths - 1": (
        "int64[b]",
        "float[b,2] y",
        FREE
        + """m = Sub(lengths, one) m1 = Unsqueeze(m, i1) m2 = Unsqueeze(m1, i2) s = Shape(x)
        n = Slice(s, i0, i1, i0) shape = Concat <axis = 0> (n, i1, two) e = Expand(m2, shape)
        g = GatherElements <axis = 1> (out, e) y = Squeeze(g, i1)""",
    ),
    "mask of positions": (
        "int64[b]",
        "float[b,t,2] y",
        FREE
        + """s = Shape(x) n = Gather(s, one) r = Range(zero, n, one) r1 = Unsqueeze(r, i0)
        l1 = Unsqueeze(lengths, i1) mask = Less(r1, l1) f = Cast <to = 1> (mask) f3 = Unsqueeze(f, i2)
        y = Mul(out, f3)""",
    ),
    "where": (
        "int32[b]",
        "float[b,t,2] y",
        FREE
        + """s = Shape(x) n = Gather(s, one) r = Range(zero, n, one) r1 = Unsqueeze(r, i0) l = Cast <to = 7> (lengths)
        l1 = Unsqueeze(l, i1) off = GreaterOrEqual(r1, l1) off3 = Unsqueeze(off, i2) y = Where(off3, low, out)""",
    ),
    "all of it": (
        "int64[b]",
        "float[b,2] y, float[b,t,2] all",
        "l32 = Cast <to = 6> (lengths) "
        + LSTM.format("l32")
        + """s = Shape(x) n = Gather(s, one)
        r = Range(zero, n, one) r1 = Unsqueeze(r, i0) l1 = Unsqueeze(lengths, i1) mask = Less(r1, l1)
        f = Cast <to = 1> (mask) f3 = Unsqueeze(f, i2) all = Mul(out, f3) m = Sub(lengths, one) m1 = Unsqueeze(m, i1)
        m2 = Unsqueeze(m1, i2) n0 = Slice(s, i0, i1, i0) shape = Concat <axis = 0> (n0, i1, two) e = Expand(m2, shape)
        g = GatherElements <axis = 1> (all, e) y = Squeeze(g, i1)""",
    ),
}
OTHER = {
    "a mean over the lengths": FREE
    + """t = ReduceSum <keepdims = 0> (out, i1) f = Cast <to = 1> (lengths)
        f1 = Unsqueeze(f, i1) y = Div(t, f1)""",
    "the step before the last": FREE
    + """m = Sub(lengths, two0) m1 = Unsqueeze(m, i1) m2 = Unsqueeze(m1, i2) s = Shape(x)
        n = Slice(s, i0, i1, i0) shape = Concat <axis = 0> (n, i1, two) e = Expand(m2, shape)
        g = GatherElements <axis = 1> (out, e) y = Squeeze(g, i1)""",
    "a row of a table": """e = Gather(table, lengths) t = ReduceSum <keepdims = 0> (x, i1) d = MatMul(t, P)
        y = Add(d, e)""",
    "a language": FREE
    + """same = Equal(lengths, zero) f = Cast <to = 1> (same) f1 = Unsqueeze(f, i1)
        t = ReduceSum <keepdims = 0> (out, i1) y = Mul(t, f1)""",
    "a language at each step": FREE
    + """same = Equal(lengths, zero) f = Cast <to = 1> (same) f1 = Unsqueeze(f, i1)
        s = Shape(x) n = Slice(s, i0, i2, i0) fe = Expand(f1, n) f3 = Unsqueeze(fe, i2) o = Mul(out, f3)
        y = ReduceSum <keepdims = 0> (o, i1)""",
    "a limit far away": FREE
    + """s = Shape(x) n = Gather(s, one) r = Range(zero, n, one) r1 = Unsqueeze(r, i0)
        far = Add(lengths, two) l1 = Unsqueeze(far, i1) mask = Less(r1, l1) f = Cast <to = 1> (mask)
        f3 = Unsqueeze(f, i2) o = Mul(out, f3) y = ReduceSum <keepdims = 0> (o, i1)""",
    "the lengths come out": FREE + "y = ReduceSum <keepdims = 0> (out, i1) again = Identity(lengths)",
}


def made(lengths, outputs, body):
    rng = np.random.default_rng(5)
    arrays = {"W4": (1, 8, 3), "R4": (1, 8, 2), "table": (99, 2), "P": (3, 2)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in arrays.items()}
    arrays |= {f"i{k}": np.int64([k]) for k in range(3)}
    arrays |= {"zero": np.int64(0), "one": np.int64(1), "two": np.int64([2]), "two0": np.int64(2)}
    return model(f"({IN.format(lengths)}) => ({outputs})", body, low=np.float32(-9), **arrays)


def some(steps, batch=3):
    return np.random.default_rng(steps).standard_normal((batch, steps, 3)).astype(np.float32)


def is_sequence(info):
    return "time" in info.dims


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_is_a_run_of_the_steps_so_far(name, batch):
    lengths, outputs, body = CASES[name]
    proto = made(lengths, outputs, body)
    loaded = fastrnn.from_onnx(proto)
    assert (
        "a stream does not ask for lengths, the lengths of the rows: every step that it takes is live" in loaded.notes
    )
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    kind = np.int32 if lengths.startswith("int32") else np.int64
    x = some(7, batch)
    streams = loaded.stream(batch_size=batch), [loaded.stream() for _ in range(batch)]
    for t in range(x.shape[1]):
        got = streams[0].step(x[:, t])
        alone = [s.step(x[i, t]) for i, s in enumerate(streams[1])]
        want = session.run(None, {"x": x[:, : t + 1], "lengths": np.full(batch, t + 1, kind)})
        for k, info in enumerate(loaded.outputs):
            mine = got[k] if isinstance(got, tuple) else got
            here = want[k][:, t] if is_sequence(info) else want[k]
            np.testing.assert_allclose(np.squeeze(mine), np.squeeze(here), rtol=1e-4, atol=1e-5)
            lone = np.stack([np.squeeze(a[k] if isinstance(a, tuple) else a) for a in alone])
            assert lone.tobytes() == np.ascontiguousarray(mine).tobytes()
    pushed = loaded.stream(batch_size=batch).push(x)
    whole = loaded.run(x, np.full(batch, x.shape[1], kind))
    for mine, want_all in zip(pushed if isinstance(pushed, tuple) else (pushed,), whole, strict=True):
        assert np.squeeze(mine).tobytes() == np.squeeze(want_all).tobytes()


@pytest.mark.parametrize("name", sorted(CASES))
def test_runs_and_pools_beside_it(name):
    """`run` takes lengths as before; rows of other lengths are as onnxruntime has them."""
    lengths, outputs, body = CASES[name]
    proto = made(lengths, outputs, body)
    loaded = fastrnn.from_onnx(proto)
    assert [i.name for i in loaded.inputs] == ["x", "lengths"]
    kind = np.int32 if lengths.startswith("int32") else np.int64
    feeds = {"x": some(6), "lengths": np.array([6, 2, 4], kind)}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(loaded.run(**feeds), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    pool = loaded.pool(4)
    slots = [pool.open() for _ in range(3)]
    chunks = [feeds["x"][0], feeds["x"][1, :2], feeds["x"][2, :4]]
    for chunk, y in zip(chunks, pool.push(slots, chunks), strict=True):
        lone = loaded.stream().push(chunk)
        pairs = zip(y, lone, strict=True) if isinstance(y, tuple) else [(y, lone)]
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_lengths_that_do_more_stay_an_input(name):
    outputs = "float[b,2] y, int64[b] again" if "again" in OTHER[name] else "float[b,2] y"
    graph = fastrnn.from_onnx(made("int64[b]", outputs, OTHER[name])).graph
    assert lengths_of(graph) == ()
    assert live(graph) is graph
    assert not any("does not ask" in note for note in graph.notes)


def test_what_runs_back_is_refused_for_that():
    body = """xt = Transpose <perm = [1, 0, 2]> (x)
        y, h, c = LSTM <hidden_size = 2, direction = "reverse"> (xt, W4, R4, , lengths)"""
    loaded = fastrnn.from_onnx(made("int32[b]", "float[t,1,b,2] y", body))
    assert not loaded.streamable
    with pytest.raises(fastrnn.StreamError, match="from the last step to the first") as caught:
        loaded.stream()
    assert "sequence lengths" not in str(caught.value)


def test_a_saved_model_streams_alike(tmp_path):
    loaded = fastrnn.from_onnx(made(*CASES["sequence_lens"]))
    loaded.save(tmp_path / "m.fastrnn")
    x = some(5, 1)[0]
    assert fastrnn.load(tmp_path / "m.fastrnn").stream().push(x).tobytes() == loaded.stream().push(x).tobytes()


def test_lengths_can_not_be_bound():
    loaded = fastrnn.from_onnx(made(*CASES["sequence_lens"]))
    assert BATCH in loaded.graph.values["lengths"].dims
    with pytest.raises(fastrnn.ShapeError, match="'lengths' holds lengths, which a stream does not take"):
        loaded.stream(bind={"lengths": np.int32([3])})

"""Loops that count, stop early, build lists and branch, against onnxruntime at several lengths and batches."""

import numpy as np
import onnx
import onnxruntime
import pytest
from loop_models import EXPORTED, answers, array, model, same
from onnx import parser

import fastrnn
from fastrnn import ShapeError, UnsupportedError

SIZES = ((1, 1), (2, 3), (3, 1), (7, 2), (12, 5))


def text(signature: str, body: str, opset: int = 17) -> onnx.ModelProto:
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {signature} {{ {body} }}')
    onnx.checker.check_model(made)
    return made


def agree(proto, feeds, loaded=None):
    """The same numbers, shapes and dtypes as onnxruntime's."""
    loaded = loaded or fastrnn.from_onnx(proto)
    wanted = answers(proto, feeds)
    found = loaded.run(**feeds)
    for got, want in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert got.dtype == want.dtype
        if not want.size:  # if there are no steps, onnxruntime returns no rows
            assert got.shape[0] == want.shape[0] == 0
            continue
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5 * max(1, np.abs(want).max()))
    return loaded


@pytest.mark.parametrize("name", sorted(p.stem for p in EXPORTED.glob("control_*.onnx")))
def test_what_pytorch_exports(name):
    proto = onnx.load(EXPORTED / f"{name}.onnx")
    loaded = fastrnn.from_onnx(proto)
    for steps, batch in SIZES:
        for _ in range(3):  # conditions on data end at several steps
            agree(proto, {"x": array(steps, batch, 3)}, loaded)


def test_a_loop_with_branches_streams():
    loaded = fastrnn.load(EXPORTED / "control_even_odd.onnx")
    x, stream = array(9, 1, 3), loaded.stream()
    for t in range(9):
        np.testing.assert_array_equal(stream.step(x[t, 0]), np.reshape(loaded.run(x=x[: t + 1]), 4))


def test_a_loop_that_carries_integers_streams():
    """The index chosen in the last step, a count and a counter: the bits of the whole run, at every batch."""
    loaded = fastrnn.load(EXPORTED / "control_ids.onnx")
    x = array(9, 3, 3)
    whole = loaded.run(x=x)
    stream, alone = loaded.stream(batch_size=3), loaded.stream()
    for t in range(9):
        ids, h, count = stream.step(x[t])
        np.testing.assert_array_equal(ids, whole[0][t])
        one = alone.step(x[t, 1])
        np.testing.assert_array_equal(one[0], ids[1])
    assert (ids.dtype, count.dtype) == (np.int64, np.int64)
    np.testing.assert_array_equal(h, whole[1])
    np.testing.assert_array_equal(count, whole[2])


def test_a_loop_that_stops_keeps_its_answer_in_a_stream():
    """Once the condition is false, later steps change nothing."""
    proto = text(
        "(float[T,B,3] x, float[B,3] h0) => (float[B,3] hl)",
        """
        zero = Constant <value = int64 {0}> () shape = Shape(x) n = Gather(shape, zero)
        yes = Constant <value = bool {1}> ()
        hl = Loop <body = step (int64 i, bool go, float[B,3] h) => (bool on, float[B,3] hn) {
            xt = Gather(x, i) s = Add(h, xt) hn = Tanh(s) one = Constant <value = float {0.9}> ()
            first = Constant <value_ints = [0]> () ends = Constant <value_ints = [1]> ()
            part = Slice(hn, first, ends, ends) top = ReduceMax <keepdims = 0> (part) on = Less(top, one)
        }> (n, yes, h0)
        """,
    )
    loaded = fastrnn.from_onnx(proto)
    for steps, batch in SIZES:
        agree(proto, {"x": array(steps, batch, 3) * 2, "h0": np.zeros((batch, 3), np.float32)}, loaded)


@pytest.mark.parametrize(("count", "first"), [(0, 1), (5, 0), (1, 1), (3, 1)])
def test_few_steps_or_none(count, first):
    proto = text(
        "(float[B,3] h0) => (float[B,3] hl, int64 k, float[K,B,3] ys)",
        f"""
        n = Constant <value = int64 {{{count}}}> () first = Constant <value = bool {{{first}}}> ()
        five = Constant <value = int64 {{5}}> ()
        hl, k, ys = Loop <body = step (int64 i, bool go, float[B,3] h, int64 j)
            => (bool on, float[B,3] hn, int64 jn, float[B,3] y) {{
            on = Identity(go) hn = Tanh(h) y = Add(h, hn) two = Constant <value = int64 {{2}}> () jn = Sub(j, two)
        }}> (n, first, h0, five)
        """,
    )
    for batch in (1, 2, 5):
        agree(proto, {"h0": array(batch, 3)})


def test_an_input_that_decides_the_steps_selects_a_model():
    """As in onnx's own case loop_11: the trip count is an input."""
    proto = text(
        "(int64 n, float[B,3] h0) => (float[K,B,3] ys)",
        """
        yes = Constant <value = bool {1}> ()
        hl, ys = Loop <body = step (int64 i, bool go, float[B,3] h) => (bool on, float[B,3] hn, float[B,3] y) {
            on = Identity(go) hn = Tanh(h) y = Identity(hn)
        }> (n, yes, h0)
        """,
    )
    loaded, h0 = fastrnn.from_onnx(proto), array(2, 3)
    for count in (4, 2, 0, 4):
        want = answers(proto, {"n": np.array(count), "h0": h0})[0]
        np.testing.assert_allclose(loaded.run(n=np.array(count), h0=h0)[0], want.reshape(count, 2, 3), atol=1e-6)


def test_a_loop_whose_steps_are_computed_from_data_is_refused():
    proto = text(
        "(float[B,3] h0) => (float[B,3] hl)",
        """
        m = ReduceMax <keepdims = 0> (h0) n = Cast <to = 7> (m) yes = Constant <value = bool {1}> ()
        hl = Loop <body = step (int64 i, bool go, float[B,3] h) => (bool on, float[B,3] hn) {
            on = Identity(go) hn = Tanh(h)
        }> (n, yes, h0)
        """,
    )
    with pytest.raises(UnsupportedError, match="trip count is computed from data; give the loop a largest number"):
        fastrnn.from_onnx(proto)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_scan_of_opset_8_runs_over_rows(turned):
    proto = text(
        "(float[B,2] initial, float[B,T,2] x) => (float[B,2] y, float[B,T,3] z)",
        f"""
        y, z = Scan <num_scan_inputs = 1, directions = [{turned}], body = row (float[2] h, float[2] xt)
            => (float[2] hn, float[3] o) {{
            W = Constant <value = float[2,2] {{0.3, -0.5, 0.2, 0.7}}> ()
            V = Constant <value = float[2,3] {{0.3, -0.5, 0.2, 0.7, 0.1, 0.4}}> ()
            a = MatMul(h, W) b = Add(a, xt) hn = Tanh(b) o = MatMul(hn, V)
        }}> (, initial, x)
        """,
        opset=8,
    )
    loaded = fastrnn.from_onnx(proto)
    for steps, batch in SIZES:
        agree(proto, {"initial": array(batch, 2), "x": array(batch, steps, 2)}, loaded)


def test_an_if_on_data_selects():
    proto = text(
        "(float[B,3] x) => (float[B,3] y)",
        """
        s = ReduceSum <keepdims = 0> (x) zero = Constant <value = float {0.0}> () c = Greater(s, zero)
        y = If (c) <then_branch = g1 () => (float[B,3] a) { a = Tanh(x) },
                    else_branch = g2 () => (float[B,3] b) { n = Neg(x) b = Exp(n) }>
        """,
    )
    loaded = fastrnn.from_onnx(proto)
    for batch in (1, 2, 5):
        for sign in (1, -1):
            agree(proto, {"x": sign * np.abs(array(batch, 3))}, loaded)


def test_an_if_on_data_between_shapes_is_refused():
    proto = text(
        "(float[B,4] x) => (float[C,D] y)",
        """
        s = ReduceSum <keepdims = 0> (x) zero = Constant <value = float {0.0}> () c = Greater(s, zero)
        y = If (c) <then_branch = g1 () => (float[C,D] a) { a = Tanh(x) }, else_branch = g2 () => (float[C,D] b) {
            i = Constant <value_ints = [0]> () j = Constant <value_ints = [1]> () b = Slice(x, i, j, j) }>
        """,
    )
    with pytest.raises(UnsupportedError, match=r"its branches give .* elements; make both give the same shape"):
        fastrnn.from_onnx(proto)


SEQUENCES = """
    i = Constant <value = int64 {1}> () last = Constant <value = int64 {-1}> () zero = Constant <value = int64 {0}> ()
    cut = Constant <value_ints = [2, 3]> ()
    a = SequenceConstruct(x, y) b = SequenceInsert(a, x, i) c = SequenceErase(b, zero) d = SequenceInsert(c, y, last)
    p = SequenceAt(d, i) q = ConcatFromSequence <axis = 1, new_axis = 1> (d)
    parts = SplitToSequence <axis = 1> (z, cut) e = SequenceAt(parts, last)
    n = SequenceLength(d) f = Cast <to = 1> (n) g = Mul(e, f)
"""


def test_sequences_that_are_put_together():
    proto = text(
        "(float[B,4] x, float[B,4] y, float[B,5] z) => (float[B,4] p, float[B,N,4] q, float[B,3] g)", SEQUENCES
    )
    loaded = fastrnn.from_onnx(proto)
    for batch in (1, 2, 5):
        agree(proto, {"x": array(batch, 4), "y": array(batch, 4), "z": array(batch, 5)}, loaded)


@pytest.mark.parametrize(
    ("change", "text_"),
    [("k = SequenceLength(list) f = Cast <to = 1> (k)", "it counts the sequence that the loop builds"),
     ("k = SequenceAt(list, i) f = ReduceSum <keepdims = 0> (k)", "it reads the sequence that the loop builds")],
)  # fmt: skip
def test_a_body_that_reads_the_sequence_it_builds_is_refused(change, text_):
    proto = text(
        "(float[T,B,3] x) => (float[S,B,3] ys)",
        """
        zero = Constant <value = int64 {0}> () shape = Shape(x) n = Gather(shape, zero)
        yes = Constant <value = bool {1}> () h0 = Gather(x, zero) start = SequenceConstruct(h0)
        out = Loop <body = step (int64 i, bool go, seq(float[B,3]) list) => (bool on, seq(float[B,3]) longer) {
            on = Identity(go) xt = Gather(x, i) CHANGE y = Mul(xt, f) longer = SequenceInsert(list, y)
        }> (n, yes, start)
        ys = ConcatFromSequence <axis = 0, new_axis = 1> (out)
        """.replace("CHANGE", change),
    )
    with pytest.raises(UnsupportedError, match=text_):
        fastrnn.from_onnx(proto)


def test_loops_after_another_and_in_each_other():
    """A loop of three rounds around the loop over the steps, and a second one over its outputs."""
    proto = model(
        "(float[T,B,4] x) => (float[T,B,4] ys, float[B,4] hl)",
        """
        zero = Constant <value = int64 {0}> () shape = Shape(x) n = Gather(shape, zero)
        yes = Constant <value = bool {1}> () three = Constant <value = int64 {3}> () h0 = Gather(x, zero)
        v = Loop <body = rounds (int64 r, bool go, float[T,B,4] u) => (bool on, float[T,B,4] w) {
            on = Identity(go)
            hi, w = Loop <body = step (int64 i, bool go2, float[B,4] h) => (bool on2, float[B,4] hn, float[B,4] y) {
                on2 = Identity(go2) ut = Gather(u, i) m = MatMul(h, R) s = Add(m, ut) t = Tanh(s) hn = Mul(t, t)
                y = Identity(hn)
            }> (n, yes, h0)
        }> (three, yes, x)
        hl, ys = Loop <body = last (int64 i, bool go, float[B,4] h) => (bool on, float[B,4] hn, float[B,4] y) {
            on = Identity(go) vt = Gather(v, i) xt = Gather(x, i) m = MatMul(vt, R) s = Add(m, xt) hn = Add(s, h)
            y = Identity(s)
        }> (n, yes, h0)
        """,
    )
    loaded = fastrnn.from_onnx(proto)
    for steps, batch in SIZES:
        same(proto, {"x": array(steps, batch, 4)}, loaded)


def test_sizes_outside_of_the_loop_are_errors():
    """The loop takes x[i + 1] and x[i]; with one step less it would read beyond the end."""
    proto = text(
        "(float[T,B,3] x, float[U,B,3] z) => (float[B,3] hl)",
        """
        zero = Constant <value = int64 {0}> () shape = Shape(z) n = Gather(shape, zero)
        yes = Constant <value = bool {1}> () h0 = Gather(x, zero)
        hl = Loop <body = step (int64 i, bool go, float[B,3] h) => (bool on, float[B,3] hn) {
            on = Identity(go) one = Constant <value = int64 {1}> () j = Add(i, one) xt = Gather(x, j) zt = Gather(z, i)
            s = Add(xt, zt) t = Add(s, h) hn = Tanh(t)
        }> (n, yes, h0)
        """,
    )
    try:
        loaded = fastrnn.from_onnx(proto)
    except UnsupportedError:
        return
    with pytest.raises(ShapeError):
        loaded.run(x=array(4, 2, 3), z=array(4, 2, 3))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        answers(proto, {"x": array(4, 2, 3), "z": array(4, 2, 3)})


def test_a_loop_that_is_written_out_returns_its_list_and_its_last_value():
    """The last element of the list is the carried value: one value under two names."""
    proto = text(
        "(float[B,3] h0) => (float[B,3] hl, float[4,B,3] ys, float[B,3] z)",
        """
        n = Constant <value = int64 {4}> () yes = Constant <value = bool {1}> () empty = SequenceEmpty <dtype = 1> ()
        last = Constant <value = int64 {-1}> ()
        hl, out = Loop <body = step (int64 i, bool go, float[B,3] h, seq(float[B,3]) list)
            => (bool on, float[B,3] hn, seq(float[B,3]) longer) {
            on = Identity(go) hn = Tanh(h) longer = SequenceInsert(list, hn)
        }> (n, yes, h0, empty)
        ys = ConcatFromSequence <axis = 0, new_axis = 1> (out) e = SequenceAt(out, last) z = Neg(e)
        """,
    )
    for batch in (1, 2, 5):
        agree(proto, {"h0": array(batch, 3)})

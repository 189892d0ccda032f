"""Scan and Loop against onnxruntime: every form, at the file's own length and at others, whole and streamed."""

import numpy as np
import onnx
import pytest
from loop_models import EXPORTED, W, answers, array, model, same

import fastrnn
from fastrnn import UnsupportedError

RNN_STEP = "a = MatMul(xt, W) b = MatMul(h, R) c = Add(a, b) d = Tanh(c) e = Mul(d, d) hn = Sub(d, e) y = Identity(hn)"
SCAN = (
    "hl, ys = Scan <body = step (float[B,4] h, float[B,3] xt) => (float[B,4] hn, float[B,4] y) {{ {step} }}, "
    "num_scan_inputs = 1{more}> (h0, x)"
)
SIGNATURE = "(float[T,B,3] x, float[B,4] h0) => (float[T,B,4] ys, float[B,4] hl)"


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_scan_over_time(steps):
    proto = model(SIGNATURE, SCAN.format(step=RNN_STEP, more=""))
    for batch in (1, 3):
        loaded = same(proto, {"x": array(steps, batch, 3), "h0": array(batch, 4)})
    assert [n.op for n in loaded.graph.nodes].count("state") == 1
    assert dict(loaded.graph.states) == {"h0": "hl"}


def test_a_scan_streams():
    proto = model(SIGNATURE, SCAN.format(step=RNN_STEP, more=""))
    loaded = fastrnn.from_onnx(proto)
    x, h0 = array(9, 2, 3), array(2, 4)
    want, last = answers(proto, {"x": x, "h0": h0})
    stream = loaded.stream(batch_size=2)
    assert [(s.name, s.dims) for s in loaded.states] == [("h0", ("batch", 4))]
    stream.state = {"h0": h0}
    got = [stream.step(x[t]) for t in range(4)]
    got += list(np.swapaxes(stream.push(np.swapaxes(x[4:], 0, 1)), 0, 1))
    np.testing.assert_allclose(np.stack(got), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stream.state["h0"], last, rtol=0, atol=1e-5)
    assert np.array_equal(np.stack(got), loaded.run(x=x, h0=h0)[0])


@pytest.mark.parametrize("reverse_in", [0, 1])
@pytest.mark.parametrize("reverse_out", [0, 1])
def test_axes_and_directions_of_a_scan(reverse_in, reverse_out):
    more = (
        f", scan_input_axes = [1], scan_output_axes = [-1], scan_input_directions = [{reverse_in}], "
        f"scan_output_directions = [{reverse_out}]"
    )
    proto = model(
        "(float[B,T,3] x, float[B,4] h0) => (float[B,4,T] ys, float[B,4] hl)", SCAN.format(step=RNN_STEP, more=more)
    )
    same(proto, {"x": array(3, 6, 3), "h0": array(3, 4)})
    same(proto, {"x": array(1, 2, 3), "h0": array(1, 4)})


def test_several_states_inputs_and_outputs():
    """One state is only counted, one output needs no state, one scanned input is used twice."""
    proto = model(
        "(float[T,B,3] x, float[T,B,4] u) => (float[T,B,4] ys, float[T,B,4] zs, float[B,4] cl)",
        """
        shape = Shape(x) one = Constant <value_ints = [1]> () four = Constant <value_ints = [4]> ()
        two = Constant <value_ints = [2]> () rows = Slice(shape, one, two) hs = Concat <axis = 0> (rows, four)
        zero = ConstantOfShape(hs)
        hl, cl, ys, zs = Scan <body = step (float[B,4] h, float[B,4] c, float[B,3] xt, float[B,4] ut)
            => (float[B,4] hn, float[B,4] cn, float[B,4] y, float[B,4] z) {
            a = MatMul(xt, W) b = MatMul(h, R) p = Add(a, b) q = Add(p, ut) g = Sigmoid(q) k = Mul(g, c)
            cn = Add(k, ut) t = Tanh(cn) hn = Mul(g, t) y = Identity(hn) z = Mul(a, ut)
        }, num_scan_inputs = 2> (zero, zero, x, u)
        """,
    )
    loaded = same(proto, {"x": array(6, 2, 3), "u": array(6, 2, 4)})
    assert sum(n.op == "state" for n in loaded.graph.nodes) == 2
    x, u = array(8, 1, 3), array(8, 1, 4)
    stream = loaded.stream()
    steps = [stream.step((x[t, 0], u[t, 0])) for t in range(8)]
    for got, want in zip(zip(*steps, strict=True), answers(proto, {"x": x, "u": u})[:2], strict=False):
        np.testing.assert_allclose(np.stack(got), want[:, 0], rtol=0, atol=1e-5)


def test_a_frozen_length_thaws():
    signature = "(float[5,2,3] x, float[2,4] h0) => (float[5,2,4] ys, float[2,4] hl)"
    proto = model(signature, SCAN.format(step=RNN_STEP, more="").replace("[B,", "[2,"))
    free = model(SIGNATURE, SCAN.format(step=RNN_STEP, more=""))
    loaded = same(proto, {"x": array(5, 2, 3), "h0": array(2, 4)})
    same(free, {"x": array(8, 3, 3), "h0": array(3, 4)}, loaded)


def test_everything_a_body_may_do():
    """Moves, norms, reductions, a convolution, a product with a vector, a lookup: each lifted over the steps."""
    proto = model(
        "(float[T,B,3] x, float[B,4] h0) => (float[T,B,4] ys, float[T,B,2] zs)",
        """
        hl, ys, zs = Scan <body = step (float[B,4] h, float[B,3] xt) => (float[B,4] hn, float[B,4] y, float[B,2] z) {
            ax = Constant <value_ints = [1]> () ones = Constant <value_floats = [1.0, 2.0, 0.5, 1.5]> ()
            zero = Constant <value_floats = [0.0, 0.1, 0.0, 0.2]> () pick = Constant <value_ints = [2, 0]> ()
            K = Constant <value = float[1,1,3] {0.2, 0.5, -0.3}> ()
            a = MatMul(xt, W) n = LayerNormalization(a, ones, zero) h1 = Unsqueeze(h, ax)
            k = Conv <pads = [1, 1]> (h1, K)
            k1 = Squeeze(k, ax) s = Softmax(k1) m = ReduceMax <axes = [1]> (h) v = MatMul(h, ones) v1 = Unsqueeze(v, ax)
            p = Add(n, s) q = Add(p, m) r = Mul(q, v1) hn = Tanh(r) y = Transpose <perm = [1, 0]> (hn)
            y2 = Transpose <perm = [1, 0]> (y) z = Gather <axis = 1> (hn, pick)
        }, num_scan_inputs = 1> (h0, x)
        """.replace("float[B,4] y, float[B,2] z) {", "float[B,4] y2, float[B,2] z) {"),
    )
    loaded = same(proto, {"x": array(5, 2, 3), "h0": array(2, 4)})
    same(proto, {"x": array(1, 1, 3), "h0": array(1, 4)}, loaded)


LOOP = """
    one = Constant <value = bool {1}> () zero = Constant <value = int64 {0}> ()
    shape = Shape(x) n = Gather(shape, zero)
    hl, ys = Loop <body = step (int64 i, bool go, float[B,4] h) => (bool on, float[B,4] hn, float[B,4] y) {
        on = Identity(go) xt = Gather(x, i) %s
    }> (n, one, h0)
"""


def test_a_loop_over_the_steps_of_an_input():
    proto = model(SIGNATURE, LOOP % RNN_STEP)
    loaded = same(proto, {"x": array(6, 2, 3), "h0": array(2, 4)})
    same(proto, {"x": array(1, 1, 3), "h0": array(1, 4)}, loaded)
    assert dict(loaded.graph.states) == {"h0": "hl"}
    assert np.array_equal(
        loaded.stream(batch_size=2).push(np.ones((2, 5, 3), np.float32)),
        np.swapaxes(loaded.run(x=np.ones((5, 2, 3), np.float32), h0=np.zeros((2, 4), np.float32))[0], 0, 1),
    )


def test_a_loop_whose_length_is_frozen_thaws():
    body = LOOP.replace("n = Gather(shape, zero)", "n = Constant <value = int64 {5}> ()") % RNN_STEP
    signature = "(float[5,2,3] x, float[2,4] h0) => (float[5,2,4] ys, float[2,4] hl)"
    loaded = same(model(signature, body.replace("[B,", "[2,")), {"x": array(5, 2, 3), "h0": array(2, 4)})
    same(model(SIGNATURE, LOOP % RNN_STEP), {"x": array(7, 3, 3), "h0": array(3, 4)}, loaded)


def test_the_number_of_the_step_is_a_number_too():
    step = "f = Cast <to = 1> (i) a = MatMul(xt, W) b = MatMul(h, R) c = Add(a, b) d = Mul(c, f)"
    step += " hn = Tanh(d) y = Add(hn, f)"
    same(model(SIGNATURE, LOOP % step), {"x": array(6, 2, 3), "h0": array(2, 4)})


def test_a_loop_of_a_few_steps_is_written_out():
    """Refinement: three rounds over each row, nothing of which is time."""
    proto = model(
        "(float[T,B,4] x) => (float[T,B,4] y, float[3,T,B,4] all)",
        """
        three = Constant <value = int64 {3}> () one = Constant <value = bool {1}> ()
        y, all = Loop <body = step (int64 i, bool go, float[T,B,4] v) => (bool go, float[T,B,4] w, float[T,B,4] w2) {
            f = Cast <to = 1> (i) a = MatMul(v, R) b = Add(a, f) w = Tanh(b) w2 = Identity(w)
        }> (three, one, x)
        """,
    )
    loaded = same(proto, {"x": array(5, 2, 4)})
    assert not any(n.op == "state" for n in loaded.graph.nodes)
    assert loaded.stream().push(array(4, 4)).__class__ is tuple


def test_a_count_in_the_condition():
    """As tf2onnx writes a loop: the step is counted by hand and the condition compares it with the length."""
    proto = model(
        SIGNATURE,
        """
        zero = Constant <value = int64 {0}> () shape = Shape(x) n = Gather(shape, zero)
        most = Constant <value = int64 {9223372036854775807}> () first = Less(zero, n)
        last, hl, ys = Loop <body = step (int64 i, bool go, int64 k, float[B,4] h)
            => (bool on, int64 kn, float[B,4] hn, float[B,4] y) {
            u = Constant <value = int64 {1}> () kn = Add(k, u) on = Less(kn, n) xt = Gather(x, k) STEP
        }> (most, first, zero, h0)
        """.replace("STEP", RNN_STEP),
    )
    same(proto, {"x": array(6, 2, 3), "h0": array(2, 4)})


SEQUENCE = """
    one = Constant <value = bool {1}> () empty = SequenceEmpty <dtype = 1> ()
    parts = SplitToSequence <axis = 0, keepdims = 0> (x)
    n = SequenceLength(parts)
    out, hl = Loop <body = step (int64 i, bool go, seq(float[B,4]) list, float[B,4] h)
        => (bool on, seq(float[B,4]) longer, float[B,4] hn) {
        on = Identity(go) xt = SequenceAt(parts, i) %s longer = SequenceInsert(list, y)
    }> (n, one, empty, h0)
    ys = ConcatFromSequence <axis = %d, new_axis = %d> (out)
"""


@pytest.mark.parametrize(("axis", "new"), [(0, 1), (1, 1), (-1, 1), (0, 0), (1, 0)])
def test_sequences_that_grow(axis, new):
    shape = {(0, 1): "T,B,4", (1, 1): "B,T,4", (-1, 1): "B,4,T", (0, 0): "S,4", (1, 0): "B,S"}[axis, new]
    proto = model(
        f"(float[T,B,3] x, float[B,4] h0) => (float[{shape}] ys, float[B,4] hl)", SEQUENCE % (RNN_STEP, axis, new)
    )
    same(proto, {"x": array(6, 2, 3), "h0": array(2, 4)})


def test_a_known_cell_in_a_scan_is_that_cell():
    step = "a = MatMul(xt, W) b = MatMul(h, R) c = Add(a, b) hn = Tanh(c) y = Identity(hn)"
    proto = model(SIGNATURE, SCAN.format(step=step, more=""))
    loaded = same(proto, {"x": array(5, 2, 3), "h0": array(2, 4)})
    assert [n.op for n in loaded.graph.nodes if n.op in ("cell", "state")] == ["cell"]
    stream = loaded.stream(batch_size=2)
    assert list(stream.state) == ["h0"]


def refused(proto, text):
    with pytest.raises(UnsupportedError, match=text):
        fastrnn.from_onnx(proto)


def test_loops_without_an_end_are_refused():
    step = LOOP.replace(
        "on = Identity(go)",
        "l = ReduceSum <keepdims = 0> (h) lim = Constant <value = float {3.0}> () on = Less(l, lim)",
    )
    refused(model(SIGNATURE, step % RNN_STEP), "a Loop that a condition on data ends: how many outputs it has would")
    endless = LOOP.replace("n = Gather(shape, zero)", "n = Constant <value = int64 {9223372036854775807}> ()")
    refused(model(SIGNATURE, endless % RNN_STEP), "a Loop without an end; give the loop a largest number")
    both = step.replace("n = Gather(shape, zero)", "n = Constant <value = int64 {9223372036854775807}> ()")
    refused(
        model(SIGNATURE, both % RNN_STEP), r"only a condition on data ends; give the loop a largest number of steps"
    )


def test_too_many_steps_are_not_written_out():
    proto = model(
        "(float[T,B,4] x) => (float[T,B,4] y)",
        """
        many = Constant <value = int64 {1000000}> () one = Constant <value = bool {1}> ()
        y = Loop <body = step (int64 i, bool go, float[T,B,4] v) => (bool go, float[T,B,4] w) {
            w = MatMul(v, R)
        }> (many, one, x)
        """,
    )
    refused(proto, "1000000 steps of 1 nodes each")


def test_a_layer_inside_a_scan_is_refused():
    inner = (
        SCAN.format(step="hn = Add(h, xt) y = Identity(hn)", more="").replace("h0, x", "g, xs").replace("[B,3]", "[4]")
    )
    step = (
        inner.replace("hl, ys", "gl, zs").replace("[B,4]", "[4]")
        + " a = MatMul(xt, W) c = Add(a, h) hn = Tanh(c) y = Identity(hn)"
    )
    step = "g = Constant <value_floats = [0.0, 0.0, 0.0, 0.0]> () xs = MatMul(xt, W) " + step.replace(
        " c = Add(a, h)", " c = Add(zs, h)"
    )
    refused(
        model(SIGNATURE, SCAN.format(step=step, more="").replace("{{", "{").replace("}}", "}")),
        "nested cycles",
    )


def test_what_a_body_cannot_do_is_named():
    step = RNN_STEP.replace(
        "hn = Sub(d, e)", "u = NonZero(d) v = Cast <to = 1> (u) w = ReduceSum <keepdims = 0> (v) hn = Sub(d, w)"
    )
    refused(model(SIGNATURE, SCAN.format(step=step, more="")), "operator NonZero")


def test_a_step_that_fails_leaves_the_stream_as_it_was():
    """A table of 3 rows, looked up by which of 4 units is the largest: the fourth is an error when it is met."""
    step = (
        "t = Constant <value = float[3,4] {0.1, 0.2, 0.3, 0.1, 0.3, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4, 0.1}> () "
        "i = ArgMax <axis = 1, keepdims = 0> (h) e = Gather(t, i) a = MatMul(xt, W) b = Add(a, e) hn = Tanh(b) "
        "y = Identity(hn)"
    )
    proto = model(SIGNATURE, SCAN.format(step=step, more=""))
    loaded = fastrnn.from_onnx(proto)
    good = next(x for x in (array(1, 1, 3) for _ in range(99)) if np.tanh(x[0] @ W).argmax() not in (3,))
    bad = np.linalg.lstsq(W.T, np.array([-5, -5, -5, 5.0]), rcond=None)[0].astype(np.float32).reshape(1, 1, 3)
    stream, other = loaded.stream(batch_size=1), loaded.stream(batch_size=1)
    assert np.array_equal(stream.push(np.swapaxes(good, 0, 1)), other.push(np.swapaxes(good, 0, 1)))
    before = stream.state["h0"].copy()
    chunk = np.swapaxes(np.concatenate([good * 0.1, bad, good, good]), 0, 1)
    for _ in range(2):
        with pytest.raises(fastrnn.ShapeError, match=r"index 3 is outside the table's \[-3, 3\)"):
            stream.push(chunk)
        assert np.array_equal(stream.state["h0"], before)
    chunk[:, 1] = good[0]
    assert np.array_equal(stream.push(chunk), other.push(chunk))


@pytest.mark.parametrize("name", sorted(p.stem for p in EXPORTED.glob("*.onnx") if not p.stem.startswith("control")))
def test_what_pytorch_exports(name):
    """Scripted loops and torch's scan: at the exported length, at others, and streamed."""
    proto = onnx.load(EXPORTED / f"{name}.onnx")
    loaded = fastrnn.from_onnx(proto)
    free = proto if "frozen" not in name else onnx.load(EXPORTED / f"{name.removesuffix('_frozen')}.onnx")
    for steps, batch in ((5, 2), (9, 1), (1, 3)):
        feeds = {"x": array(batch, steps, 3) if name == "appended" else array(steps, batch, 3)}
        feeds |= {"h": array(batch, 4)} if name == "appended" else {}
        same(free, feeds, loaded)
    x = array(7, 1, 3)
    stream = loaded.stream()
    for t in range(7):
        y = stream.step(x[t, 0])
    y = y[0] if isinstance(y, tuple) else y
    whole = loaded.run(**{"x": np.swapaxes(x, 0, 1), "h": array(1, 4) * 0} if name == "appended" else {"x": x})[0]
    assert np.array_equal(y, {"appended": whole[0, -1:].squeeze(0), "unbound": whole[0]}.get(name, whole[-1, 0]))


def test_there_are_exported_files():
    assert len(list(EXPORTED.glob("*.onnx"))) == 14


ARRAY_OF_STEPS = """
    most = Constant <value = int64 {{{steps}}}> () go = Constant <value = bool {{1}}> ()
    hl, out = Loop (most, go, h0, o0) <body = step (int64 t, bool on, float[B,4] h, float[P,B,4] o)
        => (bool again, float[B,4] hn, float[P,B,4] on_) {{
        again = Identity(on) xt = Gather <axis = 0> (x, t) a = MatMul(xt, W) b = MatMul(h, R) c = Add(a, b)
        hn = Tanh(c) old = Gather <axis = 0> (o, t) shape = Shape(old) wide = Expand(hn, shape)
        pair = Constant <value_ints = [1, 1]> () place = Reshape(t, pair)
        first = Constant <value_ints = [0]> () row = Unsqueeze(wide, first)
        on_ = ScatterND(o, place, row)
    }}>
"""


def test_steps_written_into_an_array_of_the_file_keep_their_number():
    zeros = """
        zero = Constant <value = float[1] {0.0}> () dims = Constant <value_ints = [6, 2, 4]> () o0 = Expand(zero, dims)
    """
    body = zeros + ARRAY_OF_STEPS.format(steps=6)
    proto = model("(float[6,2,3] x, float[2,4] h0) => (float[6,2,4] out)", body)
    loaded = same(proto, {"x": array(6, 2, 3), "h0": array(2, 4)})
    for steps in (1, 5, 7):
        with pytest.raises(fastrnn.ShapeError, match="writes its steps into an array of 6 places"):
            loaded.run(x=array(steps, 2, 3), h0=array(2, 4))


@pytest.mark.parametrize("rows", [2, "B"])
def test_steps_written_into_an_array_of_any_length_are_refused_with_a_cure(rows):
    zeros = """
        zero = Constant <value = float[1] {0.0}> () four = Constant <value_ints = [4]> ()
        whole = Shape(x) begin = Constant <value_ints = [0]> () end = Constant <value_ints = [2]> ()
        dims = Slice(whole, begin, end)
        all = Concat <axis = 0> (dims, four) o0 = Expand(zero, all)
        none = Constant <value = int64 {0}> () most = Gather <axis = 0> (whole, none)
    """
    body = zeros + ARRAY_OF_STEPS.format(steps=6).replace("most = Constant <value = int64 {6}> ()", "")
    proto = model(f"(float[T,{rows},3] x, float[{rows},4] h0) => (float[T,{rows},4] out)", body)
    with pytest.raises(UnsupportedError, match=r"append the steps to a list .*torch\.stack"):
        fastrnn.from_onnx(proto)


def test_the_number_of_a_step_beside_the_numbers_of_all_steps():
    """Both are one value of the graph, which the step needs before the body makes it."""
    proto = model(
        "(float[T,3] x, float[1] h0) => (float[T,3] ys)",
        """
        none = Constant <value = int64 {0}> () whole = Shape(x) most = Gather <axis = 0> (whole, none)
        go = Constant <value = bool {1}> ()
        hl, ys = Loop (most, go, h0) <body = step (int64 t, bool on, float[1] h)
            => (bool again, float[1] hn, float[3] y) {
            again = Identity(on) hn = Identity(h) number = Cast <to = 1> (t) xt = Gather <axis = 0> (x, t)
            scaled = Mul(xt, number) pair = Constant <value_ints = [1, 1]> () place = Reshape(t, pair)
            first = Constant <value_ints = [0]> () row = Unsqueeze(scaled, first) other = ScatterND(x, place, row)
            y = ReduceMax <axes = [0], keepdims = 0> (other)
        }>
        """,
    )
    loaded = same(proto, {"x": array(6, 3), "h0": array(1)})
    same(proto, {"x": array(9, 3), "h0": array(1)}, loaded)

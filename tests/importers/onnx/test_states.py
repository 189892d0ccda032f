"""States that the caller threads by hand: found by dataflow, then by name; given; ambiguous."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastrnn import loading
from fastrnn.errors import ModelFormatError, ShapeError, StateError
from fastrnn.importers.onnx import import_onnx


def model(signature, body, **constants):
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    rng = np.random.default_rng(3)
    arrays = {
        "W": rng.standard_normal((1, 8, 3)),
        "R": rng.standard_normal((1, 8, 2)),
        "U": rng.standard_normal((1, 8, 2)),
    }
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    arrays |= {f"i{k}": np.int64([k]) for k in range(4)} | {k: np.asarray(v) for k, v in constants.items()}
    used = {i for n in made.graph.node for i in n.input}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in used)
    return made


ONE = "y, {h}, {c} = LSTM <hidden_size = 2> (x, W, R, , , {h0}, {c0})"
SIGNATURE = "(float[t,b,3] x, float[1,b,2] p, float[1,b,2] q) => (float[t,1,b,2] y, float[1,b,2] r, float[1,b,2] s)"


def test_dataflow_needs_no_names():
    graph = import_onnx(model(SIGNATURE, ONE.format(h="r", c="s", h0="p", c0="q")))
    assert dict(graph.states) == {"p": "r", "q": "s"}
    crossed = import_onnx(model(SIGNATURE, ONE.format(h="s", c="r", h0="p", c0="q")))
    assert dict(crossed.states) == {"p": "s", "q": "r"}
    assert any(n == "state p -> r, found by dataflow" for n in graph.notes)


STACKED = """
    a = Slice(h0, i0, i1, i0) b1 = Slice(h0, i1, i2, i0) c = Slice(c0, i0, i1, i0) d = Slice(c0, i1, i2, i0)
    y1, h1, c1 = LSTM <hidden_size = 2> (x, W, R, , , a, c) z = Squeeze(y1, i1)
    y, h2, c2 = LSTM <hidden_size = 2> (z, U, R, , , b1, d)
    hn = Concat <axis = 0> ({order}) cn = Concat <axis = 0> (c1, c2)"""
STACKED_SIGNATURE = (
    "(float[t,b,3] x, float[2,b,2] h0, float[2,b,2] c0) => (float[t,1,b,2] y, float[2,b,2] hn, float[2,b,2] cn)"
)


def test_stacked_layers_in_one_tensor():
    graph = import_onnx(model(STACKED_SIGNATURE, STACKED.format(order="h1, h2")))
    assert dict(graph.states) == {"h0": "hn", "c0": "cn"}


def test_layers_put_together_in_another_order_are_no_state_by_dataflow():
    """hn holds layer 2 before layer 1: threading it back would give each layer the other's state."""
    signature = STACKED_SIGNATURE.replace("h0", "first").replace("hn", "final")
    body = STACKED.format(order="h2, h1").replace("h0", "first").replace("hn", "final")
    assert dict(import_onnx(model(signature, body)).states) == {"c0": "cn"}


def test_packed_and_transposed():
    """h and c of a batch-first tensor [b, 2, 2]: unpacked by transposes, packed again the same way."""
    body = """
        k = Transpose <perm = [1, 0, 2]> (state) h0 = Slice(k, i0, i1, i0) c0 = Slice(k, i1, i2, i0)
        y, h, c = LSTM <hidden_size = 2> (x, W, R, , , h0, c0)
        hc = Concat <axis = 0> (h, c) after = Transpose <perm = [1, 0, 2]> (hc)"""
    signature = "(float[t,b,3] x, float[b,2,2] state) => (float[t,1,b,2] y, float[b,2,2] after)"
    assert dict(import_onnx(model(signature, body)).states) == {"state": "after"}
    swapped = body.replace("(h, c)", "(c, h)")
    assert dict(import_onnx(model(signature, swapped)).states) == {}


def test_two_outputs_of_one_state_are_ambiguous():
    signature = SIGNATURE.replace("float[1,b,2] s)", "float[1,b,2] s, float[1,b,2] again)")
    made = model(signature, ONE.format(h="r", c="s", h0="p", c0="q") + " again = Identity(r)")
    with pytest.raises(StateError, match="'p' could continue from any of r, again"):
        import_onnx(made)
    graph = import_onnx(made, states={"p": "again", "q": "s"})
    assert dict(graph.states) == {"p": "again", "q": "s"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"nothing": "r"}, "no input 'nothing'"),
        ({"p": "nothing"}, "no output 'nothing'"),
        ({"p": "y"}, "can't continue from"),
        ({"p": "r", "q": "r"}, "named twice"),
        ({"p": "s", "q": "r"}, "'s' is the final state of a cell that starts from 'q', so it can't be the next 'p'"),
        ({"q": "r"}, "expected {'p': 'r'}"),
        ({"x": "w"}, "has a time axis"),
        ({"p": ["r"]}, "no output"),
        (3, "states must map inputs to outputs, such as {'h0': 'hn'}, got 3"),
    ],
)
def test_a_mapping_that_does_not_fit(given, text):
    signature = SIGNATURE.replace(" s)", " s, float[t,b,3] w)")
    with pytest.raises(StateError, match=text):
        import_onnx(model(signature, ONE.format(h="r", c="s", h0="p", c0="q") + " w = Tanh(x)"), states=given)


def test_what_the_file_makes_of_a_state_may_be_named():
    """r = tanh(h): not what the cell ends with by itself, but the caller may well thread it."""
    made = model(SIGNATURE, ONE.format(h="h", c="s", h0="p", c0="q") + " r = Tanh(h)")
    assert dict(import_onnx(made, states={"p": "r", "q": "s"}).states) == {"p": "r", "q": "s"}


def test_an_empty_mapping_means_none():
    graph = import_onnx(model(SIGNATURE, ONE.format(h="r", c="s", h0="p", c0="q")), states={})
    assert dict(graph.states) == {}


@pytest.mark.parametrize(
    ("before", "after", "paired"),
    [
        ("h0", "hn", True),
        ("state", "stateN", True),
        ("conv_cache", "conv_cache_out", True),
        ("in_state", "out_state", True),
        ("prev_h", "new_h", True),
        ("a", "b", False),
        ("h0", "cn", False),
    ],
)
def test_by_name_where_no_cell_holds_it(before, after, paired):
    signature = f"(float[b,3] x, float[b,3] {before}) => (float[b,3] y, float[b,3] {after})"
    graph = import_onnx(model(signature, f"{after} = Add(x, {before}) y = Tanh({after})"))
    assert dict(graph.states) == ({before: after} if paired else {})


def test_by_name_if_the_dataflow_does_not_contradict():
    signature = "(float[b,3] x, float[b,3] h0) => (float[b,3] {y}, float[b,3] hn)"
    graph = import_onnx(model(signature.format(y="y"), "hn = Tanh(x) y = Tanh(h0)"))
    assert dict(graph.states) == {"h0": "hn"}  # a step late: hn does not depend on h0, and y is data by its name
    graph = import_onnx(model(signature.format(y="k"), "hn = Tanh(x) k = Tanh(h0)"))
    assert dict(graph.states) == {}  # k depends on h0, hn does not
    assert graph.undecided == (("h0", ("k", "hn")),)


def test_by_name_leaves_an_input_for_data():
    alone = import_onnx(model("(float[b,3] x_in) => (float[b,3] x_out)", "x_out = Tanh(x_in)"))
    assert dict(alone.states) == {}


def test_bind_fixes_an_input():
    signature = "(float[t,b,3] x, int64 sr) => (float[t,1,b,2] y)"
    body = """rate = Constant <value = int64 {16000}> () same = Equal(sr, rate) f = Cast <to = 1> (same) xs = Mul(x, f)
        y, h, c = LSTM <hidden_size = 2> (xs, W, R)"""
    graph = import_onnx(model(signature, body), bind={"sr": 16000})
    assert graph.inputs == ("x",)
    assert not any(n.op in ("cast", "binary") and "equal" in str(n) for n in graph.nodes)


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        ({"rate": 1}, "no input 'rate'"),
        ({1: 1}, "no input '1'"),
        ({"sr": "fast"}, r"bind: 'sr' must be int64\[\], got 'fast'"),
        ({"sr": 1.5}, r"bind: 'sr' must be int64\[\], got 1.5"),
        ({"sr": float("nan")}, r"bind: 'sr' must be int64\[\], got nan"),
        ({"sr": [1, 2]}, r"bind: 'sr' must be int64\[\], got int64\[2\]"),
        ({"sr": [[1], [2, 3]]}, r"bind: 'sr' must be int64\[\], got \[\[1\]"),
        ({"x": np.zeros((4, 2))}, r"bind: 'x' must be float32\[t, b, 3\], got float64\[4, 2\]"),
        ({"x": np.zeros((4, 2, 5))}, r"bind: 'x' must be float32\[t, b, 3\], got float64\[4, 2, 5\]"),
        ({"x": np.full((4, 2, 3), 1e300)}, r"bind: 'x' must be float32\[t, b, 3\], got array"),
        ({"x": 1.0}, r"bind: 'x' must be float32\[t, b, 3\], got float64\[\]"),
        ([("sr", 1)], r"bind must map inputs to values, such as .*, got \[\('sr', 1\)\]"),
    ],
)
def test_a_binding_that_does_not_fit(bind, text):
    signature = "(float[t,b,3] x, int64 sr) => (float[t,1,b,2] y)"
    body = "f = Cast <to = 1> (sr) xs = Mul(x, f) y, h, c = LSTM <hidden_size = 2> (xs, W, R)"
    with pytest.raises(ShapeError, match=text):
        import_onnx(model(signature, body), bind=bind)


def test_a_binding_that_a_node_can_not_take_is_named():
    """The file leaves the features open; the cell's weights do not."""
    signature = "(float[t,b,f] x, float[1,b,2] p, float[1,b,2] q) => (float[t,1,b,2] y)"
    made = model(signature, "y, h, c = LSTM <hidden_size = 2> (x, W, R, , , p, q)")
    with pytest.raises(ModelFormatError, match=r"5 against 3.*with bind: 'x' is float64\[4, 2, 5\]"):
        import_onnx(made, bind={"x": np.zeros((4, 2, 5))})


def test_a_bound_input_fixes_the_sizes_it_shares():
    signature = "(float[t,b,3] x, float[1,b,2] p, float[1,b,2] q) => (float[t,1,b,2] y)"
    body = "y, h, c = LSTM <hidden_size = 2> (x, W, R, , , p, q)"
    graph = import_onnx(model(signature, body), bind={"p": np.ones((1, 2, 2)), "q": np.zeros((1, 2, 2))})
    assert graph.inputs == ("x",)
    assert [str(d) for d in graph.values["x"].dims] == ["time", "2", "3"]


CACHE = "(float[b,1,{T}] x, float[b,1,4] {old}) => (float[b,1,n] y, float[b,1,4] {new})"
CACHED = """all = Concat <axis = 2> ({old}, x) y = Conv (all, K) s = Shape(all)
    n = Slice(s, i2, i3, i0) from = Sub(n, four) {new} = Slice(all, from, n, i2)"""


@pytest.mark.parametrize("length", ["t", "3", "1"])
def test_a_cache_is_what_comes_out_of_its_end(length):
    """Found by dataflow: steps of the input, new ones behind them, and as many of the last. Names tell nothing."""
    names = {"old": "p", "new": "q"}
    made = model(CACHE.format(T=length, **names), CACHED.format(**names), K=np.ones((1, 1, 5), np.float32), four=[4])
    assert dict(import_onnx(made).states) == {"p": "q"}
    shorter = CACHED.replace("Slice(all, from, n, i2)", "Slice(all, i0, four, i2)").format(**names)
    made = model(CACHE.format(T=length, **names), shorter, K=np.ones((1, 1, 5), np.float32), four=[4])
    assert not import_onnx(made).states


def test_packed_inputs_joined_and_taken_apart_are_no_cache():
    body = """all = Concat <axis = 0> (p, q) a = Slice(all, i0, i1, i0) c = Slice(all, i1, i2, i0)
        y, r, s = LSTM <hidden_size = 2> (x, W, R, , , a, c)"""
    assert dict(import_onnx(model(SIGNATURE, body)).states) == {"p": "r", "q": "s"}


STEP = "(float[b,3] x, float[b,3] {old}) => (float[b,3] y, float[b,3] {new})"


@pytest.mark.parametrize(
    ("old", "new", "paired"),
    [
        ("past_key", "present_key", True),
        ("r1i", "r1o", True),
        ("h_prev", "h", True),
        ("ah", "ah2", True),
        ("input_state", "output_state", True),
        ("h", "memory", False),
        ("frame_in", "frame_out", False),
        ("audio_in", "audio_out", False),
        ("input_2", "output_2", False),
    ],
)
def test_names_of_states(old, new, paired):
    body = f"s = Add(x, {old}) {new} = Tanh(s) y = Neg(s)"
    graph = import_onnx(model(STEP.format(old=old, new=new), body))
    assert dict(graph.states) == ({old: new} if paired else {})


def test_a_frame_is_no_state_beside_one():
    signature = "(float[b,3] frame_in, float[b,3] k, float[b,3] buf_in) => (float[b,3] frame_out, float[b,3] buf_out)"
    body = "s = Add(frame_in, buf_in) buf_out = Mul(s, k) frame_out = Neg(buf_out)"
    assert dict(import_onnx(model(signature, body)).states) == {"buf_in": "buf_out"}


SLIDING = """c = Conv (x, K) s = Transpose <perm = [2, 0, 1]> (c) z, r, q = LSTM <hidden_size = 2> (s, W, R, , , p, k)
    y = Transpose <perm = [2, 0, 1, 3]> (z)"""
SLIDING_SIGNATURE = (
    "(float[b,3,{T}] x, float[1,b,2] p, float[1,b,2] k) => (float[b,{U},1,2] y, float[1,b,2] r, float[1,b,2] q)"
)


@pytest.mark.parametrize(("length", "out", "kept"), [(5, 1, True), (5, "u", True), (7, 3, False), ("t", "u", False)])
def test_a_window_that_the_caller_slides_along_is_one_step(length, out, kept):
    """Five steps in, one out, states threaded: each call is one step, and takes those five."""
    made = model(SLIDING_SIGNATURE.format(T=length, U=out), SLIDING, K=np.ones((3, 3, 5), np.float32))
    graph = loading.from_onnx(made).graph
    assert [str(d) for d in graph.values["x"].dims] == ["batch", "3", str(length) if kept else "time"]
    assert dict(graph.states) == {"p": "r", "k": "q"}
    assert any("the file is one step, whose states the caller threads" in n for n in graph.notes) == kept


ATTENDED = """z, hn, cn = LSTM <hidden_size = 2> (x, W, R, , , h, c) y = Transpose <perm = [2, 0, 1, 3]> (z)
    q = Squeeze(y, i1) all = Concat <axis = 1> (keys, q) kt = Transpose <perm = [0, 2, 1]> (all)
    score = MatMul(q, kt) weight = Softmax <axis = -1> (score) out = MatMul(weight, all)
    new_keys = Slice(all, i1, five, i1)"""


def test_a_step_with_a_cache_of_keys_keeps_its_length():
    """Freed, its step would look at all keys of a call; as the file has it, it streams."""
    signature = (
        "(float[1,b,3] x, float[1,b,2] h, float[1,b,2] c, float[b,4,2] keys)"
        " => (float[b,1,2] out, float[1,b,2] hn, float[1,b,2] cn, float[b,4,2] new_keys)"
    )
    found = loading.from_onnx(model(signature, ATTENDED, five=[5]))
    assert dict(found.graph.states) == {"h": "hn", "c": "cn", "keys": "new_keys"}
    assert [str(d) for d in found.graph.values["x"].dims] == ["1", "batch", "3"]
    rng = np.random.default_rng(1)
    stream, states = found.stream(), {"h": (1, 1, 2), "c": (1, 1, 2), "keys": (1, 4, 2)}
    states = {name: np.zeros(shape, np.float32) for name, shape in states.items()}
    for _ in range(6):
        x = rng.standard_normal((1, 1, 3)).astype(np.float32)
        out, *new = found.run(x=x, **states)
        states = dict(zip(states, new, strict=True))
        assert stream.step(x).tobytes() == out.tobytes()

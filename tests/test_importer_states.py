"""States that the caller threads by hand: found by dataflow, then by name; given; ambiguous."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

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
    assert any(n == "state p -> r" for n in graph.notes)


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
        ({"p": "s", "q": "r"}, "'s' is what a cell that starts from 'q' ends with, and can't be the next 'p'"),
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


def test_by_name_needs_dataflow_and_leaves_an_input_for_data():
    signature = "(float[b,3] x, float[b,3] h0) => (float[b,3] y, float[b,3] hn)"
    graph = import_onnx(model(signature, "hn = Tanh(x) y = Tanh(h0)"))
    assert dict(graph.states) == {}  # hn does not depend on h0
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

"""Writes at places that are computed from sizes alone, and slices and sums of open sizes, as masks of decoders have
them."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

import fastrnn

# x [b, t] written into zeros [b, n], of which the first t columns are replaced, by a grid of places.
GRID = """<ir_version: 8, opset_import: ["" : 17]>
    written (float[b,t] x, float[b,n] base) => (float[b,n] y) {
    size = Shape(x) rows = Shape <start = 0, end = 1> (x) columns = Shape <start = 1, end = 2> (x)
    r0 = Squeeze(rows) c0 = Squeeze(columns)
    own = Range(zero, r0, one) other = Range(FIRST, LAST, STEP)
    down = Unsqueeze(own, one1) a = Expand(down, size) b2 = Expand(other, size)
    a3 = Unsqueeze(a, two1) b3 = Unsqueeze(b2, two1) places = Concat <axis = -1> (a3, b3)
    y = ScatterND(base, places, x) }"""
NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "minus": np.int64(-1), "one1": np.int64([1]), "two1": np.int64([2])}


def written(first="zero", last="c0", step="one", more=""):
    text = GRID.replace("FIRST", first).replace("LAST", last).replace("STEP", step)
    file = parser.parse_model(text.replace("own = Range", f"{more} own = Range"))
    file.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in NUMBERS.items())
    return file


def test_a_block_at_the_begin_of_each_axis_is_written_at_any_size():
    import onnxruntime

    file = written()
    model = fastrnn.load(file.SerializeToString())
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for rows, t, n in ((1, 1, 1), (2, 3, 3), (3, 2, 7)):
        feeds = {"x": rng.random((rows, t), np.float32), "base": rng.random((rows, n), np.float32)}
        assert np.array_equal(model.run(**feeds)[0], session.run(None, feeds)[0])
    with pytest.raises(fastrnn.ShapeError):  # more columns than there are
        model.run(np.ones((1, 3), np.float32), np.ones((1, 2), np.float32))


@pytest.mark.parametrize("case", [{"first": "last", "last": "minus", "step": "minus", "more": "last = Sub(c0, one)"}])
def test_places_in_another_order_are_no_block(case):
    with pytest.raises(fastrnn.UnsupportedError, match="each computed place is compared with all elements"):
        fastrnn.load(written(**case).SerializeToString())


def test_a_concat_of_one_value_is_that_value():
    file = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        decoder (float[b,t,4] x, float[b,n,4] past_k) => (float[b,t,4] y, float[b,m,4] new_k) {
        held = Concat <axis = 1> (past_k) new_k = Concat <axis = 1> (held, x) y = Relu(x) }""")
    assert fastrnn.load(file.SerializeToString()).graph.states == {"past_k": "new_k"}


REST = """<ir_version: 8, opset_import: ["" : 17]>
    rest (float[b,t] x, float[b,n] past, float[b,m] mask) => (float[b,r] y) {
    n = Shape <start = 1, end = 2> (past) own = Slice(mask, n, far, one1) y = END }"""


def rest(end):
    file = parser.parse_model(REST.replace("END", end))
    numbers = {"far": np.int64([2**63 - 1]), "one1": np.int64([1])}
    file.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
    return fastrnn.load(file.SerializeToString())


def test_the_rest_of_an_open_size_from_another_on():
    """`mask[:, past:]` tells how long the mask is, once it meets the steps of the call."""
    x, past, mask = np.ones((1, 3), np.float32), np.ones((1, 4), np.float32), np.arange(7, dtype=np.float32)[None]
    model, loose = rest("Mul(x, own)"), rest("Relu(own)")
    assert model.inputs[2].dims == ("batch", "time+time_2")
    assert np.array_equal(model.run(x, past, mask)[0], mask[:, 4:])
    assert loose.inputs[2].dims == ("batch", "time_3")  # nothing tells the length
    for n in (0, 5, 7):
        assert np.array_equal(loose.run(x, np.ones((1, n), np.float32), mask)[0], mask[:, n:])
    with pytest.raises(fastrnn.ShapeError):
        loose.run(x, np.ones((1, 8), np.float32), mask)


def test_steps_of_a_cache_are_the_time_behind_other_inputs():
    file = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        decoder (float[b,e] mask, float[b,t,4] x, float[b,n,4] past_k) => (float[b,t,4] y, float[b,m,4] new_k,
        float[b,e] z) { new_k = Concat <axis = 1> (past_k, x) y = Relu(x) z = Relu(mask) }""")
    model = fastrnn.load(file.SerializeToString())
    assert [i.dims for i in model.inputs] == [("batch", "time_2"), ("batch", "time", 4), ("batch", "time_3", 4)]

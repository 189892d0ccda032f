"""Matrix states of one row or one column: their read-outs have the dims of products, so factors may end in the state
itself, or in a value that another scan makes. Such steps are right, with and without scans."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import fastrnn

CASES = {  # name -> (rows, columns, nodes that make y and after)
    "a term reads the state": (1, 7, """old = MatMul(k, S) t = Mul(old, q) kept = Mul(d, S) after = Sub(kept, t)
        rt = Transpose<perm = [0, 1, 3, 2]>(r) y = MatMul(after, rt)"""),
    "a term reads the decayed state": (1, 7, """kept = Mul(d, S) old = MatMul(k, kept) t = Mul(old, q)
        after = Add(kept, t) rt = Transpose<perm = [0, 1, 3, 2]>(r) y = MatMul(kept, rt)"""),
    "a term reads a preview": (6, 1, """o = Mul(k, r) s = Add(o, S) p = MatMul(s, r) t = Mul(p, d) kept = Mul(S, d)
        after = Add(kept, t) qt = Transpose<perm = [0, 1, 3, 2]>(q) y = MatMul(qt, after)"""),
    "a term of two read-outs": (5, 1, """old = MatMul(S, r) kept = Mul(d, S) kt = Transpose<perm = [0, 1, 3, 2]>(k)
        m = MatMul(kt, kept) t = MatMul(old, m) after = Add(t, kept) qt = Transpose<perm = [0, 1, 3, 2]>(q)
        y = MatMul(qt, after)"""),
    "one number": (1, 1, """old = MatMul(k, S) kept = Mul(d, S) t = Mul(old, q) w = Sub(r, t) o = Mul(k, w)
        after = Add(kept, o) y = Mul(after, q)"""),
}  # fmt: skip


def sources(case):
    rows, columns, nodes = CASES[case]
    column, row, S = (f"float[batch, 2, {a}, {b}]" for a, b in ((rows, 1), (1, columns), (rows, columns)))
    inputs = f"{column} k, {column} q, {row} r, {row} g"
    opset = '<ir_version: 8, opset_import: ["" : 17]>'
    step = f"{opset} g ({inputs}, {S} S) => (float[batch, 2, m, n] y, {S} after) {{ d = Sigmoid(g) {nodes} }}"
    steps = inputs.replace("float[", "float[time, ")
    whole = f"""{opset} g ({steps}) => (float[time, batch, 2, m, n] y)
        {{ shape = Shape(k) b = Slice(shape, one, two) dims = Concat<axis = 0>(b, rest) S0 = ConstantOfShape(dims)
        last, y = Scan<num_scan_inputs = 4, body = step ({S} S, {inputs})
        => ({S} after, float[batch, 2, m, n] y) {{ d = Sigmoid(g) {nodes} }}>(S0, k, q, r, g) }}"""
    made = onnx.parser.parse_model(whole)
    fixed = {"one": [1], "two": [2], "rest": [2, rows, columns]}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.int64(v), k) for k, v in fixed.items())
    return onnx.parser.parse_model(step).SerializeToString(), made.SerializeToString()


def drawn(case, *lead):
    rows, columns, _ = CASES[case]
    rng = np.random.default_rng(5)
    shapes = {"k": (rows, 1), "q": (rows, 1), "r": (1, columns), "g": (1, columns)}
    return {n: rng.normal(0, 0.5, (*lead, 2, *s)).astype(np.float32) for n, s in shapes.items()}


@pytest.mark.parametrize("case", CASES)
def test_states_of_one_row_or_column(case):
    step, whole = sources(case)
    feeds = drawn(case, 9, 2)
    (want,) = onnxruntime.InferenceSession(whole).run(None, feeds)
    model = fastrnn.load(whole)
    (y,) = model.run(**feeds)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    for streamed in (model, fastrnn.load(step, states={"S": "after"})):
        stream = streamed.stream()
        got = np.stack([stream.step({n: a[t, 1] for n, a in feeds.items()}) for t in range(9)])
        np.testing.assert_allclose(got, want[:, 1], rtol=1e-4, atol=1e-5)

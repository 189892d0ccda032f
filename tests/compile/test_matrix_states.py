"""Recurrences of matrix states are one op of the plan, in every way of writing them, as step functions and as scans:
right, and with the bits of the whole in streams and for every row."""

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn.compile.lowering import lower
from fastrnn.compile.weights import Weights
from fastrnn.graph import reference

H, K, V = 2, 5, 9
# What each way reads at a step: sizes beside the batch. All of it in one input x, cut into parts.
WIDTHS = {"q": (H, K), "k": (H, K), "v": (H, V), "g": (H, 1), "r": (H, V)}
CUTS = "xc, q, k, v, g, r"
COMMON = """kc = Unsqueeze(k, last) vr = Unsqueeze(v, before) qc = Unsqueeze(q, last) qr = Unsqueeze(q, before)
    rr = Unsqueeze(r, before) rc = Unsqueeze(r, last) d = Sigmoid(g) dc = Unsqueeze(d, last)"""
PAIR = "outer = Mul(kc, vr)"
ADD = f"{PAIR} kept = Mul(dc, S) after = Add(kept, outer)"
DOWN = "p = Mul(qc, after) y = ReduceSum<keepdims = 0>(p, a2)"
WAYS = {  # name -> (nodes, how many scans there are)
    "sums": (f"{ADD} {DOWN}", 1),
    "no decay": (f"{PAIR} after = Add(outer, S) {DOWN}", 1),
    "a constant decay": (f"{PAIR} kept = Mul(S, decays) after = Add(outer, kept) {DOWN}", 1),
    "a decay of each element": (f"{PAIR} kept = Mul(S, each) after = Add(outer, kept) {DOWN}", 1),
    "matmuls": (("outer = MatMul(kc, vr) kept = Mul(dc, S) after = Add(kept, outer) p = MatMul(qr, after) "
                "y = Squeeze(p, a2)"), 1),
    "read across": (f"{ADD} p = Mul(after, rr) y = ReduceSum<keepdims = 0>(p, a3)", 1),
    "read across by a matmul": (f"{ADD} p = MatMul(after, rc) y = Squeeze(p, a3)", 1),
    "three factors": (("t = Mul(kc, vr) outer = Mul(t, dc) kept = Mul(dc, S) after = Add(kept, outer) "
                      f"{DOWN}"), 1),
    "exponentials": ((f"{PAIR} t = Mul(dc, each) m = Neg(dc) e1 = Mul(m, each) e = Exp(e1) kept = Mul(e, S) "
                     f"after = Add(kept, outer) {DOWN}"), 1),
    "a delta rule": (("o = Mul(kc, S) old = ReduceSum<keepdims = 1>(o, a2) w = Sub(vr, old) wd = Mul(w, dc) "
                     f"outer = Mul(kc, wd) after = Add(S, outer) {DOWN}"), 2),
    "a gated delta rule": (("kept = Mul(dc, S) o = Mul(kc, kept) old = ReduceSum<keepdims = 1>(o, a2) w = Sub(vr, old) "
                           f"outer = Mul(kc, w) after = Add(kept, outer) {DOWN}"), 2),
    "taken away": (("o = Mul(kc, S) old = ReduceSum<keepdims = 1>(o, a2) w = Sub(old, vr) t = Mul(kc, w) "
                   f"outer = Mul(t, dc) after = Sub(S, outer) {DOWN}"), 2),
    "two outer products": (("kept = Mul(S, each) o = Mul(kc, S) old = ReduceSum<keepdims = 1>(o, a2) o1 = Mul(kc, old) "
                           f"o2 = Mul(qc, vr) t = Sub(kept, o1) after = Add(t, o2) {DOWN}"), 2),
    "a bonus": ((f"{ADD} b = Mul(outer, decays) s = Add(S, b) p = Mul(qc, s) y = ReduceSum<keepdims = 0>(p, a2)"), 2),
    "a bonus of the decayed state": ((f"{ADD} b = Mul(outer, decays) s = Sub(kept, b) p = Mul(s, rr) "
                                     "y = ReduceSum<keepdims = 0>(p, a3)"), 2),
    "a matrix": ((f"{PAIR} m = Tanh(outer) kept = Mul(dc, S) after = Add(m, kept) {DOWN}"), 1),
    "a matrix, read across": ((f"{PAIR} m = Tanh(outer) mm = Mul(m, kc) kept = Mul(dc, S) after = Sub(kept, mm) "
                              "p = Mul(after, rr) y = ReduceSum<keepdims = 0>(p, a3)"), 1),
    "a matrix that nothing reads": ((f"{PAIR} m = Tanh(outer) kept = Mul(dc, S) after = Add(kept, m) "
                                    "n = Neg(after) p = Mul(n, qc) y = ReduceSum<keepdims = 0>(p, a2)"), 0),
    "a bonus read with what comes after": ((f"{ADD} b = Mul(outer, decays) s = Add(S, b) t = Mul(after, qc) "
                                           "m = ReduceSum<keepdims = 1>(t, a3) p = Mul(m, s) "
                                           "y = ReduceSum<keepdims = 0>(p, a2)"), 0),
    "a decayed state of which more is made": ((f"{ADD} t = Tanh(kept) p1 = Mul(qc, t) "
                                              "y1 = ReduceSum<keepdims = 0>(p1, a2) p2 = Mul(qc, kept) "
                                              "y2 = ReduceSum<keepdims = 0>(p2, a2) y = Add(y1, y2)"), 0),
    "read twice": ((f"{ADD} {DOWN.replace('y', 'y1')} p2 = Mul(kc, after) y2 = ReduceSum<keepdims = 0>(p2, a2) "
                   "y = Add(y1, y2)"), 1),
    "what it is read with comes from it": ((f"{ADD} m = ReduceMax<axes = [3], keepdims = 1>(after) p = Mul(m, after) "
                                           "y = ReduceSum<keepdims = 0>(p, a2)"), 1),
    "no such state": (f"{PAIR} t = Tanh(S) kept = Mul(dc, t) after = Add(kept, outer) {DOWN}", 0),
}  # fmt: skip


def body_of(way):
    """The nodes of a step, and the constants that they read."""
    rng = np.random.default_rng(7)
    sizes = [int(np.prod(s)) for s in WIDTHS.values()]
    arrays = {
        "last": np.array([3], np.int64), "before": np.array([2], np.int64), "a2": np.array([2], np.int64),
        "a3": np.array([3], np.int64), "parts": np.array(sizes, np.int64),
        "decays": rng.uniform(0.5, 1, (1, H, 1, 1)).astype(np.float32),
        "each": rng.uniform(0.5, 1, (1, 1, K, V)).astype(np.float32),
    }  # fmt: skip
    names = list(WIDTHS)
    cut = f"{', '.join(n + 'f' for n in names)} = Split<axis = 1>(x, parts)"
    for name, shape in WIDTHS.items():
        arrays[f"shape_{name}"] = np.array([-1, *shape], np.int64)
        cut += f" {name} = Reshape({name}f, shape_{name})"
    return f"{cut} {COMMON} {WAYS[way][0]}", arrays


SIZE = sum(int(np.prod(s)) for s in WIDTHS.values())


def step_function(way):
    nodes, arrays = body_of(way)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {SIZE}] x, float[batch, {H}, {K}, {V}] S)
        => (float[batch, {H}, n] y, float[batch, {H}, {K}, {V}] after) {{ {nodes} }}"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def whole(way):
    """The same step in a Scan over the first axis."""
    nodes, arrays = body_of(way)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[time, batch, {SIZE}] x) => (float[time, batch, {H}, n] y)
        {{ shape = Shape(x) one = Constant<value = int64[1] {{1}}>() b = Slice(shape, one, two)
           rest = Constant<value = int64[3] {{{H}, {K}, {V}}}>() dims = Concat<axis = 0>(b, rest)
           S0 = ConstantOfShape(dims)
           last_S, y = Scan<num_scan_inputs = 1, body = step (float[batch, {SIZE}] x, float[batch, {H}, {K}, {V}] S)
           => (float[batch, {H}, {K}, {V}] after, float[batch, {H}, n] y) {{ {nodes} }}>(S0, x) }}"""
    )
    (scan,) = (n for n in model.graph.node if n.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    _states_first(body)
    arrays["two"] = np.array([2], np.int64)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def _states_first(body):
    """A Scan gives its body the states first."""
    ordered = sorted(body.input, key=lambda i: i.name == "x")
    del body.input[:]
    body.input.extend(ordered)


MOMENTUM = """o = Mul(kc, S) old = ReduceSum<keepdims = 1>(o, a2) w = Sub(old, vr) t = Mul(kc, w) outer = Mul(t, dc)
    held = Mul(decays, P) moved = Sub(held, outer) kept = Mul(dc, S) after = Add(kept, moved)"""


def with_momentum(form):
    """Titans: the update of one matrix is added to another one. form: step, or scan over the first axis."""
    nodes, arrays = body_of("sums")
    text = nodes[: nodes.index(ADD)] + MOMENTUM + " " + DOWN
    matrix = f"float[batch, {H}, {K}, {V}]"
    if form == "step":
        text = f"""g (float[batch, {SIZE}] x, {matrix} S, {matrix} P)
            => (float[batch, {H}, n] y, {matrix} after, {matrix} moved) {{ {text} }}"""
    else:
        arrays["two"] = np.array([2], np.int64)
        text = f"""g (float[time, batch, {SIZE}] x) => (float[time, batch, {H}, n] y)
            {{ shape = Shape(x) one = Constant<value = int64[1] {{1}}>() b = Slice(shape, one, two)
            rest = Constant<value = int64[3] {{{H}, {K}, {V}}}>() dims = Concat<axis = 0>(b, rest)
            S0 = ConstantOfShape(dims) P0 = ConstantOfShape(dims)
            last_S, last_P, y = Scan<num_scan_inputs = 1, body = step (float[batch, {SIZE}] x, {matrix} S, {matrix} P)
            => ({matrix} after, {matrix} moved, float[batch, {H}, n] y) {{ {text} }}>(S0, P0, x) }}"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "body":
                _states_first(attribute.g)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def kinds(model, mode):
    graph = model.graph if mode == "run" else model._compiled._stream_graph
    return [op.kind for op in lower(graph, mode, Weights()).every_op]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_function(way):
    model = fastrnn.from_onnx(step_function(way), states={"S": "after"})
    count = WAYS[way][1]
    for mode in ("run", "stream"):
        assert kinds(model, mode).count("scan") == count, mode
    if way in ("sums", "a delta rule", "read across"):  # the state stays where the slab keeps it
        assert not {"state_load", "state_store"} & set(kinds(model, "stream"))
    x, S = normal(1, 6, 3, SIZE), np.zeros((3, H, K, V), np.float32)
    exact = S.astype(np.float64)
    streams = [model.stream() for _ in range(3)]
    for t in range(6):
        alone = [model.run(x=x[t, row : row + 1], S=S[row : row + 1]) for row in range(3)]
        y, S = model.run(x=x[t], S=S)
        expected, exact = reference.run(model.graph, {"x": x[t], "S": exact})
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
        for row, stream in enumerate(streams):
            assert stream.step(x[t, row]).tobytes() == y[row].tobytes() == alone[row][0].tobytes()
            assert alone[row][1].tobytes() == S[row].tobytes()


# The sums of the others would be over all steps, rows, heads and one more axis, of which a reduction takes three.
@pytest.mark.parametrize("way", [w for w in WAYS if WAYS[w][1] and w != "what it is read with comes from it"])
def test_a_sequence(way):
    model, steps = fastrnn.from_onnx(whole(way)), fastrnn.from_onnx(step_function(way), states={"S": "after"})
    for mode in ("run", "stream"):
        assert kinds(model, mode).count("scan") == WAYS[way][1], mode
    if way == "sums":
        assert "loop" not in kinds(model, "run")
    x = normal(2, 11, 3, SIZE)
    (y,) = model.run(x=x)
    (expected,) = reference.run(model.graph, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
    S = np.zeros((3, H, K, V), np.float32)
    for t in range(11):
        one, S = steps.run(x=x[t], S=S)
        assert one.tobytes() == y[t].tobytes()
    for row in range(3):
        stream = model.stream()
        parts = [stream.push(x[a:b, row]) for a, b in ((0, 4), (4, 5), (5, 11))]
        assert np.concatenate(parts).tobytes() == np.ascontiguousarray(y[:, row]).tobytes()
    assert len(model.run(x=x[:0])[0]) == 0


def test_the_update_of_one_state_is_added_to_another_one():
    steps = fastrnn.from_onnx(with_momentum("step"), states={"S": "after", "P": "moved"})
    model = fastrnn.from_onnx(with_momentum("scan"))
    for m in (steps, model):
        for mode in ("run", "stream"):
            assert kinds(m, mode).count("scan") == 3, mode
        assert not {"state_load", "state_store"} & set(kinds(m, "stream"))
    x = normal(3, 11, 3, SIZE)
    (y,) = model.run(x=x)
    (expected,) = reference.run(model.graph, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=5e-5)
    S, P = np.zeros((2, 3, H, K, V), np.float32)
    for t in range(11):
        one, S, P = steps.run(x=x[t], S=S, P=P)
        assert one.tobytes() == y[t].tobytes()
    pool = model.pool(capacity=3)
    slots = [pool.open() for _ in range(3)]
    for t in range(11):
        assert pool.step(slots, x[t]).tobytes() == y[t].tobytes()
    for row in range(3):
        stream, stepped = model.stream(), steps.stream()
        parts = [stream.push(x[a:b, row]) for a, b in ((0, 4), (4, 5), (5, 11))]
        assert np.concatenate(parts).tobytes() == np.ascontiguousarray(y[:, row]).tobytes()
        assert np.array([stepped.step(x[t, row]) for t in range(11)]).tobytes() == y[:, row].tobytes()


@pytest.mark.parametrize("way", ["sums", "read across", "a gated delta rule", "a bonus"])
def test_threads_share_the_matrices(way):
    """A sequence that is long enough for it has the bits of one thread."""
    x = normal(4, 3000, 3, SIZE)
    one, two = (fastrnn.from_onnx(whole(way), threads=n).run(x=x)[0] for n in (1, 2))
    assert one.tobytes() == two.tobytes()

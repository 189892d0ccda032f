"""Files that write a recurrence in chunks or by doubling are read as the recurrence: any length, streams, exact."""

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn.importers.onnx import import_onnx

NOTE = "took a recurrence in parallel form step by step"
BLOCK, R, N = 3, 4, 2

# S[t] = exp(rate[t]) S[t-1] + k[t] v[t]', y[t] = q[t] S[t], in chunks of 3 steps. The decays are factors of q and k.
CHUNKS = """
    wide = Constant<value = int64[4] {0, -1, 3, 4}>() narrow = Constant<value = int64[4] {0, -1, 3, 2}>()
    flat = Constant<value = int64[3] {0, -1, 8}>() square = Constant<value = int64[4] {0, -1, 4, 2}>()
    back = Constant<value = int64[3] {0, -1, 2}>() one = Constant<value = int64 {1}>()
    two = Constant<value = int64 {2}>()
    axis2 = Constant<value = int64[1] {2}>() axis3 = Constant<value = int64[1] {3}>()
    below = Constant<value = int64 {-1}>()
    single = Constant<value = int64[4] {0, -1, 3, 1}>()
    q4 = Reshape(q, wide) k4 = Reshape(k, wide) v4 = Reshape(v, narrow) r4 = Reshape(rate, single)
    a = CumSum(r4, two) e = Exp(a) n = Neg(a) i = Exp(n) qe = Mul(q4, e) ke = Mul(k4, i)
    kt = Transpose<perm = [0, 1, 3, 2]>(ke) s = MatMul(qe, kt) m = Trilu<upper = 0>(s) inside = MatMul(m, v4)
    last = ReduceSum<keepdims = 1>(r4, axis2) w = Sub(last, a) we = Exp(w) kd = Mul(k4, we)
    kdt = Transpose<perm = [0, 1, 3, 2]>(kd) new = MatMul(kdt, v4) newf = Reshape(new, flat)
    g = CumSum(last, one) gs = Squeeze(g, axis3) x = Sub(g, last) xs = Squeeze(x, axis3)
    gt = Transpose<perm = [0, 2, 1]>(gs) d = Sub(xs, gt) de = Exp(d) dm = Trilu<upper = 0>(de, below)
    before = MatMul(dm, newf) b4 = Reshape(before, square) off = MatMul(qe, b4) both = Add(inside, off)
    y = Reshape(both, back)
"""


def parsed(inputs, nodes):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (y) {{ {nodes} }}'
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)).SerializeToString()


def chunks(length, nodes=CHUNKS):
    one = [f"float[batch, {length}, {size}] {name}" for name, size in (("q", R), ("k", R), ("v", N), ("rate", 1))]
    return parsed(", ".join(one), nodes)


def doubling(steps, shifts):
    """h[t] = a[t] h[t-1] + b[t] of `steps` steps, with pads; shifts: of the rounds."""
    text = "axis = Constant<value = int64[1] {1}>() zero = Constant<value = int64[1] {0}>() "
    text += "unit = Constant<value = float {1.0}>() nought = Constant<value = float {0.0}>() a0 = Sigmoid(a) "
    text += f"end = Constant<value = int64[1] {{{steps}}}>() "
    b, a = "b", "a0"
    for k, shift in enumerate(shifts):
        text += f"""p{k} = Constant<value = int64[6] {{0, {shift}, 0, 0, 0, 0}}>() bp{k} = Pad({b}, p{k}, nought)
            bs{k} = Slice(bp{k}, zero, end, axis) m{k} = Mul({a}, bs{k}) b{k} = Add({b}, m{k})
            ap{k} = Pad({a}, p{k}, unit) as{k} = Slice(ap{k}, zero, end, axis) a{k + 1} = Mul({a}, as{k}) """
        b, a = f"b{k}", f"a{k + 1}"
    inputs = ", ".join(f"float[batch, {steps}, 3] {name}" for name in "ab")
    return parsed(inputs, text + f"y = Identity({b})")


def drawn(names, batch, steps, decay=0.5):
    rng = np.random.default_rng(steps)
    sizes = {"q": R, "k": R, "v": N, "rate": 1, "a": 3, "b": 3}
    x = {n: rng.standard_normal((batch, steps, sizes[n])).astype(np.float32) for n in names}
    return x | ({"rate": -decay * np.abs(x["rate"])} if "rate" in x else {})


def truth(x):
    """Step by step in float64."""
    x = {n: a.astype(np.float64) for n, a in x.items()}
    if "rate" not in x:
        keep, h, out = 1 / (1 + np.exp(-x["a"])), 0.0, []
        for t in range(keep.shape[1]):
            h = keep[:, t] * h + x["b"][:, t]
            out.append(h)
        return np.stack(out, 1)
    state, out = np.zeros((len(x["q"]), R, N)), []
    for t in range(x["q"].shape[1]):
        state = np.exp(x["rate"][:, t])[..., None] * state + x["k"][:, t, :, None] * x["v"][:, t, None]
        out.append(np.einsum("br,brn->bn", x["q"][:, t], state))
    return np.stack(out, 1)


FILES = {
    "chunks, open length": (lambda: chunks("time"), "qkv"),
    "chunks, fixed length": (lambda: chunks(12), "qkv"),
    "doubling": (lambda: doubling(12, (1, 2, 4, 8)), "ab"),
}


@pytest.mark.parametrize("name", FILES)
def test_it_is_the_recurrence_at_any_length(name):
    make, names = FILES[name]
    names = [*names, "rate"] if names == "qkv" else [*names]
    model = fastrnn.load(make())
    assert any(NOTE in note for note in model.notes)
    for batch, steps in ((1, 1), (2, 3), (3, 7), (2, 200)):
        x = drawn(names, batch, steps)
        want = truth(x)
        np.testing.assert_allclose(model(**x), want, rtol=0, atol=3e-6 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("name", FILES)
def test_it_streams_with_the_bits_of_the_whole(name):
    make, names = FILES[name]
    names = [*names, "rate"] if names == "qkv" else [*names]
    model, x = fastrnn.load(make()), drawn(names, 2, 40)
    whole, pool = model(**x), model.pool(capacity=2)
    slots = [pool.open() for _ in range(2)]
    for t in range(40):
        now = {n: np.ascontiguousarray(a[:, t]) for n, a in x.items()}
        assert np.array_equal(pool.step(slots, now), whole[:, t])
    stream, at = model.stream(), 0
    for size in (1, 2, 5, 3, 29):
        part = {n: np.ascontiguousarray(a[0, at : at + size]) for n, a in x.items()}
        assert np.array_equal(stream.push(part), whole[0, at : at + size])
        at += size


def test_it_is_finite_where_the_file_is_not():
    """exp of minus the sum of three rates of -60 is beyond float32."""
    ort = pytest.importorskip("onnxruntime", reason="the file's own arithmetic is onnxruntime's")
    x = drawn([*"qkv"], 2, 12) | {"rate": np.full((2, 12, 1), -60.0, np.float32)}
    (file,) = ort.InferenceSession(chunks("time"), providers=["CPUExecutionProvider"]).run(None, x)
    assert not np.isfinite(file).all()
    np.testing.assert_allclose(fastrnn.load(chunks("time"))(**x), truth(x), rtol=0, atol=1e-5)


NEAR = {
    "the last round is missing": lambda: doubling(12, (1, 2, 4)),
    "a guard in a divisor": lambda: chunks("time", CHUNKS.replace("i = Exp(n)", _GUARD)),
    "sees one step ahead": lambda: chunks("time", CHUNKS.replace("Trilu<upper = 0>(s)", "Trilu<upper = 0>(s, one)")),
    "no decay between chunks": lambda: chunks("time", CHUNKS.replace("de = Exp(d)", "nd = Sub(d, d) de = Exp(nd)")),
    "a clamped sum": lambda: chunks("time", CHUNKS.replace("a = CumSum(r4, two)", _CLIP)),
}
_GUARD = "tiny = Constant<value = float {1e-12}>() h = Add(e, tiny) i = Reciprocal(h)"
_CLIP = """low = Constant<value = float {-50.0}>() high = Constant<value = float {0.0}>() c = CumSum(r4, two)
    a = Clip(c, low, high)"""


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_stay_as_the_file_has_them(name):
    content = NEAR[name]()
    graph = import_onnx(content)
    assert not any(NOTE in note for note in graph.notes)
    assert not any(n.op == "state" for n in graph.nodes)
    ort = pytest.importorskip("onnxruntime", reason="answers are compared with onnxruntime")
    x = drawn("ab" if "round" in name else [*"qkv", "rate"], 2, 12)
    (want,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, x)
    np.testing.assert_allclose(fastrnn.load(content)(**x), want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_a_convolution_by_fourier_transforms_says_what_to_do():
    """Its kernel is as long as the sequence: nothing says which recurrence made it."""
    nodes = """last = Constant<value = int64[1] {3}>() twice = Constant<value = int64 {32}>()
        start = Constant<value = int64[1] {0}>() end = Constant<value = int64[1] {16}>()
        axis = Constant<value = int64[1] {1}>() one = Constant<value = int64[1] {1}>()
        xs = Unsqueeze(x, last) s = DFT<axis = 1>(xs, twice) d = Mul(s, s) i = DFT<axis = 1, inverse = 1>(d, twice)
        real = Slice(i, start, one, last) cut = Slice(real, start, end, axis) y = Squeeze(cut, last)"""
    model = fastrnn.load(parsed("float[batch, 16, 3] x", nodes))
    assert model(np.zeros((2, 16, 3), np.float32)).shape == (2, 16, 3)
    with pytest.raises(fastrnn.StreamError, match="computed by DFT can't be streamed: export the recurrence"):
        model.stream()

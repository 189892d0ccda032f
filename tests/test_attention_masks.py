"""Masks of scores, as programs write them, against onnxruntime: rows in which no key is seen among them.

`Where(mask, s, -1e4)` replaces a score, it does not lower it: softmax over a row of nothing but replaced scores is
uniform. A mask that is added stays an addition, with the rounding that float32 has there.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn import reference

ort = pytest.importorskip("onnxruntime", reason="masks are compared with onnxruntime, which is not installed")

SIZES = [(2, 7), (3, 1), (1, 12), (4, 19)]
LOWEST = float(np.finfo(np.float32).min)
FILLS = (-1e4, -1e9, LOWEST, -np.inf, -100.0)
INPUTS = {"key": "bool[batch, time] key", "row": "bool[batch, time] row", "len": "int64[batch] len"}
# name -> nodes that make the bool mask m_<name> (True: the key is seen), broadcast to [batch, 1, time, time]
MASKS = {
    "key": "k3 = Unsqueeze(key, a12) m_key = Identity(k3)",
    "row": "r3 = Unsqueeze(row, a13) m_row = Identity(r3)",
    "both": "k4 = Unsqueeze(key, a12) r4 = Unsqueeze(row, a13) m_both = And(k4, r4)",
    "either": "k5 = Unsqueeze(key, a12) r5 = Unsqueeze(row, a13) m_either = Or(k5, r5)",
    "len": "l2 = Unsqueeze(len, a1) l3 = Less(steps, l2) m_len = Unsqueeze(l3, a12)",
    "causal": "m_causal = LessOrEqual(steps, down)",
    "strict": "m_strict = Less(steps, down)",
    "band": "b1 = Sub(down, steps) b2 = GreaterOrEqual(b1, zero) b3 = Less(b1, three) m_band = And(b2, b3)",
    "near": "n1 = Sub(down, steps) n2 = Abs(n1) m_near = Less(n2, three)",
    "causal_key": "k6 = Unsqueeze(key, a12) c6 = LessOrEqual(steps, down) m_causal_key = And(c6, k6)",
    "causal_row": "r7 = Unsqueeze(row, a13) c7 = LessOrEqual(steps, down) m_causal_row = And(c7, r7)",
}
HEADER = """
    shape = Shape(x) one = Constant<value = int64 {1}>() zero = Constant<value = int64 {0}>()
    three = Constant<value = int64 {3}>()
    a1 = Constant<value = int64[1] {1}>() a12 = Constant<value = int64[2] {1, 2}>()
    a13 = Constant<value = int64[2] {1, 3}>() split = Constant<value = int64[4] {0, 0, 2, 4}>()
    joined = Constant<value = int64[3] {0, 0, 8}>()
    n = Gather<axis = 0>(shape, one) steps = Range(zero, n, one) down = Unsqueeze(steps, a1)
    q1 = MatMul(x, Wq) q2 = Reshape(q1, split) q = Transpose<perm = [0, 2, 1, 3]>(q2)
    k1 = MatMul(x, Wk) k2 = Reshape(k1, split) k = Transpose<perm = [0, 2, 3, 1]>(k2)
    v1 = MatMul(x, Wv) v2 = Reshape(v1, split) v = Transpose<perm = [0, 2, 1, 3]>(v2)
    half = Constant<value = float {0.5}>() nought = Constant<value = float {0.0}>()
    unit = Constant<value = float {1.0}>()
"""
GUARDS = {
    "": "v_w = Identity(w)",
    "where": "bad = IsNaN(w) v_w = Where(bad, nought, w)",
    "nan_to_num": "bad = IsNaN(w) some = Where(bad, nought, w) endless = IsInf(some) v_w = Where(endless, unit, some)",
}


def constants(fills) -> list:
    rng = np.random.default_rng(5)
    held = [onnx.numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32) / 2, f"W{c}") for c in "qkv"]
    return held + [onnx.numpy_helper.from_array(np.array(f, np.float32), f"f{i}") for i, f in enumerate(fills)]


def written(*chain, scaled="before", guard="") -> bytes:
    """Attention of two heads whose scores go through `chain`, each (how, mask, fill):

    where : Where(mask, s, fill); masked : Where(not mask, fill, s); add : s + Where(mask, 0, fill);
    times : s + (1 - mask) * fill; bias : s + an input [time, time]
    """
    body, s = [HEADER], "s0"
    for name in {m for how, m, _ in chain if how != "bias"}:
        body.append(MASKS[name])
    body.append("scaled = Mul(q, half) s0 = MatMul(scaled, k)" if scaled == "before" else "s0 = MatMul(q, k)")
    if scaled == "first":
        body.append("s00 = Mul(s0, half)")
        s = "s00"
    for i, (how, m, _) in enumerate(chain):
        new = f"t{i}"
        body.append(
            {
                "where": f"{new} = Where(m_{m}, {s}, f{i})",
                "masked": f"not{i} = Not(m_{m}) {new} = Where(not{i}, f{i}, {s})",
                "add": f"low{i} = Where(m_{m}, nought, f{i}) {new} = Add({s}, low{i})",
                "times": f"c{i} = Cast<to = 1>(m_{m}) o{i} = Sub(unit, c{i}) low{i} = Mul(o{i}, f{i}) "
                f"{new} = Add({s}, low{i})",
                "bias": f"{new} = Add({s}, bias)",
            }[how]
        )
        s = new
    if scaled == "last":
        body.append(f"last = Mul({s}, half)")
        s = "last"
    body.append(f"w = Softmax<axis = -1>({s}) {GUARDS[guard]}")
    body.append("y1 = MatMul(v_w, v) y2 = Transpose<perm = [0, 2, 1, 3]>(y1) y = Reshape(y2, joined)")
    used = " ".join(m or "" for _, m, _ in chain)
    inputs = ["float[batch, time, 8] x"]
    inputs += [text for name, text in INPUTS.items() if name in used or (name in ("key", "row") and
               any(m in ("both", "either") for _, m, _ in chain))]  # fmt: skip
    inputs += ["float[time, time] bias"] if any(how == "bias" for how, _, _ in chain) else []
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    masked ({", ".join(inputs)}) => (float[batch, time, 8] y) {{ {chr(10).join(body)} }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(constants([f for _, _, f in chain]))
    return model.SerializeToString()


def feeds_for(session, batch, time, loud=1.0, seed=0):
    """Inputs with hidden keys and rows: row 0 of the batch sees no key, of others about half are hidden."""
    rng = np.random.default_rng(seed + time)
    key, row = rng.random((2, batch, time)) < 0.6
    key[0], row[-1] = False, False
    key[-1, : time // 2] = False  # padded on the left: the first queries of a causal mask see nothing
    all_of = {
        "x": (loud * rng.standard_normal((batch, time, 8))).astype(np.float32), "key": key, "row": row,
        "len": rng.integers(0, time + 1, batch) * (np.arange(batch) > 0),
        "bias": rng.standard_normal((time, time)).astype(np.float32),
    }  # fmt: skip
    return {i.name: all_of[i.name] for i in session.get_inputs()}


def check(file, sizes=SIZES, loud=(1.0, 5.0), exact=False, tolerance=2e-5):
    """The engine, and if `exact` the reference too, gives what onnxruntime gives."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    model = fastrnn.load(file, threads=2)
    for (batch, time), scale in itertools.product(sizes, loud):
        feeds = feeds_for(session, batch, time, scale)
        (expected,) = session.run(None, feeds)
        got = model.run(**feeds)[0]
        where = f"batch {batch}, time {time}, inputs of {scale}"
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=where)
        if exact:
            (meant,) = reference.run(model.graph, feeds)
            np.testing.assert_allclose(got, meant, rtol=tolerance, atol=tolerance * scale, err_msg=where)
    return model


def attends(model) -> bool:
    return any(n.op == "attention" for n in model.graph.nodes)


@pytest.mark.parametrize("fill", FILLS, ids="{:g}".format)
@pytest.mark.parametrize("mask", MASKS)
def test_a_score_is_replaced(mask, fill):
    for how, scaled, guard in (("where", "before", ""), ("masked", "first", "where"), ("masked", "last", "nan_to_num")):
        check(written((how, mask, fill), scaled=scaled, guard=guard), exact=True)


@pytest.mark.parametrize("fill", FILLS, ids="{:g}".format)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_is_added_stays_an_addition(mask, fill):
    for how, guard in (("add", "where"), ("times", "")):
        if how == "add" or np.isfinite(fill):  # 0 * -inf is NaN
            check(written((how, mask, fill), guard=guard), loud=(1.0,), exact=fill == -np.inf)


PAIRS = [
    [("where", "causal", -1e9), ("where", "key", -1e9)],
    [("where", "key", -1e9), ("where", "causal", -1e9)],
    [("where", "causal", -np.inf), ("where", "key", -1e9)],
    [("where", "key", -1e9), ("where", "causal", -np.inf)],
    [("where", "causal", -1e9), ("where", "key", -np.inf)],
    [("where", "key", -np.inf), ("where", "causal", -1e4)],
    [("where", "causal", -np.inf), ("where", "key", -np.inf)],
    [("where", "causal", LOWEST), ("add", "key", LOWEST)],
    [("add", "causal", -np.inf), ("add", "key", -np.inf)],
    [("add", "causal", -1e9), ("add", "key", -1e9)],
    [("add", "causal", -np.inf), ("where", "row", -1e4)],
    [("where", "row", -1e4), ("add", "causal", -np.inf)],
    [("where", "band", -1e9), ("where", "causal", -1e4)],
    [("where", "strict", -1e9), ("where", "len", -1e4)],
    [("bias", None, 0), ("where", "causal", -1e9)],
    [("where", "causal", -1e9), ("bias", None, 0)],
    [("bias", None, 0), ("where", "key", -1e4)],
    [("where", "key", -1e4), ("bias", None, 0)],
    [("where", "key", -1e4), ("bias", None, 0), ("where", "row", -1e9)],
    [("add", "key", -1e4), ("where", "causal", -1e4)],
    [("add", "near", -1e4), ("masked", "causal_key", -1e4)],
]


@pytest.mark.parametrize("chain", PAIRS, ids=lambda c: "-".join(f"{h}_{m}_{f:g}" for h, m, f in c))
def test_masks_one_after_the_other(chain):
    added = any(how in ("add", "bias") and np.isfinite(f) for how, _, f in chain)  # to -1e4: float32 rounds that
    check(written(*chain), loud=(1.0,) if added else (1.0, 5.0), exact=not added)


@pytest.mark.parametrize("fill", [-1e4, -1e9, LOWEST, -np.inf])
@pytest.mark.parametrize("mask", ["causal", "band"])
@pytest.mark.parametrize("how", ["where", "add"])
def test_a_causal_mask_streams_whatever_hides(how, mask, fill):
    model = fastrnn.load(written((how, mask, fill)), threads=1)
    assert attends(model)
    x = feeds_for(ort.InferenceSession(written(("where", mask, fill))), 2, 15)["x"]
    whole, stream = model(x), model.stream(batch_size=2, context=15)
    assert np.concatenate([stream.push(x[:, :4]), stream.push(x[:, 4:])], 1).tobytes() == whole.tobytes()
    pool = model.pool(2, context=15)
    slot = pool.open()
    assert pool.push([slot], [x[1]])[0].tobytes() == np.ascontiguousarray(whole[1]).tobytes()
    assert any("hides a step from scores above -10000" in note for note in model.graph.notes) == (fill == -1e4)


@pytest.mark.parametrize("chain", [[("where", "causal_key", -1e9)], [("where", "key", -1e9), ("add", "causal", -1e9)]])
def test_a_query_that_may_see_no_key_can_not_stream(chain):
    """Later steps have weights in it."""
    model = fastrnn.load(written(*chain))
    assert attends(model)
    assert not model.streamable


@pytest.mark.parametrize("chain", [[("where", "both", -1e4)], PAIRS[0], PAIRS[12]])
def test_the_bits_do_not_depend_on_batch_and_threads(chain):
    file = written(*chain)
    feeds = feeds_for(ort.InferenceSession(file), 5, 33)
    whole = fastrnn.load(file, threads=2).run(**feeds)[0]
    alone = fastrnn.load(file, threads=1)
    for row in range(5):
        one = {n: a[row : row + 1] if n != "bias" else a for n, a in feeds.items()}
        assert alone.run(**one)[0].tobytes() == np.ascontiguousarray(whole[row : row + 1]).tobytes()


def test_a_key_that_is_replaced_may_hold_anything():
    """Its score leaves no trace: NaN in it stays out, if its value is a number."""
    file = written(("where", "key", -1e9))
    model = fastrnn.load(file)
    feeds = feeds_for(ort.InferenceSession(file), 2, 6)
    feeds["key"][1] = [True, False, True, True, True, True]
    feeds["x"][1, 1] = 3e38  # its scores overflow
    with np.errstate(all="ignore"):
        want = ort.InferenceSession(file).run(None, feeds)[0]
    np.testing.assert_array_equal(np.isnan(model.run(**feeds)[0]), np.isnan(want))

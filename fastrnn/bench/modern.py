"""The models of the grid `modern`: recurrences of today at the sizes at which they are used, with their projections.

Each is an ONNX file as an exporter writes it, made here from a text: a step with its states as inputs and outputs, or a
whole sequence in the parallel form in which such models are trained, or over a map (maps.py). `onnx` is imported only
where it is needed.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ..records import dataclass
from . import maps
from .published import PublishedModel

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class Written:
    """A model as a text. Weights are the names that begin with a capital letter; W.. are matrices of products.

    shape : of one call's input; answer : of its output; states : name -> shape, whose next value is named with `_out`.
    weights : name -> shape; numbers : name -> what a constant holds.
    """

    nodes: str
    shape: tuple[int | str, ...]
    answer: tuple[int | str, ...]
    weights: dict[str, tuple[int, ...]]
    numbers: dict[str, object]
    states: dict[str, tuple[int, ...]]


D, N, HEADS = 256, 16, 4
SIZE, INNER = D // HEADS, 2 * D
ROW, COLUMN = [-1, HEADS, 1, SIZE], [-1, HEADS, SIZE, 1]

KEYS = """qf = MatMul(x, Wq) kf = MatMul(x, Wk) vf = MatMul(x, Wv)
    q = Reshape(qf, column) k = Reshape(kf, column) v = Reshape(vf, row)"""
READ = "p = Mul(q, S_out) o = ReduceSum<keepdims = 0>(p, two) flat = Reshape(o, all) y = MatMul(flat, Wo)"
MATRIX = {f"W{n}": (D, D) for n in "qkvo"}
SHAPES = {"row": ROW, "column": COLUMN, "all": [-1, D], "two": [2]}
STATE = {"S": (1, HEADS, SIZE, SIZE)}
ONES = [-1, HEADS, 1, 1]
UNIT = "kk = Mul(k, k) norm = ReduceSum<keepdims = 1>(kk, two) root = Sqrt(norm) unit = Div(k, root)"

STEPS = {
    "mamba1": Written(
        """xz = MatMul(x, Win) uf, z = Split<axis = 1>(xz, halves) uc = Unsqueeze(uf, two)
        old = Slice(C, one, four, two) C_out = Concat<axis = 2>(old, uc) w = Mul(C_out, Kernel)
        c = ReduceSum<keepdims = 0>(w, two) g = Sigmoid(c) u = Mul(c, g)
        all = MatMul(u, Wx) r, b, e = Split<axis = 1>(all, parts) df = MatMul(r, Wd) db = Add(df, Bd) d = Softplus(db)
        dc = Unsqueeze(d, two) ad = Mul(dc, A) a = Exp(ad) kept = Mul(S, a) bc = Unsqueeze(b, one)
        dbx = Mul(dc, bc) us = Unsqueeze(u, two) new = Mul(dbx, us) S_out = Add(kept, new)
        ec = Unsqueeze(e, one) p = Mul(S_out, ec) o = ReduceSum<keepdims = 0>(p, two) skip = Mul(u, Skip)
        sum = Add(o, skip) zg = Sigmoid(z) zz = Mul(z, zg) gated = Mul(sum, zz) y = MatMul(gated, Wo)""",
        (1, D),
        (1, D),
        {"Win": (D, 2 * INNER), "Kernel": (INNER, 4), "Wx": (INNER, 16 + 2 * N), "Wd": (16, INNER), "Bd": (INNER,),
         "A": (INNER, N), "Skip": (INNER,), "Wo": (INNER, D)},
        {"halves": [INNER, INNER], "one": [1], "two": [2], "four": [4], "parts": [16, N, N]},
        {"C": (1, INNER, 4), "S": (1, INNER, N)},
    ),
    "retnet": Written(
        f"""{KEYS} outer = Mul(k, v) kept = Mul(Decay, S) S_out = Add(kept, outer) {READ}""",
        (1, D), (1, D), {**MATRIX, "Decay": (1, HEADS, 1, 1)}, SHAPES, STATE,
    ),
    "deltanet": Written(
        f"""{KEYS} bf = MatMul(x, Wb) bg = Sigmoid(bf) b = Reshape(bg, ones) {UNIT}
        seen = Mul(unit, S) old = ReduceSum<keepdims = 1>(seen, two) away = Sub(v, old) w = Mul(b, away)
        outer = Mul(unit, w) S_out = Add(S, outer) {READ}""",
        (1, D), (1, D), {**MATRIX, "Wb": (D, HEADS)}, {**SHAPES, "ones": ONES}, STATE,
    ),
    "gdn": Written(
        f"""{KEYS} bf = MatMul(x, Wb) bg = Sigmoid(bf) b = Reshape(bg, ones) af = MatMul(x, Wa) ag = Sigmoid(af)
        a = Reshape(ag, ones) {UNIT} kept = Mul(a, S) seen = Mul(unit, kept) old = ReduceSum<keepdims = 1>(seen, two)
        away = Sub(v, old) w = Mul(b, away) outer = Mul(unit, w) S_out = Add(kept, outer) {READ}""",
        (1, D), (1, D), {**MATRIX, "Wb": (D, HEADS), "Wa": (D, HEADS)}, {**SHAPES, "ones": ONES}, STATE,
    ),
    "rwkv6": Written(
        f"""{KEYS} wf = MatMul(x, Ww) we = Exp(wf) wn = Neg(we) wd = Exp(wn) d = Reshape(wd, column)
        outer = Mul(k, v) more = Mul(Bonus, outer) seen = Add(S, more) kept = Mul(d, S) S_out = Add(kept, outer)
        {READ.replace("S_out", "seen")}""",
        (1, D), (1, D), {**MATRIX, "Ww": (D, D), "Bonus": (1, HEADS, SIZE, 1)}, SHAPES, STATE,
    ),
    "rwkv7": Written(
        f"""{KEYS} {UNIT} wf = MatMul(x, Ww) ws = Sigmoid(wf) wl = Mul(ws, slow) we = Exp(wl) d = Reshape(we, column)
        af = MatMul(x, Wa) ag = Sigmoid(af) a = Reshape(ag, column) seen = Mul(unit, S)
        old = ReduceSum<keepdims = 1>(seen, two) kept = Mul(d, S) ua = Mul(unit, a) gone = Mul(ua, old)
        left = Sub(kept, gone) outer = Mul(k, v) S_out = Add(left, outer) {READ}""",
        (1, D), (1, D), {**MATRIX, "Ww": (D, D), "Wa": (D, D)}, {**SHAPES, "slow": np.float32(-0.606531)}, STATE,
    ),
    "ttt": Written(
        f"""{KEYS} seen = Mul(k, S) old = ReduceSum<keepdims = 1>(seen, two) away = Sub(old, v) w = Mul(away, rate)
        outer = Mul(k, w) S_out = Sub(S, outer) {READ}""",
        (1, D), (1, D), MATRIX, {**SHAPES, "rate": np.float32(0.02)}, STATE,
    ),
    "titans": Written(
        f"""{KEYS} {UNIT} gf = MatMul(x, Wg) gs = Sigmoid(gf) gr = Reshape(gs, gates)
        a, b, c = Split<axis = 1>(gr, parts) seen = Mul(unit, S) old = ReduceSum<keepdims = 1>(seen, two)
        away = Sub(old, v) w = Mul(b, away) outer = Mul(unit, w) held = Mul(a, P) P_out = Sub(held, outer)
        rest = Sub(one, c) kept = Mul(rest, S)
        S_out = Add(kept, P_out) {READ}""",
        (1, D), (1, D), {**MATRIX, "Wg": (D, 3 * HEADS)},
        {**SHAPES, "gates": [-1, 3 * HEADS, 1, 1], "parts": [HEADS] * 3, "one": np.float32(1)},
        {**STATE, "P": (1, HEADS, SIZE, SIZE)},
    ),
    "mlstm": Written(
        f"""{KEYS} ig = MatMul(x, Wi) i = Reshape(ig, ones) fg = MatMul(x, Wf) fn = Neg(fg) fs = Softplus(fn)
        fl = Neg(fs) f = Reshape(fl, ones) fm = Add(f, m) m_out = Max(fm, i) id = Sub(i, m_out) ie = Exp(id)
        fd = Sub(fm, m_out) fe = Exp(fd) outer = Mul(k, v) new = Mul(ie, outer) kept = Mul(fe, S) S_out = Add(kept, new)
        nk = Mul(fe, n) ni = Mul(ie, k) n_out = Add(nk, ni) qn = Mul(q, n_out) s = ReduceSum<keepdims = 0>(qn, two)
        sa = Abs(s) mn = Neg(m_out) me = Exp(mn) mr = Squeeze(me, three) size = Max(sa, mr) p = Mul(q, S_out)
        o = ReduceSum<keepdims = 0>(p, two) od = Div(o, size) flat = Reshape(od, all) y = MatMul(flat, Wo)""",
        (1, D), (1, D), {**MATRIX, "Wi": (D, HEADS), "Wf": (D, HEADS)}, {**SHAPES, "ones": ONES, "three": [3]},
        {**STATE, "n": (1, HEADS, SIZE, 1), "m": (1, HEADS, 1, 1)},
    ),
    "rglru": Written(
        """ug = MatMul(x, Wu) rf = MatMul(ug, Wr) if = MatMul(ug, Wi) r = Sigmoid(rf) i = Sigmoid(if) l = Mul(r, Rate)
        a = Exp(l) l2 = Add(l, l) a2 = Exp(l2) rest = Sub(unit, a2) s = Sqrt(rest) iu = Mul(i, ug) new = Mul(s, iu)
        kept = Mul(a, h) h_out = Add(kept, new) gf = MatMul(x, Wg) gs = Sigmoid(gf) gate = Mul(gf, gs)
        o = Mul(h_out, gate) y = MatMul(o, Wo)""",
        (1, D), (1, D), {**{f"W{n}": (D, D) for n in "urigo"}, "Rate": (D,)}, {"unit": np.float32(1)}, {"h": (1, D)},
    ),
    "mingru": Written(
        """zf = MatMul(x, Wz) z = Sigmoid(zf) new = MatMul(x, Wh) rest = Sub(unit, z) kept = Mul(rest, h)
        added = Mul(z, new) h_out = Add(kept, added) y = MatMul(h_out, Wo)""",
        (1, D), (1, D), {f"W{n}": (D, D) for n in "zho"}, {"unit": np.float32(1)}, {"h": (1, D)},
    ),
    "convgru": Written(
        """xh = Concat<axis = 1>(x, h) zf = Conv<pads = [1, 1, 1, 1]>(xh, Wz, Bz) zs = Sigmoid(zf)
        z, r = Split<axis = 1>(zs, halves) rh = Mul(r, h) xr = Concat<axis = 1>(x, rh)
        nf = Conv<pads = [1, 1, 1, 1]>(xr, Wn, Bn) n = Tanh(nf) rest = Sub(unit, z) kept = Mul(rest, h)
        new = Mul(z, n) h_out = Add(kept, new) y = Relu(h_out)""",
        (1, 16, 32, 32), (1, 16, 32, 32),
        {"Wz": (32, 32, 3, 3), "Bz": (32,), "Wn": (16, 32, 3, 3), "Bn": (16,)},
        {"halves": [16, 16], "unit": np.float32(1)}, {"h": (1, 16, 32, 32)},
    ),
}  # fmt: skip

# Of T steps: y = ((q k') * mask) v, the mask with the decays of RetNet, of ones, or of sums of steps (Mamba-2).
BEFORE = """s = Shape(x) n = Gather<axis = 0>(s, index) steps = Range(nought, n, index)
    rows = Unsqueeze(steps, one) away = Sub(rows, steps) seen = GreaterOrEqual(away, nought)"""
SCORES = (
    """qf = MatMul(x, Wq) kf = MatMul(x, Wk) vf = MatMul(x, Wv)
    q4 = Reshape(qf, heads) k4 = Reshape(kf, heads) v4 = Reshape(vf, heads)
    q = Transpose<perm = [0, 2, 1, 3]>(q4)
    kt = Transpose<perm = [0, 2, 3, 1]>(k4) v = Transpose<perm = [0, 2, 1, 3]>(v4)
    scores = MatMul(q, kt) """
    + BEFORE
)
JOIN = """o4 = Transpose<perm = [0, 2, 1, 3]>(o) of = Reshape(o4, whole) y = MatMul(of, Wo)"""
PARALLEL = {
    "retnet": f"""{SCORES} past = Max(away, nought) f = Cast<to = 1>(past) d = Pow(Decay, f)
        m = Where(seen, d, zero) masked = Mul(scores, m) o = MatMul(masked, v) {JOIN}""",
    "ssd": f"""bf = MatMul(x, Wb) cf = MatMul(x, Wc) vf = MatMul(x, Wv) v4 = Reshape(vf, heads)
        v = Transpose<perm = [0, 2, 1, 3]>(v4) bt = Transpose<perm = [0, 2, 1]>(bf) scores = MatMul(cf, bt) {BEFORE}
        df = MatMul(x, Wd) ds = Softplus(df) dn = Neg(ds) dt = Transpose<perm = [0, 2, 1]>(dn) l = Unsqueeze(dt, three)
        strict = Greater(away, nought) own = Where(strict, l, zero) sums = CumSum(own, two)
        logs = Where(seen, sums, low) decay = Exp(logs) all = Unsqueeze(scores, one) masked = Mul(all, decay)
        o = MatMul(masked, v) {JOIN}""",
    "attention": f"""{SCORES} masked = Where(seen, scores, zero) o = MatMul(masked, v) {JOIN}""",
}
WHOLE = ("batch", "time", D)
CUTS = {"heads": [0, -1, HEADS, SIZE], "whole": [0, -1, D], "index": np.int64(1), "one": [1], "nought": np.int64(0),
        "zero": np.float32(0)}  # fmt: skip
SEQUENCES = {
    "retnet": Written(PARALLEL["retnet"], WHOLE, WHOLE, {**MATRIX, "Decay": (HEADS, 1, 1)}, CUTS, {}),
    "attention": Written(PARALLEL["attention"], WHOLE, WHOLE, MATRIX, CUTS, {}),
    "ssd": Written(
        PARALLEL["ssd"], WHOLE, WHOLE,
        {"Wb": (D, SIZE), "Wc": (D, SIZE), "Wv": (D, D), "Wd": (D, HEADS), "Wo": (D, D)},
        {**CUTS, "two": np.int64(2), "three": [3], "low": np.float32(-np.inf)}, {},
    ),
}  # fmt: skip


def _whole(text: maps.Text, shape: tuple, answer: tuple) -> Written:
    return Written(" ".join(text.nodes), shape, answer, text.weights, text.numbers, {})


# Over maps, and their lengths.
MAPS = {
    "bcresnet": (_whole(maps.bcresnet(), ("batch", 1, 40, "time"), ("batch", 12)), 101),
    "captcha": (_whole(maps.captcha(), ("batch", 3, 32, "time"), ("steps", "batch", 37)), 160),
}


def _found(name: str, steps: int) -> Written:
    return MAPS[name][0] if name in MAPS else STEPS[name] if steps == 1 else SEQUENCES[name]


def described(name: str, steps: int = 1) -> PublishedModel:
    """What the benchmark must know of a model: a step, or a sequence of so many steps."""
    model = _found(name, steps)
    sizes = {"time": steps, "batch": 1}
    shape = tuple(sizes[d] if isinstance(d, str) else d for d in model.shape)
    states = tuple((state, f"{state}_out", dims) for state, dims in model.states.items())
    return PublishedModel(f"{name}.onnx", "x", "y", shape, states)


def write(name: str, steps: int, path: Path) -> None:
    """The file of a model, with weights drawn by its name."""
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = _found(name, steps)
    ends = [f"float{list(model.shape)} x", f"float{list(model.answer)} y"]
    ins = [f"float{list(dims)} {state}" for state, dims in model.states.items()]
    outs = [f"float{list(dims)} {state}_out" for state, dims in model.states.items()]
    text = f"({', '.join([ends[0], *ins])}) => ({', '.join([ends[1], *outs])})".replace("'", "")
    made = onnx.parser.parse_model(
        f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]> {name} {text} {{ {model.nodes} }}'
    )
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for key, shape in model.weights.items():
        made.graph.initializer.append(numpy_helper.from_array(_drawn(rng, key, shape), key))
    for key, value in model.numbers.items():
        array = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        made.graph.initializer.append(numpy_helper.from_array(array, key))
    onnx.save(made, path)


def _drawn(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Matrices as PyTorch draws them; decays just below 1, rates below 0."""
    if key == "Decay":
        return (1 - 2.0 ** (-5 - np.arange(shape[0] * shape[1]))).astype(np.float32).reshape(shape)
    if key in ("A", "Rate"):
        return -rng.uniform(0.1, 2.0, shape).astype(np.float32)
    fan = shape[0] if len(shape) < 3 else int(np.prod(shape[1:]))
    return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(fan))

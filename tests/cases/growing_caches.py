"""Decoders in ONNX whose caches of keys and values grow by the steps of each call, and such calls by hand."""

import re

import numpy as np
import onnx
from onnx import numpy_helper

WIDTH, HEADS, FEATURES = 8, 2, 4  # of a step; of a layer; of a head

# The steps of a call, and the shape of x.
CALLS = {"one": "b,1,8", "row": "b,8", "many": "b,t,8"}

_FILL = "sm = Where(m, s, minf)"
_ONES = "ones = ConstantOfShape <value = float[1] {1}> (square)"
_PLACES = "keys = Range(k0, a0, k1) own = Range(n0, a0, k1) row = Unsqueeze(own, one1) m1 = LessOrEqual(keys, row)"
_THERE = "there4 = Unsqueeze(there, ax12)"
_FROM = (
    "keys = Range(k0, a0, k1) steps = Range(k0, t0, k1) own = Add(steps, from) row = Unsqueeze(own, one1) "
    "m = LessOrEqual(keys, row)"
)

# Masks: a text that makes `m` from n (steps held, [1]), t (steps of the call, [1]) and all (n + t), and what adds it.
MASKS = {
    "": ("", "sm = Identity(s)"),
    "tril": (f"{_ONES} low = Trilu <upper = 0> (ones, n0) m = Cast <to = 9> (low)", _FILL),
    "add": ("infs = Expand(minf, square) n1 = Add(n0, k1) m = Trilu <upper = 1> (infs, n1)", "sm = Add(s, m)"),
    "less": (f"{_PLACES} m = Identity(m1)", _FILL),
    "band": (f"{_PLACES} oldest = Sub(row, k6) m2 = Greater(keys, oldest) m = And(m1, m2)", _FILL),
    "far band": (f"{_PLACES} oldest = Sub(row, k9000) m2 = Greater(keys, oldest) m = And(m1, m2)", _FILL),
    "top left": (f"{_ONES} low = Trilu <upper = 0> (ones) m = Cast <to = 9> (low)", _FILL),
    # a mask of tokens, as of transformers: ones for steps that are there
    "input": (f"{_PLACES} {_THERE} m2 = Cast <to = 9> (there4) m = And(m1, m2)", _FILL),
    "floats": (
        f"{_PLACES} {_THERE} m2 = Greater(there4, tenth) m = And(m1, m2)",
        "gone = Sub(one, there4) low = Mul(gone, big) s1 = Add(s, low) sm = Where(m1, s1, minf)",
    ),
    "seen": ("m = Identity(seen)", _FILL),
    "added": ("m = Identity(attn_mask)", "sm = Add(s, m)"),
    "numbers": ("keys = Range(k0, a0, k1) row = Unsqueeze(cache_position, one1) m = LessOrEqual(keys, row)", _FILL),
    "length": (f"from = Identity(past_len) {_FROM}", _FILL),
    "length so far": (f"from = Sub(total_len, t0) {_FROM}", _FILL),
    # a bias of each head by the distance of two steps
    "distances": (
        f"{_PLACES} apart = Sub(keys, row) af = Cast <to = 1> (apart) slope = Mul(af, slopes) m = Identity(m1)",
        "s1 = Add(s, slope) sm = Where(m, s1, minf)",
    ),
    # not masks
    "weights": (f"{_PLACES} {_THERE} m = Identity(m1)", "s1 = Mul(s, there4) sm = Where(m, s1, minf)"),
    "marks": (f"{_PLACES} {_THERE} m = Identity(m1)", "s1 = Add(s, there4) sm = Where(m, s1, minf)"),
}  # fmt: skip

# Inputs beside the steps and the caches, by name.
MORE = {
    "there": "int64[b,all] there", "seen": "bool[b,1,t,all] seen", "attn_mask": "float[b,1,t,all] attn_mask",
    "cache_position": "int64[t] cache_position", "past_len": "int64 past_len", "total_len": "int64 total_len",
}  # fmt: skip
FLOATS = ("floats", "weights", "marks")  # masks whose `there` is of floats

# What is added to the steps of a call, x3 [b, t, 8], for their positions.
POSITIONS = {
    "": "z = Identity(x3)",
    "past": "at = Range(n0, a0, k1) place = Gather(table, at) z = Add(x3, place)",
    "slice": "place = Slice(table, n, all, zero1) z = Add(x3, place)",
    "anew": "at = Range(k0, t0, k1) place = Gather(table, at) z = Add(x3, place)",
    "count": "place = Gather(table, pos) place3 = Unsqueeze(place, one1) z = Add(x3, place3) pos_out = Add(pos, k1)",
    "counted": "sums = CumSum(there, one1) at2 = Sub(sums, k1) at = Slice(at2, n, all, one1) place = Gather(table, at)"
    " z = Add(x3, place)",
    "length": "places = Range(k0, t0, k1) at = Add(places, past_len) place = Gather(table, at) z = Add(x3, place)",
    "number": "nf = Cast <to = 1> (n0) part = Mul(nf, tenth) z = Add(x3, part)",
}


def decoder(calls="one", mask="", position="", layers=1, layout="bhtf", form="matmul", keys="", extra="", outputs=""):
    """x -> y with layers of attention over caches k0, v0, k1, ... -> new_k0, ...

    layout : of the caches, "bhtf", "btf" or "bthf". form : "matmul", or "op": the operator Attention with its past, of
    the layout "bhtf". keys : a text that makes the keys that are read, kh, of all, new_k. extra : a text between
    the layers and the output, from `last` to `end`. outputs : more outputs
    """
    x_dims = CALLS[calls]
    dims = {"bhtf": "b,2,{},4", "btf": "b,{},8", "bthf": "b,{},2,4"}[layout]
    axis = {"bhtf": 2, "btf": 1, "bthf": 1}[layout]
    rng = np.random.default_rng(3)
    weights = {"table": rng.standard_normal((64, WIDTH))}
    head = "x3 = Unsqueeze(x, one1)" if calls == "row" else "x3 = Identity(x)"
    text = [head, f"n = Shape <start = {axis}, end = {axis + 1}> (k0) t = Shape <start = 1, end = 2> (x3)"]
    text += ["all = Add(n, t) n0 = Squeeze(n) t0 = Squeeze(t) a0 = Squeeze(all) square = Concat <axis = 0> (t, all)"]
    made, apply = MASKS[mask]
    text += [POSITIONS[position], made]
    for i in range(layers):
        for w in "qkvo":
            weights[f"{w}w{i}"] = 0.5 * rng.standard_normal((WIDTH, WIDTH))
        layer = _layer(i, layout, form, made and "m", apply, keys)
        text.append(layer.replace("IN", "z" if i == 0 else f"z{i - 1}"))
    text.append(f"last = Identity(z{layers - 1}) " + (extra or "end = Identity(last)"))
    text.append("y = Squeeze(end, one1)" if calls == "row" else "y = Identity(end)")
    ins = [f"float[{x_dims}] x"] + ["int64[b] pos"] * (position == "count")
    more = [line for name, line in MORE.items() if used_in(name, text)]
    more = [line if calls == "many" else re.sub(r"\bt\b", "1", line) for line in more]
    ins += [line.replace("int64", "float") if mask in FLOATS else line for line in more]
    outs = [f"float[{x_dims}] y"] + ["int64[b] pos_out"] * (position == "count") + ([outputs] if outputs else [])
    for i in range(layers):
        ins += [f"float[{dims.format('past')}] past_{w}{i}" for w in "kv"]
        outs += [f"float[{dims.format('total')}] new_{w}{i}" for w in "kv"]
    body = "\n".join(text).replace("(k0)", "(past_k0)")
    head = '<ir_version: 10, opset_import: ["" : 23]> decoder'
    source = f"{head} ({', '.join(ins)}) => ({', '.join(outs)}) {{ {body} }}"
    model = onnx.parser.parse_model(source)
    numbers = {"one1": np.int64([1]), "zero1": np.int64([0]), "minf": np.float32(-np.inf), "tenth": np.float32(0.1)}
    numbers |= {"one": np.float32(1), "big": np.float32(-1e9), "slopes": np.float32([[[0.5]], [[0.25]]])}
    numbers |= {f"k{k}": np.int64(k) for k in (0, 1, 6, 9000)} | {"ax12": np.int64([1, 2])}
    numbers |= {"split": np.int64([0, 0, HEADS, FEATURES]), "join": np.int64([0, 0, WIDTH])}
    arrays = {k: v.astype(np.float32) for k, v in weights.items()} | numbers
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items() if k in used)
    return model


def stacked(model, order=None):
    """The model with its caches in one input [layers, 2, ...] and one output. order : (layer, 0 for keys or 1 for
    values) of each cache in the output; None: as in the input."""
    graph, make = model.graph, onnx.helper.make_node
    pasts = [v for v in graph.input if v.name[:6] in ("past_k", "past_v")]
    places = [(int(v.name[6:]), "kv".index(v.name[5])) for v in pasts]
    shape = pasts[0].type.tensor_type.shape.dim
    dims = [len(places) // 2, 2, *(d.dim_param or d.dim_value for d in shape)]
    first, last = [], []
    for value, (layer, k) in zip(pasts, places, strict=True):
        first.append(make("Gather", ["past", f"at{layer}"], [f"of_{value.name}"], axis=0))
        first.append(make("Gather", [f"of_{value.name}", f"at{k}"], [value.name], axis=0))
    for layer in range(dims[0]):
        names = [f"new_{'kv'[k]}{i}" for i, k in (order or places)[2 * layer : 2 * layer + 2]]
        last += [make("Unsqueeze", [n, "front"], [f"one_{layer}{k}"]) for k, n in enumerate(names)]
        last.append(make("Concat", [f"one_{layer}0", f"one_{layer}1"], [f"both{layer}"], axis=0))
        last.append(make("Unsqueeze", [f"both{layer}", "front"], [f"all{layer}"]))
    last.append(make("Concat", [f"all{layer}" for layer in range(dims[0])], ["new"], axis=0))
    inputs = [v for v in graph.input if v not in pasts]
    outputs = [v for v in graph.output if v.name[:4] != "new_"]
    float32 = onnx.TensorProto.FLOAT
    inputs.append(onnx.helper.make_tensor_value_info("past", float32, dims))
    outputs.append(onnx.helper.make_tensor_value_info("new", float32, [None] * len(dims)))
    numbers = {f"at{k}": np.int64(k) for k in range(max(dims[:2]))} | {"front": np.int64([0])}
    initial = [*graph.initializer, *(numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items())]
    made = onnx.helper.make_graph([*first, *graph.node, *last], "stacked", inputs, outputs, initial)
    return onnx.helper.make_model(made, ir_version=10, opset_imports=model.opset_import)


def used_in(name: str, text: list) -> bool:
    return any(re.search(rf"\b{name}\b(?! =)", part) for part in text)


def _layer(i: int, layout: str, form: str, mask: str, apply: str, keys: str) -> str:
    text = "q = MatMul(IN, qw) kf = MatMul(IN, kw) vf = MatMul(IN, vw) q4 = Reshape(q, split) "
    text += "qh = Transpose <perm = [0,2,1,3]> (q4) "
    for w in "kv":
        if layout == "btf":
            text += f"new_{w} = Concat <axis = 1> (past_{w}, {w}f) {w}s = Reshape(new_{w}, split) "
        else:
            text += f"{w}4 = Reshape({w}f, split) "
            text += f"new_{w} = Concat <axis = 1> (past_{w}, {w}4) {w}s = Identity(new_{w}) " * (layout == "bthf")
            text += f"{w}t = Transpose <perm = [0,2,1,3]> ({w}4) " * (layout == "bhtf")
            if layout == "bhtf" and form == "matmul":
                text += f"new_{w} = Concat <axis = 2> (past_{w}, {w}t) {w}h = Identity(new_{w}) "
        if layout != "bhtf":
            text += f"{w}h = Transpose <perm = [0,2,1,3]> ({w}s) "
    if form == "op":
        masked = ", m" if mask else ", "
        text += f"heads, new_k, new_v = Attention(qh, kt, vt{masked}, past_k, past_v) "
    else:
        text += "ktr = Transpose <perm = [0,1,3,2]> (kh) raw = MatMul(qh, ktr) s = Mul(raw, tenth) "
        text += f"{apply} w = Softmax <axis = -1> (sm) heads = MatMul(w, vh) "
    text = text.replace("kh = Identity(new_k)", keys or "kh = Identity(new_k)")
    text += "back = Transpose <perm = [0,2,1,3]> (heads) flat = Reshape(back, join) o = MatMul(flat, ow) "
    text += "out = Add(IN, o)"
    own = "q kf vf q4 qh k4 v4 kt vt ks vs kh vh ktr raw s gone low s1 sm w heads back flat o qw kw vw ow"
    own = [*own.split(), *(f"{a}_{w}" for a in ("new", "past") for w in "kv")]
    text = re.sub(r"\b(" + "|".join(own) + r")\b", lambda found: f"{found[1]}{i}", text)
    return re.sub(r"\bout\b", f"z{i}", text)


def more_inputs(batch: int, held: int, steps: int) -> dict:
    """What a caller hands to a call beside the steps and the caches."""
    seen = np.tri(steps, held + steps, held, dtype=bool) & np.ones((batch, 1, 1, 1), bool)
    return {
        "there": np.ones((batch, held + steps), np.int64),
        "seen": seen,
        "attn_mask": np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32),
        "cache_position": np.arange(held, held + steps),
        "past_len": np.array(held),
        "total_len": np.array(held + steps),
    }


def called(model, xs, lengths):
    """y [batch, steps, 8] by onnxruntime: xs [batch, steps, 8] in calls of these lengths, the caches handed on."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, names = session.get_inputs(), [o.name for o in session.get_outputs()]
    kept = {}
    for value in inputs:
        if value.name == "past" or value.name[:6] in ("past_k", "past_v"):
            dims = [len(xs) if d == "b" else 0 if d == "past" else d for d in value.shape]
            kept[value.name] = np.zeros(dims, np.float32)
        elif value.name == "pos":
            kept["pos"] = np.zeros(len(xs), np.int64)
    kinds = {i.name: i.type for i in inputs}
    found, at = [], 0
    for n in lengths:
        x = xs[:, at : at + n] if len(inputs[0].shape) == 3 else xs[:, at]
        more = more_inputs(len(xs), at, n)
        feeds = {"x": x, **kept} | {i.name: more[i.name] for i in inputs if i.name in more}
        feeds |= {"there": feeds["there"].astype(np.float32)} if "tensor(float)" in kinds.get("there", "") else {}
        out = dict(zip(names, session.run(None, feeds), strict=True))
        kept = {k: out["pos_out" if k == "pos" else k.replace("past", "new")] for k in kept}
        found.append(out["y"].reshape(len(xs), n, WIDTH))
        at += n
    return np.concatenate(found, 1)

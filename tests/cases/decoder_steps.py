"""One step of a decoder in ONNX: an LSTM whose states the caller threads, and attention to an encoder's output."""

import numpy as np
import onnx
from onnx import numpy_helper

HIDDEN, FEATURES, WIDTH, OUT = 6, 5, 7, 3


def decoder(x="b,5", memory="b,S,7", batch="b"):
    """x [.., 5] of rank 2 (one step) or 3 ([batch, time, 5]); memory [batch, S, 7]. Outputs y, hn, cn."""
    rng, timed = np.random.default_rng(4), x.count(",") == 2
    arrays = {
        "W": rng.standard_normal((1, 4 * HIDDEN, FEATURES)),
        "R": rng.standard_normal((1, 4 * HIDDEN, HIDDEN)),
        "K": rng.standard_normal((WIDTH, HIDDEN)),
        "V": rng.standard_normal((WIDTH, HIDDEN)),
        "O": rng.standard_normal((2 * HIDDEN, OUT)),
    }
    arrays = {k: (0.4 * v).astype(np.float32) for k, v in arrays.items()} | {"i0": np.int64([0]), "i1": np.int64([1])}
    begin = "xt = Transpose <perm = [1, 0, 2]> (x)" if timed else "xt = Unsqueeze(x, i0)"
    end = "y = Identity(y3)" if timed else "y = Squeeze(y3, i1)"
    out = ",".join(x.split(",")[:-1])
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        decoder (float[{x}] x, float[{memory}] memory, float[1,{batch},{HIDDEN}] h, float[1,{batch},{HIDDEN}] c)
        => (float[{out},{OUT}] y, float[1,{batch},{HIDDEN}] hn, float[1,{batch},{HIDDEN}] cn) {{
        {begin} z, hn, cn = LSTM <hidden_size = {HIDDEN}> (xt, W, R, , , h, c) z3 = Squeeze(z, i1)
        q = Transpose <perm = [1, 0, 2]> (z3) k = MatMul(memory, K) v = MatMul(memory, V)
        kt = Transpose <perm = [0, 2, 1]> (k) score = MatMul(q, kt) weight = Softmax <axis = -1> (score)
        seen = MatMul(weight, v) both = Concat <axis = 2> (q, seen) y3 = MatMul(both, O) {end} }}"""
    made = onnx.parser.parse_model(text)
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in arrays.items() if k in used)
    return made


def decoded(made, xs, memory):
    """y [steps, batch, 3] by onnxruntime, one call per step of xs [steps, batch, 5], states threaded by hand."""
    import onnxruntime

    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    timed = len(session.get_inputs()[0].shape) == 3
    h = c = np.zeros((1, xs.shape[1], HIDDEN), np.float32)
    found = []
    for x in xs:
        y, h, c = session.run(None, {"x": x[:, None] if timed else x, "memory": memory, "h": h, "c": c})
        found.append(y.reshape(len(x), OUT))
    return np.stack(found)

"""Recurrences written out step by step, or as a Loop: rolled up where they are a cell, else left alone."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastrnn import passes
from fastrnn.errors import FastRNNError, UnsupportedError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

T, B, I, H = 5, 2, 3, 4  # noqa: E741  (the project's word for the input size)


def arrays(**more):
    rng = np.random.default_rng(11)
    made = {"W": (I, H), "R": (H, H), "b": (H,), "rb": (H,), "zeros": (1, B, H)}
    made = {k: (rng.standard_normal(s) * 0.5).astype(np.float32) for k, s in made.items()}
    made["zeros"] *= 0
    made |= {f"i{k}": np.int64([k]) for k in range(T + 1)} | {"minus": np.int64([-1]), "least": np.int64([-(2**63)])}
    return made | more


def model(signature, body, constants):
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    used = {i for n in made.graph.node for i in n.input}
    for node in made.graph.node:
        for attr in node.attribute:
            used |= {i for n in attr.g.node for i in n.input}
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items() if k in used)
    return made


def unrolled(steps=T, act="Tanh", turned=False, changed=None, order=None, start="zeros", out="cat"):
    """As PyTorch's exporter writes nn.RNN. changed: the step that has another R; order: of the Concat."""
    lines = ["p = MatMul(x, W)", "s = Add(p, b)"]
    if turned:
        lines.append("f = Slice(s, minus, least, i0, minus)")
    h = start
    for t in range(steps):
        lines += [
            f"c{t} = Slice({'f' if turned else 's'}, i{t}, i{t + 1}, i0)",
            f"x{t} = Squeeze(c{t}, i0)",
            f"m{t} = MatMul({h}, {'R2' if t == changed else 'R'})",
            f"q{t} = Add(m{t}, rb)",
            f"a{t} = Add(q{t}, x{t})",
            f"h{t} = {act}(a{t})",
        ]
        h = f"h{t}"
    order = order or list(range(steps))
    lines.append(f"{out} = Concat <axis = 0> ({', '.join(f'h{t}' for t in order)})")
    return "\n".join(lines)


SIGNATURE = f"(float[{T},{B},{I}] x) => (float[n,{B},{H}] cat)"


def own_answer(made, **feeds):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(made.SerializeToString(), options).run(None, feeds)


def agrees(made, **feeds):
    graph = import_onnx(made)
    for a, b in zip(reference.run(graph, feeds), own_answer(made, **feeds), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return graph


def noise(*shape):
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def ops(graph):
    return [n.op for n in graph.nodes]


@pytest.mark.parametrize("act", ["Tanh", "Relu", "Sigmoid"])
@pytest.mark.parametrize("turned", [False, True])
def test_one_copy_a_step(act, turned):
    order = list(range(T))[::-1] if turned else None
    made = model(SIGNATURE, unrolled(act=act, turned=turned, order=order), arrays())
    graph = agrees(made, x=noise(T, B, I))
    (cell,) = [n for n in graph.nodes if n.op == "cell"]
    assert cell.attrs["spec"].reverse == turned
    assert cell.attrs["spec"].input_size == I  # the product over all steps is part of the cell
    assert [str(d) for d in graph.values["cat"].dims] == ["time", "batch", "4"]


def test_other_lengths_and_batches_of_a_rolled_up_one():
    graph = import_onnx(model(SIGNATURE, unrolled(), arrays()))
    made, x, h = arrays(), noise(9, 3, I), np.zeros((3, H))
    (got,) = reference.run(graph, {"x": x})
    for t in range(9):
        h = np.tanh(x[t] @ made["W"].astype(float) + made["b"] + h @ made["R"].astype(float) + made["rb"])
        np.testing.assert_allclose(got[t], h, rtol=1e-9)


def test_turned_only_on_one_side():
    """Steps from the end, results in the order of computing: a reversal stays beside the cell."""
    graph = agrees(model(SIGNATURE, unrolled(turned=True), arrays()), x=noise(T, B, I))
    assert sorted(ops(graph)) == ["cell", "slice"]


def test_first_steps_only():
    """Three of five steps: the cell sees the first three, and time stays what it is."""
    graph = agrees(model(SIGNATURE, unrolled(steps=3), arrays()), x=noise(T, B, I))
    assert "cell" in ops(graph)
    assert graph.values["cat"].dims[0] == 3


def test_a_step_with_other_weights_is_no_recurrence():
    other = (noise(H, H) * 0.5).astype(np.float32)
    graph = agrees(model(SIGNATURE, unrolled(changed=3), arrays(R2=other)), x=noise(T, B, I))
    assert "cell" not in ops(graph)


def test_results_in_another_order_are_no_sequence():
    graph = agrees(model(SIGNATURE, unrolled(order=[0, 2, 1, 3, 4]), arrays()), x=noise(T, B, I))
    assert "cell" not in ops(graph)


def test_a_start_that_is_not_zero():
    start = arrays(zeros=np.broadcast_to(noise(1, 1, H), (1, B, H)).copy())
    graph = agrees(model(SIGNATURE, unrolled(), start), x=noise(T, B, I))
    assert "cell" in ops(graph)
    unlike = agrees(model(SIGNATURE, unrolled(), arrays(zeros=noise(1, B, H))), x=noise(T, B, I))
    assert unlike.values["x"].dims[1] == B  # rows that start apart hold the batch fast


def folded(first):
    """The exporter folds the first step's product with a zero state: only its bias is left of it."""
    body = (
        unrolled()
        .replace("m0 = MatMul(zeros, R)\n", "")
        .replace("q0 = Add(m0, rb)\n", "")
        .replace("Add(q0,", "Add(first,")
    )
    return model(SIGNATURE, body, arrays(first=first))


def test_a_first_step_whose_product_is_folded_away():
    rows = np.broadcast_to(arrays()["rb"], (1, B, H)).copy()
    assert "cell" in ops(agrees(folded(rows), x=noise(T, B, I)))
    assert "cell" not in ops(agrees(folded(rows + 1), x=noise(T, B, I)))  # some state, but which?


def test_a_folded_first_step_of_another_batch():
    """Input rows and folded rows that differ broadcast in the file; a cell has no such thing."""
    made = folded(np.broadcast_to(arrays()["rb"], (1, 7, H)).copy())
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    with pytest.raises(FastRNNError):
        import_onnx(made)


def test_h0_and_the_last_state_are_paired():
    signature = f"(float[{T},{B},{I}] x, float[1,{B},{H}] start) => (float[{T},{B},{H}] cat, float[1,{B},{H}] h4)"
    graph = agrees(model(signature, unrolled(start="start"), arrays()), x=noise(T, B, I), start=noise(1, B, H))
    assert dict(graph.states) == {"start": "h4"}


def test_steps_used_one_by_one_stay():
    """A result in the middle that something else reads: right at the file's own length, whatever is rolled up."""
    signature = f"(float[{T},{B},{I}] x) => (float[{T},{B},{H}] cat, float[1,{B},{H}] z)"
    agrees(model(signature, unrolled() + "\nz = Neg(h2)", arrays()), x=noise(T, B, I))


# --- Loop -------------------------------------------------------------------------------------------------------------

STEPS = {
    "rnn": ("", "m = MatMul(xt, W) k = MatMul(h, R) n = Add(m, k) v = Add(n, b) h_out = Tanh(v)"),
    "lstm": (
        "c",
        """m = MatMul(xt, W4) k = MatMul(h, R4) n = Add(m, k) v = Add(n, b4)
           gi, gf, gc, gq = Split <axis = 1> (v)
           i = Sigmoid(gi) f = Sigmoid(gf) g = Tanh(gc) o = Sigmoid(gq)
           fc = Mul(f, c) ig = Mul(i, g) c_out = Add(fc, ig) tc = Tanh(c_out) h_out = Mul(o, tc)""",
    ),
    "gru": (
        "",
        """m = MatMul(xt, W3) v = Add(m, b3) k = MatMul(h, R3)
           xz, xr, xn = Split <axis = 1> (v) hz, hr, hn = Split <axis = 1> (k)
           az = Add(xz, hz) z = Sigmoid(az) ar = Add(xr, hr) r = Sigmoid(ar)
           rh = Mul(r, hn) an = Add(xn, rh) n = Tanh(an)
           zh = Mul(z, h) keep = Sub(unity, z) kn = Mul(keep, n) h_out = Add(zh, kn)""",
    ),
    "gru_before": (
        "",
        """m = MatMul(xt, W3) v = Add(m, b3) k = MatMul(h, R2)
           xz, xr, xn = Split <axis = 1> (v) hz, hr = Split <axis = 1> (k)
           az = Add(xz, hz) z = Sigmoid(az) ar = Add(xr, hr) r = Sigmoid(ar)
           rh = Mul(r, h) hn = MatMul(rh, R) an = Add(xn, hn) n = Tanh(an)
           zh = Mul(z, h) keep = Sub(unity, z) kn = Mul(keep, n) h_out = Add(zh, kn)""",
    ),
    "swapped": (  # h = z*n + (1 - z)*h: not ONNX's GRU, must not be taken for it
        "",
        """m = MatMul(xt, W3) v = Add(m, b3) k = MatMul(h, R2)
           xz, xr, xn = Split <axis = 1> (v) hz, hr = Split <axis = 1> (k)
           az = Add(xz, hz) z = Sigmoid(az) ar = Add(xr, hr) r = Sigmoid(ar)
           rh = Mul(r, h) hn = MatMul(rh, R) an = Add(xn, hn) n = Tanh(an)
           zn = Mul(z, n) keep = Sub(unity, z) kh = Mul(keep, h) h_out = Add(zn, kh)""",
    ),
    "residual": ("", "m = MatMul(xt, W) k = MatMul(h, R) n = Add(m, k) v = Tanh(n) h_out = Add(v, h)"),
}


def loop(kind):
    cell, step = STEPS[kind]
    carried = ["h", "c"] if cell else ["h"]
    ins = ", ".join(f"float[b,h] {k}" for k in carried)
    outs = ", ".join(f"float[b,h] {k}_out" for k in carried)
    body = f"""step (int64 t, bool go, {ins}) => (bool go_out, {outs}, float[b,h] seq) {{
        go_out = Identity(go) xt = Gather <axis = 0> (x, t) {step} seq = Identity(h_out) }}"""
    starts, ends = ", ".join(["zero"] * len(carried)), ", ".join(f"{k}_n" for k in carried)
    return f"{ends}, y = Loop <body = {body}> (count, yes, {starts})"


def loop_model(kind):
    constants = arrays(count=np.int64(T), yes=np.bool_(True), zero=np.zeros((B, H), np.float32), unity=np.float32(1))
    for k in (2, 3, 4):
        constants |= {f"W{k}": noise(I, k * H) * 0.5, f"R{k}": noise(H, k * H) * 0.5, f"b{k}": noise(k * H) * 0.5}
    signature = f"(float[{T},{B},{I}] x) => (float[{T},{B},{H}] y, float[{B},{H}] h_n)"
    return model(signature, loop(kind), constants)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru_before"])
def test_loop_over_the_steps(kind):
    graph = agrees(loop_model(kind), x=noise(T, B, I))
    (cell,) = [n for n in graph.nodes if n.op == "cell"]
    assert cell.attrs["spec"].kind == kind.split("_")[0]
    assert [str(d) for d in graph.values["x"].dims] == ["time", "batch", "3"]


@pytest.mark.parametrize("kind", ["swapped", "residual"])
def test_a_loop_that_is_not_a_cell_as_written_is_a_cycle(kind):
    graph = agrees(loop_model(kind), x=noise(T, B, I))
    assert [n.op for n in graph.nodes if n.op in ("cell", "state")] == ["state"]
    assert [n.op for n in passes.run(graph).nodes if n.op in ("cell", "state")] == (
        ["cell"] if kind == "swapped" else ["state"]
    )


def test_the_internal_operator_is_not_a_file_s_to_use():
    made = model("(float[5,2,3] x) => (float[5,2,4] y)", "y = Relu(x)", {})
    made.graph.node[0].op_type, made.graph.node[0].domain = "Recurrence", "fastrnn.rolled"
    with pytest.raises(UnsupportedError, match="Recurrence"):
        import_onnx(made)


def test_a_step_that_is_used_by_itself_keeps_the_loop_as_it_is():
    """Step 2 by itself is only right at the file's own length: nothing is rolled up, and nothing thaws."""
    signature = SIGNATURE.replace(" cat)", f" cat, float[1,{B},{H}] alone)")
    made = model(signature, unrolled() + "\nalone = Relu(h2)", arrays())
    graph = import_onnx(made)
    assert not any(n.op == "cell" for n in graph.nodes)
    assert graph.values["x"].dims == (T, B, I)

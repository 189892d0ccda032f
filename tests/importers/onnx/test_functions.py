"""Operators that ONNX defines by other operators are read as these, at sizes that the file leaves open."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_text import model, noise, runs_as_onnxruntime, streams_as_it_runs

import fastrnn
from fastrnn.errors import UnsupportedError


def labels(*shape, below=4):
    return np.random.default_rng(5).integers(0, below, shape)


@pytest.mark.parametrize("how", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_loss(how, batch):
    made = model(
        "(float[B, 4, T] x, int64[B, T] t) => (float l)" if how != "none" else
        "(float[B, 4, T] x, int64[B, T] t) => (float[B, T] l)",
        f'l = SoftmaxCrossEntropyLoss <reduction = "{how}", ignore_index = 2> (x, t, weights)',
        weights=np.float32([0.5, 1, 2, 0.25]),
    )  # fmt: skip
    calls = [{"x": noise(batch, 4, t), "t": labels(batch, t)} for t in (1, 5, 7)]
    runs_as_onnxruntime(made, *calls)


def test_both_outputs_of_a_loss_and_only_those_that_are_read():
    made = model(
        "(float[B, 4] x, int64[B] t) => (float l, float[B, 4] p)", "l, p = SoftmaxCrossEntropyLoss (x, t)", opset=13
    )
    runs_as_onnxruntime(made, *({"x": noise(b, 4), "t": labels(b)} for b in (1, 6)))
    made = model("(float[B, 4] x, int64[B] t) => (float l)", "l, p = SoftmaxCrossEntropyLoss (x, t)", opset=13)
    runs_as_onnxruntime(made, {"x": noise(3, 4), "t": labels(3)})


def test_windows_that_are_constant_are_folded():
    made = model(
        "(float[B, T, 16] x) => (float[B, T, 16] y)",
        "w = HannWindow (sixteen) y = Mul(x, w)",
        sixteen=np.array(16),
    )
    found = runs_as_onnxruntime(made, *({"x": noise(b, t, 16)} for b, t in ((1, 1), (2, 5))))
    streams_as_it_runs(found, noise(2, 5, 16))


def test_a_function_inside_a_function_and_a_branch_streams():
    made = model(
        "(float[B, T, 3] x) => (float[B, T, 3] y)",
        "y = If (yes) <then_branch = g () => (float[B, T, 3] a) { a = Swish <alpha = 0.5> (x) }, "
        "else_branch = h () => (float[B, T, 3] b) { b = Neg(x) }>",
        opset=24,
        yes=np.array(True),
    )
    found = fastrnn.from_onnx(made)
    x = noise(2, 5, 3)
    np.testing.assert_allclose(found.run(x)[0], x / (1 + np.exp(-0.5 * x)), rtol=1e-5, atol=1e-6)
    streams_as_it_runs(found, x)


def test_attention_gives_its_scores():
    """A handler that can't write a node reads it as its function too."""
    made = model(
        "(float[B, 2, T, 4] q, float[B, 2, S, 4] k, float[B, 2, S, 5] v) => (float[B, 2, T, 5] y, float[B, 2, T, S] s)",
        "y, , , s = Attention <qk_matmul_output_mode = 3> (q, k, v)",
        opset=23,
    )
    calls = [
        {"q": noise(b, 2, t, 4), "k": noise(b, 2, s, 4), "v": noise(b, 2, s, 5)} for b, t, s in ((1, 3, 4), (2, 5, 2))
    ]
    runs_as_onnxruntime(made, *calls)


def test_attention_with_lengths_and_a_causal_mask():
    made = model(
        "(float[B, 2, T, 4] q, float[B, 2, S, 4] k, float[B, 2, S, 4] v, int64[B] n) => (float[B, 2, T, 4] y)",
        "y = Attention <is_causal = 1> (q, k, v, , , , n)",
        opset=24,
    )
    calls = [
        {"q": noise(b, 2, t, 4), "k": noise(b, 2, s, 4), "v": noise(b, 2, s, 4), "n": np.array(n)}
        for b, t, s, n in ((1, 2, 5, [3]), (2, 3, 6, [6, 4]))
    ]
    runs_as_onnxruntime(made, *calls)


@pytest.mark.parametrize("kind", ["int64", "int32", "int8"])
def test_attention_with_an_integer_mask(kind):
    """ONNX adds it to the scores; it does not select keys."""
    made = model(
        f"(float[B, 2, T, 4] q, float[B, 2, S, 4] k, float[B, 2, S, 5] v, {kind}[T, S] m) => (float[B, 2, T, 5] y)",
        "y = Attention (q, k, v, m)",
        opset=23,
    )
    found = fastrnn.from_onnx(made)
    for b, t, s in ((1, 3, 4), (2, 1, 5)):
        mask = np.random.default_rng(2).integers(-3, 4, (t, s)).astype(kind)
        q, k, v = noise(b, 2, t, 4), noise(b, 2, s, 4), noise(b, 2, s, 5)
        want = ReferenceEvaluator(made).run(None, {"q": q, "k": k, "v": v, "m": mask})[0]
        np.testing.assert_allclose(found.run(q, k, v, mask)[0], want, rtol=1e-4, atol=1e-5)


def test_layer_norm_gives_its_statistics_and_takes_live_weights():
    made = model(
        "(float[B, T, 6] x, float[6] scale) => (float[B, T, 6] y, float[B, T, 1] mean, float[B, T, 1] spread)",
        "y, mean, spread = LayerNormalization <axis = -1> (x, scale)",
    )
    runs_as_onnxruntime(made, *({"x": noise(b, t, 6), "scale": noise(6)} for b, t in ((1, 1), (3, 4))))


@pytest.mark.parametrize("kind", ["float", "int64", "int32"])
def test_the_remainder_with_the_sign_of_the_dividend(kind):
    made = model(f"({kind}[N] a, {kind}[N] b) => ({kind}[N] y)", "y = Mod <fmod = 1> (a, b)")
    rng = np.random.default_rng(1)
    a, b = rng.integers(-20, 20, 50), rng.integers(1, 9, 50) * rng.choice([-1, 1], 50)
    dtype = {"float": np.float32, "int64": np.int64, "int32": np.int32}[kind]
    a, b = a.astype(dtype), b.astype(dtype)
    if kind == "float":
        a, b = a * np.float32(1.37), b * np.float32(0.61)
        a[:4], b[:4] = [3e30, -3e30, -0.0, 7], [0.7, 0.7, 3, np.inf]
    found = runs_as_onnxruntime(made, {"a": a, "b": b}, rtol=0, atol=0)
    np.testing.assert_array_equal(found.run(a, b)[0], np.fmod(a, b))


def test_what_has_no_body_is_refused_by_name():
    made = model("(float[N] x) => (int64[1, M] y)", "y = NonZero (x)")
    with pytest.raises(UnsupportedError, match=r"node NonZero\(y\): operator NonZero"):
        fastrnn.from_onnx(made)


def test_random_numbers_are_not_folded():
    made = model("(float[4] x) => (float[4] y)", "r = RandomUniformLike (c) y = Add (x, r)", c=np.zeros(4, np.float32))
    with pytest.raises(UnsupportedError, match="operator RandomUniformLike"):
        fastrnn.from_onnx(made)


def test_an_operator_on_constants_alone_is_folded():
    made = model(
        "(float[B, 3] x) => (float[B, 3] y)",
        "u = Unique (c) y = Add (x, u)",
        c=np.float32([2, 1, 1, 3, 2]),
    )
    runs_as_onnxruntime(made, {"x": noise(2, 3)})


def test_an_attribute_that_onnx_does_not_know_is_refused():
    made = model("(float[B, 4] x, int64[B] t) => (float l)", "l = SoftmaxCrossEntropyLoss <other = 1> (x, t)")
    with pytest.raises(UnsupportedError, match="attribute other=1"):
        fastrnn.from_onnx(made)


def test_a_finding_inside_a_body_names_the_node_of_the_file():
    made = model("(double[B, 4] x, int64[B] t) => (double l)", "l = SoftmaxCrossEntropyLoss (x, t)")
    with pytest.raises(UnsupportedError, match="double"):
        fastrnn.from_onnx(made)
    onnx.checker.check_model(made)

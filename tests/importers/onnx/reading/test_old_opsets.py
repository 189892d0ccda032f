"""Files of opsets 1 to 6: what did not change is read, the rest is refused with a remedy."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import model, noise

import fastrnn
from fastrnn.errors import UnsupportedError
from fastrnn.importers.onnx.precheck import OLD_OPERATORS
from fastrnn.importers.onnx.reading.registry import OPERATORS


def answers(made, *arrays):
    return fastrnn.from_onnx(made).run(*arrays)[0]


@pytest.mark.parametrize("opset", [1, 3, 6])
def test_operands_along_an_axis(opset):
    """Before opset 7 the axis of the second operand is named."""
    bias, x = noise(4), noise(3, 4, 5)
    made = model(
        "(float[B, 4, T] x) => (float[B, 4, T] y)",
        "a = Add <broadcast = 1, axis = 1> (x, b) y = Mul <broadcast = 1> (a, s)",
        opset=opset,
        b=bias,
        s=np.float32([2]),
    )
    np.testing.assert_allclose(answers(made, x), (x + bias[:, None]) * 2, rtol=1e-6)


def test_an_older_network():
    """As exporters of 2018 wrote it: hints about memory, a shape as an attribute, dropout and norms with is_test."""
    W, c, x = noise(6, 4), noise(4), noise(2, 3, 2)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], consumed_inputs=[1]),
        helper.make_node("Reshape", ["a"], ["r"], shape=[0, -1]),
        helper.make_node("Gemm", ["r", "W", "c"], ["g"], broadcast=1),
        helper.make_node("Dropout", ["g"], ["d"], is_test=1),
        helper.make_node("Softmax", ["d"], ["y"], axis=1),
    ]
    made = model("(float[B, 3, 2] x) => (float[B, 4] y)", "y = Identity (x)", opset=4)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in (("W", W), ("c", c)))
    scores = np.maximum(x, 0).reshape(2, 6) @ W + c
    e = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(answers(made, x), e / e.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("op", ["Dropout", "BatchNormalization"])
def test_training_is_refused(op):
    made = model(
        "(float[B, 2, T] x) => (float[B, 2, T] y)",
        "y = Dropout (x)" if op == "Dropout" else "y = BatchNormalization (x, s, s, s, s)",
        opset=6,
        s=np.ones(2, np.float32),
    )
    with pytest.raises(UnsupportedError, match="is_test=0"):
        fastrnn.from_onnx(made)


def test_what_changed_is_refused_with_a_remedy():
    made = model("(float[B, 4] x) => (float[B, 4] y)", "y = PRelu (x, s)", opset=6, s=np.ones(4, np.float32))
    with pytest.raises(UnsupportedError, match="operator PRelu of opset 6; convert the file to opset 7 or later"):
        fastrnn.from_onnx(made)


def test_constants_of_old_files_are_not_folded_by_the_rules_of_new_ones():
    made = model(
        "(float[B, 2, 3] x) => (float[B, 2, 3] y)",
        "c = Add <broadcast = 1, axis = 0> (m, v) y = Add <broadcast = 1> (x, c)",
        opset=6,
        m=np.zeros((2, 3), np.float32),
        v=np.float32([1, 2]),
    )
    x = noise(2, 2, 3)
    np.testing.assert_allclose(answers(made, x), x + np.float32([[1], [2]]), rtol=1e-6)


def test_the_list_names_operators_that_are_read():
    assert all(("", name) in OPERATORS for name in OLD_OPERATORS)

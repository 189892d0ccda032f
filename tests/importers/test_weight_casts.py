"""Weights and settings beyond float32: they round, but never become infinite."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from test_keras_hostile import archive, dense, sequential, weights
from torch import nn

import fastrnn
from fastrnn.errors import FastRNNError, ModelFormatError

LOST = [np.array([[1e300, 0.0]]), np.array([[0.0, -1e39]]), np.array([[1e300, np.inf]]), np.array([[np.nan, 1e300]])]


def double(weight) -> nn.Module:
    net = nn.Linear(2, 1).double()
    net.weight.data, net.bias.data[:] = torch.from_numpy(weight), 0
    return net


def in_onnx(weight, *, node=False):
    held = numpy_helper.from_array(weight.T.copy(), "held")
    nodes = [helper.make_node("MatMul", ["x", "held"], ["y"], name="product")]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["held"], value=held))
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["B", "T", s]) for n, s in (("x", 2), ("y", 1))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [] if node else [held])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def saved(tmp_path, tensors):
    torch.save(tensors, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def in_keras(weight):
    vars_ = {"dense_0": weight.T.copy(), "dense_1": np.zeros(1)}
    return archive(sequential(dense(units=1), shape=(None, None, 2)), weights(**vars_))


# name -> (weight [1, 2] -> model that multiplies by it; words of the error)
LINEAR = {"out.weight": 0, "out.bias": np.zeros(1)}


LOADERS = {
    "from_arrays": (lambda w, t: fastrnn.from_arrays("rnn_relu", W=w, R=np.zeros((1, 1))), "W has"),
    "from_arrays, a list": (lambda w, t: fastrnn.from_arrays("rnn", W=w.tolist(), R=[[0]]), "W: .* is beyond|W has"),
    "from_equations": (lambda w, t: fastrnn.from_equations("y = W @ x", W=w), "array W has"),
    "layers= of .pt": (
        lambda w, t: fastrnn.load(
            saved(t, {n: torch.from_numpy(np.asarray(w if n == "out.weight" else a)) for n, a in LINEAR.items()}),
            layers=["linear:out"],
        ),
        "out.weight has",
    ),
    "layers= of .safetensors": (
        lambda w, t: fastrnn.load(save({**LINEAR, "out.weight": w}), layers=["linear:out"]),
        "out.weight has",
    ),
    "from_torch": (lambda w, t: fastrnn.from_torch(double(w), float64_as_float32=True), "Linear: weight has"),
    "ONNX": (lambda w, t: fastrnn.from_onnx(in_onnx(w), float64_as_float32=True), "tensor 'held' has"),
    "ONNX, a node": (lambda w, t: fastrnn.from_onnx(in_onnx(w, node=True), float64_as_float32=True), "product.* has"),
    "Keras": (lambda w, t: fastrnn.load(in_keras(w)), "layers/dense/vars/0 of layer .*has"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_round_but_never_become_infinite(loader, tmp_path):
    load, words = LOADERS[loader]
    with np.errstate(all="raise"):
        model = load(np.array([[0.1, 2.0]]), tmp_path)
    y = model([[[1.0, 0.0]]])
    assert abs(float(y.reshape(-1)[0]) - 0.1) < 1e-3
    for weight in LOST:
        with pytest.raises(FastRNNError, match=f"{words}.*float32"):
            load(weight, tmp_path)


@pytest.mark.parametrize(
    ("weight", "taken"),
    [
        ([[1, 2]], True), ([[1 << 24, 0.5]], True), (np.array([[1 << 40, 3]]), True), ([[0.1, True]], True),
        ([[(1 << 24) + 1, 2]], False), ([[(1 << 53) + 1, 0.5]], False), (np.array([[(1 << 53) + 1, 2]]), False),
        (np.uint64([[(1 << 64) - 1, 2]]), False), (np.int32([[(1 << 24) + 1, 2]]), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("load", [
    lambda w: fastrnn.from_arrays("rnn_relu", W=w, R=[[0]]), lambda w: fastrnn.from_equations("y = W @ x", W=w),
], ids=["from_arrays", "from_equations"])  # fmt: skip
def test_integer_weights_are_exact_or_refused(load, weight, taken):
    if taken:
        assert load(weight)([[[1.0, 0]]]).reshape(()) == np.float32(weight[0][0])
    else:
        with pytest.raises(ModelFormatError, match="is not a number of float32"):
            load(weight)


def test_an_example_beyond_float32_is_refused():
    with pytest.raises(ModelFormatError, match="example= has numbers up to 1e\\+300"):
        fastrnn.from_torch(nn.Linear(2, 1), torch.full((1, 3, 2), 1e300, dtype=torch.float64))


RELU = {"name": "r", "max_value": 1e300, "negative_slope": 0.0, "threshold": 0.0}


@pytest.mark.parametrize(
    "load",
    [
        lambda: fastrnn.load(archive(sequential(dense(), {"class_name": "ReLU", "config": RELU}))),
        lambda: fastrnn.load(
            archive(sequential(dense(), {"class_name": "LeakyReLU", "config": {"name": "r", "alpha": -1e39}}))
        ),
        lambda: fastrnn.load(save({"w.weight": np.ones((2, 2))}), layers=["linear:w", "elu(alpha=1e300)"]),
        lambda: fastrnn.from_torch(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(1e300))),
        lambda: fastrnn.from_arrays("rnn", W=[[1]], R=[[1]], activations=[("leaky_relu", 1e300, 0.0)]),
        lambda: fastrnn.from_equations("y = x * 1e300", inputs={"x": 1}),
    ],
    ids=["Keras ReLU", "Keras LeakyReLU", "layers=", "from_torch", "from_arrays", "from_equations"],
)
def test_settings_beyond_float32_are_refused(load):
    with pytest.raises(FastRNNError, match=r"float32|without overflow"):  # the second is torch's own word
        load()

"""A model that leaves the size of a step open: the first stream of a pool would fix it for all clients."""

import json
import logging

import numpy as np
import pytest
from running import ask

import fastrnn

helper = pytest.importorskip("onnx.helper", reason="no onnx: pip install 'fastrnn[test]'")

pytestmark = pytest.mark.any_isa


def running_sum(**options):
    """A model with x [batch, size] that adds up what it gets."""
    sizes = {"x": "size", "h": 1, "y": 1}
    values = {name: helper.make_tensor_value_info(name, 1, ["batch", n]) for name, n in sizes.items()}
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"]),
        helper.make_node("Add", ["s", "h"], ["y"]),
    ]
    axes = helper.make_tensor("axes", 7, [1], [1])
    graph = helper.make_graph(nodes, "sum", [values["x"], values["h"]], [values["y"]], [axes])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return fastrnn.from_onnx(made, states={"h": "y"}, threads=1, **options)


def asked(x, **parameters):
    item = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    return json.dumps({"inputs": [item], "parameters": parameters})


def test_it_has_no_sequences_and_says_what_to_do(serve, caplog):
    model = running_sum()
    assert model.streamable
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with caplog.at_level(logging.WARNING, "fastrnn"), serve({"m": model}) as server:
        _, told, _ = ask(server, "GET", "/v2/models/m")
        assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
        status, answer, _ = ask(server, "POST", "/v2/models/m/infer", asked(x[:1], sequence_id=1, sequence_start=True))
        assert status == 400
        assert answer["error"].startswith("'m' leaves 'size' of a step open, so it has no sequences")
        assert "--size size=N" in answer["error"]
        status, answer, _ = ask(server, "POST", "/v2/models/m/infer", asked(x))
        assert (status, answer["outputs"][0]["data"]) == (200, [3, 12])
        assert "the size of a step is open" in ask(server, "GET", "/live")[1]["models"][0]["stream"]["why"]
    assert "--size size=N" in caplog.text


def test_with_its_size_it_has_sequences(serve):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with serve({"m": {1: running_sum(), 2: running_sum(sizes={"size": 3})}}) as server:
        status, answer, _ = ask(server, "POST", "/v2/models/m/infer", asked(x[:1], sequence_id=1, sequence_start=True))
        assert (status, answer["outputs"][0]["data"]) == (200, [3])
        status, answer, _ = ask(server, "POST", "/v2/models/m/infer", asked(x[1:], sequence_id=1))
        assert (status, answer["outputs"][0]["data"]) == (200, [15])
        path, start = "/v2/models/m/versions/1/infer", asked(x[:1], sequence_id=2, sequence_start=True)
        status, answer, _ = ask(server, "POST", path, start)
        assert (status, "leaves 'size' of a step open" in answer["error"]) == (400, True)

"""Whole sequences are [batch, steps, features], whatever the order of the axes in the model's file is."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import fastrnn

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
from fastrnn.serving.server.whole import WholeRuns

pytestmark = pytest.mark.any_isa

DATA = Path(__file__).resolve().parents[1] / "data" / "onnx"


def asked(model, *sequences):
    """The answers to requests that come at the same time."""

    async def main():
        whole = WholeRuns(model, 0.05)
        (given,) = whole.inputs
        found = await asyncio.gather(*(whole.run({given.name: x}) for x in sequences))
        await whole.close()
        return found, whole.runs

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_time_first():
    """A square batch would hide axes that are exchanged: the answer had the right shape and wrong numbers."""
    model = fastrnn.load(DATA / "bigru_stacked.dynamo.onnx", threads=1)
    assert model.inputs[0].dims == ("time", "batch", 7)
    rng = np.random.default_rng(1)
    given = [rng.normal(size=(n, steps, 7)).astype(np.float32) for n, steps in ((2, 6), (3, 3), (1, 9))]
    found, runs = asked(model, *given)
    for x, answer in zip(given, found, strict=True):
        for row, y in zip(x, answer["y"], strict=True):
            assert np.array_equal(y, model(row[:, None])[:, 0])
    assert runs == 1


def test_features_before_time():
    onnx = pytest.importorskip("onnx.helper", reason="no onnx: pip install 'fastrnn[test]'")
    ends = [onnx.make_tensor_value_info(n, 1, ["batch", size, t]) for n, size, t in (("x", 3, "time"), ("y", 2, "t"))]
    w = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
    node = onnx.make_node("Conv", ["x", "w"], ["y"], strides=[2])
    weights = [onnx.make_tensor("w", 1, w.shape, w.reshape(-1))]
    graph = onnx.make_graph([node], "halves", ends[:1], ends[1:], weights)
    made = onnx.make_model(graph, opset_imports=[onnx.make_opsetid("", 17)], ir_version=8)
    model = fastrnn.from_onnx(made, threads=1)
    x = np.random.default_rng(3).normal(size=(2, 9, 3)).astype(np.float32)
    (answer,), _ = asked(model, x)
    assert answer["y"].shape == (2, 3, 2)
    assert np.array_equal(answer["y"], model(x.transpose(0, 2, 1)).transpose(0, 2, 1))

"""The number of walks over a file does not grow with the sizes that it has to learn."""

import numpy as np
import onnx
import pytest
from onnx_text import agrees_with_onnxruntime, dims, noise

import fastrnn.importers.onnx as importer


def cached(blocks, batch):
    """A chunk of 4 frames through blocks that each keep a cache: [3 + block, batch, 5]."""
    inputs = [f"float[4,{batch},5] x", *(f"float[{3 + k},{batch},5] c{k}" for k in range(blocks))]
    outputs = [f"float[4,{batch},5] y{blocks - 1}", *(f"float[{3 + k},{batch},5] n{k}" for k in range(blocks))]
    lines = []
    for k in range(blocks):
        before = f"y{k - 1}" if k else "x"
        lines += [
            f"whole{k} = Concat <axis = 0> (c{k}, {before})",
            f"n{k} = Slice (whole{k}, minus{k}, end, axis)",
            f"new{k} = Slice (whole{k}, start{k}, end, axis)",
            f"y{k} = Add (new{k}, {before})",
        ]
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({", ".join(inputs)}) => ({", ".join(outputs)}) '
    made = onnx.parser.parse_model(text + "{ " + "\n".join(lines) + " }")
    arrays = {"axis": [0], "end": [2**63 - 1]}
    for k in range(blocks):
        arrays |= {f"minus{k}": [-(3 + k)], f"start{k}": [3 + k]}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.int64(v), name) for name, v in arrays.items())
    return made


@pytest.fixture
def walks(monkeypatch):
    """A list with an entry for each walk."""
    seen, walk = [], importer.walk
    monkeypatch.setattr(importer, "walk", lambda *args: seen.append(1) or walk(*args))
    return seen


@pytest.mark.parametrize("batch", ["N", "2"])
def test_many_sizes_take_as_many_walks_as_few(walks, batch):
    counts = []
    for blocks in (2, 40):
        walks.clear()
        graph = importer.import_onnx(cached(blocks, batch))
        counts.append(len(walks))
        assert dims(graph, "c1")[0] == 4
        assert dims(graph, "x")[1] == ("time" if batch == "N" else 2)
    assert counts[0] == counts[1] <= 3


def test_sizes_learned_in_the_middle_of_a_walk_give_the_answers_of_the_file():
    blocks = 5
    feeds = {"x": noise(4, 3, 5)} | {f"c{k}": noise(3 + k, 3, 5) for k in range(blocks)}
    agrees_with_onnxruntime(cached(blocks, "N"), **feeds)


def test_notes_name_the_final_sizes(walks):
    """A note made before the sizes had names would say s0."""
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[19,2,3] x) => (float[19,2,2] z) '
        "{ y, h = RNN <hidden_size = 2> (x, W, R)\n z = Reshape(y, s) }"
    )
    arrays = {"W": noise(1, 2, 3), "R": noise(1, 2, 2), "s": np.int64([19, 2, 2])}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in arrays.items())
    notes = importer.import_onnx(made).notes
    assert any("Reshape to [19, 2, 2] follows [time, batch, 2]" in note for note in notes), notes

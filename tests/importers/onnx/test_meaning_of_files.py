"""One model as different files write it: both exporters of PyTorch, other names, Identity nodes, constants as nodes.
A session moves between them with the same bits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import fastrnn
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
FOLDER = Path(__file__).resolve().parents[2] / "data" / "onnx"
# Their exporters write other operations: Gelu or its formula, Mish or Softplus and Tanh.
OTHER_FORMULAS = {"head_gelu", "head_gelu_tanh", "head_prelu_mish", "head_softs"}
BASES = sorted(p.name.split(".")[0] for p in FOLDER.glob("*.dynamo.onnx"))
PAIRS = [b for b in BASES if (FOLDER / f"{b}.script.onnx").exists()]


def inputs(model, steps, seed):
    """Random inputs of a stream: a tuple with one for each input."""
    rng, states, found = np.random.default_rng(seed), {t.name for t in model.states}, []

    def timed(t):  # each call of a step function is a step
        return "time" in t.dims or not any("time" in other.dims for other in model.inputs)

    for t in model.inputs:
        if t.name in states:
            continue
        shape = (*([steps] if timed(t) else []), *(d for d in t.dims if isinstance(d, int)))
        found.append(rng.integers(0, 4, shape) if "int" in t.dtype else rng.standard_normal(shape).astype(np.float32))
    return found[0] if len(found) == 1 else tuple(found)


def bits(result):
    return b"".join(np.asarray(r).tobytes() for r in (result if isinstance(result, tuple) else (result,)))


def go_on(old, new):
    """Whether a session goes on in the other model with the same bits."""
    stream, other = old.stream(), new.stream()
    stream.push(inputs(old, 7, 1))
    other.restore(stream.snapshot())
    rest = inputs(old, 6, 2)
    return bits(stream.push(rest)) == bits(other.push(rest))


@pytest.mark.parametrize("base", PAIRS)
def test_both_exporters(base):
    script, dynamo = (fastrnn.load(FOLDER / f"{base}.{tag}.onnx") for tag in ("script", "dynamo"))
    if not (script.streamable and dynamo.streamable):
        pytest.skip("can't be streamed")
    if base in OTHER_FORMULAS:
        assert script.fingerprint != dynamo.fingerprint
        with pytest.raises(fastrnn.StateError, match="belongs to the model"):
            go_on(script, dynamo)
        return
    assert go_on(script, dynamo)
    assert go_on(dynamo, script)


def test_there_are_pairs():
    assert len(PAIRS) > 20


def rewritten(path):
    """The file with other names for everything but inputs and outputs, an Identity behind each node, and its
    initializers as Constant nodes."""
    model = onnx.load(path)
    graph = model.graph
    kept = {v.name for v in (*graph.input, *graph.output)}
    new = {}

    def name(old):
        return old if old in kept or not old else new.setdefault(old, f"t{len(new)}")

    nodes = []
    for i, tensor in enumerate(graph.initializer):
        value = numpy_helper.from_array(numpy_helper.to_array(tensor))
        nodes.append(helper.make_node("Constant", [], [name(tensor.name)], name=f"c{i}", value=value))
    for i, node in enumerate(graph.node):
        inputs = []
        for k, old in enumerate(node.input):
            if old and node.op_type not in ("Constant", "If", "Loop", "Scan"):
                nodes.append(helper.make_node("Identity", [name(old)], [f"i{i}.{k}"], name=f"identity{i}.{k}"))
                inputs.append(f"i{i}.{k}")
            else:
                inputs.append(name(old))
        del node.input[:]
        node.input.extend(inputs)
        outputs = [name(o) for o in node.output]
        del node.output[:]
        node.output.extend(outputs)
        node.name = f"n{i}"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    del graph.value_info[:]
    graph.name = "rewritten"
    return model.SerializeToString()


@pytest.mark.parametrize(
    "file",
    ["gru_stacked.script", "gru_states.script", "lstm_stacked.dynamo", "batch_norm.script", "causal_window.dynamo",
     "gated_head.dynamo", "feature_mean.script"],
)  # fmt: skip
def test_other_names_and_identities(file):
    path = FOLDER / f"{file}.onnx"
    if not path.exists():
        path = FOLDER / f"{file.split('.')[0]}.script.onnx"
    old, new = fastrnn.load(path), fastrnn.load(rewritten(path))
    assert old.fingerprint == new.fingerprint
    assert go_on(old, new)
    assert go_on(new, old)


@pytest.mark.parametrize("base", ["gru_stacked", "gru_states", "batch_norm", "causal_window", "gated_head"])
def test_files_of_our_own(base, tmp_path):
    path = next(
        FOLDER / f"{base}.{tag}.onnx" for tag in ("script", "dynamo") if (FOLDER / f"{base}.{tag}.onnx").exists()
    )
    model = fastrnn.load(path)
    model.save(tmp_path / "model.fastrnn")
    saved = fastrnn.load(tmp_path / "model.fastrnn")
    assert go_on(model, saved)
    assert go_on(saved, model)
    assert go_on(Model(saved.graph), model)


@pytest.mark.parametrize("base", ["gru_stacked", "batch_norm", "causal_window", "gated_head", "feature_mean"])
def test_one_bit_of_a_random_weight(base):
    path = next(
        FOLDER / f"{base}.{tag}.onnx" for tag in ("script", "dynamo") if (FOLDER / f"{base}.{tag}.onnx").exists()
    )
    rng, known = np.random.default_rng(5), fastrnn.load(path)
    tried = 0
    while tried < 12:
        model = onnx.load(path)
        tensor = model.graph.initializer[rng.integers(len(model.graph.initializer))]
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < 2:
            continue
        flat = array.copy().reshape(-1)
        flat.view(np.uint32)[rng.integers(flat.size)] ^= np.uint32(1 << int(rng.integers(23)))
        tensor.CopyFrom(numpy_helper.from_array(flat.reshape(array.shape), tensor.name))
        other = fastrnn.load(model.SerializeToString())
        assert not set(other._core.identity.models) & set(known._core.identity.models)
        tried += 1

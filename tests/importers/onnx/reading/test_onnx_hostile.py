"""Damaged, hostile and contradictory ONNX files: each costs a clear FastRNNError, quickly, and little memory."""

import itertools
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastrnn import passes
from fastrnn.errors import FastRNNError, ModelFormatError, UnsupportedError
from fastrnn.importers.onnx import import_onnx

DATA = Path(__file__).resolve().parents[3] / "data" / "onnx"


def float_info(name, dims):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def model(nodes=None, inputs=None, outputs=None, initializers=(), opset=17):
    nodes = nodes if nodes is not None else [helper.make_node("Relu", ["x"], ["y"], name="the_node")]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [float_info("x", ["b", 4])],
        outputs or [float_info("y", None)],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def add(initializer):
    """A model that adds one tensor to its input."""
    return model([helper.make_node("Add", ["x", "w"], ["y"], name="the_node")], initializers=[initializer])


def raw(dims, data=b"", dtype=TensorProto.FLOAT, name="w"):
    tensor = TensorProto(name=name, data_type=dtype, raw_data=data)
    tensor.dims.extend(dims)
    return tensor


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"\x00" * 64, "not an ONNX model"),
        (b"this is a text file, not a model", "not an ONNX model"),
        (b"PK\x03\x04" + bytes(60), "not an ONNX model"),
        (onnx.ModelProto().SerializeToString() or b"\x08\x08", "not an ONNX model"),
    ],
)
def test_not_a_model(data, text, tmp_path):
    with pytest.raises(ModelFormatError, match=text):
        import_onnx(data)
    path = tmp_path / "file.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=r"file\.onnx.*" + text):
        import_onnx(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        import_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(IsADirectoryError):
        import_onnx(tmp_path)
    with pytest.raises(TypeError, match="path, bytes or a ModelProto"):
        import_onnx(7)


def test_every_truncation_of_a_real_file():
    data = (DATA / "gru_states.dynamo.onnx").read_bytes()
    for cut in range(1, len(data), max(1, len(data) // 150)):
        with pytest.raises(FastRNNError):
            import_onnx(data[:cut])


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (raw([1 << 20, 1 << 20]), "but holds 0"),
        (raw([1 << 40, 1 << 40, 1 << 40], bytes(16)), "but holds 16"),
        (raw([4], bytes(15)), "16 bytes, but holds 15"),
        (raw([-4], bytes(16)), "negative dim"),
        (raw([1] * 64, bytes(4)), "rank 64"),
        (raw([4], bytes(16), 8), "string"),
        (raw([4], bytes(16), 99), "type 99"),
        (TensorProto(name="w", data_type=1, dims=[1 << 30], float_data=[1.0]), "but holds 1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "tensor",
)
def test_tensor_that_claims_what_it_has_not(tensor, text):
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=text):
            import_onnx(add(tensor))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def external(location, **entries):
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def folder(tmp_path):
    """outside.bin beside a folder `inside` that has weights.bin and a link that leads out."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.bin").write_bytes(np.float32([9, 9, 9, 9]).tobytes())
    (inside / "weights.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (inside / "link.bin").symlink_to(tmp_path / "outside.bin")
    return inside


def saved(folder, tensor):
    path = folder / "model.onnx"
    path.write_bytes(add(tensor).SerializeToString())
    return path


def test_external_data_inside_the_folder(folder):
    graph = import_onnx(saved(folder, external("weights.bin", offset=8, length=16)))
    (array,) = graph.constants.values()
    np.testing.assert_array_equal(array, [2, 3, 4, 5])


@pytest.mark.parametrize(
    ("location", "entries", "text"),
    [
        ("../outside.bin", {}, "outside the model's folder"),
        ("link.bin", {}, "outside the model's folder"),
        ("sub/../../outside.bin", {}, "outside the model's folder"),
        ("{absolute}", {}, "outside the model's folder"),
        ("nothing.bin", {}, "not a file"),
        (".", {}, "not a file"),
        ("", {}, "without a location"),
        ("weights.bin", {"offset": 24}, "needs 16 bytes"),
        ("weights.bin", {"offset": -4}, "bad offset"),
        ("weights.bin", {"offset": "many"}, "bad offset"),
        ("weights.bin", {"length": 1 << 50}, "needs 16 bytes"),
    ],
)
def test_external_data_elsewhere(folder, location, entries, text):
    location = location.replace("{absolute}", str(folder.parent / "outside.bin"))
    with pytest.raises(ModelFormatError, match=text):
        import_onnx(saved(folder, external(location, **entries)))


def test_external_data_of_bytes_is_refused(folder):
    data = saved(folder, external("weights.bin", length=16)).read_bytes()
    with pytest.raises(ModelFormatError, match="only a model given by path"):
        import_onnx(data)


def node(op, inputs, outputs, name="the_node", **attrs):
    return helper.make_node(op, inputs, outputs, name=name, **attrs)


ONES = numpy_helper.from_array(np.ones(4, np.float32), "w")
CONTRADICTIONS = {
    "a cycle": ({"nodes": [node("Add", ["x", "z"], ["y"], "a"), node("Relu", ["y"], ["z"], "b")]}, "cycle"),
    "a node that reads itself": ({"nodes": [node("Add", ["x", "y"], ["y"])]}, "cycle"),
    "a missing input": ({"nodes": [node("Add", ["x", "nowhere"], ["y"])]}, "nothing makes its input 'nowhere'"),
    "a missing output": ({"outputs": [float_info("z", None)]}, "nothing makes the output 'z'"),
    "a value made twice": (
        {"nodes": [node("Relu", ["x"], ["y"], "a"), node("Abs", ["x"], ["y"], "b")]},
        "already exists",
    ),
    "an input that is made": (
        {"nodes": [node("Relu", ["x"], ["x"], "a")], "outputs": [float_info("x", None)]},
        "already exists",
    ),
    "two inputs of one name": ({"inputs": [float_info("x", [1]), float_info("x", [1])]}, "declared twice"),
    "two weights of one name": (
        {"nodes": [node("Add", ["x", "w"], ["y"])], "initializers": [ONES, ONES]},
        "two initializers",
    ),
    "two outputs of one name": ({"outputs": [float_info("y", None)] * 2}, "declared twice.*name the outputs"),
    "a negative dim": ({"inputs": [float_info("x", [-3, 4])]}, "dim -3"),
    "a huge dim": ({"inputs": [float_info("x", [1 << 62, 4])]}, "dim 4611686018427387904"),
    "sizes that don't fit": (
        {"nodes": [node("Add", ["x", "w"], ["y"])], "inputs": [float_info("x", [2, 3])], "initializers": [ONES]},
        "the_node",
    ),
    "a required input left out": ({"nodes": [node("MatMul", ["x"], ["y"])]}, "input 1 is missing"),
    "a Gather of nothing": ({"nodes": [node("Gather", ["x"], ["y"])]}, "input 1 is missing"),
    "a Gather of no input": ({"nodes": [node("Gather", [], ["y"])]}, "input 0 is missing"),
    "an attribute given twice": (
        {"nodes": [onnx.parser.parse_node("y = Elu <alpha = 1.0> (x)")] * 1},
        "given twice",
    ),
    "an attribute of another type": ({"nodes": [node("Elu", ["x"], ["y"], alpha="big")]}, "alpha must be float"),
    "an infinite attribute": ({"nodes": [node("Elu", ["x"], ["y"], alpha=float("inf"))]}, "alpha is inf"),
    "an axis outside": ({"nodes": [node("Softmax", ["x"], ["y"], axis=7)]}, "axis 7"),
    "a perm that is none": ({"nodes": [node("Transpose", ["x"], ["y"], perm=[0, 0])]}, "perm"),
    "an attribute reference": ({"nodes": [node("Elu", ["x"], ["y"])]}, "outside of a function"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction(case):
    parts, text = CONTRADICTIONS[case]
    made = model(**parts)
    if case == "an attribute given twice":
        made.graph.node[0].attribute.append(made.graph.node[0].attribute[0])
    if case == "an attribute reference":
        made.graph.node[0].attribute.add(name="alpha", type=1, ref_attr_name="outer")
    with pytest.raises(ModelFormatError, match=text):
        import_onnx(made)


@pytest.mark.parametrize("place", ["op", "x", "y", "name", "domain", "attribute", "w"])
def test_names_that_are_not_utf8(place):
    """protobuf gives such strings as bytes, which sort beside no text (the fuzzer found an attribute's name)."""
    names = dict(op="Elu", x="x", y="y", name="n", domain="", attribute="alpha", w="w") | {place: "QQQQ"}
    first = node(names["op"], [names["x"]], [names["y"]], names["name"], domain=names["domain"])
    first.attribute.append(helper.make_attribute(names["attribute"], 1.0))
    made = model(
        [first, node("Add", [names["y"], names["w"]], ["z"])],
        [float_info(names["x"], [3])],
        [float_info("z", None)],
        [helper.make_tensor(names["w"], TensorProto.FLOAT, [3], [1, 2, 3])],
    )
    with pytest.raises(ModelFormatError, match="is not UTF-8"):
        import_onnx(made.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xff\xfe"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"opset": 0}, "opset 0"),
        ({"opset": 999}, "opset 999"),
        ({"inputs": [helper.make_tensor_value_info("x", TensorProto.STRING, [1])]}, "dtype string"),
        ({"inputs": [helper.make_tensor_value_info("x", TensorProto.COMPLEX64, [1])]}, "complex64"),
        ({"inputs": [helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])]}, "sequence_type"),
        ({"inputs": [float_info("x", None)]}, "declares no rank"),
        ({"nodes": [node("Relu", ["x", "x"], ["y"])]}, "input 1"),
        ({"nodes": [node("Relu", ["x"], ["y"], domain="com.example")]}, "com.example.Relu"),
    ],
)
def test_refusal(change, text):
    with pytest.raises(UnsupportedError, match=text):
        import_onnx(model(**change))


def test_no_opset_at_all():
    made = model()
    del made.opset_import[:]
    with pytest.raises(ModelFormatError, match="no opset"):
        import_onnx(made)


def bomb(op, **attrs):
    """A chain that doubles or squares a constant forty times over."""
    nodes = [node(op, ["w", "w"], ["v0"], "n0", **attrs)]
    nodes += [node(op, [f"v{k}", f"v{k}"], [f"v{k + 1}"], f"n{k + 1}", **attrs) for k in range(40)]
    nodes.append(node("Add", ["x", "v40"], ["y"], "last"))
    return model(nodes, initializers=[ONES])


@pytest.mark.parametrize(
    "made",
    [
        bomb("Concat", axis=0),
        model(
            [
                node("Expand", ["w", "s"], ["v"]),
                node("Sin", ["v"], ["u"], "sin"),
                node("Add", ["x", "u"], ["y"], "add"),
            ],
            initializers=[ONES, numpy_helper.from_array(np.int64([1 << 33, 4]), "s")],
        ),
        model(
            [node("Range", ["a", "b", "c"], ["v"]), node("Add", ["x", "v"], ["y"], "add")],
            initializers=[numpy_helper.from_array(np.float32(v), n) for n, v in zip("abc", (0, 1e30, 1), strict=True)],
        ),
        model(
            [node("Add", ["w", "r"], ["v"]), node("Add", ["v", "v3"], ["u"], "b"), node("Add", ["x", "u"], ["y"], "c")],
            initializers=[
                numpy_helper.from_array(np.zeros(s, np.float32), n)
                for n, s in (("w", (1 << 14, 1)), ("r", (1, 1 << 14)), ("v3", (1, 1)))
            ],
        ),
    ],
    ids=["doubling", "expand", "range", "outer sum"],
)
def test_small_files_that_would_grow(made):
    """A constant that would take gigabytes is refused before it is made."""
    start = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(FastRNNError):
            import_onnx(made)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 10


def test_a_deep_chain_and_deep_nesting_take_no_recursion():
    names = ["x", *(f"v{k}" for k in range(5000)), "y"]
    deep = model([node("Relu", [a], [b], f"n{b}") for a, b in itertools.pairwise(names)])
    assert len(import_onnx(deep).nodes) == 5001
    body = helper.make_graph([node("Identity", ["x"], ["out"], "core")], "core", [], [float_info("out", None)])
    for k in range(25):  # protobuf itself stops at a hundred messages, some thirty subgraphs
        inner = [node("If", ["c"], ["out"], f"if{k}", then_branch=body)]
        body = helper.make_graph(inner, f"g{k}", [], [float_info("out", None)])
    nested = model(
        [node("If", ["c"], ["y"], "outer", then_branch=body, else_branch=body)],
        [float_info("x", [1]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
    )
    with pytest.raises(UnsupportedError, match="its condition is computed from the input 'c'"):
        import_onnx(nested)
    assert len(import_onnx(nested, bind={"c": True}).nodes) == 1


def test_branches_that_are_no_branches():
    """An If without a branch, with one that has inputs, with too few outputs, or with a cycle of its own."""
    good = helper.make_graph([node("Identity", ["x"], ["out"], "core")], "good", [], [float_info("out", None)])
    fed = helper.make_graph([], "fed", [float_info("out", [1])], [float_info("out", [1])])
    pair = helper.make_graph(list(good.node), "pair", [], [float_info("out", None)] * 2)
    loop = [node("Relu", ["b"], ["a"], "first"), node("Relu", ["a"], ["b"], "second")]
    cyclic = helper.make_graph(loop, "cyclic", [], [float_info("a", None)])
    inputs = [float_info("x", [1]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    for branch, text in (
        ({}, "without then_branch"),
        ({"then_branch": fed}, "has inputs"),
        ({"then_branch": pair}, "branch has 2"),
        ({"then_branch": cyclic}, "has a cycle"),
    ):
        made = model([node("If", ["c"], ["y"], "outer", else_branch=good, **branch)], inputs)
        with pytest.raises(ModelFormatError, match=text):
            import_onnx(made, bind={"c": True})
        assert len(import_onnx(made, bind={"c": False}).nodes) == 1


def test_three_unsupported_operators_are_named_at_once():
    then = [node("NonZero", ["x"], ["d"], "in_branch"), node("Identity", ["d"], ["out"], "same")]
    branch = helper.make_graph(then, "then", [], [float_info("out", None)])
    made = model(
        [
            node("NonZero", ["x"], ["a"], "one"),
            node("Unique", ["x"], ["b"], "two"),
            node("If", ["c"], ["e"], "choose", then_branch=branch, else_branch=branch),
            node("Sum", ["a", "b", "e"], ["y"], "all"),
        ],
        [float_info("x", [2, 2]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
    )
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(made, bind={"c": True})
    for text in ("node one: operator NonZero", "node two: operator Unique", "in_branch: operator NonZero"):
        assert text in str(caught.value)


SEED = 20261121


def damaged(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["gru_states.dynamo", "rnn_tanh.dynamo_frozen", "keras_rnn.tf2onnx", "lstm_states.script"]
)
def test_random_damage(name):
    """Whatever bytes change, the file loads or costs a FastRNNError."""
    rng, data = random.Random(SEED), (DATA / f"{name}.onnx").read_bytes()
    for k in range(60):
        try:
            passes.run(import_onnx(damaged(rng, data)))
        except FastRNNError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {SEED}, round {k} of {name}: {type(error).__name__}") from error

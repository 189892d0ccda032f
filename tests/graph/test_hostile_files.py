"""Damaged and hostile .fastrnn files, and arrays that do not fit: each costs a clear FastRNNError, never a crash.

Whoever writes a file can write a right fingerprint into it too, so `forge` does: the checks behind it are tested.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.graph import Graph, Node, Value, artifact, validate
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME

ROOT = Path(__file__).resolve().parents[2]


def small_graph() -> Graph:
    """ids -> Embedding 5x3 -> GRU 3->4 (sequence lengths given) -> linear 4->2 with tanh."""
    rng = np.random.default_rng(0)
    shapes = {"table": (5, 3), "W": (12, 3), "R": (12, 4), "V": (4, 2), "b": (2,)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    dims = {
        "ids": ("int64", (TIME, BATCH)),
        "lengths": ("int64", (BATCH,)),
        "x": ("float32", (TIME, BATCH, 3)),
        "h": ("float32", (TIME, BATCH, 4)),
        "hn": ("float32", (BATCH, 4)),
        "y": ("float32", (TIME, BATCH, 2)),
        **{name: ("float32", shape) for name, shape in shapes.items()},
    }
    cell = (*("x", "W", "R"), None, None, None, None, None, "lengths")
    nodes = (
        Node("gather", "embed", ("table", "ids"), ("x",), {"axis": 0}),
        Node("cell", "gru", cell, ("h", "hn", None), {"spec": CellSpec("gru", 3, 4)}),
        Node("linear", "out", ("h", "V", "b"), ("y",), {"activation": "tanh", "alpha": 0.0, "beta": 0.0}),
    )
    values = {name: Value(name, dtype, shape) for name, (dtype, shape) in dims.items()}
    return validate(Graph("small", ("ids", "lengths"), ("y", "hn"), nodes, values, constants))


def parts() -> tuple[dict, dict]:
    """(graph JSON as a dict, tensors) of the small graph."""
    graph = small_graph()
    return json.loads(artifact.graph_to_json(graph)), {k: np.array(v) for k, v in graph.constants.items()}


def container(metadata: dict, tensors: dict) -> bytes:
    """A safetensors file written by hand, so that nothing in it needs to be consistent. tensors: name -> array."""
    header, data = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        codes = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "bool": "BOOL", "float16": "F16"}
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def forge(data, tensors: dict, **metadata) -> bytes:
    """A .fastrnn file of this graph JSON (a dict, or raw text), its fingerprint right wherever one can be computed."""
    text = data if isinstance(data, str) else json.dumps(data)
    try:
        print_ = artifact.fingerprint(artifact._graph_from_json(text, dict(tensors)))
    except Exception:  # whatever is wrong with it, the loader has to say so
        print_ = "0" * 64
    return container({"format": artifact.FORMAT, "graph": text, "fingerprint": print_, **metadata}, tensors)


def refused(blob: bytes, tmp_path: Path, match: str | None = None) -> str:
    """Load the blob as bytes and as a file; both must raise a FastRNNError. Returns the text."""
    path = tmp_path / "hostile.fastrnn"
    path.write_bytes(blob)
    texts = []
    for source in (path, blob):
        with pytest.raises(fastrnn.FastRNNError, match=match) as caught:
            artifact.load(source) if source is blob else fastrnn.load(source)
        texts.append(str(caught.value))
    assert "hostile.fastrnn" in texts[0]
    return texts[0]


def test_the_forge_makes_files_that_load(tmp_path):
    """Or every test below would pass for the wrong reason."""
    (tmp_path / "m.fastrnn").write_bytes(forge(*parts()))
    y, hn = fastrnn.load(tmp_path / "m.fastrnn").run(np.array([[1], [2]]), np.array([2]))
    assert (y.shape, hn.shape) == ((2, 1, 2), (1, 4))


class TestContainers:
    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"\x00",
            b"\x00" * 7,
            b"\x00" * 8,
            b"\xff" * 8,
            b"\xff" * 4096,
            (1 << 62).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"[]",
            (6).to_bytes(8, "little") + b"garble",
            (20_000).to_bytes(8, "little") + b"[" * 10_000 + b"]" * 10_000,
            b"GIF89a" + b"\x00" * 100,
        ],
        ids=range(12),
    )
    def test_not_a_container(self, tmp_path, blob):
        refused(blob, tmp_path)

    @pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1000, -100, -4, -1])
    def test_truncated(self, tmp_path, keep):
        refused(forge(*parts())[:keep], tmp_path)

    def test_longer_than_it_says(self, tmp_path):
        refused(forge(*parts()) + b"more", tmp_path)

    @pytest.mark.parametrize("shape", [[1 << 40, 3], [1 << 62, 1 << 62], [-5, 3], [5], [0], ["5", 3], None])
    def test_a_tensor_that_claims_another_size(self, tmp_path, shape):
        blob = forge(*parts())
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        header["table"]["shape"] = shape
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text + blob[8 + size :], tmp_path)

    @pytest.mark.parametrize("offsets", [[0, 1 << 50], [60, 0], [-60, 0], [1, 61], [0, 60, 1], [0.5, 60]])
    def test_a_tensor_that_lies_elsewhere(self, tmp_path, offsets):
        blob = forge(*parts())
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        header["table"]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text + blob[8 + size :], tmp_path)

    @pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "U64", "I8", "COMPLEX", 7])
    def test_a_tensor_of_another_dtype(self, tmp_path, dtype):
        blob = forge(*parts())
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        header["table"]["dtype"] = dtype
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text + blob[8 + size :], tmp_path)

    @pytest.mark.parametrize("where", [-1, -40, -100])
    def test_a_flipped_bit_in_a_weight(self, tmp_path, where):
        blob = bytearray(forge(*parts()))
        blob[where] ^= 1
        refused(bytes(blob), tmp_path, match="fingerprint: it is damaged")

    def test_a_folder(self, tmp_path):
        (tmp_path / "m.fastrnn").mkdir()
        with pytest.raises((fastrnn.FastRNNError, OSError), match=r"m\.fastrnn"):
            fastrnn.load(tmp_path / "m.fastrnn")

    @pytest.mark.parametrize("source", [None, 7, 3.5, [1], object()])
    def test_not_a_path(self, source):
        with pytest.raises(fastrnn.ModelFormatError, match="load takes a path, bytes or a dict of arrays"):
            fastrnn.load(source)

    @pytest.mark.parametrize("name", ["m.txt", "m", "m.exe", ".onnx.bak"])
    def test_an_unknown_file_type(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(fastrnn.ModelFormatError, match="unknown file type"):
            fastrnn.load(tmp_path / name)


class TestMetadata:
    @pytest.mark.parametrize(
        "text", ["", "{", "null", "[]", "7", '"graph"', "{}", "[" * 100_000, '{"name": 1e999}', "NaN"]
    )
    def test_a_graph_that_is_none(self, tmp_path, text):
        refused(forge(text, parts()[1]), tmp_path)

    @pytest.mark.parametrize("form", ["fastrnn 2", "fastrnn 0", "", "onnx"])
    def test_another_format(self, tmp_path, form):
        text = refused(forge(*parts(), format=form), tmp_path)
        assert f"format is {form!r}, expected 'fastrnn 1'" in text

    @pytest.mark.parametrize("key", ["format", "graph", "fingerprint"])
    def test_a_missing_key(self, tmp_path, key):
        blob = forge(*parts())
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        del header["__metadata__"][key]
        text = json.dumps(header).encode()
        refused(len(text).to_bytes(8, "little") + text + blob[8 + size :], tmp_path)

    def test_a_foreign_fingerprint(self, tmp_path):
        refused(forge(*parts(), fingerprint="ab" * 32), tmp_path, match="differ from the file's own fingerprint")


def put(path, value):
    """A mutation of the graph JSON: set the element at a path of keys and indices."""

    def mutate(data):
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return mutate


def drop(path):
    """A mutation: delete the element at a path."""

    def mutate(data):
        place = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return mutate


GATHER, CELL, LINEAR = (("nodes", i) for i in range(3))
SPEC = (*CELL, 4, "spec")
# id -> (mutation, part of the message)
GRAPHS = {
    "unknown_op": (put((*GATHER, 0), "system"), "unknown op 'system'"),
    "op_of_another_form": (put((*GATHER, 0), "softmax"), "softmax with 2 inputs"),
    "unknown_attribute": (put((*GATHER, 4, "mode"), "clip"), "mode"),
    "missing_attribute": (drop((*GATHER, 4, "axis")), "has attributes"),
    "axis_out_of_range": (put((*GATHER, 4, "axis"), 7), "axis 7"),
    "axis_negative": (put((*GATHER, 4, "axis"), -1), "axis -1"),
    "axis_huge": (put((*GATHER, 4, "axis"), 10**30), "axis"),
    "axis_bool": (put((*GATHER, 4, "axis"), True), "axis"),
    "axis_text": (put((*GATHER, 4, "axis"), "0"), "axis"),
    "node_too_short": (drop((*GATHER, 4)), "malformed"),
    "node_is_a_number": (put(GATHER, 7), "malformed"),
    "node_name_twice": (put((*GATHER, 1), "gru"), "two nodes are named gru"),
    "inputs_are_a_number": (put((*GATHER, 2), 7), "malformed"),
    "input_is_a_list": (put((*GATHER, 2, 0), ["table"]), ""),
    "input_is_none": (put((*GATHER, 2, 0), None), "required input"),
    "input_not_declared": (put((*GATHER, 2, 0), "nowhere"), "not declared"),
    "input_made_later": (put((*GATHER, 2, 0), "y"), "not made before"),
    "its_own_input": (put((*LINEAR, 2, 0), "y"), "not made before"),
    "output_made_twice": (put((*LINEAR, 3, 0), "h"), "made twice"),
    "output_is_a_constant": (put((*LINEAR, 3, 0), "b"), "made twice"),
    "output_is_an_input": (put((*GATHER, 3, 0), "ids"), "made twice"),
    "no_outputs": (put((*LINEAR, 3), []), "0 outputs"),
    "too_many_outputs": (put((*LINEAR, 3), ["y", "h2"]), "2 outputs"),
    "graph_output_not_made": (put(("outputs", 0), "z"), ""),
    "graph_outputs_are_a_number": (put(("outputs",), 7), "malformed"),
    "graph_input_twice": (put(("inputs",), ["ids", "ids"]), "named twice"),
    "graph_input_not_declared": (put(("inputs",), ["ids", "lengths", "q"]), "q"),
    "graph_input_is_a_constant": (put(("inputs",), ["ids", "lengths", "table"]), "table"),
    "graph_output_twice": (put(("outputs",), ["y", "y"]), "twice"),
    "states_of_unknown_names": (put(("states",), {"a": "b"}), ""),
    "states_of_different_dims": (put(("states",), {"lengths": "hn"}), ""),
    "states_are_a_list": (put(("states",), ["a"]), "malformed"),
    "notes_are_a_number": (put(("notes",), 3), "malformed"),
    "values_are_a_list": (put(("values",), []), "malformed"),
    "value_without_dims": (put(("values", "x"), ["float32"]), "malformed"),
    "dtype_unknown": (put(("values", "x", 0), "object"), "dtype"),
    "dtype_other": (put(("values", "x", 0), "float64"), ""),
    "constant_dtype_other": (put(("values", "table", 0), "float64"), "holds float32"),
    "constant_dims_other": (put(("values", "table", 1), [3, 5]), "holds float32[5, 3]"),
    "constant_not_declared": (drop(("values", "b")), "not declared"),
    "dim_negative": (put(("values", "x", 1, 2), -3), ""),
    "dim_float": (put(("values", "x", 1, 2), 3.0), "a dim must be"),
    "dim_bool": (put(("values", "x", 1, 2), True), "a dim must be"),
    "dim_none": (put(("values", "x", 1, 2), None), "a dim must be"),
    "dim_huge": (put(("values", "x", 1, 2), 10**400), ""),
    "dim_code": (put(("values", "ids", 1, 0), "__import__('os').abort()"), "not a dim"),
    "dim_attribute": (put(("values", "ids", 1, 0), "time.real"), "not a dim"),
    "dim_power": (put(("values", "ids", 1, 0), "9**9**9**9"), "not a dim"),
    "dim_nested": (put(("values", "ids", 1, 0), "(" * 2000 + "time" + ")" * 2000), "not a dim"),
    "dim_by_zero": (put(("values", "ids", 1, 0), "time//0"), ""),
    "dim_long": (put(("values", "ids", 1, 0), "time+" * 5000 + "1"), "a dim must be"),
    "dim_other_symbol": (put(("values", "lengths", 1, 0), "clock"), ""),
    "cell_kind": (put((*SPEC, "kind"), "ntm"), "unknown cell kind"),
    "cell_hidden_size": (put((*SPEC, "hidden_size"), 5), ""),
    "cell_hidden_size_zero": (put((*SPEC, "hidden_size"), 0), "at least 1"),
    "cell_hidden_size_huge": (put((*SPEC, "hidden_size"), 10**18), ""),
    "cell_hidden_size_float": (put((*SPEC, "hidden_size"), 4.0), "hidden_size must be an int"),
    "cell_clip_negative": (put((*SPEC, "clip"), -1.0), "clip must be positive"),
    "cell_clip_text": (put((*SPEC, "clip"), "often"), "clip must be a finite number"),
    "cell_clip_infinite": (put((*SPEC, "clip"), float("inf")), "clip must be a finite number"),
    "cell_alpha_infinite": (put((*SPEC, "activations", 1, "alpha"), "inf"), "alpha must be a finite number"),
    "cell_beta_huge": (put((*SPEC, "activations", 1, "beta"), 10**400), ""),
    "cell_reverse_text": (put((*SPEC, "reverse"), "no"), "reverse must be true or false"),
    "cell_unknown_field": (put((*SPEC, "zoneout"), 0.1), "malformed"),
    "cell_missing_field": (drop((*SPEC, "input_size")), "malformed"),
    "cell_activation": (put((*SPEC, "activations", 0, "name"), "exec"), "unknown activation"),
    "cell_activations_few": (
        put((*SPEC, "activations"), [{"name": "tanh", "alpha": 0, "beta": 0}]),
        "takes 2 activations",
    ),
    "cell_spec_absent": (put((*CELL, 4), {}), "has attributes"),
    "cell_spec_null": (put(SPEC, None), "malformed"),
    "cell_lengths_float": (put((*CELL, 2, 8), "b"), ""),
    "linear_activation": (put((*LINEAR, 4, "activation"), "exec"), "exec"),
    "linear_alpha_huge": (put((*LINEAR, 4, "alpha"), 10**400), ""),
    "linear_alpha_text": (put((*LINEAR, 4, "alpha"), "big"), "alpha"),
    "linear_weight_not_constant": (put((*LINEAR, 2, 1), "hn"), ""),
    "linear_bias_shape": (put((*LINEAR, 2, 2), "V"), ""),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_makes_no_sense(tmp_path, name):
    mutate, words = GRAPHS[name]
    data, tensors = parts()
    mutate(data)
    text = refused(forge(data, tensors), tmp_path)
    assert words in text, text
    assert len(text) < 1000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "m.fastrnn"
    path.write_bytes(forge(*parts()))
    return fastrnn.load(path)


IDS, LENGTHS = np.array([[1, 2], [3, 4], [0, 1]]), np.array([3, 2])


class TestArrays:
    @pytest.mark.parametrize(
        ("feeds", "words"),
        [
            ((), "input ids, lengths is missing"),
            ((IDS,), "input lengths is missing"),
            ((IDS, LENGTHS, LENGTHS), "takes 2 inputs"),
            ((IDS.astype(np.float32), LENGTHS), "input ids: dtype int64 expected, got float32"),
            ((IDS.astype(complex), LENGTHS), "input ids: dtype int64 expected, got complex128"),
            ((IDS.astype(object), LENGTHS), "input ids: dtype int64 expected, got object"),
            ((np.array([["a", "b"]]), LENGTHS), "input ids: dtype int64 expected"),
            ((IDS[0], LENGTHS), r"input ids: \[time, batch\] expected, got \[2\]"),
            ((IDS[None], LENGTHS), r"input ids: \[time, batch\] expected, got \[1, 3, 2\]"),
            ((IDS, LENGTHS[:1]), r"input lengths: axis 0 \(batch\) is 1, but 2 in ids"),
            ((IDS, np.array([3, 4])), "4"),
            ((IDS, np.array([3, -1])), "-1"),
            ((IDS, np.array([3, 1 << 40])), str(1 << 40)),
            ((IDS + 5, LENGTHS), "5"),
            ((IDS - 9, LENGTHS), "-[5-9]"),
            ((IDS * (1 << 60), LENGTHS), str(1 << 60)[:4]),
        ],
        ids=range(16),
    )
    def test_what_does_not_fit_is_a_shape_error(self, model, feeds, words):
        with pytest.raises(fastrnn.ShapeError, match=words):
            model.run(*feeds)

    def test_unknown_and_repeated_names(self, model):
        with pytest.raises(fastrnn.ShapeError, match="has no input 'x'"):
            model.run(IDS, LENGTHS, x=IDS)
        with pytest.raises(fastrnn.ShapeError, match="input ids is given twice"):
            model.run(IDS, LENGTHS, ids=IDS)

    @pytest.mark.parametrize(("time", "batch"), [(0, 2), (3, 0), (0, 0)])
    def test_empty_arrays_give_empty_answers(self, model, time, batch):
        y, hn = model.run(np.zeros((time, batch), np.int64), np.full(batch, time))
        assert y.shape == (time, batch, 2)
        assert hn.tolist() == [[0.0] * 4] * batch

    def test_memory_layout_does_not_matter(self, model):
        want = model.run(IDS, LENGTHS)
        wide = np.zeros((6, 4), np.int64)
        wide[::2, ::2] = IDS
        forms = [np.asfortranarray(IDS), wide[::2, ::2], IDS[::-1].copy()[::-1], IDS.astype(">i8"), IDS.tolist()]
        readonly = IDS.copy()
        readonly.flags.writeable = False
        for form in (*forms, readonly):
            for a, b in zip(model.run(form, LENGTHS), want, strict=True):
                assert a.tobytes() == b.tobytes()

    def test_inputs_are_left_as_they_are(self, model):
        ids, lengths = IDS.copy(), LENGTHS.copy()
        model.run(ids, lengths)
        assert (ids == IDS).all()
        assert (lengths == LENGTHS).all()

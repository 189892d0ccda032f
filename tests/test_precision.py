"""Models whose weights are held in bfloat16 or 8 bits: same bits however they are run, small errors, small files."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn.machine import _isa

PRECISIONS = ("bfloat16", "int8", "int8-a16")
# Bounds of the largest error of 40 steps; decision 0025 has what LSTM and GRU 512 measured in 100.
ERRORS = {"bfloat16": 5e-3, "int8": 3e-2, "int8-a16": 1e-2}


def arrays(kind, I=96, H=128, seed=0, D=None):  # noqa: E741
    rng = np.random.default_rng(seed)
    G = {"rnn": 1, "lstm": 4, "gru": 3}[kind]
    lead = () if D is None else (D,)
    uniform = lambda *shape: rng.uniform(-1, 1, (*lead, *shape)).astype(np.float32) / np.sqrt(np.float32(H))  # noqa: E731
    return {"W": uniform(G * H, I), "R": uniform(G * H, H), "Wb": uniform(G * H), "Rb": uniform(G * H)}


LAYERS = {
    "rnn": ("rnn", {}),
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "gru before": ("gru", {"reset": "before"}),
    "lstm clip": ("lstm", {"clip": 0.8, "input_forget": True}),
    "lstm peepholes": ("lstm", {"P": np.random.default_rng(9).uniform(-1, 1, 384).astype(np.float32) / 11}),
    "gru clip": ("gru", {"clip": 0.7, "reset": "before"}),
    "rnn relu": ("rnn", {"activations": ["relu"]}),
}


def in_all(make, precision):
    """make(precision=...) with that precision in every layer, even in one that gains nothing by it."""
    exact = make(precision=None)
    return make(precision={info.name: precision for info in exact.layers}) if precision else exact


def layer(name, precision=None, **options):
    kind, more = LAYERS[name]
    return in_all(lambda **p: fastrnn.from_arrays(kind, **arrays(kind), **more, **p, **options), precision)


def sequence(rows=3, steps=40, size=96, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, steps, size)).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_small_errors_and_one_set_of_bits(name, precision):
    x = sequence()
    model = layer(name, precision)
    y = model(x)
    assert model.precision == precision
    limit = ERRORS[precision] * {"rnn": 3, "rnn relu": 12}.get(name, 1)  # no gate keeps its state, or bounds it
    assert 0 < np.abs(y - layer(name)(x)).max() < limit
    stream = model.stream(3)
    assert np.stack([stream.step(x[:, t]) for t in range(40)], axis=1).tobytes() == y.tobytes()
    chunks, pool = model.stream(3), model.pool(8)
    assert (
        np.concatenate([chunks.push(x[:, a:b]) for a, b in ((0, 1), (1, 18), (18, 40))], axis=1).tobytes()
        == y.tobytes()
    )
    slots = [pool.open() for _ in range(3)]
    assert np.stack([pool.step(slots, x[:, t]) for t in range(40)], axis=1).tobytes() == y.tobytes()
    for row in range(3):  # alone
        assert model(x[row : row + 1]).tobytes() == y[row : row + 1].tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_and_many_rows_keep_the_bits(precision):
    x = sequence(150, 3)
    one, two = (layer("lstm", precision, threads=n) for n in (1, 2))
    y = two(x)
    assert y.tobytes() == one(x).tobytes()
    assert y[70:71].tobytes() == one(x[70:71]).tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_two_directions_and_ragged_rows(precision):
    both = dict(arrays("lstm", D=2), direction="bidirectional")
    model = in_all(lambda **p: fastrnn.from_arrays("lstm", **both, **p), precision)
    x = sequence(4, 9)
    y = model(x)
    assert np.abs(y - fastrnn.from_arrays("lstm", **both)(x)).max() < ERRORS[precision]
    for row in range(4):
        assert model(x[row : row + 1]).tobytes() == y[row : row + 1].tobytes()


def whole(precision):
    return in_all(stack, precision)


def stack(precision=None, end=("softmax",)):
    """Weights of a recurrent layer and a classifier, as a PyTorch file has them."""
    cell, rng = arrays("gru"), np.random.default_rng(5)
    named = {f"rnn.{new}_l0": cell[old] for new, old in
             (("weight_ih", "W"), ("weight_hh", "R"), ("bias_ih", "Wb"), ("bias_hh", "Rb"))}  # fmt: skip
    named["out.weight"] = (rng.normal(size=(200, 128)) / 12).astype(np.float32)
    named["out.bias"] = rng.normal(size=200).astype(np.float32)
    return fastrnn.load(named, layers=["gru:rnn", "linear:out", *end], precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_sums_over_x_ahead_of_many_steps_keep_the_bits(name, precision, monkeypatch):
    """However many rows they are made for, here by all rows on every instruction set."""
    x = sequence(rows=3, steps=40)
    x[1, 7, 3] = np.nan
    many = sequence(rows=40, steps=5)
    expected = []
    for most in (0, 1000):
        monkeypatch.setattr("fastrnn.compile.lowering.cells._hoisted_rows", lambda *_, most=most: most)
        model = layer(name, precision)
        answers = [model(x), layer(name, precision, direction="reverse")(x), layer(name, precision, threads=2)(many)]
        assert np.isnan(answers[0][1, 7:]).all()
        assert np.isfinite(answers[0][[0, 2]]).all()
        expected.append([y.tobytes() for y in answers])
    assert expected[0] == expected[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_linear_layer_of_many_rows(precision):
    x = sequence(7, 60)  # more rows than are rounded at once
    model, exact = whole(precision), stack()
    y = model(x)
    assert model.precision == precision
    np.testing.assert_allclose(y, exact(x), atol=ERRORS[precision])
    stream = model.stream(7)
    assert np.stack([stream.step(x[:, t]) for t in range(60)], axis=1).tobytes() == y.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_hold_the_small_weights(precision, tmp_path):
    model, exact = whole(precision), stack()
    model.save(tmp_path / "small.fastrnn")
    exact.save(tmp_path / "exact.fastrnn")
    ratio = (tmp_path / "small.fastrnn").stat().st_size / (tmp_path / "exact.fastrnn").stat().st_size
    assert ratio < (0.55 if precision == "bfloat16" else 0.32)
    assert model.memory_bytes < exact.memory_bytes * (0.6 if precision == "bfloat16" else 0.4)
    assert model.parameters == exact.parameters
    loaded = fastrnn.load(tmp_path / "small.fastrnn")
    x = sequence()
    assert loaded.precision == precision
    assert loaded.fingerprint == model.fingerprint != exact.fingerprint
    assert loaded(x).tobytes() == model(x).tobytes()
    assert precision in loaded.layers[0].text
    with pytest.raises(fastrnn.UnsupportedError, match="load the file that it was converted from"):
        fastrnn.load(tmp_path / "small.fastrnn", precision="float32")


def test_a_precision_for_each_layer():
    names = [info.name for info in stack().layers]
    model = stack({names[1]: "bfloat16"})
    assert model.precision == {names[0]: "float32", names[1]: "bfloat16"}
    with pytest.raises(
        fastrnn.ModelFormatError, match=f"no layer 'lstm9' with products; it has {names[0]}, {names[1]}"
    ):
        stack({"lstm9": "int8"})
    for wrong in ("int4", 8, {names[0]: "half"}):
        with pytest.raises(fastrnn.ModelFormatError, match="precision must be float32, bfloat16, int8 or int8-a16"):
            stack(wrong)


def test_layers_that_gain_nothing_stay_float32():
    small = {k: v[..., :12] if k in "WR" else v for k, v in arrays("rnn", 12, 12).items()}
    with pytest.warns(fastrnn.FastRNNWarning, match="precision='int8' changes no layer"):
        model = fastrnn.from_arrays("rnn", **small, precision="int8")
    assert model.precision == "float32"
    assert any("stays float32: its 288 weights gain nothing by it" in note for note in model.notes)
    name = model.layers[0].name
    assert fastrnn.from_arrays("rnn", **small, precision={name: "int8"}).precision == "int8"


@pytest.mark.parametrize("asked", ["float32", None, {}, "by name"])
def test_asking_for_float32_is_no_reason_for_a_warning(asked):
    name = layer("rnn").layers[0].name
    model = fastrnn.from_arrays("rnn", **arrays("rnn"), precision={name: "float32"} if asked == "by name" else asked)
    assert model.precision == "float32"


def test_weights_that_are_not_finite_stay_float32():
    bad = arrays("gru")
    bad["W"][0, 0] = np.inf
    with pytest.warns(fastrnn.FastRNNWarning, match="changes no layer"):
        model = fastrnn.from_arrays("gru", **bad, precision="int8")
    assert model.precision == "float32"
    assert any("weights that are not finite" in note for note in model.notes)
    with pytest.raises(fastrnn.UnsupportedError, match="not finite; leave it float32"):
        fastrnn.from_arrays("gru", **bad, precision={model.layers[0].name: "int8"})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reference_has_the_same_weights(precision):
    """float64 sums of the weights that are held: what is left is the rounding of x and h."""
    model, x = layer("lstm", precision), sequence(2, 10)
    (want,) = fastrnn.graph.reference.run(model.graph, {model.inputs[0].name: x})[:1]
    got = model(x)
    assert np.abs(got - want).max() < ERRORS[precision]
    assert np.abs(got - want).max() < np.abs(layer("lstm")(x) - got).max() * 1.5


CODE = """
import sys, numpy as np, fastrnn
model = fastrnn.load(sys.argv[1])
x = np.random.default_rng(1).normal(size=(2, 20, 96)).astype(np.float32)
stream = model.stream(2)
if len(sys.argv) > 3:
    stream.restore(open(sys.argv[3], "rb").read())
y = np.stack([stream.step(x[:, t]) for t in range(20)])
stream.snapshot(sys.argv[2])
sys.stdout.write(y.tobytes().hex())
"""


@pytest.mark.any_isa
@pytest.mark.parametrize("precision", PRECISIONS)
def test_instruction_sets_agree_and_hand_over_streams(precision, tmp_path):
    file = tmp_path / "model.fastrnn"
    in_all(lambda **p: stack(**p, end=()), precision).save(file)  # a softmax sums in the order of its instruction set

    def run(isa, snapshot, *before):
        environ = {**os.environ, "FASTRNN_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", CODE, str(file), str(snapshot), *map(str, before)]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

    sets = [isa for isa in _isa.isa_info()["available"] if isa != "baseline"]
    first = [run(isa, tmp_path / isa) for isa in sets]
    assert len(set(first)) == 1
    assert len({(tmp_path / isa).read_bytes() for isa in sets}) == 1
    after = {run(isa, tmp_path / "end", tmp_path / other) for isa, other in zip(sets, sets[::-1], strict=True)}
    assert len(after) == 1


def test_a_stream_of_other_weights_is_not_continued():
    x = sequence(1, 5)
    exact, small = layer("gru"), layer("gru", "int8")
    stream = exact.stream()
    stream.push(x[0])
    blob = stream.snapshot()
    with pytest.raises(fastrnn.StateError):
        small.stream().restore(blob)
    with pytest.warns(fastrnn.FastRNNWarning):
        small.stream().restore(blob, migrate=True)


def test_names_of_precisions_and_scales_are_part_of_the_meaning():
    """The integers of W and 2 W are equal, and so are those of int8 and int8-a16."""
    weights = arrays("lstm")
    one = in_all(lambda **p: fastrnn.from_arrays("lstm", **weights, **p), "int8")
    other = in_all(lambda **p: fastrnn.from_arrays("lstm", **weights, **p), "int8-a16")
    twice = in_all(lambda **p: fastrnn.from_arrays("lstm", **weights | {"W": 2 * weights["W"]}, **p), "int8")
    assert len({m.fingerprint for m in (one, other, twice)}) == 3
    x, lines = sequence(1, 4)[0], one.stream()
    lines.push(x)
    for model in (other, twice):
        with pytest.raises(fastrnn.StateError):
            model.stream().restore(lines.snapshot())


def product(K, N=5):
    """An ONNX model y = x W + b, and its layer's name."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "W"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])]
    W = np.random.default_rng(0).normal(size=(K, N)).astype(np.float32)
    constants = [numpy_helper.from_array(W, "W"), numpy_helper.from_array(np.arange(N, dtype=np.float32), "b")]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(nodes, "g", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_product_that_sums_over_nothing(precision):
    exact = fastrnn.from_onnx(product(0))
    model = fastrnn.from_onnx(product(0), precision={exact.layers[0].name: precision})
    np.testing.assert_array_equal(model(np.zeros((2, 0), np.float32)), np.tile(np.arange(5, dtype=np.float32), (2, 1)))


def test_nodes_that_share_weights_share_the_small_ones():
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "W"], ["a"]), helper.make_node("Tanh", ["a"], ["t"]),
             helper.make_node("MatMul", ["t", "W"], ["y"])]  # fmt: skip
    W = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    ends = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 64])] for n in "xy")
    graph = helper.make_graph(nodes, "tied", *ends, [numpy_helper.from_array(W, "W")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = [info.name for info in fastrnn.from_onnx(proto).layers]
    model = fastrnn.from_onnx(proto, precision=dict.fromkeys(names, "int8"))
    held = [n.inputs[1] for n in model.graph.nodes if n.attrs.get("precision") == "int8"]
    assert len(held) == 2
    assert len(set(held)) == 1


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFFF8001])
def test_any_nan_makes_a_row_nan(bits):
    for precision in PRECISIONS:
        x = sequence(2, 3)
        x.view(np.uint32)[0, 1, 5] = bits
        y = layer("lstm", precision)(x)
        assert np.isnan(y[0, 1:]).all()
        assert np.isfinite(y[1]).all()


def test_files_with_weights_that_kernels_would_read_otherwise_are_refused():
    model = layer("lstm", "int8")
    name = next(n for n in model.graph.nodes if n.op == "cell")
    for at, value in ((name.inputs[10], np.nan), (name.inputs[11], -1.0)):
        constants = dict(model.graph.constants)
        constants[at] = constants[at].copy()
        constants[at].flat[0] = value
        with pytest.raises(fastrnn.ModelFormatError, match="scale of a column is negative or not finite"):
            fastrnn.Model(model.graph.replace(constants=constants))


def test_weights_beyond_bfloat16_stay_float32():
    bad = arrays("rnn")
    bad["W"][0, 0] = 3.4e38
    name = layer("rnn").layers[0].name
    with pytest.raises(fastrnn.UnsupportedError, match="beyond the largest bfloat16"):
        fastrnn.from_arrays("rnn", **bad, precision={name: "bfloat16"})


def test_small_outputs_are_not_free_in_verify():
    """A softmax over many classes has answers below the tolerance of its precision."""

    def classes(seed, **options):
        named = {f"rnn.{n}_l0": a for n, a in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
                                                  arrays("gru").values(), strict=True)}  # fmt: skip
        named["out.weight"] = np.random.default_rng(seed).normal(size=(4000, 128)).astype(np.float32)
        named["out.bias"] = np.zeros(4000, np.float32)
        return fastrnn.load(named, layers=["gru:rnn", "linear:out", "softmax"], **options)

    small = classes(1, precision="int8")
    assert fastrnn.verify(small, "reference", sizes=[(1, 5)]).ok
    wrong = classes(2).graph
    from fastrnn.insight.verification.comparison import compare
    from fastrnn.insight.verification.engines import ReferenceEngine

    assert not compare(small, ReferenceEngine(wrong), "small", 0, None, [(1, 5)]).ok

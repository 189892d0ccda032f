"""Keras weights with a list of layers: files without an architecture, of Keras 2 and 3, against Keras and goldens."""

import re

import numpy as np
import pytest

import fastrnn
from fastrnn.errors import ModelFormatError

# Keras on top of torch, and NumPy 2
pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]
IDS = 7


def nets(layers):
    """id -> (Keras layers behind the input, list, shape of the input or "ids")."""
    L = layers
    return {
        "lstm": ([L.LSTM(6, return_sequences=True, name="a")], ["lstm:a"], 4),
        "gru_after": ([L.GRU(6, return_sequences=True, name="a")], ["gru:a"], 4),
        "gru_before": ([L.GRU(6, return_sequences=True, reset_after=False, name="a")], ["gru:a"], 4),
        "rnn": ([L.SimpleRNN(6, return_sequences=True, name="a")], ["rnn:a"], 4),
        "no_bias": ([L.LSTM(6, return_sequences=True, use_bias=False, name="a")], ["lstm:a"], 4),
        "both_ways": (
            [L.Bidirectional(L.LSTM(5, return_sequences=True), name="a"), L.Dense(3, name="b")],
            ["lstm:a", "linear:b"],
            4,
        ),
        "both_ways_final": ([L.Bidirectional(L.GRU(5), name="a")], ["gru:a", "final"], 4),
        "model": (
            [
                L.Conv1D(6, 3, padding="causal", dilation_rate=2, name="c"),
                L.BatchNormalization(name="n"),
                L.ReLU(),
                L.LSTM(5, name="r"),
                L.LayerNormalization(name="m"),
                L.Dense(3, activation="softmax", name="d"),
            ],
            ["conv1d:c(padding=causal, dilation=2)", "batchnorm:n", "relu", "lstm:r", "last", "layernorm:m", "linear:d",
             "softmax"],
            4,
        ),
        "tagger": (
            [
                L.Embedding(IDS, 4, name="e"),
                L.GRU(5, return_sequences=True, name="r"),
                L.PReLU(shared_axes=[1], name="p"),
            ],
            ["embedding:e", "gru:r", "prelu:p"],
            "ids",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras", reason="Keras is not installed")


NAMES = ("lstm gru_after gru_before rnn no_bias both_ways both_ways_final model tagger").split()


@pytest.mark.parametrize("name", NAMES)
def test_as_keras(keras, tmp_path, name):
    keras.utils.set_random_seed(3)
    layers, given, size = nets(keras.layers)[name]
    shape = (None,) if size == "ids" else (None, size)
    model = keras.Sequential([keras.layers.Input(shape, dtype="int32" if size == "ids" else "float32"), *layers])
    rng = np.random.default_rng(2)
    model.set_weights([w + rng.uniform(0, 0.3, w.shape).astype(np.float32) for w in model.get_weights()])
    x = rng.integers(0, IDS, (2, 9)) if size == "ids" else rng.normal(size=(2, 9, size)).astype(np.float32)
    want = np.asarray(model.predict(x, verbose=0))
    model.save_weights(tmp_path / "m.weights.h5")  # names layers by their classes
    classes = {layer.name: keras.src.utils.naming.to_snake_case(type(layer).__name__) for layer in layers}
    by_class = [re.sub(r":(\w+)", lambda m: f":{classes[m[1]]}", entry) for entry in given]
    np.testing.assert_allclose(fastrnn.load(tmp_path / "m.weights.h5", layers=by_class)(x), want, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "m.h5")  # the older form, which names them as the model does
    np.testing.assert_allclose(fastrnn.load(tmp_path / "m.h5", layers=given)(x), want, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit(keras, tmp_path):
    model = keras.Sequential(
        [keras.layers.Input((None, 4)), keras.layers.LSTM(6, name="a"), keras.layers.Dense(3, name="b")]
    )
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    for layers, text in (
        (["gru:lstm", "last", "linear:dense"], r"is \[6, 24\], which a lstm has, expected \[6, 18\] of a gru of 6"),
        (["lstm:lstm", "linear:lstm"], r"lstm/cell/vars/1 is \[6, 24\], expected \[24\]"),
        (["lstm:dense"], r"dense/vars/1 is \[3\], expected \[any, any\]"),
        (["lstm:nothing"], "has no tensor nothing.weight_ih_l0; it has dense/vars/0"),
        (
            ["lstm:lstm", "linear:dense", "linear:dense"],
            r"is \[6, 3\], expected \[3, 3\]: the layer before it gives 3 features",
        ),
    ):
        with pytest.raises(ModelFormatError, match=text):
            fastrnn.load(path, layers=layers)


def test_dtln_s_weights_give_the_goldens_of_its_first_stage(published_models):
    """Keras 2.2.4's file holds both stages of DTLN; the first one's core answers as dtln_1.onnx did, whole and live."""
    layers = ["lstm:lstm", "lstm:lstm_1", "linear:dense", "sigmoid"]
    model = fastrnn.load(published_models / "dtln.h5", layers=layers)
    golden = np.load(published_models / "dtln_1.npz")
    x = golden["input_2"]  # 60 steps of one stream
    y = model(x)
    np.testing.assert_allclose(y, golden["out"], rtol=1e-5, atol=1e-5)
    stream = model.stream()
    assert np.stack([stream.step(row) for row in x[0]]).tobytes() == y[0].tobytes()
    state = np.stack([np.stack([stream.state[f"{name}.{part}"] for part in "hc"], -1) for name in layers[:2]])
    np.testing.assert_allclose(state.reshape(golden["state_out"].shape), golden["state_out"], rtol=1e-5, atol=1e-5)
    assert any("left out: conv1d" in note for note in model.graph.notes)

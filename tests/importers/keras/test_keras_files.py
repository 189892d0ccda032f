"""Keras files where no Keras is: those of Keras 1 and 2 in tests/data, the seeds' models, bare weights.

tests/data/keras2.zip is made by tools/make_keras2_fixtures.py, which says what is in it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[3]
ARCHIVE = ROOT / "tests" / "data" / "keras2.zip"
with zipfile.ZipFile(ARCHIVE) as _file:
    FILES = {name: _file.read(name) for name in _file.namelist()}
MODELS = [name for name in FILES if not name.endswith(".npz")]


def answers(name: str):
    """(inputs, outputs) of a model of the archive, as Keras 2 has them."""
    with np.load(io.BytesIO(FILES[name.rpartition(".")[0] + ".npz"])) as arrays:
        return tuple([arrays[k] for k in sorted(arrays) if k[0] == letter] for letter in "xy")


@pytest.mark.parametrize("name", MODELS)
def test_models_of_keras_1_and_2(name, tmp_path):
    model = fastrnn.load(FILES[name])
    inputs, want = answers(name)
    got = model.run(*inputs)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    path = tmp_path / f"m{Path(name).suffix}"
    path.write_bytes(FILES[name])
    model.save(tmp_path / "m.fastrnn")
    for other in (fastrnn.load(path), fastrnn.load(tmp_path / "m.fastrnn")):
        for a, b in zip(other.run(*inputs), got, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["cudnn", "cudnn_in_plain_classes", "plain_in_cudnn_classes"])
def test_weights_of_cudnn_by_a_list_of_layers(name):
    """Their bias shows the layout, as in Keras 2, whatever class the config names."""
    with h5py.File(io.BytesIO(FILES[f"{name}.h5"])) as file:
        first, second = (n.decode() if isinstance(n, bytes) else n for n in file["model_weights"].attrs["layer_names"])
    layers = [f"lstm:{first}", f"gru:{second}", "last"]
    (x,), (want,) = answers(f"{name}.h5")
    model = fastrnn.load(FILES[f"{name}.h5"], layers=layers)
    np.testing.assert_allclose(model(x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model(x[1:2]), want[1:2], rtol=1e-5, atol=1e-5)
    with pytest.raises(fastrnn.ModelFormatError, match="reset=before, but"):
        fastrnn.load(FILES[f"{name}.h5"], layers=[layers[0], f"gru:{second}(reset=before)"])


def changed(blob: bytes, **settings) -> bytes:
    """A whole model in .h5 with other settings of its last layer."""
    held = io.BytesIO(blob)
    with h5py.File(held, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"] |= settings
        file.attrs["model_config"] = json.dumps(config).encode()
    return held.getvalue()


def test_what_weights_of_cudnn_do_not_fit():
    with pytest.raises(fastrnn.UnsupportedError, match="reset_after=False with weights of cuDNN"):
        fastrnn.load(changed(FILES["cudnn_in_plain_classes.h5"], reset_after=False))


def test_a_config_of_a_part_of_the_file_names_the_rest():
    held = io.BytesIO(FILES["cudnn_in_plain_classes.h5"])
    with h5py.File(held, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        del config["config"]["layers"][-1]
        file.attrs["model_config"] = json.dumps(config).encode()
    with pytest.raises(fastrnn.ModelFormatError, match="holds weights of 'g', which its config doesn't have: give the"):
        fastrnn.load(held.getvalue())


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "tf_keras", "tensorflow", "torch", "jax", "onnx"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
import fastrnn, numpy as np, zipfile
with zipfile.ZipFile(sys.argv[1]) as file:
    names = [n for n in file.namelist() if not n.endswith(".npz")]
    models = [fastrnn.load(file.read(n)) for n in names]
print(len(models), sorted({"keras", "tensorflow", "torch", "onnx"} & set(sys.modules)))
"""


@pytest.mark.any_isa
def test_no_keras_is_needed():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(ARCHIVE)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.split(maxsplit=1) == [str(len(MODELS)), "[]\n"], done.stderr


SEEDS = {  # models that seeds of the project train, in their own sizes
    "LSTM 50 + 50": lambda L: [L.LSTM(50, return_sequences=True), L.LSTM(50), L.Dense(1)],
    "LSTM 128 + 64": lambda L: [L.LSTM(128, return_sequences=True), L.LSTM(64), L.Dense(1)],
    "GRU 50 + 50": lambda L: [L.GRU(50, return_sequences=True), L.GRU(50), L.Dense(1)],
    "GRU 128 + 64": lambda L: [L.GRU(128, return_sequences=True), L.GRU(64), L.Dense(1)],
    "LSTM 128, Dense, Dropout, Dense": lambda L: [
        L.LSTM(128), L.Dense(64, activation="relu"), L.Dropout(0.2), L.Dense(1)
    ],
    "SimpleRNN 64 + 64, softmax": lambda L: [
        L.SimpleRNN(64, return_sequences=True), L.SimpleRNN(64), L.Dense(10, activation="softmax")
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_models_in_their_own_sizes(name, tmp_path):
    keras = pytest.importorskip("keras", reason="the installed Keras makes these models")
    model = keras.Sequential([keras.layers.Input((60, 1)), *SEEDS[name](keras.layers)])
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    x = np.random.default_rng(0).normal(size=(4, 60, 1)).astype(np.float32)
    want = keras.ops.convert_to_numpy(model(x))
    loaded = [
        fastrnn.load(tmp_path / "m.keras"),
        fastrnn.load(tmp_path / "m.h5"),
        fastrnn.load(tmp_path / "m.weights.h5", config=model.to_json()),
    ]
    for m in loaded:
        np.testing.assert_allclose(m(x), want, rtol=1e-5, atol=1e-5)
        assert m.inputs[0].dims == ("batch", "time", 1)  # the 60 was only the training's
        assert m.outputs[0].name == model.layers[-1].name
    stream = loaded[0].stream(batch_size=4)
    stream.push(x[:, :17])
    np.testing.assert_array_equal(stream.push(x[:, 17:]), loaded[0](x))


def test_weights_alone_with_a_list_of_layers(published_models):
    """DTLN's first core, of Keras 2.2.4: two LSTMs and a mask, of which the file holds the weights alone."""
    path, goldens = published_models / "dtln.h5", published_models / "dtln_1.npz"
    if not path.is_file() or not goldens.is_file():
        pytest.skip("dtln.h5 and dtln_1.npz are not here")
    model = fastrnn.load(path, layers=["lstm:lstm", "lstm:lstm_1", "linear:dense", "sigmoid"])
    with np.load(goldens) as arrays:
        x, want = arrays["input_2"], arrays["out"]
    np.testing.assert_allclose(model(x), want.reshape(x.shape), rtol=0, atol=1e-5)
    stream = model.stream()
    got = np.stack([stream.step(frame) for frame in x[0]])
    np.testing.assert_array_equal(got, model(x)[0])

"""Models after `quantize("int8")` of Keras 3: the file's integers, and the answers of Keras itself."""

import json
import zipfile

import numpy as np
import pytest

import fastrnn

keras = pytest.importorskip("keras", minversion="3.4", reason="the installed Keras decides what its layers mean")
layers = keras.layers

pytestmark = [
    pytest.mark.any_isa,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


def dense(bias=True):
    x = keras.Input((None, 64))
    y = layers.Dense(300, activation="relu", use_bias=bias)(x)
    return keras.Model(x, layers.Dense(700, use_bias=bias)(layers.LSTM(24, return_sequences=True)(y)))


def einsum():
    x = keras.Input((None, 64))
    y = layers.EinsumDense("btd,hde->bteh", output_shape=(None, 80, 5), bias_axes="he")(x)
    return keras.Model(x, layers.EinsumDense("btef,feg->btg", output_shape=(None, 50))(y))


def embedding():
    x = keras.Input((None,), dtype="int32")
    return keras.Model(x, layers.Embedding(1200, 64)(x))


MODELS = {"dense": dense, "no bias": lambda: dense(False), "einsum": einsum, "embedding": embedding}


def made(name):
    """(a quantised model, its input, its answers, those of the float model)."""
    keras.utils.set_random_seed(3)
    model, rng = MODELS[name](), np.random.default_rng(1)
    x = rng.integers(0, 1200, (3, 7)).astype(np.int32) if name == "embedding" else None
    x = rng.normal(size=(3, 7, 64)).astype(np.float32) if x is None else x
    answers = lambda: np.asarray(keras.ops.convert_to_numpy(model(x, training=False)))  # noqa: E731
    exact = answers()
    model.quantize("int8")
    return model, x, answers(), exact


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_keras(tmp_path, name):
    keras_model, x, want, exact = made(name)
    keras_model.save(tmp_path / "m.keras")
    model = fastrnn.load(tmp_path / "m.keras")
    live = fastrnn.from_keras(keras_model)
    held = model.precision if isinstance(model.precision, dict) else {"": model.precision}
    assert "int8" in held.values()
    y = model(x)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-6)
    assert live(x).tobytes() == y.tobytes()
    wide = fastrnn.load(tmp_path / "m.keras", precision="float32")
    assert wide.precision == "float32"
    bound = np.abs(want - exact).max()
    assert np.abs(wide(x) - exact).max() <= 1.2 * bound + 1e-6
    stream = model.stream(batch_size=3)
    assert np.stack([stream.step(x[:, t]) for t in range(7)], axis=1).tobytes() == y.tobytes()


def test_the_integers_are_those_of_the_file(tmp_path):
    keras_model, *_ = made("einsum")
    model = fastrnn.from_keras(keras_model)
    for node, layer in zip((n for n in model.graph.nodes if n.op == "linear"), keras_model.layers[1:], strict=True):
        kernel = np.asarray(keras.ops.convert_to_numpy(layer._kernel))
        first = layer.equation.startswith("btd")  # hde, d is summed; else feg, e and f are
        turned = kernel.transpose(1, 0, 2).reshape(64 if first else 400, -1)
        np.testing.assert_array_equal(model.graph.constants[node.inputs[1]], turned)


def edited(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "config.json":
                config = json.loads(data)
                change(config["config"]["layers"][1]["config"])
                data = json.dumps(config).encode()
            new.writestr(info.filename, data)
    return target


def test_other_modes_and_settings_are_refused(tmp_path):
    keras_model, *_ = made("embedding")
    keras_model.save(tmp_path / "m.keras")

    def mode(settings):
        settings["dtype"]["config"]["mode"] = "float8"

    with pytest.raises(fastrnn.UnsupportedError, match="quantised to 'float8', but only Dense, EinsumDense and"):
        fastrnn.load(edited(tmp_path / "m.keras", tmp_path / "a.keras", mode))

    def source(settings):
        settings["dtype"]["config"]["source_name"] = "float64"

    with pytest.raises(fastrnn.UnsupportedError, match="dtype='float64'"):
        fastrnn.load(edited(tmp_path / "m.keras", tmp_path / "b.keras", source))

    def plain(settings):
        settings["dtype"] = "float32"

    with pytest.raises(fastrnn.FastRNNError, match="one tensor too many"):
        fastrnn.load(edited(tmp_path / "m.keras", tmp_path / "c.keras", plain))

    keras_model, *_ = made("dense")
    keras_model.save(tmp_path / "d.keras")

    def quantizer(settings):
        if settings.get("quantization_config") is None:
            pytest.skip("a Keras without quantization_config")
        settings["quantization_config"]["config"]["activation_quantizer"]["class_name"] = "MyQuantizer"

    with pytest.raises(fastrnn.UnsupportedError, match="activation_quantizer 'MyQuantizer'"):
        fastrnn.load(edited(tmp_path / "d.keras", tmp_path / "e.keras", quantizer))

    def weights_only(settings):
        settings["quantization_config"]["config"]["activation_quantizer"] = None

    model = fastrnn.load(edited(tmp_path / "d.keras", tmp_path / "f.keras", weights_only))
    assert next(iter(model.precision.values())) == "int8-a16"

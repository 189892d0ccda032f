"""Convert whole Keras 2.15 models with tf2onnx, for make_graph_fixtures.py: see there, and make_tf2onnx_fixtures.py.

Writes `keras_NAME.tf2onnx*.onnx`, `keras_NAME.npz` and `keras_NAME.json` (manifest entries) into the given folder.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
from make_tf2onnx_fixtures import L, keras, rename_output, tf, tf2onnx

RUNS = ((8, 2), (12, 3), (5, 1))
FEATURES = 5


def voice_detector(x):
    y = L.Conv1D(6, 3, padding="causal", activation="relu")(x)
    y = L.BatchNormalization()(L.Conv1D(6, 2, padding="causal", dilation_rate=2)(y))
    return L.Dense(1, "sigmoid")(L.GRU(7, return_sequences=True)(L.ReLU()(y)))


def residual_normed(x):
    x = L.Dense(6)(x)
    for _ in range(2):
        x = L.LayerNormalization()(L.Add()([x, L.LSTM(6, return_sequences=True)(x)]))
    return x


def additive_attention(x):
    h = L.GRU(6, return_sequences=True)(x)
    weights = L.Softmax(axis=1)(L.Dense(1, use_bias=False)(L.Dense(4, "tanh")(h)))
    return L.Dense(3)(L.Flatten()(L.Dot(axes=1)([weights, h])))


def causal_block(x):
    x = L.GRU(6, return_sequences=True)(x)
    y = L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)
    return L.LayerNormalization()(L.Add()([x, y]))


def conv_recurrent(x):
    y = L.MaxPooling2D((1, 2))(L.Conv2D(3, 3, padding="same", activation="relu")(L.Reshape((-1, FEATURES, 1))(x)))
    y = L.Reshape((-1, 6))(y)
    return L.Dense(4, "softmax")(L.Bidirectional(L.LSTM(5, return_sequences=True))(y))


def same_pooled(x):
    y = L.MaxPooling1D(2)(L.Conv1D(6, 5, padding="same", activation="relu")(x))
    return L.Dense(3)(L.LSTM(7, return_sequences=True)(L.Conv1D(6, 3, padding="same")(y)))


def wavenet(x):
    x, total = L.Conv1D(4, 1)(x), []
    for dilation in (1, 2, 4):
        filtered = L.Conv1D(4, 2, padding="causal", dilation_rate=dilation, activation="tanh")(x)
        gate = L.Conv1D(4, 2, padding="causal", dilation_rate=dilation, activation="sigmoid")(x)
        z = L.Multiply()([filtered, gate])
        x = L.Add()([x, L.Conv1D(4, 1)(z)])
        total.append(L.Conv1D(5, 1)(z))
    return L.Dense(3)(L.GRU(6, return_sequences=True)(L.ReLU()(L.Add()(total))))


# name -> (layers after the input, streamable, dims of y behind batch)
MODELS = {
    "voice_detector": (voice_detector, True, ["time", 1]),
    "residual_normed": (residual_normed, True, ["time", 6]),
    "additive_attention": (additive_attention, False, [3]),
    "causal_block": (causal_block, False, ["time", 6]),
    "conv_recurrent": (conv_recurrent, False, ["time", 4]),
    "same_pooled": (same_pooled, True, ["(time)//2", 3]),
    "wavenet": (wavenet, True, ["time", 3]),
}


def build(name: str, time=None) -> keras.Model:
    x = L.Input((time, FEATURES), name="x")
    return keras.Model(x, MODELS[name][0](x), name=name)


def weights_of(model) -> list[np.ndarray]:
    """A new random value for every weight, in multiples of 1/64."""
    random, arrays = np.random.default_rng(zlib.crc32(model.name.encode())), []
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        drawn = random.normal(0, 0.1 + 0.9 / np.sqrt(value.shape[0] if value.ndim > 1 else 4), value.shape)
        drawn = np.abs(drawn) + 0.5 if "variance" in variable.name else drawn
        arrays.append((np.rint(drawn * 64) / 64).astype(np.float32))
    return arrays


def goldens(name: str, weights) -> dict[str, np.ndarray]:
    keras.backend.set_floatx("float64")
    model, arrays = build(name), {}
    model.set_weights(weights)
    for k, (time, batch) in enumerate(RUNS):
        x = np.rint(np.random.default_rng(1000 * time + batch).normal(size=(batch, time, FEATURES)) * 64) / 64
        arrays[f"r{k}.x"] = x.astype(np.float32)
        arrays[f"r{k}.y"] = model(x).numpy().astype(np.float32)
    keras.backend.set_floatx("float32")
    return arrays


def make(name: str, folder: Path) -> None:
    weights = weights_of(build(name))
    np.savez(folder / f"keras_{name}.npz", **goldens(name, weights))
    entries = []
    for tag, time in (("tf2onnx", None), ("tf2onnx_frozen", RUNS[0][0])):
        model = build(name, time)
        model.set_weights(weights)
        signature = tf.TensorSpec((None, time, FEATURES), tf.float32, name="x")
        function = tf.function(lambda x, model=model: tf.identity(model(x), name="y"), input_signature=[signature])
        proto, _ = tf2onnx.convert.from_function(function, input_signature=[signature], opset=15)
        rename_output(proto)
        path = folder / f"keras_{name}.{tag}.onnx"
        path.write_bytes(proto.SerializeToString())
        entries.append(
            {
                "file": path.name,
                "golden": f"keras_{name}.npz",
                "inputs": {"x": ["batch", "time", FEATURES]},
                "outputs": {"y": ["batch", *MODELS[name][2]]},
                "states": {},
                "frozen": [] if time is None else ["time"],
                "streamable": MODELS[name][1],
                "about": f"Keras: {name.replace('_', ' ')}",
                "made_by": "tf2onnx 1.17, Keras 2.15",
            }
        )
    (folder / f"keras_{name}.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    for each in MODELS:
        if len(sys.argv) < 3 or sys.argv[2] in each:
            make(each, Path(sys.argv[1]))
            print(each)

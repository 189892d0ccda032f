"""Convert small Keras 2.15 models with tf2onnx into tests/data/onnx, together with goldens from Keras.

Run by hand, in a separate environment (tf2onnx and tensorflow need older packages than the rest of the project):

    python3.11 -m venv tf-env
    tf-env/bin/pip install tensorflow-cpu==2.15.1 tf2onnx==1.17.0 onnx==1.17.0 "numpy<2"
    tf-env/bin/python tools/make_tf2onnx_fixtures.py

Seeds are fixed. The signature is `[None, None, features]`; models named `*_frozen` have their length written in
(`[None, 7, features]`), so that Keras bakes it into the file. A golden `NAME.npz` holds the runs of
make_torch_fixtures.RUNS in the same form (`r<k>.x`, `r<k>.y`), from a float64 copy of the Keras model (weights
float32), stored as float32.
"""

from __future__ import annotations

import argparse
import os
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from fixture_manifest import merge

L = keras.layers
OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "onnx"
RUNS = ((7, 2), (11, 3), (1, 1))


class CausalAttention(L.Layer):
    """Keras's causal self-attention with a residual."""

    def __init__(self, heads, features):
        super().__init__()
        self.attention = L.MultiHeadAttention(heads, features)

    def call(self, x):
        return x + self.attention(x, x, use_causal_mask=True)


# name -> (layers, features or None for tokens, streamable, what it is). Layers are made inside `build`, once a dtype.
MODELS = {
    "keras_rnn": (
        lambda: [L.SimpleRNN(20, return_sequences=True), L.Dense(3)],
        6,
        True,
        "SimpleRNN 20 (tanh), Dense",
    ),
    "keras_rnn_relu": (
        lambda: [L.SimpleRNN(9, activation="relu", return_sequences=True), L.SimpleRNN(20), L.Dense(4, "softmax")],
        6,
        True,
        "SimpleRNN 9 (relu), SimpleRNN 20, softmax of the last step",
    ),
    "keras_lstm": (
        lambda: [L.LSTM(20, return_sequences=True), L.Dense(3, "sigmoid")],
        6,
        True,
        "LSTM 20, Dense sigmoid",
    ),
    "keras_lstm_stacked": (
        lambda: [
            L.LSTM(20, return_sequences=True),
            L.Dropout(0.2),
            L.LSTM(20, return_sequences=True),
            L.TimeDistributed(L.Dense(5, "relu")),
            L.Dense(2),
        ],
        6,
        True,
        "LSTM 20, Dropout (off), LSTM 20, TimeDistributed Dense relu, Dense",
    ),
    "keras_lstm_last": (
        lambda: [L.LSTM(20, return_sequences=True), L.LSTM(12), L.Dense(4, "softmax")],
        6,
        True,
        "LSTM 20, LSTM 12 (last step), softmax",
    ),
    "keras_lstm_hard": (
        lambda: [L.LSTM(20, return_sequences=True, recurrent_activation="hard_sigmoid"), L.Dense(2)],
        6,
        True,
        "LSTM 20 with hard_sigmoid gates (Keras 2: 0.2x + 0.5)",
    ),
    "keras_attention": (
        lambda: [L.GRU(12, return_sequences=True), CausalAttention(3, 4), L.Dense(3)],
        6,
        True,
        "GRU 12, MultiHeadAttention of 3 heads with use_causal_mask, Dense",
    ),
    "keras_gru_after": (
        lambda: [L.GRU(20, return_sequences=True, reset_after=True), L.Dense(3)],
        6,
        True,
        "GRU 20, reset after the product",
    ),
    "keras_gru_before": (
        lambda: [L.GRU(20, return_sequences=True, reset_after=False), L.Dense(3)],
        6,
        True,
        "GRU 20, reset before the product",
    ),
    "keras_gru_no_bias": (
        lambda: [L.GRU(9, return_sequences=True, use_bias=False), L.GRU(20, reset_after=False), L.Dense(2)],
        6,
        True,
        "GRU 9 without bias, GRU 20 (last step, reset before)",
    ),
    "keras_language_model": (
        lambda: [L.Embedding(30, 12), L.GRU(20, return_sequences=True), L.Dense(30, "softmax")],
        None,
        True,
        "Embedding, GRU 20, softmax",
    ),
    "keras_bilstm": (
        lambda: [L.Bidirectional(L.LSTM(9, return_sequences=True), merge_mode="concat"), L.Dense(4, "softmax")],
        6,
        False,
        "Bidirectional LSTM 9, concat, softmax",
    ),
    "keras_bigru_sum": (
        lambda: [L.Bidirectional(L.GRU(9, return_sequences=True), merge_mode="sum"), L.Dense(4)],
        6,
        False,
        "Bidirectional GRU 9, sum",
    ),
    "keras_birnn_last": (
        lambda: [L.Bidirectional(L.SimpleRNN(9)), L.Dense(4)],
        6,
        False,
        "Bidirectional SimpleRNN 9, last steps",
    ),
    "keras_batch_norm": (
        lambda: [L.BatchNormalization(), L.LSTM(20, return_sequences=True), L.Dense(3, "elu")],
        6,
        True,
        "BatchNormalization, LSTM 20, Dense elu",
    ),
    "keras_layer_norm": (
        lambda: [L.GRU(9, return_sequences=True), L.LayerNormalization(), L.Dense(2)],
        6,
        True,
        "GRU 9, LayerNormalization, Dense",
    ),
}
FROZEN = ("keras_lstm_stacked", "keras_gru_after", "keras_rnn", "keras_bilstm", "keras_lstm_last")


def build(name: str, time=None) -> keras.Model:
    """The model, built for a length (None: any), in the global float type."""
    layers, features, _, _ = MODELS[name]
    shape, dtype = ((time,), "int64") if features is None else ((time, features), keras.backend.floatx())
    return keras.Sequential([L.Input(shape, dtype=dtype, name="x"), *layers()], name=name)


def weights_of(model) -> list[np.ndarray]:
    """A new random value for every weight, including biases and statistics: Keras starts those at 0 and 1, which hides
    mistakes."""
    random = np.random.default_rng(zlib.crc32(model.name.encode()))
    arrays = []
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        scale = 0.1 + 0.9 / np.sqrt(value.shape[0] if value.ndim > 1 else 4)
        drawn = random.normal(0, scale, value.shape)
        arrays.append((np.abs(drawn) + 0.5 if "variance" in variable.name else drawn).astype(np.float32))
    return arrays


def example(name: str, time: int, batch: int) -> np.ndarray:
    """x of one run: float32 [batch, time, features] or int64 [batch, time]."""
    random = np.random.default_rng(1000 * time + batch)
    features = MODELS[name][1]
    if features is None:
        return random.integers(0, 30, (batch, time))
    return random.normal(size=(batch, time, features)).astype(np.float32)


def goldens(name: str, weights) -> dict[str, np.ndarray]:
    """The runs of RUNS from a float64 copy."""
    keras.backend.set_floatx("float64")
    model = build(name)
    model.set_weights(weights)
    arrays = {}
    for k, (time, batch) in enumerate(RUNS):
        x = example(name, time, batch)
        arrays[f"r{k}.x"] = x
        arrays[f"r{k}.y"] = model(x.astype(np.float64) if x.dtype.kind == "f" else x).numpy().astype(np.float32)
    keras.backend.set_floatx("float32")
    return arrays


def convert(name: str, weights, time, path: Path) -> onnx.ModelProto:
    """Write one file through tf2onnx, opset 15."""
    model = build(name, time)
    model.set_weights(weights)
    features = MODELS[name][1]
    if features is None:
        signature = tf.TensorSpec((None, time), tf.int64, name="x")
    else:
        signature = tf.TensorSpec((None, time, features), tf.float32, name="x")
    function = tf.function(lambda x: tf.identity(model(x), name="y"), input_signature=[signature])
    proto, _ = tf2onnx.convert.from_function(function, input_signature=[signature], opset=15)
    rename_output(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return proto


def rename_output(proto) -> None:
    """Call the only output y, as the goldens do."""
    (output,) = proto.graph.output
    for node in proto.graph.node:
        node.input[:] = ["y" if i == output.name else i for i in node.input]
        node.output[:] = ["y" if o == output.name else o for o in node.output]
    output.name = "y"


def count(graph, ops) -> dict:
    """The number of nodes of each operator, including subgraphs."""
    for node in graph.node:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
        for attribute in node.attribute:
            if attribute.HasField("g"):
                count(attribute.g, ops)
    return dict(sorted(ops.items()))


def make(name: str) -> list[dict]:
    """Write the files of one model; return their manifest entries."""
    _, features, streamable, about = MODELS[name]
    weights = weights_of(build(name))
    arrays = goldens(name, weights)
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    entries = []
    for tag, time in (("tf2onnx", None), ("tf2onnx_frozen", RUNS[0][0]))[: 2 if name in FROZEN else 1]:
        path = OUT / f"{name}.{tag}.onnx"
        proto = convert(name, weights, time, path)
        y = ["batch", "time"] if arrays["r0.y"].ndim == 3 else ["batch"]
        entries.append(
            {
                "file": f"onnx/{path.name}",
                "golden": f"onnx/{name}.npz",
                "model": name,
                "made_by": "tf2onnx 1.17, Keras 2.15, " + ("any length" if time is None else "length written in"),
                "opset": next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")),
                "inputs": {"x": ["batch", "time"] + ([] if features is None else [features])},
                "outputs": {"y": [*y, arrays["r0.y"].shape[-1]]},
                "states": {},
                "frozen": [] if time is None else ["time"],
                "size": list(RUNS[0]),
                "streamable": streamable,
                **({"context": 11} if name == "keras_attention" else {}),
                "ops": count(proto.graph, {}),
                "about": about,
            }
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only models whose name contains this")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        if args.only in name:
            entries = make(name)
            merge(entries)
            for e in entries:
                size = (OUT.parent / e["file"]).stat().st_size
                print(f"{e['file']:48} {size:7} bytes, frozen {e['frozen']}, {e['ops']}")


if __name__ == "__main__":
    main()

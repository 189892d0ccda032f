"""Write tests/data/keras2.zip: models of Keras 2 (and in Keras 1's layout) with inputs and the outputs of Keras 2.

Needs tensorflow-cpu 2.15, which is not in any environment of this project:

    python tools/make_keras2_fixtures.py

One zip with, for each model, `NAME.h5` (and `NAME.keras` for some), `NAME.npz` with x0, x1, .. and y0, y1, ..; sizes
are an eighth of those that the models are named after, so that all of it is small.
"""

import functools
import io
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import keras
import numpy as np
import tensorflow as tf

L = keras.layers
MODELS = {}


def model(function):
    MODELS[function.__name__] = function
    return function


def seq(*layers, shape=(None, 3), **more):
    return keras.Sequential([L.Input(shape, **more), *layers])


# ---- the models that seeds of the project name, an eighth in size ----------------------------------------------------


@model
def lstm_50_50():
    return seq(L.LSTM(6, return_sequences=True), L.LSTM(6), L.Dense(1))


@model
def gru_128_64():
    return seq(L.GRU(16, return_sequences=True), L.Dropout(0.2), L.GRU(8), L.Dense(1))


@model
def lstm_dense_dropout():
    return seq(L.LSTM(16), L.Dense(8, activation="relu"), L.Dropout(0.5), L.Dense(2))


@model
def simple_rnn_softmax():
    return seq(L.SimpleRNN(8, return_sequences=True), L.SimpleRNN(8), L.Dense(4, activation="softmax"), shape=(10, 3))


# ---- what Keras 2 does in its own way --------------------------------------------------------------------------------


@model
def hard_sigmoid_gates():
    return seq(
        L.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True), L.Dense(3, activation="hard_sigmoid")
    )


@model
def gru_reset_before():
    return seq(L.GRU(4, reset_after=False, return_sequences=True))


@model
def transposed_convolutions():
    x = keras.Input((None, 3))
    forms = [(4, 2, "same"), (3, 2, "same"), (5, 2, "valid"), (2, 3, "valid"), (2, 3, "same"), (3, 1, "same")]
    return keras.Model(x, [L.Conv1DTranspose(2, k, strides=s, padding=p, activation="tanh")(x) for k, s, p in forms])


@model
def encoder_and_decoder():
    """Joined by attention alone, of different lengths."""
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 4), name="b")
    encoded, decoded = L.LSTM(4, return_sequences=True)(b), L.GRU(4, return_sequences=True)(a)
    y, scores = L.Attention()([decoded, encoded], return_attention_scores=True)
    z = L.AdditiveAttention()([y, encoded])
    return keras.Model([a, b], [L.MultiHeadAttention(2, 3)(z, encoded), scores])


@model
def masked_bidirectional():
    return seq(L.Masking(-1.0), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3, return_sequences=True))


@model
def masked_backwards():
    return seq(L.Masking(-1.0), L.LSTM(4, go_backwards=True, return_sequences=True), L.GRU(3))


@model
def masked_mean():
    return seq(L.Masking(-1.0), L.LSTM(4, return_sequences=True), L.GlobalAveragePooling1D())


@model
def masked_time_distributed():
    return seq(L.Masking(-1.0), L.TimeDistributed(L.Dense(4, activation="relu")), L.LSTM(3))


@model
def masked_rescaled():
    """Layers that drop the mask here and keep it in Keras 3."""
    x = keras.Input((None, 3))
    h = L.Masking(-1.0)(x)
    ways = L.Rescaling(0.5)(h), L.Normalization(mean=0.5, variance=2.0)(h), L.Identity()(h)
    return keras.Model(x, [L.GRU(3, return_sequences=True)(y) for y in ways])


@model
def masked_unrolled():
    layers = (L.GRU(3, unroll=True, return_sequences=True), L.GRU(3, unroll=True))
    x = keras.Input((6, 3))
    h = L.Masking(-1.0)(x)
    return keras.Model(x, [L.Bidirectional(layer)(h) for layer in layers])


def merged(kind):
    a, b = keras.Input((None, 3)), keras.Input((None, 3))
    both = getattr(L, kind)()([L.Masking(-1.0)(a), L.Masking(-1.0)(b)])
    one = getattr(L, kind)()([L.Masking(-1.0)(a), b])
    return keras.Model([a, b], [L.LSTM(4, return_sequences=True)(both), L.LSTM(4, return_sequences=True)(one)])


for _kind in ("Add", "Multiply", "Maximum", "Concatenate"):
    MODELS[f"merge_{_kind.lower()}"] = lambda kind=_kind: merged(kind)


@model
def masked_initial_state():
    x, start = keras.Input((None, 3)), keras.Input((4,))
    y = L.GRU(4, return_sequences=True)(L.Masking(-1.0)(x), initial_state=L.Dense(4)(start))
    return keras.Model([x, start], y)


@model
def embedding_mask():
    return seq(L.Embedding(7, 4, mask_zero=True), L.LSTM(4, return_sequences=True), shape=(None,))


@model
def nested():
    x = keras.Input((None, 3), name="signal")
    inner = keras.Sequential([L.Input((None, 4)), L.Dense(4), L.BatchNormalization(), L.GRU(4, return_sequences=True)])
    inner.layers[0].trainable = False
    shared = L.Dense(4)
    h = inner(shared(L.Dense(4)(x)))
    return keras.Model(x, [shared(h), L.LSTM(3)(inner(h))])


@model
def stack_of_cells():
    return seq(L.RNN([L.LSTMCell(4), L.GRUCell(3), L.SimpleRNNCell(5)], return_sequences=True))


@model
def bidirectional_of_cells():
    return seq(L.Bidirectional(L.RNN(L.LSTMCell(4), return_sequences=True), merge_mode="sum"))


@model
def states_out():
    x = keras.Input((None, 3))
    return keras.Model(x, L.LSTM(4, return_sequences=True, return_state=True)(x))


@model
def operators():
    x = keras.Input((None, 3))
    y = L.GRU(3, return_sequences=True)(x)
    return keras.Model(x, (y * 2.0 + x) / 3.0 - 0.5)


@model
def time_major():
    return keras.Sequential([L.Input((3, 3), batch_size=None), L.LSTM(4, time_major=True, return_sequences=True)])


@model
def windows():
    return seq(
        L.Conv1D(4, 3, padding="causal", activation="relu"),
        L.AveragePooling1D(3, strides=1, padding="same"),
        L.UnitNormalization(),
        L.SeparableConv1D(4, 3),
        L.DepthwiseConv1D(2),
        L.LSTM(3),
    )


@model
def pooled_same():
    return seq(L.AveragePooling1D(3, strides=2, padding="same"), L.MaxPooling1D(2, padding="same"), shape=(6, 3))


@model
def attention():
    x = keras.Input((None, 4))
    h = L.LSTM(4, return_sequences=True)(x)
    y = L.MultiHeadAttention(2, 3)(h, h, use_causal_mask=True)
    return keras.Model(x, [y, L.Attention(use_scale=True)([h, y])])


@model
def stateful():
    return seq(L.GRU(4, stateful=True, return_sequences=True), batch_size=3)


KERAS_FORMAT = ("lstm_50_50", "masked_bidirectional", "nested", "stack_of_cells", "attention")


def inputs_of(m, name, rng):
    found = []
    for x in m.inputs:
        shape = [3 if d is None and k == 0 else 6 if d is None else d for k, d in enumerate(x.shape)]
        if name == "embedding_mask":
            found.append(rng.integers(0, 7, shape))
            continue
        if name == "encoder_and_decoder" and found:
            shape[1] = 4
        array = rng.normal(size=shape).astype(np.float32)
        if "mask" in name or name.startswith("merge"):
            if len(shape) == 3:
                there = rng.random(shape[:2]) < 0.6
                there[0] = True
                array[~there] = -1.0
        found.append(array)
    return found


def draw(m, rng):
    for v in m.weights:
        array = rng.normal(size=v.shape) * 0.4
        v.assign(np.abs(array) + 0.5 if "variance" in v.name else array)


def saved(m, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{suffix}"
        m.save(path)
        return path.read_bytes()


def arrays(inputs, outputs):
    out = io.BytesIO()
    named = {f"x{k}": a for k, a in enumerate(inputs)} | {f"y{k}": np.asarray(a) for k, a in enumerate(outputs)}
    np.savez(out, **named)
    return out.getvalue()


def cudnn(rng):
    """A file with weights as cuDNN's layers keep them, and what Keras makes of it: (bytes, inputs, outputs)."""
    old, new = tf.compat.v1.keras.layers, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.h5"
        m = keras.Sequential([L.Input((None, 3)), old.CuDNNLSTM(4, return_sequences=True), old.CuDNNGRU(5)])
        draw(m, rng)
        m.save(path)
        new = keras.Sequential([L.Input((None, 3)), L.LSTM(4, return_sequences=True), L.GRU(5, reset_after=True)])
        new.load_weights(path)
        x = rng.normal(size=(3, 6, 3)).astype(np.float32)
        return path.read_bytes(), [x], [new(x)]


def cudnn_renamed(rng, to_cudnn):
    """A file whose config names the other classes than those that stored its weights: (bytes, inputs, outputs)."""
    old = tf.compat.v1.keras.layers
    gru = {"reset_after": True}
    forms = [
        [L.Bidirectional(lstm(4, return_sequences=True, name="a"), name="both"), other(5, name="g", **more)]
        for lstm, other, more in ((old.CuDNNLSTM, old.CuDNNGRU, {}), (L.LSTM, L.GRU, gru))
    ]
    cudnn, plain = (keras.Sequential([L.Input((None, 3)), *layers], name="m") for layers in forms)
    draw(cudnn, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.h5"
        cudnn.save(path)
        plain.load_weights(path)
        if to_cudnn:
            plain.save(path)
        with h5py.File(path, "r+") as file:
            config = {"class_name": "Sequential", "config": (cudnn if to_cudnn else plain).get_config()}
            file.attrs["model_config"] = json.dumps(config).encode()
        x = rng.normal(size=(3, 6, 3)).astype(np.float32)
        return path.read_bytes(), [x], [plain(x)]


def keras_1(rng):
    """A file as Keras 1 wrote it, assembled by hand; Keras 2 reads the same weights: (bytes, inputs, outputs)."""
    layers = [
        ("LSTM", {"name": "lstm_1", "output_dim": 4, "inner_activation": "hard_sigmoid", "activation": "tanh",
                  "batch_input_shape": [None, None, 3], "return_sequences": True, "go_backwards": False,
                  "stateful": False,
                  "unroll": False, "consume_less": "cpu", "inner_init": "orthogonal", "init": "glorot_uniform",
                  "forget_bias_init": "one", "dropout_U": 0.0, "dropout_W": 0.0, "W_regularizer": None,
                  "U_regularizer": None, "b_regularizer": None, "input_dtype": "float32", "trainable": True,
                  "input_dim": 3, "input_length": None}),
        ("GRU", {"name": "gru_1", "output_dim": 5, "inner_activation": "hard_sigmoid", "activation": "tanh",
                 "return_sequences": False, "go_backwards": False, "stateful": False, "unroll": False,
                 "consume_less": "cpu", "trainable": True, "input_dim": 4, "input_length": None}),
        ("Dense", {"name": "dense_1", "output_dim": 2, "activation": "linear", "bias": True, "init": "glorot_uniform",
                   "trainable": True, "input_dim": None}),
    ]  # fmt: skip
    gates = {"lstm_1": ("icfo", 3, 4), "gru_1": ("zrh", 4, 5)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.h5"
        with h5py.File(path, "w") as file:
            file.attrs["keras_version"] = b"1.2.2"
            config = [{"class_name": kind, "config": c} for kind, c in layers]
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config}).encode()
            root = file.create_group("model_weights")
            root.attrs["layer_names"] = [c["name"].encode() for _, c in layers]
            root.attrs["keras_version"] = b"1"  # all that Keras 2 looks for
            for _, c in layers:
                name, group = c["name"], root.create_group(c["name"])
                if name in gates:
                    order, i, h = gates[name]
                    sizes = {"W": (i, h), "U": (h, h), "b": (h,)}
                    named = [(f"{name}_{w}_{gate}", sizes[w]) for gate in order for w in "WUb"]
                else:
                    named = [(f"{name}_W", (5, 2)), (f"{name}_b", (2,))]
                group.attrs["weight_names"] = [n.encode() for n, _ in named]
                for n, s in named:
                    group[n] = rng.normal(size=s).astype(np.float32) * 0.4
        same = {"recurrent_activation": "hard_sigmoid"}
        layers = [L.Input((None, 3)), L.LSTM(4, return_sequences=True, name="lstm_1", **same)]
        layers += [L.GRU(5, name="gru_1", reset_after=False, **same), L.Dense(2, name="dense_1")]
        new = keras.Sequential(layers)
        new.load_weights(path)
        x = rng.normal(size=(3, 6, 3)).astype(np.float32)
        return path.read_bytes(), [x], [new(x)]


def main(target):
    files = {}
    for name, make in MODELS.items():
        rng = np.random.default_rng(len(name))
        keras.backend.clear_session()
        m = make()
        draw(m, rng)
        inputs = inputs_of(m, name, rng)
        files[f"{name}.h5"] = saved(m, ".h5")
        if name in KERAS_FORMAT:
            files[f"{name}.keras"] = saved(m, ".keras")
        made = m(inputs[0] if len(inputs) == 1 else inputs, training=False)
        files[f"{name}.npz"] = arrays(inputs, made if isinstance(made, list | tuple) else [made])
    others = {"cudnn": cudnn, "keras_1": keras_1}
    others["cudnn_in_plain_classes"] = functools.partial(cudnn_renamed, to_cudnn=False)
    others["plain_in_cudnn_classes"] = functools.partial(cudnn_renamed, to_cudnn=True)
    for name, function in others.items():
        blob, inputs, outputs = function(np.random.default_rng(1))
        files[f"{name}.h5"], files[f"{name}.npz"] = blob, arrays(inputs, outputs)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_LZMA)
    print(f"{target}: {len(files)} files, {Path(target).stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests/data/keras2.zip")

"""Damaged and hostile Keras files: a clear error quickly, nothing executed, nothing created."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import zipfile

import h5py
import numpy as np
import pytest

import fastrnn
from fastrnn.errors import FastRNNError, ModelFormatError, UnsupportedError

pytestmark = pytest.mark.any_isa


def dense(name="d", units=2, **config):
    """The config of a Dense layer as Keras 3 writes it."""
    config = {"name": name, "trainable": True, "dtype": "float32", "units": units, "activation": "linear", **config}
    return {"module": "keras.layers", "class_name": "Dense", "config": config, "registered_name": None}


def sequential(*layers, shape=(None, None, 3)):
    begin = {"class_name": "InputLayer", "module": "keras.layers", "config": {"batch_shape": list(shape), "name": "x"}}
    config = {"name": "m", "layers": [begin, *layers]}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": "Sequential"}


def weights(**arrays) -> bytes:
    """A .weights.h5 with arrays at paths (d_0 for layers/dense/vars/0)."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, array in (arrays or {"dense_0": np.ones((3, 2), "f4"), "dense_1": np.ones(2, "f4")}).items():
            layer, _, k = name.rpartition("_")
            file[f"layers/{layer}/vars/{k}"] = array
    return out.getvalue()


def archive(config=None, h5=None, metadata='{"keras_version": "3.9.0"}', extra=(), compression=zipfile.ZIP_DEFLATED):
    """The bytes of a .keras file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr("config.json", config if isinstance(config, str) else json.dumps(config or sequential(dense())))
        file.writestr("metadata.json", metadata)
        file.writestr("model.weights.h5", weights() if h5 is None else h5)
        for name, data in extra:
            file.writestr(name, data)
    return out.getvalue()


def refused(blob, text, kind=ModelFormatError):
    before = time.monotonic()
    with pytest.raises(kind, match=text) as caught:
        fastrnn.load(blob)
    assert time.monotonic() - before < 3
    return str(caught.value)


def test_the_file_that_the_others_are_made_of_is_sound():
    x = np.ones((1, 4, 3), np.float32)
    np.testing.assert_array_equal(fastrnn.load(archive())(x), np.full((1, 4, 2), 4.0))


CALLS = {
    "a Lambda": dict(class_name="Lambda", module="keras.layers", config={"function": {"class_name": "__lambda__"}}),
    "another package": dict(class_name="Popen", module="subprocess", config={"args": ["touch", "made"]}),
    "a module of one's own": dict(class_name="Thing", module="my.layers", config={}, registered_name="mine>Thing"),
    "a registered name": dict(
        class_name="Dense", module="keras.layers", config={"units": 2}, registered_name="mine>Dense"
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_foreign_classes_are_named_and_not_looked_up(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = {"registered_name": None, **CALLS[what]}
    layer["config"] = {"name": "evil", **layer["config"]}
    text = refused(archive(sequential(layer)), "layer m/evil: ", UnsupportedError)
    assert {"a Lambda": "Lambda", "another package": "subprocess"}.get(
        what, "custom" if "regis" in what else ""
    ) in text
    assert os.listdir(tmp_path) == []


def test_all_unsupported_layers_are_named_in_one_error():
    layers = [
        dense(),
        {"class_name": "ConvLSTM1D", "config": {"name": "a"}},
        {"class_name": "Conv3D", "config": {"name": "b"}},
    ]
    text = refused(archive(sequential(*layers)), "ConvLSTM1D", UnsupportedError)
    assert "m/a" in text
    assert "m/b" in text
    assert "Conv3D" in text


def test_settings_that_are_not_known_are_named_each():
    def branch(name, **config):
        layer = dense(name, **config)
        return {**layer, "name": name, "inbound_nodes": [[["x", 0, 0, {}]]]}

    asked = {"p": ("activation", "sparsemax"), "q": ("lora_rank", 4), "r": ("strange", 7)}
    layers = [branch(name, **{key: value}) for name, (key, value) in asked.items()]
    names = ("dense", "dense_1", "dense_2")
    h5 = weights(**{f"{n}_{k}": np.ones((3, 2) if k == 0 else 2, "f4") for n in names for k in (0, 1)})
    blob = archive(functional(*layers, outputs=[[n, 0, 0] for n in asked]), h5)
    text = refused(blob, "3 things", UnsupportedError)
    for shown in ("f/p (Dense): activation 'sparsemax'", "f/q (Dense): lora_rank=4", "f/r (Dense): strange=7"):
        assert shown in text


def test_a_function_as_an_activation_is_refused():
    act = {"module": "my.code", "class_name": "function", "config": "my_act", "registered_name": "my_act"}
    refused(archive(sequential(dense(activation=act))), "my_act", UnsupportedError)


def test_tensors_of_the_wrong_shape_name_tensor_got_and_expected():
    blob = archive(h5=weights(dense_0=np.ones((4, 2), "f4"), dense_1=np.ones(2, "f4")))
    refused(blob, r"layers/dense/vars/0 of layer m/d has shape \[4, 2\], expected \[3, 2\]")


def test_missing_surplus_and_strange_tensors():
    refused(archive(h5=weights(dense_0=np.ones((3, 2), "f4"))), "lacks its bias")
    surplus = weights(dense_0=np.ones((3, 2), "f4"), dense_1=np.ones(2, "f4"), dense_2=np.ones(2, "f4"))
    refused(archive(h5=surplus), "one tensor too many")
    refused(archive(h5=weights(dense_0=np.ones((3, 2), "i4"), dense_1=np.ones(2, "f4"))), "floating point")
    refused(archive(h5=weights(dense_0=np.array([b"x"] * 6).reshape(3, 2), dense_1=np.ones(2, "f4"))), "numbers")


def test_configs_nested_without_end():
    inner = json.dumps(dense())
    for k in range(400):
        inner = f'{{"class_name": "Sequential", "config": {{"name": "n{k}", "layers": [{inner}]}}}}'
    refused(archive(inner), "nested deeper|JSON")
    refused(archive('{"a":' * 200000 + "1" + "}" * 200000), "JSON")
    wrapped = dense()
    for _ in range(100):
        wrapped = {"class_name": "TimeDistributed", "config": {"name": "t", "layer": wrapped}}
    refused(archive(sequential(wrapped)), "nested deeper")


def functional(*layers, outputs):
    begin = {
        "class_name": "InputLayer",
        "name": "x",
        "config": {"batch_shape": [None, None, 3], "name": "x"},
        "inbound_nodes": [],
    }
    config = {"name": "f", "layers": [begin, *layers], "input_layers": [["x", 0, 0]], "output_layers": outputs}
    return {"class_name": "Functional", "config": config}


def test_cycles_and_references_into_nothing():
    def called(name, source):
        return {**dense(name), "name": name, "inbound_nodes": [[[source, 0, 0, {}]]]}

    refused(archive(functional(called("a", "b"), called("b", "a"), outputs=[["a", 0, 0]])), "kernel|cycle")
    two = {f"{n}_{k}": a for n in ("dense", "dense_1") for k, a in ((0, np.ones((3, 2), "f4")), (1, np.ones(2, "f4")))}
    refused(archive(functional(called("a", "b"), called("b", "a"), outputs=[["a", 0, 0]]), weights(**two)), "cycle")
    refused(archive(functional(called("a", "gone"), outputs=[["a", 0, 0]])), "'gone'")
    refused(archive(functional(called("a", "x"), outputs=[["a", 7, 0]])), "call 7")
    refused(archive(functional(called("a", "x"), outputs=[["a", 0, 5]])), "no output 5")


def test_zip_bombs_and_strange_entries():
    bomb = archive(config=" " * (1 << 27))
    assert len(bomb) < 1 << 20
    refused(bomb, "unpacks|characters")
    refused(archive(h5=weights() + bytes(1 << 22)), "model.weights.h5 unpacks from")
    refused(archive(extra=[("../evil", b"x")]), r"\.\./evil")
    refused(archive(extra=[("code.py", b"import os")]), "code.py")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("config.json", "{}")
    refused(out.getvalue() + b"model.weights.h5", "metadata.json|class_name|not a .keras")


def test_an_entry_before_the_beginning_of_the_file(tmp_path):
    blob = bytearray(archive())
    at = blob.rindex(b"PK\x05\x06") + 16  # where the directory begins
    blob[at : at + 4] = (int.from_bytes(blob[at : at + 4], "little") + 9).to_bytes(4, "little")
    path = tmp_path / "m.keras"
    path.write_bytes(blob)
    refused(path, "damaged")


def test_an_error_names_its_layer_once(tmp_path):
    with pytest.raises(ModelFormatError) as caught:
        fastrnn.load(archive(config=sequential(dense(units=-1))))
    assert str(caught.value).count("layer ") == 1


def test_truncated_and_damaged_files():
    blob = archive(compression=zipfile.ZIP_STORED)
    for cut in (10, 200, len(blob) // 2, len(blob) - 30):
        with pytest.raises(FastRNNError):
            fastrnn.load(blob[:cut])
    rng = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(blob)
        for at in rng.integers(0, len(blob), 6):
            bad[at] = rng.integers(0, 256)
        with contextlib.suppress(FastRNNError):
            fastrnn.load(bytes(bad))


def h5_of(write) -> bytes:
    """A legacy whole-model file, its weights as `write` puts them."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(sequential(dense()))
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.array([b"d"])
        group = root.create_group("d")
        group.attrs["weight_names"] = np.array([b"k", b"b"])
        write(group)
    return out.getvalue()


def test_links_out_of_the_file_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["k"] = np.ones((3, 2), "f4")

    def external(group):
        group["k"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/k")
        group["b"] = np.ones(2, "f4")

    def soft(group):
        group["real"] = np.ones((3, 2), "f4")
        group["k"] = h5py.SoftLink("/model_weights/d/real")
        group["b"] = np.ones(2, "f4")

    def virtual(group):
        layout = h5py.VirtualLayout(shape=(3, 2), dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "k", shape=(3, 2))
        group.create_virtual_dataset("k", layout)
        group["b"] = np.ones(2, "f4")

    def stored_outside(group):
        group.create_dataset("k", (3, 2), "f4", external=[(str(tmp_path / "raw"), 0, 24)])
        group["b"] = np.ones(2, "f4")

    refused(h5_of(external), "is a link")
    refused(h5_of(soft), "is a link")
    refused(h5_of(virtual), "another file")
    (tmp_path / "raw").write_bytes(b"\0" * 24)
    refused(h5_of(stored_outside), "another file")
    (tmp_path / "looped.h5").write_bytes(h5_of(lambda g: (g.__setitem__("k", g), g.__setitem__("b", np.ones(2, "f4")))))
    refused((tmp_path / "looped.h5").read_bytes(), "no tensor")


def test_sizes_that_a_file_only_claims():
    def claims(group):
        group.create_dataset("k", (1 << 20, 1 << 18), "f4", chunks=(1024, 1024))
        group["b"] = np.ones(2, "f4")

    def squeezed(group):
        group.create_dataset("k", data=np.zeros((1 << 12, 1 << 12), "f4"), compression="gzip", compression_opts=9)
        group["b"] = np.ones(2, "f4")

    refused(h5_of(claims), "claims")
    refused(h5_of(squeezed), "claims|shape")


def test_models_of_python_code():
    text = refused(archive({"class_name": "MyModel", "config": {"name": "mine"}}), "MyModel", UnsupportedError)
    assert "Sequential and Functional" in text


def test_versions_and_files_that_are_none():
    refused(archive(metadata='{"keras_version": "4.0"}'), "versions 1, 2 and 3")
    refused(archive(metadata="[]"), "not an object")
    refused(b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "HDF5")
    with pytest.raises(ModelFormatError, match="config="):
        fastrnn.load(weights())
    with pytest.raises(ModelFormatError, match="config="):
        fastrnn.load(archive(), config="{}")
    with pytest.raises(ModelFormatError, match="Keras model"):
        fastrnn.from_keras(object())

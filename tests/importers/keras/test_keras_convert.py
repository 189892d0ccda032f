"""`fastrnn-convert` and `verify` of Keras files: compared with Keras where it is of the file's version."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import convert_main, main

ARCHIVE = Path(__file__).resolve().parents[2] / "data" / "keras2.zip"
pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model as .keras, as .weights.h5 and its JSON, and one of Keras 2."""
    keras = pytest.importorskip("keras", reason="Keras makes the model and is what it is compared with")
    folder = tmp_path_factory.mktemp("keras")
    layers = keras.layers
    model = keras.Sequential([layers.Input((9, 3)), layers.Masking(), layers.GRU(5), layers.Dense(2, name="out")])
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    (folder / "m.json").write_text(model.to_json())
    with zipfile.ZipFile(ARCHIVE) as archive:
        (folder / "old.h5").write_bytes(archive.read("lstm_50_50.h5"))
    return folder


def test_a_conversion_is_compared_with_keras(saved, capsys):
    assert convert_main([str(saved / "m.keras"), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verify"]["ok"]
    assert told["verify"]["against"].startswith("Keras 3")
    notes = " ".join(fastrnn.load(saved / "m.fastrnn").graph.notes)
    for what in ("layers of Keras 3", "float32", "thawed time from 9", "masks: "):
        assert what in notes


def test_another_version_of_keras_is_no_judge(saved, capsys):
    assert convert_main([str(saved / "old.h5"), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["verify"]
    assert "reference" in told["against"]
    assert "written by Keras 2.15" in told["why_reference"]
    with pytest.raises(fastrnn.UnsupportedError, match="another major version"):
        fastrnn.verify(saved / "old.h5", against="keras")


def test_weights_beside_their_config(saved, tmp_path, capsys):
    weights, config, out = saved / "m.weights.h5", saved / "m.json", tmp_path / "w.fastrnn"
    assert convert_main([str(weights), "--config", str(config), "-o", str(out)]) == 0
    capsys.readouterr()
    x = np.ones((1, 4, 3), np.float32)
    np.testing.assert_array_equal(fastrnn.load(out)(x), fastrnn.load(saved / "m.keras")(x))
    with pytest.raises(fastrnn.ModelFormatError, match="config="):
        fastrnn.load(weights)


def test_weights_beside_their_config_are_compared_with_keras(saved, tmp_path, capsys):
    weights, config, out = saved / "m.weights.h5", saved / "m.json", tmp_path / "w.fastrnn"
    assert convert_main([str(weights), "--config", str(config), "-o", str(out), "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["verify"]
    assert told["ok"]
    assert told["against"].startswith("Keras 3")
    assert main(["verify", str(weights), "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"].startswith("Keras 3")
    assert fastrnn.verify(out, "keras", source=weights, config=config).ok


def test_layers_of_a_file_that_has_its_own(saved):
    with pytest.raises(fastrnn.ModelFormatError, match=r"has its architecture in it, and takes no layers="):
        fastrnn.load(saved / "m.keras", layers=["gru:gru"])


def test_a_difference_is_found(saved):
    """Keras runs the file itself: a model that is another one fails."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        other = fastrnn.load(archive.read("lstm_50_50.h5"))
    report = fastrnn.verify(other, against="keras", source=saved / "m.keras")
    assert not report.ok

"""How `verify` reads the file for the other engine."""

import sys
from pathlib import Path

import onnx
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn import cli
from fastrnn.graph import dims as D
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.insight.verification import engines

DATA = Path(__file__).resolve().parents[1] / "data" / "onnx"


class TestHowTheFileIsRead:
    """What changes how `load` reads a file, `verify` takes too."""

    def test_float64(self, tmp_path):
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, ["batch", "time", 4])
        y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, ["batch", "time", 4])
        node = onnx.helper.make_node("Tanh", ["x"], ["y"])
        proto = onnx.helper.make_model(
            onnx.helper.make_graph([node], "double", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
        )
        proto.ir_version = 8
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(fastrnn.UnsupportedError):
            fastrnn.verify(tmp_path / "m.onnx", "reference")
        assert fastrnn.verify(tmp_path / "m.onnx", "reference", float64_as_float32=True).ok

    @pytest.fixture
    def wide(self, tmp_path):
        """A file that leaves `width` open, and has no meaning below 5 of them."""
        build = GraphBuilder("wide")
        x = build.input("x", "float32", BATCH, TIME, D.symbol("width"))
        build.add("slice", x, axis=2, start=4, stop=5, step=1, name="y")
        fastrnn.Model(build.done("y")).save(tmp_path / "wide.fastrnn")
        return tmp_path / "wide.fastrnn"

    def test_a_size_that_is_open(self, wide, monkeypatch):
        assert fastrnn.verify(wide, "reference", fixed_sizes={"width": 7}).runs[0].startswith("x [1, 1, 7]")
        monkeypatch.setattr(engines.ReferenceEngine, "run", lambda *args: 1 / 0)
        with pytest.raises(fastrnn.UnsupportedError, match="leaves width open, which was tried as 3: fix it"):
            fastrnn.verify(wide, "reference")

    def test_the_command(self, wide, capsys):
        assert cli.main(["verify", str(wide), "--against", "reference", "--sizes", "width=7"]) == 0
        assert "answers like" in capsys.readouterr().out


class TestKerasBackend:
    @pytest.fixture
    def chosen(self, tmp_path, monkeypatch):
        """settings file's text, installed modules -> KERAS_BACKEND afterwards."""
        from fastrnn.insight.verification import engine_keras as K

        def choose(settings, *installed):
            monkeypatch.delenv("KERAS_BACKEND", raising=False)
            monkeypatch.delitem(sys.modules, "keras", raising=False)
            monkeypatch.setenv("KERAS_HOME", str(tmp_path))
            (tmp_path / "keras.json").write_text(settings)
            monkeypatch.setattr(K.importlib.util, "find_spec", lambda name: name if name in installed else None)
            with monkeypatch.context() as inner:
                inner.setattr(K.os, "environ", dict(K.os.environ))
                K._choose_backend()
                return K.os.environ.get("KERAS_BACKEND")

        return choose

    def test_what_is_installed(self, chosen):
        tensorflow = '{"backend": "tensorflow"}'  # Keras writes this itself when it is first imported
        assert chosen(tensorflow, "torch") == "torch"
        assert chosen(tensorflow, "torch", "tensorflow") == "tensorflow"
        assert chosen('{"backend": "jax"}', "torch", "jax") == "jax"
        assert chosen("not json", "torch", "jax") == "torch"
        assert chosen('{"backend": 3}') is None

    def test_what_was_said_stays(self, chosen, monkeypatch):
        from fastrnn.insight.verification import engine_keras as K

        monkeypatch.setenv("KERAS_BACKEND", "jax")
        K._choose_backend()
        assert K.os.environ["KERAS_BACKEND"] == "jax"

    def test_the_command_takes_the_reference_where_keras_cannot(self, capsys, monkeypatch):
        from fastrnn.cli import verify as command

        weights = DATA / "gru_stacked.script.onnx"
        monkeypatch.setattr(command, "judge", lambda path: ("keras", None))
        assert cli.main(["verify", str(weights)]) == 0
        out = capsys.readouterr().out
        assert "compared with the float64 reference: Keras needs its own file" in out

"""A file that can't be read is the OSError that it is, with its path, in every format."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastrnn
from fastrnn.formats import FORMATS

pytestmark = pytest.mark.any_isa
SUFFIXES = [suffix for form in FORMATS for suffix in form.suffixes]


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestLoad:
    def test_no_file(self, suffix, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file, expected a model file") as caught:
            fastrnn.load(tmp_path / f"m{suffix}")
        assert caught.value.filename == str(tmp_path / f"m{suffix}")

    def test_a_folder(self, suffix, tmp_path):
        (tmp_path / f"m{suffix}").mkdir()
        with pytest.raises(IsADirectoryError) as caught:
            fastrnn.load(tmp_path / f"m{suffix}")
        assert caught.value.filename == str(tmp_path / f"m{suffix}")

    def test_a_path_through_a_file(self, suffix, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            fastrnn.load(tmp_path / "file" / f"m{suffix}")

    def test_no_permission(self, suffix, tmp_path):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(b"x")
        path.chmod(0)
        code = (
            "import os, sys, fastrnn, fastrnn.loading\n"
            "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
            "try: fastrnn.load(sys.argv[1])\n"
            "except PermissionError as error: print(error.errno, error.filename)\n"
        )
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=os.environ)
        assert done.stdout.split() == ["13", str(path)], done.stderr


def test_external_data_that_is_missing_a_permission_names_both(tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    array = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, 1, ["n", k]) for n, k in (("x", 3), ("y", 4)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [array])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert fastrnn.load(tmp_path / "m.onnx")(np.ones((1, 3), np.float32)).shape == (1, 4)
    (tmp_path / "m.data").unlink()
    with pytest.raises(fastrnn.ModelFormatError, match=r"'w'.*'m\.data' is not a file"):
        fastrnn.load(tmp_path / "m.onnx")


def test_a_snapshot(tmp_path):
    model = fastrnn.from_arrays("gru", W=np.ones((6, 1)), R=np.ones((6, 2)))
    for load in (model.stream().restore, model.pool(1).restore, model.pool(1).restore_all):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            load(tmp_path)

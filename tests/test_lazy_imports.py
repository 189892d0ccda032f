"""What a service has loaded after `import fastrnn`, and after loading and stepping a .fastrnn file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests" / "data" / "onnx" / "gru_stacked.script.onnx"
FORBIDDEN = {"onnx", "h5py", "keras", "torch", "tensorflow", "rich", "safetensors", "onnxruntime", "openvino", "google"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules, beyond the standard library, of a fresh interpreter after running the code."""
    program = code + "\nimport sys, json\nprint(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=120
    )
    assert done.returncode == 0, done.stderr
    start = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))",
        ],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    found = set(json.loads(done.stdout.splitlines()[-1])) - set(json.loads(start.stdout))
    found -= set(sys.stdlib_module_names)
    return {name for name in found if not name.startswith(("_", "cython_runtime"))}  # ours, made by Cython


def test_importing_loads_numpy_alone():
    found = loaded_by("import fastrnn")
    assert found - {"numpy"} == {"fastrnn"}


def test_importing_loads_the_kernels_and_the_errors_and_nothing_of_the_standard_library():
    """What else there is comes with the first name that needs it: an import costs NumPy's and a few milliseconds."""
    code = """
import sys, json, numpy
before = set(sys.modules)
import fastrnn
print(json.dumps(sorted(m for m in set(sys.modules) - before if "cython" not in m)))
"""
    # -I -S: no site-packages that bring modules of their own, as an editable install's finder does.
    paths = [str(ROOT), str(Path(np.__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path += {paths}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["fastrnn", "fastrnn.errors", "fastrnn.machine", "fastrnn.machine._isa"]


def test_a_name_brings_its_module_and_stays():
    code = """
import sys, fastrnn
assert "fastrnn.model" not in sys.modules
assert fastrnn.load is sys.modules["fastrnn.loading"].load
assert "load" in vars(fastrnn)
from fastrnn import *
assert Model is sys.modules["fastrnn.model"].Model
"""
    loaded_by(code)


def test_an_instruction_set_that_is_not_there_is_an_error_of_the_import():
    done = subprocess.run(
        [sys.executable, "-c", "import fastrnn"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTRNN_ISA": "bogus"},
        timeout=120,
    )
    assert done.returncode == 1
    assert "FastRNNError: FASTRNN_ISA asks for 'bogus': no such instruction set in this build; avail" in done.stderr


def test_a_source_folder_without_compiled_parts_says_so(tmp_path):
    """It shadows an installed package for a Python that is started beside it."""
    shutil.copytree(ROOT / "fastrnn", tmp_path / "fastrnn", ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.c"))
    done = subprocess.run(
        [sys.executable, "-c", "import fastrnn"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == 1
    assert "ImportError: the compiled parts of fastrnn are not in" in done.stderr
    assert "build_ext --inplace" in done.stderr


def test_a_service_loads_numpy_alone(tmp_path):
    path = tmp_path / "m.fastrnn"
    fastrnn.load(MODEL).save(path)
    code = f"""
import fastrnn, numpy as np
model = fastrnn.load({str(path)!r})
stream = model.stream()
size = model.inputs[0].dims[-1]
stream.step(np.zeros(size, np.float32)); stream.push(np.zeros((5, size), np.float32))
model.run(np.zeros([3 if d == 'batch' else 4 if d == 'time' else d for d in model.inputs[0].dims], np.float32))
fastrnn.cpu_info()
"""
    found = loaded_by(code)
    assert found & FORBIDDEN == set()
    assert found == {"fastrnn", "numpy"}


UNUSED = [  # by a service of single streams: each takes milliseconds of its start
    "fastrnn.aio", "fastrnn.bench", "fastrnn.cli", "fastrnn.importers", "fastrnn.insight",
    "fastrnn.metrics", "fastrnn.onnx_backend", "fastrnn.onnx_files", "fastrnn.onnxruntime", "fastrnn.selected",
    "fastrnn.serving.pool", "fastrnn.streaming.meaning", "logging", "secrets", "unittest", "zipfile",
]  # fmt: skip


def test_a_service_starts_with_the_modules_that_it_needs(tmp_path):
    """From `import fastrnn` to the first step of a .fastrnn file."""
    path = tmp_path / "m.fastrnn"
    fastrnn.from_arrays("gru", W=np.ones((12, 3)), R=np.ones((12, 4))).save(path)
    code = f"""
import sys, json, numpy as np
before = set(sys.modules)
import fastrnn
model = fastrnn.load({str(path)!r})
model.stream().step(np.zeros(model.inputs[0].dims[-1], np.float32))
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    # -I -S: no site-packages that bring modules of their own, as an editable install's finder does.
    paths = [str(ROOT), str(Path(np.__file__).parent.parent)]
    program = f"import sys; sys.path += {paths}\n{code}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "fastrnn.serving.stream" in found
    assert [name for name in found if any(f"{name}.".startswith(f"{unused}.") for unused in UNUSED)] == []


def test_every_public_name_is_there():
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None
    assert set(fastrnn.__all__) <= set(dir(fastrnn))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastrnn.no_such_name

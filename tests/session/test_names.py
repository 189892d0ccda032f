"""fastrnn.onnxruntime has onnxruntime's names, in the same places; what it refuses, it refuses by name."""

import subprocess
import sys
from pathlib import Path

import onnxruntime as real
import pytest
from onnxruntime.capi import onnxruntime_inference_collection as real_collection
from onnxruntime.capi import onnxruntime_pybind11_state as real_state

import fastrnn
import fastrnn.onnxruntime as ours
from fastrnn.onnxruntime import refused
from fastrnn.onnxruntime.capi import _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parent.parent.parent
GUIDE = (ROOT / "docs/guide/onnxruntime.md").read_text(encoding="utf-8")


def public(thing) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def test_every_name_of_the_module_is_there_or_in_the_guide():
    for name in public(real):
        assert hasattr(ours, name) or f"`{name}`" in GUIDE, name


def test_every_name_of_the_compiled_module_is_there_or_in_the_guide():
    for name in public(real_state):
        assert hasattr(onnxruntime_pybind11_state, name) or f"`{name}`" in GUIDE, name
    for name in ours.__all__:
        if hasattr(onnxruntime_pybind11_state, name):
            assert getattr(onnxruntime_pybind11_state, name) is getattr(ours, name)


@pytest.mark.parametrize(
    "name",
    "InferenceSession SessionOptions RunOptions OrtValue IOBinding OrtDevice ModelMetadata NodeArg "
    "GraphOptimizationLevel ExecutionMode ExecutionOrder OrtAllocatorType OrtMemType OrtDeviceVendorId".split(),
)
def test_every_member_of_a_class(name):
    made = {"ModelMetadata": ours.ModelMetadata, "NodeArg": lambda: ours.NodeArg("x", "tensor(float)", [1])}
    mine = made[name]() if name in made else getattr(ours, name)
    if hasattr(mine, "__members__"):  # those of an enumeration have name and value, the class need not
        mine = next(iter(mine))
    theirs = getattr(real, name)
    missing = [member for member in public(theirs) if not hasattr(mine, member) and member not in theirs.__dict__]
    assert [m for m in public(theirs) if not hasattr(mine, m)] == missing == []


@pytest.mark.parametrize(
    "name", "GraphOptimizationLevel ExecutionMode ExecutionOrder OrtAllocatorType OrtMemType".split()
)
def test_enumerations_have_the_same_numbers(name):
    mine, theirs = getattr(ours, name), getattr(real, name)
    assert {k: int(v) for k, v in mine.__members__.items()} == {k: int(v) for k, v in theirs.__members__.items()}
    for key, member in theirs.__members__.items():
        if name != "OrtMemType":  # two names of one number: either may be shown
            assert (str(mine[key]), repr(mine[key])) == (str(member), repr(member))


def test_exceptions_are_in_the_same_place_and_errors_of_fastrnn():
    found = [n for n in public(real_state) if issubclass_of(getattr(real_state, n), Exception)]
    assert len(found) >= 10
    for name in found:
        error = getattr(onnxruntime_pybind11_state, name)
        assert issubclass(error, fastrnn.FastRNNError)
        assert error.__name__ == name
        assert getattr(_pybind_state, name) is error


def issubclass_of(thing, base) -> bool:
    return isinstance(thing, type) and issubclass(thing, base)


def test_the_collection_has_the_same_classes():
    for name in ("InferenceSession", "IOBinding", "OrtValue", "OrtDevice", "Session"):
        assert hasattr(real_collection, name)
        assert getattr(onnxruntime_inference_collection, name) is getattr(ours, name, ours.InferenceSession)
    assert fastrnn.InferenceSession is ours.InferenceSession
    assert fastrnn.onnxruntime is ours


@pytest.mark.parametrize("name", sorted(refused.CLASSES))
def test_a_refused_class_says_so(name):
    thing = getattr(ours, name)
    assert not isinstance(5, thing)
    for use in (lambda: thing(1, two=2), lambda: thing.anything):
        with pytest.raises(fastrnn.UnsupportedError, match=f"{name}.*: "):
            use()
    assert not hasattr(thing, "anything")
    assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("name", sorted(refused.FUNCTIONS))
def test_a_refused_function_says_so(name):
    with pytest.raises(fastrnn.UnsupportedError, match=f"{name}: "):
        getattr(ours, name)(1, two=2)
    assert f"`{name}`" in GUIDE


def test_what_the_module_says_of_itself():
    assert ours.get_available_providers() == ["CPUExecutionProvider"]
    assert ours.get_all_providers() == real.get_all_providers()
    assert ours.get_device() == real.get_device() == "CPU"
    assert ours.__version__ == ours.get_version_string() == ours.version
    assert ours.get_version_string().split(".")[0] == "1"
    assert ours.get_build_info().startswith("fastrnn ")
    assert ours.has_collective_ops() is False
    for call in (
        lambda: ours.set_seed(1),
        lambda: ours.set_global_thread_pool_sizes(1, 1),
        ours.disable_telemetry_events,
        ours.enable_telemetry_events,
        lambda: ours.preload_dlls(cuda=False),
        ours.print_debug_info,
        lambda: ours.set_default_logger_verbosity(1),
    ):
        assert call() is None


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "onnxruntime" and not sys.modules.get("onnxruntime"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import fastrnn
"""
USE = """
import onnxruntime
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NoSuchFile
from onnxruntime.capi.onnxruntime_inference_collection import IOBinding
from onnxruntime.capi import _pybind_state as C
assert InferenceSession is fastrnn.InferenceSession
assert C.Fail is Fail and issubclass(NoSuchFile, fastrnn.FastRNNError)
try:
    InferenceSession("/no/such/file.onnx")
except NoSuchFile as error:
    assert isinstance(error, FileNotFoundError)
else:
    raise SystemExit("no error")
"""


@pytest.mark.parametrize(
    "swap",
    [
        "import fastrnn.onnxruntime; fastrnn.onnxruntime.install(); fastrnn.onnxruntime.install()",
        "import fastrnn.onnxruntime; sys.modules['onnxruntime'] = fastrnn.onnxruntime",
        "sys.modules['onnxruntime'] = fastrnn.onnxruntime",
    ],
)
def test_a_program_imports_it_under_the_name_onnxruntime(swap):
    ended = subprocess.run([sys.executable, "-c", BLOCKED + swap + USE], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_install_comes_before_the_real_one():
    assert sys.modules["onnxruntime"] is real
    with pytest.raises(RuntimeError, match="onnxruntime is imported already"):
        ours.install()

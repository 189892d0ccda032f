"""fastrnn runs recurrent networks on a CPU inside production services.

    model = fastrnn.load("model.onnx")     # or .keras, .h5, .pt, .safetensors, .fastrnn
    y = model(x)                           # whole sequences
    s = model.stream()                     # one live stream
    y = s.step(x)                          # one time step; the stream keeps the state

README.md shows how to use it; HACKING.md is the map of the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    FastRNNError,
    FastRNNMemoryError,
    FastRNNWarning,
    ModelFormatError,
    ShapeError,
    StateError,
    StreamError,
    UnsupportedError,
)

try:
    # Chooses the kernels. If FASTRNN_ISA names an instruction set that can't run here, the import fails.
    from .machine import _isa as _isa
except ImportError as error:
    if error.name != "fastrnn.machine":  # NumPy is missing, or a compiled module is broken
        raise
    raise ImportError(
        f"the compiled parts of fastrnn are not in {__path__[0]}: build them with `pip install .` or "
        "`python setup.py build_ext --inplace` in the source folder, or start Python in another folder"
    ) from None

# The module of each other name, and the public modules. They are imported on first use, so that importing fastrnn
# costs next to nothing on top of NumPy: for a service before it forks, or a command before it prints its help.
_LAZY = {
    "CpuInfo": "machine.cpu",
    "cpu_info": "machine.cpu",
    "from_arrays": "loading",
    "from_equations": "loading",
    "from_keras": "loading",
    "from_onnx": "loading",
    "from_torch": "loading",
    "load": "loading",
    "IsaInfo": "machine.cpu",
    "ThreadInfo": "machine.cpu",
    "ThreadingInfo": "machine.workers",
    "set_threading": "machine.workers",
    "Description": "description",
    "LayerInfo": "infos",
    "Model": "model",
    "TensorInfo": "infos",
    "Stream": "serving.stream",
    "StreamPool": "serving.pool",
    "verify": "insight.verification",
    "OutputDifference": "insight.verification",
    "VerifyReport": "insight.verification",
    "Analysis": "insight.analysis",
    "analyze": "insight.analysis",
    "Data": "insight.analysis",
    "load_data": "insight.analysis",
    "PrecisionChoice": "insight.choosing",
    "choose_precision": "insight.choosing",
    "CapacityPlan": "insight.capacity",
    "plan_capacity": "insight.capacity",
    "Profile": "insight.profiling",
    "profile": "insight.profiling",
    "Scorer": "scoring",
    "ScoreReport": "scoring",
    "score": "scoring",
    "SelectedModel": "selected",
    "InferenceSession": "onnxruntime.session",
}
_MODULES = {
    "aio": "aio",
    "metrics": "metrics",
    "serving": "serving",
    "typing": "typing",
    "onnx_backend": "onnx_backend",
    "onnxruntime": "onnxruntime",
    "ray": "ray",
    "report": "insight.report",
    "spark": "spark",
}

__all__ = [
    "Analysis",
    "CapacityPlan",
    "CpuInfo",
    "Data",
    "Description",
    "FastRNNError",
    "FastRNNMemoryError",
    "FastRNNWarning",
    "InferenceSession",
    "IsaInfo",
    "LayerInfo",
    "Model",
    "ModelFormatError",
    "OutputDifference",
    "PrecisionChoice",
    "Profile",
    "ScoreReport",
    "Scorer",
    "SelectedModel",
    "ShapeError",
    "StateError",
    "Stream",
    "StreamError",
    "StreamPool",
    "TensorInfo",
    "ThreadInfo",
    "ThreadingInfo",
    "UnsupportedError",
    "VerifyReport",
    "aio",
    "analyze",
    "choose_precision",
    "cpu_info",
    "from_arrays",
    "from_equations",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load",
    "load_data",
    "metrics",
    "onnx_backend",
    "onnxruntime",
    "plan_capacity",
    "profile",
    "report",
    "score",
    "serving",
    "set_threading",
    "verify",
]


if TYPE_CHECKING:
    __version__: str
    from . import aio, metrics, onnx_backend, onnxruntime, serving
    from . import typing as typing
    from .description import Description
    from .infos import LayerInfo, TensorInfo
    from .insight import report
    from .insight.analysis import Analysis, Data, analyze, load_data
    from .insight.capacity import CapacityPlan, plan_capacity
    from .insight.choosing import PrecisionChoice, choose_precision
    from .insight.profiling import Profile, profile
    from .insight.verification import OutputDifference, VerifyReport, verify
    from .loading import from_arrays, from_equations, from_keras, from_onnx, from_torch, load
    from .machine.cpu import CpuInfo, IsaInfo, ThreadInfo, cpu_info
    from .machine.workers import ThreadingInfo, set_threading
    from .model import Model
    from .onnxruntime.session import InferenceSession
    from .scoring import Scorer, ScoreReport, score
    from .selected import SelectedModel
    from .serving.pool import StreamPool
    from .serving.stream import Stream
else:

    def __getattr__(name):
        if name == "__version__":
            return _version()
        if name in _MODULES:
            value = import_module(f".{_MODULES[name]}", __name__)
        elif name in _LAZY:
            value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        else:
            raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")
        globals()[name] = value
        return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes 10 ms, so only on demand

    try:
        return version("fastrnn")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"


def __dir__():
    return sorted({*globals(), *__all__})

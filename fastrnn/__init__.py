"""fastrnn: runs recurrent networks on a CPU inside production services.

    model = fastrnn.load("model.onnx")     # or .fastrnn; see also from_onnx
    y = model(x)                           # whole sequences
    s = model.stream()                     # one live stream
    y = s.step(x)                          # one time step, state kept

The map of the package is HACKING.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _isa as _isa  # chooses the kernels: a FASTRNN_ISA that can't be had is an error of the import itself
from .errors import FastRNNError, ModelFormatError, ShapeError, StateError, StreamError, UnsupportedError

# Where each other name lives; None: it is a module itself. They are imported when first used, so that what a service
# imports before it forks, or a command before it prints its help, costs next to nothing beside NumPy.
_LAZY = {
    "CpuInfo": "cpu",
    "cpu_info": "cpu",
    "from_arrays": "loading",
    "from_equations": "loading",
    "from_keras": "loading",
    "from_onnx": "loading",
    "from_torch": "loading",
    "load": "loading",
    "LayerInfo": "model",
    "Model": "model",
    "TensorInfo": "model",
    "Stream": "stream",
    "verify": "verification",
    "VerifyReport": "verification",
    "Analysis": "analysis",
    "analyze": "analysis",
    "load_data": "analysis",
    "report": None,
    "Profile": "profiling",
    "profile": "profiling",
    "InferenceSession": "inference_session",
    "onnx_backend": None,
}

__all__ = [
    "Analysis",
    "CpuInfo",
    "FastRNNError",
    "InferenceSession",
    "LayerInfo",
    "Model",
    "ModelFormatError",
    "Profile",
    "ShapeError",
    "StateError",
    "Stream",
    "StreamError",
    "TensorInfo",
    "UnsupportedError",
    "VerifyReport",
    "analyze",
    "cpu_info",
    "from_arrays",
    "from_equations",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load",
    "load_data",
    "onnx_backend",
    "profile",
    "report",
    "verify",
]


if TYPE_CHECKING:
    __version__: str
    from . import onnx_backend, report
    from .analysis import Analysis, analyze, load_data
    from .cpu import CpuInfo, cpu_info
    from .inference_session import InferenceSession
    from .loading import from_arrays, from_equations, from_keras, from_onnx, from_torch, load
    from .model import LayerInfo, Model, TensorInfo
    from .profiling import Profile, profile
    from .stream import Stream
    from .verification import VerifyReport, verify
else:

    def __getattr__(name):
        if name == "__version__":
            return _version()
        if name not in _LAZY:
            raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")
        module = import_module(f".{_LAZY[name] or name}", __name__)
        value = getattr(module, name) if _LAZY[name] else module
        globals()[name] = value
        return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # 10 ms that a service does without

    try:
        return version("fastrnn")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"


def __dir__():
    return sorted({*globals(), *__all__})

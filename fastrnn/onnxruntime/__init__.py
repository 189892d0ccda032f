"""The names of onnxruntime, for programs that are written for it: `import fastrnn.onnxruntime as ort`.

    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": x})

`install()` lets a program that can't be edited use it: its own `import onnxruntime` then returns this module.

Map of this package:

    session.py      InferenceSession; reading.py makes its model, feeds.py its arrays, profile.py its profile
    described.py    what a file says of itself
    options.py      SessionOptions, RunOptions; logs.py, providers.py, environment.py
    values.py       OrtValue; binding.py, devices.py, types.py
    exceptions.py   onnxruntime's exceptions, each a FastRNNError too
    refused.py      what fastrnn does not have, each with the reason
    capi/           the modules in which onnxruntime keeps the same names
"""

from __future__ import annotations

from . import capi
from .binding import IOBinding, SessionIOBinding
from .described import ModelMetadata, NodeArg
from .devices import (
    OrtAllocatorType,
    OrtDevice,
    OrtDeviceMemoryType,
    OrtDeviceVendorId,
    OrtMemoryInfo,
    OrtMemType,
)
from .environment import (
    VERSION,
    disable_telemetry_events,
    enable_telemetry_events,
    get_build_info,
    get_version_string,
    has_collective_ops,
    preload_dlls,
    print_debug_info,
    set_global_thread_pool_sizes,
    set_seed,
)
from .logs import set_default_logger_severity, set_default_logger_verbosity
from .options import ExecutionMode, ExecutionOrder, GraphOptimizationLevel, RunOptions, SessionOptions
from .providers import get_all_providers, get_available_providers, get_device
from .refused import REFUSED
from .session import InferenceSession
from .values import OrtValue

__version__ = VERSION
version, package_name, cuda_version, __author__ = VERSION, "onnxruntime", "", "fastrnn"

globals().update(REFUSED)


def install() -> None:
    """Let `import onnxruntime` return this module in this process, also if onnxruntime is not installed.

    Call it before the first import of onnxruntime. Raises RuntimeError after one, since what was imported from the real
    onnxruntime would stay in use. It may be called again.
    """
    import sys

    from .capi import _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state
    from .exceptions import ArgumentError

    this = sys.modules[__name__]
    if sys.modules.get("onnxruntime", this) is not this:
        raise ArgumentError("onnxruntime is imported already: call fastrnn.onnxruntime.install() before that")
    sys.modules["onnxruntime"] = this
    for module in (capi, _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state):
        sys.modules[module.__name__.removeprefix("fastrnn.")] = module


__all__ = [
    "ExecutionMode",
    "ExecutionOrder",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "ModelMetadata",
    "NodeArg",
    "OrtAllocatorType",
    "OrtDevice",
    "OrtDeviceMemoryType",
    "OrtDeviceVendorId",
    "OrtMemType",
    "OrtMemoryInfo",
    "OrtValue",
    "RunOptions",
    "SessionIOBinding",
    "SessionOptions",
    "capi",
    "disable_telemetry_events",
    "enable_telemetry_events",
    "get_all_providers",
    "get_available_providers",
    "get_build_info",
    "get_device",
    "get_version_string",
    "has_collective_ops",
    "install",
    "preload_dlls",
    "print_debug_info",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
    "set_global_thread_pool_sizes",
    "set_seed",
]

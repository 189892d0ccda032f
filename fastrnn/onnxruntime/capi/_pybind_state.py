"""onnxruntime's gate to its compiled module."""

from fastrnn.onnxruntime.capi.onnxruntime_pybind11_state import *  # noqa: F403
